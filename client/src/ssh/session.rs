//! One SSH connection, with russh: the only file that knows it. Everything here ends when the
//! [`Session`] is dropped.

use std::{
    borrow::Cow,
    pin::{Pin, pin},
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes};
use russh::{
    Channel, ChannelMsg, ChannelOpenFailure, ChannelReadHalf, MethodKind, MethodSet, cipher,
    client::{self, AuthResult, DisconnectReason, Handle, KeyboardInteractiveAuthResponse, Msg},
    keys::{
        PrivateKeyWithHashAlg, PublicKeyOrCertificate,
        agent::{AgentIdentity, client::AgentClient},
    },
};
use ssh_key::{Algorithm, EcdsaCurve, HashAlg, PrivateKey, PublicKey};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::UnixStream,
};
use tokio_util::sync::DropGuard;

use super::{
    SshError,
    bounds::{Mortal, Patience},
    hosts::KnownHost,
    known_hosts::Offered,
};

const WINDOW: u32 = 16 << 20;
const KEEP_ALIVE: Duration = Duration::from_secs(10);
const MISSED: usize = 3;
/// Bytes of a command's standard error that are kept to say why it failed.
const KEPT: usize = 4096;

/// A host's own loopback, where the server's relay listens.
pub(crate) const LOOPBACK: &str = "127.0.0.1";

/// A connection to one host whose key has been checked.
pub(crate) struct Session {
    handle: Handle<Host>,
    told: Arc<Mutex<Told>>,
    _ends: DropGuard,
}

/// What became of an attempt to log in.
pub(crate) enum Attempt {
    /// In.
    In,
    /// Not yet: this was not enough, or not right.
    Not {
        /// It was right, and more is wanted.
        partly: bool,
        /// What may be tried now.
        methods: Methods,
    },
    /// The host asks.
    Asked(Vec<(String, bool)>),
}

/// Ways to log in that a host still offers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Methods {
    pub(crate) public_key: bool,
    pub(crate) interactive: bool,
    pub(crate) password: bool,
    /// All of them, by their names.
    pub(crate) names: String,
}

/// What an agent holds.
pub(crate) struct Identity(AgentIdentity);

/// A connection to an agent.
pub(crate) struct Agent(AgentClient<UnixStream>);

/// What happens on the connection's own task.
#[derive(Default)]
struct Told {
    refused: Option<SshError>,
    goodbye: Option<String>,
}

struct Host {
    known: KnownHost,
    patience: Arc<Patience>,
    told: Arc<Mutex<Told>>,
}

impl client::Handler for Host {
    type Error = russh::Error;

    async fn check_server_key(
        &mut self,
        shown: &PublicKeyOrCertificate,
    ) -> Result<bool, Self::Error> {
        let offered = match shown {
            PublicKeyOrCertificate::PublicKey { key, .. } => Offered::Key(key.key_data().clone()),
            PublicKeyOrCertificate::Certificate(certificate) => {
                Offered::Certificate(Box::new(certificate.clone()))
            }
        };
        let checked = self.patience.with_a_person(self.known.check(&offered)).await;
        let good = checked.is_ok();
        lock(&self.told).refused = checked.err().map(SshError::HostKey);
        Ok(good)
    }

    async fn auth_banner(
        &mut self,
        banner: &str,
        _: &mut client::Session,
    ) -> Result<(), Self::Error> {
        tracing::debug!("the host says: {}", common::machine::report::harmless(banner.trim_end()));
        Ok(())
    }

    async fn disconnected(
        &mut self,
        reason: DisconnectReason<Self::Error>,
    ) -> Result<(), Self::Error> {
        let goodbye = match reason {
            DisconnectReason::ReceivedDisconnect(info) => {
                common::machine::report::harmless(info.message)
            }
            DisconnectReason::Error(e) => e.to_string(),
        };
        lock(&self.told).goodbye = Some(goodbye);
        Ok(())
    }
}

fn settings(known: &KnownHost) -> client::Config {
    let mut config = client::Config {
        window_size: WINDOW,
        keepalive_interval: Some(KEEP_ALIVE),
        keepalive_max: MISSED,
        nodelay: true,
        ..Default::default()
    };
    // What the processor does in hardware, first.
    let ciphers = [
        cipher::AES_128_GCM,
        cipher::AES_256_GCM,
        cipher::CHACHA20_POLY1305,
        cipher::AES_256_CTR,
        cipher::AES_128_CTR,
    ];
    config.preferred.cipher = Cow::Owned(ciphers.to_vec());
    config.preferred.compression = Cow::Owned(vec![russh::compression::NONE]);
    // The kinds that the host is known by come first: another kind of key would look like an
    // unknown host. No SHA-1.
    let (kinds, vouched) = known.kinds();
    let ecdsa = |curve| Algorithm::Ecdsa { curve };
    let rsa = |hash| Algorithm::Rsa { hash: Some(hash) };
    let mut keys = vec![
        Algorithm::Ed25519,
        ecdsa(EcdsaCurve::NistP256),
        ecdsa(EcdsaCurve::NistP384),
        ecdsa(EcdsaCurve::NistP521),
        rsa(HashAlg::Sha512),
        rsa(HashAlg::Sha256),
    ];
    keys.sort_by_key(|key| !kinds.iter().any(|kind| kind == key || (is_rsa(kind) && is_rsa(key))));
    if vouched {
        config.preferred.host_key_certificates = Cow::Owned(keys.clone());
    }
    config.preferred.key = Cow::Owned(keys);
    config
}

