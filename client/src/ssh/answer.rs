//! Reads the beginning of the output of an `aditd` command over SSH: skips the output of the login
//! shell, and reads a failure as data.

use std::io;

use common::{machine::report::Failure, transport::frame};
use proto::{
    doctor::Report,
    wire::{Enrolled, SSH_FAILED, SSH_MARKER, SSH_RELAY, SshFailed},
};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::{SshError, SshTarget};

/// The most bytes that a login shell may print before the marker.
const NOISE: usize = 64 * 1024;

/// Why a command over SSH has not begun.
#[derive(Debug)]
pub(super) enum NotBegun {
    /// The relay has answered, although another command was requested: the key is restricted to the
    /// relay.
    OnlyRelays,
    /// aditd has sent a failure.
    Refused(Failure),
    /// The command ended, or its output is not that of aditd.
    Ended(io::Error),
}

impl NotBegun {
    /// The error for people, if aditd has answered; otherwise how the command's output ended.
    pub(super) fn told(self, target: &SshTarget) -> Result<SshError, io::Error> {
        let to = target.to_string();
        match self {
            Self::OnlyRelays => Ok(SshError::OnlyRelays(to)),
            Self::Refused(failure) => Ok(SshError::Refused { to, failure }),
            Self::Ended(error) => Err(error),
        }
    }
}

/// Reads the output up to the relay's marker, and no byte more.
pub(super) async fn relay(from: &mut (impl AsyncRead + Unpin)) -> Result<(), NotBegun> {
    beginning(from).await.map(drop)
}

/// Reads the answer of `aditd enroll-device`.
pub(super) async fn certificate(from: &mut (impl AsyncRead + Unpin)) -> Result<Enrolled, NotBegun> {
    if beginning(from).await?.ends_with(SSH_RELAY.as_bytes()) {
        return Err(NotBegun::OnlyRelays);
    }
    frame::read(from).await.map_err(NotBegun::Ended)
}

/// Reads the answer of `aditd doctor`.
pub(super) async fn report(from: &mut (impl AsyncRead + Unpin)) -> Result<Report, NotBegun> {
    if beginning(from).await?.ends_with(SSH_RELAY.as_bytes()) {
        return Err(NotBegun::OnlyRelays);
    }
    frame::read(from).await.map_err(NotBegun::Ended)
}

/// Reads up to the marker, and returns the bytes before it.
async fn beginning(from: &mut (impl AsyncRead + Unpin)) -> Result<Vec<u8>, NotBegun> {
    let mut read = Vec::new();
    // The marker may be the first output.
    while !read.ends_with(SSH_MARKER.as_bytes()) {
        if read.ends_with(SSH_FAILED.as_bytes()) {
            let SshFailed { failure, .. } = frame::read(from).await.map_err(NotBegun::Ended)?;
            return Err(NotBegun::Refused(failure));
        }
        if read.len() > NOISE {
            let what = "the output is not that of aditd";
            return Err(NotBegun::Ended(io::Error::new(io::ErrorKind::InvalidData, what)));
        }
        read.push(from.read_u8().await.map_err(NotBegun::Ended)?);
    }
    read.truncate(read.len() - SSH_MARKER.len());
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_a_login_shell_says_is_passed_over_and_its_endless_talk_is_not() {
        let mut stream = &b"Welcome!\nLast login: now\n\nadit/1 ready\nrest"[..];
        relay(&mut stream).await.expect("found");
        assert_eq!(stream, b"rest");
        let endless = relay(&mut &vec![b'x'; 100_000][..]).await;
        assert!(matches!(endless, Err(NotBegun::Ended(_))), "{endless:?}");
        let limited = format!("Welcome!\n{SSH_RELAY}{SSH_MARKER}");
        let limited = certificate(&mut limited.as_bytes()).await;
        assert!(matches!(limited, Err(NotBegun::OnlyRelays)), "{limited:?}");
    }

    #[tokio::test]
    async fn a_failure_arrives_as_it_was_sent() {
        let sent = Failure::new("no room").source("a crowd").hint("wait").hint("or go");
        let mut stream = format!("Welcome!\n{SSH_FAILED}").into_bytes();
        frame::write(&mut stream, &SshFailed::from(sent.clone())).await.expect("framed");
        for cut in 0..stream.len() {
            let part = relay(&mut &stream[..cut]).await;
            assert!(matches!(part, Err(NotBegun::Ended(_))), "cut at {cut}: {part:?}");
        }
        let Err(NotBegun::Refused(failure)) = relay(&mut &stream[..]).await else {
            panic!("it has failed")
        };
        assert_eq!(failure, sent);
    }
}
