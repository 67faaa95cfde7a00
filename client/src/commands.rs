//! What `adit` can be told to do.

pub mod enroll;
pub mod env;
pub mod run;
pub mod status;
pub mod up;
