//! Opens a QUIC connection to one of several addresses, and says why that failed.

pub(crate) mod clocks;
pub(crate) mod kernel_error;
pub(crate) mod plan;
pub(crate) mod route;
pub(crate) mod unmarked;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use common::transport::{
    self, carrier,
    tls::{ClientTls, SeenTime},
};
use proto::{
    clock::shown,
    knock::KnockKey,
    wire::{Code, Revocation, SERVER_NAME},
};
use quinn::{ClientConfig, Connecting, Connection, ConnectionError, Endpoint, TokioRuntime};
use tokio::{task::JoinSet, time::error::Elapsed};
use tracing::Instrument;

use crate::{
    dial::{
        clocks::{BothTimes, Clocks},
        kernel_error::KernelError,
        route::{Carrier, Route},
    },
    profile::Profile,
    ssh::SshTarget,
};

/// The next address is tried after the one before has been silent for this long (RFC 8305 section
/// 5).
const STAGGER: Duration = Duration::from_millis(300);
const RESOLVE_WITHIN: Duration = Duration::from_secs(5);

// The TLS alerts (RFC 8446 section 6) that have a message of their own.
const BAD_CERTIFICATE: u64 = 42;
const CERTIFICATE_REVOKED: u64 = 44;
const CERTIFICATE_EXPIRED: u64 = 45;
const CERTIFICATE_UNKNOWN: u64 = 46;
const UNKNOWN_CA: u64 = 48;
const DECRYPT_ERROR: u64 = 51;
const CERTIFICATE_REQUIRED: u64 = 116;
const NO_APPLICATION_PROTOCOL: u64 = 120;

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

/// Why there is no connection.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DialError {
    /// There is nothing to try.
    #[error("there is no way to the server: {why}")]
    NoWay {
        /// Why not.
        why: &'static str,
        /// What cures it.
        hint: String,
    },
    /// The first attempt is still under way.
    #[error("no answer yet from {0}")]
    NoAnswerYet(String),
    /// No address answered.
    #[error("no answer from {0}")]
    NoAnswer(String),
    /// The kernel reports that it cannot reach the server.
    #[error("{0}")]
    Unreachable(KernelError),
    /// A name could not be looked up.
    #[error("cannot look up `{name}`: {why}")]
    Resolve {
        name: String,
        /// The resolver's error.
        why: String,
    },
    /// The server that answers is not the one that this device trusts.
    #[error(
        "the server at {0} is not the one that this device enrolled with: its certificate comes from another CA"
    )]
    WrongServer(String),
    /// A certificate is not valid now, by one of the two clocks.
    #[error("{0}")]
    Clock(Clocks),
    /// By the server's clock this device's certificate is not valid, and it expired too long ago to
    /// be renewed.
    #[error("{}: {}", Code::OutOfTime.what(), .0)]
    OutOfTime(BothTimes),
    /// The server is this same computer, and its upstream is the port of this program.
    #[error(
        "the server is this same computer, and expects its Ollama on port {0}, where adit listens: every request would come back here endlessly"
    )]
    LeadsBack(u16),
    /// The server has revoked this device, or its user.
    #[error("{0}")]
    Revoked(Revocation),
    /// The server closed the connection with a code.
    #[error("{}", .0.what())]
    Refused(Code),
    /// The peer speaks another version.
    #[error("the server speaks another version of the protocol")]
    Version,
    /// The server has forgotten the connection (a stateless reset, RFC 9000 section 10.3).
    #[error("the server was restarted")]
    Restarted,
    /// The connection over SSH failed.
    #[error("{why}")]
    Ssh {
        /// Why not.
        why: String,
        /// What cures it.
        hint: String,
    },
    /// This process has ended the session.
    #[error("adit is stopping")]
    Stopping,
    /// Another error of QUIC or TLS.
    #[error("the connection failed: {0}")]
    Other(String),
    /// A socket could not be made.
    #[error("cannot open a UDP socket: {0}")]
    Socket(Arc<io::Error>),
}

