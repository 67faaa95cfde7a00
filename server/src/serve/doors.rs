//! Judges connection attempts, and runs the admitted handshakes.

use std::{io, sync::Arc};

use common::{
    machine::process::unix_now,
    transport::{self, LONGEST_DATAGRAM},
};
use quinn::{Connecting, Connection, Endpoint, TokioRuntime};
use tokio_util::task::TaskTracker;
use tracing::{debug, info};

use crate::{
    ingress::{
        admission::{
            Admission, AttemptVerdict, Handshake, HandshakeSlot, Knocker,
            connection_ids::{Generation, IdKey, OwnIds},
        },
        sockets::Sockets,
    },
    running::Server,
    serve::entrances::Entrances,
    session::{self, enroll},
    state::State,
};

/// The one QUIC endpoint on all sockets: a packet of a session may come to any of them.
pub(super) fn endpoint(
    sockets: Sockets,
    generation: Generation,
    state: &State,
    doors: &Doors,
) -> io::Result<Endpoint> {
    // Every client says how long the datagrams are that it accepts; usually they are shorter.
    let mut endpoint = transport::endpoint(LONGEST_DATAGRAM);
    let (key, resets) = (IdKey::new(&state.keys.reset), Arc::default());
    endpoint
        .reset_key(Arc::new(aws_lc_rs::hmac::Key::new(
            aws_lc_rs::hmac::HMAC_SHA256,
            state.keys.reset.as_bytes(),
        )))
        .cid_generator(move || Box::new(OwnIds::new(key.clone(), generation, Arc::clone(&resets))));
    Endpoint::new_with_abstract_socket(
        endpoint,
        // Each attempt gets a configuration of its own; this one is never used.
        doors.entrances.current(state).map(|entrance| (*entrance.tunnel).clone()),
        Arc::new(sockets),
        Arc::new(TokioRuntime),
    )
}

/// What judges attempts and answers them. Clones share it.
#[derive(Clone)]
pub(super) struct Doors {
    pub(super) admission: Arc<Admission>,
    pub(super) entrances: Arc<Entrances>,
    pub(super) server: Arc<Server>,
}

impl Doors {
    /// Judges every attempt, and begins the admitted handshakes.
    pub(super) async fn attend(self, endpoint: Endpoint, sessions: TaskTracker) {
        loop {
            let incoming = tokio::select! {
                incoming = endpoint.accept() => incoming,
                () = self.server.draining.cancelled() => return,
            };
            let Some(incoming) = incoming else { return };
            let (knock, remote, proved) = (
                incoming.orig_dst_cid(),
                incoming.remote_address(),
                incoming.remote_address_validated(),
            );
            let slot = match self.admission.judge(&knock, remote, proved, unix_now()) {
                AttemptVerdict::Ignore(reason) => {
                    debug!(%remote, "ignored: {reason:?}");
                    incoming.ignore();
                    continue;
                }
                AttemptVerdict::Retry => {
                    let _ = incoming.retry();
                    continue;
                }
                AttemptVerdict::Accept(slot) => slot,
            };
            let Some(entrance) = self.entrances.of(&self.server.state, slot.ca()) else {
                incoming.ignore();
                continue;
            };
            let config = match slot.knocker() {
                Knocker::Device(_) | Knocker::Shared => entrance.tunnel,
                Knocker::Invited(_) => entrance.enrollment,
            };
            let Ok(connecting) = incoming.accept_with(config) else {
                continue;
            };
            let (server, admission) = (self.server.clone(), self.admission.clone());
            sessions.spawn(async move {
                let Some(connection) = shake(&server, &admission, &slot, connecting).await else {
                    return;
                };
                match slot.knocker() {
                    Knocker::Invited(_) => enroll::run(server, connection, slot).await,
                    _ => session::run(server, connection, slot).await,
                }
            });
        }
    }
}

/// Runs a handshake to its end, if it is an honest one.
async fn shake(
    server: &Server,
    admission: &Admission,
    slot: &HandshakeSlot,
    connecting: Connecting,
) -> Option<Connection> {
    let remote = connecting.remote_address();
    let (how, why) = tokio::select! {
        done = connecting => match done {
            Ok(connection) => {
                let is_enrollment = matches!(slot.knocker(), Knocker::Invited(_));
                admission.count_handshake(if is_enrollment { Handshake::Enrollment } else { Handshake::Tunnel });
                return Some(connection);
            }
            Err(e) => (Handshake::Failed, format!("refused a connection: {e}")),
        },
        () = tokio::time::sleep(transport::HANDSHAKE_WITHIN) => {
            (Handshake::Late, "gave up a handshake that took too long".to_owned())
        }
        () = slot.displaced() => {
            (Handshake::Displaced, "gave up the oldest handshake for another".to_owned())
        }
        // An unfinished handshake does not delay a server that stops.
        () = server.draining.cancelled() => return None,
    };
    admission.count_handshake(how);
    info!(%remote, "{why}");
    None
}
