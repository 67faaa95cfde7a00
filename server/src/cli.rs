//! The command line of `aditd`.

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use clap::{ArgAction, CommandFactory, FromArgMatches, Parser, Subcommand};
use common::machine::{
    completions::{self, Completions},
    json,
    owner::become_owner_of,
    process,
    report::{self, Exit, Failure, say},
    version::version,
};

use crate::{
    commands::{
        api, audit, backup,
        beside::{self, Beside},
        broker, ca,
        completions::completed,
        devices,
        doctor::{self, DoctorFlags},
        invite::{self, Invite},
        keys, over_ssh, replace,
        service::{self, ServiceFlags},
        status, users,
    },
    config::{self, Config, Flags, GLOBAL, ServeFlags, Settings},
    documents::StateShown,
    serve::{self, reload},
    state::{self, State},
};

/// Let only enrolled devices use the Ollama of this machine
#[derive(Debug, Parser)]
#[command(name = "aditd", version = version(), propagate_version = true, arg_required_else_help = true)]
struct Cli {
    #[command(flatten)]
    flags: Flags,
    /// Log more; -vv also logs messages of libraries
    #[arg(short, long, action = ArgAction::Count, global = true, help_heading = GLOBAL)]
    verbose: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server
    Serve(ServeFlags),
    /// Create the server's state (keys and register) without starting the server
    Init {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Invite a device: print a code for `adit enroll`; or list the open invitations
    Invite(Invite),
    /// Manage devices
    #[command(subcommand)]
    Device(devices::Command),
    /// Manage users: the people to whom devices and keys belong
    #[command(subcommand)]
    User(users::Command),
    /// Show, replace and end the server's own certificate authority
    #[command(subcommand)]
    Ca(ca::Command),
    /// Manage keys, for applications that cannot run `adit`
    #[command(subcommand)]
    Key(keys::Command),
    /// Write a backup of the register, and of the keys if you say so; the server may run meanwhile
    Backup(backup::BackupFlags),
    /// Put a backup back; devices are held back until you confirm them
    Restore(backup::RestoreFlags),
    /// Enroll a device over SSH: run by `adit enroll USER@HOST`
    #[command(hide = true)]
    EnrollDevice {
        /// Name the device
        device: String,
        /// Ask the server that lets a group enroll at this Unix socket
        #[arg(long, value_name = "PATH", env = over_ssh::SOCKET, hide = true)]
        socket: Option<PathBuf>,
    },
    /// Do for a running server what it may not do itself: `aditd serve` starts this
    #[command(hide = true)]
    Broker,
    /// Print the SHA-256 of this program: run by `adit up USER@HOST` where no other tool can
    #[command(hide = true)]
    Digest,
    /// Carry a tunnel over SSH; `adit up` runs this here, also as a key's forced command
    Relay {
        /// Relay to this UDP address [default: where the running server listens]
        #[arg(long, value_name = "ADDR")]
        to: Option<std::net::SocketAddr>,
        /// The port that the device was told when it enrolled. The server is looked for there if it
        /// can't be asked
        #[arg(long, value_name = "PORT", env = "ADITD_RELAY_PORT", hide = true)]
        known_port: Option<u16>,
    },
    /// Replace the running server with this program, for example after an upgrade: running answers
    /// go on to their end
    Replace {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Make the running server read its configuration again, like SIGHUP; a bad file changes nothing
    Reload {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print where this server's API is: HTTP with JSON at a Unix socket
    #[command(after_help = API_HELP)]
    Api {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show the audit log: requests, sessions, and changes to devices
    Audit(audit::AuditQuery),
    /// Find out what is wrong on this machine, and what cures it
    #[command(after_help = DOCTOR_HELP)]
    Doctor(DoctorFlags),
    /// Let the server start at boot: for the system if root says so, else for this user
    Service(ServiceFlags),
    /// Print the script that teaches a shell to complete commands, devices, roles and models
    #[command(after_help = COMPLETIONS_HELP)]
    Completions(Completions),
    /// Show the running server
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// The command line, for its reference.
pub fn command() -> clap::Command {
    Cli::command()
}

/// How the API is used.
const API_HELP: &str = "\
To list its calls: curl --unix-socket \"$(aditd api)\" http://localhost/v1
Events as they happen: curl -N --unix-socket \"$(aditd api)\" http://localhost/v1/events";

/// How `doctor` ends, for scripts.
const DOCTOR_HELP: &str = "Exit code: 0 nothing is bad, 1 something is bad";

/// Where the script belongs.
const COMPLETIONS_HELP: &str = "\
In bash, for this shell: source <(aditd completions bash)
For ever: aditd completions bash >~/.local/share/bash-completion/completions/aditd
In fish: aditd completions fish >~/.config/fish/completions/aditd.fish
In zsh: aditd completions zsh >DIR/_aditd, where DIR is one of $fpath";

/// Runs `aditd` with these arguments, the program's name first.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    if let Some(code) = completions::answer(|| completed(command()), &args) {
        return code;
    }
    let cli = match parse(&args) {
        Ok(cli) => cli,
        Err(e) => {
            return json::finish_usage(&e, &args);
        }
    };
    let Flags { state_dir, config } = &cli.flags;
    let places = [
        state_dir.as_deref().map(|dir| ("--state-dir", dir, crate::state::default_dir())),
        config.as_deref().map(|file| ("--config", file, config::of_system())),
    ];
    // Whoever runs these over SSH has the server's own words from it, and other places.
    if !matches!(cli.command, Command::EnrollDevice { .. } | Command::Relay { .. }) {
        report::commands_need("aditd", &places.into_iter().flatten().collect::<Vec<_>>());
    }
    report::start_log(cli.verbose);
    report::log_panics();
    process::protect_memory();
    process::raise_descriptor_limit();
    report::finish_with(dispatch(cli))
}

fn parse(args: &[OsString]) -> Result<Cli, clap::Error> {
    let matches = without_empty_variables(Cli::command()).try_get_matches_from(args)?;
    json::heed(&matches);
    Cli::from_arg_matches(&matches).map_err(|e| e.format(&mut Cli::command()))
}

/// An environment variable with an empty value counts as not set, as usual in the shell.
fn without_empty_variables(command: clap::Command) -> clap::Command {
    let is_empty =
        |name: &std::ffi::OsStr| std::env::var_os(name).is_some_and(|value| value.is_empty());
    command
        .mut_args(|arg| {
            if arg.get_env().is_some_and(is_empty) {
                arg.env(clap::builder::Resettable::Reset)
            } else {
                arg
            }
        })
        .mut_subcommands(without_empty_variables)
}

fn dispatch(cli: Cli) -> Result<Option<Exit>, Failure> {
    if let Command::Doctor(doctor) = cli.command {
        let runtime = on_one_thread()?;
        let result = runtime.block_on(doctor::run(&cli.flags, doctor));
        // Does not wait for a look-up that hangs.
        runtime.shutdown_background();
        return result;
    }
    if let Command::Completions(completions) = &cli.command {
        return completions.print("aditd").map(|()| None);
    }
    if let Command::Service(flags) = &cli.command {
        return service::run(&cli.flags, flags);
    }
    run_command(cli).map(|()| None)
}

fn on_one_thread() -> Result<tokio::runtime::Runtime, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|e| Failure::new("cannot start").source(e))
}

fn run_command(cli: Cli) -> Result<(), Failure> {
    let flags = &cli.flags;
    let settled = || {
        let config = Config::resolve(flags, &ServeFlags::default())?;
        become_owner_of(&config.state_dir)?;
        Ok::<_, Failure>(config)
    };
    // These commands run with the rights of other users, too.
    let places = || {
        let config = Config::resolve(flags, &ServeFlags { places: true, ..ServeFlags::default() })?;
        become_owner_of(&config.state_dir)?;
        Ok::<_, Failure>(config)
    };
    match cli.command {
        Command::Serve(serve) => {
            let take_over = serve.take_over;
            let settle = || {
                let config = Config::resolve(flags, &serve)?;
                become_owner_of(&config.state_dir)?;
                // This file is read again on reload, even if another would be found by then.
                let flags = Flags { config: config.file.clone(), ..flags.clone() };
                Ok(Settings { flags, serve, config })
            };
            let settings = settle();
            on_one_thread()?.block_on(serve::start(take_over, settings))
        }
        Command::Init { json } => {
            let dir = settled()?.state_dir;
            let is_new = !state::is_there(&dir)?;
            let state = State::open_or_create(&dir)?;
            state.ca().server_identity(&state.dir, time::OffsetDateTime::now_utc())?;
            if json {
                json::answer(StateShown { state_dir: &state.dir, is_new })?;
            }
            say(format!("The server's state is ready in `{}`.", state.dir.display()));
            Ok(())
        }
        Command::Invite(invite) => on_one_thread()?.block_on(invite::run(flags, invite)),
        Command::Device(command) => on_one_thread()?
            .block_on(async { devices::run(&Beside::resolve(flags).await?, command).await }),
        Command::User(command) => on_one_thread()?
            .block_on(async { users::run(&Beside::resolve(flags).await?, command).await }),
        Command::Ca(command) => on_one_thread()?
            .block_on(async { ca::run(&Beside::resolve(flags).await?, command).await }),
        Command::Key(command) => on_one_thread()?
            .block_on(async { keys::run(&Beside::resolve(flags).await?, command).await }),
        Command::Backup(backup) => on_one_thread()?.block_on(backup::make(flags, backup)),
        Command::Restore(restore) => on_one_thread()?.block_on(backup::restore(flags, restore)),
        Command::EnrollDevice { device, socket } => {
            on_one_thread()?.block_on(over_ssh::enroll_device(places(), &device, socket))
        }
        Command::Broker => {
            let runtime = on_one_thread()?;
            let result = runtime.block_on(broker::run());
            // Does not wait for a look-up that hangs.
            runtime.shutdown_background();
            result
        }
        Command::Digest => over_ssh::digest(),
        Command::Relay { to, known_port } => {
            let runtime = on_one_thread()?;
            let result = runtime.block_on(over_ssh::relay(places(), to, known_port));
            // The thread that reads standard input may never return.
            runtime.shutdown_background();
            result
        }
        Command::Replace { json } => {
            let dir = flags.state_dir()?;
            become_owner_of(&dir)?;
            on_one_thread()?.block_on(replace::run(&dir, json))
        }
        Command::Reload { json } => on_one_thread()?.block_on(reload::run(flags, json)),
        Command::Api { json } => {
            let dir = flags.state_dir()?;
            become_owner_of(&dir)?;
            api::run(&dir, json)
        }
        Command::Audit(show) => {
            let (audit, state) = on_one_thread()?.block_on(beside::audit_dir(flags))?;
            become_owner_of(&audit)?;
            audit::run(&audit, &state, &show)
        }
        Command::Doctor(_) | Command::Completions(_) | Command::Service(_) => Ok(()),
        Command::Status { json } => {
            let dir = flags.state_dir()?;
            become_owner_of(&dir)?;
            on_one_thread()?.block_on(status::run(&dir, json))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
