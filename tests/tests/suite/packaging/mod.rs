//! What the packages install.

mod completions;
mod units;
