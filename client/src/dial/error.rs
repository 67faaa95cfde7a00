//! Why there is no connection to the server, and what cures that.

use std::{io, sync::Arc};

use proto::{
    clock::shown,
    wire::{Code, Revocation},
};
use quinn::ConnectionError;

use super::{
    clocks::{BothTimes, Clocks},
    kernel_error::KernelError,
};
use crate::{device_key::KeyError, profile::Profile};

// The TLS alerts (RFC 8446 section 6) that have a message of their own.
const BAD_CERTIFICATE: u64 = 42;
const CERTIFICATE_REVOKED: u64 = 44;
const CERTIFICATE_EXPIRED: u64 = 45;
const CERTIFICATE_UNKNOWN: u64 = 46;
const UNKNOWN_CA: u64 = 48;
const DECRYPT_ERROR: u64 = 51;
const CERTIFICATE_REQUIRED: u64 = 116;
const NO_APPLICATION_PROTOCOL: u64 = 120;

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
    /// The device's key cannot be used.
    #[error("{0}")]
    Key(KeyError),
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

/// Who connects next, when what is wrong has been cured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NextAttempt {
    /// The running process, by itself.
    Automatic,
    /// A person, by `adit up`: no process is left that would.
    UpCommand,
    /// A person, by the command that has failed.
    SameCommand,
}

impl DialError {
    /// How to cure it. The commands can be typed as they are on this device.
    pub(crate) fn hint(&self, profile: &Profile, next: NextAttempt) -> Option<String> {
        // Its name is still that of the enrolled device.
        let device = &profile.enrolled.device;
        let frees = ["revoke", "forget"].map(|verb| format!("aditd device {verb} {device}"));
        let again = again(profile, &frees, "");
        Some(match self {
            Self::Revoked(revocation) => {
                let cure = revocation.cure(device.as_str());
                let restored = match next {
                    NextAttempt::Automatic => {
                        format!("{cure}; this device connects by itself then, within a minute")
                    }
                    NextAttempt::UpCommand => {
                        format!("{cure}, then `adit up{}` here", profile.profile_dir.argument())
                    }
                    NextAttempt::SameCommand => {
                        format!("{cure}, then run the same command again here")
                    }
                };
                if revocation.user.is_some() {
                    return Some(restored);
                }
                let forget = format!("aditd device forget {device}");
                format!("{restored}; or, as a new device: {}", self::again(profile, &[forget], ""))
            }
            Self::Refused(Code::SignedOut) => {
                format!("sign in again: `adit enroll --sso{}`", profile.profile_dir.flag())
            }
            Self::WrongServer(_) => {
                format!(
                    "if the server was reinstalled: {}; if not, do not trust that address",
                    self::again(profile, &[], "")
                )
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
            Self::Refused(Code::KeyInFile) => {
                let key = " --key 'pkcs11:token=LABEL'";
                format!(
                    "enroll it again with a new key, in a token or with `--key tpm` in a TPM: {}",
                    self::again(profile, &frees, key)
                )
            }
            Self::LeadsBack(_) => {
                let argument = profile.profile_dir.argument();
                let down = match next {
                    NextAttempt::UpCommand => String::new(),
                    _ => format!("`adit down{argument}`, then "),
                };
                format!("choose another port: {down}`adit up{argument} --listen localhost:11500`")
            }
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
            Self::Key(why) => why.hint(),
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
        ) || matches!(self, Self::Key(why) if why.is_lasting())
    }

    /// Before the handshake is complete, anybody on the path can forge an error, so a refusal is
    /// not believed.
    pub(super) fn unproved(self) -> Self {
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

/// How to enroll this device again. `adit up` must be stopped first, because it would go on with
/// the old identity. `first` are commands that have to be run on the server before, `flags` are more
/// ones of `adit enroll`.
fn again(profile: &Profile, first: &[String], flags: &str) -> String {
    let (device, name) = (&profile.enrolled.device, profile.profile_dir.flag());
    let argument = profile.profile_dir.argument();
    let (invite, server) = match &profile.ssh {
        Some(route) => (None, format!(" --device {device} {route}")),
        None => (Some(format!("aditd invite {device}")), String::new()),
    };
    let there: Vec<_> =
        first.iter().cloned().chain(invite).map(|command| format!("`{command}`")).collect();
    let there = match there.join(" and ") {
        none if none.is_empty() => none,
        commands => format!("run {commands} on the server; then "),
    };
    format!(
        "{there}run `adit down{argument}` and `adit enroll --replace{name}{flags}{server}` here"
    )
}
