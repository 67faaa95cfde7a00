//! Collects what `aditd doctor` examines on this machine. The judgements are in `proto::doctor`.

mod files;
mod ollama;
mod providers;
mod systemd;

pub(crate) use self::ollama::{around, model_names};

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use common::{machine::process::unix_now, transport};
use proto::{
    doctor::{
        Report,
        gpu_box::{
            AuditLog, Authorize, BoxFound, Devices, InFlight, ServerFound,
            device::DeviceFound,
            https::{AcmeFound, HttpsFound},
            lines, lines_for_device,
            services::ServiceFound,
        },
    },
    identity::{DeviceId, Name},
};

use crate::{
    config::Config,
    https::Https,
    jwt::JwtSettings,
    limits::LimitedDevice,
    oidc::OidcSettings,
    policy::authorize::{At, Authority, How, Question},
    record::CallerKind,
    running::Server,
    sandbox,
    state::register::Key,
};

/// The shortest time between two examinations, however often devices ask for one.
const AGAIN_AFTER: Duration = Duration::from_secs(2);
/// The name of the device in the question that measures `authorize`.
const ASKER: &str = "aditd-doctor";

/// Who is asked beside the services, by the settings that are in force.
#[derive(Default)]
pub(crate) struct Others {
    /// The owner's own service (`authorize`).
    authority: Option<Arc<Authority>>,
    sign_in: Option<OidcSettings>,
    tokens: Option<JwtSettings>,
}

impl Others {
    /// Those that a configuration names.
    pub(crate) fn of(config: &Config) -> Self {
        let (sign_in, tokens) = (config.oidc.clone(), config.jwt.clone());
        Self { authority: config.authority(), sign_in, tokens }
    }
}

/// Examines a machine whose server has these settings, whether that server runs or not. Cancellation
/// safe.
pub(crate) async fn look_around(config: &Config, others: &Others) -> BoxFound {
    let look = async {
        let ollama = ollama::look(config.upstream()).await;
        (files::look(config, ollama.models_dir).await, ollama.found, ollama.unit)
    };
    let asked = async { ask(others.authority.as_deref()?).await };
    let sign_in = async { Some(providers::sign_in(others.sign_in.as_ref()?).await) };
    let tokens = async { Some(providers::tokens(others.tokens.as_ref()?).await) };
    let ((files, ollama, unit), services, authorize, sign_in, tokens) =
        tokio::join!(look, services(config), asked, sign_in, tokens);
    BoxFound {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        argument: String::new(),
        start: "aditd serve".to_owned(),
        server: ServerFound::NotRunning { state_dir: config.state_dir.display().to_string() },
        config: Some(Ok(config.file.as_ref().map(|file| file.display().to_string()))),
        state: Some((config.state_dir.display().to_string(), files.wrong)),
        clock: files.clock,
        certificate: files.certificate,
        unit,
        ollama,
        services,
        max_in_flight: Some(in_flight(config.accounting.max_in_flight.map(|most| most.get()))),
        disks: files.disks,
        authorize,
        sign_in,
        tokens,
        audit: None,
        devices: None,
        https: None,
        device: None,
        sandbox: None,
        buffers: transport::largest_buffers(),
    }
}

/// The services besides Ollama, each asked for a connection, and Ollama if it is elsewhere.
async fn services(config: &Config) -> Vec<ServiceFound> {
    let mut found = Vec::new();
    for (i, (name, upstream)) in config.upstreams().enumerate() {
        if i > 0 || upstream.is_elsewhere() {
            found.push(ServiceFound {
                name: name.to_string(),
                upstream: upstream.to_string(),
                answer: ollama::connected(upstream).await,
                unencrypted: upstream.is_elsewhere().then(|| upstream.unencrypted(name)),
            });
        }
    }
    found
}

/// What the running server finds now, for its owner: who has just cured something sees that.
pub(crate) async fn of_running(server: &Server) -> BoxFound {
    found_within(server, Duration::ZERO).await
}

/// What the running server finds. A report that is younger than `at_most` is used again.
async fn found_within(server: &Server, at_most: Duration) -> BoxFound {
    // One examination at a time: those who wait get the result of the first one.
    let mut last = server.looked.lock().await;
    if let Some((at, found)) = &*last
        && at.elapsed() < at_most
    {
        return found.clone();
    }
    let found = examine(server).await;
    *last = Some((Instant::now(), found.clone()));
    found
}

async fn examine(server: &Server) -> BoxFound {
    let others = Others {
        authority: server.gate.authority(),
        sign_in: server.sign_ins.provider().map(|provider| provider.settings().clone()),
        tokens: server.policy.tokens().map(|tokens| tokens.settings().clone()),
    };
    let around = look_around(&server.settings.config, &others).await;
    BoxFound {
        server: running(server),
        max_in_flight: Some(in_flight(server.accounting.queue.most())),
        audit: Some(audit(server)),
        devices: Some(devices(server)),
        sandbox: Some(sandbox::in_force()),
        https: server.open.https.as_deref().map(|found| https(server, found)),
        ..around
    }
}

