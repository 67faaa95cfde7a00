//! Collects what is to be examined between this laptop and the box. A running `adit up` is asked
//! about its tunnel. If none runs, a tunnel is opened for some seconds.

use std::{net::IpAddr, sync::Arc, time::Duration};

use common::{
    machine::{
        control::{self, ClaimError},
        process::unix_now,
        report::{Exit, Failure},
    },
    transport::HANDSHAKE_WITHIN,
};
use proto::{
    doctor::{
        Report,
        laptop::AditFound,
        way::{LoginFound, RequestFound, Ssh, SshCommand, Udp, WayFound},
    },
    wire::{Code, IDLE_TIMEOUT},
};

use tokio_util::sync::CancellationToken;

use crate::{
    commands::status::{self, ControlRequest, OllamaStatus, Status},
    dial::{DialError, Dialed, NextAttempt, plan::DialPlan, route::CarrierChoice},
    profile::{Profile, ProfileDir, SharedProfile},
    ssh::{Inspected, SshError, SshTarget},
    tunnel::{
        inspection::{self, Inspection},
        reconnect,
        state::Up,
    },
};

/// Long enough for three first packets, which are sent after 0, 1 and 3 s.
const UDP_WITHIN: Duration = Duration::from_secs(4);
const RESOLVE_WITHIN: Duration = Duration::from_secs(5);
/// The hint for a login that runs another command than `aditd`.
const KEY_RUNS: &str =
    "on the box, what is the key limited to? `grep -n 'command=' ~/.ssh/authorized_keys`";
/// How long to wait until the server has received the end of a tunnel.
const FAREWELL: Duration = Duration::from_millis(500);

/// What was found, and the reports of the box over the tunnel and over SSH.
pub(super) struct WayOutcome {
    pub(super) found: WayFound,
    pub(super) over_tunnel: Result<Report, String>,
    pub(super) over_ssh: Option<Report>,
}

/// Examines the way of a device that is enrolled.
pub(super) async fn look(
    profile: Profile,
    argument: String,
    adit: &AditFound,
    status: Option<&Status>,
) -> WayOutcome {
    let plan = DialPlan {
        profile: SharedProfile::new(profile.clone()),
        choice: CarrierChoice::Auto,
        idle_timeout: IDLE_TIMEOUT,
    };
    let expired = has_ended(&profile);
    let runs = matches!(adit, AditFound::Running { .. });
    let addresses = plan.addresses();
    let (names, running, ssh) = tokio::join!(
        names(&addresses),
        async { if runs { Some(ask_running(&profile.profile_dir).await) } else { None } },
        look_by_ssh(plan.ssh()),
    );
    let by_udp = match &running {
        Some(Ok(Inspection { session, .. })) if session.carrier == "udp" => {
            UdpOutcome::known(session)
        }
        _ => look_by_udp(&plan, &profile).await,
    };
    let (ssh, over_ssh) = ssh.map_or((None, None), |(ssh, report)| (Some(ssh), report));
    let inspected = match running {
        Some(inspected) => {
            by_udp.close().await;
            inspected
        }
        None => open(by_udp.dialed, &plan, &profile, ssh.as_ref()).await,
    };
    let request = match status.and_then(|status| status.listening.first()) {
        Some(address) if runs => Some(told(status::ask_version(address).await)),
        _ => None,
    };
    let address = status.and_then(|status| status.listening.first().cloned());
    let (session, over_tunnel) = match inspected {
        Ok(Inspection { session, report }) => (Ok(session), report),
        Err(why) => (Err(why), Err("a tunnel".to_owned())),
    };
    let found = WayFound {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        argument,
        address: address.unwrap_or_else(|| "localhost:11434".to_owned()),
        names,
        udp: by_udp.found,
        ssh,
        expired,
        session,
        request,
    };
    WayOutcome { found, over_tunnel, over_ssh }
}

