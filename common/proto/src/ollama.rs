//! The meaning of the requests and answers of Ollama's API.

pub mod answer;
pub mod host;
pub mod json_scan;
pub mod model;
pub mod named_models;
pub mod route;
pub(crate) mod usage;
