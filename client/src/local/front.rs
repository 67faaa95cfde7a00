//! Carries every local connection through the tunnel: holds it while there is none, and answers where
//! the server cannot.

use std::{
    net::SocketAddr,
    sync::{Arc, Weak},
    time::Duration,
};

use common::transport::{
    self, accept,
    splice::{self, Application, Facing, Kept, Outcome, SpliceEnd, StillOpen, splice},
};
use proto::{
    identity::Name,
    ollama::answer::ErrorAnswer,
    wire::{Code, ServiceKind},
};
use tokio::{
    io::{AsyncReadExt, Interest},
    net::{TcpListener, TcpStream},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{Instrument, debug};

use crate::{
    dial::DialError,
    local::{
        again::{self, Unanswered},
        answer,
        owner::{OwnerRefusal, Owners},
    },
    tunnel::{Opened, Tunnel, state::Up},
};

/// A connection that cannot be carried is answered when its request arrives. This is how long that
/// may take.
const ASK_WITHIN: Duration = Duration::from_secs(5);

/// Accepts connections until `front.stop` is cancelled. Each connection is a task in `connections`.
pub(crate) async fn accept(listener: TcpListener, front: Front, connections: TaskTracker) {
    loop {
        let (tcp, _) = tokio::select! {
            taken = accept::accept("applications", || listener.accept()) => taken,
            () = front.stop.cancelled() => return,
        };
        let front = front.clone();
        connections.spawn(async move { front.carry(tcp).await }.in_current_span());
    }
}

/// What is needed to carry a local connection.
#[derive(Clone)]
pub(crate) struct Front {
    /// Whose connections are accepted.
    pub(crate) owners: Arc<Owners>,
    pub(crate) tunnel: Tunnel,
    /// The service of this listener.
    pub(crate) service: Name,
    /// How long a connection waits for a tunnel.
    pub(crate) hold: Duration,
    /// Cancelled when no more connections are accepted, and those without an answer under way have
    /// to end.
    pub(crate) stop: CancellationToken,
}

/// A request that is sent again.
struct Again {
    request: Kept,
    /// How often it has been sent.
    times: u32,
    /// The session that it was sent on: its next one is another.
    over: Weak<Up>,
}

impl Again {
    /// The beginning of the request, for whoever answers it here.
    fn line(self) -> Vec<u8> {
        let bytes = self.request.bytes();
        let end = bytes.iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |at| at + 1);
        bytes[..end].to_vec()
    }
}

impl Front {
    /// Carries one connection to its end.
    pub(super) async fn carry(&self, tcp: TcpStream) {
        if transport::prepare_local(&tcp).is_err() {
            return;
        }
        if let Err(refused) = self.judge(&tcp) {
            return self.turn_away(tcp, refused).await;
        }
        let mut next = Some((tcp, None));
        while let Some((tcp, again)) = next.take() {
            // With HTTP the application sends first; with another service the server may.
            let waits = again.is_none() && self.tunnel.kind(&self.service) == ServiceKind::Http;
            if waits && !self.is_asked(&tcp).await {
                return;
            }
            next = self.join(tcp, again).await;
        }
    }

    /// Waits for a request. False if there will be none.
    async fn is_asked(&self, tcp: &TcpStream) -> bool {
        let mut first = [0];
        tokio::select! {
            biased;
            peeked = tcp.peek(&mut first) => peeked.is_ok_and(|count| count > 0),
            () = self.stop.cancelled() => false,
        }
    }

    /// Joins a connection and a stream until one of them ends. Returns the connection if it is still
    /// open and no request is under way, or its request is sent again: then it gets another stream.
    async fn join(
        &self,
        tcp: TcpStream,
        again: Option<Again>,
    ) -> Option<(TcpStream, Option<Again>)> {
        let over = again.as_ref().map(|again| &again.over);
        let opened = tokio::select! {
            biased;
            opened = self.tunnel.open(&self.service, self.hold, over) => opened,
            // The application has aborted while it waited.
            _ = tcp.ready(Interest::ERROR) => {
                splice::abort(tcp);
                return None;
            }
            () = self.stop.cancelled() => Err(answer::stopping(&self.name())),
        };
        let Opened { send, recv, kind, since } = match opened {
            Ok(opened) => opened,
            Err(answer) => {
                let line = again.map(Again::line).unwrap_or_default();
                self.answer_when_asked(tcp, line, &answer).await;
                return None;
            }
        };
        let times = again.as_ref().map_or(0, |again| again.times);
        let (session, facing) = (Arc::downgrade(&since.0), Facing::Application(kind));
        let retired = since.0.retired.clone();
        let give_up = self.tunnel.unheard(since, self.hold);
        let peer = Application { tcp, again: again.map(|again| again.request) };
        let counters = &self.tunnel.counters;
        let Outcome { end, still_open } =
            splice(peer, send, recv, facing, counters, &retired, give_up).await;
        debug!("a stream ended: {end:?}");
        match still_open {
            StillOpen::Nothing => None,
            // It takes no other request.
            StillOpen::Idle(_) if self.stop.is_cancelled() => None,
            StillOpen::Idle(tcp) => Some((tcp, None)),
            StillOpen::Unanswered { tcp, line, kept } => {
                let request =
                    Unanswered { end: &end, kept, times, is_stopping: self.stop.is_cancelled() };
                if let Some(request) = again::sent_again(request) {
                    debug!("a request is sent again");
                    return Some((tcp, Some(Again { request, times: times + 1, over: session })));
                }
                if let Some(answer) = self.answer_for(end) {
                    self.answer_when_asked(tcp, line, &answer).await;
                }
                None
            }
        }
    }

