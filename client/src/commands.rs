//! The commands of `adit`.

mod api;
pub mod enroll;
pub mod env;
pub mod ls;
pub mod run;
pub mod status;
pub mod up;
pub mod warm;
