//! The byte mover: joins one TCP connection to one QUIC stream, both ways, so that neither end could tell it from one connection.
//!
//! What keeps its meaning: the end of one direction (FIN), an abort (RST), back-pressure, and the size of what is written at once.
//! A cut never looks like an end: every way out either finished a direction or reset it.

use std::{
    io::{self, IoSlice},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::{Buf, Bytes};
use quinn::{ConnectionError, ReadError, RecvStream, SendStream, StoppedError, VarInt, WriteError};
use tokio::{
    io::{AsyncWriteExt, Interest},
    net::{
        TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
};

use tokio_util::sync::CancellationToken;

use crate::{exchange::Exchange, wire::Code};

/// Read from TCP at once at the most, in bytes.
const BUFFER: usize = 64 * 1024;
/// Buffers kept for reuse; an idle connection has none.
const POOLED: usize = 32;
/// Chunks of a stream that go into one `writev`.
pub const CHUNKS: usize = 16;
/// The beginning of a request that is remembered, so that a failure can be answered as the application expects.
const HEAD: usize = 8 * 1024;
/// How long an application may go on sending after it got an answer that the upstream gave early.
const DRAIN: Duration = Duration::from_secs(2);
/// How often a connection that is to end is looked at.
const IDLE_LOOK: Duration = Duration::from_millis(50);

/// Which TCP peer a stream is joined to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Facing {
    /// The application at the client.
    Application,
    /// The service at the server.
    Upstream,
}

/// Bytes that have passed, for those who count them.
#[derive(Debug, Default)]
pub struct Meter {
    /// From TCP into the tunnel.
    pub sent: AtomicU64,
    /// From the tunnel to TCP.
    pub received: AtomicU64,
    /// Connections on which an answer is under way.
    pub underway: AtomicUsize,
}

/// How a splice ended.
#[derive(Debug)]
pub enum End {
    /// Both directions came to their own ends.
    Done,
    /// The program is to stop, and nobody waited for anything here: both directions were ended in order.
    Drained,
    /// The TCP peer aborted, and the tunnel's other end has been told.
    Aborted,
    /// The tunnel's other end reset the stream; the TCP peer has been told, unless it is handed back in `unanswered`.
    Reset(VarInt),
    /// The connection was lost; likewise.
    Lost(ConnectionError),
    /// It was given up before anything came back; likewise.
    GivenUp,
}

/// What a splice leaves behind.
#[derive(Debug)]
pub struct Outcome {
    /// How it ended.
    pub end: End,
    /// An application that has not got a single byte yet, for the caller to answer: the connection and what it had asked.
    pub unanswered: Option<(TcpStream, Vec<u8>)>,
}

/// A stream's sending half that resets when it is dropped before its end: quinn's own would finish, and look complete.
pub struct Sending {
    stream: SendStream,
    finished: bool,
}

impl Sending {
    /// Takes charge of `stream`.
    pub fn new(stream: SendStream) -> Self {
        Self { stream, finished: false }
    }

    /// Writes all of `bytes`. Not cancellation safe: a part may have been written.
    pub async fn write_all(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        self.stream.write_all(bytes).await
    }

    /// The end of this direction.
    pub fn finish(&mut self) {
        // The only error is a stream that has ended otherwise already.
        let _ = self.stream.finish();
        self.finished = true;
    }

    /// Ends when the peer takes no more of this direction, or has all of it. Cancellation safe.
    pub fn stopped(&self) -> impl Future<Output = Result<Option<VarInt>, StoppedError>> + Send + 'static {
        self.stream.stopped()
    }

    /// Waits until the peer has all of a finished direction: before that, closing the connection would lose its tail.
    pub async fn acknowledged(&self) {
        let _ = self.stream.stopped().await;
    }

    /// Ends this direction with a code, unless it is finished.
    pub fn reset(&mut self, code: Code) {
        if !self.finished {
            let _ = self.stream.reset((code as u32).into());
            self.finished = true;
        }
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.reset(Code::Cut);
    }
}

