//! The local side, to which applications connect: the listener in Ollama's place, and what it
//! answers itself.

pub mod answer;
mod holder;
pub mod lease;
pub mod listener;
pub mod owner;
