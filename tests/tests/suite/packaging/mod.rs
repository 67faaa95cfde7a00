//! What the packages install.

mod completions;
mod service;
mod units;
