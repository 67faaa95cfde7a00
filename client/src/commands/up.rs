//! `adit up`: starts all parts, says when the tunnel is ready, and drains when it is stopped.

pub(crate) mod bootstrap;
mod first_words;
mod ports;
mod running;
mod services;
mod tunnels;
mod watched;

use std::{collections::HashSet, path::Path, time::Duration};

use clap::Args;
use common::machine::{
    control::Control,
    log_file,
    process::StopSignals,
    report::{Exit, Failure},
};
use proto::identity::Name;
use tokio::{net::TcpListener, task::JoinSet};
use tracing::{Instrument, Span, info, info_span, warn};

use self::{
    bootstrap::{BoxFlags, Target},
    first_words::{NotServed, all_refused, in_one_line, serve},
    ports::Place,
    services::ServedService,
};
pub(super) use self::{running::RunningTunnel, tunnels::Tunnels};
use crate::{
    commands::{in_use, logs},
    dial::{plan::DialPlan, unmarked},
    local::{owner::Owners, unix},
    profile::{self, DEFAULT_NAME, ProfileDir, SharedProfile},
    settings::{Named, SettingFlags, Settings, SettingsFile, Source},
    ssh::SshTarget,
};

/// Flags of `up`.
#[derive(Debug, Args)]
pub(crate) struct UpFlags {
    /// Use the servers with these names, side by side. The first is on localhost:11434, and each
    /// other one on a port of its own, which stays the same [default: the only server, or the one
    /// called `default`]; or log in at USER@HOST, put aditd there if none runs, enroll, and use that
    /// server
    #[arg(value_name = "NAME|USER@HOST", conflicts_with = "all")]
    targets: Vec<Target>,
    /// Use all servers that this device is enrolled at; one that cannot start is left out
    #[arg(long)]
    all: bool,
    /// What is done with a login.
    #[command(flatten)]
    on_box: BoxFlags,
    /// How.
    #[command(flatten)]
    settings: SettingFlags,
}

/// A server whose tunnel is about to start.
struct Prepared {
    settings: Settings,
    plan: DialPlan,
    control: Control,
    place: Place,
}

/// How long a login may go on after the order to stop: the system's ssh ends by itself.
const ENDS_WITHIN: Duration = Duration::from_secs(2);

/// Runs until it is stopped (SIGINT, SIGTERM, or SIGHUP from a closed terminal), or until the
/// server refuses this device at the first attempt; of several servers, until all have.
///
/// # Errors
/// If a server that was named cannot start, or none can; or if the last one has refused this device.
pub(crate) async fn run(
    state_dir: &Path,
    flags: UpFlags,
    named: &Named,
    file: &SettingsFile,
) -> Result<(), Failure> {
    warn_of_unknown_tables(state_dir, file)?;
    // Before the first login. A signal that comes between two steps is not lost.
    let mut signals = StopSignals::listen_at_terminal()
        .map_err(|e| Failure::new("cannot listen for signals").source(e))?;
    let chosen = unless_asked(signals.asked(), ENDS_WITHIN, chosen(state_dir, &flags)).await?;
    let Some(chosen) = chosen else { return Ok(()) };
    let (has_several, arguments) = (chosen.len() > 1, arguments(&flags, &chosen));
    // Another adit may be waited for, and nothing is left half done.
    let prepared = tokio::select! {
        biased;
        prepared = prepare(chosen, &flags, named, file) => prepared?,
        () = signals.asked() => return Ok(()),
    };
    if prepared.is_empty() {
        return Ok(());
    }
    for server in &prepared {
        let profile_dir = server.place.profile.get().profile_dir;
        if let Err(e) = logs::keep(&profile_dir, &format!("adit up{arguments}")) {
            warn!("`adit logs` will not show this log: {e}");
        }
    }
    let result = open(prepared, has_several, &arguments, &mut signals).await;
    if let Err(why) = &result {
        log_file::note(&why.to_string());
    }
    result
}

