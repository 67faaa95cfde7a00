//! The lines of the audit log. None of them has a field for a key, prompt, answer or query.

use std::{
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use proto::{
    human,
    identity::{DeviceId, Name, UserName},
    wire::Reason,
};
use serde::Serialize;
use time::{OffsetDateTime, macros::format_description};

use crate::record::{Asker, CallerKind, End, RequestRecord, charge::Charge};

/// The longest path or model that is written whole, in characters. An application may send a longer
/// one.
const LONGEST: usize = 256;

#[derive(Debug, Clone, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum Event {
    /// A request has ended.
    Request(Box<RequestEntry>),
    /// A device has connected: its session begins.
    Connect {
        /// Which.
        #[serde(flatten)]
        who: SessionPeer,
    },
    /// A second connection of the same device has ended the first: the device's `adit` was
    /// restarted, or its certificate is in use on two machines.
    TakenOver {
        /// The device, and the address of the second connection.
        #[serde(flatten)]
        who: SessionPeer,
        /// The address of the first connection.
        before: SocketAddr,
        /// Whether packets of the first connection had arrived until just before.
        was_alive: bool,
    },
    /// A session has ended.
    Disconnect {
        /// The device, and the address of its last packets.
        #[serde(flatten)]
        who: SessionPeer,
        why: &'static str,
        /// Bytes from the device, on all streams.
        bytes_in: u64,
        /// Bytes to the device, on all streams.
        bytes_out: u64,
        /// Length of the session, in milliseconds.
        total_ms: f64,
    },
    /// A stream to a `tcp` service has ended.
    Stream {
        #[serde(flatten)]
        who: SessionPeer,
        service: Name,
        /// Bytes from the device.
        bytes_in: u64,
        /// Bytes to the device.
        bytes_out: u64,
        /// Length of the stream, in milliseconds.
        total_ms: f64,
        end: &'static str,
        /// Why the stream was refused or cut.
        #[serde(skip_serializing_if = "Option::is_none")]
        why: Option<&'static str>,
    },
    /// A device was invited.
    Invite {
        device: Name,
        role: Name,
        /// The person to whom the device will belong.
        #[serde(skip_serializing_if = "Option::is_none")]
        user: Option<UserName>,
        /// When the invitation expires, in Unix time.
        expires: i64,
        /// The user of this machine who invited it.
        uid: u32,
    },
    /// An invitation was withdrawn before it was used.
    Withdraw {
        device: String,
        /// The user of this machine who withdrew it.
        uid: u32,
    },
    /// A device was enrolled.
    Enroll {
        #[serde(flatten)]
        device: Subject,
        by: EnrolledBy,
    },
    /// An enrollment was refused.
    EnrollRefused {
        /// The name that was asked for, if it is known.
        #[serde(skip_serializing_if = "Option::is_none")]
        device: Option<Name>,
        by: EnrolledBy,
        why: String,
    },
    /// The name of a forgotten device was freed: any user may use it.
    FreeName {
        device: Name,
        /// The user who had enrolled that device over SSH.
        #[serde(skip_serializing_if = "Option::is_none")]
        device_uid: Option<u32>,
        /// The user of this machine who freed it.
        uid: u32,
    },
    /// The access of a device or a key was revoked.
    Revoke {
        #[serde(flatten)]
        device: Subject,
        /// The owner's words.
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<Reason>,
        /// The user of this machine who revoked it.
        uid: u32,
    },
    /// A revoked device is let in again.
    Restore {
        #[serde(flatten)]
        device: Subject,
        /// The user of this machine who let it in.
        uid: u32,
    },
    /// A device has proved that revocations are lost: the register was put back to an older state.
    RevocationsLost {
        /// How many at least.
        lost: u64,
    },
    /// A device that was held back after a restore is let in.
    Confirm {
        #[serde(flatten)]
        device: Subject,
        /// The user of this machine who confirmed it.
        uid: u32,
    },
    /// A device has another name.
    Rename {
        /// The device, with its new name.
        #[serde(flatten)]
        device: Subject,
        /// The old name.
        before: Name,
        /// The user of this machine who renamed it.
        uid: u32,
    },
    /// A revoked device was removed from the register.
    Forget {
        #[serde(flatten)]
        device: Subject,
        /// The user of this machine who removed it.
        uid: u32,
    },
    /// The role of a device or a key was changed.
    Role {
        #[serde(flatten)]
        device: Subject,
        /// The new role.
        role: Name,
        /// The old role.
        before: Name,
        /// The user of this machine who changed it.
        uid: u32,
    },
    /// The list of models of a device or a key was changed.
    Models {
        #[serde(flatten)]
        device: Subject,
        /// The models that it may use now; `None` if its role decides.
        models: Option<Vec<String>>,
        /// The user of this machine who changed it.
        uid: u32,
    },
    /// A device or a key belongs to another user.
    Assign {
        /// With its new user, if it has one.
        #[serde(flatten)]
        device: Subject,
        /// The user before.
        before: Option<UserName>,
        /// The user of this machine who changed it.
        uid: u32,
    },
    /// The access of a user, with all devices and keys, was revoked.
    UserRevoke {
        user: UserName,
        /// The owner's words.
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<Reason>,
        /// The user of this machine who revoked it.
        uid: u32,
    },
    /// A revoked user is let in again.
    UserRestore {
        user: UserName,
        /// The user of this machine who let it in.
        uid: u32,
    },
    /// All devices and keys of a user have another role.
    UserRole {
        user: UserName,
        /// The new role.
        role: Name,
        /// The role that was given to the user before, if one was.
        before: Option<Name>,
        /// The user of this machine who changed it.
        uid: u32,
    },
    /// A key was made.
    KeyCreate {
        #[serde(flatten)]
        key: Subject,
        role: Name,
        /// The beginning of its secret, by which lists name it.
        prefix: String,
        /// When it ends, in Unix time; `None` for never.
        expires: Option<i64>,
        /// The user of this machine who made it.
        uid: u32,
    },
    /// A key was given a new secret.
    KeyRotate {
        #[serde(flatten)]
        key: Subject,
        /// The beginning of the new secret.
        prefix: String,
        /// When the new secret ends, in Unix time; `None` for never.
        expires: Option<i64>,
        /// How long the old secret is still valid, in seconds.
        overlap: u64,
        /// The user of this machine who did it.
        uid: u32,
    },
    /// A request over HTTPS brought a key that is not valid.
    KeyRefused {
        /// The beginning of the key, if it looked like one.
        #[serde(skip_serializing_if = "Option::is_none")]
        prefix: Option<String>,
        remote: SocketAddr,
    },
    /// A token was not accepted.
    TokenRefused {
        /// Why: what completes a sentence that begins with "the token".
        why: String,
        remote: SocketAddr,
    },
    /// The configuration was read again.
    Reload {
        /// Why it was refused, if it was.
        #[serde(skip_serializing_if = "Option::is_none")]
        refused: Option<String>,
    },
    /// The server started.
    Start { version: &'static str, pid: u32 },
    /// The server stopped in an orderly way.
    Stop { pid: u32 },
    /// Lines before this one could not be written.
    Lost { lines: u64 },
}

/// A device or a key, as each line about it names it.
#[derive(Debug, Clone, Serialize)]
pub struct Subject {
    pub device: Name,
    pub device_id: DeviceId,
    /// The user of this machine who enrolled it over SSH.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_uid: Option<u32>,
    /// It is a key, not a device.
    #[serde(rename = "key", skip_serializing_if = "std::ops::Not::not")]
    pub is_key: bool,
    /// It is a person with a token, not a device.
    #[serde(rename = "token", skip_serializing_if = "std::ops::Not::not")]
    pub is_token: bool,
    /// The person to whom it belongs, if that is known, or whose token it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<UserName>,
}

impl From<&Asker> for Subject {
    fn from(asker: &Asker) -> Self {
        Self {
            device: asker.name.clone(),
            device_id: asker.id,
            device_uid: asker.uid,
            is_key: asker.kind == CallerKind::Key,
            is_token: asker.kind == CallerKind::Token,
            user: asker.user.clone(),
        }
    }
}

/// The other end of a session.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct SessionPeer {
    #[serde(flatten)]
    device: Subject,
    carrier: &'static str,
    remote: SocketAddr,
}

