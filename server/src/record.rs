//! The records that the gate makes of requests, and the interface through which it asks before it
//! forwards one. Prompts, answers and queries are in neither.

pub(crate) mod charge;
mod granted;

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use common::transport::carrier::RELAY_SOURCE;
use proto::{
    http1::BodyLength,
    identity::{DeviceId, Name, UserName},
    ollama::route::RouteClass,
};

pub(crate) use self::granted::{Granted, Limits};

/// The device or key, and the connection, that a request comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asker {
    pub id: DeviceId,
    pub name: Name,
    /// The user of this machine who enrolled it over SSH.
    pub uid: Option<u32>,
    pub kind: CallerKind,
    /// The person to whom it belongs, if that is known.
    pub user: Option<UserName>,
    /// Whether the person had to sign in at the provider to enroll it.
    pub has_signed_in: bool,
    /// The address that its packets come from.
    pub remote: SocketAddr,
    pub carrier: CarrierKind,
}

/// What a request's caller is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallerKind {
    /// A device, by its certificate.
    Device,
    /// An application, by its key.
    Key,
    /// A person, by a token of the provider.
    Token,
}

impl fmt::Display for CallerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Device => "device",
            Self::Key => "key",
            Self::Token => "token",
        })
    }
}

/// How a device's datagrams reach the server, as far as the server can see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CarrierKind {
    /// Over the network.
    Udp,
    /// Over SSH, through a relay on this machine.
    Ssh,
    /// From this machine, without a relay.
    Local,
    /// Over HTTPS, without a tunnel.
    Https,
}

impl CarrierKind {
    /// The carrier of datagrams from an address.
    pub fn of(remote: SocketAddr) -> Self {
        match remote.ip().to_canonical() {
            IpAddr::V4(RELAY_SOURCE) => Self::Ssh,
            ip if ip.is_loopback() => Self::Local,
            _ => Self::Udp,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Ssh => "ssh",
            Self::Local => "local",
            Self::Https => "https",
        }
    }
}

/// A request that may pass, before it is forwarded.
#[derive(Debug, Clone)]
pub(crate) struct PermittedRequest {
    pub asker: Asker,
    pub role: Name,
    /// What `authorize` has said of its limits, if it has.
    pub granted: Option<Arc<Granted>>,
    /// The path without its query.
    pub path: Box<str>,
    pub route: RouteClass,
    pub body: BodyLength,
}

/// Permission of the throttle to forward one request, held until the request has ended.
#[derive(Default)]
pub(crate) struct ThrottlePermit {
    /// A longer body is refused (413), also if it only turns out to be longer.
    pub most_body: Option<u64>,
    /// The turn that the request must have before its last byte is forwarded.
    pub turn: Option<TurnFuture>,
    /// Whether the wait for the turn may be long.
    pub waits: bool,
    /// Whether the answer says how the request has waited.
    pub tells_queue: bool,
    /// Dropped when the request has ended.
    pub held: Option<HeldGuard>,
    /// Ends when the request reaches a limit while its answer runs.
    pub limit: Option<LimitReached>,
    /// The account that the request is charged to while it runs.
    pub account: Option<Arc<dyn Account>>,
}

/// Charges a request while it runs. None of its methods may block.
pub(crate) trait Account: Send + Sync {
    /// The service works on the request; `seen` is what was seen so far.
    fn so_far(&self, seen: RequestProgress);

    /// How many tokens were charged so far.
    fn charged(&self) -> u64;

    /// By which id they are counted.
    fn payer(&self) -> DeviceId;
}

/// What can be seen of a running request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct RequestProgress {
    /// About how many tokens the prompt has.
    pub prompt: u64,
    /// How many pieces of the answer have come.
    pub pieces: u64,
    /// Whether the answer comes piece by piece, if the request says it.
    pub is_stream: Option<bool>,
}

/// Ends when a limit is reached; the answer then ends with a line that says so.
pub(crate) type LimitReached = BoxFuture<'static, NotNow>;

/// Something that a request holds while it runs; dropping it releases it.
pub(crate) type HeldGuard = Box<dyn Send + Sync>;

/// Waits for a request's turn at the service. The request joins the queue when this is first
/// polled, so a request that is not whole takes no place. Dropping it leaves the queue at once.
pub(crate) type TurnFuture = BoxFuture<'static, Result<GrantedTurn, NotNow>>;

/// How a request has waited in the queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct QueueWait {
    /// As [`GrantedTurn::position`].
    pub position: usize,
    pub waited: Duration,
}

/// A request's turn at the service.
pub(crate) struct GrantedTurn {
    /// Dropped when the service has finished with the request.
    pub held: HeldGuard,
    /// The request's place in the queue when it arrived: 1 if it got the next turn, 0 if it did not
    /// wait.
    pub position: usize,
}

impl fmt::Debug for ThrottlePermit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { most_body, waits, tells_queue: _, turn: _, held: _, limit: _, account: _ } =
            self;
        f.debug_struct("Ticket")
            .field("most_body", most_body)
            .field("waits", waits)
            .finish_non_exhaustive()
    }
}

/// Why a request is not forwarded now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NotNow {
    /// The HTTP status: 413, 429 or 503.
    pub status: u16,
    /// For `Retry-After`, in seconds.
    pub retry_after: Option<u64>,
    /// The message for the application, `adit: …`.
    pub sentence: String,
    /// The limit in one word, for metrics.
    pub limit: &'static str,
}

