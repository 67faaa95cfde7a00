//! What both ends of Adit share besides what is said and decided (`proto`): how bytes are moved, and
//! what touches the machine.

pub mod machine;
pub mod transport;
