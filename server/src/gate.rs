//! The gate: what stands between a device's stream and an `http` service. It reads every request strictly, asks whether it may pass, and
//! then lets the very bytes through that it has read.

pub mod framing;
pub mod head;
pub mod host;
pub mod model;
pub mod record;
pub mod route;
