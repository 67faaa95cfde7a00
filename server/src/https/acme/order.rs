//! One order: the account, the challenges, the certificate (RFC 8555 section 7.4).

use std::{sync::Arc, time::Duration};

use common::machine::report::Failure;
use data_encoding::BASE64URL_NOPAD;
use instant_acme::{
    Account, AuthorizationStatus, CertificateIdentifier, ChallengeType, Error, ExternalAccountKey,
    Identifier, NewAccount, NewOrder, Order, OrderStatus, RetryPolicy,
};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use zeroize::Zeroizing;

use super::{
    challenges::{Challenges, Waiting},
    directory::Directory,
    fault::Fault,
    settings::{AcmeName, AcmeSettings},
    store::{self, Held, Store},
};

/// How long an authority may take to check the names, and to issue the certificate.
const CHECKED: RetryPolicy = RetryPolicy::new()
    .initial_delay(Duration::from_millis(500))
    .backoff(1.5)
    .timeout(Duration::from_secs(120));
/// The longest file of a MAC key, in bytes.
const LONGEST_KEY: u64 = 4096;

/// What one order needs.
pub(super) struct Orders<'a> {
    pub(super) settings: &'a AcmeSettings,
    pub(super) store: &'a Store,
    pub(super) challenges: &'a Arc<Challenges>,
    pub(super) directory: &'a Directory,
}

