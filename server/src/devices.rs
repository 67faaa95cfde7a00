//! `aditd device …` and `aditd status`: who is enrolled, who is connected, and the end of it.

use std::{collections::HashMap, path::Path};

use clap::Subcommand;
use comfy_table::{Table, presets};
use common::{
    control,
    identity::DeviceId,
    process::{day, unix_now},
    report::{Failure, data, say},
};
use serde::Serialize;

use crate::{
    live::SessionStatus,
    register::Device,
    running::{Answer, Request, ServerStatus},
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
    /// End a device's access now, running answers included
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
pub async fn run(dir: &Path, command: Command) -> Result<(), Failure> {
    let state = State::open(dir)?;
    match command {
        Command::List { json } => {
            let devices = shown(state.register.devices()?, dir).await;
            if json { data(to_json(&Listing { schema: 1, devices })?) } else { list(&devices) }
        }
        Command::Show { device, json } => {
            let device = shown(vec![state.register.find(&device)?], dir).await.remove(0);
            if json { data(to_json(&Single { schema: 1, device })?) } else { show(&device) }
        }
        Command::Revoke { device } => revoke(&state, &device).await,
        Command::Forget { device } => {
            let device = state.register.find(&device)?;
            if device.revoked.is_none() {
                return Err(crate::register::DeviceError::StillEnrolled(device.name).into());
            }
            state.register.forget(device.id)?;
            say(format!("Forgot {} {}.", device.name, device.id));
            Ok(())
        }
    }
}

async fn revoke(state: &State, name: &str) -> Result<(), Failure> {
    let device = state.register.find(name)?;
    if device.revoked.is_some() {
        return Err(crate::register::DeviceError::AlreadyRevoked(device.name).into());
    }
    state.register.revoke(device.id, unix_now())?;
    match control::ask(&state.dir, &Request::Refresh).await {
        Ok(Some(Answer::Refreshed { cut })) if cut > 0 => {
            say(format!("Revoked {} {}; it was connected and has been cut.", device.name, device.id))
        }
        Ok(None | Some(Answer::Refreshed { .. })) => say(format!("Revoked {} {}.", device.name, device.id)),
        Ok(Some(Answer::Failed(why))) => return Err(not_obeyed(&why)),
        Ok(Some(Answer::Status(_))) => return Err(not_obeyed("it answered something else")),
        Err(e) => return Err(not_obeyed(&e.to_string())),
    }
    Ok(())
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
    data(text)
}

async fn ask_status(dir: &Path) -> Result<Option<ServerStatus>, Failure> {
    match control::ask(dir, &Request::Status).await? {
        Some(Answer::Status(status)) => Ok(Some(status)),
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
}

/// A device as people and programs see it. Times are Unix seconds.
#[derive(Serialize)]
struct Shown {
    name: String,
    id: DeviceId,
    enrolled: i64,
    seen: Option<i64>,
    certificate_until: i64,
    revoked: Option<i64>,
    session: Option<SessionStatus>,
}

async fn shown(devices: Vec<Device>, dir: &Path) -> Vec<Shown> {
    // Without a running server there are no sessions, and the register still has the rest.
    let sessions = ask_status(dir).await.ok().flatten().map(|status| status.sessions).unwrap_or_default();
    let mut sessions: HashMap<_, _> = sessions.into_iter().map(|s| (s.device_id, s)).collect();
    let one = |d: Device| Shown {
        session: sessions.remove(&d.id),
        name: d.name.to_string(),
        id: d.id,
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
    table.load_style(presets::NOTHING);
    table.set_header(["NAME", "ID", "SEEN", "CERTIFICATE"]);
    for device in devices {
        table.add_row([device.name.clone(), device.id.to_string(), seen(device), certificate(device)]);
    }
    let text = table.to_string();
    data(text.lines().map(str::trim_end).map(|line| line.strip_prefix(' ').unwrap_or(line)).collect::<Vec<_>>().join("\n"))
}

fn show(device: &Shown) -> Result<(), Failure> {
    let mut text = format!(
        "Device       {} {}\nEnrolled     {}\nSeen         {}\n",
        device.name,
        device.id,
        day(device.enrolled),
        seen(device)
    );
    text += &format!("Certificate  {}", certificate(device));
    if let Some(session) = &device.session {
        text += &format!("\nSession      from {} since {}, {:.1} ms", session.remote, ago(session.since), session.rtt_ms);
        if let Some(away) = session.away_since {
            text += &format!("\nAway         since {}: what it runs is kept", ago(away));
        }
        text +=
            &format!("\nStreams      {} open, {} bytes to it, {} bytes from it", session.streams, session.sent, session.received);
    }
    data(text)
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

fn to_json(value: &impl Serialize) -> Result<String, Failure> {
    serde_json::to_string_pretty(value).map_err(|e| Failure::new("cannot write JSON").because(e))
}
