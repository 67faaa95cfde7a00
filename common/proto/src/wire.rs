//! What the two ends say to each other: ALPN names, stream heads, error codes and messages. How the
//! bytes are carried is not decided here.
//!
//! The ALPN name (RFC 7301) is the version: a change that an older peer cannot understand needs a
//! new name.

mod api;
mod code;
mod reason;
mod renewal;
mod sign_in;

use std::time::Duration;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::{
    device_key::KeyStorage,
    failure::Failure,
    identity::{DeviceId, Name},
    knock::KnockKey,
};

pub use api::Api;
pub use code::Code;
pub use reason::{BadReason, Reason, Revocation};
pub use renewal::{NewCa, RenewAnswer};
pub use sign_in::{RedirectAnswer, SignInRequest, SignInStep};

/// The longest message that either end accepts, in bytes.
pub const MAX_LEN: usize = 64 * 1024;
/// How often each end sends a keep-alive.
pub const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// How long a session survives without a packet from the peer, unless configured otherwise. A sleep
/// or an outage that is shorter loses nothing.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(30 * 60);
/// ALPN of the tunnel: a client certificate is required.
pub const ALPN_TUNNEL: &[u8] = b"adit/1";
/// ALPN of enrollment: no client certificate is needed, and only enrollment is possible.
pub const ALPN_ENROLL: &[u8] = b"adit-enroll/1";
/// The DNS name in every server certificate. It is the same for every server, so that a server can
/// change its address and its public name.
pub const SERVER_NAME: &str = "server.adit.internal";
/// The service that a client uses by default.
pub const DEFAULT_SERVICE: &str = "ollama";
/// The TCP port on which Ollama listens by default. The client listens on the same port.
pub const OLLAMA_PORT: u16 = 11434;
/// The UDP port of `aditd`.
pub const ADITD_PORT: u16 = 11435;

/// The first bytes of a stream that a client opens: `kind (1) ‖ length (1) ‖ name`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StreamHead {
    /// Forward what follows to the named service.
    Forward(Name),
    /// Asks for a new certificate for the key of this connection. The answer is a [`RenewAnswer`].
    Renew,
    /// What is wrong with the box, and how is the way: see the module `doctor` for what follows.
    Doctor,
    /// Asks where this device's requests are in the queue. The answer is a [`QueueAnswer`].
    Queue,
    /// The device has stored the [`NewCa`] that it got last in this session. The answer is the end
    /// of the stream.
    Stored,
}

impl StreamHead {
    /// The longest head, in bytes.
    pub const MAX_LEN: usize = 2 + 63;
    const FORWARD: u8 = 1;
    const RENEW: u8 = 2;
    const DOCTOR: u8 = 3;
    const QUEUE: u8 = 4;
    const STORED: u8 = 5;

    /// The head as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let (kind, name) = match self {
            Self::Forward(name) => (Self::FORWARD, name.as_str()),
            Self::Renew => (Self::RENEW, ""),
            Self::Doctor => (Self::DOCTOR, ""),
            Self::Queue => (Self::QUEUE, ""),
            Self::Stored => (Self::STORED, ""),
        };
        let mut bytes = vec![kind, name.len() as u8];
        bytes.extend_from_slice(name.as_bytes());
        bytes
    }

    /// Reads a head from the beginning of `bytes`.
    ///
    /// `Ok(None)` while it is incomplete; otherwise the head and how many bytes it took.
    pub fn decode(bytes: &[u8]) -> Result<Option<(Self, usize)>, BadHead> {
        let [kind, len, rest @ ..] = bytes else { return Ok(None) };
        let is_known = matches!(
            (*kind, *len),
            (Self::FORWARD, 1..=63) | (Self::RENEW | Self::DOCTOR | Self::QUEUE | Self::STORED, 0)
        );
        if !is_known {
            return Err(BadHead);
        }
        let Some(name) = rest.get(..usize::from(*len)) else {
            return Ok(None);
        };
        let head = match *kind {
            Self::RENEW => Self::Renew,
            Self::DOCTOR => Self::Doctor,
            Self::QUEUE => Self::Queue,
            Self::STORED => Self::Stored,
            _ => Self::Forward(
                std::str::from_utf8(name).ok().and_then(|n| n.parse().ok()).ok_or(BadHead)?,
            ),
        };
        Ok(Some((head, 2 + usize::from(*len))))
    }
}

/// The first bytes of a stream are not a head that this version knows.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the stream's first bytes name no service")]
pub struct BadHead;

/// The protocol of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServiceKind {
    /// HTTP/1.x. Failures are answered in HTTP.
    Http,
    /// Any other protocol over TCP.
    Tcp,
}

/// A service that the server offers to this device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Its name in a [`StreamHead`].
    pub name: Name,
    /// Its protocol.
    pub kind: ServiceKind,
    /// Its port on the server's loopback interface. A client on the same machine must not listen on
    /// this port, or it would connect to itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Whose routes it has, if it speaks HTTP.
    #[serde(default, skip_serializing_if = "Api::is_ollama")]
    pub api: Api,
}

