//! What the packages install.

mod completions;
mod containers;
mod service;
mod units;