impl Orders<'_> {
    /// Orders a certificate, proves the names, and keeps what was issued. `before`: the certificate
    /// that it replaces, for an authority that wants to know it (RFC 9773 section 5).
    ///
    /// # Errors
    /// Why there is none. Nothing else has changed then.
    ///
    /// # Cancel safety
    /// Dropped before its end, it leaves an order at the authority that ends by itself.
    pub(super) async fn certificate(&self, before: Option<&Held>) -> Result<Held, Fault> {
        let account = self.account().await?;
        let names: Vec<Identifier> = self.settings.names.iter().map(AcmeName::identifier).collect();
        let mut order = self.order(&account, &names, before).await?;
        // Answered until the authority has come to a result.
        let _waiting = self.prepare(&mut order).await?;
        match order.poll_ready(&CHECKED).await {
            Ok(OrderStatus::Ready | OrderStatus::Valid) => {}
            result => return Err(self.refusal(&mut order, result.err()).await),
        }
        let key = KeyPair::generate().map_err(Fault::inside)?;
        let mut params = CertificateParams::new(
            self.settings.names.iter().map(ToString::to_string).collect::<Vec<_>>(),
        )
        .map_err(Fault::inside)?;
        params.distinguished_name = DistinguishedName::new();
        let request = params.serialize_request(&key).map_err(Fault::inside)?;
        order.finalize_csr(request.der()).await?;
        let pem = order.poll_certificate(&CHECKED).await?;
        let key = Zeroizing::new(key.serialize_pem());
        let held = Held::read(self.settings, &pem, &key)?;
        self.store.keep_certificate(&held, pem, &key).map_err(own)?;
        Ok(held)
    }

    /// The time that the authority suggests for the renewal (RFC 9773 section 4): the window, and for
    /// how many seconds it wants no other question. `None` if it suggests none.
    ///
    /// # Errors
    /// It was not reached, or has not understood.
    pub(super) async fn suggestion(&self, held: &Held) -> Result<Option<((i64, i64), i64)>, Fault> {
        let Some(id) = id(held) else { return Ok(None) };
        let Some(kept) = self.store.account(self.settings).map_err(own)? else { return Ok(None) };
        let builder = Account::builder_with_http(Box::new(self.directory.clone()));
        let account = builder.from_credentials(kept.credentials).await?;
        match account.renewal_info(&id).await {
            Ok((info, pause)) => {
                let window = &info.suggested_window;
                let window = (window.start.unix_timestamp(), window.end.unix_timestamp());
                Ok(Some((window, i64::try_from(pause.as_secs()).unwrap_or(i64::MAX))))
            }
            Err(Error::Unsupported(_)) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// The account of this server, which is made if there is none.
    async fn account(&self) -> Result<Account, Fault> {
        let builder = Account::builder_with_http(Box::new(self.directory.clone()));
        let contact = self.settings.contact.iter().map(|address| format!("mailto:{address}"));
        let contact: Vec<String> = contact.collect();
        let told: Vec<&str> = contact.iter().map(String::as_str).collect();
        if let Some(mut kept) = self.store.account(self.settings).map_err(own)? {
            let again = serde_json::to_value(&kept.credentials).map_err(Fault::inside)?;
            let account = builder.from_credentials(kept.credentials).await?;
            if kept.contact != contact {
                account.update_contacts(&told).await?;
                kept.credentials = serde_json::from_value(again).map_err(Fault::inside)?;
                kept.contact = contact;
                self.store.keep_account(&kept).map_err(own)?;
            }
            return Ok(account);
        }
        let external = self.settings.external_account.as_ref().map(|external| {
            let wrong = |e: &dyn std::fmt::Display| {
                Fault::new(format!("cannot use `{}`: {e}", external.key_file.display()))
            };
            let text = store::read_up_to(&external.key_file, LONGEST_KEY).map_err(|e| wrong(&e))?;
            let text = Zeroizing::new(text);
            let key = text.trim_ascii();
            let key = key.split(|byte| *byte == b'=').next().unwrap_or(key);
            let key = Zeroizing::new(BASE64URL_NOPAD.decode(key).map_err(|e| wrong(&e))?);
            Ok::<_, Fault>(ExternalAccountKey::new(external.id.clone(), &key))
        });
        let external = external.transpose()?;
        let new = NewAccount {
            contact: &told,
            // The settings are refused without it.
            terms_of_service_agreed: true,
            only_return_existing: false,
        };
        let directory = self.settings.directory.to_string();
        let (account, credentials) =
            builder.create(&new, directory.clone(), external.as_ref()).await?;
        let kept = store::Account { directory, contact, credentials };
        self.store.keep_account(&kept).map_err(own)?;
        Ok(account)
    }

    async fn order(
        &self,
        account: &Account,
        names: &[Identifier],
        before: Option<&Held>,
    ) -> Result<Order, Fault> {
        let new = || match &self.settings.profile {
            Some(profile) => NewOrder::new(names).profile(profile),
            None => NewOrder::new(names),
        };
        if let Some(id) = before.and_then(id) {
            match account.new_order(&new().replaces(id)).await {
                Ok(order) => return Ok(order),
                // It does not know that certificate, or knows no replacements.
                Err(Error::Unsupported(_) | Error::Other(_)) => {}
                Err(Error::Api(problem))
                    if problem.status.is_some_and(|status| matches!(status, 400 | 404 | 409)) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(account.new_order(&new()).await?)
    }

    /// Has each challenge answered, and then checked.
    async fn prepare(&self, order: &mut Order) -> Result<Vec<Waiting>, Fault> {
        let mut waiting = Vec::new();
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization?;
            match authorization.status {
                AuthorizationStatus::Valid => continue,
                AuthorizationStatus::Pending => {}
                status => {
                    return Err(Fault::new(format!(
                        "a name cannot be proved: its state at the authority is {status:?}"
                    )));
                }
            }
            let asked = authorization.identifier().to_string();
            let name = self.settings.names.iter().find(|name| name.to_string() == asked);
            let name = name.ok_or_else(|| {
                Fault::new(format!("the authority asks for `{asked}`, which was not ordered"))
            })?;
            let mut challenge = authorization.challenge(ChallengeType::TlsAlpn01).ok_or_else(|| {
                Fault::new(format!("the authority offers no check by tls-alpn-01 for {name}, and aditd knows no other one"))
            })?;
            let digest = challenge.key_authorization().digest();
            waiting.push(self.challenges.wait(name, digest.as_ref())?);
            challenge.set_ready().await?;
        }
        Ok(waiting)
    }

    /// Why an order came to nothing: what the authority says about a name, else about the order.
    async fn refusal(&self, order: &mut Order, error: Option<Error>) -> Fault {
        let mut authorizations = order.authorizations();
        while let Some(Ok(mut authorization)) = authorizations.next().await {
            if authorization.refresh().await.is_err() {
                break;
            }
            let name = authorization.identifier().to_string();
            let problem = authorization.challenges.iter().find_map(|one| one.error.as_ref());
            if let Some(problem) = problem {
                return Fault::of_name(&name, problem);
            }
        }
        error.map_or_else(|| Fault::new("the authority has refused the order"), Fault::from)
    }
}

/// By what an authority knows a certificate (RFC 9773 section 4.1).
fn id(held: &Held) -> Option<CertificateIdentifier<'static>> {
    let id = CertificateIdentifier::try_from(held.key.cert.first()?).ok()?;
    Some(id.into_owned())
}

/// A failure of this machine.
fn own(failure: Failure) -> Fault {
    Fault::new(failure.to_string().replace('\n', " "))
}
