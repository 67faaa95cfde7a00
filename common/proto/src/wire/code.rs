//! Why a stream or a connection was ended: a number on the wire, a sentence for people.

/// Why a stream or a connection was ended: the application error codes of RFC 9000 section 20.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Code {
    /// Ended normally.
    Done = 0x00,
    /// The device was revoked, or the server does not know it.
    Revoked = 0x01,
    /// The same device opened another connection.
    Superseded = 0x02,
    /// The server is stopping.
    ShuttingDown = 0x03,
    /// The peer broke the protocol.
    Protocol = 0x04,
    /// The certificate has expired and may only be used to renew it.
    Expired = 0x05,
    /// The server's clock cannot be right, so it can judge no certificate. The reason phrase of the
    /// close is the time that the clock shows, in Unix seconds as decimal digits.
    ServerClock = 0x06,
    /// The certificate is not valid by the server's clock, and it expired too long ago to renew
    /// itself, or is not valid yet. The reason phrase is as that of [`Code::ServerClock`].
    OutOfTime = 0x07,
    /// The register was restored, and the owner of the server has not confirmed this device yet.
    Held = 0x08,
    /// The sign-in with which the device enrolled has ended at the provider.
    SignedOut = 0x09,
    /// The CA that the device knows has retired, and it can get no new certificate any more: that was
    /// too long ago, or it is a version that cannot take over a new CA.
    CaRetired = 0x0a,
    /// The TCP connection behind this stream was aborted (RST).
    Aborted = 0x10,
    /// Nothing listens at the service's address.
    UpstreamRefused = 0x11,
    /// The service's address did not answer in time.
    UpstreamSilent = 0x12,
    /// The server has no service of that name.
    UnknownService = 0x13,
    /// The server is out of a resource (file descriptors, memory).
    Busy = 0x14,
    /// The connection to the other end of the tunnel was lost.
    Cut = 0x15,
    /// The device has as many streams open as it may.
    TooManyStreams = 0x16,
    /// The device's role does not allow this any more.
    Denied = 0x17,
    /// The provider of the sign-in cannot be asked now, so the certificate is not renewed.
    ProviderDown = 0x18,
    /// The role of the device wants its key in hardware, and the key is in a file: its certificate is not
    /// renewed.
    KeyInFile = 0x19,
}

impl Code {
    const ALL: [Self; 21] = [
        Self::Done,
        Self::Revoked,
        Self::Superseded,
        Self::ShuttingDown,
        Self::Protocol,
        Self::Expired,
        Self::ServerClock,
        Self::OutOfTime,
        Self::Held,
        Self::SignedOut,
        Self::CaRetired,
        Self::Aborted,
        Self::UpstreamRefused,
        Self::UpstreamSilent,
        Self::UnknownService,
        Self::Busy,
        Self::Cut,
        Self::TooManyStreams,
        Self::Denied,
        Self::ProviderDown,
        Self::KeyInFile,
    ];

    /// The code that `number` stands for, if this version knows it.
    pub fn from_number(number: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|c| u64::from(*c as u32) == number)
    }

    /// In one word, for logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Revoked => "revoked",
            Self::Superseded => "superseded",
            Self::ShuttingDown => "shutting_down",
            Self::Protocol => "protocol",
            Self::Expired => "expired",
            Self::ServerClock => "server_clock",
            Self::OutOfTime => "out_of_time",
            Self::Held => "held",
            Self::SignedOut => "signed_out",
            Self::CaRetired => "ca_retired",
            Self::Aborted => "aborted",
            Self::UpstreamRefused => "upstream_refused",
            Self::UpstreamSilent => "upstream_silent",
            Self::UnknownService => "unknown_service",
            Self::Busy => "busy",
            Self::Cut => "cut",
            Self::TooManyStreams => "too_many_streams",
            Self::Denied => "denied",
            Self::ProviderDown => "provider_down",
            Self::KeyInFile => "key_in_file",
        }
    }

    /// What happened and what to do, in words for the person at the client.
    pub fn sentence(self) -> String {
        match self.cure() {
            Some(cure) => format!("{}: {cure}", self.what()),
            None => self.what().to_owned(),
        }
    }

    /// What happened.
    pub fn what(self) -> &'static str {
        self.what_and_cure().0
    }

    /// What the person at the client can do, or what happens next without them.
    pub fn cure(self) -> Option<&'static str> {
        self.what_and_cure().1
    }

    fn what_and_cure(self) -> (&'static str, Option<&'static str>) {
        match self {
            Self::Done => ("the server ended the connection", None),
            Self::Revoked => (
                "this device was revoked",
                Some("to let it in again: run `aditd device restore NAME` on the server"),
            ),
            Self::Superseded => (
                "another `adit up` connected with this device's certificate",
                Some("give every machine its own certificate: `aditd invite NAME`"),
            ),
            Self::ShuttingDown => {
                ("aditd is stopping on the server", Some("adit connects again when aditd is back"))
            }
            Self::Protocol => (
                "adit and aditd do not understand each other",
                Some("install the same version of both"),
            ),
            Self::Expired => ("this device's certificate has expired", Some("it is being renewed")),
            Self::ServerClock => (
                "the server's clock is wrong",
                Some("set it on the server: `sudo timedatectl set-ntp true`"),
            ),
            Self::OutOfTime => (
                "this device's certificate is not valid by the server's clock",
                Some("run `timedatectl` on both computers"),
            ),
            Self::Held => (
                "the server's register was restored from a backup, and this device is not confirmed yet",
                Some("run `aditd device confirm NAME` on the server; adit connects then by itself"),
            ),
            Self::SignedOut => (
                "this device's sign-in has ended at the provider",
                Some("sign in again: run `adit enroll --sso`"),
            ),
            Self::CaRetired => (
                "the server has a new certificate authority, and this device missed the change for too long",
                Some(
                    "enroll it again, with the newest adit: `aditd device revoke NAME`, `aditd device forget NAME` and `aditd invite NAME` on the server, then `adit enroll --replace` here",
                ),
            ),
            Self::Aborted => ("the service on the server aborted the connection", None),
            Self::UpstreamRefused => (
                "Ollama is not running on the server",
                Some("start it there with `ollama serve` (or `systemctl start ollama`)"),
            ),
            Self::UpstreamSilent => (
                "Ollama on the server does not answer",
                Some("check there with `curl localhost:11434`"),
            ),
            Self::UnknownService => (
                "the server does not offer this service",
                Some("look at `upstream` in its configuration"),
            ),
            Self::Busy => {
                ("the server is out of resources", Some("see its log: `journalctl -u aditd`"))
            }
            Self::TooManyStreams => {
                ("too many requests of this device are open at once", Some("wait for some to end"))
            }
            Self::Denied => (
                "this device may not do that any more",
                Some("ask the owner of the server for another role"),
            ),
            Self::ProviderDown => (
                "the server cannot ask the provider of the sign-in whether this device may go on",
                Some("adit tries again by itself; `aditd status` on the server says why"),
            ),
            Self::KeyInFile => (
                "this device's key is in a file, and its role wants a key in hardware",
                Some(
                    "enroll it again with a new key: `aditd device revoke NAME`, `aditd device forget NAME` and `aditd invite NAME` on the server, then `adit enroll --replace --key 'pkcs11:token=LABEL'` here",
                ),
            ),
            Self::Cut => ("the connection to the server was lost in the middle", None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_found_by_its_number_and_has_a_sentence() {
        for code in Code::ALL {
            assert_eq!(Code::from_number((code as u32).into()), Some(code));
            assert!(code.sentence().len() > 20);
        }
        assert_eq!(Code::from_number(0x99), None);
    }
}
