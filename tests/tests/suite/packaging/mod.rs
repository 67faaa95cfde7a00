//! What the packages install.

mod completions;
mod containers;
mod packages;
mod service;
mod units;
