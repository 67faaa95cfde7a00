//! Opening a QUIC connection to one of several addresses, and saying why it could not be.

pub mod clocks;
pub mod plan;
pub mod route;
pub mod verdict;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use common::transport::{
    self, carrier,
    tls::{ClientTls, SeenTime},
};
use proto::{
    knock::KnockKey,
    wire::{Code, SERVER_NAME},
};
use quinn::{ClientConfig, Connection, ConnectionError, Endpoint, EndpointConfig, TokioRuntime};
use tokio::task::JoinSet;

use crate::{
    dial::{
        clocks::Clocks,
        route::{Carrier, Route},
        verdict::Verdict,
    },
    profile::Profile,
    ssh::SshWay,
};

/// The next address is tried when the one before has been silent for so long (RFC 8305 section 5).
const STAGGER: Duration = Duration::from_millis(300);
const RESOLVE_WITHIN: Duration = Duration::from_secs(5);

// The alerts of RFC 8446 section 6 that tell people something.
const BAD_CERTIFICATE: u64 = 42;
const CERTIFICATE_REVOKED: u64 = 44;
const CERTIFICATE_EXPIRED: u64 = 45;
const CERTIFICATE_UNKNOWN: u64 = 46;
const UNKNOWN_CA: u64 = 48;
const DECRYPT_ERROR: u64 = 51;
const CERTIFICATE_REQUIRED: u64 = 116;
const NO_APPLICATION_PROTOCOL: u64 = 120;

/// A connection, and how it came to be.
#[derive(Debug)]
pub struct Dialed {
    /// The endpoint under it; the connection lives on when this is dropped.
    pub endpoint: Endpoint,
    /// The connection. The server may not have judged it yet.
    pub connection: Connection,
    /// How its datagrams go.
    pub way: Route,
    /// What carries them.
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
        hint: &'static str,
    },
    /// The first attempt is still under way.
    #[error("no answer yet from {0}")]
    NoAnswerYet(String),
    /// Nobody answered anywhere.
    #[error("no answer from {0}")]
    NoAnswer(String),
    /// The kernel says at once that it does not reach the server.
    #[error("{0}")]
    Unreachable(Verdict),
    /// A name could not be looked up.
    #[error("cannot look up `{name}`: {why}")]
    Resolve {
        /// As it was given.
        name: String,
        /// What the resolver says.
        why: String,
    },
    /// Whoever answers is not the server that this device trusts.
    #[error(
        "the server at {0} is not the one that this device enrolled with: its certificate comes from another CA"
    )]
    WrongServer(String),
    /// A certificate is not valid now, by one of the two clocks.
    #[error("{0}")]
    Clock(Clocks),
    /// The server finds this device's certificate out of its time, and too far to renew it.
    #[error("the server does not accept the time of this device's certificate")]
    OutOfTime,
    /// The server is this same computer, and its Ollama would be this program.
    #[error(
        "the server is this same computer, and expects its Ollama on port {0}, where adit listens: every request would come back here, for ever"
    )]
    LeadsBack(u16),
    /// The server ended it with a code.
    #[error("{}", .0.what())]
    Refused(Code),
    /// The peer speaks another version.
    #[error("the server speaks another version of the protocol")]
    Version,
    /// The server has forgotten the connection (a stateless reset, RFC 9000 section 10.3).
    #[error("the server was restarted")]
    Restarted,
    /// SSH did not get through.
    #[error("{why}")]
    Ssh {
        /// Why not.
        why: String,
        /// What cures it.
        hint: String,
    },
    /// Anything else of QUIC or TLS.
    #[error("the connection failed: {0}")]
    Other(String),
    /// A socket could not be made.
    #[error("cannot open a UDP socket: {0}")]
    Socket(Arc<io::Error>),
}

impl DialError {
    /// What cures it, typed literally on this device.
    pub fn hint(&self, profile: &Profile) -> Option<String> {
        let again = again(profile, None);
        Some(match self {
            Self::Refused(Code::Revoked) => {
                let forget = format!("aditd device forget {}", profile.enrolled.device);
                format!("to let it in again: {}", self::again(profile, Some(forget)))
            }
            Self::WrongServer(_) => {
                format!(
                    "if the server was installed anew: {again}; if not, do not trust that address"
                )
            }
            Self::OutOfTime => format!(
                "check both clocks; if both are right, the certificate expired too long ago: {again}"
            ),
            Self::LeadsBack(_) => format!(
                "choose another port: `adit up{} --listen localhost:11500`",
                profile.place.argument()
            ),
            other => return other.general_hint(),
        })
    }

