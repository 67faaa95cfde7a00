//! `adit service …`: the tunnel as a service of the user who runs this.

use std::path::PathBuf;

use clap::Args;
use common::machine::{
    report::{Exit, Failure},
    service::{self, Action},
};
use proto::service::Service;

use crate::profile::{DEFAULT_NAME, ProfileDir};

/// The unit of the packages.
const UNIT: &str = include_str!("../../packaging/adit.service");

/// Flags of `service`.
#[derive(Debug, Args)]
pub(crate) struct ServiceFlags {
    /// The tunnel to the server with this name [default: the only server, or the one called
    /// `default`]
    #[arg(long, value_name = "NAME", global = true)]
    pub(crate) server: Option<proto::identity::Name>,
    #[command(subcommand)]
    action: Action,
}

/// The places that the service is told.
pub(crate) struct Places {
    /// The state directory, if it was named.
    pub(crate) state_dir: Option<PathBuf>,
    /// The settings file, if it was named.
    pub(crate) config: Option<PathBuf>,
}

/// Does it.
///
/// # Errors
/// As [`service::run`]; before an install, if this device is not enrolled at the server.
pub(crate) fn run(
    profile_dir: &ProfileDir,
    flags: &ServiceFlags,
    places: &Places,
) -> Result<Option<Exit>, Failure> {
    if matches!(flags.action, Action::Install(_)) {
        // The service would fail for the same reason, and only its log would say it.
        profile_dir.read()?;
    }
    service::run(&of(profile_dir, places)?, flags.action)
}

/// The service of the tunnel to a server.
///
/// # Errors
/// If this user has no home, or the program is not found.
pub(crate) fn of(profile_dir: &ProfileDir, places: &Places) -> Result<Service, Failure> {
    let (home, user) = service::user()?;
    let server = profile_dir.name.as_str();
    let mut args = vec!["up".to_owned(), server.to_owned()];
    for (flag, place) in [("--state-dir", &places.state_dir), ("--config", &places.config)] {
        let Some(place) = place else { continue };
        let place = std::path::absolute(place).unwrap_or_else(|_| place.clone());
        args.extend([flag.to_owned(), place.display().to_string()]);
    }
    Ok(Service {
        manager: of_user(service::manager()),
        program: "adit",
        name: match server {
            DEFAULT_NAME => "adit".to_owned(),
            named => format!("adit-{named}"),
        },
        path: service::program()?,
        args,
        unit: UNIT,
        sysusers: None,
        home,
        user,
    })
}

/// The tunnel belongs to a user, also if that is root.
fn of_user(manager: proto::service::Manager) -> proto::service::Manager {
    use proto::service::Manager::{LaunchdSystem, LaunchdUser, System, User};
    match manager {
        System | User => User,
        LaunchdSystem | LaunchdUser => LaunchdUser,
    }
}