impl DialError {
    /// How to cure it. The commands can be typed as they are on this device.
    pub(crate) fn hint(&self, profile: &Profile) -> Option<String> {
        let again = again(profile, None);
        Some(match self {
            Self::Revoked(revocation) => {
                let device = &profile.enrolled.device;
                let cure = revocation.cure(device.as_str());
                let restored =
                    format!("{cure}, then `adit up{}` here", profile.profile_dir.argument());
                if revocation.user.is_some() {
                    return Some(restored);
                }
                let forget = format!("aditd device forget {device}");
                format!("{restored}; or, as a new device: {}", self::again(profile, Some(forget)))
            }
            Self::Refused(Code::SignedOut) => {
                format!("sign in again: `adit enroll --sso{}`", profile.profile_dir.flag())
            }
            Self::WrongServer(_) => {
                format!("if the server was reinstalled: {again}; if not, do not trust that address")
            }
            Self::OutOfTime(_) => {
                let valid = profile.certificate().map_or_else(
                    |_| String::new(),
                    |own| {
                        format!(
                            " (it is valid from {} until {})",
                            shown(own.not_before),
                            shown(own.not_after)
                        )
                    },
                );
                format!(
                    "check both clocks{valid}; if both are right, the certificate expired too long ago: {again}"
                )
            }
            Self::Refused(Code::CaRetired) => {
                format!("enroll it again, with the newest adit: {again}")
            }
            Self::LeadsBack(_) => format!(
                "choose another port: `adit up{} --listen localhost:11500`",
                profile.profile_dir.argument()
            ),
            other => return other.general_hint(),
        })
    }

    /// How to cure it, if the message does not need the profile.
    pub(crate) fn general_hint(&self) -> Option<String> {
        let hint = match self {
            Self::NoAnswer(_) => {
                "check on the server that aditd runs and listens on that address (`aditd status`), that its --allow-from includes \
                 this network, that no firewall blocks UDP, and that this device is still enrolled (`aditd device list`)"
            }
            Self::NoWay { hint, .. } => hint,
            Self::Unreachable(kernel_error) => kernel_error.hint(),
            Self::NoAnswerYet(_) => "check that this computer is online and the server is up",
            Self::Resolve { .. } => "check the name and this computer's network",
            Self::Clock(clocks) => clocks.hint(),
            Self::Version => "install the same version of adit and aditd",
            Self::Ssh { hint, .. } => hint,
            Self::Refused(code) => return code.cure().map(ToOwned::to_owned),
            Self::Revoked(revocation) => return Some(revocation.cure("NAME")),
            Self::WrongServer(_)
            | Self::OutOfTime(_)
            | Self::LeadsBack(_)
            | Self::Restarted
            | Self::Stopping
            | Self::Other(_)
            | Self::Socket(_) => return None,
        };
        Some(hint.to_owned())
    }

