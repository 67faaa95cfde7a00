//! The side that applications see: the listener where Ollama would be, and what it answers itself.

pub mod answer;
mod holder;
pub mod lease;
pub mod listener;
pub mod owner;