impl From<&Asker> for SessionPeer {
    fn from(asker: &Asker) -> Self {
        Self { device: asker.into(), carrier: asker.carrier.as_str(), remote: asker.remote }
    }
}

/// How a device was enrolled.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum EnrolledBy {
    /// With an invitation, from this address.
    Invitation(SocketAddr),
    /// Over SSH, by this user of this machine.
    Ssh(u32),
}

/// A request, as the log writes it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct RequestEntry {
    #[serde(flatten)]
    device: Subject,
    /// Its number among the requests of its process that were let pass.
    #[serde(skip_serializing_if = "Option::is_none")]
    request: Option<u64>,
    role: Name,
    carrier: &'static str,
    remote: SocketAddr,
    method: String,
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<String>,
    status: Option<u16>,
    bytes_in: u64,
    bytes_out: u64,
    queued_ms: f64,
    first_byte_ms: Option<f64>,
    total_ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens_in: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens_out: Option<u64>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    tokens_estimated: bool,
    end: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<&'static str>,
}

impl Event {
    /// Whether it is a change of the register. The running server notices those by itself, whoever
    /// makes them.
    pub(super) fn is_of_register(&self) -> bool {
        matches!(
            self,
            Self::Enroll { .. }
                | Self::Revoke { .. }
                | Self::Restore { .. }
                | Self::Confirm { .. }
                | Self::Rename { .. }
                | Self::Forget { .. }
                | Self::Role { .. }
                | Self::Models { .. }
                | Self::KeyCreate { .. }
                | Self::KeyRotate { .. }
                | Self::Assign { .. }
                | Self::UserRevoke { .. }
                | Self::UserRestore { .. }
        )
    }

