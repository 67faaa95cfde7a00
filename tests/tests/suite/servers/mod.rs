//! What `adit` does with the servers that a device knows, and with its settings.

mod json;
mod logs;
mod profiles;
mod settings;
mod several;
