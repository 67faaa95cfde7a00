//! What both ends of Adit share besides the crate `proto`: moving bytes, and access to the machine.

pub mod machine;
pub mod transport;
