//! What the TLS configurations of both ends have in common: TLS 1.3 alone, aws-lc-rs, hybrid
//! post-quantum key exchange first, and no way for a session to outlive the judgement that began
//! it.

use std::sync::Arc;

use proto::{identity::KeyHash, invitation::sha256, wire};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, NamedGroup, RootCertStore,
    ServerConfig, SignatureScheme,
    client::{
        Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime},
    server::{NoServerSessionStorage, danger::ClientCertVerifier},
    sign::CertifiedKey,
};

/// The one crypto provider: X25519MLKEM768 before X25519, the rest as the library orders it.
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

/// Which clients a server configuration admits.
pub enum Admit {
    /// Those whose certificate the verifier accepts: the tunnel.
    Certified(Arc<dyn ClientCertVerifier>),
    /// Anybody, to enroll.
    Anybody,
}

/// A server's side for QUIC (RFC 9001): no tickets (RFC 8446 section 4.6.1) and no 0-RTT, as both
/// would carry an old judgement past a revocation.
pub fn server(
    admit: Admit,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<quinn::crypto::rustls::QuicServerConfig, Error> {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?;
    let (builder, alpn) = match admit {
        Admit::Certified(verifier) => {
            (builder.with_client_cert_verifier(verifier), wire::ALPN_TUNNEL)
        }
        Admit::Anybody => (builder.with_no_client_auth(), wire::ALPN_ENROLL),
    };
    let mut config = builder.with_single_cert(chain, key)?;
    config.alpn_protocols = vec![alpn.to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.max_early_data_size = 0;
    no_initial_suite(quinn::crypto::rustls::QuicServerConfig::try_from(config))
}

/// A client's side of the tunnel.
pub fn tunnel_client(
    roots: Arc<RootCertStore>,
    identity: Arc<CertifiedKey>,
) -> Result<quinn::crypto::rustls::QuicClientConfig, Error> {
    let builder = client_builder()?.with_root_certificates(roots);
    let config =
        builder.with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(identity)));
    finish_client(config, wire::ALPN_TUNNEL)
}

/// A client's side of enrollment: it knows nothing but the hash of the CA's key.
pub fn enroll_client(ca: [u8; 32]) -> Result<quinn::crypto::rustls::QuicClientConfig, Error> {
    let verifier = Arc::new(PinnedCa { ca, provider: provider() });
    let config = client_builder()?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    finish_client(config, wire::ALPN_ENROLL)
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

/// Our provider always has AES-128-GCM, which the first packets need (RFC 9001 section 5.2); should
/// that change, it is an error, not a panic.
fn no_initial_suite<T>(
    built: Result<T, quinn::crypto::rustls::NoInitialCipherSuite>,
) -> Result<T, Error> {
    built.map_err(|e| Error::General(e.to_string()))
}

/// Believes the CA whose key has one hash, and what that CA vouches for.
#[derive(Debug)]
struct PinnedCa {
    ca: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedCa {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let pinned =
            intermediates.iter().find(|der| key_hash(der).is_ok_and(|hash| hash.0 == self.ca));
        let ca = pinned.ok_or(Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        let verifier = WebPkiServerVerifier::builder_with_provider(
            roots(ca.clone().into_owned())?,
            self.provider.clone(),
        );
        let verifier = verifier.build().map_err(|e| Error::General(e.to_string()))?;
        verifier.verify_server_cert(end_entity, intermediates, name, ocsp, now)
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
