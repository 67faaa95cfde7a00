//! Over a real sshd: enrollment and the carrier.

mod carrier;
mod enroll_group;
mod enrolling;
mod hosts;
mod killed;
mod login;
mod not_running;
mod slow;
