//! Opens a QUIC connection to one of several addresses, and says why that failed.

pub(crate) mod clocks;
mod error;
pub(crate) mod kernel_error;
pub(crate) mod plan;
pub(crate) mod route;
pub(crate) mod unmarked;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use common::transport::{
    self, carrier,
    tls::{ClientTls, SeenTime},
};
use proto::{knock::KnockKey, wire::SERVER_NAME};
use quinn::{ClientConfig, Connecting, Connection, ConnectionError, Endpoint, TokioRuntime};
use tokio::{task::JoinSet, time::error::Elapsed};
use tracing::Instrument;

use crate::{
    device_key::DeviceKey,
    dial::{
        clocks::Clocks,
        route::{Carrier, Route},
    },
    ssh::SshTarget,
};

pub use self::error::DialError;
pub(crate) use self::error::NextAttempt;

/// The next address is tried after the one before has been silent for this long (RFC 8305 section
/// 5).
const STAGGER: Duration = Duration::from_millis(300);
const RESOLVE_WITHIN: Duration = Duration::from_secs(5);

/// A connection, its route and its carrier.
#[derive(Debug)]
pub struct Dialed {
    /// The endpoint of the connection. The connection survives if this is dropped.
    pub endpoint: Endpoint,
    /// The connection. The server may not have judged it yet.
    pub connection: Connection,
    /// The route of its datagrams.
    pub route: Route,
    /// The carrier of its datagrams.
    pub carrier: Carrier,
}

/// How to connect.
#[derive(Clone)]
pub struct DialConfig {
    /// The configuration of QUIC.
    pub quic: ClientConfig,
    seen: SeenTime,
    /// The key that signs, which knows why it did not.
    key: Option<DeviceKey>,
    idle: Duration,
}

/// A client configuration. Its first packets carry a knock of `key`, and `idle` is the idle
/// time-out of its sessions.
pub fn config(crypto: impl Into<ClientTls>, key: &KnockKey, idle: Duration) -> DialConfig {
    let ClientTls { quic, seen } = crypto.into();
    let mut config = ClientConfig::new(Arc::new(quic));
    let key = key.clone();
    config.initial_dst_cid_provider(Arc::new(move || quinn_proto::ConnectionId::new(&key.knock())));
    DialConfig { quic: config, seen, key: None, idle }
}

impl DialConfig {
    /// The same, with the device's key, which is asked why a handshake failed.
    pub(crate) fn signed_by(self, key: DeviceKey) -> Self {
        Self { key: Some(key), ..self }
    }
}

/// Connects to the first of `addresses` (`host:port`) that answers, or over SSH. Each address
/// starts a little earlier than the next, and UDP earlier than SSH. Cancellation safe.
///
/// # Errors
/// The error that says most: a refusal says more than silence, and silence more than a name that
/// cannot be looked up.
pub async fn dial(
    config: &DialConfig,
    addresses: &[String],
    ssh: Option<&SshTarget>,
) -> Result<Dialed, DialError> {
    let mut attempts = JoinSet::new();
    for (name, delay) in addresses.iter().zip(staggered()) {
        // Names are looked up in parallel: a resolver that hangs does not delay the others.
        attempts.spawn(reach(config.clone(), name.clone(), delay).in_current_span());
    }
    if let Some(route) = ssh {
        let delay = if addresses.is_empty() { Duration::ZERO } else { STAGGER };
        let by_ssh = attempt(config.clone(), Route::Ssh(route.clone()), route.to_string(), delay);
        attempts.spawn(by_ssh.in_current_span());
    }
    match first(attempts).await {
        Err(Some(DialError::NoAnswer(_)) | None) => {
            Err(DialError::NoAnswer(all_of(addresses, ssh)))
        }
        other => other.map_err(|why| why.unwrap_or(DialError::NoAnswer(String::new()))),
    }
}

/// All addresses that are tried, for people.
pub(crate) fn all_of(addresses: &[String], ssh: Option<&SshTarget>) -> String {
    addresses.iter().cloned().chain(ssh.map(ToString::to_string)).collect::<Vec<_>>().join(" or ")
}

async fn reach(config: DialConfig, name: String, delay: Duration) -> Result<Dialed, DialError> {
    let found = resolve(&name).await?;
    tokio::time::sleep(delay).await;
    let mut attempts = JoinSet::new();
    for (address, delay) in found.into_iter().zip(staggered()) {
        let by_udp = attempt(config.clone(), Route::Udp(address), name.clone(), delay);
        attempts.spawn(by_udp.in_current_span());
    }
    first(attempts).await.map_err(|why| why.unwrap_or(DialError::NoAnswer(name)))
}