impl Service {
    /// What it speaks, in one word: `http` (the API of Ollama), `openai` or `tcp`.
    pub fn speaks(&self) -> &'static str {
        match (self.kind, self.api) {
            (ServiceKind::Tcp, _) => "tcp",
            (ServiceKind::Http, Api::OpenAi) => "openai",
            (ServiceKind::Http, Api::Ollama) => "http",
        }
    }
}

/// The client's first message, sent with the end of the handshake on the connection that it has
/// chosen. A connection becomes a session when its greeting arrives, so only one of several
/// parallel attempts does. The stream stays open: the client sends single bytes as probes, and the
/// server answers them with [`Notice::Here`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Greeting {
    /// Version of `adit`.
    pub version: String,
    /// What the server last gave this device to remember ([`Hello::epoch`]); absent before that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<String>,
    /// Whether the client can take over a new CA of the server ([`NewCa`], [`Notice::Renew`]).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub follows_ca: bool,
}

/// The server's first message on every tunnel, after it has accepted the client's certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Version of `aditd`.
    pub version: String,
    /// What the server calls this device.
    pub device: Name,
    pub device_id: DeviceId,
    /// The certificate has expired by the server's clock, or the CA that has signed it has retired:
    /// the device can only renew it.
    #[serde(default)]
    pub certificate_expired: bool,
    /// How long the server keeps a session without a packet from the client, in seconds. The
    /// shorter time of both ends applies (RFC 9000 section 10.1).
    #[serde(default = "default_idle_timeout")]
    pub idle_timeout: u64,
    /// The services that the device may use.
    pub services: Vec<Service>,
    /// The server's addresses, as `host:port`, best first. They may have changed since the device
    /// enrolled.
    pub addresses: Vec<String>,
    /// Identifies the server's loopback interface. A device with the same value is on the same
    /// machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loopback: Option<String>,
    /// The key for this device's knocks from now on; absent if it has one of its own, or if all
    /// devices share one key.
    #[serde(default, rename = "door_key", skip_serializing_if = "Option::is_none")]
    pub knock_key: Option<KnockKey>,
    /// What the server's clock shows, in Unix milliseconds; absent from an older server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock: Option<i64>,
    /// The epoch of the server's register, sealed for this device, which gives it back in its next
    /// greeting; absent from an older server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<String>,
}

fn default_idle_timeout() -> u64 {
    IDLE_TIMEOUT.as_secs()
}

/// What a device sends to be enrolled.
#[derive(Serialize, Deserialize)]
pub struct EnrollRequest {
    /// [`crate::invitation::Secret::token`], in base64.
    #[serde(with = "crate::secret")]
    pub token: Zeroizing<String>,
    /// A PKCS #10 request (RFC 2986), DER in base64. Only its public key counts; nothing it asks
    /// for is granted.
    pub csr: String,
    /// Whether the client can use a knock key of its own. A client that cannot is refused.
    #[serde(default)]
    pub own_knock: bool,
    /// What a code that opens a sign-in needs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sign_in: Option<SignInRequest>,
    /// How the device keeps its key, as it says. Older clients keep it in a file, and do not say so.
    #[serde(default)]
    pub key_storage: KeyStorage,
}

/// The server's answer to an [`EnrollRequest`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EnrollAnswer {
    /// The device is enrolled.
    Enrolled(Box<Enrolled>),
    /// The device is not enrolled, for this reason.
    Refused(EnrollRefusal),
    /// The person has to sign in first. Another answer follows on the same stream.
    SignIn(SignInStep),
    /// The sign-in failed.
    Failed(Box<Failure>),
}

/// What a device has to know about its server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrolled {
    /// What the server calls this device.
    pub device: Name,
    pub device_id: DeviceId,
    /// Its certificate, DER in base64.
    pub certificate: String,
    /// The CA's certificate, DER in base64.
    pub ca: String,
    /// The key for this device's knocks.
    #[serde(rename = "door_key")]
    pub knock_key: KnockKey,
    /// Where the server can be reached, as `host:port`, best first.
    pub addresses: Vec<String>,
    /// The services that the device may use.
    pub services: Vec<Service>,
    /// The TCP port of the server's relay on its loopback interface, for SSH keys that allow only
    /// port forwarding.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relay_port: Option<u16>,
}

/// What a device sends to `aditd enroll-device`, over SSH.
#[derive(Debug, Serialize, Deserialize)]
pub struct EnrollDevice {
    /// A PKCS #10 request (RFC 2986), DER in base64. Only its public key counts.
    pub csr: String,
    /// As in [`EnrollRequest`].
    #[serde(default)]
    pub own_knock: bool,
    /// As in [`EnrollRequest`].
    #[serde(default)]
    pub key_storage: KeyStorage,
}