pub(crate) type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Asked about each request before it is forwarded.
pub(crate) trait Throttle: Send + Sync {
    /// A request of this device has arrived. Asked first, so that requests above the rate cost
    /// others nothing.
    ///
    /// # Errors
    /// Why the request is not even read.
    fn arrive(&self, _asker: &Asker, _role: &Name) -> Result<(), NotNow> {
        Ok(())
    }

    /// How many bytes a body may have, if that is limited. Asked before any of it is read.
    ///
    /// # Errors
    /// Why the body is not read: its length is known and above the limit.
    fn body(
        &self,
        _asker: &Asker,
        _role: &Name,
        _length: BodyLength,
    ) -> Result<Option<u64>, NotNow> {
        Ok(None)
    }

    /// Whether the request may be forwarded now. Asked after the policy has allowed it. The future
    /// is dropped if the request is cancelled or cut.
    fn admit<'a>(
        &'a self,
        asked: &'a PermittedRequest,
    ) -> BoxFuture<'a, Result<ThrottlePermit, NotNow>>;
}

/// Informed of every request. No method may block: they are called where bytes are forwarded.
pub(crate) trait Observer: Send + Sync {
    /// A piece of an answer has come, `after` the one before it.
    fn piece(&self, _route: RouteClass, _after: Duration) {}

    /// A request is let pass; returns its number.
    fn began(&self, _record: &RequestRecord) -> Option<u64> {
        None
    }

    fn ended(&self, record: &RequestRecord);
}

/// Admits every request, and records none.
#[cfg(test)]
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Nobody;

#[cfg(test)]
impl Throttle for Nobody {
    fn admit<'a>(
        &'a self,
        _: &'a PermittedRequest,
    ) -> BoxFuture<'a, Result<ThrottlePermit, NotNow>> {
        Box::pin(std::future::ready(Ok(ThrottlePermit::default())))
    }
}

#[cfg(test)]
impl Observer for Nobody {
    fn ended(&self, _: &RequestRecord) {}
}

/// A request that has ended.
#[derive(Debug, Clone)]
pub(crate) struct RequestRecord {
    pub asker: Asker,
    /// The service that it was for.
    pub service: Name,
    /// Its number among the requests of this process that were let pass; `None` if it was not.
    pub number: Option<u64>,
    /// The device's role when it was checked.
    pub role: Name,
    /// The method; empty if it could not be read.
    pub method: Box<str>,
    /// The path without its query; empty if it could not be read.
    pub path: Box<str>,
    pub route: RouteClass,
    /// The model that it named, if that was seen.
    pub model: Option<Box<str>>,
    /// The status that the application got; `None` if it got none.
    pub status: Option<u16>,
    /// Bytes from the device, the head included.
    pub bytes_in: u64,
    /// Bytes to the device, the head included.
    pub bytes_out: u64,
    /// How long it waited in the queue, also if it never had a turn.
    pub queued: Duration,
    /// From the end of its head to the first byte of the final answer.
    pub first_byte: Option<Duration>,
    /// From the end of its head to its end.
    pub total: Duration,
    pub tokens: TokenFacts,
    pub end: End,
}

/// What is known of the tokens of one request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct TokenFacts {
    /// Tokens of the prompt, as the answer reports them.
    pub told_in: Option<u64>,
    /// Tokens of the answer, as the answer reports them.
    pub told_out: Option<u64>,
    /// Pieces of text in a stream: each is one token.
    pub pieces: u64,
    /// About how many tokens the prompt has, estimated from its text.
    pub prompt: u64,
    /// Whether the answer comes piece by piece, as far as the request says.
    pub is_stream: bool,
    /// How long the service had all that it needs to begin; `None` if it never had.
    pub at_work: Option<Duration>,
    /// Tokens that were charged while it ran.
    pub charged: u64,
    /// By which id they are counted; `None` for that of the device or key.
    pub payer: Option<DeviceId>,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// Its answer was delivered whole.
    Done,
    /// The application ended it before its answer was whole.
    Cancelled,
    /// It was cut: by the service, the network, the end of the device's permission, or the server's
    /// stop.
    Cut,
    /// It was not forwarded (or not whole), and the application was told why.
    Refused(Refusal),
}

impl End {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Cancelled => "cancelled",
            Self::Cut => "cut",
            Self::Refused(_) => "refused",
        }
    }
}

/// Why a request was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Refusal {
    /// It was ambiguous or not valid HTTP.
    Malformed,
    /// `Host` names another server: most likely a web page with DNS rebinding.
    Host,
    /// The device's certificate has expired, or the device is no longer enrolled.
    Certificate,
    /// The key has ended, or was revoked or replaced.
    Key,
    /// The token does not count.
    Token,
    /// The device's role does not allow the route.
    Role,
    /// The device may not use the model.
    Model,
    /// `authorize` refused it.
    Authorize,
    /// `authorize` could not be asked.
    AuthorizeFailed,
    /// The limit named by [`NotNow::limit`].
    Limit(&'static str),
    /// The service could not be reached.
    Upstream,
}

impl Refusal {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Host => "host",
            Self::Certificate => "certificate",
            Self::Key => "key",
            Self::Token => "token",
            Self::Role => "role",
            Self::Model => "model",
            Self::Authorize => "authorize",
            Self::AuthorizeFailed => "authorize_failed",
            Self::Limit(limit) => limit,
            Self::Upstream => "upstream",
        }
    }
}
