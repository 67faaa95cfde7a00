//! Who makes a request: the holder of a key or of a token, or the device whose certificate the
//! handshake has verified. A key and a token count before a certificate.

use common::machine::process::unix_now;
use proto::{
    api_key::{ApiKey, KeyPrefix},
    http1::credentials::{Credentials, Token, credentials},
    identity::{Certificate, DeviceId},
    wire::Code,
};

use super::{
    super::{Turned, places::Origin},
    Visit,
};
use crate::{
    audit::Event,
    gate::refused::Refused,
    jwt::TokenHolder,
    policy::{Admitted, Caller, Denied, INVALID_KEY},
    record::{Asker, CarrierKind, Refusal},
};

/// What an application is told that brings no key.
const NO_KEY: &str = "this needs a key: send it as `Authorization: Bearer KEY` or as `X-Api-Key: KEY`; the owner of the server makes one with `aditd key create NAME`";

/// A caller.
pub(super) struct Identity {
    pub(super) asker: Asker,
    pub(super) proof: Proof,
}

/// By what a caller is known.
pub(super) enum Proof {
    Device(Certificate),
    Key { id: DeviceId, prefix: KeyPrefix },
    Token(Box<TokenHolder>),
}

impl Proof {
    pub(super) fn caller(&self) -> Caller<'_> {
        match self {
            Self::Device(certificate) => Caller::Device(certificate),
            Self::Key { id, prefix } => Caller::Key { id: *id, prefix },
            Self::Token(holder) => Caller::Token(holder),
        }
    }

    /// When its certificate expires, in Unix time; far away if it has none.
    pub(super) fn certificate_end(&self) -> i64 {
        match self {
            Self::Device(certificate) => certificate.not_after,
            Self::Key { .. } | Self::Token(_) => i64::MAX,
        }
    }
}

