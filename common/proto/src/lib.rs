//! What is said and decided in Adit, without anything that says or does it: no runtime, no QUIC, no
//! socket and no clock. Bytes and times come in; verdicts and bytes come out.

#[cfg(any(test, feature = "testing"))]
#[doc(hidden)]
pub mod checks;
pub mod clock;
pub mod crypto;
pub mod failure;
pub mod http1;
pub mod human;
pub mod identity;
pub mod invitation;
pub mod knock;
pub mod ollama;
pub mod repeats;
pub mod wire;
