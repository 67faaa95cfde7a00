//! The commands of `aditd` that run beside a running server.

pub(crate) mod api;
pub(crate) mod audit;
pub(crate) mod backup;
pub(crate) mod beside;
pub(crate) mod broker;
pub(crate) mod ca;
pub(crate) mod completions;
pub(crate) mod devices;
pub(crate) mod doctor;
mod in_force;
pub(crate) mod invite;
pub(crate) mod keys;
mod models;
pub(crate) mod over_ssh;
pub(crate) mod replace;
pub(crate) mod service;
pub(crate) mod status;
mod stdio;
pub(crate) mod users;