    /// What cures it, where no profile is needed to say it.
    pub fn general_hint(&self) -> Option<String> {
        let hint = match self {
            Self::NoAnswer(_) => {
                "check on the server that aditd runs and listens on that address (`aditd status`), that its --allow-from includes \
                 this network, that no firewall blocks UDP, and that this device is still enrolled (`aditd device list`)"
            }
            Self::NoWay { hint, .. } => hint,
            Self::Unreachable(verdict) => verdict.hint(),
            Self::NoAnswerYet(_) => "check that this computer is online and the server is up",
            Self::Resolve { .. } => "check the name and this computer's network",
            Self::Clock(clocks) => clocks.hint(),
            Self::Version => "install the same version of adit and aditd",
            Self::Ssh { hint, .. } => hint,
            Self::Refused(code) => return code.cure().map(ToOwned::to_owned),
            Self::WrongServer(_)
            | Self::OutOfTime
            | Self::LeadsBack(_)
            | Self::Restarted
            | Self::Other(_)
            | Self::Socket(_) => return None,
        };
        Some(hint.to_owned())
    }

    /// Whether who has heard of the one knows the other: times pass, and are no news.
    pub fn is_same_news(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Clock(_), Self::Clock(_)) => true,
            _ => self.to_string() == other.to_string(),
        }
    }

    /// Whether trying again soon is of no use: the server has said no, or must not be used.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Refused(Code::Revoked | Code::Superseded) | Self::LeadsBack(_))
    }

    /// Before the handshake is done, anybody on the way can say anything: a refusal then is no
    /// refusal.
    fn unproved(self) -> Self {
        match self {
            Self::Refused(_) | Self::OutOfTime => Self::Other(
                "the handshake was broken off, by the server or by somebody in between".to_owned(),
            ),
            other => other,
        }
    }

    /// Says what a lost connection means. `to` is where it went.
    pub fn from_connection(error: &ConnectionError, to: &str) -> Self {
        let alert = |code: u64| match code.checked_sub(0x100) {
            Some(CERTIFICATE_REVOKED) => Self::Refused(Code::Revoked),
            Some(NO_APPLICATION_PROTOCOL) => Self::Version,
            _ => Self::Other(error.to_string()),
        };
        match error {
            ConnectionError::TimedOut => Self::NoAnswer(to.to_owned()),
            ConnectionError::VersionMismatch => Self::Version,
            ConnectionError::ApplicationClosed(close) => {
                match Code::from_number(close.error_code.into_inner()) {
                    Some(Code::ServerClock) => {
                        let shows = std::str::from_utf8(&close.reason).ok();
                        Self::Clock(Clocks::admitted(shows.and_then(|at| at.parse().ok())))
                    }
                    Some(code) => Self::Refused(code),
                    None => Self::Other(error.to_string()),
                }
            }
            // The server's judgement of our certificate.
            ConnectionError::ConnectionClosed(close) => {
                match u64::from(close.error_code).checked_sub(0x100) {
                    Some(CERTIFICATE_EXPIRED) => Self::OutOfTime,
                    Some(
                        UNKNOWN_CA | BAD_CERTIFICATE | CERTIFICATE_UNKNOWN | DECRYPT_ERROR
                        | CERTIFICATE_REQUIRED,
                    ) => Self::WrongServer(to.to_owned()),
                    _ => alert(close.error_code.into()),
                }
            }
            // Our judgement of the server's.
            ConnectionError::TransportError(e) => match u64::from(e.code).checked_sub(0x100) {
                Some(CERTIFICATE_EXPIRED) => Self::Clock(Clocks::certificate(None)),
                Some(UNKNOWN_CA | BAD_CERTIFICATE | CERTIFICATE_UNKNOWN | DECRYPT_ERROR) => {
                    Self::WrongServer(to.to_owned())
                }
                _ => alert(e.code.into()),
            },
            ConnectionError::Reset => Self::Restarted,
            ConnectionError::LocallyClosed | ConnectionError::CidsExhausted => {
                Self::Other(error.to_string())
            }
        }
    }
}

/// How to connect.
#[derive(Debug, Clone)]
pub struct Config {
    /// For QUIC.
    pub quic: ClientConfig,
    seen: SeenTime,
}

/// How this device is enrolled again. A running `adit up` would go on with the old identity.
/// `first` is a command to run on the server before.
fn again(profile: &Profile, first: Option<String>) -> String {
    let (device, name) = (&profile.enrolled.device, profile.place.flag());
    let (invite, server) = match &profile.ssh {
        Some(way) => (None, format!(" --device {device} {way}")),
        None => (Some(format!("aditd invite {device}")), String::new()),
    };
    let there: Vec<_> =
        first.into_iter().chain(invite).map(|command| format!("`{command}`")).collect();
    let there = match there.join(" and ") {
        none if none.is_empty() => none,
        commands => format!("run {commands} on the server; then "),
    };
    format!("{there}stop `adit up` here and run `adit enroll --replace{name}{server}`")
}

