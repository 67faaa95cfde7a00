//! The check inside the TLS handshake: the certificate was signed by this CA, for a device, has not
//! expired, and the register admits the device.

use std::{fmt, sync::Arc};

use common::transport::tls;
use proto::identity::{Certificate, RECOVER_WITHIN};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    pki_types::{CertificateDer, UnixTime},
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};

use crate::{policy::Policy, state::ca::Ca};

/// Checks a certificate by webpki, then by the current register.
pub(crate) struct DeviceVerifier {
    webpki: Arc<dyn ClientCertVerifier>,
    policy: Arc<Policy>,
    earliest: i64,
}

impl DeviceVerifier {
    /// A verifier for certificates of `ca`.
    pub(crate) fn new(ca: &Ca, policy: Arc<Policy>) -> Result<Self, Error> {
        let roots = tls::roots(ca.certificate().clone())?;
        let webpki = WebPkiClientVerifier::builder_with_provider(roots, tls::provider())
            .build()
            .map_err(|e| Error::General(e.to_string()))?;
        Ok(Self { webpki, policy, earliest: ca.earliest() })
    }
}

impl fmt::Debug for DeviceVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DeviceVerifier")
    }
}

impl ClientCertVerifier for DeviceVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // The CA's name is not sent: it would identify the server.
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
        // A device whose certificate has expired may connect to renew it; the policy allows it
        // nothing else.
        let at = |seconds| {
            let seconds = u64::try_from(seconds).unwrap_or(0);
            UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds))
        };
        let late = now.as_secs() as i64 - certificate.not_after;
        let judged_at = if (1..=RECOVER_WITHIN).contains(&late) {
            at(certificate.not_after)
        } else if (now.as_secs() as i64) < self.earliest {
            // A clock that is certainly wrong must not decide about times. The session is ended at
            // once and says whose clock is wrong.
            at(certificate.not_before)
        } else {
            now
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
