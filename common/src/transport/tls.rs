//! The TLS configurations of both ends: only TLS 1.3, aws-lc-rs, hybrid post-quantum key exchange
//! first, and no resumption, so that every connection is judged anew.

use std::sync::{Arc, Mutex, PoisonError};

use proto::{crypto::sha256, identity::KeyHash, wire};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, NamedGroup, RootCertStore,
    ServerConfig, SignatureScheme,
    client::{
        Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{NoServerSessionStorage, ResolvesServerCert, danger::ClientCertVerifier},
    sign::CertifiedKey,
};

/// The crypto provider: X25519MLKEM768 first, the other groups in the library's order.
pub fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups.sort_by_key(|group| group.name() != NamedGroup::X25519MLKEM768);
    Arc::new(provider)
}

/// A CA's certificate as the only trust anchor.
pub fn roots(ca: CertificateDer<'static>) -> Result<Arc<RootCertStore>, Error> {
    let mut roots = RootCertStore::empty();
    roots.add(ca)?;
    Ok(Arc::new(roots))
}

/// Which clients a server accepts.
pub enum Admit {
    /// Clients whose certificate the verifier accepts, for the tunnel.
    Certified(Arc<dyn ClientCertVerifier>),
    /// All clients, for enrollment.
    Anybody,
}

/// The TLS of a server for QUIC (RFC 9001): no tickets (RFC 8446 section 4.6.1) and no 0-RTT,
/// because with both a device could connect after it was revoked.
pub fn server(
    admit: Admit,
    certificate: Arc<dyn ResolvesServerCert>,
) -> Result<quinn::crypto::rustls::QuicServerConfig, Error> {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?;
    let (builder, alpn) = match admit {
        Admit::Certified(verifier) => {
            (builder.with_client_cert_verifier(verifier), wire::ALPN_TUNNEL)
        }
        Admit::Anybody => (builder.with_no_client_auth(), wire::ALPN_ENROLL),
    };
    let mut config = builder.with_cert_resolver(certificate);
    config.alpn_protocols = vec![alpn.to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.max_early_data_size = 0;
    no_initial_suite(quinn::crypto::rustls::QuicServerConfig::try_from(config))
}

/// The TLS of a client, and what it notes about the server's certificate.
pub struct ClientTls {
    /// The configuration for QUIC.
    pub quic: quinn::crypto::rustls::QuicClientConfig,
    /// See [`SeenTime`].
    pub seen: SeenTime,
}

impl From<quinn::crypto::rustls::QuicClientConfig> for ClientTls {
    fn from(quic: quinn::crypto::rustls::QuicClientConfig) -> Self {
        Self { quic, seen: SeenTime::default() }
    }
}

/// Why a certificate is not valid now. The times are in Unix seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CertificateTime {
    /// It is not valid before this time.
    Begins(i64),
    /// It is not valid after this time.
    Ended(i64),
}

/// The validity of the last certificate that was refused because of the time. It is noted here
/// because a connection's error contains only the TLS alert. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct SeenTime(Arc<Mutex<Option<CertificateTime>>>);

impl SeenTime {
    /// What was noted since the last call.
    pub fn take(&self) -> Option<CertificateTime> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn note(&self, error: &Error) {
        let seconds = |time: &UnixTime| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
        let Error::InvalidCertificate(error) = error else { return };
        let time = match error {
            CertificateError::NotValidYetContext { not_before, .. } => {
                CertificateTime::Begins(seconds(not_before))
            }
            CertificateError::ExpiredContext { not_after, .. } => {
                CertificateTime::Ended(seconds(not_after))
            }
            _ => return,
        };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(time);
    }
}

/// The TLS of a client for the tunnel.
pub fn tunnel_client(
    roots: Arc<RootCertStore>,
    identity: Arc<CertifiedKey>,
) -> Result<ClientTls, Error> {
    let verifier = Trusted::new(TrustedCa::Known(roots));
    let seen = verifier.seen.clone();
    let config = client_builder()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(identity)));
    Ok(ClientTls { quic: finish_client(config, wire::ALPN_TUNNEL)?, seen })
}

/// The TLS of a client for enrollment, where it knows only the hash of the CA's key.
pub fn enroll_client(ca: [u8; 32]) -> Result<ClientTls, Error> {
    let verifier = Trusted::new(TrustedCa::Pinned(ca));
    let seen = verifier.seen.clone();
    let config = client_builder()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    Ok(ClientTls { quic: finish_client(config, wire::ALPN_ENROLL)?, seen })
}

fn client_builder() -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>, Error> {
    ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
}

fn finish_client(
    mut config: ClientConfig,
    alpn: &[u8],
) -> Result<quinn::crypto::rustls::QuicClientConfig, Error> {
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    no_initial_suite(quinn::crypto::rustls::QuicClientConfig::try_from(config))
}

/// QUIC's first packets need AES-128-GCM (RFC 9001 section 5.2), which our provider has. If that
/// ever changes, the result is an error, not a panic.
fn no_initial_suite<T>(
    built: Result<T, quinn::crypto::rustls::NoInitialCipherSuite>,
) -> Result<T, Error> {
    built.map_err(|e| Error::General(e.to_string()))
}

/// Verifies a server's certificate with one CA.
#[derive(Debug)]
struct Trusted {
    ca: TrustedCa,
    provider: Arc<CryptoProvider>,
    seen: SeenTime,
}

#[derive(Debug)]
enum TrustedCa {
    /// The CA's certificate is known.
    Known(Arc<RootCertStore>),
    /// The CA is the certificate that the server sends, if its key has this hash.
    Pinned([u8; 32]),
}

impl Trusted {
    fn new(ca: TrustedCa) -> Self {
        Self { ca, provider: provider(), seen: SeenTime::default() }
    }
}

impl ServerCertVerifier for Trusted {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let roots = match &self.ca {
            TrustedCa::Known(roots) => roots.clone(),
            TrustedCa::Pinned(hash) => {
                let pinned =
                    intermediates.iter().find(|der| key_hash(der).is_ok_and(|own| own.0 == *hash));
                let ca =
                    pinned.ok_or(Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
                roots(ca.clone().into_owned())?
            }
        };
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, self.provider.clone());
        let verifier = verifier.build().map_err(|e| Error::General(e.to_string()))?;
        let verified = verifier.verify_server_cert(end_entity, intermediates, name, ocsp, now);
        verified.inspect_err(|e| self.seen.note(e))
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not offered".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The hash of the key that a certificate certifies.
pub fn key_hash(der: &CertificateDer<'_>) -> Result<KeyHash, Error> {
    let parsed = rustls::server::ParsedCertificate::try_from(der)?;
    Ok(KeyHash(sha256(&parsed.subject_public_key_info())))
}
