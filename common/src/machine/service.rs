//! `service install`, `uninstall`, `status` and `logs`: writes the files of a service and runs the
//! commands of its manager. What they are is decided in `proto::service`.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use clap::{Args, Subcommand};
use proto::service::{IfFails, MADE, Manager, Service, ServiceState, Step};
use serde::Serialize;

use crate::machine::{
    json, log_lines,
    report::{Exit, Failure, data, say},
};

/// What can be done with a service.
#[derive(Debug, Clone, Copy, Subcommand)]
pub enum Action {
    /// Start it now and at each boot
    Install(Output),
    /// Stop it, and start it no more; keys and settings stay
    Uninstall(Output),
    /// Show whether it runs
    Status(Output),
    /// Show its log
    Logs(Logs),
}

impl Action {
    /// Its name on the command line.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Install(_) => "install",
            Self::Uninstall(_) => "uninstall",
            Self::Status(_) => "status",
            Self::Logs(_) => "logs",
        }
    }
}

/// How the other commands answer.
#[derive(Debug, Clone, Copy, Args)]
pub struct Output {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A service that was installed.
#[derive(Serialize)]
struct Installed<'a> {
    /// Its name.
    service: &'a str,
    /// The file of its unit.
    installed: String,
}

/// A service that was removed.
#[derive(Serialize)]
struct Uninstalled<'a> {
    service: &'a str,
    removed: String,
}

/// An installed service.
#[derive(Serialize)]
struct Shown<'a> {
    service: &'a str,
    file: String,
    #[serde(flatten)]
    state: ServiceState,
}

/// Flags of `service logs`.
#[derive(Debug, Clone, Copy, Args)]
pub struct Logs {
    /// Show this many lines
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 100)]
    lines: u32,
    /// Wait for new lines and show them as they come
    #[arg(short, long)]
    follow: bool,
    /// Print JSON, one object for each line
    #[arg(long)]
    json: bool,
}

/// The manager of this machine for the user who runs this.
pub fn manager() -> Manager {
    match (cfg!(target_os = "macos"), rustix::process::geteuid().is_root()) {
        (false, true) => Manager::System,
        (false, false) => Manager::User,
        (true, true) => Manager::LaunchdSystem,
        (true, false) => Manager::LaunchdUser,
    }
}

/// The home, the name and the uid of the user who runs this.
///
/// # Errors
/// If the user has no home.
pub fn user() -> Result<(String, (String, u32)), Failure> {
    let uid = rustix::process::geteuid();
    let user = nix::unistd::User::from_uid(uid.as_raw().into()).ok().flatten();
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
    let home = home.or_else(|| user.as_ref().map(|user| user.dir.clone()));
    let home = home.and_then(|home| home.to_str().map(str::to_owned)).ok_or_else(|| {
        Failure::new("there is no home directory for a service of this user")
            .hint("set the variable HOME to it")
    })?;
    let name = user.map_or_else(|| uid.as_raw().to_string(), |user| user.name);
    Ok((home, (name, uid.as_raw())))
}

/// The file of this program, by the name under which it was called: a link there may lead to another
/// version later.
///
/// # Errors
/// If it can't be found.
pub fn program() -> Result<String, Failure> {
    let called = std::env::args_os().next().unwrap_or_default();
    let found = if called.as_encoded_bytes().contains(&b'/') {
        std::path::absolute(&called).ok()
    } else {
        on_path(&called)
    };
    let found = found.or_else(|| std::env::current_exe().ok());
    found
        .and_then(|path| path.to_str().map(str::to_owned))
        .ok_or_else(|| Failure::new("cannot find the file of this program"))
}

fn on_path(name: &OsString) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let found = std::env::split_paths(&path).map(|dir| dir.join(name)).find(|at| at.is_file())?;
    std::path::absolute(found).ok()
}

