//! `adit list`: the servers that this device is enrolled at.

use std::path::Path;

use clap::Args;
use common::machine::{
    format, json,
    process::{day, unix_now},
    report::{Failure, data, say, typed},
};
use proto::identity::{DeviceId, Name};
use serde::Serialize;

use crate::{
    commands::status::{self, ServiceStatus, Status, TunnelStatus},
    profile::{self, ProfileDir},
};

/// Flags of `list`.
#[derive(Debug, Args)]
pub(crate) struct List {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The document that `--json` prints.
#[derive(Debug, Serialize)]
struct Document {
    servers: Vec<ListedServer>,
}

/// A server that this device is enrolled at. Times are Unix seconds.
#[derive(Debug, Serialize)]
struct ListedServer {
    /// Its name on this device.
    name: Name,
    state: State,
    /// What the server calls this device; `None` if the profile cannot be read. So are the others.
    device: Option<Name>,
    device_id: Option<DeviceId>,
    /// Its addresses for UDP.
    addresses: Vec<String>,
    /// Its address for SSH.
    ssh: Option<String>,
    /// The last second of the certificate's validity.
    certificate_until: Option<i64>,
    /// What carries the tunnel now.
    carrier: Option<String>,
    /// Where applications are served now.
    listening: Vec<String>,
    /// The services besides Ollama.
    services: Vec<ServiceStatus>,
}

/// Whether a server can be used now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    Up,
    /// There is a session, but the server is silent.
    Silent,
    /// There is no session.
    Down,
    /// The server has refused this device.
    Refused,
    /// `adit up` is stopping.
    Stopping,
    /// Neither `adit up` nor `adit run` runs.
    NotRunning,
    /// The running `adit` does not answer.
    NoAnswer,
    /// The profile cannot be read.
    Damaged,
}

/// Prints the servers.
///
/// # Errors
/// If the state directory cannot be read.
pub(crate) async fn run(state_dir: &Path, flags: &List) -> Result<(), Failure> {
    let mut servers = Vec::new();
    for name in profile::known(state_dir)? {
        servers.push(look(ProfileDir::new(state_dir, name)).await);
    }
    if flags.json {
        return json::answer(Document { servers });
    }
    if servers.is_empty() {
        say(typed(
            "This device is not enrolled anywhere: on the server run `aditd invite NAME`, then here `adit enroll`.",
        ));
        return Ok(());
    }
    let now = unix_now();
    let header = ["NAME", "STATE", "LOCAL ADDRESS", "SERVER", "DEVICE", "CERTIFICATE"];
    data(format::table(header, servers.iter().map(|server| server.row(now))))
}

/// One server, as a command that has changed it prints it with `--json`.
#[derive(Debug, Serialize)]
pub(super) struct OneServer {
    server: ListedServer,
}

impl OneServer {
    /// The server as it is now.
    pub(super) async fn look(profile_dir: ProfileDir) -> Self {
        Self { server: look(profile_dir).await }
    }
}

async fn look(profile_dir: ProfileDir) -> ListedServer {
    let asked = status::ask(&profile_dir).await;
    let has_answered = asked.is_ok();
    let running: Option<Status> = asked.ok().flatten();
    // `adit up` and `adit status` tell what is wrong with it.
    let profile = profile_dir.read().ok();
    let state = match (&running, &profile) {
        (Some(status), _) => State::of(status),
        (None, _) if !has_answered => State::NoAnswer,
        (None, Some(profile)) if profile.revoked.is_some() => State::Refused,
        (None, Some(_)) => State::NotRunning,
        (None, None) => State::Damaged,
    };
    let carrier = running.as_ref().and_then(|status| match &status.tunnel {
        TunnelStatus::Up(up) | TunnelStatus::Silent(up) => Some(up.carrier.clone()),
        TunnelStatus::Down { .. } | TunnelStatus::Refused { .. } => None,
    });
    let certificate = profile.as_ref().and_then(|profile| profile.certificate().ok());
    let ssh = profile.as_ref().and_then(|profile| profile.ssh.as_ref());
    ListedServer {
        name: profile_dir.name,
        state,
        carrier,
        services: running.as_ref().map(|status| status.services.clone()).unwrap_or_default(),
        listening: running.map(|status| status.listening).unwrap_or_default(),
        certificate_until: certificate.map(|certificate| certificate.not_after),
        ssh: ssh.map(ToString::to_string),
        device: profile.as_ref().map(|profile| profile.enrolled.device.clone()),
        device_id: profile.as_ref().map(|profile| profile.enrolled.device_id),
        addresses: profile.map(|profile| profile.enrolled.addresses).unwrap_or_default(),
    }
}

impl State {
    fn of(status: &Status) -> Self {
        match &status.tunnel {
            _ if status.stopping => Self::Stopping,
            TunnelStatus::Up(_) => Self::Up,
            TunnelStatus::Silent(_) => Self::Silent,
            TunnelStatus::Down { .. } => Self::Down,
            TunnelStatus::Refused { .. } => Self::Refused,
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Silent => "silent",
            Self::Down => "down",
            Self::Refused => "refused",
            Self::Stopping => "stopping",
            Self::NotRunning => "not running",
            Self::NoAnswer => "no answer",
            Self::Damaged => "damaged",
        }
    }
}

impl ListedServer {
    /// Its row of the table. At `now` its certificate may have ended.
    fn row(&self, now: i64) -> [String; 6] {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let certificate = self.certificate_until.map(|until| {
            let word = if until < now { "ended" } else { "until" };
            format!("{word} {}", day(until))
        });
        [
            self.name.to_string(),
            self.state.words().to_owned(),
            or_dash(self.served_at()),
            or_dash(self.reached_at()),
            or_dash(self.device.as_ref().map(ToString::to_string)),
            or_dash(certificate),
        ]
    }

    /// Its first local address, and those of its services.
    fn served_at(&self) -> Option<String> {
        let of_services = self
            .services
            .iter()
            .filter_map(|service| Some(format!("{}={}", service.name, service.listening.first()?)));
        let all: Vec<_> = self.listening.first().cloned().into_iter().chain(of_services).collect();
        (!all.is_empty()).then(|| all.join(", "))
    }

    /// Its first address, and how many others there are.
    fn reached_at(&self) -> Option<String> {
        let ssh = self.ssh.as_ref().map(|ssh| format!("ssh {ssh}"));
        let mut all = self.addresses.iter().cloned().chain(ssh);
        let first = all.next()?;
        match all.count() {
            0 => Some(first),
            others => Some(format!("{first} (+{others})")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(addresses: &[&str], ssh: Option<&str>) -> ListedServer {
        ListedServer {
            name: "lab".parse().expect("a name"),
            state: State::NotRunning,
            device: Some("thinkpad".parse().expect("a name")),
            device_id: None,
            addresses: addresses.iter().map(ToString::to_string).collect(),
            ssh: ssh.map(str::to_owned),
            certificate_until: Some(86_400),
            carrier: None,
            listening: Vec::new(),
            services: Vec::new(),
        }
    }

    #[test]
    fn a_row_has_the_first_address_and_says_whether_the_certificate_has_ended() {
        let row = server(&["gpu.lan:11435", "10.0.0.7:11435"], Some("me@gpu")).row(0);
        let is = ["lab", "not running", "-", "gpu.lan:11435 (+2)", "thinkpad", "until 1970-01-02"];
        assert_eq!(row, is);
        assert_eq!(
            server(&[], Some("me@gpu")).row(86_401)[3..],
            ["ssh me@gpu", "thinkpad", "ended 1970-01-02"]
        );
        assert_eq!(server(&[], None).row(0)[3], "-");
    }
}
