//! What the gate tells of each request, and whom it asks before one is forwarded. Prompts, answers
//! and queries are in neither.

pub mod charge;
use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use common::transport::carrier::RELAY_SOURCE;
use proto::{
    http1::BodyLength,
    identity::{DeviceId, Name},
    ollama::route::RouteClass,
};

/// Who asks, on one connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asker {
    /// The device's id.
    pub id: DeviceId,
    /// What it is called.
    pub name: Name,
    /// The user of the server's machine who enrolled it over SSH.
    pub uid: Option<u32>,
    /// Where its datagrams come from.
    pub remote: SocketAddr,
    /// What brings them.
    pub carrier: Carrier,
}

/// What brings a device's datagrams, as far as the server can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Carrier {
    /// They come over the network.
    Udp,
    /// They come from a relay on this machine, over SSH.
    Ssh,
    /// They come from this machine otherwise.
    Local,
}

impl Carrier {
    /// The carrier behind an address.
    pub fn of(remote: SocketAddr) -> Self {
        match remote.ip().to_canonical() {
            IpAddr::V4(RELAY_SOURCE) => Self::Ssh,
            ip if ip.is_loopback() => Self::Local,
            _ => Self::Udp,
        }
    }

    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Ssh => "ssh",
            Self::Local => "local",
        }
    }
}

/// A request that may pass, before it is forwarded.
#[derive(Debug, Clone)]
pub struct PermittedRequest {
    /// Who asks.
    pub asker: Asker,
    /// The device's role.
    pub role: Name,
    /// The method, as it was written.
    pub method: Box<str>,
    /// The path without its query.
    pub path: Box<str>,
    /// The group of its route.
    pub route: RouteClass,
    /// The model, if it had to be read before forwarding.
    pub model: Option<Box<str>>,
    /// How long its body is.
    pub body: BodyLength,
}

/// Leave to forward one request, held until the request has ended.
#[derive(Default)]
pub struct Ticket {
    /// A longer body is refused (413), also one that only turns out to be longer.
    pub most_body: Option<u64>,
    /// What it has to wait for before its last byte may go.
    pub turn: Option<Turn>,
    /// Whether that may be long.
    pub waits: bool,
    /// Dropped when the request has ended.
    pub held: Option<Held>,
    /// Ends when the request has reached a limit while its answer runs.
    pub limit: Option<Limited>,
    /// Told what it costs while it runs.
    pub account: Option<Arc<dyn Account>>,
}

/// Charges a request while it runs. None of its methods may block.
pub trait Account: Send + Sync {
    /// The service is at work for it, and this was seen so far.
    fn so_far(&self, seen: Seen);

    /// Tokens that it has been charged.
    fn charged(&self) -> u64;
}

/// What can be seen of a request while it runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Seen {
    /// About how many tokens the prompt has.
    pub prompt: u64,
    /// Pieces of the answer.
    pub pieces: u64,
    /// Whether the answer comes piece by piece, if the request says it.
    pub is_stream: Option<bool>,
}

/// Ends when a limit is reached: the answer then ends with a line that says so.
pub type Limited = BoxFuture<'static, NotNow>;

/// What a request holds while it runs.
pub type Held = Box<dyn Send + Sync>;

/// Waits for a request's turn at the service. Nobody is in the line before this is polled: what is
/// not whole yet takes no one's place. Dropped while it waits, it leaves the line at once.
pub type Turn = BoxFuture<'static, Result<Held, NotNow>>;

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { most_body, waits, turn: _, held: _, limit: _, account: _ } = self;
        f.debug_struct("Ticket")
            .field("most_body", most_body)
            .field("waits", waits)
            .finish_non_exhaustive()
    }
}

/// Why a request is not forwarded now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotNow {
    /// 413, 429 or 503.
    pub status: u16,
    /// For `Retry-After`, in seconds.
    pub retry_after: Option<u64>,
    /// What the application is told, `adit: …`.
    pub sentence: String,
    /// The limit in one word, for those who count.
    pub limit: &'static str,
}

/// A future behind a trait object.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Asked about each request.
pub trait Throttle: Send + Sync {
    /// A request of this device has come, whatever will become of it. Asked first of all, so that
    /// what is asked too often costs nobody else anything.
    ///
    /// # Errors
    /// Why it is not even looked at.
    fn arrive(&self, _asker: &Asker, _role: &Name) -> Result<(), NotNow> {
        Ok(())
    }

