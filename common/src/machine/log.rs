//! Decides which events are logged: our own, and with `-vv` a bounded number of those of libraries.
//!
//! A library logs the same fault again and again while it lasts. What a person has to know about it
//! is logged once by our own code.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use tracing::{Metadata, Subscriber, callsite::Identifier};
use tracing_subscriber::{
    filter::{LevelFilter, Targets},
    layer::{Context, Filter},
};

/// Our own crates, which are the targets of our events.
const OURS: [&str; 4] = ["client", "server", "common", "proto"];
/// The most events of one place in a library within [`TIME`].
const MOST: u32 = 50;
const TIME: Duration = Duration::from_secs(10);

/// The filter for this number of `-v`.
pub(crate) fn filter(verbose: u8) -> Targets {
    let (ours, libraries) = match verbose {
        0 => (LevelFilter::INFO, LevelFilter::OFF),
        1 => (LevelFilter::DEBUG, LevelFilter::OFF),
        _ => (LevelFilter::TRACE, LevelFilter::DEBUG),
    };
    Targets::new()
        .with_default(libraries)
        .with_target("russh", libraries.min(LevelFilter::INFO))
        .with_targets(OURS.map(|target| (target, ours)))
}

/// Limits how often events of libraries are logged.
#[derive(Debug, Default)]
pub(crate) struct Bounded(Mutex<HashMap<Identifier, Window>>);

#[derive(Debug)]
struct Window {
    began: Instant,
    events: u32,
}

impl Bounded {
    fn admits(&self, metadata: &Metadata<'_>, now: Instant) -> bool {
        // A span is logged only with an event in it.
        if metadata.is_span() || is_ours(metadata.target()) {
            return true;
        }
        let mut windows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let window = windows.entry(metadata.callsite()).or_insert(Window { began: now, events: 0 });
        if now.saturating_duration_since(window.began) > TIME {
            *window = Window { began: now, events: 0 };
        }
        window.events += 1;
        window.events <= MOST
    }
}

impl<S: Subscriber> Filter<S> for Bounded {
    fn enabled(&self, metadata: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        self.admits(metadata, Instant::now())
    }
}

fn is_ours(target: &str) -> bool {
    target.split("::").next().is_some_and(|name| OURS.contains(&name))
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        sync::{Arc, MutexGuard},
    };

    use tracing_subscriber::{Layer, filter::FilterExt, layer::SubscriberExt};

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Written {
        fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
            self.0.lock().expect("not poisoned")
        }

        fn lines(&self) -> usize {
            self.lock().iter().filter(|byte| **byte == b'\n').count()
        }
    }

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.lock().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// How many lines are logged for a warning of a library and for one of ours, each repeated a
    /// thousand times.
    fn lines(verbose: u8) -> (usize, usize) {
        let written = Written::default();
        let (out, filter) = (written.clone(), super::filter(verbose));
        let log = tracing_subscriber::fmt::layer()
            .with_writer(move || out.clone())
            .with_filter(filter.and(Bounded::default()));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(log), || {
            for _ in 0..1000 {
                tracing::warn!(target: "quinn_udp", "sendmsg error: Os {{ code: 101 }}");
                tracing::error!(target: "rustls::conn", "a fault");
            }
            let libraries = written.lines();
            for _ in 0..100 {
                tracing::info!(target: "client::tunnel::events", "the server answers again");
            }
            (libraries, written.lines() - libraries)
        })
    }

    #[test]
    fn what_libraries_say_is_shown_to_nobody_who_does_not_ask_and_bounded_to_who_does() {
        assert_eq!(lines(0), (0, 100));
        assert_eq!(lines(1), (0, 100));
        assert_eq!(lines(2), (2 * MOST as usize, 100));
    }
}
