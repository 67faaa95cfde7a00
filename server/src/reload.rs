//! The settings, read again while the server runs: on `aditd reload` and SIGHUP. A bad file changes nothing.

use std::{path::Path, sync::Arc};

use common::{
    control,
    report::{Exit, Failure, say},
};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info, warn};

use crate::{
    audit::Event,
    config::{Config, Flags, ServeFlags},
    running::{Answer, Request, Server},
};

/// What the server was started with.
pub struct Settings {
    /// Flags of every command.
    pub flags: Flags,
    /// Flags of `serve`.
    pub serve: ServeFlags,
    /// What they and the file came to.
    pub config: Config,
}

impl Server {
    /// Puts what the file says now in force; settings that need a restart are named.
    ///
    /// # Errors
    /// What is wrong with the file, and where. Then all is as it was.
    pub async fn reload(&self) -> Result<Vec<&'static str>, Failure> {
        let result = self.read_again().await;
        let refused = result.as_ref().err().map(|why| why.to_string().replace('\n', " "));
        self.meters.audit.note(Event::Reload { refused });
        result
    }

    async fn read_again(&self) -> Result<Vec<&'static str>, Failure> {
        let Settings { flags, serve, config } = &self.settings;
        let (flags, serve) = (flags.clone(), serve.clone());
        let read = tokio::task::spawn_blocking(move || Config::settle(&flags, &serve)).await;
        let now = read.map_err(|e| Failure::new("cannot read the configuration").because(e))??;
        self.policy.set_rules(now.rules.clone());
        self.meters.update(&now.meters);
        self.gate.set_authority(now.authority());
        self.gate.judge_again();
        let later = config.differences(&now);
        info!("the configuration has been read again");
        if !later.is_empty() {
            warn!("in force after a restart: {}", later.join(", "));
        }
        Ok(later)
    }
}

/// Reads the settings again on each SIGHUP.
pub async fn on_hangup(server: Arc<Server>) {
    let mut hangups = match signal(SignalKind::hangup()) {
        Ok(hangups) => hangups,
        Err(e) => return error!("cannot listen for SIGHUP: {e}"),
    };
    while hangups.recv().await.is_some() {
        if let Err(failure) = server.reload().await {
            error!("the settings stay as they were: {failure}");
        }
    }
}

/// `aditd reload`.
pub async fn run(dir: &Path) -> Result<(), Failure> {
    match control::ask(dir, &Request::Reload).await? {
        Some(Answer::Reloaded { later }) => {
            say("The configuration has been read again and is in force.");
            if !later.is_empty() {
                say(format!("Note: in force after a restart: {}.", later.join(", ")));
            }
            Ok(())
        }
        Some(Answer::Failed(why)) => {
            let why = why.strip_prefix("error: ").unwrap_or(&why).to_owned();
            Err(Failure::new("the settings stay as they were").because(why).exit(Exit::Usage))
        }
        Some(_) => {
            Err(Failure::new("the running aditd answered something else").hint("restart it: it may be of another version"))
        }
        None => Err(Failure::new(format!("aditd is not running on `{}`", dir.display())).hint("start it with `aditd serve`")),
    }
}
