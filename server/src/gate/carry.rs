//! Drives the machine of one exchange: waits for the events that the machine wants, and carries out
//! its actions. Nothing is decided here.

use std::{
    io::{self, IoSlice},
    sync::atomic::Ordering::Relaxed,
};

use bytes::{Buf, Bytes};
use common::transport::splice::{Buffer, ByteCounters, Receiving, Sending, join_chunks};
use quinn::{ConnectionError, ReadError, ResetError, StoppedError, WriteError};
use tokio::{
    io::{AsyncWriteExt, Interest},
    net::TcpStream,
};
use tokio_util::sync::CancellationToken;

use super::{
    budget::Share,
    exchange::{
        Actions, BATCH, DeviceRead, Ending, Exchange, ExchangeEvent, ForwardedRequest, QueueChange,
    },
    refused::Refused,
    running::Outgoing,
};
use crate::record::{GrantedTurn, HeldGuard, LimitReached, NotNow, QueueWait, TurnFuture};

/// Both sides of a connection.
pub(super) struct Sides<'a> {
    /// The stream to the device.
    pub(super) send: &'a mut Sending,
    /// The stream from the device.
    pub(super) recv: &'a mut Receiving,
    pub(super) service: &'a mut TcpStream,
    /// Counts the bytes that pass.
    pub(super) meter: &'a ByteCounters,
    /// Cancelled when the server is to stop.
    pub(super) draining: &'a CancellationToken,
}

/// What a request waits for or holds, besides its bytes.
#[derive(Default)]
pub(super) struct Hold {
    /// Its turn, while it waits for that.
    pub(super) turn: Option<TurnFuture>,
    /// Its turn, while the service works on it.
    pub(super) held: Option<HeldGuard>,
    /// Held until the request has ended.
    pub(super) _ticket: Option<HeldGuard>,
    /// Ends when a limit is reached.
    pub(super) limit: Option<LimitReached>,
}

/// How an exchange ended, and the loss of the connection if that ended it.
pub(super) struct Carried {
    pub(super) ending: Ending,
    /// The service closed the connection before the device did.
    pub(super) service_left: bool,
    pub(super) lost: Option<ConnectionError>,
}

/// How carrying a request ended.
pub(super) enum Outcome {
    Ended(Carried),
    /// The request, with what it holds: it is to be sent on another connection.
    Again(ForwardedRequest, Hold),
}