/// Does `work`, unless a person or the system asks this program to stop meanwhile: `None` then. What is
/// under way gets the time `within` for an end of its own, with which the terminal's echo is turned on
/// again.
///
/// # Errors
/// Those of `work`.
async fn unless_asked<T>(
    asked: impl Future<Output = ()>,
    within: Duration,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<Option<T>, Failure> {
    let mut is_asked = false;
    let given_up = async {
        asked.await;
        is_asked = true;
        tokio::time::sleep(within).await;
    };
    let done = tokio::select! {
        biased;
        done = work => done?,
        () = given_up => return Err(bootstrap::stopped()),
    };
    Ok((!is_asked).then_some(done))
}

/// Opens the tunnels, and serves them until all have ended. Whatever ends them, the servers are told.
async fn open(
    prepared: Vec<Prepared>,
    has_several: bool,
    arguments: &str,
    signals: &mut StopSignals,
) -> Result<(), Failure> {
    // It is about this laptop's networks, whichever server is reached through them.
    if let Some(first) = prepared.first() {
        unmarked::keep_in(&first.place.profile.get().profile_dir.dir);
    }
    let all_listeners = ports::bind(prepared.iter().map(|server| &server.place), arguments).await?;
    let all_services = prepared
        .iter()
        .map(|server| services::bind(&server.settings, arguments))
        .collect::<Result<Vec<_>, _>>()?;
    let parts = all_listeners.into_iter().zip(all_services);
    let mut tunnels = Tunnels::default();
    let ended = match start(prepared, parts, has_several, arguments, &mut tunnels) {
        Ok(first_words) => tokio::select! {
            () = signals.asked() => Ok(()),
            refused = all_refused(first_words) => Err(refused),
            ended = tunnels.serve() => ended,
        },
        Err(why) => Err(why),
    };
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    if ended.is_err() {
        tunnels.wait_for_no_answer();
    }
    let stopped = tunnels.stop(signals).await;
    ended.and(stopped)
}

/// Starts the tunnels, and returns the tasks that wait for the first word of each server.
///
/// # Errors
/// If one cannot start; `tunnels` has those that did.
fn start(
    prepared: Vec<Prepared>,
    parts: impl Iterator<Item = (Vec<TcpListener>, Vec<ServedService>)>,
    has_several: bool,
    arguments: &str,
    tunnels: &mut Tunnels,
) -> Result<JoinSet<Result<(), NotServed>>, Failure> {
    let mut first_words = JoinSet::new();
    for (server, (listeners, served)) in prepared.into_iter().zip(parts) {
        let Prepared { settings, plan, control, place } = server;
        // Of a single server, each line of the log is about that one.
        let span = match has_several {
            true => info_span!("server", message = %place.name),
            false => Span::none(),
        };
        let _in_span = span.enter();
        let any_user = settings.any_user.value;
        let owners = let_in(any_user, &listeners, arguments)?;
        let written_in = settings.allow_from_is_in(&place.name);
        let owners = owners.and_networks(&settings.allow_from.value, written_in);
        let entrances = unix::bind_all(place.listen.as_deref().unwrap_or_default(), any_user)?;
        let of_services: Vec<_> = served
            .iter()
            .map(|service| format!("{}: {}", service.name, service.listening().join(" and ")))
            .collect();
        let parts = (listeners, entrances, served);
        let running = RunningTunnel::start(plan, control, owners, parts, &settings)?;
        let places = places(&running.listening, &running.sockets);
        info!("listening on {}", places.join(" and "));
        for line in of_services {
            info!("listening for {line}");
        }
        info!("connecting to {}", running.tunnel.plan().sought());
        let (tunnel, listening) = (running.tunnel.clone(), running.listening.clone());
        let first_word = serve(tunnel, settings.clone(), listening, places, !has_several);
        first_words.spawn(first_word.in_current_span());
        tunnels.add(running, settings.drain.value);
    }
    Ok(first_words)
}

/// Where applications connect, as people write it.
fn places(listening: &[String], sockets: &[String]) -> Vec<String> {
    let addresses = listening.iter().map(|address| format!("http://{address}"));
    addresses.chain(sockets.iter().cloned()).collect()
}

/// A table for a server that does not exist is most likely a misspelt name.
fn warn_of_unknown_tables(state_dir: &Path, file: &SettingsFile) -> Result<(), Failure> {
    for (name, near) in file.unknown(&profile::known(state_dir)?) {
        let near = near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
        warn!("the settings file has a table [servers.{name}], but there is no such server{near}");
    }
    Ok(())
}

/// A server that is meant, and the login of this process at its box, if there is one.
struct Chosen {
    profile_dir: ProfileDir,
    login: Option<SshTarget>,
}

/// The servers that are meant, each once. The first is to be on Ollama's own port. None if there is
/// no more to do.
async fn chosen(state_dir: &Path, flags: &UpFlags) -> Result<Vec<Chosen>, Failure> {
    let targets: Vec<Option<Target>> = match flags.all {
        true => in_order(state_dir)?.into_iter().map(|name| Some(Target::Server(name))).collect(),
        false => flags.targets.iter().cloned().map(Some).collect(),
    };
    let targets = if targets.is_empty() { vec![None] } else { targets };
    let (mut chosen, mut seen) = (Vec::new(), HashSet::new());
    for target in targets {
        let client = flags.settings.ssh.ssh_client;
        let prepared = bootstrap::prepare(state_dir, target, &flags.on_box, client).await?;
        if let Some((profile_dir, login)) = prepared
            && seen.insert(profile_dir.name.clone())
        {
            chosen.push(Chosen { profile_dir, login });
        }
    }
    Ok(chosen)
}

/// All servers: `default` first, then the oldest enrollment, so that a new one does not move the
/// others to another port.
fn in_order(state_dir: &Path) -> Result<Vec<Name>, Failure> {
    let mut names = profile::known(state_dir)?;
    names.sort_by_cached_key(|name| {
        let profile = ProfileDir::new(state_dir, name.clone()).read().ok();
        (name.as_str() != DEFAULT_NAME, profile.and_then(|profile| profile.enrolled_at))
    });
    Ok(names)
}

/// What stands behind `adit up` for the same servers.
fn arguments(flags: &UpFlags, chosen: &[Chosen]) -> String {
    match chosen {
        _ if flags.all => " --all".to_owned(),
        [only] => only.profile_dir.argument(),
        several => several.iter().map(|server| format!(" {}", server.profile_dir.name)).collect(),
    }
}

/// Takes possession of the servers, before the first tunnel starts.
async fn prepare(
    chosen: Vec<Chosen>,
    flags: &UpFlags,
    named: &Named,
    file: &SettingsFile,
) -> Result<Vec<Prepared>, Failure> {
    let (mut prepared, mut failed) = (Vec::new(), None);
    for (i, Chosen { profile_dir, login }) in chosen.into_iter().enumerate() {
        let mut settings = Settings::settle(&flags.settings, named, file, &profile_dir.name);
        // The top of the file, flags and environment are about the first.
        let listen = match i {
            0 => Some(settings.listen.value.clone()),
            _ => {
                settings.services.value = file.services(&profile_dir.name);
                settings.services.source = Source::ServerTable;
                file.listen(&profile_dir.name)
            }
        };
        let server = async {
            let plan = dial_plan(&profile_dir, &settings, login.as_ref())?;
            let what = format!("cannot start the tunnel `{}`", profile_dir.name);
            let control = in_use::take(&profile_dir, &what, Control::claim).await?;
            let networks = settings.allow_from.value.clone();
            let (name, profile) = (profile_dir.name.clone(), plan.profile.clone());
            let place = Place { name, listen, networks, profile };
            Ok(Prepared { settings, plan, control, place })
        };
        let server: Result<Prepared, Failure> = server.await;
        match server {
            Ok(server) => prepared.push(server),
            Err(why) if flags.all => {
                warn!("`{}` is left out: {}", profile_dir.name, in_one_line(&why));
                failed = failed.or(Some(why));
            }
            Err(why) => return Err(why),
        }
    }
    match failed {
        Some(why) if prepared.is_empty() => Err(why),
        _ => Ok(prepared),
    }
}

/// The addresses and carriers to try. What was unlocked for `login` is used again.
///
/// # Errors
/// If this device is not enrolled at the server, or has no route to it.
pub(super) fn dial_plan(
    profile_dir: &ProfileDir,
    settings: &Settings,
    login: Option<&SshTarget>,
) -> Result<DialPlan, Failure> {
    let mut profile = profile_dir.read()?;
    if let Some(way) = &mut profile.ssh {
        way.client_now = settings.ssh_client.value;
        if let Some(login) = login {
            way.unlocked_by(login);
        }
    }
    let plan = DialPlan {
        profile: SharedProfile::new(profile),
        choice: settings.carrier.value,
        idle_timeout: settings.idle_timeout.value,
    };
    if let Some(none) = plan.no_way() {
        let hint = none.general_hint().unwrap_or_default();
        return Err(Failure::from_error(none).hint(hint).exit(Exit::Usage));
    }
    Ok(plan)
}

/// Which users of this computer are let in. `name` is the server's name as an argument of a
/// command.
pub(super) fn let_in(
    any_user: bool,
    listeners: &[TcpListener],
    name: &str,
) -> Result<Owners, Failure> {
    if any_user {
        return Ok(Owners::any());
    }
    // Without a listener of its own, one for the question.
    let asked = || std::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0));
    let own = match listeners.first() {
        Some(listener) => listener.local_addr().and_then(Owners::own),
        None => asked().and_then(|asked| Owners::own(asked.local_addr()?)),
    };
    own.map_err(|e| {
        Failure::new("cannot keep other users of this computer out of the tunnel")
            .source(format!("the kernel does not tell who makes a connection: {e}"))
            .hint(format!("to let every user of this computer in: `adit up{name} --any-user`"))
    })
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    #[tokio::test]
    async fn an_order_to_stop_is_not_lost_between_two_steps() {
        let done = || async {
            tokio::task::yield_now().await;
            Ok(7)
        };
        let long = Duration::MAX;
        assert_eq!(unless_asked(pending(), long, done()).await, Ok(Some(7)));
        // The step is whole, and nothing follows.
        assert_eq!(unless_asked(ready(()), long, done()).await, Ok(None));
        // The step has an end of its own, or none.
        let own = async {
            tokio::task::yield_now().await;
            Err::<u8, _>(Failure::new("its own end"))
        };
        let failed = unless_asked(ready(()), long, own).await;
        assert_eq!(failed, Err(Failure::new("its own end")));
        let given_up = unless_asked::<u8>(ready(()), Duration::ZERO, pending()).await;
        assert_eq!(given_up, Err(bootstrap::stopped()));
    }
}
