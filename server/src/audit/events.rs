//! Events for programs that read them as they happen. A reader that is too slow is cut off, so
//! that nothing grows.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::SystemTime,
};

use bytes::Bytes;
use serde::Serialize;
use serde_json::json;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio_util::sync::CancellationToken;

use super::entry;

/// How many lines may wait for one reader.
pub(crate) const MOST_WAITING: usize = 1024;

/// Those who read events.
#[derive(Default)]
pub(crate) struct Events {
    readers: Mutex<Vec<Reader>>,
    /// Whether there are any: without one, an event costs nothing.
    are_read: AtomicBool,
}

struct Reader {
    lines: Sender<Bytes>,
    /// Cancelled when it is cut off.
    cut: CancellationToken,
}

impl Events {
    /// The lines from now on, JSON with a newline each. The first one says that it has begun. `cut`
    /// is cancelled when the reader is too slow.
    pub(crate) fn subscribe(&self, cut: CancellationToken) -> Receiver<Bytes> {
        let (lines, received) = channel(MOST_WAITING);
        let begun = json!({"event": "begun", "schema": 1});
        let _ = lines.try_send(entry::line(SystemTime::now(), &begun).into());
        let mut readers = self.lock();
        readers.push(Reader { lines, cut });
        self.are_read.store(true, Relaxed);
        received
    }

    /// Sends an event, an object with the field `event`, to all readers. Never waits.
    pub(crate) fn send(&self, at: SystemTime, event: &impl Serialize) {
        if !self.are_read.load(Relaxed) {
            return;
        }
        let line = Bytes::from(entry::line(at, event));
        let mut readers = self.lock();
        readers.retain(|reader| {
            let is_taken = reader.lines.try_send(line.clone()).is_ok();
            if !is_taken {
                reader.cut.cancel();
            }
            is_taken
        });
        self.are_read.store(!readers.is_empty(), Relaxed);
    }

    /// Whether anybody reads events.
    pub(crate) fn are_read(&self) -> bool {
        self.are_read.load(Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Reader>> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(lines: &mut Receiver<Bytes>) -> serde_json::Value {
        serde_json::from_slice(&lines.try_recv().expect("a line")).expect("JSON")
    }

    #[test]
    fn each_reader_gets_what_happens_after_it_has_come() {
        let events = Events::default();
        let send = |n: u32| events.send(SystemTime::now(), &json!({"event": "x", "n": n}));
        send(1);
        let mut first = events.subscribe(CancellationToken::new());
        send(2);
        let mut second = events.subscribe(CancellationToken::new());
        send(3);
        assert_eq!(next(&mut first)["event"], "begun");
        assert_eq!(
            (next(&mut first)["n"].clone(), next(&mut first)["n"].clone()),
            (2.into(), 3.into())
        );
        assert_eq!(
            (next(&mut second)["event"].clone(), next(&mut second)["n"].clone()),
            ("begun".into(), 3.into())
        );
    }

    #[test]
    fn a_reader_that_is_too_slow_is_cut_off_and_the_others_are_not() {
        let events = Events::default();
        let (slow, fast) = (CancellationToken::new(), CancellationToken::new());
        let lines = events.subscribe(slow.clone());
        let mut read = events.subscribe(fast.clone());
        for n in 0..2 * MOST_WAITING {
            events.send(SystemTime::now(), &json!({"event": "x", "n": n}));
            while read.try_recv().is_ok() {}
        }
        assert!(slow.is_cancelled() && !fast.is_cancelled());
        assert_eq!(events.lock().len(), 1);
        drop((lines, read));
        events.send(SystemTime::now(), &json!({"event": "x"}));
        assert!(!events.are_read(), "a reader that has gone is forgotten");
    }
}