    /// The answer to a request whose stream ended before its answer began.
    fn answer_for(&self, end: SpliceEnd) -> Option<ErrorAnswer> {
        Some(match end {
            SpliceEnd::Reset(code) => answer::for_code(Code::from_number(code.into_inner())),
            SpliceEnd::Lost(e) => match DialError::from_connection(&e, "the server") {
                DialError::Revoked(revocation) => {
                    answer::revoked(&revocation, &self.tunnel.profile())
                }
                DialError::Refused(Code::SignedOut) => answer::signed_out(&self.tunnel.profile()),
                DialError::Refused(code) => answer::for_code(Some(code)),
                _ => answer::for_code(Some(Code::Cut)),
            },
            SpliceEnd::GivenUp => self.tunnel.gave_up(),
            // The server has taken leave.
            SpliceEnd::Done => answer::for_code(Some(Code::ShuttingDown)),
            SpliceEnd::Drained | SpliceEnd::Aborted => return None,
        })
    }

    /// The server's, behind a command.
    fn name(&self) -> String {
        self.tunnel.profile().profile_dir.argument()
    }

    fn judge(&self, tcp: &TcpStream) -> Result<(), OwnerRefusal> {
        judged(tcp, |peer, local| self.owners.judge(peer, local))
    }

    async fn turn_away(&self, tcp: TcpStream, refused: OwnerRefusal) {
        debug!("refused a local connection: {refused:?}");
        self.owners.log(refused);
        match refused.answer(&self.name()).await {
            Some(answer) => self.answer_when_asked(tcp, Vec::new(), &answer).await,
            None => splice::abort(tcp),
        }
    }

    /// Answers a request. `head` is what has been read of it so far; the rest of its first line is
    /// waited for, for at most [`ASK_WITHIN`].
    async fn answer_when_asked(&self, mut tcp: TcpStream, mut head: Vec<u8>, answer: &ErrorAnswer) {
        if self.tunnel.kind(&self.service) == ServiceKind::Tcp {
            return splice::abort(tcp);
        }
        let line = async {
            while !head.contains(&b'\n')
                && head.len() < 8192
                && tcp.read_buf(&mut head).await.is_ok_and(|n| n > 0)
            {}
        };
        let asked = tokio::select! {
            asked = tokio::time::timeout(ASK_WITHIN, line) => asked.is_ok(),
            // Stopping does not wait for a request that may never come.
            () = self.stop.cancelled() => false,
        };
        debug!(asked, "answered {}", answer.status);
        answer::send(answer, tcp, &head).await;
    }
}

/// Judges a connection by its two addresses.
fn judged(
    tcp: &TcpStream,
    judge: impl FnOnce(SocketAddr, SocketAddr) -> Result<(), OwnerRefusal>,
) -> Result<(), OwnerRefusal> {
    // An error means that the connection was aborted already.
    let gone = |_| OwnerRefusal::Closed;
    let (peer, local) = (tcp.peer_addr().map_err(gone)?, tcp.local_addr().map_err(gone)?);
    judge(peer, local)?;
    // If the connection was aborted meanwhile, another one may have taken its addresses and been
    // judged instead. If it is still connected, it was the one that was judged.
    tcp.peer_addr().map_err(gone)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_is_gone_when_the_judgement_comes_is_not_let_in_for_another() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let pair = async || {
            let app = TcpStream::connect(address).await.expect("connected");
            (app, listener.accept().await.expect("accepted").0)
        };
        let (app, tcp) = pair().await;
        assert_eq!(judged(&tcp, |_, _| Ok(())), Ok(()));
        // It has sent its whole request, and waits for the answer.
        socket2::SockRef::from(&app).shutdown(std::net::Shutdown::Write).expect("ended");
        assert_eq!(judged(&tcp, |_, _| Ok(())), Ok(()));

        let (app, tcp) = pair().await;
        let aborted = judged(&tcp, |_, _| {
            splice::abort(app);
            Ok(())
        });
        assert_eq!(aborted, Err(OwnerRefusal::Closed));
        assert_eq!(judged(&tcp, |_, _| panic!("it has no peer")), Err(OwnerRefusal::Closed));
    }
}
