//! The services besides Ollama: where each is served, and what is told if the server has it not.

use common::machine::report::{Exit, Failure};
use proto::identity::Name;
use tokio::net::TcpListener;
use tracing::warn;

use crate::{
    local::{
        listener::{self, ListenError},
        unix::{self, UnixEntrance},
    },
    settings::{Settings, Source},
    tunnel::Tunnel,
};

/// Where applications find one service.
pub(in crate::commands) struct ServedService {
    pub(super) name: Name,
    pub(super) listeners: Vec<TcpListener>,
    pub(super) entrances: Vec<UnixEntrance>,
}

impl ServedService {
    /// Its addresses, as people write them.
    pub(super) fn listening(&self) -> Vec<String> {
        let bound = self.listeners.iter().filter_map(|listener| listener.local_addr().ok());
        let sockets = self.entrances.iter().map(UnixEntrance::shown);
        bound.map(|address| address.to_string()).chain(sockets).collect()
    }
}

/// Listens for each service of the settings. `arguments` stands behind `adit up` in a cure.
///
/// # Errors
/// If an address is taken, or is not loopback and no networks are named.
pub(super) fn bind(settings: &Settings, arguments: &str) -> Result<Vec<ServedService>, Failure> {
    let networks = &settings.allow_from.value;
    let one = |name: &Name, listen: &[_]| {
        let listeners = listener::bind(listen, networks, arguments).map_err(|e| match e {
            ListenError::Failed(why) => why,
            ListenError::Taken(taken) => taken.service_failure(arguments, name),
        })?;
        let entrances = unix::bind_all(listen, settings.any_user.value)?;
        Ok(ServedService { name: name.clone(), listeners, entrances })
    };
    let all = settings.services.value.iter();
    all.map(|service| one(&service.name, std::slice::from_ref(&service.listen))).collect()
}

/// Checks that the server has each service that was asked for. One that only the settings file names
/// is a warning: what the server's owner changes must not keep the others from working.
///
/// # Errors
/// Exit code 2, with the services that there are.
pub(super) fn check(tunnel: &Tunnel, settings: &Settings) -> Result<(), Failure> {
    let lacking = settings.services.value.iter().find_map(|service| tunnel.lacks(&service.name));
    let Some(lacks) = lacking else { return Ok(()) };
    let failure = lacks
        .failure()
        .hint(format!("leave out --service {0}=…, or ask the owner of the server for it: [services.{0}] there, and `services` of this device's role", lacks.service))
        .exit(Exit::Usage);
    match settings.services.source {
        Source::Flag | Source::Environment => Err(failure),
        _ => {
            warn!("{lacks}");
            Ok(())
        }
    }
}
