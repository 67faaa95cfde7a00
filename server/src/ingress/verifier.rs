//! The judgement inside the handshake: the certificate is this CA's, for a device, in time, and the
//! register admits its device.

use std::{fmt, sync::Arc};

use common::transport::tls;
use proto::identity::Certificate;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    pki_types::{CertificateDer, UnixTime},
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};

use crate::policy::{Policy, RECOVER_WITHIN};

/// Asks webpki, then the live register.
pub struct DeviceVerifier {
    webpki: Arc<dyn ClientCertVerifier>,
    policy: Arc<Policy>,
}

impl DeviceVerifier {
    /// A verifier for certificates of `ca`.
    pub fn new(ca: CertificateDer<'static>, policy: Arc<Policy>) -> Result<Self, Error> {
        let webpki = WebPkiClientVerifier::builder_with_provider(tls::roots(ca)?, tls::provider())
            .build()
            .map_err(|e| Error::General(e.to_string()))?;
        Ok(Self { webpki, policy })
    }
}

impl fmt::Debug for DeviceVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DeviceVerifier")
    }
}

impl ClientCertVerifier for DeviceVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // The CA's name is nobody's business.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let certificate = Certificate::from_der(end_entity)
            .map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
        // A device that slept past its certificate's end may come in to renew it; the policy lets
        // it do nothing else.
        let late = now.as_secs() as i64 - certificate.not_after;
        let judged_at = match u64::try_from(certificate.not_after) {
            Ok(end) if (1..=RECOVER_WITHIN).contains(&late) => {
                UnixTime::since_unix_epoch(std::time::Duration::from_secs(end))
            }
            _ => now,
        };
        let verified = self.webpki.verify_client_cert(end_entity, intermediates, judged_at)?;
        self.policy
            .admit(&certificate)
            .map_err(|_| Error::InvalidCertificate(CertificateError::Revoked))?;
        Ok(verified)
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