/// Looks up each name among the addresses.
async fn names(addresses: &[String]) -> Vec<(String, Result<Vec<IpAddr>, String>)> {
    let mut found: Vec<(String, _)> = Vec::new();
    for address in addresses {
        let name = address.rsplit_once(':').map_or(&**address, |(host, _)| host);
        let is_number = name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
        if is_number || found.iter().any(|(known, _)| known == name) {
            continue;
        }
        let looked_up = tokio::net::lookup_host((name, 0));
        let looked_up = match tokio::time::timeout(RESOLVE_WITHIN, looked_up).await {
            Ok(Ok(all)) => Ok(all.map(|address| address.ip()).collect()),
            Ok(Err(e)) => Err(e.to_string()),
            Err(_) => Err("the resolver does not answer".to_owned()),
        };
        found.push((name.to_owned(), looked_up));
    }
    found
}

/// What was found about UDP, and the connection that was made for it.
struct UdpOutcome {
    found: Option<Udp>,
    dialed: Option<Dialed>,
}

impl UdpOutcome {
    /// UDP works if the running tunnel, which uses it, is answered.
    fn known(session: &proto::doctor::way::SessionFound) -> Self {
        let found = match &session.probe {
            Ok(probe) => {
                let rtt = Duration::from_secs_f64(probe.shortest.max(0.0) / 1e3);
                Udp::Answers { remote: session.remote.clone(), rtt }
            }
            Err(_) => Udp::Silent(vec![session.remote.clone()]),
        };
        Self { found: Some(found), dialed: None }
    }

    /// Ends a connection that is not needed. Without a greeting it never became a session.
    async fn close(&self) {
        if let Some(dialed) = &self.dialed {
            close(dialed).await;
        }
    }
}

async fn close(dialed: &Dialed) {
    dialed.connection.close((Code::Done as u32).into(), b"");
    let _ = tokio::time::timeout(FAREWELL, dialed.endpoint.wait_idle()).await;
}

/// Makes a handshake over UDP without a session, so that a running session is not ended.
async fn look_by_udp(plan: &DialPlan, profile: &Profile) -> UdpOutcome {
    if plan.addresses().is_empty() {
        return UdpOutcome { found: None, dialed: None };
    }
    match tokio::time::timeout(UDP_WITHIN, plan.dial_udp()).await {
        Ok(Ok(dialed)) => {
            let (remote, rtt) = (dialed.route.to_string(), dialed.connection.rtt());
            UdpOutcome { found: Some(Udp::Answers { remote, rtt }), dialed: Some(dialed) }
        }
        Err(_) | Ok(Err(DialError::NoAnswer(_))) => {
            UdpOutcome { found: Some(Udp::Silent(plan.addresses())), dialed: None }
        }
        Ok(Err(e)) => UdpOutcome {
            found: Some(Udp::Failed(e.failure(profile, NextAttempt::UpCommand))),
            dialed: None,
        },
    }
}

/// Logs in over SSH without a question at the terminal, and runs `aditd doctor` there.
async fn look_by_ssh(way: Option<SshTarget>) -> Option<(Ssh, Option<Report>)> {
    let way = way?;
    let to = way.to_string();
    let failure = |e: SshError| {
        let hint = match &e {
            SshError::NoAnswer { .. } => KEY_RUNS.to_owned(),
            e => e.hint(&way),
        };
        Failure::from_error(e).hint(hint)
    };
    Some(match way.inspect().await {
        Err(e) => (Ssh { to, login: Err(failure(e)) }, None),
        Ok(Inspected { by, report, forwards }) => {
            let (command, report) = match report {
                Ok(report) => (SshCommand::Any, Some(report)),
                Err(SshError::OnlyRelays(_)) => (SshCommand::Relay, None),
                Err(e) if e.knows_no_doctor() => (SshCommand::Older, None),
                Err(e) => (SshCommand::Nothing(failure(e)), None),
            };
            let forwards = forwards.map(|forwards| forwards.map_err(|e| e.to_string()));
            (Ssh { to, login: Ok(LoginFound { by, command, forwards }) }, report)
        }
    })
}

