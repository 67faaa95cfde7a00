//! The byte mover: joins a TCP connection and a QUIC stream in both directions. To both ends it
//! looks like one TCP connection.
//!
//! These keep their meaning: the end of one direction (FIN), an abort (RST), back-pressure, and the
//! size of a write. A cut never looks like an end: every return has either finished a direction or
//! reset it.

mod buffer;
mod down;
mod kept;
mod passed;
pub mod pipe;
mod receiving;
mod sending;
mod up;

pub use buffer::Buffer;
pub use down::{DownEnd, join_chunks};
pub use kept::Kept;
pub use receiving::Receiving;
pub use sending::Sending;

use std::{
    io,
    sync::atomic::{AtomicU64, AtomicUsize},
    time::Duration,
};

use proto::wire::{Code, ServiceKind};
use quinn::{ConnectionError, VarInt};
use tokio::{
    io::{AsyncWriteExt, Interest},
    net::TcpStream,
};
use tokio_util::sync::CancellationToken;

use self::{
    down::download,
    passed::Passed,
    up::{UpEnd, upload},
};

/// How long an application may continue to send after the upstream has answered early.
const DRAIN: Duration = Duration::from_secs(2);
/// How often a connection that should end is checked.
const IDLE_LOOK: Duration = Duration::from_millis(50);

/// The TCP peer of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Facing {
    /// The application, on the client. It uses a service of this kind.
    Application(ServiceKind),
    /// The service, on the server.
    Upstream,
}

/// Counts the bytes that have passed.
#[derive(Debug, Default)]
pub struct ByteCounters {
    /// From TCP into the tunnel.
    pub sent: AtomicU64,
    /// From the tunnel to TCP.
    pub received: AtomicU64,
    /// Connections on which an answer is under way.
    pub underway: AtomicUsize,
    /// Notified when one is under way after none was.
    pub begun: tokio::sync::Notify,
}

/// How a splice ended.
#[derive(Debug)]
pub enum SpliceEnd {
    /// Both directions have ended by themselves.
    Done,
    /// It was to end, and no request was under way: both directions were finished.
    Drained,
    /// The TCP peer aborted the connection, and the stream was reset.
    Aborted,
    /// The tunnel's other end reset the stream, and the TCP connection was aborted, unless it is in
    /// [`Outcome::still_open`].
    Reset(VarInt),
    /// The QUIC connection was lost, and the TCP connection was aborted, unless it is in
    /// [`Outcome::still_open`].
    Lost(ConnectionError),
    /// The caller gave up before anything came back. The TCP connection is in [`Outcome::still_open`] if
    /// possible.
    GivenUp,
}

/// The result of a splice.
#[derive(Debug)]
pub struct Outcome {
    /// How it ended.
    pub end: SpliceEnd,
    /// The application's connection, if it is still open.
    pub still_open: StillOpen,
}

/// The connection of an application of an `http` service, if it is still open after its stream has
/// ended.
#[derive(Debug)]
pub enum StillOpen {
    /// The connection has ended too.
    Nothing,
    /// No request is under way. The next request needs another stream.
    Idle(TcpStream),
    /// No byte of the answer to its only request has arrived, so the caller can answer it, or send it
    /// again.
    Unanswered {
        /// The connection.
        tcp: TcpStream,
        /// The first line of that request, as far as it has been read.
        line: Vec<u8>,
        /// All of the request that has been read, if it may be sent again. The rest may follow.
        kept: Option<Kept>,
    },
}

/// A TCP connection, and what has been read of it and is to be sent before anything else.
pub struct Application {
    /// The connection.
    pub tcp: TcpStream,
    /// A request that is sent again.
    pub again: Option<Kept>,
}

impl From<TcpStream> for Application {
    fn from(tcp: TcpStream) -> Self {
        Self { tcp, again: None }
    }
}

/// Joins a TCP connection and a stream until both directions have ended, or `draining` is cancelled
/// and no answer is under way, or `give_up` ends before anything has come back. Cancelling it cuts
/// both.
pub async fn splice(
    peer: impl Into<Application>,
    mut send: Sending,
    mut recv: Receiving,
    facing: Facing,
    counters: &ByteCounters,
    draining: &CancellationToken,
    give_up: impl Future<Output = ()>,
) -> Outcome {
    let (mut peer, passed) = (peer.into(), Passed::new(facing, counters));
    let joined = join(&mut peer, &mut send, &mut recv, &passed, draining, give_up).await;
    let Joined { end, stopped, received_all, untold } = joined;
    let tcp = peer.tcp;
    let is_left =
        untold || matches!(end, SpliceEnd::Reset(_) | SpliceEnd::Lost(_) | SpliceEnd::GivenUp);
    if is_left && passed.may_go_on() {
        leave(&mut send, &mut recv, untold);
        return Outcome { end, still_open: StillOpen::Idle(tcp) };
    }
    if is_left && let Some((line, kept)) = passed.unanswered() {
        leave(&mut send, &mut recv, untold);
        return Outcome { end, still_open: StillOpen::Unanswered { tcp, line, kept } };
    }
    if matches!(end, SpliceEnd::Drained) && passed.may_go_on() {
        if !received_all {
            recv.stop((Code::Done as u32).into());
        }
        send.finish();
        return Outcome { end, still_open: StillOpen::Idle(tcp) };
    }
    match end {
        SpliceEnd::Done if stopped && matches!(facing, Facing::Application(_)) => drain(tcp).await,
        _ => close(Some(tcp), send, recv, &end, stopped, received_all).await,
    }
    Outcome { end, still_open: StillOpen::Nothing }
}

