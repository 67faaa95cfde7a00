//! `aditd service …`: the server as a service of the system, or of the user who runs this.

use std::path::Path;

use clap::Args;
use common::machine::{
    report::{Exit, Failure},
    service::{self, Action},
};
use proto::service::{Manager, Service};

use crate::{config::Flags, state};

/// The units of the packages.
const OF_SYSTEM: &str = include_str!("../../packaging/aditd.service");
const OF_USER: &str = include_str!("../../packaging/user/aditd.service");
const SYSUSERS: &str = include_str!("../../packaging/sysusers.conf");

/// Flags of `service`.
#[derive(Debug, Args)]
pub(crate) struct ServiceFlags {
    #[command(subcommand)]
    action: Action,
}

/// Does it.
///
/// # Errors
/// As [`service::run`]; exit code 2 if the service of the system would have its state elsewhere.
pub(crate) fn run(flags: &Flags, service: &ServiceFlags) -> Result<Option<Exit>, Failure> {
    service::run(&of(flags, &service.action)?, service.action)
}

fn of(flags: &Flags, action: &Action) -> Result<Service, Failure> {
    let manager = service::manager();
    let (home, user) = service::user()?;
    let of_system = manager == Manager::System;
    let usual = state::default_dir();
    let named = flags.state_dir.as_deref().filter(|dir| usual.as_deref() != Some(*dir));
    if let Some(dir) = named.filter(|_| of_system) {
        return Err(Failure::new("the service of the system keeps its state in `/var/lib/adit`")
            .source(format!("--state-dir or ADITD_STATE_DIR names `{}`", dir.display()))
            .hint(format!(
                "leave it out: `sudo env -u ADITD_STATE_DIR aditd service {}`",
                action.name()
            ))
            .exit(Exit::Usage));
    }
    let mut args = vec!["serve".to_owned()];
    for (flag, place) in [("--state-dir", named), ("--config", flags.config.as_deref())] {
        let Some(place) = place else { continue };
        args.extend([flag.to_owned(), absolute(place)]);
    }
    Ok(Service {
        manager,
        program: "aditd",
        name: "aditd".to_owned(),
        path: service::program()?,
        args,
        unit: if of_system { OF_SYSTEM } else { OF_USER },
        sysusers: of_system.then_some(SYSUSERS),
        home,
        user,
    })
}

fn absolute(path: &Path) -> String {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).display().to_string()
}
