//! `doctor`: each breakage is made on purpose, and named with its cure.

mod aditd;
mod bundle;
mod laptop;
mod measured;
#[cfg(target_os = "linux")]
mod ports;
mod providers;
mod way;
