//! The HTTPS listener, for applications that cannot run `adit`: off unless its address is set. It
//! finds out who makes each request, and hands the request to the gate that tunnels use.

mod acme;
mod callers;
mod certificate;
mod connection;
mod cors;
mod guesses;
mod handshake;
mod in_force;
mod listen;
mod mover;
mod places;

pub(crate) use self::{
    acme::{AcmeCure, AcmeName, AcmeSettings, AcmeStatus, DirectoryUrl, ExternalAccount},
    certificate::{CertificateName, CertificateStatus},
    connection::Service,
    cors::PageOrigin,
    listen::{Bound, bind},
};

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use common::{
    machine::{process::descriptor_limit, report::Failure},
    transport::tls,
};
use ipnet::IpNet;
use proto::identity::DeviceId;
use rustls::{ServerConfig, server::NoServerSessionStorage};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use self::{
    callers::{CallerStatus, Callers},
    certificate::HttpsCertificate,
    guesses::Guesses,
    handshake::Checks,
    in_force::InForce,
    places::{Bounds, Places},
};
use crate::{
    ingress::verifier::DeviceVerifier,
    policy::Policy,
    state::{State, authorities::Authorities},
};

/// The most connections of strangers, in all and of one address.
const STRANGERS: usize = 256;
const STRANGERS_OF_ONE: usize = 32;
/// The most connections in all. A connection takes up to three descriptors.
const CONNECTIONS: usize = 2048;

/// The settings of the listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HttpsSettings {
    pub(crate) listen: Vec<SocketAddr>,
    /// The networks that may reach addresses other than loopback.
    pub(crate) allow_from: Vec<IpNet>,
    /// Names for which our own CA issues the certificate, besides this machine's own.
    pub(crate) names: Vec<CertificateName>,
    /// The web pages that may read answers.
    pub(crate) origins: Vec<PageOrigin>,
    pub(crate) source: CertificateSource,
}

/// Where the certificate comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum CertificateSource {
    /// Our own CA issues it.
    #[default]
    Own,
    /// The files of the certificate and of its key.
    Files(PathBuf, PathBuf),
    /// A certificate authority issues it, by ACME.
    Acme(AcmeSettings),
}

/// Why a connection or a request was turned away before the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turned {
    /// It comes from another network.
    Network,
    /// There were too many connections.
    Places,
    /// The TLS handshake failed or took too long.
    Handshake,
    /// The head of a request was malformed, too long or too slow.
    Head,
    /// The web page is not in the list.
    Origin,
    /// It brought no key.
    NoKey,
    /// Its key is not valid.
    WrongKey,
    /// Its token does not count.
    Token,
    /// Too many wrong keys came from its address.
    Guesses,
}

impl Turned {
    const ALL: [Self; 9] = [
        Self::Network,
        Self::Places,
        Self::Handshake,
        Self::Head,
        Self::Origin,
        Self::NoKey,
        Self::WrongKey,
        Self::Token,
        Self::Guesses,
    ];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Network => "network",
            Self::Places => "places",
            Self::Handshake => "handshake",
            Self::Head => "head",
            Self::Origin => "origin",
            Self::NoKey => "no_key",
            Self::WrongKey => "wrong_key",
            Self::Token => "token",
            Self::Guesses => "guesses",
        }
    }
}

/// The running listener.
pub(crate) struct Https {
    listening: Vec<SocketAddr>,
    in_force: watch::Sender<Arc<InForce>>,
    /// Another one when the CAs are others, or the certificate is.
    acceptor: RwLock<TlsAcceptor>,
    policy: Arc<Policy>,
    /// Handshakes of an authority that checks whether a name leads here.
    checks: Option<Checks>,
    places: Arc<Places>,
    guesses: Mutex<Guesses>,
    callers: Callers,
    turned: [AtomicU64; Turned::ALL.len()],
    begun: Instant,
}

/// The listener, as `aditd status` prints it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct HttpsStatus {
    /// The TCP addresses that it listens on.
    pub listening: Vec<String>,
    /// The networks that may reach it, besides this machine.
    pub allow_from: Vec<String>,
    pub certificate: CertificateStatus,
    /// Open connections.
    pub connections: usize,
    /// Who has made a request since the start.
    pub callers: Vec<CallerStatus>,
}

