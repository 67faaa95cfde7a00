//! Reads the settings again while the server runs, on `aditd reload` and SIGHUP. A bad file changes
//! nothing.

use std::{
    collections::BTreeMap,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use common::machine::{
    control, json,
    owner::become_owner_of,
    report::{Exit, Failure, say},
};
use proto::identity::Name;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info, warn};

use crate::{
    audit::Event,
    config::{Config, Flags, Settings},
    documents::ReloadShown,
    running::{self, Answer, Request, Server},
    sandbox,
    state::{self, register::Snapshot},
};

/// The result of a reload.
pub(crate) struct Reloaded {
    pub file: PathBuf,
    /// Changed settings that need a restart.
    pub later: Vec<&'static str>,
    pub remarks: Vec<String>,
}

impl Config {
    /// Settings that are not errors, but probably mistakes: roles of devices that the configuration
    /// does not have, and devices of the configuration that are not enrolled.
    pub fn remarks(&self, register: &Snapshot) -> Vec<String> {
        let mut lost = BTreeMap::<_, Vec<_>>::new();
        for device in register
            .devices()
            .filter(|device| device.revoked.is_none() && !self.rules.knows(&device.role))
        {
            lost.entry(&device.role).or_default().push(format!("`{}`", device.name));
        }
        for key in
            register.keys().filter(|key| key.revoked.is_none() && !self.rules.knows(&key.role))
        {
            lost.entry(&key.role).or_default().push(format!("`{}`", key.name));
        }
        let is_unused = self.https.is_none() && self.jwt.as_ref().is_some_and(|jwt| !jwt.tunnel);
        let unused = is_unused.then(|| {
            "`[jwt]` is in the configuration, but nothing uses it: HTTPS is off, and `tunnel` is not true".to_owned()
        });
        let is_elsewhere = self.acme().is_some()
            && self.https.iter().all(|it| it.listen.iter().all(|address| address.port() != 443));
        let elsewhere = is_elsewhere.then(|| {
            "a certificate authority checks the names of `[https.acme]` at port 443, where aditd does not listen: forward that port to the one of `listen`".to_owned()
        });
        let roles = lost.into_iter().map(|(role, mut devices)| {
            devices.sort();
            format!("the role `{role}` is not in the configuration, so these devices or keys may do nothing: {}", devices.join(", "))
        });
        let is_there = |name: &Name| {
            register.devices().any(|device| device.name == *name)
                || register.keys().any(|key| key.name == *name)
        };
        let devices = self.devices.iter().filter(|name| !is_there(name));
        roles
            .chain(devices.map(|name| {
                format!(
                    "`[devices.{name}]` is in the configuration, but there is no such device or key"
                )
            }))
            .chain(unused)
            .chain(elsewhere)
            .collect()
    }
}

impl Server {
    /// Puts the settings that the file has now in force; settings that need a restart are listed.
    /// If the command `named` a file, it must be the server's. Reloads take turns.
    ///
    /// # Cancel safety
    /// Cancel safe: dropped before its end, it changes nothing.
    ///
    /// # Errors
    /// What is wrong with the file, and where. Nothing has changed then, and the log says why.
    pub(crate) async fn reload(&self, named: Option<&Path>) -> Result<Reloaded, Failure> {
        // One at a time, and the file is read within the turn. Otherwise an older version of the
        // file could be put in force after a newer one, and give back a withdrawn right.
        let _turn = self.reloading.lock().await;
        let result = self.read_again(named).await;
        if let Err(failure) = &result {
            error!("the settings have not changed: {failure}");
        }
        let refused = result.as_ref().err().map(|why| why.to_string().replace('\n', " "));
        self.accounting.audit.note(Event::Reload { refused });
        result
    }

