//! Certificates that a certificate authority issues and renews by ACME (RFC 8555). Whatever the
//! authority does, the certificate in use stays until there is another one.

mod challenges;
mod directory;
mod fault;
mod order;
mod schedule;
mod settings;
mod store;

pub(crate) use self::{
    challenges::Challenges,
    fault::AcmeCure,
    settings::{AcmeName, AcmeSettings, DirectoryUrl, ExternalAccount},
};

use std::{
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use common::machine::{
    process::unix_now,
    report::{Exit, Failure},
};
use proto::{clock::shown, crypto::fill_random};
use rustls::sign::CertifiedKey;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tracing::{debug, error, info, warn};

use self::{
    directory::Directory,
    fault::Fault,
    order::Orders,
    schedule::Attempts,
    store::{Held, Store},
};

/// How long an order may take.
const ORDER_WITHIN: Duration = Duration::from_secs(300);
/// The longest sleep, in seconds: a computer that was suspended looks at the clock soon.
const LONGEST_SLEEP: i64 = 30;
/// When to ask again for a time of renewal after the authority did not answer, in seconds.
const ASKED_AFTER_FAILURE: i64 = 6 * 3600;

/// Keeps one certificate.
pub(super) struct Acme {
    settings: AcmeSettings,
    /// How the server is started again.
    restart: AcmeCure,
    store: Store,
    challenges: Arc<Challenges>,
    standing: Mutex<Standing>,
    hurry: Notify,
}

#[derive(Debug, Default)]
struct Standing {
    held: Option<Held>,
    attempts: Attempts,
    failing: Option<(String, AcmeCure)>,
    next: Option<i64>,
}

/// A certificate by ACME, as `aditd status` prints it. Times are Unix seconds.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct AcmeStatus {
    /// The URL of the authority's directory.
    pub directory: String,
    /// The names that are ordered.
    pub names: Vec<String>,
    /// Whether the certificate in use is from there. If not, it is of our own CA.
    pub issued: bool,
    /// When the next order is made.
    pub next: Option<i64>,
    /// Why the last order has failed, if it has.
    #[serde(default)]
    pub failing: Option<String>,
    /// What to do about it.
    #[serde(default)]
    pub cure: Option<AcmeCure>,
}

impl Acme {
    /// Reads what the last start has left in the state directory. `restart`: how the server is started
    /// again.
    ///
    /// # Errors
    /// Others can read or replace these files, or a file that the settings name cannot be read.
    pub(super) fn open(
        settings: AcmeSettings,
        state: &Path,
        restart: AcmeCure,
    ) -> Result<Self, Failure> {
        for file in settings.files() {
            store::read_up_to(file, 1).map_err(|e| {
                Failure::new(format!("cannot read `{}`", file.display()))
                    .source(e)
                    .hint("name another file below `[https.acme]`, or let the user read it as whom aditd runs")
                    .exit(Exit::Usage)
            })?;
        }
        let store = Store::open(state)?;
        store.account(&settings)?;
        let (held, mut attempts) = (store.certificate()?, store.attempts()?);
        attempts.hurry(unix_now());
        let standing = Standing { held, attempts, ..Standing::default() };
        Ok(Self {
            settings,
            restart,
            store,
            challenges: Arc::default(),
            standing: Mutex::new(standing),
            hurry: Notify::new(),
        })
    }

    pub(super) fn challenges(&self) -> &Arc<Challenges> {
        &self.challenges
    }

    /// The certificate that was issued last.
    pub(super) fn current(&self) -> Option<(Arc<CertifiedKey>, Vec<String>)> {
        self.lock().held.as_ref().map(|held| (held.key.clone(), held.names().to_vec()))
    }

    /// Makes the next order as soon as one is allowed.
    pub(super) fn hurry(&self) {
        self.hurry.notify_one();
    }

    pub(super) fn status(&self) -> AcmeStatus {
        let standing = self.lock();
        let (failing, cure) = standing.failing.clone().unzip();
        AcmeStatus {
            directory: self.settings.directory.to_string(),
            names: self.settings.names.iter().map(ToString::to_string).collect(),
            issued: standing.held.is_some(),
            next: standing.next,
            failing,
            cure,
        }
    }

