//! The command line of `adit`.

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use clap::{ArgAction, CommandFactory, FromArgMatches, Parser, Subcommand};
use common::machine::{
    completions::{self, Completions},
    json,
    owner::become_owner_of,
    process,
    report::{self, Exit, Failure, say, typed},
    version::version,
};

use crate::{
    commands::{
        completions::completed,
        config::{self, Config, Places},
        doctor::{self, DoctorFlags},
        down::{self, Down},
        enroll::{self, Enroll},
        env::{self, Env},
        forget::{self, Forget},
        list::{self, List},
        logs::{self, Logs},
        ls::{self, Ls},
        remove::{self, Remove},
        rename::{self, Rename},
        run::{
            self, Run,
            tunnel::{self, HoldTunnel},
        },
        service::{self, ServiceFlags},
        status,
        up::{self, UpFlags},
        upgrade::{self, UpgradeFlags},
        warm::{self, Warm},
        watcher::{self, Watcher},
    },
    device_key,
    profile::{self, ProfileDir},
    settings::{self, Named, Settings, SettingsFile, Source},
};

/// The heading of the options that every command has.
const GLOBAL: &str = "Global options";

/// Use the Ollama of another machine on localhost:11434
#[derive(Debug, Parser)]
#[command(name = "adit", version = version(), propagate_version = true, arg_required_else_help = true)]
struct Cli {
    /// Keep this device's keys in DIR [default: the user's data directory]
    #[arg(long, value_name = "DIR", env = "ADIT_STATE_DIR", global = true, help_heading = GLOBAL)]
    state_dir: Option<PathBuf>,
    /// Read settings from FILE (TOML) [default: adit.toml in the user's configuration directory, if
    /// it exists]
    #[arg(long, value_name = "FILE", env = "ADIT_CONFIG", global = true, help_heading = GLOBAL)]
    config: Option<PathBuf>,
    /// Log more; -vv also logs messages of libraries
    #[arg(short, long, action = ArgAction::Count, global = true, help_heading = GLOBAL)]
    verbose: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Enroll this device, with a code from `aditd invite` or over SSH
    Enroll(Enroll),
    /// Open the tunnel and serve Ollama on localhost
    Up(UpFlags),
    /// End a running tunnel; running answers come to their end first
    Down(Down),
    /// Run one program through the tunnel, on a port of its own
    ///
    /// The program finds Ollama by the variables OLLAMA_HOST and OLLAMA_API_BASE (which aider reads).
    /// Port 11434 of this computer stays as it is. Where no `adit up` runs, a tunnel is opened for as
    /// long as the program runs.
    Run(Run),
    /// Print what a shell has to export to use the running tunnel
    Env(Env),
    /// Hold a tunnel for programs of `adit run`
    #[command(name = tunnel::COMMAND, hide = true)]
    HoldTunnel(HoldTunnel),
    /// Find out what is wrong between this laptop and the box, and what cures it
    #[command(after_help = DOCTOR_HELP)]
    Doctor(DoctorFlags),
    /// Show the running tunnel
    Status(status::Show),
    /// List the servers whose tunnel is up, their models, and which are loaded
    Ls(Ls),
    /// Load a model before it is needed
    Warm(Warm),
    /// Replace the aditd that `adit up USER@HOST` has put on a box by this version; running answers
    /// go on to their end
    Upgrade(UpgradeFlags),
    /// Undo what `adit up USER@HOST` has done: remove aditd from the box, and forget its server here
    Remove(Remove),
    /// List the servers that this device is enrolled at
    List(List),
    /// Give a server another name on this device
    Rename(Rename),
    /// Forget a server: delete this device's key for it
    Forget(Forget),
    /// Show the log of the running `adit up`, or of the last one
    Logs(Logs),
    /// Show every setting, its value, and where it comes from
    Config(Config),
    /// Let the tunnel start at boot, without a terminal
    Service(ServiceFlags),
    /// Print the script that teaches a shell to complete commands, servers and models
    #[command(after_help = COMPLETIONS_HELP)]
    Completions(Completions),
    /// Tell the server when `adit up`, which starts this, ends without a word
    #[command(hide = true)]
    Watcher(Watcher),
}

impl Command {
    /// Whether it needs the settings of a tunnel, from the file too.
    fn opens_tunnel(&self) -> bool {
        matches!(
            self,
            Self::Up(_) | Self::Run(_) | Self::HoldTunnel(_) | Self::Warm(_) | Self::Config(_)
        )
    }
}

/// The command line, for its reference.
pub fn command() -> clap::Command {
    Cli::command()
}

/// How `doctor` ends, for scripts.
const DOCTOR_HELP: &str =
    "Exit code: 0 nothing is bad, 1 something is bad, 4 this device is not (or no longer) allowed";

/// Where the script belongs.
const COMPLETIONS_HELP: &str = "\
In bash, for this shell: source <(adit completions bash)
For ever: adit completions bash >~/.local/share/bash-completion/completions/adit
In fish: adit completions fish >~/.config/fish/completions/adit.fish
In zsh: adit completions zsh >DIR/_adit, where DIR is one of $fpath";