/// Carries a request and its answer; each byte is forwarded as soon as it arrives. `overruled` ends
/// when the request may not pass any more; `line` is the beginning of the request.
pub(super) async fn carry(
    sides: Sides<'_>,
    (mut exchange, mut actions): (Exchange<'_>, Actions),
    mut hold: Hold,
    memory: &mut Share<'_>,
    outgoing: &mut Outgoing<'_>,
    overruled: impl Future<Output = Refused>,
    line: &[u8],
) -> Outcome {
    let Sides { send, recv, service, meter, draining } = sides;
    let (mut down, mut up) = (Down::default(), ToDevice::default());
    let mut chunks = Vec::with_capacity(BATCH);
    let (mut drained, mut is_full, mut lost) = (false, false, None);
    let stopped = send.stopped();
    tokio::pin!(stopped, overruled);
    loop {
        match actions.queue {
            Some(QueueChange::Join) => outgoing.joins_queue(),
            Some(QueueChange::Leave) => {
                hold.turn = None;
                outgoing.leaves_queue();
            }
            None => {}
        }
        if actions.again {
            return Outcome::Again(exchange.again(), hold);
        }
        if actions.release {
            hold.held = None;
        }
        if let Some(deliver) = actions.deliver {
            let bytes = up.deliver(deliver.held, deliver.from);
            outgoing.piece(bytes, exchange.status());
        } else if up.is_empty() {
            up = ToDevice::default();
        }
        if actions.finish_device {
            send.finish();
        }
        if actions.finish_service && service.shutdown().await.is_err() {
            actions = exchange.on(ExchangeEvent::ServiceRefused);
            continue;
        }
        if let Some(ending) = actions.end {
            let service_left = exchange.service_left();
            return Outcome::Ended(Carried { ending, lost, service_left });
        }
        if !actions.forward.is_empty() {
            if memory.try_grow(exchange.held()).is_err() {
                exchange.forget_sent();
            }
            down = Down { chunks: actions.forward, next: 0 };
            // Tried at once, without waiting until the socket is writable.
            match down.write(service, meter) {
                Some(event) => {
                    memory.shrink(exchange.held());
                    actions = exchange.on(event);
                    continue;
                }
                // Each chunk is a part of a received packet, and would keep the whole packet in
                // memory.
                None => join_chunks(&mut down.chunks[down.next..]),
            }
        }
        if exchange.is_at_work() {
            outgoing.service_works(exchange.seen());
        }
        let mut wants = exchange.wants();
        if is_full && matches!(wants.device, DeviceRead::Ahead(_)) {
            wants.device = DeviceRead::Loss;
        }
        let event = tokio::select! {
            biased;
            written = send.write(up.rest()), if !up.is_empty() => match written {
                Ok(n) => {
                    meter.sent.fetch_add(n as u64, Relaxed);
                    if !up.wrote(n) {
                        actions = Actions::default();
                        continue;
                    }
                    ExchangeEvent::Delivered
                }
                Err(error) => {
                    up = ToDevice::default();
                    answer_failed(error, &mut lost)
                }
            },
            ready = service.readable(), if wants.service => match ready.and_then(|()| up.read(service)) {
                Ok(0) => ExchangeEvent::ServiceEnded,
                Ok(n) => ExchangeEvent::Service(up.bytes(n)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    actions = Actions::default();
                    continue;
                }
                Err(_) => ExchangeEvent::ServiceReset,
            },
            stop = &mut stopped, if wants.device_takes && up.is_empty() => match stop {
                Err(StoppedError::ConnectionLost(e)) => {
                    lost = Some(e);
                    ExchangeEvent::AnswerLost
                }
                _ => ExchangeEvent::AnswerRefused,
            },
            // Before more of the request is forwarded.
            refused = &mut overruled => ExchangeEvent::Overruled(refused),
            (line, refused) = limited(&mut hold.limit, line) => ExchangeEvent::Limit { line, refused },
            turn = its_turn(&mut hold.turn), if wants.turn => {
                let waited = outgoing.leaves_queue();
                hold.turn = None;
                ExchangeEvent::Turn(turn.map(|GrantedTurn { held, position }| {
                    hold.held = Some(held);
                    QueueWait { position, waited }
                }))
            }
            ready = service.writable(), if !down.is_empty() => {
                match ready.map_or(Some(ExchangeEvent::ServiceRefused), |()| down.write(service, meter)) {
                    Some(event) => {
                        memory.shrink(exchange.held());
                        event
                    }
                    None => {
                        actions = Actions::default();
                        continue;
                    }
                }
            }
            event = read_device(recv, wants.device, &mut chunks) => match event {
                FromDevice::Bytes => {
                    let more = chunks.iter().map(Bytes::len).sum::<usize>();
                    // Bytes that are forwarded at once are not kept, and take no memory.
                    if wants.device != DeviceRead::Read {
                        is_full = memory.try_grow(memory.amount() + more).is_err();
                    }
                    ExchangeEvent::Device(&mut chunks)
                }
                FromDevice::Ended => ExchangeEvent::DeviceEnded,
                FromDevice::Reset(code) => ExchangeEvent::DeviceReset(code),
                FromDevice::Lost(e) => {
                    lost = Some(e);
                    ExchangeEvent::DeviceLost
                }
                FromDevice::Gone => ExchangeEvent::ServiceRefused,
            },
            // While nothing is read from the service, its reset is watched for. The reset must not
            // wait behind bytes that flow control holds back.
            _ = service.ready(Interest::ERROR), if !wants.service => ExchangeEvent::ServiceReset,
            () = draining.cancelled(), if !drained && !wants.device_takes => {
                drained = true;
                ExchangeEvent::Draining
            }
        };
        actions = exchange.on(event);
    }
}

/// Bytes on their way to the service.
#[derive(Default)]
struct Down {
    chunks: Vec<Bytes>,
    /// The first chunk that has not been sent.
    next: usize,
}

impl Down {
    fn is_empty(&self) -> bool {
        self.next == self.chunks.len()
    }

    /// Writes as much as the service accepts now. `None` if some bytes are left.
    fn write(&mut self, to: &TcpStream, meter: &ByteCounters) -> Option<ExchangeEvent<'static>> {
        while !self.is_empty() {
            let mut slices = [IoSlice::new(&[]); BATCH];
            for (slice, chunk) in slices.iter_mut().zip(&self.chunks[self.next..]) {
                *slice = IoSlice::new(chunk);
            }
            let count = BATCH.min(self.chunks.len() - self.next);
            match to.try_write_vectored(&slices[..count]) {
                Ok(n) => {
                    meter.received.fetch_add(n as u64, Relaxed);
                    self.wrote(n);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return None,
                Err(_) => return Some(ExchangeEvent::ServiceRefused),
            }
        }
        *self = Self::default();
        Some(ExchangeEvent::Forwarded)
    }

    fn wrote(&mut self, mut n: usize) {
        while let Some(chunk) = self.chunks.get_mut(self.next) {
            if n < chunk.len() {
                return chunk.advance(n);
            }
            n -= chunk.len();
            *chunk = Bytes::new();
            self.next += 1;
        }
    }
}

/// Bytes on their way to the device. The buffer is allocated only while it is needed.
#[derive(Default)]
struct ToDevice {
    held: Bytes,
    buffer: Option<Buffer>,
    from: usize,
    to: usize,
}

impl ToDevice {
    fn is_empty(&self) -> bool {
        self.held.is_empty() && self.from == self.to
    }

    /// Reads bytes from the service.
    fn read(&mut self, service: &TcpStream) -> io::Result<usize> {
        let mut buffer = Buffer::take();
        let n = buffer.read(service)?;
        *self = Self { buffer: Some(buffer), ..Self::default() };
        Ok(n)
    }

    fn bytes(&mut self, n: usize) -> &[u8] {
        self.to = n;
        self.from = n;
        self.buffer.as_mut().map_or(&[], |buffer| &buffer.bytes()[..n])
    }

    /// Sets the bytes to deliver; returns their number.
    fn deliver(&mut self, held: Bytes, from: usize) -> usize {
        (self.held, self.from) = (held, from);
        self.held.len() + self.to - from
    }

    /// The bytes to write next.
    fn rest(&mut self) -> &[u8] {
        match &mut self.buffer {
            Some(buffer) if self.held.is_empty() => &buffer.bytes()[self.from..self.to],
            _ => &self.held,
        }
    }

    /// Notes that `n` bytes of [`Self::rest`] were written; returns whether those were all.
    fn wrote(&mut self, n: usize) -> bool {
        if self.held.is_empty() {
            self.from += n;
        } else {
            self.held.advance(n);
        }
        self.is_empty()
    }
}

fn answer_failed(error: WriteError, lost: &mut Option<ConnectionError>) -> ExchangeEvent<'static> {
    match error {
        WriteError::ConnectionLost(e) => {
            *lost = Some(e);
            ExchangeEvent::AnswerLost
        }
        _ => ExchangeEvent::AnswerRefused,
    }
}