/// Does it.
///
/// # Errors
/// If no manager runs here, a file can't be written, or a command of the manager fails.
pub fn run(service: &Service, action: Action) -> Result<Option<Exit>, Failure> {
    match action {
        Action::Install(Output { json }) => install(service, json).map(|()| None),
        Action::Uninstall(Output { json }) => uninstall(service, json).map(|()| None),
        Action::Status(Output { json }) => {
            let file = must_be_installed(service, "status")?;
            let mut status = command(&service.status());
            if json {
                // Its exit code counts with and without JSON.
                status.stdout(Stdio::null());
                let said = command(&service.properties()).stdin(Stdio::null()).output();
                let said = said.map_err(|e| unable(service, e))?;
                let state = service.state(&String::from_utf8_lossy(&said.stdout));
                json::answer(Shown { service: &service.name, file, state })?;
            }
            let ended = status.status().map_err(|e| unable(service, e))?;
            Ok((!ended.success()).then_some(Exit::Failed))
        }
        Action::Logs(Logs { lines, follow, json: true }) => {
            must_be_installed(service, "logs")?;
            let (step, is_journal) = service.logs_as_data(lines, follow);
            let ended = log_lines::of_command(command(&step), is_journal)?;
            Ok(ended.and_then(|ended| (!ended.success()).then_some(Exit::Failed)))
        }
        Action::Logs(Logs { lines, follow, json: false }) => {
            must_be_installed(service, "logs")?;
            let step = service.logs(lines, follow);
            let ended = command(&step).status().map_err(|e| {
                Failure::new("cannot show the log").source(format!("{}: {e}", step.program))
            })?;
            Ok((!ended.success()).then_some(Exit::Failed))
        }
    }
}

/// Stops the service, if it is what runs the process `pid`. Returns whether it did.
///
/// # Errors
/// If the manager does not stop it.
pub fn stop_if_runs(service: &Service, pid: u32) -> Result<bool, Failure> {
    if !Path::new(&service.file()).exists() || !is_main(service, pid) {
        return Ok(false);
    }
    done(&service.stop())?;
    Ok(true)
}

/// Whether the service runs as this process.
fn is_main(service: &Service, pid: u32) -> bool {
    let wanted = pid.to_string();
    let said = command(&service.main_pid()).stdin(Stdio::null()).output();
    said.is_ok_and(|said| {
        let said = String::from_utf8_lossy(&said.stdout);
        said.split(|c: char| !c.is_ascii_digit()).any(|word| word == wanted)
    })
}

fn install(service: &Service, json: bool) -> Result<(), Failure> {
    let files = service.files().map_err(|e| {
        let failure = Failure::new("cannot install the service").source(e.to_string());
        let failure = e.cure().into_iter().fold(failure, Failure::hint);
        failure.exit(Exit::Usage)
    })?;
    must_run(service)?;
    for (path, _) in &files {
        refuse_foreign(Path::new(path))?;
    }
    for (path, text) in &files {
        write(Path::new(path), text)
            .map_err(|e| Failure::new(format!("cannot write `{path}`")).source(e))?;
    }
    for step in service.start() {
        match (done(&step), step.if_fails) {
            (Ok(()), _) | (Err(_), IfFails::GoOn) => {}
            (Err(_), IfFails::Say(text)) => say(text),
            (Err(failure), IfFails::Stop) => {
                return Err(failure.hint(format!("to see why: `{}`", service.command("logs"))));
            }
        }
    }
    if json {
        return json::answer(Installed { service: &service.name, installed: service.file() });
    }
    data(format!("Installed `{}`. It runs now, and starts at each boot.", service.file()))
}

fn uninstall(service: &Service, json: bool) -> Result<(), Failure> {
    must_be_installed(service, "uninstall")?;
    let path = service.file();
    if let (false, Some(packaged)) = (Path::new(&path).exists(), service.packaged()) {
        return Err(Failure::new(format!("`{packaged}` belongs to a package"))
            .hint(format!("to remove it with its service: `sudo apt-get remove {0}`, or `sudo dnf remove {0}`", service.program))
            .exit(Exit::Usage));
    }
    refuse_foreign(Path::new(&path))?;
    must_run(service)?;
    for step in service.end() {
        match (done(&step), step.if_fails) {
            (Err(failure), IfFails::Stop) => return Err(failure),
            (_, IfFails::Say(text)) => say(text),
            _ => {}
        }
    }
    fs::remove_file(&path)
        .map_err(|e| Failure::new(format!("cannot remove `{path}`")).source(e))?;
    for step in service.after_end() {
        let _ = done(&step);
    }
    if json {
        return json::answer(Uninstalled { service: &service.name, removed: path });
    }
    data(format!("Removed `{path}`. Keys and settings are as they were."))
}

