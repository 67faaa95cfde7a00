//! `aditd device …` and `aditd status`: who is enrolled, who is connected, and the end of it.

use std::{collections::HashMap, path::Path};

use clap::Subcommand;
use comfy_table::{Table, presets};
use common::{
    control,
    identity::{DeviceId, Name},
    process::{self, day, unix_now},
    report::{Failure, data, say},
};
use serde::Serialize;

use crate::{
    audit::{self, AuditSettings, Event},
    config::Config,
    gate::{model::ModelPattern, record::Carrier},
    invite,
    live::SessionStatus,
    register::{Device, DeviceError, RegisterError},
    roles::either,
    running::{Answer, Request, ServerStatus, TokensToday},
    state::State,
};

/// What can be done to devices.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List all devices
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show one device and its session
    Show {
        /// Its name or id
        device: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Give a device another role: infer, models, admin, or one of the configuration
    Role {
        /// Its name or id
        device: String,
        /// The role
        role: Name,
    },
    /// Let a device use these models only, whatever its role may
    Models {
        /// Its name or id
        device: String,
        /// Names like `llama3.2:1b` or `llama3*`
        #[arg(required_unless_present = "all", conflicts_with = "all", value_name = "MODEL")]
        models: Vec<ModelPattern>,
        /// Let it use all models that its role may
        #[arg(long)]
        all: bool,
    },
    /// End a device's access now, running answers included; or withdraw an invitation that nobody has used
    Revoke {
        /// Its name or id
        device: String,
    },
    /// Remove a revoked device and free its name
    Forget {
        /// Its name or id
        device: String,
    },
}

/// Carries out one command.
pub async fn run(config: &Config, command: Command) -> Result<(), Failure> {
    let (dir, audit) = (&*config.state_dir, &config.meters.audit);
    let state = State::open(dir)?;
    match command {
        Command::Role { device, role } => {
            config.rules.must_know(&role)?;
            let device = enrolled(&state, &device)?;
            state.register.set_role(device.id, &role)?;
            let (name, device_id, before) = (device.name.clone(), device.id, device.role.clone());
            audit::note_or_say(audit, &Event::Role { device: name, device_id, role: role.clone(), before, uid: process::uid() });
            in_force(&state).await?;
            say(format!("{} {} has the role `{role}` now.", device.name, device.id));
            Ok(())
        }
        Command::Models { device, models, all } => {
            let device = enrolled(&state, &device)?;
            state.register.set_models(device.id, (!all).then_some(models.as_slice()))?;
            let named = (!all).then(|| models.iter().map(ToString::to_string).collect());
            let (name, device_id) = (device.name.clone(), device.id);
            audit::note_or_say(audit, &Event::Models { device: name, device_id, models: named, uid: process::uid() });
            in_force(&state).await?;
            let what = if all { "all models that its role may".to_owned() } else { format!("only {}", either(&models)) };
            say(format!("{} {} may use {what} now.", device.name, device.id));
            Ok(())
        }
        Command::List { json } => {
            let devices = shown(state.register.devices()?, config).await;
            if json {
                return data(to_json(&Listing { schema: 1, devices })?);
            }
            list(&devices)?;
            // What reads the table expects devices there.
            let open = state.register.invitations(unix_now())?;
            if !open.is_empty() {
                say(format!("Open invitations:\n{}", invite::table(&open)));
            }
            Ok(())
        }
        Command::Show { device, json } => {
            let device = shown(vec![state.register.find(&device)?], config).await.remove(0);
            let tokens_today = match control::ask(dir, &Request::Tokens { device: device.id }).await {
                Ok(Some(Answer::Tokens(today))) => today,
                _ => None,
            };
            if json { data(to_json(&Single { schema: 1, device, tokens_today })?) } else { show(&device, tokens_today) }
        }
        Command::Revoke { device } => revoke(&state, audit, &device).await,
        Command::Forget { device } => {
            let device = state.register.find(&device)?;
            if device.revoked.is_none() {
                return Err(DeviceError::StillEnrolled(device.name).into());
            }
            state.register.forget(device.id)?;
            let event = Event::Forget { device: device.name.clone(), device_id: device.id, uid: process::uid() };
            audit::note_or_say(audit, &event);
            say(format!("Forgot {} {}.", device.name, device.id));
            Ok(())
        }
    }
}

/// A device that a right can be given to.
fn enrolled(state: &State, name: &str) -> Result<Device, DeviceError> {
    let device = state.register.find(name)?;
    if device.revoked.is_some() { Err(DeviceError::AlreadyRevoked(device.name)) } else { Ok(device) }
}

/// The running server obeys the register now: what it no longer allows is cut.
async fn in_force(state: &State) -> Result<(), Failure> {
    let why = match control::ask(&state.dir, &Request::Refresh).await {
        Ok(None | Some(Answer::Refreshed { .. })) => return Ok(()),
        Ok(Some(Answer::Failed(why))) => why,
        Ok(Some(_)) => "it answered something else".to_owned(),
        Err(e) => e.to_string(),
    };
    Err(Failure::new("the register is changed, but the running server could not be told")
        .because(why)
        .hint("it looks by itself four times a second; to be sure: `systemctl restart aditd`"))
}