impl Session {
    /// Shakes hands over `stream` with the host that ought to be behind it.
    pub(crate) async fn open<S>(
        stream: S,
        to: &str,
        known: KnownHost,
        patience: &Arc<Patience>,
    ) -> Result<Self, SshError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        // russh's own task reads until its stream ends: so that has to end with its owner.
        let (stream, guard) = Mortal::new(stream);
        let (config, told) = (Arc::new(settings(&known)), Arc::new(Mutex::new(Told::default())));
        let host = Host { known, patience: patience.clone(), told: told.clone() };
        match client::connect_stream(config, stream, host).await {
            Ok(handle) => Ok(Self { handle, told, _ends: guard }),
            Err(e) => Err(lock(&told).refused.take().unwrap_or_else(|| failed(to, &e))),
        }
    }

    /// Asks for a login without anything: what it takes is the answer.
    pub(crate) async fn none(&mut self, user: &str) -> Result<Attempt, SshError> {
        let result = self.handle.authenticate_none(user).await;
        self.attempt(result)
    }

    /// Logs in with a key.
    pub(crate) async fn key(
        &mut self,
        user: &str,
        key: Arc<PrivateKey>,
    ) -> Result<Attempt, SshError> {
        let hash = self.hash_for(&key.algorithm()).await;
        let result =
            self.handle.authenticate_publickey(user, PrivateKeyWithHashAlg::new(key, hash)).await;
        self.attempt(result)
    }

    /// Whether the host would take a key, before anybody is asked for its passphrase.
    pub(crate) async fn would_take(
        &mut self,
        user: &str,
        key: &PublicKey,
    ) -> Result<bool, SshError> {
        let hash = self.hash_for(&key.algorithm()).await;
        let mut signer = Probe { wanted: false };
        let _ = self.handle.authenticate_publickey_with(user, key.clone(), hash, &mut signer).await;
        self.alive().map(|()| signer.wanted)
    }

    /// Logs in with what an agent holds.
    pub(crate) async fn agent(
        &mut self,
        user: &str,
        agent: &mut Agent,
        identity: Identity,
    ) -> Result<Attempt, SshError> {
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
        // An agent that does not sign is no reason to give up.
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
    ) -> Result<Attempt, SshError> {
        let result = self.handle.authenticate_password(user, password).await;
        self.attempt(result)
    }

    /// Begins a login by questions and answers.
    pub(crate) async fn interactive(&mut self, user: &str) -> Result<Attempt, SshError> {
        let reply = self.handle.authenticate_keyboard_interactive_start(user, None).await;
        self.asked(reply)
    }

    /// Answers what was asked.
    pub(crate) async fn answer(&mut self, answers: Vec<String>) -> Result<Attempt, SshError> {
        let reply = self.handle.authenticate_keyboard_interactive_respond(answers).await;
        self.asked(reply)
    }

    /// Connects to the agent at `path`; it is told for which connection it signs.
    pub(crate) async fn agent_at(
        &self,
        path: &std::path::Path,
    ) -> Result<(Agent, Vec<Identity>), String> {
        let mut agent = AgentClient::connect_uds(path).await.map_err(|e| e.to_string())?;
        if let Some(binding) = self.handle.agent_session_binding() {
            // Older agents don't know it.
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

    /// Opens a TCP connection from the host to `port` of its own loopback, or to another host.
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

    /// What the host said last, if it has ended the connection.
    fn alive(&self) -> Result<(), SshError> {
        if !self.handle.is_closed() {
            return Ok(());
        }
        let goodbye = lock(&self.told)
            .goodbye
            .clone()
            .unwrap_or_else(|| "it ended the connection".to_owned());
        Err(SshError::Broken { to: String::new(), why: goodbye })
    }

    fn attempt(&self, result: Result<AuthResult, russh::Error>) -> Result<Attempt, SshError> {
        match result {
            Ok(AuthResult::Success) => Ok(Attempt::In),
            Ok(AuthResult::Failure { remaining_methods, partial_success }) => {
                self.alive()?;
                Ok(Attempt::Not { partly: partial_success, methods: (&remaining_methods).into() })
            }
            Err(e) => Err(self.alive().err().unwrap_or_else(|| failed("", &e))),
        }
    }

    fn asked(
        &self,
        reply: Result<KeyboardInteractiveAuthResponse, russh::Error>,
    ) -> Result<Attempt, SshError> {
        match reply {
            Ok(KeyboardInteractiveAuthResponse::InfoRequest { name, instructions, prompts }) => {
                for text in [name, instructions].iter().filter(|text| !text.trim().is_empty()) {
                    common::machine::report::say(text.trim_end());
                }
                Ok(Attempt::Asked(
                    prompts.into_iter().map(|prompt| (prompt.prompt, prompt.echo)).collect(),
                ))
            }
            Ok(KeyboardInteractiveAuthResponse::Success) => Ok(Attempt::In),
            Ok(KeyboardInteractiveAuthResponse::Failure { remaining_methods, partial_success }) => {
                self.attempt(Ok(AuthResult::Failure { remaining_methods, partial_success }))
            }
            Err(e) => self.attempt(Err(e)),
        }
    }

    /// RSA keys sign with SHA-2, whatever the host says.
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

    /// What people call it.
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

/// Learns whether a signature would be wanted, and gives none.
struct Probe {
    wanted: bool,
}

impl russh::Signer for Probe {
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

/// A private key out of its text, whatever its format.
pub(crate) fn read_key(text: &str, passphrase: Option<&str>) -> Option<PrivateKey> {
    russh::keys::decode_secret_key(text, passphrase).ok()
}

/// The standard streams of a command, or a forwarded connection.
pub(crate) struct Piped {
    /// What comes.
    pub(crate) read: Reading,
    /// What goes.
    pub(crate) write: Box<dyn AsyncWrite + Send + Unpin>,
}

/// What comes. What a command says on its standard error is kept.
pub(crate) struct Reading {
    half: ChannelReadHalf,
    left: Bytes,
    said: Vec<u8>,
    code: Option<u32>,
    over: bool,
    /// Who waits for it.
    waiting: Option<Arc<Patience>>,
    /// The connections under it.
    keep: Vec<Session>,
}

impl Piped {
    fn new(channel: Channel<Msg>) -> Self {
        let (half, write) = channel.split();
        let read = Reading {
            half,
            left: Bytes::new(),
            said: Vec::new(),
            code: None,
            over: false,
            waiting: None,
            keep: Vec::new(),
        };
        Self { read, write: Box::new(Box::pin(write.make_writer())) }
    }

    /// Keeps the connections under it alive for as long as it is read.
    pub(crate) fn over(mut self, sessions: Vec<Session>) -> Self {
        self.read.keep = sessions;
        self
    }
}

impl Reading {
    /// Whatever comes is told to who waits for it.
    pub(crate) fn tells(&mut self, patience: &Arc<Patience>) {
        self.waiting = Some(patience.clone());
    }

    /// Nobody waits for it any more.
    pub(crate) fn tells_nobody(&mut self) {
        self.waiting = None;
    }

    /// Reads on to the end: the exit code, if there is one, and what was said on standard error.
    pub(crate) async fn end(&mut self) -> (Option<u32>, String) {
        while !self.over {
            self.next().await;
            self.left.clear();
        }
        (
            self.code,
            common::machine::report::harmless(String::from_utf8_lossy(&self.said).trim_end()),
        )
    }

    async fn next(&mut self) {
        let message = self.half.wait().await;
        if let (Some(patience), Some(ChannelMsg::Data { .. } | ChannelMsg::ExtendedData { .. })) =
            (&self.waiting, &message)
        {
            patience.again();
        }
        match message {
            Some(ChannelMsg::Data { data }) => self.left = data,
            Some(ChannelMsg::ExtendedData { data, .. }) => {
                self.said.extend_from_slice(&data);
                let excess = self.said.len().saturating_sub(KEPT);
                self.said.drain(..excess);
            }
            Some(ChannelMsg::ExitStatus { exit_status }) => self.code = Some(exit_status),
            Some(ChannelMsg::Failure) | None => self.over = true,
            _ => {}
        }
    }
}

impl AsyncRead for Reading {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        while self.left.is_empty() && !self.over {
            ready!(pin!(self.next()).poll(cx));
        }
        let n = self.left.len().min(buf.remaining());
        buf.put_slice(&self.left[..n]);
        self.left.advance(n);
        Poll::Ready(Ok(()))
    }
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
            SshError::Broken { to, why: format!("it refuses to forward ({why:?})") }
        }
        russh::Error::IO(e) => SshError::Broken { to, why: e.to_string() },
        e => SshError::Broken { to, why: e.to_string() },
    }
}

fn lock(told: &Mutex<Told>) -> std::sync::MutexGuard<'_, Told> {
    told.lock().unwrap_or_else(PoisonError::into_inner)
}
