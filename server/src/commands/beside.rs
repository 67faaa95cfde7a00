//! The settings of a command that runs beside a server: those in force in the running server,
//! whatever the command's own configuration says. Without a running server: the command's own
//! configuration.

use std::path::{Path, PathBuf};

use common::machine::{
    control,
    owner::become_owner_of,
    process,
    report::{Exit, Failure},
};
use proto::identity::Name;

use crate::{
    audit::AuditSettings,
    changes::{AuditLog, Changes},
    config::{self, Config, Flags, ServeFlags},
    policy::roles::either,
    running::{Answer, InForce, Request},
    state::State,
};

/// The settings that a command goes by.
pub(crate) struct Beside {
    pub dir: PathBuf,
    in_force: InForce,
    /// The command's own configuration, if no server runs.
    config: Option<Config>,
}

impl Beside {
    /// Asks the running server; reads the configuration if none runs or the running one is older.
    /// Root gets the rights of the state's owner, and no others.
    ///
    /// # Errors
    /// The error of the configuration, if that had to be read.
    pub(crate) async fn resolve(flags: &Flags) -> Result<Self, Failure> {
        let dir = flags.state_dir()?;
        become_owner_of(&dir)?;
        if let Ok(Some(Answer::InForce(in_force))) = control::ask(&dir, &Request::InForce).await {
            return Ok(Self { dir, in_force, config: None });
        }
        let config = Config::resolve(flags, &ServeFlags::default())?;
        let in_force = InForce {
            roles: config.rules.names().cloned().collect(),
            audit: config.accounting.audit.clone(),
            https: config
                .https
                .iter()
                .flat_map(|https| &https.listen)
                .map(ToString::to_string)
                .collect(),
            tokens: config.jwt.is_some(),
            sign_in: config.oidc.is_some(),
            addresses: config::addresses(&config.advertise, &config.listen, &config.audience),
        };
        Ok(Self { dir, in_force, config: Some(config) })
    }

    /// Whether people can sign in.
    pub(crate) fn signs_in(&self) -> bool {
        self.in_force.sign_in
    }

    pub(crate) fn audit(&self) -> &AuditSettings {
        &self.in_force.audit
    }

    /// Changes of this state that the user makes who runs this command.
    pub(crate) fn changes<'a>(&'a self, state: &'a State) -> Changes<'a> {
        Changes { state, log: AuditLog::Command(self.audit()), uid: process::uid() }
    }

    /// What to say to whoever has made a key while nothing listens for keys.
    pub(crate) fn https_note(&self) -> Option<&'static str> {
        self.in_force.https.is_empty().then_some(
            "Note: keys are for HTTPS, which is off: `aditd serve --https 192.168.1.7:8443 --https-allow-from 192.168.1.0/24`, with an address of this machine",
        )
    }

    /// Whether the HTTPS listener is on.
    pub(crate) fn https_is_on(&self) -> bool {
        !self.in_force.https.is_empty()
    }

    /// Whether tokens of a provider count.
    pub(crate) fn tokens(&self) -> bool {
        self.in_force.tokens
    }

    /// The names of all roles.
    pub(crate) fn roles(&self) -> &[Name] {
        &self.in_force.roles
    }

    pub(crate) fn knows(&self, role: &Name) -> bool {
        self.in_force.roles.contains(role)
    }

    /// Checks that there is such a role.
    ///
    /// # Errors
    /// Lists the roles that exist, and says how to make one.
    pub(crate) fn must_know(&self, role: &Name) -> Result<(), Failure> {
        if self.knows(role) {
            return Ok(());
        }
        let all: Vec<_> = self.in_force.roles.iter().collect();
        let reload = if self.config.is_none() { " and run `aditd reload`" } else { "" };
        Err(Failure::new(format!("there is no role `{role}`"))
            .hint(format!(
                "choose {}; or write a role of your own, `[roles.{role}]`, into the configuration{reload}",
                either(&all)
            ))
            .exit(Exit::Usage))
    }

    /// The addresses at which devices are told to find the server. Without a running server,
    /// `known` (the addresses that it last gave) counts more than the addresses that this machine
    /// has now.
    pub(crate) fn addresses(&self, known: Option<Vec<String>>) -> Vec<String> {
        let now = || self.in_force.addresses.clone();
        match &self.config {
            Some(config) if config.advertise.is_empty() => {
                known.filter(|known| !known.is_empty()).unwrap_or_else(now)
            }
            _ => now(),
        }
    }
}

/// The directory of the audit log, and that of the state.
///
/// # Errors
/// As [`Beside::resolve`].
pub(crate) async fn audit_dir(flags: &Flags) -> Result<(PathBuf, PathBuf), Failure> {
    let beside = Beside::resolve(flags).await?;
    let audit: &Path = &beside.audit().dir;
    Ok((audit.to_owned(), beside.dir))
}