fn staggered() -> impl Iterator<Item = Duration> {
    (0..).map(|i| STAGGER * i)
}

/// The first connection that succeeds, or the failure that says most.
async fn first(
    mut attempts: JoinSet<Result<Dialed, DialError>>,
) -> Result<Dialed, Option<DialError>> {
    let mut worst = None;
    while let Some(ended) = attempts.join_next().await {
        match ended {
            Ok(Ok(dialed)) => return Ok(dialed),
            Ok(Err(e)) => worst = Some(more_telling(worst, e)),
            Err(_) => {}
        }
    }
    Err(worst)
}

fn more_telling(before: Option<DialError>, now: DialError) -> DialError {
    let weight = |e: &DialError| match e {
        DialError::Resolve { .. } => 0,
        DialError::Socket(_) => 1,
        DialError::Unreachable(kernel_error) => kernel_error.weight(),
        DialError::NoAnswer(_) => 2,
        // A failed login says more than a silent port.
        _ => 5,
    };
    match before {
        Some(before) if weight(&before) >= weight(&now) => before,
        _ => now,
    }
}

async fn resolve(name: &str) -> Result<Vec<SocketAddr>, DialError> {
    let failed = |why: String| DialError::Resolve { name: name.to_owned(), why };
    match tokio::time::timeout(RESOLVE_WITHIN, tokio::net::lookup_host(name)).await {
        Ok(Ok(found)) => Ok(found.collect()),
        Ok(Err(e)) => Err(failed(e.to_string())),
        Err(_) => Err(failed("the resolver does not answer".to_owned())),
    }
}

async fn attempt(
    config: DialConfig,
    route: Route,
    name: String,
    delay: Duration,
) -> Result<Dialed, DialError> {
    tokio::time::sleep(delay).await;
    let shown = match &route {
        Route::Udp(address) if name != address.to_string() => format!("{name} ({address})"),
        route => route.to_string(),
    };
    let unusable = |e| DialError::Socket(Arc::new(e));
    let carrier = route.open().map_err(unusable)?;
    carrier.keep_short();
    carrier.ready().await.map_err(|e| {
        let hint = if let Route::Ssh(route) = &route { e.hint(route) } else { String::new() };
        DialError::Ssh { why: e.to_string(), hint }
    })?;
    let (runtime, longest) = (Arc::new(TokioRuntime), route.longest_datagram());
    let endpoint = Endpoint::new_with_abstract_socket(
        transport::endpoint(longest),
        None,
        carrier.socket(),
        runtime,
    )
    .map_err(unusable)?;
    let connecting = begin(&config, &endpoint, &route)?;
    let refused = async {
        match &route {
            Route::Udp(address) => kernel_error::of(*address, &shown).await,
            Route::Ssh(_) => std::future::pending().await,
        }
    };
    let connected = tokio::select! {
        biased;
        connected = tokio::time::timeout(transport::HANDSHAKE_WITHIN, connecting) => connected,
        kernel_error = refused => return Err(DialError::Unreachable(kernel_error)),
    };
    let connection = judged(connected, &config, shown)?;
    Ok(Dialed { endpoint, connection, route, carrier })
}

/// Makes another connection over the carrier of one that this endpoint has on `route`.
///
/// # Errors
/// Why there is none. The other connection goes on.
pub(crate) async fn beside(
    config: &DialConfig,
    endpoint: &Endpoint,
    route: &Route,
) -> Result<Connection, DialError> {
    let connecting = begin(config, endpoint, route)?;
    let connected = tokio::time::timeout(transport::HANDSHAKE_WITHIN, connecting).await;
    judged(connected, config, route.to_string())
}

fn begin(config: &DialConfig, endpoint: &Endpoint, route: &Route) -> Result<Connecting, DialError> {
    let mut quic = config.quic.clone();
    quic.transport_config(transport::settings(0, config.idle, route.longest_datagram()));
    let begun = endpoint.connect_with(quic, carrier::REMOTE, SERVER_NAME);
    begun.map_err(|e| DialError::Other(e.to_string()))
}

/// The connection, or what its error means. `shown` is where it goes, for people.
fn judged(
    connected: Result<Result<Connection, ConnectionError>, Elapsed>,
    config: &DialConfig,
    shown: String,
) -> Result<Connection, DialError> {
    if let (Ok(Err(_)), Some(key)) = (&connected, &config.key)
        && let Some(why) = key.take_failure()
    {
        return Err(DialError::Key(why));
    }
    match connected {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(e)) => Err(match DialError::from_connection(&e, &shown).unproved() {
            DialError::Clock(_) => DialError::Clock(Clocks::certificate(config.seen.take())),
            other => other,
        }),
        Err(_) => Err(DialError::NoAnswer(shown)),
    }
}