    /// How much of a body a device may send, if that is limited. Asked before any of it is read.
    ///
    /// # Errors
    /// Why it is not read at all: it says itself that it is longer.
    fn body(
        &self,
        _asker: &Asker,
        _role: &Name,
        _length: BodyLength,
    ) -> Result<Option<u64>, NotNow> {
        Ok(None)
    }

    /// May it be forwarded now? Asked after the policy has allowed it. Dropped when the request is
    /// cancelled or cut meanwhile.
    fn admit<'a>(&'a self, asked: &'a PermittedRequest) -> BoxFuture<'a, Result<Ticket, NotNow>>;
}

/// Told of every request. None of its methods may block: they are called where bytes are moved.
pub trait Observer: Send + Sync {
    /// A piece of an answer has come, so long after the one before it.
    fn piece(&self, _route: RouteClass, _after: Duration) {}

    /// A request has ended.
    fn ended(&self, record: &RequestRecord);
}

/// Everybody is admitted, and nobody told.
#[derive(Debug, Default, Clone, Copy)]
pub struct Nobody;

impl Throttle for Nobody {
    fn admit<'a>(&'a self, _: &'a PermittedRequest) -> BoxFuture<'a, Result<Ticket, NotNow>> {
        Box::pin(std::future::ready(Ok(Ticket::default())))
    }
}

impl Observer for Nobody {
    fn ended(&self, _: &RequestRecord) {}
}

/// One request, when it has ended.
#[derive(Debug, Clone)]
pub struct RequestRecord {
    /// When its head had been read.
    pub at: SystemTime,
    /// Who asked.
    pub asker: Asker,
    /// The device's role when it was judged.
    pub role: Name,
    /// The method; empty if it could not be read.
    pub method: Box<str>,
    /// The path without its query; empty if it could not be read.
    pub path: Box<str>,
    /// The group of its route.
    pub route: RouteClass,
    /// The model that it named, where that could be seen.
    pub model: Option<Box<str>>,
    /// The status that the application was told; `None` if it was told none.
    pub status: Option<u16>,
    /// Bytes from the device, the head included.
    pub bytes_in: u64,
    /// Bytes to the device, the head included.
    pub bytes_out: u64,
    /// So long it waited to be admitted.
    pub queued: Duration,
    /// From `at` to the first byte of the final answer.
    pub first_byte: Option<Duration>,
    /// From `at` to the end.
    pub total: Duration,
    /// What is known of its tokens.
    pub tokens: TokenFacts,
    /// How it ended.
    pub end: End,
}

/// What is known of the tokens of one request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TokenFacts {
    /// Tokens of the prompt, where the answer says it.
    pub told_in: Option<u64>,
    /// Tokens of the answer, where it says it.
    pub told_out: Option<u64>,
    /// Pieces of text that came in a stream: each is one token.
    pub pieces: u64,
    /// About how many tokens the prompt has, by the bytes of its text.
    pub prompt: u64,
    /// Whether the answer comes piece by piece, as far as the request says it.
    pub is_stream: bool,
    /// How long the service had all that it needs to begin; `None` if it never had.
    pub at_work: Option<Duration>,
    /// Tokens that it was charged while it ran.
    pub charged: u64,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Its answer was delivered whole.
    Done,
    /// The application ended it before its answer was whole.
    Cancelled,
    /// It was cut: the service, the network, the device's right to it, or the server went away.
    Cut,
    /// It was not forwarded (or not whole), and the application was told why.
    Refused(Refusal),
}

impl End {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
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
pub enum Refusal {
    /// It could be read in more than one way, or in none.
    Malformed,
    /// `Host` names somebody else: most likely a web page that has rebound its name.
    Host,
    /// The device's certificate has expired, or it is not enrolled any more.
    Certificate,
    /// The device's role has no such route.
    Role,
    /// The device may not use the model.
    Model,
    /// `authorize` said no.
    Authorize,
    /// `authorize` could not be asked.
    AuthorizeFailed,
    /// A limit, by [`NotNow::limit`].
    Limit(&'static str),
    /// The service could not be reached.
    Upstream,
}

impl Refusal {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Host => "host",
            Self::Certificate => "certificate",
            Self::Role => "role",
            Self::Model => "model",
            Self::Authorize => "authorize",
            Self::AuthorizeFailed => "authorize_failed",
            Self::Limit(limit) => limit,
            Self::Upstream => "upstream",
        }
    }
}
