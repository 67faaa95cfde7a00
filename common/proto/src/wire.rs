//! What is said on the wire, and nothing about how: ALPN names, the head of a stream, codes, and
//! the messages of both ends.
//!
//! The version is the ALPN name (RFC 7301): a change that an older peer could not understand gets a
//! new one.

mod code;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    failure::Failure,
    identity::{DeviceId, Name},
    knock::KnockKey,
};

pub use code::Code;

/// The longest message that either end accepts, in bytes.
pub const MAX_LEN: usize = 64 * 1024;
/// Each end proves itself alive this often.
pub const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// How long a silent peer keeps its session, unless told otherwise: a sleep or an outage shorter
/// than this loses nothing.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(30 * 60);
/// ALPN of the tunnel: a client certificate is required.
pub const ALPN_TUNNEL: &[u8] = b"adit/1";
/// ALPN of enrollment: no client certificate, and nothing but enrollment can be reached.
pub const ALPN_ENROLL: &[u8] = b"adit-enroll/1";
/// The DNS name in every server certificate. It is private, so that a box may change its address
/// and its public name.
pub const SERVER_NAME: &str = "server.adit.internal";
/// The service that a client asks for when nobody says otherwise.
pub const DEFAULT_SERVICE: &str = "ollama";
/// Where Ollama listens, and where the client listens in its place.
pub const OLLAMA_PORT: u16 = 11434;
/// The UDP port of `aditd`.
pub const ADITD_PORT: u16 = 11435;

/// The first bytes of a stream that a client opens: `kind (1) ‖ length (1) ‖ name`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StreamHead {
    /// Forward what follows to the named service.
    Forward(Name),
    /// A new certificate for the key of this connection, please: a [`RenewAnswer`] comes back.
    Renew,
}

impl StreamHead {
    /// The longest head, in bytes.
    pub const MAX_LEN: usize = 2 + 63;
    const FORWARD: u8 = 1;
    const RENEW: u8 = 2;

    /// The head as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let (kind, name) = match self {
            Self::Forward(name) => (Self::FORWARD, name.as_str()),
            Self::Renew => (Self::RENEW, ""),
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
        if !matches!((*kind, *len), (Self::FORWARD, 1..=63) | (Self::RENEW, 0)) {
            return Err(BadHead);
        }
        let Some(name) = rest.get(..usize::from(*len)) else {
            return Ok(None);
        };
        let head = if *kind == Self::RENEW {
            Self::Renew
        } else {
            Self::Forward(
                std::str::from_utf8(name).ok().and_then(|n| n.parse().ok()).ok_or(BadHead)?,
            )
        };
        Ok(Some((head, 2 + usize::from(*len))))
    }
}

/// The first bytes of a stream are no head of this version.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the stream's first bytes name no service")]
pub struct BadHead;

/// What the bytes of a service are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServiceKind {
    /// HTTP/1.x, as Ollama speaks it: failures can be told in HTTP.
    Http,
    /// Anything else.
    Tcp,
}

/// A service that the server offers to this device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// What streams call it.
    pub name: Name,
    /// What its bytes are.
    pub kind: ServiceKind,
    /// Its port on the server's loopback: a client on that same machine must not listen there, or
    /// it would call itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

/// The client's first words on the connection that it has chosen, sent with the end of the
/// handshake. Without them there is no session: of several attempts side by side only one becomes
/// one. The stream stays open: single bytes without a meaning follow, as probes, and are answered
/// with [`Notice::Here`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Greeting {
    /// Version of `adit`.
    pub version: String,
}

/// The server's first words on every tunnel: it has judged the certificate and found it good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Version of `aditd`.
    pub version: String,
    /// What the server calls this device.
    pub device: Name,
    /// The device's id.
    pub device_id: DeviceId,
    /// Its certificate is past its end by the server's clock: it can be renewed, and nothing else.
    #[serde(default)]
    pub certificate_expired: bool,
    /// For how long the server keeps a session through silence, in seconds. The shorter time of
    /// both ends holds (RFC 9000 section 10.1).
    #[serde(default = "default_idle_timeout")]
    pub idle_timeout: u64,
    /// What it may use.
    pub services: Vec<Service>,
    /// Where else the server can be reached, as `host:port`, best first; may have changed since
    /// enrolling.
    pub addresses: Vec<String>,
    /// Which loopback interface the server is on: a device that says the same is on its machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loopback: Option<String>,
    /// What this device knocks with from now on; absent if all devices have one key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub door_key: Option<KnockKey>,
}