    /// The line of a request that has ended, and of what it was charged.
    pub(crate) fn request(record: &RequestRecord, charge: &Charge) -> Self {
        Self::Request(Box::new(RequestEntry {
            device: (&record.asker).into(),
            request: record.number,
            role: record.role.clone(),
            carrier: record.asker.carrier.as_str(),
            remote: record.asker.remote,
            method: escaped(&record.method),
            path: escaped(&record.path),
            model: record.model.as_deref().map(escaped),
            status: record.status,
            bytes_in: record.bytes_in,
            bytes_out: record.bytes_out,
            queued_ms: ms(record.queued),
            first_byte_ms: record.first_byte.map(ms),
            total_ms: ms(record.total),
            tokens_in: charge.read,
            tokens_out: charge.written,
            tokens_estimated: charge.is_estimated,
            end: record.end.as_str(),
            why: match record.end {
                End::Refused(why) => Some(why.as_str()),
                _ => None,
            },
        }))
    }
}

/// Milliseconds, with microsecond precision.
pub(crate) fn ms(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

/// The line of an event, with its newline.
pub(crate) fn line<E: Serialize>(at: SystemTime, event: &E) -> Vec<u8> {
    #[derive(Serialize)]
    struct AuditLine<'a, E> {
        // First, so that the first bytes of a file tell its age.
        time: String,
        #[serde(flatten)]
        event: &'a E,
    }
    let mut bytes =
        serde_json::to_vec(&AuditLine { time: timestamp(at), event }).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

/// A time as RFC 3339 in UTC with milliseconds: all have the same length, so that they can be
/// compared as text.
pub(crate) fn timestamp(at: SystemTime) -> String {
    let format =
        format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
    OffsetDateTime::from(at).format(format).unwrap_or_default()
}

/// Text from an application: control characters that a terminal would obey are escaped, and the
/// length is bounded.
pub(crate) fn escaped(text: &str) -> String {
    let mut clean = String::with_capacity(text.len().min(LONGEST));
    for (i, c) in text.chars().enumerate() {
        if i == LONGEST {
            clean.push('…');
            break;
        }
        if human::misleads(c) { clean.extend(c.escape_default()) } else { clean.push(c) }
    }
    clean
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::Value;

    use super::*;
    use crate::record::{CarrierKind, Refusal, TokenFacts};
    use proto::ollama::route::RouteClass;

    pub(crate) fn record(end: End) -> RequestRecord {
        RequestRecord {
            asker: Asker {
                id: DeviceId::generate(),
                name: "laptop".parse().expect("a name"),
                uid: None,
                kind: CallerKind::Device,
                user: None,
                remote: "10.0.0.7:4000".parse().expect("an address"),
                carrier: CarrierKind::Udp,
            },
            number: None,
            role: "infer".parse().expect("a name"),
            method: "POST".into(),
            path: "/api/chat".into(),
            route: RouteClass::Generate,
            model: Some("llama3".into()),
            status: Some(200),
            bytes_in: 120,
            bytes_out: 4567,
            queued: Duration::ZERO,
            first_byte: Some(Duration::from_micros(1500)),
            total: Duration::from_millis(20),
            tokens: TokenFacts {
                told_in: Some(7),
                told_out: Some(42),
                pieces: 42,
                prompt: 9,
                is_stream: true,
                at_work: Some(Duration::from_millis(19)),
                charged: 0,
            },
            end,
        }
    }

    pub(crate) fn event(record: &RequestRecord) -> Event {
        Event::request(record, &Charge::of(record, 0.0))
    }

    fn read(event: &Event) -> Value {
        let line = line(SystemTime::UNIX_EPOCH + Duration::from_millis(1_800_000_000_123), event);
        assert_eq!(line.iter().filter(|b| **b == b'\n').count(), 1);
        serde_json::from_slice(&line).expect("JSON")
    }

    #[test]
    fn a_request_is_one_line_of_json() {
        let line = read(&event(&record(End::Refused(Refusal::Limit("at_once")))));
        let says = |name: &str| line[name].as_str().expect(name).to_owned();
        assert_eq!(
            (says("time"), says("event")),
            ("2027-01-15T08:00:00.123Z".into(), "request".into())
        );
        assert_eq!(
            (says("device"), says("role"), says("carrier")),
            ("laptop".into(), "infer".into(), "udp".into())
        );
        assert_eq!((says("end"), says("why")), ("refused".into(), "at_once".into()));
        assert_eq!((&line["first_byte_ms"], &line["total_ms"]), (&1.5.into(), &20.0.into()));
        assert_eq!((&line["tokens_in"], &line["tokens_out"]), (&7.into(), &42.into()));
        assert_eq!(line["tokens_estimated"], Value::Null, "only if it was estimated");
        let charge = Charge { is_estimated: true, ..Charge::default() };
        let line = read(&Event::request(&record(End::Cancelled), &charge));
        assert_eq!(line["tokens_estimated"], true);
    }

    #[test]
    fn what_an_application_sends_neither_breaks_the_line_nor_reaches_a_terminal() {
        let mut sent = record(End::Done);
        sent.path = "/\n{\"event\":\"revoke\"}\u{1b}[2J\u{9b}".repeat(1000).into();
        sent.model = Some("\u{1b}]0;x\u{7}\u{202e}".into());
        let line = read(&event(&sent));
        let path = line["path"].as_str().expect("a path");
        assert!(
            path.len() < 4096 && path.ends_with('…') && !path.contains(char::is_control),
            "{path}"
        );
        assert_eq!(line["model"], "\\u{1b}]0;x\\u{7}\\u{202e}");
        assert_eq!(line["event"], "request");
    }
}
