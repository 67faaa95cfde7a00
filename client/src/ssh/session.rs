//! An SSH connection with russh. Only this file and its folder use that library. Everything ends
//! when the [`SshSession`] is dropped.

mod channel;
mod host;

use std::{
    borrow::Cow,
    sync::{Arc, Mutex},
};

use russh::{
    ChannelOpenFailure, MethodKind, MethodSet,
    client::{self, AuthResult, Handle, KeyboardInteractiveAuthResponse},
    keys::{
        PrivateKeyWithHashAlg,
        agent::{AgentIdentity, client::AgentClient},
    },
};
use ssh_key::{Algorithm, HashAlg, PrivateKey, PublicKey};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::UnixStream,
};
use tokio_util::sync::DropGuard;

pub(crate) use self::channel::{Piped, Reading};
use self::host::{Host, HostEvents, lock, settings};
use super::{
    SshError,
    bounds::{Mortal, Patience},
    hosts::KnownHost,
};

/// A host's loopback address, on which the server's relay listens.
pub(crate) const LOOPBACK: &str = "127.0.0.1";

/// A connection to one host whose key has been checked.
pub(crate) struct SshSession {
    handle: Handle<Host>,
    events: Arc<Mutex<HostEvents>>,
    _ends: DropGuard,
}

/// The result of an attempt to log in.
pub(crate) enum LoginResult {
    /// Logged in.
    In,
    /// Not logged in: the attempt was wrong, or not sufficient.
    Not {
        /// It was right, but the host requires more.
        partly: bool,
        /// The methods that can be tried now.
        methods: Methods,
    },
    /// The host asks these questions. `true`: the typed text may be shown.
    Asked(Vec<(String, bool)>),
}

/// The login methods that a host still offers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Methods {
    pub(crate) public_key: bool,
    pub(crate) interactive: bool,
    pub(crate) password: bool,
    /// The names of all of them.
    pub(crate) names: String,
}

/// A key or certificate in an agent.
pub(crate) struct Identity(AgentIdentity);

/// A connection to an agent.
pub(crate) struct Agent(AgentClient<UnixStream>);

