//! `adit up USER@HOST`: puts aditd on a box that has none, starts it there and enrolls, all in one
//! login; afterwards the tunnel opens as always.

pub(in crate::commands) mod on_box;
pub(in crate::commands) mod program;

use std::{
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use clap::Args;
use common::machine::report::{Exit, Failure, data, say, typed};
use proto::{
    bootstrap::{Found, Install, Plan, Service, Wish},
    device_key::KEY_IN_FILE,
    identity::Name,
    typed::quoted,
};

use self::{on_box::no_login, program::Program};
use crate::{
    commands::enroll::{by_ssh, device_name, interrupted},
    profile::{self, DEFAULT_NAME, ProfileDir},
    ssh::{Remote, SshClient, SshTarget, ask},
};

/// How long it may take to see whether the aditd of a known server runs.
const LOOK_WITHIN: Duration = Duration::from_secs(5);

/// What a command is about: a server of this device, or a login.
#[derive(Debug, Clone)]
pub(crate) enum Target {
    /// A server by its name.
    Server(Name),
    /// A login: `user@host` or `ssh://…`.
    Login(SshTarget),
}

impl FromStr for Target {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.contains('@') || text.starts_with("ssh://") {
            true => text.parse().map(Self::Login),
            false => text.parse().map(Self::Server),
        }
    }
}

impl Target {
    /// The name of a server.
    pub(crate) fn server(self) -> Option<Name> {
        match self {
            Self::Server(name) => Some(name),
            Self::Login(_) => None,
        }
    }
}

/// Flags of `up` for a login.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "With USER@HOST")]
pub(crate) struct BoxFlags {
    /// Do what is needed on the box without asking
    #[arg(short, long)]
    yes: bool,
    /// Print what would be done on the box, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Upload this aditd, a program for the box [default: the aditd beside adit]
    #[arg(long, value_name = "FILE")]
    server_binary: Option<PathBuf>,
    /// Put aditd into this directory of the box [default: ~/.local/share/adit; for root with systemd
    /// /usr/local/lib/adit]
    #[arg(long, value_name = "DIR", value_parser = remote_dir)]
    remote_dir: Option<String>,
    /// Let aditd forward to this service of the box [default: where Ollama listens]
    #[arg(long, value_name = "[http://|tcp://]ADDR")]
    upstream: Option<String>,
    /// Store the enrollment under this name [default: `default`, or the host's name if that one is
    /// taken]
    #[arg(long = "name", value_name = "NAME")]
    store_as: Option<Name>,
    /// Call this device NAME on the server [default: this computer's name]
    #[arg(long, value_name = "NAME")]
    device: Option<Name>,
}

fn remote_dir(text: &str) -> Result<String, &'static str> {
    match proto::bootstrap::is_plain_path(text) {
        true => Ok(text.trim_end_matches('/').to_owned()),
        false => Err("write a path from `/` on, of letters, digits, `.`, `_` and `-`"),
    }
}

impl BoxFlags {
    /// The flags as they were typed.
    fn typed(&self) -> Vec<(&'static str, String)> {
        let text = |name, value: Option<String>| value.map(|value| (name, value));
        let name = |name: &Option<Name>| name.as_ref().map(ToString::to_string);
        let file = self.server_binary.as_ref().map(|file| file.display().to_string());
        let valued = [
            text("--server-binary", file),
            text("--remote-dir", self.remote_dir.clone()),
            text("--upstream", self.upstream.clone()),
            text("--name", name(&self.store_as)),
            text("--device", name(&self.device)),
        ];
        let bare = [("--yes", self.yes), ("--dry-run", self.dry_run)];
        let bare = bare.into_iter().filter(|(_, is_set)| *is_set);
        valued.into_iter().flatten().chain(bare.map(|(name, _)| (name, String::new()))).collect()
    }
}

/// The server whose tunnel is opened, and the login that has put aditd there, with the keys that were
/// unlocked for it. `None` if there is no more to do.
///
/// # Errors
/// What failed on the box, what was tried, and the cure.
pub(crate) async fn prepare(
    state_dir: &Path,
    target: Option<Target>,
    flags: &BoxFlags,
    client: Option<SshClient>,
) -> Result<Option<(ProfileDir, Option<SshTarget>)>, Failure> {
    let mut target = match target {
        Some(Target::Login(target)) => target,
        other => {
            if let Some((flag, _)) = flags.typed().first() {
                return Err(Failure::new(format!("`{flag}` is for a login on a box"))
                    .hint(format!(
                        "name the login: `adit up USER@HOST {flag} …`, or leave the flag out"
                    ))
                    .exit(Exit::Usage));
            }
            let name = other.and_then(Target::server);
            return Ok(Some((ProfileDir::choose(state_dir, name, "up")?, None)));
        }
    };
    if let Some(known) = enrolled_at(state_dir, &target)? {
        if flags.dry_run {
            let name = &known.name;
            data(format!(
                "This computer is enrolled at {target} already, as the server `{name}`: nothing is done there."
            ))?;
            return Ok(None);
        }
        if let Some(client) = client {
            target.client_now = Some(client);
        }
        return again(known, &target, flags).await.map(Some);
    }
    if let Some(client) = client {
        target.client = client;
    }
    let profile_dir = new_name(state_dir, &target, flags.store_as.clone())?;
    let device = device_name(flags.device.clone())?;
    tokio::select! {
        done = Job { target: &target, flags, device, profile_dir }.run() => done,
        () = interrupted(&target) => Err(stopped()),
    }
}

