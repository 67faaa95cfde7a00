//! Shares the flow-control credit of a connection between its streams.
//!
//! QUIC gives connection credit (RFC 9000 section 4.1) back only when the received bytes are read.
//! Streams that nobody reads would use up all of the credit, and every other stream would wait for
//! them. So each end tells the other how far it has read each stream, and a sender keeps the unread
//! bytes of a stream below its share of the receiver's window: see `ledger.rs`.
//!
//! Each end sends this on one unidirectional stream: first the window in bytes (8 bytes), then for
//! each stream its id and how far it has been read (8 bytes each), all big-endian. To a peer that
//! opens no such stream, a sender sends as much as QUIC allows.
//!
//! It knows each stream of the connection, and which are interactive, so it also has the copies of
//! interactive data that are sent and received: see `copies.rs`.

mod ledger;
mod tally;

use std::{
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::Poll,
    time::{Duration, Instant},
};

use bytes::{Buf, BufMut, BytesMut};
use quinn::{Connection, RecvStream, SendStream, StreamId, VarInt, WriteError};
use tokio::sync::Notify;
use tracing::debug;

use self::{
    ledger::SendLedger,
    tally::{Tally, Urgency},
};
use crate::transport::{
    POOL, SEND_WINDOW, SHARED_WINDOW, carrier::InteractiveData, copies, copies::Arrivals,
};

pub(crate) use self::ledger::FLOOR;

/// How long a report waits after bytes of a stream were read, so that several streams are reported
/// together.
const SOON: Duration = Duration::from_millis(5);
/// How long the report of a stream's end waits: it returns little credit.
const LATE: Duration = Duration::from_millis(100);
/// How often it is looked how many bytes the path holds.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// A sender keeps so many windows of the path.
const PATHS: u64 = 2;
/// What interactive streams may write when bulk data has filled the send window, in bytes.
const AHEAD: u64 = 2 << 20;
/// The bytes of a report: an id and an offset.
const RECORD: usize = 16;
/// The most bytes that are read at once.
const CHUNK: usize = 64 * 1024;

/// The credit of one connection, in both directions.
pub struct Credit {
    connection: Connection,
    /// How many unacknowledged bytes bulk data may have, in bytes.
    send_window: AtomicU64,
    ledger: Mutex<SendLedger>,
    tally: Mutex<Tally>,
    /// Notified when a report became more urgent.
    due: Notify,
    interactive: Arc<InteractiveData>,
    arrivals: Arrivals,
}

impl std::fmt::Debug for Credit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credit")
    }
}

impl Credit {
    /// The credit of a new connection.
    pub fn new(connection: &Connection) -> Arc<Self> {
        Arc::new(Self {
            connection: connection.clone(),
            send_window: SEND_WINDOW.into(),
            ledger: Mutex::default(),
            tally: Mutex::default(),
            due: Notify::new(),
            interactive: Arc::default(),
            arrivals: Arrivals::default(),
        })
    }

    /// What is written to interactive streams.
    pub fn interactive(&self) -> &Arc<InteractiveData> {
        &self.interactive
    }

    /// How many bytes copies have brought to readers before the streams did.
    pub fn read_early(&self) -> u64 {
        self.arrivals.read()
    }

    /// The copies of streams that have arrived.
    pub(crate) fn arrivals(&self) -> &Arrivals {
        &self.arrivals
    }

    /// Reports to the peer what is read here, and receives its reports, until the connection ends;
    /// sends and receives copies of interactive data. Never returns. Cancelling it stops all of it.
    ///
    /// Each end has opened one unidirectional stream before, and the other has accepted it.
    pub async fn exchange(&self) {
        let tell = async {
            let told = match self.connection.open_uni().await {
                Ok(stream) => self.tell(stream).await,
                Err(e) => Err(e.into()),
            };
            debug!("no more credit is told: {:?}", told.err());
        };
        let hear = async {
            let heard = match self.connection.accept_uni().await {
                Ok(stream) => self.hear(stream).await,
                Err(e) => Err(e.into()),
            };
            debug!("no more credit is heard: {:?}", heard.err());
        };
        let copied = copies::send(&self.connection, &self.interactive);
        let copies = self.arrivals.receive(&self.connection);
        tokio::join!(tell, hear, copied, copies);
        std::future::pending().await
    }

