//! What passes through the tunnel, and who may open one.

mod addresses;
mod again;
mod browser;
mod clients;
mod cutting;
mod daily;
mod forwarding;
mod holding;
mod interactive;
mod keeping;
mod killed;
mod knocks;
mod lasting;
mod listening;
mod moving;
mod other_users;
mod outages;
mod replaced;
mod running;
mod stalled;
mod stopping;
mod strangers;
mod unix_socket;