async fn its_turn(turn: &mut Option<TurnFuture>) -> Result<GrantedTurn, NotNow> {
    match turn {
        Some(turn) => turn.await,
        None => std::future::pending().await,
    }
}

/// Ends when a limit is reached. Returns the last line for an answer that has begun (to the request
/// that begins with `line`), and the refusal for one that has not.
async fn limited(limit: &mut Option<LimitReached>, line: &[u8]) -> (Vec<u8>, Refused) {
    let Some(reached) = limit else { return std::future::pending().await };
    let refused = Refused::from(reached.await);
    *limit = None;
    (refused.last_line(line), refused)
}

/// What came from the device.
enum FromDevice {
    Bytes,
    Ended,
    Reset(u64),
    Lost(ConnectionError),
    /// The stream is gone.
    Gone,
}

impl From<ReadError> for FromDevice {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Reset(code) => Self::Reset(code.into_inner()),
            ReadError::ConnectionLost(e) => Self::Lost(e),
            _ => Self::Gone,
        }
    }
}

/// Reads what the machine wants from the device.
///
/// # Cancel safety
/// Cancel safe.
async fn read_device(
    recv: &mut Receiving,
    want: DeviceRead,
    chunks: &mut Vec<Bytes>,
) -> FromDevice {
    match want {
        DeviceRead::Nothing => std::future::pending().await,
        DeviceRead::Read => {
            let mut batch: [Bytes; BATCH] = std::array::from_fn(|_| Bytes::new());
            match recv.read_chunks(&mut batch).await {
                Ok(Some(n)) => {
                    chunks.extend(batch.into_iter().take(n));
                    FromDevice::Bytes
                }
                Ok(None) => FromDevice::Ended,
                Err(e) => e.into(),
            }
        }
        DeviceRead::Ahead(most) => match recv.read_chunk(most).await {
            Ok(Some(chunk)) => {
                chunks.push(chunk);
                FromDevice::Bytes
            }
            Ok(None) => FromDevice::Ended,
            Err(e) => e.into(),
        },
        DeviceRead::Reset | DeviceRead::Loss => match recv.received_reset().await {
            Ok(Some(code)) => FromDevice::Reset(code.into_inner()),
            Err(ResetError::ConnectionLost(e)) if want == DeviceRead::Loss => FromDevice::Lost(e),
            // Everything was received, or nothing more will come. The received bytes are still to
            // be delivered; the next read reports the end.
            Ok(None) | Err(_) => std::future::pending().await,
        },
    }
}