/// The failure that this program was stopped before the tunnel was opened.
pub(super) fn stopped() -> Failure {
    Failure::new("interrupted")
        .hint("run the same command again: it continues where this one has stopped")
}

/// Installs the aditd of a server that this device knows again, if adit has installed it and it does not
/// run: it is started, or was deleted. Nothing of that is tried where the login needs a person.
async fn again(
    known: ProfileDir,
    target: &SshTarget,
    flags: &BoxFlags,
) -> Result<(ProfileDir, Option<SshTarget>), Failure> {
    let mut login = known.read()?.ssh.unwrap_or_else(|| target.clone());
    login.client_now = target.client_now.or(login.client_now);
    let Some(remote) = Remote::open_quietly(&login, LOOK_WITHIN).await else {
        return Ok((known, None));
    };
    let program = Program::find(flags.server_binary.as_deref())?;
    let sha = program.as_ref().map(|program| &*program.binary.sha256).unwrap_or_default();
    // Where `adit up` has put it: the stored command is the link in that directory.
    let stored = login.remote_command.as_deref().and_then(|path| path.strip_suffix("/aditd"));
    let Ok(found) =
        on_box::look(&remote, &login, flags.remote_dir.as_deref().or(stored), sha).await
    else {
        return Ok((known, None));
    };
    if found.running.is_some() || found.installed.is_none() {
        return Ok((known, None));
    }
    let to = login.to_string();
    say(format!("No aditd runs on {to}, where adit has installed one."));
    let device = known.read()?.enrolled.device;
    let job = Job { target: &login, flags, device, profile_dir: known };
    let Plan::Install(install) = job.plan(&found, &program)? else {
        return Ok((job.profile_dir, None));
    };
    say(Plan::Install(install.clone()).text(&to, None));
    job.agree().await?;
    job.install(&remote, &install, &program).await?;
    Ok((job.profile_dir, None))
}

/// The server that this device reaches by this login.
pub(in crate::commands) fn enrolled_at(
    state_dir: &Path,
    target: &SshTarget,
) -> Result<Option<ProfileDir>, Failure> {
    let known = profile::known(state_dir)?.into_iter();
    let mut dirs = known.map(|name| ProfileDir::new(state_dir, name));
    Ok(dirs.find(|dir| {
        let ssh = dir.read().ok().and_then(|profile| profile.ssh);
        ssh.is_some_and(|known| known.leads_to_the_same(target))
    }))
}

/// Where a new enrollment is stored.
fn new_name(
    state_dir: &Path,
    target: &SshTarget,
    named: Option<Name>,
) -> Result<ProfileDir, Failure> {
    let known = profile::known(state_dir)?;
    let usual = [DEFAULT_NAME.to_owned(), target.host_label()];
    let candidates = match &named {
        Some(name) => vec![name.clone()],
        None => usual.iter().filter_map(|name| name.parse().ok()).collect(),
    };
    let free = candidates.iter().find(|name| !known.contains(name));
    free.map(|name| ProfileDir::new(state_dir, name.clone())).ok_or_else(|| {
        let taken: Vec<_> = candidates.iter().map(|name| format!("`{name}`")).collect();
        Failure::new(format!("this device has another server of the name {}", taken.join(" and ")))
            .hint(format!("choose a name for this one: `adit up {} --name NAME`", target.login()))
            .exit(Exit::Usage)
    })
}

/// One box.
struct Job<'a> {
    target: &'a SshTarget,
    flags: &'a BoxFlags,
    device: Name,
    profile_dir: ProfileDir,
}