    async fn read_again(&self, named: Option<&Path>) -> Result<Reloaded, Failure> {
        let Settings { flags, serve, config } = &self.settings;
        let Some(file) = flags.file() else {
            return Err(Failure::new("aditd was started without a configuration file: there is none to read again")
                .hint("start it again with `aditd serve --config FILE`, or with the file at /etc/adit/aditd.toml")
                .exit(Exit::Usage));
        };
        if let Some(named) = named.filter(|named| !is_same(named, &file)) {
            return Err(Failure::new(format!(
                "the server's configuration is `{}`, not `{}`",
                file.display(),
                named.display()
            ))
            .hint("to read that again, leave out --config; to use another, start aditd with it")
            .exit(Exit::Usage));
        }
        let (flags, serve) = (Flags { config: Some(file.clone()), ..flags.clone() }, serve.clone());
        let (https, authorities) = (self.open.https.clone(), self.state.authorities.get());
        let read = tokio::task::spawn_blocking(move || {
            let now = Config::resolve(&flags, &serve).map_err(sandbox::explain)?;
            sandbox::check(&now)?;
            let next = https.as_deref().zip(now.https.clone());
            let next = next.map(|(https, settings)| https.prepare(settings, &authorities));
            Ok::<_, Failure>((now, next.transpose()?))
        });
        let read = read.await.map_err(|e| Failure::new("cannot read the configuration").source(e));
        let (now, next_https) = read??;
        self.policy.set_rules(now.rules.clone());
        self.policy.set_tokens(now.jwt.clone());
        self.sign_ins.set(now.oidc.clone());
        self.accounting.update(&now.accounting);
        self.gate.set_authority(now.authority());
        self.gate.judge_again();
        if let Some(https) = &self.open.https {
            if let Some(next) = next_https {
                https.put(next);
            }
            https.hurry_certificate();
        }
        let later = config.differences(&now);
        info!("`{}` has been read again and is in force", file.display());
        if !later.is_empty() {
            warn!("restart aditd to put these settings in force: {}", later.join(", "));
        }
        let remarks = now.remarks(&self.policy.snapshot());
        for remark in &remarks {
            warn!("{remark}");
        }
        Ok(Reloaded { file, later, remarks })
    }
}

/// Whether two paths name the same file.
fn is_same(one: &Path, other: &Path) -> bool {
    let place = |path: &Path| std::fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
    one == other || place(one).is_some_and(|at| place(other) == Some(at))
}

/// Reads the settings again on each SIGHUP.
pub(crate) async fn on_hangup(server: Arc<Server>) {
    let mut hangups = match signal(SignalKind::hangup()) {
        Ok(hangups) => hangups,
        Err(e) => return error!("cannot listen for SIGHUP: {e}"),
    };
    while hangups.recv().await.is_some() {
        // A failure was logged.
        let _ = server.reload(None).await;
    }
}

/// `aditd reload`: the server reads its own file; a file that the command names is only compared
/// with it.
pub(crate) async fn run(flags: &Flags, json: bool) -> Result<(), Failure> {
    let dir = flags.state_dir()?;
    let named = flags.config.is_some().then(|| flags.file()).flatten();
    become_owner_of(&dir)?;
    match control::ask(&dir, &Request::Reload { named }).await? {
        Some(Answer::Reloaded { file, later, remarks }) => {
            if json {
                let (file, needs_restart) = (file.clone(), later.clone());
                json::answer(ReloadShown { file, needs_restart, remarks: remarks.clone() })?;
            }
            say(format!("`{}` has been read again and is in force.", file.display()));
            if !later.is_empty() {
                say(format!(
                    "Note: restart aditd to put these settings in force: {}.",
                    later.join(", ")
                ));
            }
            for remark in remarks {
                say(format!("Note: {remark}."));
            }
            Ok(())
        }
        Some(Answer::Failed(why)) => {
            Err(Failure::new("the settings have not changed").caused_by(why))
        }
        Some(_) => Err(running::of_another_version()),
        None => {
            let what = format!("aditd is not running on the state in `{}`", dir.display());
            let start = format!("start it with `{}`", super::started::command(&dir));
            Err(state::not_there(what, start, &dir))
        }
    }
}
