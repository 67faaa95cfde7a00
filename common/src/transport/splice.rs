//! The byte mover: joins one TCP connection to one QUIC stream, both ways, so that neither end
//! could tell it from one connection.
//!
//! What keeps its meaning: the end of one direction (FIN), an abort (RST), back-pressure, and the
//! size of what is written at once. A cut never looks like an end: every way out either finished a
//! direction or reset it.

mod buffer;
mod down;
mod passed;
mod receiving;
mod sending;
mod up;

pub use buffer::Buffer;
pub use down::{DownEnd, join_chunks};
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

/// How long an application may go on sending after it got an answer that the upstream gave early.
const DRAIN: Duration = Duration::from_secs(2);
/// How often a connection that is to end is looked at.
const IDLE_LOOK: Duration = Duration::from_millis(50);

/// Which TCP peer a stream is joined to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Facing {
    /// The application at the client, which speaks to a service of this kind.
    Application(ServiceKind),
    /// The service at the server.
    Upstream,
}

/// Bytes that have passed, for those who count them.
#[derive(Debug, Default)]
pub struct ByteCounters {
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
    /// The program is to stop, and nobody waited for anything here: both directions were ended in
    /// order.
    Drained,
    /// The TCP peer aborted, and the tunnel's other end has been told.
    Aborted,
    /// The tunnel's other end reset the stream; the TCP peer has been told, unless it is handed
    /// back in [`Outcome::left`].
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
    /// An application that has not been told of the end.
    pub left: Left,
}

/// An application of an `http` service that has not been told of the end of its stream.
#[derive(Debug)]
pub enum Left {
    /// None: it has been told.
    Nothing,
    /// It waits for nothing. Its next request needs another stream.
    Idle(TcpStream),
    /// It has not got a single byte of the answer to its only request, for the caller to answer:
    /// the connection, and the first line of that request as far as it has been read.
    Unanswered(TcpStream, Vec<u8>),
}

/// Joins `tcp` to a stream until both directions have ended; or `draining` is cancelled and no
/// answer is under way; or `give_up` ends, while nothing has come back yet. Cancelling it cuts
/// both.
pub async fn splice(
    mut tcp: TcpStream,
    mut send: Sending,
    mut recv: Receiving,
    facing: Facing,
    meter: &ByteCounters,
    draining: &CancellationToken,
    give_up: impl Future<Output = ()>,
) -> Outcome {
    let passed = Passed::new(facing, meter);
    let joined = join(&mut tcp, &mut send, &mut recv, &passed, draining, give_up).await;
    let Joined { end, stopped, received_all, untold } = joined;
    let is_left = untold || matches!(end, End::Reset(_) | End::Lost(_) | End::GivenUp);
    if is_left && passed.may_go_on() {
        leave(&mut send, &mut recv, untold);
        return Outcome { end, left: Left::Idle(tcp) };
    }
    if is_left && let Some(line) = passed.unanswered() {
        leave(&mut send, &mut recv, untold);
        return Outcome { end, left: Left::Unanswered(tcp, line) };
    }
    match end {
        End::Done if stopped && matches!(facing, Facing::Application(_)) => drain(tcp).await,
        _ => close(Some(tcp), send, recv, &end, stopped, received_all).await,
    }
    Outcome { end, left: Left::Nothing }
}

/// Takes leave of a stream whose application stays; in order, if the other end has ended it in
/// order.
fn leave(send: &mut Sending, recv: &mut Receiving, in_order: bool) {
    if in_order {
        send.finish();
    } else {
        send.reset(Code::Aborted);
        recv.stop((Code::Aborted as u32).into());
    }
}

/// Ends both connections, if there are two, as `end` demands, if the other end takes more (not
/// `stopped`), and the rest of its own direction if it has not come.
pub async fn close(
    tcp: Option<TcpStream>,
    mut send: Sending,
    mut recv: Receiving,
    end: &End,
    stopped: bool,
    received_all: bool,
) {
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
                recv.stop((Code::Aborted as u32).into());
            }
            if let Some(tcp) = tcp {
                abort(tcp);
            }
        }
    }
}

/// Ends both directions of a stream in order, whatever of the other end's has not come.
pub async fn finish(mut send: Sending, mut recv: Receiving, received_all: bool) {
    // First, so that the other end knows of it when it sees the end of our direction.
    if !received_all {
        recv.stop((Code::Done as u32).into());
    }
    send.finish();
    send.acknowledged().await;
}

/// Closes a TCP connection with RST, so that it can't be mistaken for an end.
pub fn abort(tcp: TcpStream) {
    let _ = tcp.set_zero_linger();
}

/// Lets the peer read what it was sent: closing with its bytes unread would be an RST, which may
/// overtake our last bytes.
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
    /// It has, and the application has not been told, as it waits for nothing.
    untold: bool,
}

async fn join(
    tcp: &mut TcpStream,
    send: &mut Sending,
    recv: &mut Receiving,
    passed: &Passed<'_>,
    draining: &CancellationToken,
    give_up: impl Future<Output = ()>,
) -> Joined {
    let (read, write) = tcp.split();
    let stopped = send.stopped();
    // A server that drains takes nothing more, and says so before the end of its own direction. A
    // service that has ended a connection is something to tell the application.
    let taken_leave = async {
        let done = VarInt::from_u32(Code::Done as u32);
        matches!(stopped.await, Ok(Some(code)) if code == done)
    };
    let up = upload(&read, send, passed);
    let down = download(recv, write, passed, taken_leave);
    let drained = drained(draining, passed);
    tokio::pin!(up, down, drained, give_up);
    let (mut up_end, mut down_end, mut untold) = (None, None, false);
    let end = loop {
        tokio::select! {
            way = &mut up, if up_end.is_none() => match way {
                UpEnd::Aborted => break End::Aborted,
                UpEnd::Lost(e) if down_end.is_some() && passed.facing == Facing::Upstream => break End::Lost(e),
                // What has been received is still the application's; the other direction sees the
                // loss behind it.
                UpEnd::Lost(_) => up_end = Some(UpEnd::Stopped),
                end => up_end = Some(end),
            },
            way = &mut down, if down_end.is_none() => match way {
                None => {
                    untold = true;
                    break End::Done;
                }
                Some(DownEnd::Finished) => down_end = Some(DownEnd::Finished),
                Some(DownEnd::Aborted) => break End::Aborted,
                Some(DownEnd::Reset(code)) => break End::Reset(code),
                Some(DownEnd::Lost(e)) => break End::Lost(e),
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
    Joined {
        end,
        stopped: matches!(up_end, Some(UpEnd::Stopped)),
        received_all: down_end.is_some() || untold,
        untold,
    }
}

/// Whether the direction that answers come by has ended.
fn answer_over(facing: Facing, up: bool, down: bool) -> bool {
    match facing {
        Facing::Application(_) => down,
        Facing::Upstream => up,
    }
}

/// Ends when the program is to stop and nobody waits for anything on this connection.
async fn drained(draining: &CancellationToken, passed: &Passed<'_>) {
    draining.cancelled().await;
    let mut looks = tokio::time::interval(IDLE_LOOK);
    while !passed.is_idle() {
        looks.tick().await;
    }
}
