//! The challenges that an authority is about to check (tls-alpn-01, RFC 8737): a handshake for a name
//! is answered with a certificate that proves who has ordered for that name.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair};
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs::sign::any_ecdsa_type,
    pki_types::PrivateKeyDer,
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert},
    sign::CertifiedKey,
};

use common::transport::tls;

use super::{fault::Fault, settings::AcmeName};

/// The protocol of such a handshake.
const PROTOCOL: &[u8] = b"acme-tls/1";

/// The challenges that wait, by the name in a handshake.
#[derive(Debug, Default)]
pub(crate) struct Challenges(Mutex<HashMap<String, Arc<CertifiedKey>>>);

/// A challenge that waits. Dropping it ends that.
#[derive(Debug)]
pub(super) struct Waiting {
    challenges: Arc<Challenges>,
    name: String,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.challenges.lock().remove(&self.name);
    }
}

impl Challenges {
    /// Answers handshakes for `name` from now on. `digest`: of the key authorization.
    pub(super) fn wait(self: &Arc<Self>, name: &AcmeName, digest: &[u8]) -> Result<Waiting, Fault> {
        let key = certificate(name, digest).map_err(Fault::inside)?;
        let asked = name.server_name();
        self.lock().insert(asked.clone(), Arc::new(key));
        Ok(Waiting { challenges: self.clone(), name: asked })
    }

    /// Whether one waits.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.lock().is_empty()
    }

    /// Whether a handshake asks for one that waits, and for nothing else.
    pub(crate) fn is_asked(&self, hello: &ClientHello<'_>) -> bool {
        let protocols: Vec<_> = hello.alpn().into_iter().flatten().collect();
        protocols == [PROTOCOL] && self.find(hello).is_some()
    }

    /// The settings of the answer.
    ///
    /// # Errors
    /// When TLS cannot be used.
    pub(crate) fn tls(self: &Arc<Self>) -> Result<Arc<ServerConfig>, rustls::Error> {
        let mut config = ServerConfig::builder_with_provider(tls::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_cert_resolver(self.clone());
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(Arc::new(config))
    }

    fn find(&self, hello: &ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.lock().get(&hello.server_name()?.to_ascii_lowercase()).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<CertifiedKey>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ResolvesServerCert for Challenges {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.find(&hello)
    }
}

/// The certificate of RFC 8737 section 3.
fn certificate(
    name: &AcmeName,
    digest: &[u8],
) -> Result<CertifiedKey, Box<dyn std::error::Error + Send + Sync>> {
    let mut params = CertificateParams::new(vec![name.to_string()])?;
    params.distinguished_name = DistinguishedName::new();
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    let key = any_ecdsa_type(&PrivateKeyDer::Pkcs8(key.serialize_der().into()))?;
    Ok(CertifiedKey::new(vec![certificate.der().clone()], key))
}
