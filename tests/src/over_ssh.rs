//! `aditd`'s commands over SSH, run as sshd runs them: a request on standard input, an answer or a
//! failure as data on standard output.

use std::{process::Stdio, sync::Arc};

use client::profile::{Profile, ProfileDir, SecretPem};
use common::{
    machine::report::{Exit, Failure},
    transport::frame,
};
use data_encoding::BASE64;
use proto::wire::{EnrollDevice, Enrolled, SSH_FAILED, SSH_MARKER, SshFailed};
use rcgen::KeyPair;
use tokio::{io::AsyncWriteExt, process::Command};

use crate::{credentials::csr, world::Device};

/// What a command over SSH left.
#[derive(Debug)]
pub struct OverSsh {
    /// What stands on standard output; or the failure that stands there.
    pub answer: Result<Vec<u8>, Failure>,
    /// Its exit code.
    pub code: Option<i32>,
    /// What people read.
    pub stderr: String,
}

impl OverSsh {
    /// Runs a command to its end, with these bytes on standard input.
    pub async fn run(mut command: Command, input: &[u8]) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("aditd runs");
        // It may end without reading.
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

    /// What a new device was told.
    ///
    /// # Panics
    /// If there is none.
    pub async fn enrolled(&self) -> Enrolled {
        let answer = self.answer.as_ref().unwrap_or_else(|failure| panic!("{failure}"));
        let mut framed = answer.strip_prefix(SSH_MARKER.as_bytes()).expect("the marker first");
        frame::read(&mut framed).await.expect("a certificate")
    }

    /// That it failed so, with such a cure and this exit code, and told people the same.
    #[track_caller]
    pub fn assert_failed(&self, what: &str, hint: &str, exit: Exit) {
        let failure = self.answer.as_ref().expect_err("it failed");
        assert_eq!(failure.what(), what);
        assert!(failure.hints().iter().any(|h| h.contains(hint)), "no `{hint}` in {failure:?}");
        assert_eq!((failure.exit_code(), self.code), (exit, Some(u8::from(exit).into())));
        assert!(self.stderr.ends_with(&format!("{failure}\n")), "{}", self.stderr);
    }
}

/// What a device sends to `aditd enroll-device`.
pub async fn request(key: &KeyPair) -> Vec<u8> {
    let mut framed = Vec::new();
    let csr = BASE64.encode(&csr(key));
    frame::write(&mut framed, &EnrollDevice { csr, own_knock: true }).await.expect("framed");
    framed
}

/// Keeps an enrollment as `adit enroll` keeps it, so that `adit up` finds it.
pub fn keep(device: &Device, enrolled: Enrolled, key: &KeyPair) {
    let place = ProfileDir::new(&device.dir, "default".parse().expect("a name"));
    place.prepare().expect("a directory");
    let profile =
        Profile::new(place, enrolled, None, Arc::new(SecretPem::new(key.serialize_pem())));
    profile.save().expect("saved");
}