/// Joins `tcp` to a stream until both directions have ended; or `draining` is cancelled and no answer is under way; or `give_up` ends,
/// while nothing has come back yet. Cancelling it cuts both.
pub async fn splice(
    mut tcp: TcpStream,
    mut send: Sending,
    mut recv: RecvStream,
    facing: Facing,
    meter: &Meter,
    draining: &CancellationToken,
    give_up: impl Future<Output = ()>,
) -> Outcome {
    let mut head = Head::new(facing);
    let passed = Passed { facing, meter, exchange: Exchange::new(&meter.underway), answered: AtomicBool::new(false) };
    let joined = join(&mut tcp, &mut send, &mut recv, &mut head, &passed, draining, give_up).await;
    let Joined { end, stopped, received_all } = joined;
    let by_caller = facing == Facing::Application
        && !passed.answered.load(Relaxed)
        && matches!(end, End::Reset(_) | End::Lost(_) | End::GivenUp);
    if by_caller {
        send.reset(Code::Aborted);
        let _ = recv.stop((Code::Aborted as u32).into());
        return Outcome { end, unanswered: Some((tcp, head.bytes)) };
    }
    match end {
        End::Done if stopped && facing == Facing::Application => drain(tcp).await,
        _ => close(tcp, send, recv, &end, stopped, received_all).await,
    }
    Outcome { end, unanswered: None }
}

/// Ends both connections as `end` demands, if the other end takes more (not `stopped`), and the rest of its own direction if it has not come.
pub async fn close(tcp: TcpStream, mut send: Sending, mut recv: RecvStream, end: &End, stopped: bool, received_all: bool) {
    match end {
        End::Done if !stopped => {
            drop(tcp);
            send.acknowledged().await;
        }
        End::Drained => {
            drop(tcp);
            finish(send, recv, received_all).await;
        }
        _ => {
            send.reset(Code::Aborted);
            if !received_all {
                let _ = recv.stop((Code::Aborted as u32).into());
            }
            abort(tcp);
        }
    }
}

/// Ends both directions of a stream in order, whatever of the other end's has not come.
pub async fn finish(mut send: Sending, mut recv: RecvStream, received_all: bool) {
    send.finish();
    if !received_all {
        let _ = recv.stop((Code::Done as u32).into());
    }
    send.acknowledged().await;
}

/// What passes one splice, for all who want to know.
struct Passed<'a> {
    facing: Facing,
    meter: &'a Meter,
    exchange: Exchange<'a>,
    answered: AtomicBool,
}

impl Passed<'_> {
    /// From TCP, on their way into the tunnel.
    fn up(&self, bytes: &[u8]) {
        match self.facing {
            Facing::Application => self.exchange.asked(bytes),
            Facing::Upstream => self.exchange.answering(bytes),
        }
    }

    /// All of them are in the tunnel.
    fn up_done(&self, bytes: &[u8]) {
        self.meter.sent.fetch_add(bytes.len() as u64, Relaxed);
        if self.facing == Facing::Upstream {
            self.exchange.delivered(bytes);
        }
    }

    /// From the tunnel, on their way to TCP.
    fn down(&self, chunk: &[u8]) {
        match self.facing {
            Facing::Application => self.exchange.answering(chunk),
            Facing::Upstream => self.exchange.asked(chunk),
        }
    }

    /// All of them are in TCP.
    fn down_done(&self, last: &[u8]) {
        if self.facing == Facing::Application {
            self.exchange.delivered(last);
        }
    }
}

/// Closes a TCP connection with RST, so that it can't be mistaken for an end.
pub fn abort(tcp: TcpStream) {
    let _ = tcp.set_zero_linger();
}