impl SshSession {
    /// Performs the SSH handshake over `stream`, and checks the host's key.
    pub(crate) async fn open<S>(
        stream: S,
        to: &str,
        known: KnownHost,
        patience: &Arc<Patience>,
    ) -> Result<Self, SshError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        // russh's own task reads until its stream ends, so the stream has to end with its owner.
        let (stream, guard) = Mortal::new(stream);
        let (config, events) =
            (Arc::new(settings(&known)), Arc::new(Mutex::new(HostEvents::default())));
        let host = Host { known, patience: patience.clone(), events: events.clone() };
        match client::connect_stream(config, stream, host).await {
            Ok(handle) => Ok(Self { handle, events, _ends: guard }),
            Err(e) => Err(lock(&events).refused.take().unwrap_or_else(|| failed(to, &e))),
        }
    }

    /// Requests a login with the method "none". The answer lists the methods of the host.
    pub(crate) async fn none(&mut self, user: &str) -> Result<LoginResult, SshError> {
        let result = self.handle.authenticate_none(user).await;
        self.attempt(result)
    }

    /// Logs in with a key.
    pub(crate) async fn key(
        &mut self,
        user: &str,
        key: Arc<PrivateKey>,
    ) -> Result<LoginResult, SshError> {
        let hash = self.hash_for(&key.algorithm()).await;
        let result =
            self.handle.authenticate_publickey(user, PrivateKeyWithHashAlg::new(key, hash)).await;
        self.attempt(result)
    }

    /// Whether the host would accept a key, before a person is asked for its passphrase.
    pub(crate) async fn would_take(
        &mut self,
        user: &str,
        key: &PublicKey,
    ) -> Result<bool, SshError> {
        let hash = self.hash_for(&key.algorithm()).await;
        let mut signer = RefusingSigner { wanted: false };
        let _ = self.handle.authenticate_publickey_with(user, key.clone(), hash, &mut signer).await;
        self.alive().map(|()| signer.wanted)
    }

    /// Logs in with a key or certificate of an agent.
    pub(crate) async fn agent(
        &mut self,
        user: &str,
        agent: &mut Agent,
        identity: Identity,
    ) -> Result<LoginResult, SshError> {
        let hash = self.hash_for(&identity.0.public_key().algorithm()).await;
        let result = match identity.0 {
            AgentIdentity::PublicKey { key, .. } => {
                self.handle.authenticate_publickey_with(user, key, hash, &mut agent.0).await
            }
            AgentIdentity::Certificate { certificate, .. } => {
                self.handle
                    .authenticate_certificate_with(user, certificate, hash, &mut agent.0)
                    .await
            }
        };
        // If an agent does not sign, other methods are tried.
        let refused = |e| {
            tracing::debug!("the agent did not sign: {e}");
            AuthResult::Failure {
                remaining_methods: [MethodKind::PublicKey].as_slice().into(),
                partial_success: false,
            }
        };
        self.attempt(Ok(result.unwrap_or_else(refused)))
    }

    /// Logs in with a password.
    pub(crate) async fn password(
        &mut self,
        user: &str,
        password: &str,
    ) -> Result<LoginResult, SshError> {
        let result = self.handle.authenticate_password(user, password).await;
        self.attempt(result)
    }

    /// Begins a login with the method "keyboard-interactive".
    pub(crate) async fn interactive(&mut self, user: &str) -> Result<LoginResult, SshError> {
        let reply = self.handle.authenticate_keyboard_interactive_start(user, None).await;
        self.asked(reply)
    }

    /// Answers the host's questions.
    pub(crate) async fn answer(&mut self, answers: Vec<String>) -> Result<LoginResult, SshError> {
        let reply = self.handle.authenticate_keyboard_interactive_respond(answers).await;
        self.asked(reply)
    }

    /// Connects to the agent at `path`, and binds it to this session.
    pub(crate) async fn agent_at(
        &self,
        path: &std::path::Path,
    ) -> Result<(Agent, Vec<Identity>), String> {
        let mut agent = AgentClient::connect_uds(path).await.map_err(|e| e.to_string())?;
        if let Some(binding) = self.handle.agent_session_binding() {
            // Older agents do not support binding.
            let _ = agent.bind_session(binding, false).await;
        }
        let identities = agent.request_identities().await.map_err(|e| e.to_string())?;
        Ok((Agent(agent), identities.into_iter().map(Identity).collect()))
    }

    /// Runs a command.
    pub(crate) async fn exec(&self, command: &str, to: &str) -> Result<Piped, SshError> {
        let channel = self.handle.channel_open_session().await.map_err(|e| failed(to, &e))?;
        channel.exec(true, command).await.map_err(|e| failed(to, &e))?;
        Ok(Piped::new(channel))
    }

    /// Opens a TCP connection from the host to a port of its own loopback interface or of another
    /// host.
    pub(crate) async fn direct(&self, host: &str, port: u16, to: &str) -> Result<Piped, SshError> {
        let opened = self.handle.channel_open_direct_tcpip(host, port.into(), "127.0.0.1", 0).await;
        opened.map(Piped::new).map_err(|e| match e {
            russh::Error::ChannelOpenFailure(ChannelOpenFailure::ConnectFailed)
                if host == LOOPBACK =>
            {
                SshError::NotRunning { to: to.to_owned(), port }
            }
            e => failed(to, &e),
        })
    }

    /// The host's last message as an error, if it has ended the connection.
    fn alive(&self) -> Result<(), SshError> {
        if !self.handle.is_closed() {
            return Ok(());
        }
        let goodbye = lock(&self.events)
            .goodbye
            .clone()
            .unwrap_or_else(|| "it ended the connection".to_owned());
        Err(SshError::Broken { to: String::new(), why: goodbye })
    }

    fn attempt(&self, result: Result<AuthResult, russh::Error>) -> Result<LoginResult, SshError> {
        match result {
            Ok(AuthResult::Success) => Ok(LoginResult::In),
            Ok(AuthResult::Failure { remaining_methods, partial_success }) => {
                self.alive()?;
                Ok(LoginResult::Not {
                    partly: partial_success,
                    methods: (&remaining_methods).into(),
                })
            }
            Err(e) => Err(self.alive().err().unwrap_or_else(|| failed("", &e))),
        }
    }

    fn asked(
        &self,
        reply: Result<KeyboardInteractiveAuthResponse, russh::Error>,
    ) -> Result<LoginResult, SshError> {
        match reply {
            Ok(KeyboardInteractiveAuthResponse::InfoRequest { name, instructions, prompts }) => {
                for text in [name, instructions].iter().filter(|text| !text.trim().is_empty()) {
                    common::machine::report::say(text.trim_end());
                }
                Ok(LoginResult::Asked(
                    prompts.into_iter().map(|prompt| (prompt.prompt, prompt.echo)).collect(),
                ))
            }
            Ok(KeyboardInteractiveAuthResponse::Success) => Ok(LoginResult::In),
            Ok(KeyboardInteractiveAuthResponse::Failure { remaining_methods, partial_success }) => {
                self.attempt(Ok(AuthResult::Failure { remaining_methods, partial_success }))
            }
            Err(e) => self.attempt(Err(e)),
        }
    }

    /// RSA keys always sign with SHA-2.
    async fn hash_for(&self, algorithm: &Algorithm) -> Option<HashAlg> {
        if !is_rsa(algorithm) {
            return None;
        }
        let best = self.handle.best_supported_rsa_hash().await.ok().flatten().flatten();
        Some(best.unwrap_or(HashAlg::Sha512))
    }
}