/// A client configuration whose first packets knock with `key`, and whose sessions are kept through
/// a silence of `idle`.
pub fn config(crypto: impl Into<ClientTls>, key: &KnockKey, idle: Duration) -> Config {
    let ClientTls { quic, seen } = crypto.into();
    let mut config = ClientConfig::new(Arc::new(quic));
    let key = key.clone();
    config
        .transport_config(transport::settings(0, idle))
        .initial_dst_cid_provider(Arc::new(move || quinn_proto::ConnectionId::new(&key.knock())));
    Config { quic: config, seen }
}

/// Connects to the first of `addresses` (`host:port`) that answers, or by SSH; each gets a head
/// start over the next, UDP over SSH. Cancellation safe.
///
/// # Errors
/// What the most telling attempt says: a refusal before silence, silence before a name that can't
/// be looked up.
pub async fn dial(
    config: &Config,
    addresses: &[String],
    ssh: Option<&SshWay>,
) -> Result<Dialed, DialError> {
    let mut attempts = JoinSet::new();
    for (name, delay) in addresses.iter().zip(staggered()) {
        // Looked up side by side: a resolver that hangs holds up nobody else.
        attempts.spawn(reach(config.clone(), name.clone(), delay));
    }
    if let Some(way) = ssh {
        let delay = if addresses.is_empty() { Duration::ZERO } else { STAGGER };
        attempts.spawn(attempt(config.clone(), Route::Ssh(way.clone()), way.to_string(), delay));
    }
    match first(attempts).await {
        Err(Some(DialError::NoAnswer(_)) | None) => {
            Err(DialError::NoAnswer(all_of(addresses, ssh)))
        }
        other => other.map_err(|why| why.unwrap_or(DialError::NoAnswer(String::new()))),
    }
}

/// Everywhere that is asked, for people.
pub fn all_of(addresses: &[String], ssh: Option<&SshWay>) -> String {
    addresses.iter().cloned().chain(ssh.map(ToString::to_string)).collect::<Vec<_>>().join(" or ")
}

async fn reach(config: Config, name: String, delay: Duration) -> Result<Dialed, DialError> {
    let found = resolve(&name).await?;
    tokio::time::sleep(delay).await;
    let mut attempts = JoinSet::new();
    for (address, delay) in found.into_iter().zip(staggered()) {
        attempts.spawn(attempt(config.clone(), Route::Udp(address), name.clone(), delay));
    }
    first(attempts).await.map_err(|why| why.unwrap_or(DialError::NoAnswer(name)))
}

fn staggered() -> impl Iterator<Item = Duration> {
    (0..).map(|i| STAGGER * i)
}

/// The first that succeeds, or the most telling of all failures.
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
        DialError::Unreachable(verdict) => verdict.weight(),
        DialError::NoAnswer(_) => 2,
        // A login says more than a port.
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
    config: Config,
    way: Route,
    name: String,
    delay: Duration,
) -> Result<Dialed, DialError> {
    tokio::time::sleep(delay).await;
    let shown = match &way {
        Route::Udp(address) if name != address.to_string() => format!("{name} ({address})"),
        way => way.to_string(),
    };
    let unusable = |e| DialError::Socket(Arc::new(e));
    let carrier = way.open().map_err(unusable)?;
    carrier.ready().await.map_err(|e| {
        let hint = if let Route::Ssh(way) = &way { e.hint(way) } else { String::new() };
        DialError::Ssh { why: e.to_string(), hint }
    })?;
    let runtime = Arc::new(TokioRuntime);
    let endpoint = Endpoint::new_with_abstract_socket(
        EndpointConfig::default(),
        None,
        carrier.socket(),
        runtime,
    )
    .map_err(unusable)?;
    let connecting = endpoint
        .connect_with(config.quic, carrier::REMOTE, SERVER_NAME)
        .map_err(|e| DialError::Other(e.to_string()))?;
    let refused = async {
        match &way {
            Route::Udp(address) => verdict::on(*address, &shown).await,
            Route::Ssh(_) => std::future::pending().await,
        }
    };
    let connected = tokio::select! {
        biased;
        connected = tokio::time::timeout(transport::HANDSHAKE_WITHIN, connecting) => connected,
        verdict = refused => return Err(DialError::Unreachable(verdict)),
    };
    match connected {
        Ok(Ok(connection)) => Ok(Dialed { endpoint, connection, way, carrier }),
        Ok(Err(e)) => Err(match DialError::from_connection(&e, &shown).unproved() {
            DialError::Clock(_) => DialError::Clock(Clocks::certificate(config.seen.take())),
            other => other,
        }),
        Err(_) => Err(DialError::NoAnswer(shown)),
    }
}
