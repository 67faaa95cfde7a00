//! The check inside the TLS handshake: the certificate was signed by this CA, for a device, and the
//! register admits the device. Whether it is valid now is the session's question.

use std::{fmt, sync::Arc};

use common::transport::tls;
use proto::{identity::Certificate, wire::Code};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore,
    SignatureScheme,
    client::danger::HandshakeSignatureValid,
    pki_types::{CertificateDer, UnixTime},
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};

use crate::policy::Policy;

/// Checks a certificate by webpki, then by the current register.
pub(crate) struct DeviceVerifier {
    webpki: Arc<dyn ClientCertVerifier>,
    policy: Arc<Policy>,
    is_optional: bool,
}

impl DeviceVerifier {
    /// A verifier for certificates of CAs with these certificates.
    pub(crate) fn new<'a>(
        cas: impl IntoIterator<Item = &'a CertificateDer<'static>>,
        policy: Arc<Policy>,
    ) -> Result<Self, Error> {
        let mut roots = RootCertStore::empty();
        cas.into_iter().try_for_each(|ca| roots.add(ca.clone()))?;
        let webpki = WebPkiClientVerifier::builder_with_provider(roots.into(), tls::provider())
            .build()
            .map_err(|e| Error::General(e.to_string()))?;
        Ok(Self { webpki, policy, is_optional: false })
    }

    /// The same for HTTPS, where a key may take the place of a certificate.
    pub(crate) fn optional(self) -> Self {
        Self { is_optional: true, ..self }
    }
}

impl fmt::Debug for DeviceVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DeviceVerifier")
    }
}

impl ClientCertVerifier for DeviceVerifier {
    fn client_auth_mandatory(&self) -> bool {
        !self.is_optional
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        if self.is_optional {
            // A browser asks its user for none of the certificates that are not for this server.
            self.webpki.root_hint_subjects()
        } else {
            // The CA's name is not sent: it would identify the server.
            &[]
        }
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let certificate = Certificate::from_der(end_entity)
            .map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
        // The session judges the time: a TLS alert could not say what this clock shows. A device
        // whose certificate has expired may connect to renew it, and the policy allows it nothing
        // else; any other that is not valid now, and any while this clock is certainly wrong, is
        // told both times and ended at once.
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let judged_at = now.min(certificate.not_after).max(certificate.not_before);
        let judged_at = UnixTime::since_unix_epoch(std::time::Duration::from_secs(
            u64::try_from(judged_at).unwrap_or(0),
        ));
        let verified = self.webpki.verify_client_cert(end_entity, intermediates, judged_at)?;
        match self.policy.admit(&certificate) {
            // The session tells it that it is held back or signed out, and hears what it remembers.
            Ok(_) | Err(Code::Held | Code::SignedOut) => Ok(verified),
            Err(_) => Err(Error::InvalidCertificate(CertificateError::Revoked)),
        }
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
        self.webpki.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }
}
