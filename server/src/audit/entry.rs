//! The lines of the audit log. None of them has a field for a key, prompt, answer or query.

mod line;
mod request;
mod subject;

use std::net::SocketAddr;

use proto::{
    identity::{Name, UserName},
    rotation::CaNumber,
    wire::Reason,
};
use serde::Serialize;

use self::request::RequestEntry;
pub(crate) use self::{
    line::{escaped, line, ms, timestamp},
    subject::{EnrolledWith, SessionPeer, Subject},
};
use crate::record::{RequestRecord, charge::Charge};

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
    /// A device was invited, or a code was made that opens sign-ins.
    Invite {
        device: Name,
        /// The code opens sign-ins, and has this name.
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        sso: bool,
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
    /// The provider has said that the sign-in of a device has ended, and why.
    SignedOut {
        #[serde(flatten)]
        device: Subject,
        why: String,
    },
    /// At a renewal, the provider has told another user's name or other groups.
    SignedInAs {
        #[serde(flatten)]
        device: Subject,
        /// The role that it has now.
        role: Name,
        /// The role before.
        role_before: Name,
        /// The user's name before.
        #[serde(skip_serializing_if = "Option::is_none")]
        user_before: Option<UserName>,
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
    /// There is a new certificate authority.
    CaRotate {
        /// Its number.
        ca: CaNumber,
        /// The user of this machine who made it.
        uid: u32,
    },
    /// A certificate authority that was replaced has ended.
    CaRetire {
        /// Its number.
        ca: CaNumber,
        /// How many devices had no newer one.
        without: usize,
        /// The user of this machine who ended it.
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

/// How a device was enrolled.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum EnrolledBy {
    /// With an invitation, from this address.
    Invitation(SocketAddr),
    /// Over SSH, by this user of this machine.
    Ssh(u32),
    /// With a sign-in at the provider, from this address.
    Sso(SocketAddr),
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
        Self::Request(Box::new(RequestEntry::new(record, charge)))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::{Duration, SystemTime};

    use proto::{identity::DeviceId, ollama::route::RouteClass};
    use serde_json::Value;

    use super::*;
    use crate::record::{Asker, CallerKind, CarrierKind, End, Refusal, TokenFacts};

    pub(crate) fn record(end: End) -> RequestRecord {
        RequestRecord {
            asker: Asker {
                has_signed_in: false,
                id: DeviceId::generate(),
                name: "laptop".parse().expect("a name"),
                uid: None,
                kind: CallerKind::Device,
                user: None,
                remote: "10.0.0.7:4000".parse().expect("an address"),
                carrier: CarrierKind::Udp,
            },
            service: "ollama".parse().expect("a name"),
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
                payer: None,
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
