//! The protocol and the decisions of Adit, without IO: no runtime, no QUIC, no socket and no clock.
//! Its functions take bytes and times, and return verdicts and bytes.

pub mod api_key;
pub mod bootstrap;
#[cfg(any(test, feature = "testing"))]
#[doc(hidden)]
pub mod checks;
pub mod clock;
pub mod congestion;
pub mod copies;
pub mod crypto;
pub mod device_key;
pub mod doctor;
pub mod document;
pub mod epoch;
pub mod failure;
pub mod glob;
pub mod http1;
pub mod human;
pub mod identity;
pub mod invitation;
pub mod knock;
pub mod log_line;
pub mod ollama;
pub mod redirect;
pub mod repeats;
pub mod rotation;
pub mod secret;
pub mod service;
pub mod typed;
pub mod wire;
