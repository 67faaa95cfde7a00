//! How a device gets, keeps and loses its certificate.

mod backup;
mod bad_certificates;
mod bad_clock;
mod beside;
mod clock_set;
mod clock_skew;
mod devices;
mod devices_changed;
mod enrolling;
mod every_way;
mod hardware_keys;
mod key_memory;
mod moved_clock;
mod pasting;
mod renewing;
mod rotation;
mod secrets;
mod sign_in;
mod sign_in_renewal;
mod stolen;
mod tpm_keys;