/// Runs `adit` with these arguments, the program's name first.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    if let Some(code) = completions::answer(|| completed(command()), &args) {
        return code;
    }
    let (cli, named) = match parse(&args) {
        Ok(parsed) => parsed,
        Err(e) => {
            return json::finish_usage(&e, &args);
        }
    };
    let places = [
        cli.state_dir.as_deref().map(|dir| ("--state-dir", dir, profile::default_dir().ok())),
        cli.config.as_deref().map(|file| ("--config", file, settings::default_path())),
    ];
    report::commands_need("adit", &places.into_iter().flatten().collect::<Vec<_>>());
    report::log_panics();
    let is_watcher = matches!(cli.command, Command::Watcher(_));
    if !is_watcher {
        report::start_log(cli.verbose);
    }
    // The program of `run` inherits these limits, and has no key of ours in its memory.
    if !matches!(cli.command, Command::Run(_)) {
        process::protect_memory();
    }
    if !matches!(cli.command, Command::Run(_) | Command::Watcher(_)) {
        process::raise_descriptor_limit();
    }
    report::finish_with(dispatch(cli, &named))
}

/// What was typed, and which settings it and the environment set.
fn parse(args: &[OsString]) -> Result<(Cli, Named), clap::Error> {
    let matches = Cli::command().try_get_matches_from(args)?;
    json::heed(&matches);
    let named = Named::of(&matches);
    let cli = Cli::from_arg_matches(&matches).map_err(|e| e.format(&mut Cli::command()))?;
    Ok((cli, named))
}

fn dispatch(cli: Cli, named: &Named) -> Result<Option<Exit>, Failure> {
    if let Command::Completions(completions) = &cli.command {
        return completions.print("adit").map(|()| None);
    }
    let (file, wrong_file) = match &cli.command {
        // It is told all that it needs, and a file that has become wrong must not keep it from its
        // work.
        Command::Watcher(_) => (SettingsFile::default(), None),
        command if command.opens_tunnel() => (SettingsFile::read(cli.config.as_deref())?, None),
        _ => SettingsFile::read_state_dir(cli.config.as_deref())?,
    };
    if let (Some(wrong), false) = (&wrong_file, matches!(cli.command, Command::Doctor(_))) {
        say(typed(format!(
            "Note: {}, which this command does not need: `adit doctor` says where",
            wrong.what()
        )));
    }
    let of_file = || file.state_dir.clone().map(|dir| (dir, Source::File));
    let (dir, from) = match cli.state_dir.zip(named.source("state_dir")).or_else(of_file) {
        Some(set) => set,
        None => (profile::default_dir()?, Source::Default),
    };
    let is_named = from == Source::Flag;
    become_owner_of(&dir)?;
    if let Command::Watcher(watcher) = cli.command {
        return watcher::run(&dir, watcher, cli.verbose).map(|()| None);
    }
    let service_places = service::Places {
        state_dir: (from != Source::Default).then(|| dir.clone()),
        config: cli.config.clone(),
    };
    if let Command::Service(flags) = &cli.command {
        let profile_dir = ProfileDir::choose(&dir, flags.server.clone(), "service --server")?;
        return service::run(&profile_dir, flags, &service_places);
    }
    // One thread moves more bytes with less CPU time than several threads.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Failure::new("cannot start").source(e))?;
    let result = runtime.block_on(async {
        match cli.command {
            Command::Doctor(flags) => {
                let file = cli.config.or_else(settings::default_path);
                let settings =
                    wrong_file.map_or_else(|| Ok(file.filter(|path| path.exists())), Err);
                return doctor::run(&dir, is_named, settings, flags).await;
            }
            Command::Enroll(enroll) => enroll::run(&dir, enroll).await,
            Command::Up(flags) => up::run(&dir, flags, named, &file).await,
            Command::Run(command) => {
                let profile_dir = ProfileDir::choose(&dir, command.server.clone(), "run --server")?;
                run::run(&dir, cli.config.as_deref(), profile_dir, command).await
            }
            Command::Down(down) => {
                let profile_dir = ProfileDir::choose(&dir, down.name.clone(), "down")?;
                down::run(&profile_dir, &down, &service_places).await
            }
            Command::Env(env) => {
                env::run(&ProfileDir::choose(&dir, env.name.clone(), "env")?, &env).await
            }
            Command::HoldTunnel(hold) => {
                let settings = Settings::settle(&hold.settings, named, &file, &hold.name);
                tunnel::run(ProfileDir::new(&dir, hold.name), hold.detach, &settings).await
            }
            Command::Status(show) => status::several::run(&dir, show).await,
            Command::Ls(command) => ls::run(&dir, command).await,
            Command::Warm(command) => {
                let profile_dir =
                    ProfileDir::choose(&dir, command.server.clone(), "warm --server")?;
                warm::run(&dir, cli.config.as_deref(), profile_dir, command).await
            }
            Command::Upgrade(flags) => upgrade::run(&dir, flags).await,
            Command::Remove(flags) => remove::run(&dir, flags).await,
            Command::List(flags) => list::run(&dir, &flags).await,
            Command::Rename(flags) => rename::run(&dir, &flags, &file).await,
            Command::Forget(flags) => forget::run(&dir, flags, &file).await,
            Command::Logs(flags) => logs::run(&dir, &flags).await,
            Command::Config(config) => {
                let places = Places { state_dir: (dir, from), file: cli.config };
                config::run(&places, &config, named, &file).await
            }
            Command::Watcher(_) | Command::Completions(_) | Command::Service(_) => {
                unreachable!("it has been run")
            }
        }
        .map(|()| None)
    });
    // Does not wait for a name look-up that hangs.
    runtime.shutdown_background();
    device_key::finish();
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
