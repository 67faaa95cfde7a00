//! The settings that are in force, and how others take their place while the listener runs.

use std::{
    net::IpAddr,
    sync::{Arc, PoisonError},
};

use common::machine::report::Failure;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::error;

use super::{CertificateSource, Https, HttpsSettings, acceptor, certificate::HttpsCertificate};
use crate::{
    ingress::filter::Audience,
    state::authorities::{Authorities, SharedAuthorities},
};

/// The settings, and what was made of them.
pub(super) struct InForce {
    pub(super) settings: HttpsSettings,
    pub(super) audience: Audience,
    pub(super) certificate: Arc<HttpsCertificate>,
}

/// Settings that can be put in force.
pub(crate) struct NextSettings {
    in_force: InForce,
    /// Of the certificate, if that is another one.
    acceptor: Option<TlsAcceptor>,
}

impl InForce {
    pub(super) fn new(settings: HttpsSettings, certificate: Arc<HttpsCertificate>) -> Self {
        Self { audience: Audience::new(settings.allow_from.clone()), settings, certificate }
    }
}

impl HttpsSettings {
    /// The settings that differ from those of a running listener and need another start, by their
    /// names in the file.
    pub(crate) fn later(&self, next: &Self) -> Vec<&'static str> {
        let listen = (self.listen != next.listen).then_some("https.listen");
        // An order at the authority may be on its way, and its certificate is kept for the next start.
        let acme =
            (self.source != next.source && self.is_by_acme_with(next)).then_some("https.acme");
        listen.into_iter().chain(acme).collect()
    }

    /// Whether the certificate is by ACME now, or would be next.
    fn is_by_acme_with(&self, next: &Self) -> bool {
        [self, next].iter().any(|it| matches!(it.source, CertificateSource::Acme(_)))
    }
}

impl Https {
    pub(super) fn in_force(&self) -> Arc<InForce> {
        self.in_force.borrow().clone()
    }

    /// Makes ready what other settings need; nothing changes yet. What needs another start stays as it
    /// is ([`HttpsSettings::later`]). Blocks.
    ///
    /// # Errors
    /// What is wrong with the files of the certificate.
    pub(crate) fn prepare(
        &self,
        mut next: HttpsSettings,
        authorities: &Authorities,
    ) -> Result<NextSettings, Failure> {
        let now = self.in_force();
        next.listen.clone_from(&now.settings.listen);
        if now.settings.is_by_acme_with(&next) {
            next.source = now.settings.source.clone();
            return Ok(NextSettings {
                in_force: InForce::new(next, now.certificate.clone()),
                acceptor: None,
            });
        }
        if (&next.source, &next.names) == (&now.settings.source, &now.settings.names) {
            let in_force = InForce::new(next, now.certificate.clone());
            return Ok(NextSettings { in_force, acceptor: None });
        }
        let certificate = HttpsCertificate::without_acme(&next, authorities)?;
        let acceptor = acceptor(&certificate, authorities, self.policy.clone())?;
        Ok(NextSettings { in_force: InForce::new(next, certificate), acceptor: Some(acceptor) })
    }

    /// Puts settings in force. Connections of networks that are not allowed any more are cut; others go
    /// on, with the certificate of their handshake.
    pub(crate) fn put(&self, next: NextSettings) {
        if let Some(acceptor) = next.acceptor {
            self.set_acceptor(acceptor);
        }
        self.in_force.send_replace(Arc::new(next.in_force));
    }

    /// Ends when the address may not reach the listener any more.
    pub(super) async fn shut_out(&self, from: IpAddr) {
        let mut changes = self.in_force.subscribe();
        // The sender lives as long as `self`.
        let _ = changes.wait_for(|now| !now.audience.includes(from)).await;
    }

    /// Follows the certificate, and the CAs whose devices are let in, for as long as it is polled.
    /// Once this process is `replaced`, no certificate is ordered.
    pub(crate) async fn follow_certificate(
        &self,
        authorities: &SharedAuthorities,
        replaced: &CancellationToken,
    ) {
        let mut changes = self.in_force.subscribe();
        loop {
            let now = changes.borrow_and_update().clone();
            let is_other = |next: &Arc<InForce>| !Arc::ptr_eq(&next.certificate, &now.certificate);
            tokio::select! {
                () = self.follow_source(&now.certificate, authorities, replaced) => return,
                () = self.follow_cas(&now.certificate, authorities) => return,
                _ = changes.wait_for(is_other) => {}
            }
        }
    }

    /// Follows where a certificate is from. Other names do not end an order at an authority.
    async fn follow_source(
        &self,
        certificate: &HttpsCertificate,
        authorities: &SharedAuthorities,
        replaced: &CancellationToken,
    ) {
        let names = async {
            let mut changes = self.in_force.subscribe();
            loop {
                let now = changes.borrow_and_update().clone();
                let is_other = |next: &Arc<InForce>| next.settings.names != now.settings.names;
                tokio::select! {
                    () = certificate.follow_names(&now.settings, authorities) => return,
                    _ = changes.wait_for(is_other) => {}
                }
            }
        };
        tokio::join!(certificate.follow(replaced), names);
    }