type Fields = Vec<(&'static str, String)>;

impl Visit<'_> {
    /// Finds out who makes the request with this head.
    ///
    /// # Errors
    /// The answer for a stranger, and its fields.
    pub(super) async fn identify(&self, head: &[u8]) -> Result<Identity, (Refused, Fields)> {
        match credentials(head) {
            Credentials::Key(key) => self.holder(&key),
            Credentials::Token(token) if self.service.policy.tokens().is_some() => {
                self.person(&token).await
            }
            Credentials::None => match &self.device {
                Some(certificate) => self.device(certificate),
                None => {
                    self.https.count(Turned::NoKey);
                    Err(unauthorized(NO_KEY))
                }
            },
            // With `[jwt]` a stranger learns that there is one, too, by what is told of his token.
            Credentials::Token(_) => {
                self.may_guess()?;
                Err(self.no_token(Denied::NoTokens, true))
            }
            Credentials::Wrong => {
                self.may_guess()?;
                Err(self.wrong(None))
            }
        }
    }

    /// The holder of a key.
    fn holder(&self, key: &ApiKey) -> Result<Identity, (Refused, Fields)> {
        let (now, from) = (unix_now(), Origin::from(self.remote.ip()));
        let snapshot = self.service.policy.snapshot();
        let found = snapshot.key_of(key, now);
        let is_known = found.is_some_and(|(key, _)| self.https.guesses().knows(from, key.id));
        if !is_known {
            // While an address guesses, not even the right key gets another answer.
            self.may_guess()?;
        }
        let Some((key, secret)) = found else { return Err(self.wrong(Some(key.prefix()))) };
        self.https.guesses().right(from, key.id, self.https.begun.elapsed());
        let proof = Proof::Key { id: key.id, prefix: secret.prefix.clone() };
        self.identity(proof)
    }

    /// The holder of a token.
    async fn person(&self, token: &Token) -> Result<Identity, (Refused, Fields)> {
        let from = Origin::from(self.remote.ip());
        let policy = self.service.policy;
        let holder = match policy.tokens() {
            Some(tokens) => tokens.judge(token.reveal()).await.map_err(Denied::from),
            None => Err(Denied::NoTokens),
        };
        // A guess is what nobody at the provider can have. An application whose token has ended keeps
        // no other one of its address out.
        let is_guess = match &holder {
            Ok(holder) => !self.https.guesses().knows(from, holder.id),
            Err(Denied::Token(fault)) => fault.is_forged(),
            Err(_) => false,
        };
        if is_guess {
            self.may_guess()?;
        }
        let holder = holder.map_err(|denied| self.no_token(denied, is_guess))?;
        self.https.guesses().right(from, holder.id, self.https.begun.elapsed());
        self.identity(Proof::Token(Box::new(holder)))
    }

    /// Counts a token that was refused, and notes it in the audit log.
    fn no_token(&self, denied: Denied, is_guess: bool) -> (Refused, Fields) {
        self.https.count(Turned::Token);
        if is_guess {
            let from = Origin::from(self.remote.ip());
            self.https.guesses().wrong(from, self.https.begun.elapsed());
        }
        let why = match &denied {
            Denied::Token(fault) => Some(fault.to_string()),
            Denied::NoTokens => Some("is not looked at: `[jwt]` is not set".to_owned()),
            _ => None,
        };
        if let Some(why) = why {
            self.service.audit.note(Event::TokenRefused { why, remote: self.remote });
        }
        let refused = Refused::from(denied);
        let fields = if refused.answer.status == 401 {
            // RFC 6750 section 3.1.
            vec![("WWW-Authenticate", "Bearer realm=\"adit\", error=\"invalid_token\"".to_owned())]
        } else {
            Fields::new()
        };
        (refused, fields)
    }

    fn device(&self, certificate: &Certificate) -> Result<Identity, (Refused, Fields)> {
        if certificate.not_after < unix_now() {
            return Err((Code::Expired.into(), Fields::new()));
        }
        self.identity(Proof::Device(certificate.clone()))
    }

    fn identity(&self, proof: Proof) -> Result<Identity, (Refused, Fields)> {
        let admitted = self.service.policy.admit_caller(proof.caller());
        let Admitted { kind, id, name, uid, user, has_signed_in } =
            admitted.map_err(|denied| (Refused::from(denied), Fields::new()))?;
        let (remote, carrier) = (self.remote, CarrierKind::Https);
        Ok(Identity {
            asker: Asker { id, name, uid, kind, user, has_signed_in, remote, carrier },
            proof,
        })
    }

    /// Whether another key of this address is looked at now.
    fn may_guess(&self) -> Result<(), (Refused, Fields)> {
        let from = Origin::from(self.remote.ip());
        let Some(wait) = self.https.guesses().wait(from, self.https.begun.elapsed()) else {
            return Ok(());
        };
        self.https.count(Turned::Guesses);
        let seconds = wait.as_secs() + 1;
        let sentence =
            format!("adit: too many wrong keys came from this address; try again in {seconds} s");
        let mut refused = Refused::new(429, Refusal::Limit("guesses"), sentence);
        refused.answer.retry_after = Some(seconds);
        Err((refused, Fields::new()))
    }

    /// Counts a wrong key, and notes it in the audit log. Their number is limited by
    /// [`Visit::may_guess`].
    fn wrong(&self, prefix: Option<KeyPrefix>) -> (Refused, Fields) {
        self.https.count(Turned::WrongKey);
        let from = Origin::from(self.remote.ip());
        self.https.guesses().wrong(from, self.https.begun.elapsed());
        let prefix = prefix.map(|prefix| prefix.to_string());
        self.service.audit.note(Event::KeyRefused { prefix, remote: self.remote });
        unauthorized(INVALID_KEY)
    }
}

/// RFC 9110 section 11.6.1; RFC 6750 section 3; RFC 7617 section 2.
fn unauthorized(why: &str) -> (Refused, Fields) {
    let challenge = |scheme: &str| ("WWW-Authenticate", scheme.to_owned());
    let fields = vec![
        challenge("Bearer realm=\"adit\""),
        challenge("Basic realm=\"adit\", charset=\"UTF-8\""),
    ];
    (Refused::new(401, Refusal::Key, format!("adit: {why}")), fields)
}
