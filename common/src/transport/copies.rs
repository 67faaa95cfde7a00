//! Copies of interactive data in DATAGRAM frames (RFC 9221). They reach the reader of a stream before
//! QUIC has noticed that a packet is lost, which takes more than a round trip.
//!
//! What a frame holds: `proto::copies`. It may be lost, late or of a stream that has ended: the stream itself
//! still brings everything. The receiver gives each byte on once, whichever way it came first.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicU64, AtomicUsize,
            Ordering::{AcqRel, Acquire, Relaxed, Release},
        },
    },
    task::{Context, Poll, Waker},
    time::Instant,
};

use bytes::Bytes;
use proto::copies::{Ahead, StreamCopy};
use quinn::{Connection, SendDatagramError, StreamId, VarInt};

use crate::transport::carrier::{InteractiveData, NextCopy};

/// The most bytes of copies that one connection keeps for its readers.
const MOST_HELD: usize = 256 * 1024;

/// Sends the copies of a connection until it ends. Never returns before that. Cancelling it loses
/// nothing but copies.
pub(crate) async fn send(connection: &Connection, data: &InteractiveData) {
    data.accept_copies(connection.max_datagram_size().is_some());
    loop {
        match data.next_copy(Instant::now()) {
            NextCopy::Send(copy) => {
                let sent = connection.send_datagram(copy.encode());
                // One that is too long for this path is left to the stream.
                if let Err(SendDatagramError::ConnectionLost(_)) = sent {
                    return;
                }
            }
            NextCopy::Wait(at) => tokio::time::sleep_until(at.into()).await,
            NextCopy::Nothing => data.copies_wait().await,
        }
    }
}

/// The copies that have arrived on a connection for the streams that are read.
#[derive(Default)]
pub(crate) struct Arrivals {
    streams: Mutex<HashMap<u64, Arc<Early>>>,
    totals: Arc<Totals>,
}

/// What all streams of a connection keep and have read, in bytes.
#[derive(Default)]
struct Totals {
    held: AtomicUsize,
    read: AtomicU64,
}

impl Arrivals {
    /// Receives copies until the connection ends. Cancelling it loses nothing but copies.
    pub(crate) async fn receive(&self, connection: &Connection) {
        while let Ok(frame) = connection.read_datagram().await {
            if let Some(copy) = StreamCopy::decode(frame) {
                self.arrive(&copy);
            }
        }
    }

    /// How many bytes copies have brought to readers before the streams did.
    pub(crate) fn read(&self) -> u64 {
        self.totals.read.load(Relaxed)
    }

    /// A stream is read from its beginning.
    pub(crate) fn begin(&self, id: StreamId) -> Arc<Early> {
        let early = Arc::new(Early {
            delivered: AtomicU64::new(0),
            state: Mutex::default(),
            totals: self.totals.clone(),
        });
        self.streams().insert(VarInt::from(id).into_inner(), early.clone());
        early
    }

    /// A stream is read no more.
    pub(crate) fn end(&self, id: StreamId) {
        self.streams().remove(&VarInt::from(id).into_inner());
    }

    fn arrive(&self, copy: &StreamCopy) {
        let early = self.streams().get(&copy.stream).cloned();
        if let Some(early) = early {
            early.arrive(copy.offset, &copy.bytes);
        }
    }

    fn streams(&self) -> MutexGuard<'_, HashMap<u64, Arc<Early>>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What has arrived of one stream as copies and has not been read.
pub(crate) struct Early {
    /// How many bytes of the stream its reader has, whichever way they came.
    delivered: AtomicU64,
    state: Mutex<EarlyState>,
    totals: Arc<Totals>,
}

#[derive(Default)]
struct EarlyState {
    ahead: Ahead,
    reader: Option<Waker>,
}

impl Early {
    /// The next bytes of the stream, at most `most`, once a copy brings them. Cancellation safe.
    pub(crate) async fn next(&self, most: usize) -> Bytes {
        std::future::poll_fn(|cx| self.poll_next(cx, most)).await
    }

    fn poll_next(&self, cx: &Context<'_>, most: usize) -> Poll<Bytes> {
        let mut state = self.state();
        match &mut state.reader {
            Some(reader) => reader.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        let delivered = self.delivered.load(Acquire);
        let next = self.counted(&mut state.ahead, |ahead| ahead.take(delivered, most));
        let Some(bytes) = next else { return Poll::Pending };
        self.delivered.store(delivered + bytes.len() as u64, Release);
        self.totals.read.fetch_add(bytes.len() as u64, Relaxed);
        Poll::Ready(bytes)
    }

    /// How many bytes the reader has.
    pub(crate) fn delivered(&self) -> u64 {
        self.delivered.load(Acquire)
    }

    /// The stream itself has brought the reader up to `delivered`.
    pub(crate) fn deliver(&self, delivered: u64) {
        self.delivered.store(delivered, Release);
    }

    fn arrive(&self, offset: u64, bytes: &[u8]) {
        let mut state = self.state();
        // Under the lock: a reader that waits has said before how far it has come.
        let delivered = self.delivered.load(Acquire);
        let is_late = offset + bytes.len() as u64 <= delivered;
        if is_late || self.totals.held.load(Relaxed) + bytes.len() > MOST_HELD {
            return;
        }
        self.counted(&mut state.ahead, |ahead| ahead.put(delivered, offset, bytes));
        if offset <= delivered
            && let Some(reader) = state.reader.take()
        {
            reader.wake();
        }
    }

    /// Keeps the number of bytes that are held.
    fn counted<T>(&self, ahead: &mut Ahead, work: impl FnOnce(&mut Ahead) -> T) -> T {
        let before = ahead.held();
        let done = work(ahead);
        match ahead.held().checked_sub(before) {
            Some(more) => self.totals.held.fetch_add(more, AcqRel),
            None => self.totals.held.fetch_sub(before - ahead.held(), AcqRel),
        };
        done
    }

    fn state(&self) -> MutexGuard<'_, EarlyState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Early {
    fn drop(&mut self) {
        let held = self.state().ahead.held();
        self.totals.held.fetch_sub(held, AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_keeps_only_so_much_and_forgets_ended_streams() {
        let arrivals = Arrivals::default();
        let ids = [0_u32, 4, 8, 12, 16].map(|id| StreamId::from(VarInt::from_u32(id)));
        let early = ids.map(|id| arrivals.begin(id));
        let copy = |stream, offset| StreamCopy { stream, offset, bytes: vec![1; 1_000].into() };
        for i in 1..=1_000 {
            arrivals.arrive(&copy(4 * (i % 5), 1_000 * i));
        }
        let held = arrivals.totals.held.load(Relaxed);
        assert!((MOST_HELD - 1_000..=MOST_HELD).contains(&held), "{held} bytes");
        ids.into_iter().for_each(|id| arrivals.end(id));
        drop(early);
        assert_eq!(arrivals.totals.held.load(Relaxed), 0);
        // Nobody reads it.
        arrivals.arrive(&copy(0, 0));
        assert_eq!(arrivals.totals.held.load(Relaxed), 0);
    }
}
