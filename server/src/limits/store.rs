//! The file with the tokens of the day, so that a restart gives no new allowance.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use common::machine::files::{self, FileError};
use tracing::warn;

use super::{Limiter, Usage};

/// How often usage is saved. A crash loses at most this much.
const EVERY: Duration = Duration::from_secs(1);

pub(crate) struct UsageFile {
    path: PathBuf,
}

impl UsageFile {
    /// The file's name in the state directory.
    pub(crate) const FILE: &str = "usage.json";

    /// The file of a server whose state is in `dir`.
    pub(crate) fn new(dir: &Path) -> Self {
        Self { path: dir.join(Self::FILE) }
    }

    /// Reads the usage. A damaged file must not keep the server from starting: it is logged, and
    /// the day starts at zero.
    pub(crate) fn load(&self) -> Usage {
        let read = files::read(&self.path).and_then(|bytes| {
            serde_json::from_slice(&bytes).map_err(|e| FileError::damaged(&self.path, e))
        });
        match read {
            Ok(usage) => usage,
            Err(e) if e.is_not_found() => Usage::default(),
            Err(e) => {
                warn!("cannot read today's token counts, so they start at 0: {e}");
                Usage::default()
            }
        }
    }

    /// Writes the usage. Blocks.
    ///
    /// # Errors
    /// When it can't be written; the file is then unchanged.
    pub(crate) fn save(&self, usage: &Usage) -> Result<(), FileError> {
        let bytes = serde_json::to_vec(usage).map_err(|e| FileError::damaged(&self.path, e))?;
        files::replace(&self.path, &bytes)
    }

    /// Saves what `limiter` counts for as long as it is polled. A failure is logged once, until
    /// saving succeeds again.
    pub(crate) async fn keep(self: Arc<Self>, limiter: Arc<Limiter>) {
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut unsaved, mut said) = (None, false);
        loop {
            ticks.tick().await;
            let Some(usage) = limiter.unsaved().or_else(|| unsaved.take()) else { continue };
            let file = self.clone();
            match tokio::task::spawn_blocking(move || (file.save(&usage), usage)).await {
                Ok((Ok(()), _)) => (unsaved, said) = (None, false),
                Ok((Err(e), usage)) => {
                    if !said {
                        warn!("cannot store today's token counts: {e}");
                    }
                    (unsaved, said) = (Some(usage), true);
                }
                Err(panic) => std::panic::resume_unwind(panic.into_panic()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proto::identity::DeviceId;

    use super::*;
    use crate::limits::Day;

    #[test]
    fn what_was_used_today_is_known_after_a_restart() {
        let tmp = tempfile::tempdir().expect("tempdir");
        let (file, id, today) =
            (UsageFile::new(tmp.path()), DeviceId::generate(), Day::of(1_800_000_000));
        assert_eq!(file.load(), Usage::default());
        let mut usage = Usage::default();
        usage.change(id, 0, 700, today);
        file.save(&usage.unsaved().expect("changed")).expect("saved");
        assert_eq!(file.load().used(id, today), 700);
        assert!(usage.unsaved().is_none(), "saved usage is not saved again");
    }

    #[test]
    fn a_damaged_file_lets_the_server_start() {
        let tmp = tempfile::tempdir().expect("tempdir");
        let file = UsageFile::new(tmp.path());
        files::replace(&tmp.path().join(UsageFile::FILE), b"{\"day\":").expect("written");
        assert_eq!(file.load(), Usage::default());
    }
}
