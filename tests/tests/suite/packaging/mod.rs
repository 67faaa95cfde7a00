//! What the packages install.

mod units;