/// Ends a stream whose application stays connected: finishes it if the other end has (`in_order`),
/// otherwise resets it.
fn leave(send: &mut Sending, recv: &mut Receiving, in_order: bool) {
    if in_order {
        send.finish();
    } else {
        send.reset(Code::Aborted);
        recv.stop((Code::Aborted as u32).into());
    }
}

/// Ends the stream, and `tcp` if there is one, in the way that `end` requires. `stopped`: the other
/// end takes no more of our direction. `received_all`: the other end's direction has ended.
pub async fn close(
    tcp: Option<TcpStream>,
    mut send: Sending,
    mut recv: Receiving,
    end: &SpliceEnd,
    stopped: bool,
    received_all: bool,
) {
    match end {
        SpliceEnd::Done if !stopped => {
            drop(tcp);
            send.acknowledged().await;
        }
        SpliceEnd::Drained => {
            drop(tcp);
            finish(send, recv, received_all).await;
        }
        _ => {
            send.reset(Code::Aborted);
            if !received_all {
                recv.stop((Code::Aborted as u32).into());
            }
            if let Some(tcp) = tcp {
                abort(tcp);
            }
        }
    }
}

/// Finishes both directions of a stream, even if not all of the other end's direction has arrived.
pub async fn finish(mut send: Sending, mut recv: Receiving, received_all: bool) {
    // Before the FIN, so that the other end knows of the stop when it sees the end of our
    // direction.
    if !received_all {
        recv.stop((Code::Done as u32).into());
    }
    send.finish();
    send.acknowledged().await;
}

/// Closes a TCP connection with RST, which cannot be mistaken for an end.
pub fn abort(tcp: TcpStream) {
    let _ = tcp.set_zero_linger();
}

/// Sends a FIN and reads until the peer ends, for at most two seconds. Closing at once, with bytes
/// unread, would send an RST, and the peer could lose our last bytes.
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
    end: SpliceEnd,
    /// The other end takes no more bytes from TCP.
    stopped: bool,
    /// The other end's direction has ended by itself.
    received_all: bool,
    /// The other end's direction has ended, and the application has not been told: no request is
    /// under way, or none of its answer has arrived.
    untold: bool,
}

async fn join(
    peer: &mut Application,
    send: &mut Sending,
    recv: &mut Receiving,
    passed: &Passed<'_>,
    draining: &CancellationToken,
    give_up: impl Future<Output = ()>,
) -> Joined {
    let (again, (read, write)) = (peer.again.take(), peer.tcp.split());
    let stopped = send.stopped();
    // A server that drains stops our direction before it finishes its own. If our direction was not
    // stopped, the service itself has ended the connection, and the application is told.
    let taken_leave = async {
        let done = VarInt::from_u32(Code::Done as u32);
        matches!(stopped.await, Ok(Some(code)) if code == done)
    };
    let up = upload(again, &read, send, passed);
    let down = download(recv, write, passed, taken_leave);
    let drained = drained(draining, passed);
    tokio::pin!(up, down, drained, give_up);
    let (mut up_end, mut down_end, mut untold) = (None, None, false);
    let end = loop {
        tokio::select! {
            way = &mut up, if up_end.is_none() => match way {
                UpEnd::Aborted => break SpliceEnd::Aborted,
                UpEnd::Lost(e) if down_end.is_some() && passed.facing == Facing::Upstream => break SpliceEnd::Lost(e),
                // Bytes that were received are still delivered to the application; the other
                // direction finds the loss after them.
                UpEnd::Lost(_) => up_end = Some(UpEnd::Stopped),
                end => up_end = Some(end),
            },
            way = &mut down, if down_end.is_none() => match way {
                None => {
                    untold = true;
                    break SpliceEnd::Done;
                }
                Some(DownEnd::Finished) => down_end = Some(DownEnd::Finished),
                Some(DownEnd::Aborted) => break SpliceEnd::Aborted,
                Some(DownEnd::Reset(code)) => break SpliceEnd::Reset(code),
                Some(DownEnd::Lost(e)) => break SpliceEnd::Lost(e),
            },
            // After the FIN nothing reads from TCP, so only this sees an RST.
            _ = read.ready(Interest::ERROR), if up_end.is_some() => break SpliceEnd::Aborted,
            () = &mut drained => break SpliceEnd::Drained,
            () = draining.cancelled(), if answer_over(passed.facing, up_end.is_some(), down_end.is_some()) => break SpliceEnd::Drained,
            () = &mut give_up => break SpliceEnd::GivenUp,
        }
        if up_end.is_some() && down_end.is_some() {
            break SpliceEnd::Done;
        }
    };
    Joined {
        end,
        stopped: matches!(up_end, Some(UpEnd::Stopped)),
        received_all: down_end.is_some() || untold,
        untold,
    }
}

/// Whether the direction of the answers has ended.
fn answer_over(facing: Facing, up: bool, down: bool) -> bool {
    match facing {
        Facing::Application(_) => down,
        Facing::Upstream => up,
    }
}

/// Ends when the program is stopping and no request is under way on this connection.
async fn drained(draining: &CancellationToken, passed: &Passed<'_>) {
    draining.cancelled().await;
    let mut looks = tokio::time::interval(IDLE_LOOK);
    while !passed.is_idle() {
        looks.tick().await;
    }
}
