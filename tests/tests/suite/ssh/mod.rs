//! Over a real sshd: enrollment and the carrier.

mod carrier;
mod enrolling;
mod hosts;
mod login;
mod not_running;
mod slow;