impl Job<'_> {
    async fn run(self) -> Result<Option<(ProfileDir, Option<SshTarget>)>, Failure> {
        let to = self.target.login();
        let program = Program::find(self.flags.server_binary.as_deref())?;
        let remote = Remote::open(self.target).await.map_err(|e| no_login(self.target, e))?;
        let sha = program.as_ref().map(|program| &*program.binary.sha256).unwrap_or_default();
        let found =
            on_box::look(&remote, self.target, self.flags.remote_dir.as_deref(), sha).await?;
        let plan = self.plan(&found, &program)?;
        let text = plan.text(&to, Some(self.device.as_str()));
        if self.flags.dry_run {
            data(text)?;
            return Ok(None);
        }
        let mut target = self.target.clone();
        match &plan {
            Plan::Keep { running } => {
                let path = running.as_ref().map(|running| running.program.clone());
                target.remote_command = path.filter(|path| proto::bootstrap::is_plain_path(path));
                let needs_state = running.as_ref().is_some_and(|running| running.needs_state);
                target.remote_state = needs_state.then(|| found.state.clone());
                if let Some(running) = running {
                    say(format!("aditd {} runs on {to}, and is kept.", running.version));
                }
            }
            Plan::Install(install) => {
                say(&text);
                self.agree().await?;
                self.install(&remote, install, &program).await?;
                target.remote_command = Some(install.link());
                // The configuration of the box may name the state of another aditd.
                target.remote_state = Some(install.state.clone());
            }
        }
        let path = target.remote_command.as_ref();
        let path = path.map(|path| format!(" --remote-command {path}")).unwrap_or_default();
        let chosen = format!(" --device {}{}{path}", self.device, self.profile_dir.flag());
        let argument = self.profile_dir.argument();
        let enrolled = by_ssh(self.profile_dir, target, self.device, None, Some(&remote)).await;
        let profile = enrolled.map_err(|why| match is_key_in_file(&why) {
            true => why.without_hints().hint(format!(
                "make the key in hardware: `adit enroll --key tpm{chosen} {to}` (or `--key 'pkcs11:token=LABEL'`), then `adit up{argument}`; see docs/hardware-keys.md"
            )),
            false => why,
        })?;
        say(format!("Enrolled as {} {}.", profile.enrolled.device, profile.enrolled.device_id));
        Ok(Some((profile.profile_dir, profile.ssh)))
    }

    /// Uploads what is missing, installs it, and says how it was started.
    async fn install(
        &self,
        remote: &Remote,
        install: &Install,
        program: &Result<Program, String>,
    ) -> Result<(), Failure> {
        if let (Some(_), Ok(program)) = (install.upload, program) {
            on_box::upload(remote, self.target, &install.dir, program).await?;
        }
        let started = on_box::install(remote, self.target, install).await?;
        say(told(install, &self.target.to_string(), &started));
        Ok(())
    }

    fn plan(&self, found: &Found, program: &Result<Program, String>) -> Result<Plan, Failure> {
        let to = self.target.to_string();
        let wish = Wish {
            to: &to,
            version: env!("CARGO_PKG_VERSION"),
            binary: program.as_ref().map(|program| program.binary.clone()).map_err(Clone::clone),
            upstream: self.flags.upstream.as_deref(),
        };
        Plan::new(found, &wish).map_err(|obstacle| obstacle.failure(&to, &self.command("")))
    }

    /// Asks once, unless that was answered on the command line.
    async fn agree(&self) -> Result<(), Failure> {
        if self.flags.yes {
            return Ok(());
        }
        if !ask::somebody_is_there() {
            return Err(Failure::new("nobody is at a terminal who could agree to that")
                .hint(format!("to do it without being asked: `{}`", self.command("--yes")))
                .hint(format!("to see it only: `{}`", self.command("--dry-run")))
                .exit(Exit::Usage));
        }
        match ask::yes("Do that? (yes/no): ").await {
            true => Ok(()),
            false => Err(Failure::new("nothing was done on the box").exit(Exit::Usage)),
        }
    }

    /// The command that was typed, with one more flag.
    fn command(&self, more: &str) -> String {
        let mut words = vec![format!("adit up {}", self.target.login())];
        for (flag, value) in self.flags.typed() {
            let value = if value.is_empty() { value } else { format!(" {}", quoted(&value)) };
            words.push(format!("{flag}{value}"));
        }
        words.extend((!more.is_empty()).then(|| more.to_owned()));
        words.join(" ")
    }
}

/// What is told of an aditd that has been started.
fn told(install: &Install, to: &str, started: &on_box::Started) -> String {
    match started.service {
        Service::System | Service::User { .. } => {
            format!("aditd {} runs on {to}, and starts at boot.", install.version)
        }
        Service::Process => {
            let refused = started.why.as_ref().map(|why| format!(" (systemd refuses: {why})"));
            typed(format!(
                "aditd {} runs on {to} as a process{}: it outlives the login, and a reboot ends it.\n\
                 To start it at boot, run on the box: {}",
                install.version,
                refused.unwrap_or_default(),
                install.lasting_line()
            ))
        }
    }
}

/// Whether the server refuses the device because its key is in a file.
fn is_key_in_file(why: &Failure) -> bool {
    [why.what()]
        .into_iter()
        .chain(why.causes().iter().map(String::as_str))
        .any(|it| it.contains(KEY_IN_FILE))
}