/// Lets the peer read what it was sent: closing with its bytes unread would be an RST, which may overtake our last bytes.
pub async fn drain(mut tcp: TcpStream) {
    let _ = tcp.shutdown().await;
    let mut sink = Buffer::take();
    let until_end = async {
        loop {
            match tcp.readable().await.and_then(|()| tcp.try_read(&mut sink.0)) {
                Ok(0) => return,
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    };
    let _ = tokio::time::timeout(DRAIN, until_end).await;
}

struct Joined {
    end: End,
    /// The other end takes no more of what TCP sends.
    stopped: bool,
    /// The other end's direction has ended by itself.
    received_all: bool,
}

async fn join(
    tcp: &mut TcpStream,
    send: &mut Sending,
    recv: &mut RecvStream,
    head: &mut Head,
    passed: &Passed<'_>,
    draining: &CancellationToken,
    give_up: impl Future<Output = ()>,
) -> Joined {
    let (read, write) = tcp.split();
    let up = upload(&read, send, head, passed);
    let down = download(recv, write, passed);
    let drained = drained(draining, &passed.exchange);
    tokio::pin!(up, down, drained, give_up);
    let (mut up_end, mut down_end) = (None, None);
    let end = loop {
        tokio::select! {
            way = &mut up, if up_end.is_none() => match way {
                UpEnd::Aborted => break End::Aborted,
                UpEnd::Lost(e) if down_end.is_some() && passed.facing == Facing::Upstream => break End::Lost(e),
                // What has been received is still the application's; the other direction sees the loss behind it.
                UpEnd::Lost(_) => up_end = Some(UpEnd::Stopped),
                end => up_end = Some(end),
            },
            way = &mut down, if down_end.is_none() => match way {
                DownEnd::Finished => down_end = Some(DownEnd::Finished),
                DownEnd::Aborted => break End::Aborted,
                DownEnd::Reset(code) => break End::Reset(code),
                DownEnd::Lost(e) => break End::Lost(e),
            },
            // Nobody reads after the FIN, so nobody else would see an RST.
            _ = read.ready(Interest::ERROR), if up_end.is_some() => break End::Aborted,
            () = &mut drained => break End::Drained,
            () = draining.cancelled(), if answer_over(passed.facing, up_end.is_some(), down_end.is_some()) => break End::Drained,
            () = &mut give_up => break End::GivenUp,
        }
        if up_end.is_some() && down_end.is_some() {
            break End::Done;
        }
    };
    Joined { end, stopped: matches!(up_end, Some(UpEnd::Stopped)), received_all: down_end.is_some() }
}

/// Whether the direction that answers come by has ended.
fn answer_over(facing: Facing, up: bool, down: bool) -> bool {
    match facing {
        Facing::Application => down,
        Facing::Upstream => up,
    }
}

/// Ends when the program is to stop and nobody waits for anything on this connection.
async fn drained(draining: &CancellationToken, exchange: &Exchange<'_>) {
    draining.cancelled().await;
    let mut looks = tokio::time::interval(IDLE_LOOK);
    while !exchange.is_idle() {
        looks.tick().await;
    }
}

enum UpEnd {
    /// FIN was read and passed on.
    Finished,
    /// The other end takes no more of this direction.
    Stopped,
    /// RST.
    Aborted,
    Lost(ConnectionError),
}

async fn upload(from: &ReadHalf<'_>, to: &mut Sending, head: &mut Head, passed: &Passed<'_>) -> UpEnd {
    let stopped = to.stream.stopped();
    tokio::pin!(stopped);
    loop {
        tokio::select! {
            biased;
            ready = from.readable() => if ready.is_err() { return UpEnd::Aborted },
            stop = &mut stopped => return match stop {
                Err(StoppedError::ConnectionLost(e)) => UpEnd::Lost(e),
                _ => UpEnd::Stopped,
            },
        }
        let mut buffer = Buffer::take();
        loop {
            let n = match from.try_read(&mut buffer.0) {
                Ok(0) => {
                    to.finish();
                    return UpEnd::Finished;
                }
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => return UpEnd::Aborted,
            };
            head.remember(&buffer.0[..n]);
            passed.up(&buffer.0[..n]);
            let written = tokio::select! {
                biased;
                written = to.write_all(&buffer.0[..n]) => written,
                // An abort must not wait behind what flow control holds back.
                _ = from.ready(Interest::ERROR) => return UpEnd::Aborted,
            };
            match written {
                Ok(()) => passed.up_done(&buffer.0[..n]),
                Err(WriteError::ConnectionLost(e)) => return UpEnd::Lost(e),
                Err(_) => return UpEnd::Stopped,
            }
            if n < BUFFER {
                break;
            }
        }
    }
}

/// How the direction from the tunnel to TCP ended.
#[derive(Debug)]
pub enum DownEnd {
    /// The end of the stream was read and passed on as FIN.
    Finished,
    /// TCP takes no more.
    Aborted,
    /// The tunnel's other end reset the stream.
    Reset(VarInt),
    /// The connection was lost.
    Lost(ConnectionError),
}

impl From<ReadError> for DownEnd {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Reset(code) => Self::Reset(code),
            ReadError::ConnectionLost(e) => Self::Lost(e),
            _ => Self::Aborted,
        }
    }
}

