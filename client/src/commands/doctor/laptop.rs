//! Collects what is to be examined on this laptop.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
};

use common::{
    machine::{
        files::{self, FileError},
        process::unix_now,
        report::Failure,
    },
    transport,
};
use proto::{
    doctor::laptop::{
        AditFound, KeyFound, LaptopFound, ProfileFound,
        environment::Environment,
        ports::{Holder, Port},
    },
    identity::RECOVER_WITHIN,
    wire::OLLAMA_PORT,
};
use tokio::task::JoinSet;

use crate::{
    commands::{
        in_use::{self, OtherAdit},
        status::{self, Status},
    },
    local::holder,
    profile::{self, ProfileDir},
};

/// Examines this laptop. Also returns the status of the running `adit up`, if one runs.
pub(super) async fn look(
    state_dir: &Path,
    profile_dir: &ProfileDir,
    settings: Result<Option<PathBuf>, Failure>,
) -> (LaptopFound, Option<Status>) {
    let asked = status::ask(profile_dir).await;
    let adit = adit(&asked, profile_dir);
    let others = in_use::others(state_dir, &profile_dir.name).await;
    let ports = ports(&adit, &others).await;
    let found = LaptopFound {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        now: unix_now(),
        argument: profile_dir.argument(),
        flag: profile_dir.flag(),
        profile: profile(profile_dir),
        key: key(profile_dir).await,
        state: state(state_dir, profile_dir),
        settings: settings.map(|path| path.map(|path| path.display().to_string())),
        state_dir: state_dir.display().to_string(),
        adit,
        ports,
        environment: environment(),
        buffers: transport::largest_buffers(),
        free: free_space(state_dir),
    };
    (found, asked.ok().flatten())
}

fn adit(asked: &Result<Option<Status>, FileError>, profile_dir: &ProfileDir) -> AditFound {
    match asked {
        Ok(None) => AditFound::NotRunning,
        Ok(Some(status)) => AditFound::Running {
            pid: status.pid,
            version: status.version.clone(),
            listening: addresses(status),
            stopping: status.stopping,
        },
        Err(e) => AditFound::Unasked(
            Failure::new(e.to_string())
                .source(std::error::Error::source(e).map_or_else(String::new, ToString::to_string))
                .hint(format!(
                    "is it another version? Stop it, then `adit up{}`",
                    profile_dir.argument()
                )),
        ),
    }
}

fn addresses(status: &Status) -> Vec<SocketAddr> {
    status.listening.iter().filter_map(|address| address.parse().ok()).collect()
}

/// The identity of this device.
fn profile(profile_dir: &ProfileDir) -> Result<ProfileFound, Failure> {
    let profile = profile_dir.read()?;
    let certificate = profile
        .certificate()
        .map_err(|e| Failure::new("this device's certificate can't be read").source(e))?;
    let enrolled = &profile.enrolled;
    Ok(ProfileFound {
        server: profile_dir.name.clone(),
        device: format!("{} {}", enrolled.device, enrolled.device_id),
        valid: (certificate.not_before, certificate.not_after),
        recovers_for: RECOVER_WITHIN,
        revoked: profile.revoked,
    })
}

/// Where the key is, and whether its hardware is there.
async fn key(profile_dir: &ProfileDir) -> Option<KeyFound> {
    let key = profile_dir.read().ok()?.key();
    let place = key.place().unwrap_or_else(|| "in a file".to_owned());
    let wrong = key.look().await.err().map(Failure::from);
    Some(KeyFound { place, wrong })
}

/// Files whose owner or mode is wrong, each with its cure.
fn state(state_dir: &Path, profile_dir: &ProfileDir) -> Vec<Failure> {
    let (servers, identity) = (state_dir.join("servers"), profile_dir.dir.join(profile::IDENTITY));
    let all = [state_dir, &servers, &profile_dir.dir, &identity];
    all.into_iter().filter_map(|path| files::inspect(path).err().map(Failure::from)).collect()
}

/// The free space for the state, in bytes. A directory that does not exist yet will be made on the disk
/// of its parent.
fn free_space(state_dir: &Path) -> Option<u64> {
    let dir = state_dir.ancestors().find(|path| path.exists())?;
    files::free_space(dir).ok()
}

/// Which program holds the addresses that tools use: IPv4 and IPv6 loopback, with Ollama's port and
/// with the port of this `adit up`.
async fn ports(adit: &AditFound, others: &[OtherAdit]) -> Vec<Port> {
    let numbers: BTreeSet<u16> =
        adit.listening().iter().map(SocketAddr::port).chain([OLLAMA_PORT]).collect();
    let mut asked = JoinSet::new();
    for number in numbers {
        for address in [(Ipv4Addr::LOCALHOST, number).into(), (Ipv6Addr::LOCALHOST, number).into()]
        {
            let known = if adit.listening().contains(&address) {
                Some(Holder::This)
            } else {
                let other = others.iter().find(|other| other.listening.contains(&address));
                other.map(|other| Holder::Adit(other.text()))
            };
            asked.spawn_blocking(move || Port {
                address,
                holder: known.unwrap_or_else(|| holder::look(address)),
            });
        }
    }
    let mut ports = asked.join_all().await;
    ports.sort_by_key(|port| port.address);
    ports
}

fn environment() -> Environment {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
    let proxy = ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"];
    Environment {
        proxy: proxy.iter().find_map(|name| Some(((*name).to_owned(), set(name)?))),
        no_proxy: set("NO_PROXY").or_else(|| set("no_proxy")),
        ollama_host: set("OLLAMA_HOST"),
    }
}
