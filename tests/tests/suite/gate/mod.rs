//! What the gate forwards, counts and records.

mod ambiguous;
mod audit;
mod authorize;
mod authorize_answers;
mod authorize_https;
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
