//! What `aditd status` shows of a running server.

use std::{collections::HashMap, path::PathBuf};

use common::machine::process::unix_now;
use proto::{
    doctor::gpu_box::Sandbox,
    epoch::Standing,
    identity::{DeviceId, Name, UserName},
};
use serde::{Deserialize, Serialize};

use super::{Server, sessions::SessionStatus, users::UserStatus};
use crate::{
    audit::AuditStatus, https::HttpsStatus, jwt::TokensStatus, limits::LimitedDevice,
    oidc::OidcStatus, record::CallerKind, sandbox,
};

/// A running server, as `aditd status` prints it.
#[derive(Debug, Serialize, Deserialize)]
pub struct ServerStatus {
    pub version: String,
    pub pid: u32,
    /// The UDP addresses that it listens on.
    pub listening: Vec<String>,
    /// The port of the relay on loopback, for SSH keys that may only forward ports.
    #[serde(default)]
    pub relay: Option<u16>,
    /// The addresses that devices are told.
    pub addresses: Vec<String>,
    pub config: Option<PathBuf>,
    /// The service that it forwards to.
    pub upstream: String,
    /// Every service that it has, `ollama` first.
    #[serde(default)]
    pub services: Vec<ServiceStatus>,
    /// The networks that may reach it, besides this machine.
    pub allow_from: Vec<String>,
    /// The address of the metrics, if set.
    pub metrics: Option<String>,
    /// The names of all roles.
    pub roles: Vec<Name>,
    /// How many devices are held back until they are confirmed.
    #[serde(default)]
    pub to_confirm: usize,
    /// How many revocations are known to be lost by a restore.
    #[serde(default)]
    pub lost_revocations: u64,
    /// How many seconds a silent session is kept; a device may ask for less.
    pub idle_timeout: u64,
    /// The buffers that the system granted the first UDP socket for receiving and sending, in
    /// bytes.
    pub socket_buffers: Option<(usize, usize)>,
    pub sessions: Vec<SessionStatus>,
    pub audit: AuditStatus,
    /// The HTTPS listener, if it is on.
    #[serde(default)]
    pub https: Option<HttpsStatus>,
    /// Whose tokens count, if any do.
    #[serde(default)]
    pub jwt: Option<TokensStatus>,
    /// Where people sign in, if a provider is configured.
    #[serde(default)]
    pub oidc: Option<OidcStatus>,
    /// How many requests wait for their turn.
    pub waiting: usize,
    #[serde(default)]
    pub queue: QueueStatus,
    /// Who runs something now or has used tokens today.
    #[serde(default)]
    pub users: Vec<UserStatus>,
    /// The ids of older processes of this server in which answers still run.
    #[serde(default)]
    pub older: Vec<u32>,
    /// What the process can still do on its machine.
    #[serde(default)]
    pub sandbox: Sandbox,
    /// How many tasks the runtime has, to find leaks.
    pub tasks: usize,
}

/// A service, and where it is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ServiceStatus {
    pub name: Name,
    /// Where it is, and what it speaks, by its scheme.
    pub upstream: String,
    /// What travels unencrypted, if it is not on this machine.
    #[serde(default)]
    pub unencrypted: Option<String>,
}

/// The queue in front of the service.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct QueueStatus {
    /// How many requests have a turn.
    pub running: usize,
    /// How many requests may have a turn at once; `None` if all may.
    pub max_in_flight: Option<usize>,
    /// How many requests may wait.
    pub max_queue: usize,
    /// The waiting requests in the order of their turns.
    pub waiting: Vec<QueuedRequest>,
}

/// A request that waits for its turn.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct QueuedRequest {
    /// The device that has sent it; `None` if it was forgotten meanwhile.
    pub device: Option<Name>,
    pub device_id: DeviceId,
    /// The person to whom it belongs.
    #[serde(default)]
    pub user: Option<UserName>,
    /// 1 for the request that gets the next turn.
    pub position: usize,
    /// How many seconds it has waited.
    pub seconds: f64,
}

