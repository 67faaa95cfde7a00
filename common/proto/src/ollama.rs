//! What Ollama means by a request, and what people and programs read in its answers.

pub mod answer;
pub mod host;
pub mod json_scan;
pub mod model;
pub mod named_models;
pub mod route;
pub mod usage;
