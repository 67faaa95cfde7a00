//! `aditd doctor`: what is wrong on this machine, and what cures it.

use std::path::PathBuf;

use clap::Args;
use common::machine::{
    control,
    diagnosis::Wanted,
    owner::become_owner_of,
    report::{Exit, Failure},
};
use proto::doctor::{
    Report,
    gpu_box::{BoxFound, ServerFound, lines},
};

use crate::{
    commands::over_ssh::{self, nearby},
    config::{Config, Flags, ServeFlags},
    doctor,
    running::{self, Answer, Request},
    serve::started,
};

/// Where a device over SSH says which port it was told.
const RELAY_PORT: &str = "ADITD_RELAY_PORT";

/// Flags of `doctor`.
#[derive(Debug, Args)]
pub(crate) struct DoctorFlags {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Also write what was found to FILE, for a bug report, without secrets
    #[arg(long, value_name = "FILE")]
    bundle: Option<PathBuf>,
    /// Print the report for `adit doctor`, which runs this over SSH
    #[arg(long, hide = true, conflicts_with_all = ["json", "bundle"])]
    over_ssh: bool,
}

/// Looks, and shows what was found. Returns the exit code.
///
/// # Errors
/// When the report can't be shown or written.
pub(crate) async fn run(flags: &Flags, doctor: DoctorFlags) -> Result<Option<Exit>, Failure> {
    if doctor.over_ssh {
        return over_ssh::doctor(report(flags)).await.map(|()| None);
    }
    let wanted = Wanted { json: doctor.json, bundle: doctor.bundle };
    wanted.check()?;
    let report = report(flags).await?;
    wanted.show("aditd", &report, None, |_| {})
}

/// What is found by a user of this machine.
///
/// # Errors
/// Exit code 2 if there is no place for the state.
pub(crate) async fn report(flags: &Flags) -> Result<Report, Failure> {
    let dir = flags.state_dir()?;
    become_owner_of(&dir)?;
    let settled = Config::resolve(flags, &ServeFlags::default());
    let config = match &settled {
        Ok(config) => config.clone(),
        // What is wrong with the file is one of the lines; the rest is looked at as without it.
        Err(_) => Config::resolve(
            &Flags { state_dir: Some(dir.clone()), config: Some("/dev/null".into()) },
            &ServeFlags::default(),
        )?,
    };
    let shown = |config: Config| config.file.map(|file| file.display().to_string());
    let others = doctor::Others::of(&config);
    let (asked, here) =
        tokio::join!(control::ask(&dir, &Request::Doctor), doctor::look_around(&config, &others));
    let here = BoxFound { config: Some(settled.map(shown)), ..here };
    let found = match asked {
        // The running server knows what is in force there; this command sees what starts it, and
        // what it would read at its next start.
        Ok(Some(Answer::Doctor(there))) => BoxFound {
            version: here.version,
            state: here.state,
            unit: here.unit,
            config: match &there.config {
                // The server was started with a file that this command was not told.
                Some(Ok(Some(file))) if flags.config.is_none() => {
                    let flags = Flags { state_dir: Some(dir.clone()), config: Some(file.into()) };
                    Some(Config::resolve(&flags, &ServeFlags::default()).map(shown))
                }
                _ => here.config,
            },
            ..*there
        },
        Ok(None) if of_another(&config, &here).await => BoxFound {
            server: ServerFound::OfAnother,
            // What another user's server has is elsewhere.
            state: None,
            clock: None,
            certificate: None,
            max_in_flight: None,
            authorize: None,
            sign_in: None,
            tokens: None,
            ..here
        },
        Ok(None) => here,
        Ok(Some(_)) => {
            BoxFound { server: ServerFound::Unasked(running::of_another_version()), ..here }
        }
        Err(e) => {
            let failure = Failure::from(e).hint("if it belongs to root: `sudo aditd doctor`");
            BoxFound { server: ServerFound::Unasked(failure), ..here }
        }
    };
    let argument = argument(flags);
    let start = started::noted(&dir).unwrap_or_else(|| format!("aditd serve{argument}"));
    let found = BoxFound { argument, start, ..found };
    Ok(Report::new(env!("CARGO_PKG_VERSION"), lines(&found)))
}

/// Whether a server runs here, on a state that is not this user's: by what systemd says, or because
/// somebody listens where a server would.
async fn of_another(config: &Config, here: &BoxFound) -> bool {
    let unit = here.unit.as_ref().and_then(|unit| unit.state.as_ref());
    let known = std::env::var(RELAY_PORT).ok().and_then(|port| port.parse().ok());
    unit.is_some_and(|unit| unit.active == "active")
        || nearby::first_listening(&nearby::candidates(config, known)).await.is_some()
}

/// What stands behind a command so that it means the same server.
fn argument(flags: &Flags) -> String {
    let is_set = |name: &str, path: &PathBuf| std::env::var_os(name).is_some_and(|v| v == *path);
    let one = |flag: &str, name: &str, path: &Option<PathBuf>| match path {
        Some(path) if !is_set(name, path) => format!(" {flag} '{}'", path.display()),
        _ => String::new(),
    };
    one("--state-dir", "ADITD_STATE_DIR", &flags.state_dir)
        + &one("--config", "ADITD_CONFIG", &flags.config)
}
