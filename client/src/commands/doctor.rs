//! `adit doctor`: finds what is wrong between a tool on this laptop and Ollama on the box, and names the
//! command that cures it.

mod laptop;
mod way;

use std::path::{Path, PathBuf};

use clap::Args;
use common::machine::{
    diagnosis::Wanted,
    progress::Progress,
    report::{Exit, Failure},
};
use proto::{
    doctor::{Group, Line, Report, examine, gpu_box, way::WayFound},
    identity::Name,
};

use crate::profile::{Profile, ProfileDir};

/// Flags of `doctor`.
#[derive(Debug, Args)]
pub(crate) struct DoctorFlags {
    /// Look at the way to the server with this name [default: the only server, or the one called
    /// `default`]
    name: Option<Name>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Also write what was found to FILE, for a bug report, without secrets
    #[arg(long, value_name = "FILE")]
    bundle: Option<PathBuf>,
}

/// Examines everything and shows the report. `is_named` says whether the state directory was named
/// on the command line; `settings` is the settings file, if there is one. Returns the exit code.
///
/// # Errors
/// When the report can't be shown or written, or it is not clear which server is meant.
pub(crate) async fn run(
    state_dir: &Path,
    is_named: bool,
    settings: Result<Option<PathBuf>, Failure>,
    flags: DoctorFlags,
) -> Result<Option<Exit>, Failure> {
    let wanted = Wanted { json: flags.json, bundle: flags.bundle };
    wanted.check()?;
    let profile_dir = ProfileDir::choose(state_dir, flags.name, "doctor")?;
    let progress = Progress::show("looking …");
    let (found, status) = laptop::look(state_dir, &profile_dir, settings).await;
    let mut lines = Vec::new();
    examine(Group::Laptop, &proto::doctor::laptop::CHECKS, &found, &mut lines);
    let box_name = match profile_dir.read() {
        Ok(profile) => {
            let (argument, name) = (found.argument.clone(), box_name(&profile));
            let looked = way::look(profile, argument, &found.adit, status.as_ref()).await;
            examine(Group::Way, &proto::doctor::way::CHECKS, &looked.found, &mut lines);
            lines.extend(box_lines(looked.over_tunnel, looked.over_ssh));
            Some(name)
        }
        // The line `device` already says why the profile can't be read.
        Err(_) => {
            let unseen = WayFound::unseen(&found.version);
            examine(Group::Way, &proto::doctor::way::CHECKS, &unseen, &mut lines);
            lines.push(gpu_box::unasked("`device`"));
            None
        }
    };
    drop(progress);
    if is_named {
        let flags = format!(" --state-dir '{}'", state_dir.display());
        let ours = lines.iter_mut().filter(|line| line.group != Group::Box);
        ours.flat_map(|line| &mut line.cures).for_each(|cure| cure.add_flags("adit", &flags));
    }
    let report = Report::new(env!("CARGO_PKG_VERSION"), lines);
    wanted.show("adit", &report, box_name.as_deref(), |bundle| {
        if let Some(status) = &status {
            bundle.add("status", "what `adit status --json` says", status);
        }
    })
}

/// The name of the box in the heading of its lines.
fn box_name(profile: &Profile) -> String {
    match (&profile.ssh, profile.enrolled.addresses.first()) {
        (Some(way), _) => way.to_string(),
        (None, Some(address)) => {
            address.rsplit_once(':').map_or(&**address, |(host, _)| host).to_owned()
        }
        (None, None) => profile.profile_dir.name.to_string(),
    }
}

/// The lines of the box: what it answered over the tunnel, and what `aditd doctor` printed over
/// SSH. A user who may log in there may see more than the device.
fn box_lines(over_tunnel: Result<Report, String>, over_ssh: Option<Report>) -> Vec<Line> {
    let mut lines = Vec::new();
    match (over_tunnel, &over_ssh) {
        (Ok(report), _) => lines.extend(report.lines_of_box()),
        (Err(_), Some(_)) => {}
        (Err(needs), None) => {
            return vec![gpu_box::unasked(&format!(
                "{needs}, or a login by SSH that may run `aditd doctor`"
            ))];
        }
    }
    for line in over_ssh.map(Report::lines_of_box).unwrap_or_default() {
        if !lines.iter().any(|known| known.id == line.id) {
            lines.push(line);
        }
    }
    // Checks of a newer aditd that this version does not know come last.
    lines.sort_by_key(|line| {
        gpu_box::CHECKS.iter().position(|check| check.id == line.id).unwrap_or(usize::MAX)
    });
    lines
}