    async fn tell(&self, mut stream: SendStream) -> std::io::Result<()> {
        // Before all data: reports that wait would delay the peer's streams.
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
            // In a statement of its own, so that the guard is dropped before the pause.
            let urgency = self.tally().urgency();
            let pause = match urgency {
                None => Duration::MAX,
                Some(Urgency::Late) => LATE,
                Some(Urgency::Soon) => SOON,
                Some(Urgency::Now) => return,
            };
            // The urgency can rise only a few times, so this loop ends.
            if tokio::time::timeout(pause, self.due.notified()).await.is_err() {
                return;
            }
        }
    }

    async fn hear(&self, mut stream: RecvStream) -> std::io::Result<()> {
        let mut window = [0; 8];
        stream.read_exact(&mut window).await.map_err(std::io::Error::other)?;
        self.ledger().set_window(u64::from_be_bytes(window));
        let (mut records, mut looked) = (BytesMut::new(), Instant::now());
        while let Some(chunk) = stream.read_chunk(CHUNK, true).await? {
            records.extend_from_slice(&chunk.bytes);
            while records.len() >= RECORD {
                let (id, offset) = (records.get_u64(), records.get_u64());
                let waiting = self.ledger().read(id, offset);
                if let Some(waiting) = waiting {
                    waiting.wake();
                }
            }
            if looked.elapsed() >= LOOK_EVERY {
                looked = Instant::now();
                self.fit(self.connection.stats().path.cwnd);
            }
        }
        Ok(())
    }

    /// Lets streams have as many bytes under way as the path holds.
    fn fit(&self, path: u64) {
        self.ledger().set_path(path);
        let window = path.saturating_mul(PATHS).clamp(SEND_WINDOW, POOL.into());
        if self.send_window.swap(window, Relaxed) != window {
            self.connection.set_send_window(window);
        }
    }

    /// Writes `bytes`, or a part of them, to the interactive stream `id` by `write`; `offset` bytes of
    /// the stream are before them. If bulk data has filled the send window, there is more room for
    /// this write alone. Where the link loses, the bytes may be sent again.
    pub(crate) async fn write_ahead(
        &self,
        id: u64,
        offset: u64,
        bytes: &[u8],
        write: impl Future<Output = Result<usize, WriteError>>,
    ) -> Result<usize, WriteError> {
        let (mut write, most) = (pin!(write), bytes.len());
        std::future::poll_fn(|cx| {
            let began = self.interactive.begin_write();
            // Before the write: its bytes may be sent before it returns.
            self.interactive.add(most);
            let mut written = write.as_mut().poll(cx);
            if written.is_pending() {
                let window = self.send_window.load(Relaxed);
                self.connection.set_send_window(window + AHEAD);
                written = write.as_mut().poll(cx);
                self.connection.set_send_window(window);
            }
            let done = match written {
                Poll::Ready(Ok(done)) => done.min(most),
                _ => 0,
            };
            self.interactive.remove(most - done);
            if let Some(began) = began
                && done > 0
            {
                self.interactive.wrote(began, id, offset, &bytes[..done]);
            }
            written
        })
        .await
    }

    /// This end begins to send on a stream.
    pub(crate) fn begin(&self, id: StreamId) {
        self.ledger().begin(number(id));
    }

    /// Waits until a stream may send, and takes its share of credit: at most `most` bytes. Returns
    /// also whether the stream carries bulk data. Cancellation safe.
    pub(crate) async fn take(&self, id: StreamId, most: usize) -> (usize, bool) {
        let most = u64::try_from(most).unwrap_or(u64::MAX);
        let taken = std::future::poll_fn(|cx| {
            let mut ledger = self.ledger();
            match ledger.take(number(id), most) {
                0 => {
                    ledger.wait(number(id), cx.waker());
                    Poll::Pending
                }
                taken => Poll::Ready((taken, ledger.is_bulk(number(id)))),
            }
        });
        let (taken, bulk) = taken.await;
        (usize::try_from(taken).unwrap_or(usize::MAX), bulk)
    }

    /// This end sends nothing more on a stream.
    pub(crate) fn end(&self, id: StreamId) {
        self.ledger().end(number(id));
    }

    /// This end has read `bytes` bytes of a stream.
    pub(crate) fn has_read(&self, id: StreamId, bytes: usize) {
        if self.tally().read(number(id), bytes as u64) {
            self.due.notify_one();
        }
    }

    /// This end reads no more of a stream, so its unread bytes do not count any more.
    pub(crate) fn reads_no_more(&self, id: StreamId) {
        if self.tally().over(number(id)) {
            self.due.notify_one();
        }
    }

    fn ledger(&self) -> MutexGuard<'_, SendLedger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn number(id: StreamId) -> u64 {
    VarInt::from(id).into_inner()
}
