//! Takes the connections of the HTTPS listener.

use std::sync::Arc;

use common::{machine::report::Failure, transport::accept::accept};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use super::started::restart;
use crate::{
    https::{AcmeCure, Bound, Https, HttpsSettings, Service},
    policy::{Policy, roles::default_service},
    running::Server,
    state::State,
};

/// Makes the listener of sockets that are bound.
///
/// # Errors
/// What is wrong with its certificate.
pub(super) fn open(
    bound: Bound,
    settings: HttpsSettings,
    state: &State,
    policy: Arc<Policy>,
) -> Result<(Arc<Https>, Vec<TcpListener>), Failure> {
    let unusable = |e: std::io::Error| Failure::new("cannot use a TCP socket").source(e);
    let sockets = bound.into_iter().map(TcpListener::from_std).collect::<Result<Vec<_>, _>>();
    let sockets = sockets.map_err(unusable)?;
    let listening = sockets.iter().filter_map(|socket| socket.local_addr().ok()).collect();
    let (note, command) = restart(&state.dir);
    let restart = AcmeCure { note: note.to_owned(), command };
    let https = Https::new(listening, settings, state, policy, restart)?;
    Ok((https, sockets))
}

/// Serves connections for as long as it is polled; each one is a task of `connections`. While the
/// server drains, no new ones.
pub(super) async fn serve(
    server: Arc<Server>,
    https: Arc<Https>,
    sockets: Vec<TcpListener>,
    connections: TaskTracker,
) {
    for address in https.listening() {
        info!("listening on {address} (HTTPS)");
    }
    // Applications have no session that could move: their connections end after the answer that runs.
    let draining = server.draining.child_token();
    let mut parts = JoinSet::new();
    let (replaced, ends) = (server.replaced.clone(), draining.clone());
    parts.spawn(async move {
        replaced.cancelled().await;
        ends.cancel();
        std::future::pending().await
    });
    parts.spawn(server.clone().note_keys(https.clone()));
    let (following, listener) = (server.clone(), https.clone());
    parts.spawn(async move {
        listener.follow_certificate(&following.state.authorities, &following.replaced).await;
    });
    for socket in sockets {
        let (server, https) = (server.clone(), https.clone());
        let (connections, name) = (connections.clone(), default_service());
        let draining = draining.clone();
        parts.spawn(async move {
            loop {
                let (tcp, remote) = tokio::select! {
                    taken = accept("HTTPS", || socket.accept()) => taken,
                    // Another process accepts them.
                    () = server.replaced.cancelled() => return std::future::pending().await,
                };
                if server.draining.is_cancelled() {
                    continue;
                }
                if !https.admits(remote.ip()) {
                    // A certificate authority checks names from addresses that nobody knows before.
                    if let Some(answered) = https.answer_check(tcp, remote) {
                        let draining = draining.clone();
                        connections.spawn(async move {
                            tokio::select! {
                                () = answered => {}
                                () = draining.cancelled() => {}
                            }
                        });
                    }
                    continue;
                }
                let (server, https, name) = (server.clone(), https.clone(), name.clone());
                let draining = draining.clone();
                connections.spawn(async move {
                    let service = Service {
                        gate: &server.gate,
                        policy: &server.policy,
                        audit: &server.accounting.audit,
                        name,
                        draining: &draining,
                    };
                    https.serve(service, tcp, remote).await;
                });
            }
        });
    }
    // None of them ends by itself.
    while let Some(ended) = parts.join_next().await {
        if let Err(e) = ended {
            warn!("a part of the HTTPS listener has ended: {e}");
            return;
        }
    }
}