async fn revoke(state: &State, audit: &AuditSettings, name: &str) -> Result<(), Failure> {
    let device = match state.register.find(name) {
        Err(DeviceError::Unknown(_)) if state.register.withdraw(name, unix_now()).map_err(not_cut)? => {
            audit::note_or_say(audit, &Event::Withdraw { device: name.to_owned(), uid: process::uid() });
            in_force(state).await?;
            say(format!("The invitation for `{name}` is withdrawn."));
            return Ok(());
        }
        found => found?,
    };
    if device.revoked.is_some() {
        return Err(DeviceError::AlreadyRevoked(device.name).into());
    }
    state.register.revoke(device.id, unix_now()).map_err(not_cut)?;
    let event = Event::Revoke { device: device.name.clone(), device_id: device.id, uid: process::uid() };
    audit::note_or_say(audit, &event);
    match control::ask(&state.dir, &Request::Refresh).await {
        Ok(Some(Answer::Refreshed { cut })) if cut > 0 => {
            say(format!("Revoked {} {}; it was connected and has been cut.", device.name, device.id))
        }
        Ok(None | Some(Answer::Refreshed { .. })) => say(format!("Revoked {} {}.", device.name, device.id)),
        Ok(Some(Answer::Failed(why))) => return Err(not_obeyed(&why)),
        Ok(Some(_)) => return Err(not_obeyed("it answered something else")),
        Err(e) => return Err(not_obeyed(&e.to_string())),
    }
    Ok(())
}

/// Who has to be cut off must not stay because the register can't be written.
fn not_cut(error: RegisterError) -> Failure {
    Failure::from(error).hint("to cut everybody now, stop aditd until there is room: `systemctl stop aditd`")
}

fn not_obeyed(why: &str) -> Failure {
    Failure::new("the device is revoked in the register, but the running server could not be told")
        .because(why.to_owned())
        .hint("it looks by itself four times a second; to be sure: `systemctl restart aditd`")
}

/// Shows the running server.
pub async fn status(dir: &Path, json: bool) -> Result<(), Failure> {
    let Some(status) = ask_status(dir).await? else {
        return Err(Failure::new(format!("aditd is not running on `{}`", dir.display())).hint("start it with `aditd serve`"));
    };
    if json {
        #[derive(Serialize)]
        struct Document {
            schema: u32,
            #[serde(flatten)]
            status: ServerStatus,
        }
        return data(to_json(&Document { schema: 1, status })?);
    }
    let mut text = format!("Server       aditd {} (pid {})\n", status.version, status.pid);
    text += &format!("Listening    {} (UDP)\n", status.listening.join(", "));
    text += &format!("Advertised   {}\n", status.addresses.join(", "));
    text += &format!("Upstream     {}\n", status.upstream);
    let config = status.config.as_ref().map_or("none".to_owned(), |file| file.display().to_string());
    text += &format!("Configured   by {config}\n");
    let networks: String = status.allow_from.iter().map(|network| format!(", {network}")).collect();
    text += &format!("Allow from   this machine{networks}\n");
    text += &format!("Metrics      {}\n", status.metrics.as_deref().unwrap_or("none"));
    text += &format!("Audit log    {}\n", status.audit.dir.display());
    if let Some((receive, send)) = status.socket_buffers {
        text += &format!("Buffers      {receive} bytes for receiving, {send} for sending on each UDP socket\n");
    }
    let kept = humantime::format_duration(std::time::Duration::from_secs(status.idle_timeout));
    text += &format!("Time-out     a silent device keeps its session for {kept}, or for less if it says so\n");
    text += &format!(
        "Devices      {} connected, {} streams open",
        status.sessions.len(),
        status.sessions.iter().map(|s| s.streams).sum::<usize>()
    );
    if status.waiting > 0 {
        text += &format!("\nQueue        {} requests wait for their turn", status.waiting);
    }
    if let Some(why) = &status.audit.failing {
        text += &format!("\nAudit        can't be written: {why}");
    }
    if status.audit.lost > 0 {
        text += &format!("\nAudit        {} lines were lost since the start", status.audit.lost);
    }
    data(text)
}

async fn ask_status(dir: &Path) -> Result<Option<ServerStatus>, Failure> {
    match control::ask(dir, &Request::Status).await? {
        Some(Answer::Status(status)) => Ok(Some(*status)),
        Some(_) => {
            Err(Failure::new("the running aditd answered something else").hint("restart it: it may be of another version"))
        }
        None => Ok(None),
    }
}

#[derive(Serialize)]
struct Listing {
    schema: u32,
    devices: Vec<Shown>,
}

#[derive(Serialize)]
struct Single {
    schema: u32,
    #[serde(flatten)]
    device: Shown,
    /// If it has used any, or may use so many only, and the server runs.
    tokens_today: Option<TokensToday>,
}

