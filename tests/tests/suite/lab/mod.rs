//! Tests in network namespaces that are joined by an emulated path.

mod cancelling;
mod ladder;
mod marks;
mod outages;
mod path;
mod redundancy;
mod returning;
mod server;
mod ssh;
