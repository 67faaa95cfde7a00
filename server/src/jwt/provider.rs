//! The keys of a provider: fetched, kept fresh, and kept while the provider is down.

use std::{
    io,
    path::Path,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::{Duration, Instant},
};

use tracing::{info, warn};

use super::{
    discovery::discover,
    fetch::{ProviderTrust, plain},
    keys::KeySet,
    schedule::Schedule,
    settings::{JwksSource, ProviderUrl},
};

/// How often a file is read again.
const FILE_EVERY: Duration = Duration::from_secs(2);
/// The longest file, in bytes.
const LONGEST_FILE: u64 = 1 << 20;

/// The keys of one provider.
#[derive(Debug)]
pub(crate) struct ProviderKeys {
    issuer: ProviderUrl,
    source: JwksSource,
    trust: ProviderTrust,
    current: RwLock<Arc<KeySet>>,
    /// Held while keys are fetched.
    schedule: tokio::sync::Mutex<Schedule>,
    failing: Mutex<Option<String>>,
    begun: Instant,
}

impl ProviderKeys {
    pub(super) fn new(issuer: ProviderUrl, source: JwksSource, trust: ProviderTrust) -> Self {
        Self {
            issuer,
            source,
            trust,
            current: RwLock::default(),
            schedule: tokio::sync::Mutex::default(),
            failing: Mutex::default(),
            begun: Instant::now(),
        }
    }

    /// The newest keys. They stay while the provider is down.
    pub(super) fn current(&self) -> Arc<KeySet> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Why the newest keys could not be fetched, if that failed last.
    pub(super) fn failing(&self) -> Option<String> {
        self.failing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Keeps the keys fresh for as long as it is polled.
    pub(super) async fn follow(&self) {
        loop {
            let wait = {
                let mut schedule = self.schedule.lock().await;
                if schedule.wait(self.begun.elapsed()).is_zero() {
                    self.fetch(&mut schedule).await;
                }
                schedule.wait(self.begun.elapsed())
            };
            match self.source {
                JwksSource::File(_) => {
                    tokio::time::sleep(FILE_EVERY).await;
                    *self.schedule.lock().await = Schedule::default();
                }
                _ => tokio::time::sleep(wait.max(Duration::from_millis(100))).await,
            }
        }
    }

    /// Fetches the keys because a token names an unknown one; waits for some seconds if they were
    /// fetched just before. Returns whether the provider has answered.
    pub(super) async fn fetch_for_a_token(&self) -> bool {
        let came = self.begun.elapsed();
        let mut schedule = self.schedule.lock().await;
        // All that wait here are served by one fetch.
        if !schedule.has_tried_since(came) {
            tokio::time::sleep(schedule.wait_for_a_token(self.begun.elapsed())).await;
            self.fetch(&mut schedule).await;
        }
        schedule.is_good()
    }

    /// Fetches the keys if they are older than they may get. Nobody has to follow them then.
    pub(super) async fn freshen(&self) {
        let mut schedule = self.schedule.lock().await;
        if schedule.wait(self.begun.elapsed()).is_zero() {
            self.fetch(&mut schedule).await;
        }
    }

    /// The keys that the provider has now. They are not put in use.
    ///
    /// # Errors
    /// Why there are none.
    pub(super) async fn look(&self) -> io::Result<KeySet> {
        let text = self.read().await?;
        // The error may quote the document.
        KeySet::parse(&text).map_err(|e| io::Error::other(plain(&e.to_string())))
    }

    async fn fetch(&self, schedule: &mut Schedule) {
        schedule.tries(self.begun.elapsed());
        let result = self.look().await;
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Ok(keys) => {
                // Not before the try: the two are compared.
                schedule.succeeds(self.begun.elapsed());
                let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
                if failing.take().is_some() || current.names() != keys.names() {
                    info!("{} has {} keys", self.issuer, keys.len());
                }
                *current = Arc::new(keys);
            }
            Err(e) => {
                let why = e.to_string();
                if failing.as_ref() != Some(&why) {
                    warn!("cannot get the keys of {}: {why}", self.issuer);
                }
                *failing = Some(why);
            }
        }
    }

    async fn read(&self) -> io::Result<Vec<u8>> {
        match &self.source {
            JwksSource::File(path) => read_file(path).await,
            JwksSource::Url(at) => self.trust.get(at.url()).await,
            JwksSource::Discovery => {
                let found = discover(&self.issuer, &self.trust).await?;
                let at = self.issuer.named(&found.jwks_uri).map_err(io::Error::other)?;
                self.trust.get(at.url()).await
            }
        }
    }
}

async fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let wrong =
        |e: io::Error| io::Error::new(e.kind(), format!("cannot read `{}`: {e}", path.display()));
    let length = tokio::fs::metadata(path).await.map_err(wrong)?;
    if !length.is_file() || length.len() > LONGEST_FILE {
        return Err(wrong(io::Error::other("it is not a file of at most 1 MiB")));
    }
    tokio::fs::read(path).await.map_err(wrong)
}
