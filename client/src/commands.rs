//! What `adit` can be told to do.

pub mod enroll;
pub mod status;
pub mod up;