impl std::fmt::Debug for Https {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Https").field("listening", &self.listening).finish_non_exhaustive()
    }
}

impl Https {
    /// A listener at these addresses. Devices that are enrolled may show their certificates in place
    /// of a key. `restart`: how the server is started again.
    ///
    /// # Errors
    /// What is wrong with the files of the certificate.
    pub(crate) fn new(
        listening: Vec<SocketAddr>,
        settings: HttpsSettings,
        state: &State,
        policy: Arc<Policy>,
        restart: AcmeCure,
    ) -> Result<Arc<Self>, Failure> {
        let authorities = state.authorities.get();
        let certificate = HttpsCertificate::open(&settings, &authorities, &state.dir, restart)?;
        let acceptor = acceptor(&certificate, &authorities, policy.clone())?;
        let in_force = InForce::new(settings, certificate.clone());
        let checks = certificate.challenges().map(Checks::new).transpose();
        let checks = checks.map_err(|e| Failure::new("cannot use TLS 1.3").source(e))?;
        let bounds = Bounds {
            all: CONNECTIONS.min(descriptor_limit() / 8),
            strangers: STRANGERS,
            strangers_of_one: STRANGERS_OF_ONE,
        };
        Ok(Arc::new(Self {
            listening,
            in_force: watch::Sender::new(Arc::new(in_force)),
            acceptor: RwLock::new(acceptor),
            policy,
            checks,
            places: Places::new(bounds),
            guesses: Mutex::default(),
            callers: Callers::default(),
            turned: Default::default(),
            begun: Instant::now(),
        }))
    }

    pub(crate) fn listening(&self) -> &[SocketAddr] {
        &self.listening
    }

    /// Whether an address may reach it; counts those that may not.
    pub(crate) fn admits(&self, from: IpAddr) -> bool {
        let admits = self.in_force().audience.includes(from);
        if !admits {
            self.count(Turned::Network);
        }
        admits
    }

    fn acceptor(&self) -> TlsAcceptor {
        self.acceptor.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Orders a certificate again as soon as that is allowed, if the last order has failed.
    pub(crate) fn hurry_certificate(&self) {
        self.in_force().certificate.hurry();
    }

    /// The keys whose use is to be noted in the register, and when each was last used, in Unix time.
    pub(crate) fn keys_to_note(&self) -> Vec<(DeviceId, i64)> {
        self.callers.to_note()
    }

    /// The listener now.
    pub(crate) fn status(&self) -> HttpsStatus {
        let InForce { audience, certificate, .. } = &*self.in_force();
        HttpsStatus {
            listening: self.listening.iter().map(ToString::to_string).collect(),
            allow_from: audience.networks().iter().map(ToString::to_string).collect(),
            certificate: certificate.status(),
            connections: self.places.taken(),
            callers: self.callers.status(),
        }
    }

    /// What was turned away since the start, by reason.
    pub(crate) fn turned(&self) -> Vec<(&'static str, u64)> {
        let of = |turned: Turned| (turned.as_str(), self.turned[turned as usize].load(Relaxed));
        Turned::ALL.map(of).into()
    }

    fn count(&self, turned: Turned) {
        self.turned[turned as usize].fetch_add(1, Relaxed);
    }

    fn guesses(&self) -> MutexGuard<'_, Guesses> {
        self.guesses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What runs the handshakes. Certificates of devices count as long as their CA has not retired.
fn acceptor(
    certificate: &Arc<HttpsCertificate>,
    authorities: &Authorities,
    policy: Arc<Policy>,
) -> Result<TlsAcceptor, Failure> {
    let valid = authorities.valid().map(|(authority, _)| authority.certificate());
    let verifier = DeviceVerifier::new(valid, policy)
        .map_err(|e| Failure::new("cannot use the server's certificate").source(e))?;
    let builder = ServerConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13]);
    let builder = builder.map_err(|e| Failure::new("cannot use TLS 1.3").source(e))?;
    let mut config = builder
        .with_client_cert_verifier(Arc::new(verifier.optional()))
        .with_cert_resolver(certificate.clone());
    // Who asks for HTTP/1.0 names it here, too.
    config.alpn_protocols = vec![b"http/1.1".to_vec(), b"http/1.0".to_vec()];
    // No resumption, which would carry an old judgement past a revocation.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.max_early_data_size = 0;
    Ok(TlsAcceptor::from(Arc::new(config)))
}