fn default_idle_timeout() -> u64 {
    IDLE_TIMEOUT.as_secs()
}

/// What a device sends to be enrolled.
#[derive(Serialize, Deserialize)]
pub struct EnrollRequest {
    /// [`crate::invitation::Secret::token`], in base64.
    pub token: String,
    /// A PKCS #10 request (RFC 2986), DER in base64. Only its public key counts; nothing it asks
    /// for is granted.
    pub csr: String,
    /// It can knock with a key of its own. A client that cannot is refused.
    #[serde(default)]
    pub own_knock: bool,
}

/// The server's answer to an [`EnrollRequest`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EnrollAnswer {
    /// The device is in.
    Enrolled(Box<Enrolled>),
    /// It is not, and why.
    Refused(EnrollRefusal),
}

/// All that a device has to know about its server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrolled {
    /// What the server calls this device.
    pub device: Name,
    /// Its id.
    pub device_id: DeviceId,
    /// Its certificate, DER in base64.
    pub certificate: String,
    /// The CA's certificate, DER in base64.
    pub ca: String,
    /// What this device knocks with.
    pub door_key: KnockKey,
    /// Where the server can be reached, as `host:port`, best first.
    pub addresses: Vec<String>,
    /// What the device may use.
    pub services: Vec<Service>,
    /// The TCP port of the server's relay on its own loopback, for SSH keys that may only forward.
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
}

/// What a command over SSH prints before anything of ours: what comes earlier is a login shell's.
pub const SSH_MARKER: &str = "\nadit/1 ready\n";
/// What `aditd relay` prints before [`SSH_MARKER`]: a key that is limited to it runs it whatever it
/// is asked for.
pub const SSH_RELAY: &str = "\nadit/1 relay";
/// What a command over SSH prints in place of [`SSH_MARKER`] when it fails before it has begun. An
/// [`SshFailed`] follows, framed. The same failure is on standard error, for people and for clients
/// that do not know this.
pub const SSH_FAILED: &str = "\nadit/1 failed\n";

/// Why a command over SSH has done nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SshFailed {
    /// The version of this message: [`SshFailed::SCHEMA`]. A later one may have more fields.
    pub schema: u32,
    /// What failed, why, and what cures it.
    pub failure: Failure,
}

impl SshFailed {
    /// The version that is written.
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
    /// Redeemed before, by another key.
    #[error("the invitation has been used already")]
    Used,
    /// Too late, or withdrawn by a newer one.
    #[error("the invitation has expired, or a newer one has taken its place")]
    Closed,
    /// The request could not be read, or its signature is wrong.
    #[error("the server could not read this device's request")]
    BadRequest,
    /// The server's owner has other rules besides, and they say no.
    #[error(
        "the server's own rules (`authorize`) do not allow this device; the invitation is still good"
    )]
    NotAllowed,
    /// Those rules could not be asked.
    #[error(
        "the server could not ask its own rules (`authorize`; its log says why); the invitation is still good"
    )]
    NotAsked,
    /// The server's clock cannot be right.
    #[error("the server's clock is wrong; the invitation is still good")]
    Clock {
        /// What it shows, in Unix seconds.
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
    /// An answer to one or more probes. Its acknowledgement shows the server what it has lost.
    Here,
    /// It takes no more streams: those that run go on to their end.
    Draining,
}

/// The answer to [`StreamHead::Renew`].
#[derive(Debug, Serialize, Deserialize)]
pub struct RenewAnswer {
    /// The new certificate, DER in base64.
    pub certificate: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_as_it_is_written_and_any_part_of_it_is_incomplete() {
        for head in [StreamHead::Forward("ollama".parse().expect("a name")), StreamHead::Renew] {
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
            b"\x01\x02a/",
            b"\xff\xff",
        ] {
            assert_eq!(StreamHead::decode(bad), Err(BadHead), "{bad:?}");
        }
    }
}
