//! What both programs have to endure without losing anything: outages, SIGKILL, cancellations, many
//! who use one code, and hours of load. Tests do a little of each, `adit-bench endure` does much.
//!
//! Each part panics at the first thing that is not as it must be.

pub mod cancels;
#[cfg(target_os = "linux")]
pub mod cuts;
pub mod held;
#[cfg(target_os = "linux")]
pub mod kills;
#[cfg(target_os = "linux")]
pub mod load;
pub mod redeemers;

/// What a task that has panicked has said.
pub fn told(failed: tokio::task::JoinError) -> String {
    match failed.try_into_panic() {
        Ok(said) => match said.downcast_ref::<String>() {
            Some(text) => text.clone(),
            None => said.downcast_ref::<&str>().map_or("a panic".to_owned(), ToString::to_string),
        },
        Err(e) => e.to_string(),
    }
}
