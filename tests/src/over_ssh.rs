//! The `aditd` commands that run over SSH, run as sshd runs them: a request on standard input, an
//! answer or a failure as data on standard output.

use std::{process::Stdio, sync::Arc};

use client::profile::{Profile, ProfileDir, SecretPem};
use common::{
    machine::report::{Exit, Failure},
    transport::frame,
};
use data_encoding::BASE64;
use proto::{
    device_key::KeyStorage,
    wire::{EnrollDevice, Enrolled, SSH_FAILED, SSH_MARKER, SshFailed},
};
use rcgen::KeyPair;
use tokio::{io::AsyncWriteExt, process::Command};

use crate::{credentials::csr, world::Device};

/// The result of a command over SSH.
#[derive(Debug)]
pub struct OverSsh {
    /// The answer on standard output, or the failure there.
    pub answer: Result<Vec<u8>, Failure>,
    pub code: Option<i32>,
    /// Standard error, for people.
    pub stderr: String,
}

impl OverSsh {
    /// Runs a command to its end, with these bytes on standard input.
    pub async fn run(mut command: Command, input: &[u8]) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("aditd runs");
        // The command may end without reading it.
        let _ = child.stdin.take().expect("piped").write_all(input).await;
        let out = child.wait_with_output().await.expect("ended");
        let answer = match out.stdout.strip_prefix(SSH_FAILED.as_bytes()) {
            Some(mut framed) => {
                let SshFailed { schema, failure } =
                    frame::read(&mut framed).await.expect("a framed failure");
                assert_eq!((schema, framed), (1, &b""[..]));
                Err(failure)
            }
            None => Ok(out.stdout),
        };
        let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
        Self { answer, code: out.status.code(), stderr }
    }

    /// Runs `aditd enroll-device` with a request for this key.
    pub async fn enroll(command: Command, key: &KeyPair) -> Self {
        Self::run(command, &request(key).await).await
    }

    /// The answer to a new device.
    ///
    /// # Panics
    /// If there is none.
    pub async fn enrolled(&self) -> Enrolled {
        let answer = self.answer.as_ref().unwrap_or_else(|failure| panic!("{failure}"));
        let mut framed = answer.strip_prefix(SSH_MARKER.as_bytes()).expect("the marker first");
        frame::read(&mut framed).await.expect("a certificate")
    }

    /// Asserts that the command failed with this failure, hint and exit code, and printed the same
    /// for people.
    #[track_caller]
    pub fn assert_failed(&self, what: &str, hint: &str, exit: Exit) {
        let failure = self.answer.as_ref().expect_err("it failed");
        assert_eq!(failure.what(), what);
        assert!(failure.hints().iter().any(|h| h.contains(hint)), "no `{hint}` in {failure:?}");
        assert_eq!((failure.exit_code(), self.code), (exit, Some(u8::from(exit).into())));
        assert!(self.stderr.ends_with(&format!("{failure}\n")), "{}", self.stderr);
    }
}

/// The request that a device sends to `aditd enroll-device`.
pub async fn request(key: &KeyPair) -> Vec<u8> {
    let mut framed = Vec::new();
    let csr = BASE64.encode(&csr(key));
    frame::write(
        &mut framed,
        &EnrollDevice { csr, own_knock: true, key_storage: KeyStorage::File },
    )
    .await
    .expect("framed");
    framed
}

/// Stores an enrollment as `adit enroll` does, so that `adit up` finds it.
pub fn keep(device: &Device, enrolled: Enrolled, key: &KeyPair) {
    let place = ProfileDir::new(&device.dir, "default".parse().expect("a name"));
    place.prepare().expect("a directory");
    let profile =
        Profile::new(place, enrolled, None, Arc::new(SecretPem::new(key.serialize_pem())));
    profile.save().expect("saved");
}