/// The report for a device: all lines if its role may do everything, else those that concern it.
pub(crate) async fn for_device(server: &Server, id: DeviceId) -> Report {
    let found = BoxFound { device: device(server, id), ..found_within(server, AGAIN_AFTER).await };
    let is_admin = found
        .device
        .as_ref()
        .is_some_and(|device| server.policy.rules().is_unlimited(&device.role));
    let lines = if is_admin { lines(&found) } else { lines_for_device(&found) };
    Report::new(env!("CARGO_PKG_VERSION"), lines)
}

fn running(server: &Server) -> ServerFound {
    let status = server.status();
    ServerFound::Running {
        pid: status.pid,
        version: status.version,
        listening: server.open.listening.clone(),
        addresses: status.addresses,
        networks: status.allow_from,
        batches_refused: server.open.sockets.iter().map(|socket| socket.batches_refused()).sum(),
        refused_to: server.open.sockets.iter().find_map(|socket| socket.refused_to()),
    }
}

fn in_flight(most: Option<usize>) -> InFlight {
    most.map_or(InFlight::All, |most| InFlight::Most(most as u64))
}

fn audit(server: &Server) -> AuditLog {
    let (status, settings) =
        (server.accounting.audit.status(), &server.settings.config.accounting.audit);
    AuditLog {
        dir: status.dir.display().to_string(),
        required: settings.required,
        failing: status.failing,
        cure: status.cure,
        lost: status.lost,
    }
}

fn https(server: &Server, https: &Https) -> HttpsFound {
    let (status, snapshot) = (https.status(), server.policy.snapshot());
    let newest = |key: &Key| Some((key.name.clone(), key.secrets.first()?.expires?));
    let mut keys: Vec<_> = snapshot.keys().filter_map(newest).collect();
    keys.sort();
    HttpsFound {
        listening: status.listening,
        file: status.certificate.file,
        until: status.certificate.until,
        failing: status.certificate.failing,
        acme: status.certificate.acme.map(|acme| AcmeFound {
            directory: acme.directory,
            issued: acme.issued,
            failing: acme.failing.zip(acme.cure).map(|(why, cure)| (why, cure.note, cure.command)),
            next: acme.next,
        }),
        now: unix_now(),
        keys,
    }
}

fn devices(server: &Server) -> Devices {
    let (snapshot, rules) = (server.policy.snapshot(), server.policy.rules());
    let enrolled = || snapshot.devices().filter(|device| device.revoked.is_none());
    let lost = enrolled().filter(|device| !rules.knows(&device.role));
    let mut without_role: Vec<_> = lost.map(|device| device.name.to_string()).collect();
    without_role.sort();
    Devices {
        enrolled: enrolled().count() as u64,
        connected: server.live.status().len() as u64,
        without_role,
    }
}

fn device(server: &Server, id: DeviceId) -> Option<DeviceFound> {
    let (snapshot, rules) = (server.policy.snapshot(), server.policy.rules());
    let device = snapshot.devices().find(|device| device.id == id)?;
    let texts = |list: &[proto::ollama::model::ModelPattern]| {
        list.iter().map(ToString::to_string).collect()
    };
    let lists = rules.lists(Some(&device.name), &device.role).map(|(_, list)| list);
    let models = lists.chain(device.models.as_deref()).map(texts).collect();
    let asker = LimitedDevice {
        kind: CallerKind::Device,
        id,
        name: &device.name,
        role: device.role.as_str(),
        granted: None,
    };
    let (limits, used, running) = server.accounting.limiter.standing(asker, unix_now());
    Some(DeviceFound {
        name: device.name.clone(),
        role: device.role.clone(),
        role_is_known: rules.knows(&device.role),
        models,
        tokens: (used, limits.tokens_per_day),
        at_once: (running.into(), limits.at_once.map(|most| most.get().into())),
        per_minute: limits.requests_per_minute.map(|most| most.get().into()),
        body: limits.body,
    })
}

/// How long `authorize` takes to answer.
async fn ask(authority: &Authority) -> Option<Authorize> {
    let name: Name = ASKER.parse().ok()?;
    let question = Question {
        at: At::Request,
        method: Some("GET".into()),
        path: Some("/api/version".into()),
        uri: Some("/api/version".into()),
        ..Question::enrolling(name.clone(), How::Code, None, None, name)
    };
    Some(Authorize {
        address: authority.address().to_string(),
        by_hand: authority.address().by_hand(),
        answered: authority.time(&question).await.map_err(|e| e.to_string()),
    })
}