    /// Orders certificates when they are due, for as long as it is polled, and tells each new one.
    ///
    /// # Cancel safety
    /// Dropped before its end, it leaves at most an order at the authority that ends by itself.
    pub(super) async fn keep(&self, tell: impl Fn(Arc<CertifiedKey>, Vec<String>)) {
        loop {
            self.wait().await;
            let before = self.lock().held.clone().filter(|held| held.is_for(&self.settings));
            match self.order(before.as_ref()).await {
                Ok(held) => {
                    info!(
                        "{} has issued a certificate for {}, until {}",
                        self.settings.directory.host(),
                        held.names().join(", "),
                        shown(held.valid.1)
                    );
                    tell(held.key.clone(), held.names().to_vec());
                    self.settle(held);
                }
                Err((fault, until)) => self.fail(&fault, until),
            }
        }
    }

    /// Waits until an order is due. Asks the authority meanwhile when to renew.
    async fn wait(&self) {
        loop {
            let now = unix_now();
            let (next, ask) = {
                let mut standing = self.lock();
                let held = standing.held.as_ref().filter(|held| held.is_for(&self.settings));
                let (due, ask) = held.map_or((now, None), |held| (held.renew, Some(held.ask)));
                let next = due.max(standing.attempts.next());
                standing.next = Some(next);
                (next, ask)
            };
            if next <= now {
                return;
            }
            if ask.is_some_and(|ask| ask <= now) {
                self.ask(now).await;
                continue;
            }
            let pause = (next - now).min(LONGEST_SLEEP).unsigned_abs();
            tokio::select! {
                () = tokio::time::sleep(Duration::from_secs(pause)) => {}
                () = self.hurry.notified() => self.lock().attempts.hurry(unix_now()),
            }
        }
    }

    /// Asks when to renew.
    async fn ask(&self, now: i64) {
        let Some(held) = self.lock().held.clone() else { return };
        let suggested = async {
            let directory = Directory::new(&self.settings)?;
            self.orders(&directory).suggestion(&held).await
        };
        let (renew, ask) = match suggested.await {
            Ok(Some((window, pause))) => (
                schedule::renew_in(window, held.valid, chance()),
                schedule::ask_again_at(now, pause),
            ),
            Ok(None) => (held.renew, schedule::ask_again_at(now, i64::MAX)),
            Err(fault) => {
                debug!("the authority does not say when to renew: {}", fault.what());
                (held.renew, now + ASKED_AFTER_FAILURE)
            }
        };
        if let Some(held) = &mut self.lock().held {
            (held.renew, held.ask) = (renew, ask);
        }
    }

    async fn order(&self, before: Option<&Held>) -> Result<Held, (Fault, Option<i64>)> {
        let directory = Directory::new(&self.settings).map_err(|fault| (fault, None))?;
        let orders = self.orders(&directory);
        let held = tokio::time::timeout(ORDER_WITHIN, orders.certificate(before)).await;
        held.unwrap_or_else(|_| Err(Fault::new("the authority took longer than five minutes")))
            .map_err(|fault| (fault, directory.asked_until()))
    }

    fn orders<'a>(&'a self, directory: &'a Directory) -> Orders<'a> {
        let Self { settings, store, challenges, .. } = self;
        Orders { settings, store, challenges, directory }
    }

    /// A certificate was issued.
    fn settle(&self, held: Held) {
        let now = unix_now();
        let is_over = held.renew <= now;
        let valid = held.valid;
        let mut standing = self.lock();
        standing.held = Some(held);
        if is_over {
            drop(standing);
            let fault = Fault::new(format!(
                "the new certificate is valid from {} to {}, and this machine's clock shows {}",
                shown(valid.0),
                shown(valid.1),
                shown(now)
            ));
            return self.fail(&fault, None);
        }
        (standing.attempts, standing.failing) = (Attempts::default(), None);
        self.note(&standing.attempts);
    }

    fn fail(&self, fault: &Fault, asked_until: Option<i64>) {
        if fault.is_without_account() {
            self.store.forget_account();
        }
        let cure = fault.cure(&self.settings, &self.restart);
        let mut standing = self.lock();
        standing.attempts.fail(unix_now(), asked_until, chance());
        error!(
            "{} has issued no certificate: {}; the certificate in use stays, and the next order is at {}; {}: `{}`",
            self.settings.directory.host(),
            fault.what(),
            shown(standing.attempts.next()),
            cure.note,
            cure.command
        );
        standing.failing = Some((fault.what().to_owned(), cure));
        self.note(&standing.attempts);
    }

    fn note(&self, attempts: &Attempts) {
        if let Err(e) = self.store.keep_attempts(attempts) {
            warn!("{}", e.to_string().replace('\n', " "));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A random number from 0 to 1.
fn chance() -> f64 {
    let mut bytes = [0; 4];
    fill_random(&mut bytes);
    f64::from(u32::from_be_bytes(bytes)) / f64::from(u32::MAX)
}