async fn download(from: &mut RecvStream, mut to: WriteHalf<'_>, passed: &Passed<'_>) -> DownEnd {
    loop {
        let mut chunks: [Bytes; CHUNKS] = std::array::from_fn(|_| Bytes::new());
        let count = match from.read_chunks(&mut chunks).await {
            Ok(Some(count)) => count,
            Ok(None) => {
                return match to.shutdown().await {
                    Ok(()) => DownEnd::Finished,
                    Err(_) => DownEnd::Aborted,
                };
            }
            Err(e) => return e.into(),
        };
        passed.answered.store(true, Relaxed);
        chunks[..count].iter().for_each(|chunk| passed.down(chunk));
        let last = chunks[count - 1].clone();
        if let Err(end) = write_all(&mut chunks[..count], &to, from, passed.meter).await {
            return end;
        }
        passed.down_done(&last);
    }
}

/// Writes chunks of a stream to TCP, several at once; an abort from the stream's other end does not wait behind a reader that has stopped.
///
/// # Errors
/// When TCP takes no more, or the other end has aborted.
pub async fn write_all(chunks: &mut [Bytes], to: &WriteHalf<'_>, from: &mut RecvStream, meter: &Meter) -> Result<(), DownEnd> {
    let mut next = 0;
    while next < chunks.len() {
        let mut slices = [IoSlice::new(&[]); CHUNKS];
        let count = CHUNKS.min(chunks.len() - next);
        for (slice, chunk) in slices.iter_mut().zip(&chunks[next..]) {
            *slice = IoSlice::new(chunk);
        }
        match to.try_write_vectored(&slices[..count]) {
            Ok(mut n) => {
                meter.received.fetch_add(n as u64, Relaxed);
                while next < chunks.len() && n >= chunks[next].len() {
                    n -= chunks[next].len();
                    chunks[next] = Bytes::new();
                    next += 1;
                }
                if n > 0 {
                    chunks[next].advance(n);
                }
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => writable(to, from).await?,
            Err(_) => return Err(DownEnd::Aborted),
        }
    }
    Ok(())
}

/// Waits until TCP takes bytes again; an abort from the other end does not wait for a reader that has stopped reading.
async fn writable(to: &WriteHalf<'_>, from: &mut RecvStream) -> Result<(), DownEnd> {
    tokio::select! {
        biased;
        ready = to.writable() => ready.map_err(|_| DownEnd::Aborted),
        reset = from.received_reset() => match reset {
            Ok(Some(code)) => Err(DownEnd::Reset(code)),
            // All has been received, or will not be: what has been is still to be delivered, and the next read says the rest.
            Ok(None) | Err(_) => to.writable().await.map_err(|_| DownEnd::Aborted),
        },
    }
}

/// The first line of what an application asks, as far as it has come.
struct Head {
    bytes: Vec<u8>,
    complete: bool,
}

impl Head {
    fn new(facing: Facing) -> Self {
        Self { bytes: Vec::new(), complete: facing == Facing::Upstream }
    }

    fn remember(&mut self, bytes: &[u8]) {
        if self.complete {
            return;
        }
        let room = HEAD - self.bytes.len();
        let line = bytes.iter().position(|b| *b == b'\n').map_or(bytes.len(), |at| at + 1);
        self.bytes.extend_from_slice(&bytes[..line.min(room)]);
        self.complete = line < bytes.len() || bytes.ends_with(b"\n") || self.bytes.len() == HEAD;
    }
}

/// A buffer that goes back to the pool when it is dropped.
pub struct Buffer(Vec<u8>);

static POOL: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

impl Buffer {
    /// One from the pool; what is in it is of no meaning.
    pub fn take() -> Self {
        Self(POOL.lock().ok().and_then(|mut pool| pool.pop()).unwrap_or_else(|| vec![0; BUFFER]))
    }

    /// Its bytes.
    pub fn bytes(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Ok(mut pool) = POOL.lock()
            && pool.len() < POOLED
        {
            pool.push(std::mem::take(&mut self.0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_request_its_first_line_is_remembered_and_no_more() {
        let mut head = Head::new(Facing::Application);
        head.remember(b"POST /api/ch");
        head.remember(b"at HTTP/1.1\r\nHost: x\r\n");
        head.remember(b"more");
        assert_eq!(head.bytes, b"POST /api/chat HTTP/1.1\r\n");
        let mut endless = Head::new(Facing::Application);
        for _ in 0..10 {
            endless.remember(&[b'x'; 4096]);
        }
        assert_eq!(endless.bytes.len(), HEAD);
        let mut upstream = Head::new(Facing::Upstream);
        upstream.remember(b"HTTP/1.1 200 OK\r\n");
        assert!(upstream.bytes.is_empty());
    }
}
