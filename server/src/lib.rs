//! `aditd`: lets enrolled devices use the Ollama on the same machine, and answers nobody else.
//!
//! The library is for the program and for the tests of both ends; everything else is private.

mod accounting;
mod audit;
mod changes;
mod cli;
mod commands;
mod config;
mod doctor;
mod documents;
mod gate;
mod https;
mod ingress;
mod jwt;
mod limits;
mod metrics;
mod oidc;
mod outside;
mod policy;
mod record;
mod running;
mod sandbox;
mod serve;
mod session;
mod state;

pub use cli::{command, run};
pub use config::{Config, Flags, HttpsFlags, ServeFlags};
pub use outside::try_launch as try_to_be_replaced_by;
pub use policy::upstream::{Kind, Upstream, UpstreamError, WrittenUpstream};
pub use running::{Answer, Request};
pub use sandbox::enter as enter_sandbox;
pub use serve::certificate::ServerCertificate;
pub use state::{
    State,
    ca::{Ca, DeviceKey},
};