/// Asks the running `adit up` about its tunnel.
async fn ask_running(profile_dir: &ProfileDir) -> Result<Inspection, Failure> {
    let asked =
        control::ask::<_, Result<Inspection, Failure>>(&profile_dir.dir, &ControlRequest::Doctor)
            .await;
    match asked {
        Ok(Some(inspected)) => inspected,
        Ok(None) => Err(Failure::new("`adit up` has ended meanwhile")
            .hint(format!("start it with `adit up{}`", profile_dir.argument()))),
        Err(e) => Err(Failure::new("the running `adit up` does not tell about its tunnel")
            .source(e)
            .hint(format!(
                "if it is an older version, stop it, and start `adit up{}`",
                profile_dir.argument()
            ))),
    }
}

/// Opens a tunnel for this report alone, over UDP or else over SSH.
async fn open(
    dialed: Option<Dialed>,
    plan: &DialPlan,
    profile: &Profile,
    ssh: Option<&Ssh>,
) -> Result<Inspection, Failure> {
    // The server answers only a device that it lets in again.
    if let Some(revocation) = profile.revoked.clone().filter(|_| dialed.is_none()) {
        return Err(DialError::Revoked(revocation).failure(profile, NextAttempt::UpCommand));
    }
    // An `adit up` that starts now would end this session, and would report that another machine
    // uses its certificate.
    let _lock = control::lock(&profile.profile_dir.dir).map_err(|e| match e {
        ClaimError::Taken { .. } => Failure::new("an `adit up` has just started")
            .hint(format!("once more: `adit doctor{}`", profile.profile_dir.argument())),
        ClaimError::File(e) => e.into(),
    })?;
    let dialed = match dialed {
        Some(dialed) => dialed,
        None if ssh.is_some_and(|ssh| ssh.login.is_ok()) => {
            plan.dial_ssh().await.map_err(|e| e.failure(profile, NextAttempt::UpCommand))?
        }
        None => {
            return Err(DialError::NoAnswer(plan.sought()).failure(profile, NextAttempt::UpCommand));
        }
    };
    let to = dialed.route.to_string();
    let greeted = reconnect::begin_session(&dialed.connection, &to, profile.epoch.clone());
    let greeted = tokio::time::timeout(HANDSHAKE_WITHIN, greeted).await;
    let greeted = greeted.unwrap_or_else(|_| Err(DialError::NoAnswer(to)));
    let (hello, _notices, _probes) = match greeted {
        Ok((hello, ..)) if hello.certificate_expired || has_ended(profile) => {
            close(&dialed).await;
            return Err(DialError::Refused(Code::Expired).failure(profile, NextAttempt::UpCommand));
        }
        Ok(greeted) => greeted,
        Err(e) => {
            close(&dialed).await;
            return Err(e.failure(profile, NextAttempt::UpCommand));
        }
    };
    let up: Arc<Up> = Up::new(dialed, hello, None, &CancellationToken::new());
    let inspection = inspection::inspect(&up, plan).await;
    up.connection.close((Code::Done as u32).into(), b"");
    let _ = tokio::time::timeout(FAREWELL, up.endpoint.wait_idle()).await;
    Ok(inspection)
}

/// Whether the device's certificate has expired, by this computer's clock.
fn has_ended(profile: &Profile) -> bool {
    profile.certificate().is_ok_and(|own| own.not_after <= unix_now())
}

fn told(ollama: OllamaStatus) -> RequestFound {
    match ollama {
        OllamaStatus::Answers { version, .. } => RequestFound::Answered(version),
        OllamaStatus::Fails { status, error } => RequestFound::Failed(status, error),
        OllamaStatus::Unknown { status } => RequestFound::Unknown(status),
        OllamaStatus::Silent { why } => RequestFound::Silent(why),
    }
}

impl DialError {
    /// This error as a failure with its cures.
    pub(crate) fn failure(&self, profile: &Profile, next: NextAttempt) -> Failure {
        let hint = self.hint(profile, next);
        let failure = match self {
            Self::Revoked(_) => Failure::from_error(self.clone()).exit(Exit::NotAllowed),
            other => Failure::from_error(other.clone()),
        };
        hint.into_iter().fold(failure, Failure::hint)
    }
}