    /// Whether both say the same to a person. Times in them may differ.
    pub(crate) fn is_same_news(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Clock(_), Self::Clock(_)) | (Self::OutOfTime(_), Self::OutOfTime(_)) => true,
            _ => self.to_string() == other.to_string(),
        }
    }

    /// Whether it is useless to try again soon: the server has refused, or must not be used.
    pub(crate) fn is_final(&self) -> bool {
        matches!(
            self,
            Self::Revoked(_)
                | Self::Refused(Code::Superseded | Code::SignedOut)
                | Self::LeadsBack(_)
        )
    }

    /// Before the handshake is complete, anybody on the path can forge an error, so a refusal is
    /// not believed.
    fn unproved(self) -> Self {
        match self {
            Self::Refused(_) | Self::Revoked(_) | Self::OutOfTime(_) => Self::Other(
                "the handshake was broken off, by the server or by somebody in between".to_owned(),
            ),
            other => other,
        }
    }

    /// The meaning of a connection's error. `to` is the server's address.
    pub(crate) fn from_connection(error: &ConnectionError, to: &str) -> Self {
        let alert = |code: u64| match code.checked_sub(0x100) {
            Some(CERTIFICATE_REVOKED) => Self::Revoked(Revocation::default()),
            Some(NO_APPLICATION_PROTOCOL) => Self::Version,
            _ => Self::Other(error.to_string()),
        };
        match error {
            ConnectionError::TimedOut => Self::NoAnswer(to.to_owned()),
            ConnectionError::VersionMismatch => Self::Version,
            ConnectionError::ApplicationClosed(close) => {
                match Code::from_number(close.error_code.into_inner()) {
                    Some(Code::ServerClock) => {
                        Self::Clock(Clocks::admitted(time_in(&close.reason)))
                    }
                    Some(Code::OutOfTime) => {
                        Self::OutOfTime(BothTimes::now(time_in(&close.reason)))
                    }
                    Some(Code::Revoked) => Self::Revoked(Revocation::from_phrase(&close.reason)),
                    Some(code) => Self::Refused(code),
                    None => Self::Other(error.to_string()),
                }
            }
            // The server has judged our certificate.
            ConnectionError::ConnectionClosed(close) => {
                match u64::from(close.error_code).checked_sub(0x100) {
                    // A server before that code.
                    Some(CERTIFICATE_EXPIRED) => Self::OutOfTime(BothTimes::now(None)),
                    Some(
                        UNKNOWN_CA | BAD_CERTIFICATE | CERTIFICATE_UNKNOWN | DECRYPT_ERROR
                        | CERTIFICATE_REQUIRED,
                    ) => Self::WrongServer(to.to_owned()),
                    _ => alert(close.error_code.into()),
                }
            }
            // We have judged the server's certificate.
            ConnectionError::TransportError(e) => match u64::from(e.code).checked_sub(0x100) {
                Some(CERTIFICATE_EXPIRED) => Self::Clock(Clocks::certificate(None)),
                Some(UNKNOWN_CA | BAD_CERTIFICATE | CERTIFICATE_UNKNOWN | DECRYPT_ERROR) => {
                    Self::WrongServer(to.to_owned())
                }
                _ => alert(e.code.into()),
            },
            ConnectionError::Reset => Self::Restarted,
            ConnectionError::LocallyClosed => Self::Stopping,
            ConnectionError::CidsExhausted => Self::Other(error.to_string()),
        }
    }
}

/// The time in the reason phrase of a close.
fn time_in(phrase: &[u8]) -> Option<i64> {
    std::str::from_utf8(phrase).ok()?.parse().ok()
}

/// How to connect.
#[derive(Debug, Clone)]
pub struct DialConfig {
    /// The configuration of QUIC.
    pub quic: ClientConfig,
    seen: SeenTime,
    idle: Duration,
}

/// How to enroll this device again. `adit up` must be stopped first, because it would go on with
/// the old identity. `first` is a command that has to be run on the server before.
fn again(profile: &Profile, first: Option<String>) -> String {
    let (device, name) = (&profile.enrolled.device, profile.profile_dir.flag());
    let argument = profile.profile_dir.argument();
    let (invite, server) = match &profile.ssh {
        Some(route) => (None, format!(" --device {device} {route}")),
        None => (Some(format!("aditd invite {device}")), String::new()),
    };
    let there: Vec<_> =
        first.into_iter().chain(invite).map(|command| format!("`{command}`")).collect();
    let there = match there.join(" and ") {
        none if none.is_empty() => none,
        commands => format!("run {commands} on the server; then "),
    };
    format!("{there}run `adit down{argument}` and `adit enroll --replace{name}{server}` here")
}

/// A client configuration. Its first packets carry a knock of `key`, and `idle` is the idle
/// time-out of its sessions.
pub fn config(crypto: impl Into<ClientTls>, key: &KnockKey, idle: Duration) -> DialConfig {
    let ClientTls { quic, seen } = crypto.into();
    let mut config = ClientConfig::new(Arc::new(quic));
    let key = key.clone();
    config.initial_dst_cid_provider(Arc::new(move || quinn_proto::ConnectionId::new(&key.knock())));
    DialConfig { quic: config, seen, idle }
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
    match connected {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(e)) => Err(match DialError::from_connection(&e, &shown).unproved() {
            DialError::Clock(_) => DialError::Clock(Clocks::certificate(config.seen.take())),
            other => other,
        }),
        Err(_) => Err(DialError::NoAnswer(shown)),
    }
}
