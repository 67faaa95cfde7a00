//! How a device gets its certificate, keeps it and loses it.

mod bad_certificates;
mod bad_clock;
mod beside;
mod devices;
mod enrolling;
mod every_way;
mod key_memory;
mod pasting;
mod renewing;
mod secrets;