/// A device as people and programs see it. Times are Unix seconds.
#[derive(Serialize)]
struct Shown {
    name: String,
    id: DeviceId,
    role: Name,
    /// The only ones, or null.
    models: Option<Vec<ModelPattern>>,
    enrolled: i64,
    seen: Option<i64>,
    certificate_until: i64,
    revoked: Option<i64>,
    session: Option<SessionStatus>,
    #[serde(skip)]
    role_is_known: bool,
}

async fn shown(devices: Vec<Device>, config: &Config) -> Vec<Shown> {
    // Without a running server there are no sessions, and the register still has the rest.
    let status = ask_status(&config.state_dir).await.ok().flatten();
    // The server's configuration counts, whichever this command has read.
    let (sessions, roles) = match status {
        Some(status) => (status.sessions, status.roles),
        None => (Vec::new(), config.rules.names().cloned().collect()),
    };
    let mut sessions: HashMap<_, _> = sessions.into_iter().map(|s| (s.device_id, s)).collect();
    let one = |d: Device| Shown {
        session: sessions.remove(&d.id),
        name: d.name.to_string(),
        id: d.id,
        role_is_known: roles.contains(&d.role),
        role: d.role,
        models: d.models,
        enrolled: d.enrolled,
        seen: d.seen,
        certificate_until: d.not_after,
        revoked: d.revoked,
    };
    devices.into_iter().map(one).collect()
}

fn list(devices: &[Shown]) -> Result<(), Failure> {
    if devices.is_empty() {
        say("No devices yet: invite one with `aditd invite NAME`.");
        return Ok(());
    }
    let mut table = Table::new();
    table.set_header(["NAME", "ID", "ROLE", "SEEN", "CERTIFICATE"]);
    for device in devices {
        table.add_row([device.name.clone(), device.id.to_string(), marked(device), seen(device), certificate(device)]);
    }
    data(plain(table))
}

/// A table as text without any lines around it.
pub(crate) fn plain(mut table: Table) -> String {
    table.load_style(presets::NOTHING);
    let text = table.to_string();
    text.lines().map(str::trim_end).map(|line| line.strip_prefix(' ').unwrap_or(line)).collect::<Vec<_>>().join("\n")
}

fn show(device: &Shown, tokens: Option<TokensToday>) -> Result<(), Failure> {
    let mut text = format!(
        "Device       {} {}\nRole         {}\nEnrolled     {}\nSeen         {}\n",
        device.name,
        device.id,
        role(device),
        day(device.enrolled),
        seen(device)
    );
    text += &format!("Certificate  {}", certificate(device));
    if let Some(session) = &device.session {
        let from = from(&session.remote);
        text += &format!("\nSession      from {from} since {}, {:.1} ms", ago(session.since), session.rtt_ms);
        if let Some(away) = session.away_since {
            text += &format!("\nAway         since {}: what it runs is kept", ago(away));
        }
        text +=
            &format!("\nStreams      {} open, {} bytes to it, {} bytes from it", session.streams, session.sent, session.received);
    }
    if let Some(today) = tokens {
        text += &format!("\nTokens       {} used today (UTC)", today.used);
        text += &today.limit.map(|limit| format!(" of {limit}")).unwrap_or_default();
    }
    data(text)
}

/// The address of a relay on this machine says nothing of where a device is.
fn from(remote: &str) -> String {
    match remote.parse().map(Carrier::of) {
        Ok(Carrier::Ssh) => format!("SSH, relayed at {remote},"),
        _ => remote.to_owned(),
    }
}

fn role(device: &Shown) -> String {
    match &device.models {
        Some(models) => format!("{}, only {}", marked(device), either(models)),
        None => marked(device),
    }
}

fn marked(device: &Shown) -> String {
    if device.role_is_known { device.role.to_string() } else { format!("{} (not in the configuration)", device.role) }
}

fn seen(device: &Shown) -> String {
    match (&device.session, device.seen) {
        (Some(SessionStatus { away_since: Some(since), .. }), _) => format!("away since {}", ago(*since)),
        (Some(_), _) => "now".to_owned(),
        (None, Some(at)) => format!("{} ago", ago(at)),
        (None, None) => "never".to_owned(),
    }
}

fn certificate(device: &Shown) -> String {
    match device.revoked {
        Some(at) => format!("revoked {}", day(at)),
        None => format!("until {}", day(device.certificate_until)),
    }
}

/// The coarsest two units say enough.
fn ago(at: i64) -> String {
    let seconds = unix_now().saturating_sub(at).max(0) as u64;
    let coarse = match seconds {
        s if s >= 86_400 => s - s % 3600,
        s if s >= 3600 => s - s % 60,
        s => s,
    };
    humantime::format_duration(std::time::Duration::from_secs(coarse)).to_string()
}

pub(crate) fn to_json(value: &impl Serialize) -> Result<String, Failure> {
    serde_json::to_string_pretty(value).map_err(|e| Failure::new("cannot write JSON").because(e))
}
