//! The local side, to which applications connect: the listener in Ollama's place, and what it
//! answers itself.

mod again;
pub(crate) mod answer;
pub(crate) mod front;
pub(crate) mod holder;
pub(crate) mod lease;
pub(crate) mod listener;
pub(crate) mod owner;
pub(crate) mod unix;