/// Checks that a manager runs here.
fn must_run(service: &Service) -> Result<(), Failure> {
    let said = match command(&service.probe()).stdin(Stdio::null()).output() {
        Ok(said) if said.status.success() => return Ok(()),
        Ok(said) => first_line(&said.stderr),
        Err(e) => Err(e).map_err(|e| unable(service, e))?,
    };
    let whose = match service.manager {
        Manager::User => "no systemd runs here for this user",
        Manager::System => "no systemd runs here",
        Manager::LaunchdSystem | Manager::LaunchdUser => "launchd does not answer",
    };
    let mut failure = Failure::new(whose).source(said);
    // That of the system runs (sd_booted(3)).
    if service.manager == Manager::User && Path::new("/run/systemd/system").is_dir() {
        failure = failure.hint(format!(
            "start the one of this user, now and at each boot: `sudo loginctl enable-linger {}`; then try again",
            service.user.0
        ));
    }
    Err(failure.hint(format!("to run it until the next boot: `{}`", service.without())))
}

fn unable(service: &Service, error: io::Error) -> Failure {
    let program = service.probe().program;
    Failure::new(format!("cannot run `{program}`"))
        .source(error)
        .hint(format!("to run it until the next boot: `{}`", service.without()))
}

/// Checks that there is such a service. Returns the file of its unit.
fn must_be_installed(service: &Service, verb: &str) -> Result<String, Failure> {
    let unit = |service: &Service| {
        let files = [Some(service.file()), service.packaged()];
        files.into_iter().flatten().find(|file| Path::new(file).exists())
    };
    let of_system = service.of_system().filter(|service| unit(service).is_some());
    match unit(service) {
        Some(file) if of_system.is_none() || file == service.file() => return Ok(file),
        _ => {}
    }
    if let Some(of_system) = of_system {
        return Err(Failure::new(format!("this user has no service `{}`", service.name))
            .source("it is a service of the system")
            .hint(format!("the same for that one: `{}`", of_system.command(verb)))
            .exit(Exit::Usage));
    }
    Err(Failure::new(format!("there is no service `{}`", service.name))
        .source(format!("there is no file `{}`", service.file()))
        .hint(format!("to install it: `{}`", service.command("install")))
        .exit(Exit::Usage))
}

/// Refuses a file that something else has made.
fn refuse_foreign(path: &Path) -> Result<(), Failure> {
    match fs::read_to_string(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Ok(text) if text.contains(MADE) => Ok(()),
        Ok(_) => Err(Failure::new(format!("`{}` was not made by this command", path.display()))
            .hint(format!("to keep it under another name: `mv {0} {0}.old`", path.display()))),
        Err(e) => Err(Failure::new(format!("cannot read `{}`", path.display())).source(e)),
    }
}

/// Writes a file that others may read, whole or not at all.
fn write(path: &Path, text: &str) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(dir)?;
    let file = tempfile::Builder::new().prefix(".adit").tempfile_in(dir)?;
    fs::write(file.path(), text)?;
    fs::set_permissions(file.path(), fs::Permissions::from_mode(0o644))?;
    file.persist(path).map(drop).map_err(|e| e.error)
}

/// Runs a command to its end.
fn done(step: &Step) -> Result<(), Failure> {
    let failed = || Failure::new(format!("`{}` failed", step.typed()));
    let said = command(step).stdin(Stdio::null()).output().map_err(|e| failed().source(e))?;
    if said.status.success() {
        return Ok(());
    }
    Err(failed().source(first_line(&said.stderr)))
}

fn first_line(stderr: &[u8]) -> String {
    let said = String::from_utf8_lossy(stderr);
    said.lines().next().unwrap_or("it said nothing").to_owned()
}

fn command(step: &Step) -> Command {
    let mut command = Command::new(step.program);
    command.args(&step.args).envs(user_manager());
    command
}

/// The variable that lets `systemctl --user` find the manager of this user, if it is missing: a login
/// that was changed by su(1) or sudo(8) does not have it.
pub fn user_manager() -> Option<(&'static str, String)> {
    let runtime = format!("/run/user/{}", rustix::process::geteuid().as_raw());
    let is_needed = std::env::var_os("XDG_RUNTIME_DIR").is_none() && Path::new(&runtime).exists();
    is_needed.then_some(("XDG_RUNTIME_DIR", runtime))
}
