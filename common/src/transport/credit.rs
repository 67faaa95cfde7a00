//! Shares the flow-control credit of a connection between its streams.
//!
//! QUIC gives connection credit (RFC 9000 section 4.1) back only when somebody reads what was
//! received. Streams that nobody reads would so use up all of it, and every other stream would
//! wait for them. So each end tells the other how far it has read each stream, and a sender keeps
//! what is unread of one stream under its share of the receiver's window: see `ledger.rs`.
//!
//! What is told goes on one unidirectional stream each way: the window in bytes, as 8 bytes, and
//! then for each stream its id and how far it has been read, 8 bytes each; all big-endian. A peer
//! that opens no such stream is sent as much as QUIC allows.

mod ledger;
mod tally;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Poll,
    time::Duration,
};

use bytes::{Buf, BufMut, BytesMut};
use quinn::{Connection, RecvStream, SendStream, StreamId, VarInt};
use tokio::sync::Notify;
use tracing::debug;

use self::{
    ledger::Ledger,
    tally::{Tally, Urgency},
};
use crate::transport::SHARED_WINDOW;

pub use self::ledger::FLOOR;

/// A stream that has been read on is told after this time: so several are told at once.
const SOON: Duration = Duration::from_millis(5);
/// A stream that has ended leaves little behind.
const LATE: Duration = Duration::from_millis(100);
/// An id and an offset.
const RECORD: usize = 16;
/// Read at once at the most, in bytes.
const CHUNK: usize = 64 * 1024;

/// The credit of one connection, as both directions share it.
#[derive(Default)]
pub struct Credit {
    ledger: Mutex<Ledger>,
    tally: Mutex<Tally>,
    /// Something has to be told sooner than before.
    due: Notify,
}

impl std::fmt::Debug for Credit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credit")
    }
}

impl Credit {
    /// The credit of a connection that begins.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Tells the peer what is read here, and hears what is read there, until the connection ends.
    /// Never returns. Cancelling it stops both.
    ///
    /// Each end has opened one unidirectional stream before, and the other has accepted it.
    pub async fn exchange(&self, connection: &Connection) {
        let tell = async {
            let told = match connection.open_uni().await {
                Ok(stream) => self.tell(stream).await,
                Err(e) => Err(e.into()),
            };
            debug!("no more credit is told: {:?}", told.err());
        };
        let hear = async {
            let heard = match connection.accept_uni().await {
                Ok(stream) => self.hear(stream).await,
                Err(e) => Err(e.into()),
            };
            debug!("no more credit is heard: {:?}", heard.err());
        };
        tokio::join!(tell, hear);
        std::future::pending().await
    }

    async fn tell(&self, mut stream: SendStream) -> std::io::Result<()> {
        // Credit that waits behind bulk data would hold that up.
        let _ = stream.set_priority(i32::MAX);
        stream.write_all(&u64::from(SHARED_WINDOW).to_be_bytes()).await?;
        let mut records = BytesMut::new();
        loop {
            self.until_due().await;
            let due = self.tally().take();
            for (id, offset) in due {
                records.put_u64(id);
                records.put_u64(offset);
            }
            stream.write_all(&records).await?;
            records.clear();
        }
    }

    async fn until_due(&self) {
        loop {
            // A guard that lives on would be held over the pause.
            let urgency = self.tally().urgency();
            let pause = match urgency {
                None => Duration::MAX,
                Some(Urgency::Late) => LATE,
                Some(Urgency::Soon) => SOON,
                Some(Urgency::Now) => return,
            };
            // The urgency rises a few times at the most, so this ends.
            if tokio::time::timeout(pause, self.due.notified()).await.is_err() {
                return;
            }
        }
    }

    async fn hear(&self, mut stream: RecvStream) -> std::io::Result<()> {
        let mut window = [0; 8];
        stream.read_exact(&mut window).await.map_err(std::io::Error::other)?;
        self.ledger().set_window(u64::from_be_bytes(window));
        let mut records = BytesMut::new();
        while let Some(chunk) = stream.read_chunk(CHUNK, true).await? {
            records.extend_from_slice(&chunk.bytes);
            while records.len() >= RECORD {
                let (id, offset) = (records.get_u64(), records.get_u64());
                let waiting = self.ledger().read(id, offset);
                if let Some(waiting) = waiting {
                    waiting.wake();
                }
            }
        }
        Ok(())
    }

    /// A stream that this end sends on begins.
    pub(crate) fn begin(&self, id: StreamId) {
        self.ledger().begin(number(id));
    }

    /// Waits until a stream may send, and takes what it may send now, `most` bytes at the most.
    /// Cancellation safe.
    pub(crate) async fn take(&self, id: StreamId, most: usize) -> usize {
        let most = u64::try_from(most).unwrap_or(u64::MAX);
        let taken = std::future::poll_fn(|cx| {
            let mut ledger = self.ledger();
            match ledger.take(number(id), most) {
                0 => {
                    ledger.wait(number(id), cx.waker());
                    Poll::Pending
                }
                taken => Poll::Ready(taken),
            }
        });
        usize::try_from(taken.await).unwrap_or(usize::MAX)
    }

    /// This end sends nothing more on a stream.
    pub(crate) fn end(&self, id: StreamId) {
        self.ledger().end(number(id));
    }

    /// So many bytes of a stream have been read here.
    pub(crate) fn has_read(&self, id: StreamId, bytes: usize) {
        if self.tally().read(number(id), bytes as u64) {
            self.due.notify_one();
        }
    }

    /// Nothing more of a stream is read here: what is unread of it is given back.
    pub(crate) fn reads_no_more(&self, id: StreamId) {
        if self.tally().over(number(id)) {
            self.due.notify_one();
        }
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn number(id: StreamId) -> u64 {
    VarInt::from(id).into_inner()
}