    /// Lets the devices of other CAs in when those have changed.
    async fn follow_cas(
        &self,
        certificate: &Arc<HttpsCertificate>,
        authorities: &SharedAuthorities,
    ) {
        let mut changes = authorities.changes();
        loop {
            match acceptor(certificate, &authorities.get(), self.policy.clone()) {
                Ok(acceptor) => self.set_acceptor(acceptor),
                Err(e) => error!("HTTPS: {e}"),
            }
            // An error would mean that the server is gone.
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    fn set_acceptor(&self, acceptor: TlsAcceptor) {
        *self.acceptor.write().unwrap_or_else(PoisonError::into_inner) = acceptor;
    }
}

#[cfg(test)]
mod tests {
    use std::{pin::pin, time::Duration};

    use super::*;
    use crate::{
        https::{AcmeCure, AcmeSettings},
        policy::{Policy, services::Services},
        state::State,
    };

    fn settings(listen: &str, source: CertificateSource) -> HttpsSettings {
        HttpsSettings {
            listen: vec![listen.parse().expect("an address")],
            allow_from: Vec::new(),
            names: Vec::new(),
            origins: Vec::new(),
            source,
        }
    }

    fn open(listen: &str) -> HttpsSettings {
        HttpsSettings {
            allow_from: vec!["10.0.0.0/8".parse().expect("a network")],
            origins: vec!["http://a.example".parse().expect("an origin")],
            ..settings(listen, CertificateSource::Own)
        }
    }

    #[test]
    fn an_address_needs_another_start_and_nothing_else_of_this_does() {
        let of = |cert: &str| CertificateSource::Files(cert.into(), "tls.key".into());
        let (one, other) = ("127.0.0.1:1", "127.0.0.1:2");
        let now = settings(one, of("a.crt"));
        assert_eq!(now.later(&open(one)), [""; 0]);
        assert_eq!(now.later(&settings(other, of("b.crt"))), ["https.listen"]);
    }

    #[tokio::test]
    async fn an_address_is_shut_out_when_its_network_is_not_allowed_any_more() {
        let tmp = tempfile::tempdir().expect("a directory");
        let state = State::open_or_create(&tmp.path().join("state")).expect("a state");
        let policy = Policy::new(Default::default(), Arc::default(), Services::default());
        let cure = AcmeCure { note: String::new(), command: String::new() };
        let one = "127.0.0.1:1";
        let https = Https::new(Vec::new(), open(one), &state, Arc::new(policy), cure);
        let https = https.expect("a listener");
        let from = "10.1.1.1".parse().expect("an address");
        assert!(https.admits(from));
        let authorities = state.authorities.get();
        let put = |next| https.put(https.prepare(next, &authorities).expect("prepared"));
        let mut out = pin!(https.shut_out(from));
        let mut is_out = async || {
            tokio::select! {
                biased;
                () = &mut out => true,
                () = tokio::task::yield_now() => false,
            }
        };
        put(HttpsSettings { origins: Vec::new(), ..open(one) });
        assert!(!is_out().await && https.admits(from));
        put(settings(one, CertificateSource::Own));
        assert!(is_out().await && !https.admits(from));
    }

    #[tokio::test]
    async fn other_names_are_followed_until_an_authority_has_issued_a_certificate() {
        let tmp = tempfile::tempdir().expect("a directory");
        let state = State::open_or_create(&tmp.path().join("state")).expect("a state");
        let policy = Policy::new(Default::default(), Arc::default(), Services::default());
        let cure = AcmeCure { note: String::new(), command: String::new() };
        let acme = AcmeSettings {
            names: vec!["gpu.example".to_owned().try_into().expect("a name")],
            contact: Vec::new(),
            directory: "https://acme.example/directory".to_owned().try_into().expect("a URL"),
            directory_ca: None,
            profile: None,
            external_account: None,
        };
        let named = |name: &str| HttpsSettings {
            names: vec![name.parse().expect("a name")],
            ..settings("127.0.0.1:1", CertificateSource::Acme(acme.clone()))
        };
        let https = Https::new(Vec::new(), named("a.example"), &state, Arc::new(policy), cure);
        let https = https.expect("a listener");
        // Nothing is ordered in this test.
        let replaced = CancellationToken::new();
        replaced.cancel();
        let mut following = pin!(https.follow_certificate(&state.authorities, &replaced));
        let mut has = async |name: &str| {
            let has = async {
                while !https.status().certificate.names.iter().any(|it| it == name) {
                    tokio::task::yield_now().await;
                }
            };
            tokio::select! {
                () = &mut following => false,
                has = tokio::time::timeout(Duration::from_secs(10), has) => has.is_ok(),
            }
        };
        assert!(has("a.example").await);
        let next = named("b.example");
        assert_eq!(https.in_force().settings.later(&next), [""; 0]);
        https.put(https.prepare(next, &state.authorities.get()).expect("prepared"));
        assert!(has("b.example").await);
    }
}