/// What a command over SSH prints before its own output. The login shell may print something before
/// this marker.
pub const SSH_MARKER: &str = "\nadit/1 ready\n";
/// What `aditd relay` prints before [`SSH_MARKER`]. An SSH key that is restricted to `aditd relay`
/// runs it, whatever command the client asked for.
pub const SSH_RELAY: &str = "\nadit/1 relay";
/// What a command over SSH prints in place of [`SSH_MARKER`] when it fails before it has begun. An
/// [`SshFailed`] follows, framed. The same failure is on standard error, for people and for clients
/// that do not know this.
pub const SSH_FAILED: &str = "\nadit/1 failed\n";

/// Why a command over SSH failed before it began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SshFailed {
    /// The version of this message: [`SshFailed::SCHEMA`]. A later one may have more fields.
    pub schema: u32,
    /// What failed, why, and what cures it.
    pub failure: Failure,
}

impl SshFailed {
    /// The version that this program writes.
    pub const SCHEMA: u32 = 1;
}

impl From<Failure> for SshFailed {
    fn from(failure: Failure) -> Self {
        Self { schema: Self::SCHEMA, failure }
    }
}

/// Why a device was not enrolled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum EnrollRefusal {
    /// Another key has redeemed it.
    #[error("the invitation has been used already")]
    Used,
    /// It has expired, or a newer invitation replaced it.
    #[error("the invitation has expired, or a newer one has replaced it")]
    Closed,
    /// The request could not be read, or its signature is wrong.
    #[error("the server could not read this device's request")]
    BadRequest,
    /// The server's `authorize` service refused the device.
    #[error(
        "the server's own rules (`authorize`) do not allow this device; the invitation is still good"
    )]
    NotAllowed,
    /// The server's `authorize` service could not be asked.
    #[error(
        "the server could not ask its own rules (`authorize`; its log says why); the invitation is still good"
    )]
    NotAsked,
    /// The code only opens a sign-in, and none was asked for.
    #[error("this code only opens a sign-in: it enrolls no device by itself")]
    SignIn,
    /// The server's clock cannot be right.
    #[error("the server's clock is wrong; the invitation is still good")]
    Clock {
        /// The time that it shows, in Unix seconds.
        shows: i64,
    },
    /// The server could not store the device: disk full, register damaged.
    #[error(
        "the server could not store the new device (its log says why); the invitation is still good"
    )]
    ServerFailed,
}

/// What the server says after its hello, on the same stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Notice {
    /// An answer to one or more probes. The client's acknowledgement of it lets the server detect
    /// lost packets.
    Here,
    /// The server takes no new streams; open streams run to their end.
    Draining,
    /// Another process serves the server's new sessions from now on. The client begins a session
    /// there, at once and on the same path, and then ends the stream of its probes here; open
    /// streams run to their end here.
    Replaced,
    /// There is a newer CA than that of the device's certificate: the client renews it now. Sent only
    /// to clients that can take over a new CA.
    Renew,
}

/// The answer to [`StreamHead::Queue`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueAnswer {
    /// How many requests of this device wait.
    pub waiting: u64,
    /// The first of them, at most [`QueueAnswer::MOST_PLACES`], in the order of their turns.
    pub places: Vec<QueuePlace>,
}

impl QueueAnswer {
    /// How many places are told.
    pub const MOST_PLACES: usize = 64;
}

/// The place of a request in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueuePlace {
    /// 1 for the request that gets the next turn, whichever device has sent it.
    pub position: u64,
    /// How long it has waited, in milliseconds.
    pub waited_ms: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_as_it_is_written_and_any_part_of_it_is_incomplete() {
        let forward = StreamHead::Forward("ollama".parse().expect("a name"));
        for head in
            [forward, StreamHead::Renew, StreamHead::Doctor, StreamHead::Queue, StreamHead::Stored]
        {
            let mut bytes = head.encode();
            let len = bytes.len();
            for cut in 0..len {
                assert_eq!(StreamHead::decode(&bytes[..cut]), Ok(None), "cut at {cut}");
            }
            bytes.extend_from_slice(b"GET / HTTP/1.1\r\n");
            assert_eq!(StreamHead::decode(&bytes), Ok(Some((head, len))));
        }
    }

    #[test]
    fn heads_of_another_kind_length_or_alphabet_are_refused() {
        for bad in [
            &b"\x00\x00"[..],
            b"GET / HTTP/1.1",
            b"\x01\x00",
            b"\x01\x40",
            b"\x02\x01x",
            b"\x03\x01x",
            b"\x04\x01x",
            b"\x05\x01x",
            b"\x06\x00",
            b"\x01\x02a/",
            b"\xff\xff",
        ] {
            assert_eq!(StreamHead::decode(bad), Err(BadHead), "{bad:?}");
        }
    }
}
