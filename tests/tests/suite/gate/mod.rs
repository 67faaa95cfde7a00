//! What the gate forwards, counts and records.

mod ambiguous;
mod audit;
mod authorize;
mod bodies;
mod cancel;
mod dialling;
mod limits;
mod memory;
mod metrics;
mod queue;
mod roles;
mod same;
mod sessions;
mod tokens;