/// How many of the day's tokens a device has used.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct TokensToday {
    /// Tokens of prompts and answers together.
    pub used: u64,
    /// How many tokens the device may use, if limited.
    pub limit: Option<u64>,
    /// What its user has used and may use with all devices and keys.
    #[serde(default)]
    pub user: Option<TokensOfUser>,
}

/// How many of the day's tokens a user has used.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct TokensOfUser {
    pub used: u64,
    /// How many tokens the user may use, if limited.
    pub limit: Option<u64>,
}

impl Server {
    /// The server's current status.
    pub(crate) fn status(&self) -> ServerStatus {
        let config = &self.settings.config;
        ServerStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            listening: self.open.listening.iter().map(ToString::to_string).collect(),
            relay: self.open.relay,
            addresses: self.addresses(),
            config: config.file.clone(),
            upstream: config.upstream().to_string(),
            services: config
                .upstreams()
                .map(|(name, upstream)| ServiceStatus {
                    name: name.clone(),
                    upstream: upstream.to_string(),
                    unencrypted: upstream.is_elsewhere().then(|| upstream.unencrypted(name)),
                })
                .collect(),
            allow_from: config.audience.networks().iter().map(ToString::to_string).collect(),
            metrics: config.accounting.metrics.as_ref().map(ToString::to_string),
            roles: self.policy.rules().names().cloned().collect(),
            to_confirm: self
                .policy
                .snapshot()
                .devices()
                .filter(|device| device.standing() == Standing::Held)
                .count(),
            lost_revocations: self.policy.snapshot().history().lost,
            idle_timeout: self.idle_timeout.as_secs(),
            socket_buffers: self.open.socket_buffers,
            sessions: self.live.status(),
            audit: self.accounting.audit.status(),
            https: self.open.https.as_ref().map(|https| https.status()),
            oidc: self.sign_ins.provider().map(|provider| provider.status()),
            jwt: self.policy.tokens().map(|tokens| tokens.status()),
            waiting: self.accounting.queue.waiting(),
            queue: self.queue(),
            users: self.users(),
            older: self.replacements.older().pids(),
            sandbox: sandbox::in_force(),
            tasks: tokio::runtime::Handle::current().metrics().num_alive_tasks(),
        }
    }

    /// The queue now.
    fn queue(&self) -> QueueStatus {
        let (queue, register) = (&self.accounting.queue, self.policy.snapshot());
        // Who comes with a token is not in the register.
        let callers = self.open.https.as_ref().map(|https| https.status().callers);
        let names: HashMap<_, _> = register
            .devices()
            .map(|device| (device.id, (&device.name, &device.user)))
            .chain(register.keys().map(|key| (key.id, (&key.name, &key.user))))
            .chain(callers.iter().flatten().map(|caller| (caller.id, (&caller.name, &caller.user))))
            .collect();
        let waiting = queue.in_order().into_iter().zip(1..).map(|(queued, position)| {
            let (device, user) = match names.get(&queued.device) {
                Some((name, user)) => (Some((*name).clone()), (*user).clone()),
                None => (None, None),
            };
            let seconds = queued.waited.as_secs_f64();
            QueuedRequest { device, device_id: queued.device, user, position, seconds }
        });
        QueueStatus {
            running: queue.running(),
            max_in_flight: queue.most(),
            max_queue: queue.max_waiting(),
            waiting: waiting.collect(),
        }
    }

    /// How many of the day's tokens a device has used; `None` if none and no limit is set.
    pub(crate) fn tokens_today(&self, id: DeviceId) -> Option<TokensToday> {
        let register = self.policy.snapshot();
        let device = register.devices().find(|device| device.id == id)?;
        let limited = LimitedDevice {
            kind: CallerKind::Device,
            id,
            name: &device.name,
            role: device.role.as_str(),
            granted: None,
        };
        let mut tokens = self.accounting.limiter.tokens(limited, unix_now()).into_iter();
        let (used, limit) = tokens.next()?;
        let user = tokens.next().map(|(used, limit)| TokensOfUser { used, limit });
        let user = user.filter(|user| user.used > 0 || user.limit.is_some());
        let is_told = used > 0 || limit.is_some() || user.is_some();
        is_told.then_some(TokensToday { used, limit, user })
    }
}
