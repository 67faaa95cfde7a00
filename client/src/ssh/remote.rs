//! A login in which several commands run one after another: scripts for `sh`, an upload, and an
//! enrollment.

use std::{sync::Arc, time::Duration};

use common::{machine::report::harmless, transport::frame};
use data_encoding::HEXLOWER;
use proto::{
    crypto::fill_random,
    identity::Name,
    wire::{EnrollDevice, Enrolled},
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{
    SshClient, SshError, SshTarget,
    answer::{self, NotBegun},
    ask,
    bounds::{Patience, Tell},
    builtin::{self, Connected},
    system,
};

/// The most bytes of an answer, with what a login shell prints before it.
const MOST: u64 = 1 << 20;
/// How many bytes are handed to SSH at once. After each of them the host has the full time again.
const CHUNK: usize = 64 << 10;
/// How long to read the remaining output of a command that has ended.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// The most bytes that are shown of what a host has printed instead of an answer.
const SHOWN: usize = 400;

/// A login.
pub(crate) struct Remote {
    target: SshTarget,
    /// The built-in client's session. The system's ssh logs in for each command.
    session: Option<Connected>,
    patience: Arc<Patience>,
}

/// How a command has ended.
#[derive(Debug)]
pub(crate) struct RemoteEnd {
    /// Its standard output.
    pub(crate) out: Vec<u8>,
    /// Its exit code, if it has one.
    pub(crate) code: Option<u32>,
    /// The end of its standard error.
    pub(crate) said: String,
}

impl Remote {
    /// Logs in. Asks the person for everything that the login needs.
    ///
    /// # Errors
    /// Why there is no login.
    pub(crate) async fn open(target: &SshTarget) -> Result<Self, SshError> {
        let there = ask::somebody_is_there();
        let tell = if there { Tell::Person } else { Tell::Nobody };
        let patience = builtin::patience(target, tell);
        let session = match target.client() {
            SshClient::Builtin => {
                let connecting = builtin::connect(target, there, &patience);
                let connected = patience.bound(connecting).await;
                Some(connected.unwrap_or_else(|e| Err(SshError::Silent(e)))?)
            }
            SshClient::System => None,
        };
        Ok(Self { target: target.clone(), session, patience })
    }

    /// Logs in without a question, in at most `within`. `None` if that cannot be: the tunnel's own
    /// login says why.
    pub(crate) async fn open_quietly(target: &SshTarget, within: Duration) -> Option<Self> {
        if target.client() != SshClient::Builtin {
            return None;
        }
        let patience = builtin::patience(target, Tell::Nobody);
        let connecting = builtin::connect(target, false, &patience);
        let session = tokio::time::timeout(within, connecting).await.ok()?.ok()?;
        Some(Self { target: target.clone(), session: Some(session), patience })
    }

    /// Runs a script with `sh`, whatever the login shell is and whatever it prints. The script begins
    /// only when all of it has arrived, and reads nothing. Returns what it has printed.
    ///
    /// # Errors
    /// When the connection ends, or when no `sh` has run the script to its end.
    pub(crate) async fn script(&self, script: &str) -> Result<String, SshError> {
        let mut mark = [0; 16];
        fill_random(&mut mark);
        let mark = HEXLOWER.encode(&mark);
        let whole = format!(
            "{{\nprintf '\\n%s\\n' '{mark} begins'\n(\n{script}\n)\nprintf '\\n%s\\n' '{mark} ends'\n}} </dev/null\n"
        );
        let end = self.run("sh -s", whole.as_bytes(), |_| {}).await?;
        let out = String::from_utf8_lossy(&end.out);
        let answer = out
            .split_once(&format!("\n{mark} begins\n"))
            .and_then(|(_, rest)| rest.split_once(&format!("\n{mark} ends\n")))
            .map(|(answer, _)| answer.to_owned());
        answer.ok_or_else(|| {
            let said = if end.said.is_empty() { &out } else { end.said.as_str() };
            let said: String = said.trim().chars().take(SHOWN).collect();
            SshError::NoShell { to: self.target.to_string(), code: end.code, said: harmless(said) }
        })
    }

    /// Runs a command of the login shell with these bytes on its standard input. `passed` is told how
    /// many of them have been handed to SSH.
    ///
    /// # Errors
    /// When the connection cannot be made, ends, or is silent for too long.
    pub(crate) async fn run(
        &self,
        command: &str,
        input: &[u8],
        passed: impl Fn(usize),
    ) -> Result<RemoteEnd, SshError> {
        match &self.session {
            Some(Connected { session, .. }) => {
                let exchange = async {
                    let mut piped = session.exec(command, &self.target.to_string()).await?;
                    piped.read.tells(&self.patience);
                    let out = self.exchange(&mut piped.read, piped.write, input, passed).await?;
                    let end = tokio::time::timeout(LAST_WORDS, piped.read.end()).await;
                    let (code, said) = end.unwrap_or_default();
                    Ok(RemoteEnd { out, code, said })
                };
                let bounded = self.patience.bound(exchange).await;
                bounded.unwrap_or_else(|e| Err(SshError::Silent(e)))
            }
            None => {
                let mut child = system::Running::start(&self.target, command)?;
                let (Some(mut read), Some(write)) = (child.stdout(), child.stdin()) else {
                    return Err(self.lost("it has no standard streams"));
                };
                let out = self.exchange(&mut read, write, input, passed).await?;
                let (code, said) = child.end().await;
                if code == Some(system::OWN_FAILURE) {
                    return Err(SshError::Ended { to: self.target.to_string(), said });
                }
                Ok(RemoteEnd { out, code, said })
            }
        }
    }

    /// Enrolls this device under `name` with a signing request (DER in base64).
    ///
    /// # Errors
    /// As [`SshTarget::enroll`].
    pub(crate) async fn enroll(
        &self,
        target: &SshTarget,
        name: &Name,
        request: &EnrollDevice,
    ) -> Result<Enrolled, SshError> {
        let Some(Connected { session, .. }) = &self.session else {
            return system::enroll(target, name, request).await;
        };
        let to = target.to_string();
        let exchange = async {
            let run = format!("enroll-device {name}");
            let mut piped = session.exec(&target.command(&run), &to).await?;
            piped.read.tells(&self.patience);
            let asked = async {
                frame::write(&mut piped.write, request).await?;
                piped.write.flush().await
            };
            // The command may have answered without reading everything.
            let unasked = asked.await.err();
            match answer::certificate(&mut piped.read).await {
                Ok(enrolled) => Ok(enrolled),
                Err(NotBegun::Ended(e)) => {
                    let why = NotBegun::Ended(unasked.unwrap_or(e));
                    Err(builtin::ended(target, &run, &mut piped.read, why).await)
                }
                Err(why) => Err(builtin::ended(target, &run, &mut piped.read, why).await),
            }
        };
        let enrolled = self.patience.bound(exchange).await;
        let enrolled = enrolled.unwrap_or_else(|e| Err(SshError::Silent(e)))?;
        target.pace.learn(self.patience.slowest());
        Ok(enrolled)
    }

    /// Writes the input and reads the output at the same time: a command may end without reading
    /// everything, and one that is not read may wait for that.
    async fn exchange(
        &self,
        read: &mut (impl AsyncRead + Unpin),
        write: impl AsyncWrite + Unpin,
        input: &[u8],
        passed: impl Fn(usize),
    ) -> Result<Vec<u8>, SshError> {
        let writing = async {
            let (mut write, mut written) = (write, 0);
            for chunk in input.chunks(CHUNK) {
                if write.write_all(chunk).await.is_err() {
                    break;
                }
                written += chunk.len();
                passed(written);
                self.patience.again();
            }
            let _ = write.shutdown().await;
            // The pipe of a child is closed only so.
            drop(write);
            // What the command has printed tells how it went.
            std::future::pending::<()>().await
        };
        let mut out = Vec::new();
        let reading = async { read.take(MOST).read_to_end(&mut out).await };
        let done = tokio::select! {
            done = reading => done,
            () = writing => Ok(0),
        };
        done.map_err(|e| self.lost(e))?;
        Ok(out)
    }

    fn lost(&self, why: impl ToString) -> SshError {
        SshError::Broken { to: self.target.to_string(), why: why.to_string() }
    }
}