impl Identity {
    /// The key itself.
    pub(crate) fn key(&self) -> Cow<'_, PublicKey> {
        self.0.public_key()
    }

    /// Its comment.
    pub(crate) fn name(&self) -> &str {
        self.0.comment()
    }
}

impl From<&MethodSet> for Methods {
    fn from(set: &MethodSet) -> Self {
        let names = set.iter().map(<&str>::from).collect::<Vec<_>>().join(", ");
        Self {
            public_key: set.contains(&MethodKind::PublicKey),
            interactive: set.contains(&MethodKind::KeyboardInteractive),
            password: set.contains(&MethodKind::Password),
            names,
        }
    }
}

/// A signer that notes that a signature was requested, and does not sign.
struct RefusingSigner {
    wanted: bool,
}

impl russh::Signer for RefusingSigner {
    type Error = russh::AgentAuthError;

    async fn auth_sign(
        &mut self,
        _: &AgentIdentity,
        _: Option<HashAlg>,
        _: Vec<u8>,
    ) -> Result<Vec<u8>, Self::Error> {
        self.wanted = true;
        Err(russh::SendError {}.into())
    }
}

/// Reads a private key from its text, in any format that russh supports.
pub(crate) fn read_key(text: &str, passphrase: Option<&str>) -> Option<PrivateKey> {
    russh::keys::decode_secret_key(text, passphrase).ok()
}

fn is_rsa(algorithm: &Algorithm) -> bool {
    matches!(algorithm, Algorithm::Rsa { .. })
}

fn failed(to: &str, error: &russh::Error) -> SshError {
    let to = to.to_owned();
    match error {
        russh::Error::NoCommonAlgo { kind, theirs, .. } => SshError::Beyond {
            what: format!(
                "{to} offers no {kind:?} algorithm that the built-in client has: {}",
                theirs.join(", ")
            ),
        },
        russh::Error::ChannelOpenFailure(why) => {
            SshError::Broken { to, why: format!("the host refuses to forward ({why:?})") }
        }
        russh::Error::IO(e) => SshError::Broken { to, why: e.to_string() },
        e => SshError::Broken { to, why: e.to_string() },
    }
}
