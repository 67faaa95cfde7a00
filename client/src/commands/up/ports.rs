//! The local ports of several servers: the first is on Ollama's own, and each other one on a port that
//! its profile remembers.

use std::{net::SocketAddr, ops::RangeInclusive};

use common::machine::report::{Exit, Failure};
use ipnet::IpNet;
use proto::identity::Name;
use tokio::net::TcpListener;
use tracing::warn;

use crate::{
    commands::in_use::{self, OtherAdit},
    local::listener::{self, ListenAddr, ListenError},
    profile::{self, ProfileDir, SharedProfile},
};

/// Where free ports are searched. Hints name the ports below.
const PORTS: RangeInclusive<u16> = 11510..=11599;

/// Where a server is to be served.
pub(super) struct Place {
    pub(super) name: Name,
    /// The addresses that the user chose; `None`: a port of its own.
    pub(super) listen: Option<Vec<ListenAddr>>,
    /// The networks that may use those that are not loopback.
    pub(super) networks: Vec<IpNet>,
    pub(super) profile: SharedProfile,
}

/// Listens for each server. `arguments` stands behind `adit up` in a cure.
///
/// # Errors
/// If a chosen address is taken, or no port is free.
pub(super) async fn bind<'a>(
    places: impl Iterator<Item = &'a Place> + Clone,
    arguments: &str,
) -> Result<Vec<Vec<TcpListener>>, Failure> {
    // What the user chose comes first, so that no other server gets it.
    let mut chosen = Vec::new();
    for place in places.clone() {
        let listeners = match &place.listen {
            None => None,
            Some(listen) => Some(bind_chosen(place, listen, arguments, &chosen).await?),
        };
        chosen.push((&place.name, listeners));
    }
    places
        .zip(chosen)
        .map(|(place, (_, listeners))| listeners.map_or_else(|| bind_own(&place.profile), Ok))
        .collect()
}

async fn bind_chosen(
    place: &Place,
    listen: &[ListenAddr],
    arguments: &str,
    others: &[(&Name, Option<Vec<TcpListener>>)],
) -> Result<Vec<TcpListener>, Failure> {
    let taken = match listener::bind(listen, &place.networks, arguments) {
        Ok(listeners) => return Ok(listeners),
        Err(ListenError::Failed(why)) => return Err(why),
        Err(ListenError::Taken(taken)) => taken,
    };
    let has_same = |(_, listeners): &&(&Name, Option<Vec<TcpListener>>)| {
        let bound = listeners.iter().flatten().filter_map(|l| l.local_addr().ok());
        bound.into_iter().any(|bound| listen.iter().any(|wanted| covers(wanted, bound)))
    };
    if let Some((other, _)) = others.iter().find(has_same) {
        return Err(Failure::new(format!(
            "`{other}` and `{}` cannot listen on the same address",
            place.name
        ))
        .source(format!("the settings file gives `{}` an address that is in use", place.name))
        .hint(format!("choose another `listen` in its table [servers.{}]", place.name))
        .exit(Exit::Usage));
    }
    let running = in_use::others(place.profile.get().profile_dir.state_dir(), &place.name).await;
    let holder = running.into_iter().find(|adit| adit.listening.contains(&taken.address));
    let failure = taken.failure(arguments, holder.as_ref().map(OtherAdit::text));
    Err(match holder {
        Some(adit) => failure.hint(format!("to use both at once: {}", adit.together(arguments))),
        None => failure,
    })
}

fn covers(wanted: &ListenAddr, bound: SocketAddr) -> bool {
    match wanted {
        ListenAddr::Localhost(port) | ListenAddr::Docker(port) => *port == bound.port(),
        ListenAddr::Address(address) => *address == bound,
        ListenAddr::Unix { .. } => false,
    }
}

/// Listens on the port that the profile remembers, if it is free, and else on another one. The first
/// port is remembered.
fn bind_own(shared: &SharedProfile) -> Result<Vec<TcpListener>, Failure> {
    let mut profile = shared.get();
    let (name, remembered) = (profile.profile_dir.name.clone(), profile.port);
    for port in order(remembered, &remembered_by_others(&profile.profile_dir)?) {
        let Some(listeners) = listener::bind_free(port) else { continue };
        match remembered {
            Some(usual) if usual != port => warn!(
                "port {usual}, which `{name}` usually has, is taken: this time it has port {port}"
            ),
            Some(_) => {}
            None => {
                profile.port = Some(port);
                shared.store(profile);
            }
        }
        return Ok(listeners);
    }
    Err(Failure::new(format!("there is no free port for `{name}`"))
        .source(format!("all ports from {} to {} are taken", PORTS.start(), PORTS.end()))
        .hint(format!("choose one in the settings file: `listen` in [servers.{name}]")))
}

/// The ports to try, in order: the remembered one, then those that no other server remembers.
fn order(remembered: Option<u16>, others: &[u16]) -> Vec<u16> {
    let free = PORTS.filter(|port| Some(*port) != remembered && !others.contains(port));
    remembered.into_iter().chain(free).collect()
}

fn remembered_by_others(profile_dir: &ProfileDir) -> Result<Vec<u16>, Failure> {
    let state_dir = profile_dir.state_dir();
    let others = profile::known(state_dir)?.into_iter().filter(|name| *name != profile_dir.name);
    let port = |name| ProfileDir::new(state_dir, name).read().ok()?.port;
    Ok(others.filter_map(port).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_gets_the_port_that_it_had_or_one_that_no_other_has() {
        assert_eq!(order(None, &[])[..2], [11510, 11511]);
        assert_eq!(order(None, &[11510, 11512])[..2], [11511, 11513]);
        assert_eq!(order(Some(11512), &[11510])[..3], [11512, 11511, 11513]);
        assert_eq!(order(Some(7), &[])[..2], [7, 11510]);
        let mut all = order(Some(11512), &[]);
        assert_eq!(all.len(), PORTS.count());
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), PORTS.count(), "each once");
    }
}
