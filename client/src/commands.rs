//! The commands of `adit`.

pub mod enroll;
pub mod env;
pub mod run;
pub mod status;
pub mod up;
