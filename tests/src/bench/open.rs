//! Sets contestants up, each in networks of its own and with a service of its own.

mod adit;
mod peers;
mod ssh;

pub(super) use adit::ANOTHER;

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use client::profile::Profile;
use tokio::net::TcpStream;

use super::{
    contestant::{Contestant, Kind},
    load::{Seat, Service, Target},
    net::Net,
    processes::Processes,
    row::Scene,
};
use crate::lab::PORT;

/// How long to wait until a contestant's port answers.
const ANSWERS_WITHIN: Duration = Duration::from_secs(30);

/// A contestant that was set up. Dropping it ends its processes.
pub(super) struct Stage {
    /// Where applications connect.
    pub(super) target: Target,
    /// Its processes.
    pub(super) processes: Processes,
    /// Where applications run.
    pub(super) apps: Seat,
    /// The service that they ask.
    pub(super) service: Service,
    // Fields are dropped in this order: the processes end before their networks.
    _running: Keep,
    /// The networks of both ends.
    pub(super) net: Net,
}

/// A value that has to be kept for as long as a contestant runs.
type Keep = Box<dyn Send + Sync>;

/// The parts of a stage that differ between contestants.
struct Running {
    address: SocketAddr,
    processes: Processes,
    keep: Keep,
}

impl Stage {
    /// Sets `contestant` up in the networks of `scene`. `programs` are the builds of Adit that are
    /// compared.
    ///
    /// # Errors
    /// If it could not be set up: why.
    ///
    /// # Panics
    /// If a process of Adit does not become ready, with its log.
    pub(super) async fn open(
        contestant: &Contestant,
        scene: Scene,
        programs: &[PathBuf],
        seed: u64,
    ) -> io::Result<Self> {
        let net = Net::new(scene, seed)?;
        let service = Service::start(net.server().cloned()).await?;
        let apps = Seat::new("apps", net.client().cloned())?;
        let mut congestion = None;
        let running = match contestant.kind {
            Kind::Direct(which) => {
                congestion = Some(which);
                let address = service.target(which, net.server_ip())?.address;
                Running { address, processes: Processes::default(), keep: Box::new(()) }
            }
            Kind::Ssh { gcm } => ssh::open(&net, service.cubic, gcm).await?,
            Kind::Adit { program, carrier, service: kind } => {
                let program = programs.get(program).ok_or(io::ErrorKind::NotFound)?;
                let upstream = format!("{}://{}", kind.scheme(), service.cubic);
                adit::open(&net, scene, program, carrier, &upstream).await?
            }
            Kind::Peer(peer) => peers::open(&net, peer, service.cubic).await?,
        };
        answers(&net, running.address).await?;
        net.begin(scene);
        let target = Target { address: running.address, congestion };
        Ok(Self {
            target,
            processes: running.processes,
            apps,
            service,
            _running: running.keep,
            net,
        })
    }
}

/// Adit over UDP on a cable, and a second device that nobody uses yet.
pub(super) struct TwoDevices {
    /// The first device's tunnel.
    pub(super) stage: Stage,
    /// The server alone.
    pub(super) aditd: Processes,
    /// Where it listens for tunnels.
    pub(super) server: SocketAddr,
    /// The second device. It uses the service [`ANOTHER`].
    pub(super) other: Profile,
    pub(super) _another: Service,
}

impl TwoDevices {
    /// Sets both up, with the programs in the file `program`.
    ///
    /// # Errors
    /// If it could not be set up: why.
    ///
    /// # Panics
    /// If a process of Adit does not become ready, with its log.
    pub(super) async fn open(program: &Path) -> io::Result<Self> {
        let net = Net::new(Scene::Veth, 1)?;
        let service = Service::start(net.server().cloned()).await?;
        let apps = Seat::new("apps", net.client().cloned())?;
        let upstream = format!("http://{}", service.cubic);
        // What the service has to do for one device must not make the other one wait.
        let another = Service::start(net.server().cloned()).await?;
        another.give_way().await?;
        let for_another = format!("http://{}", another.cubic);
        let (running, other) =
            adit::open_with_another(&net, program, &upstream, &for_another).await?;
        answers(&net, running.address).await?;
        let server = SocketAddr::from((net.server_ip(), PORT));
        let aditd = Processes { roots: running.processes.roots[..1].to_vec(), hosts: vec![] };
        let target = Target { address: running.address, congestion: None };
        let (processes, _running) = (running.processes, running.keep);
        let stage = Stage { target, processes, apps, service, _running, net };
        Ok(Self { stage, aditd, server, other, _another: another })
    }
}

/// Waits until a program listens there.
async fn answers(net: &Net, address: SocketAddr) -> io::Result<()> {
    let connects = async {
        while TcpStream::connect(address).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let listens = net.at_client(tokio::time::timeout(ANSWERS_WITHIN, connects)).await;
    listens.map_err(|_| io::Error::other(format!("nobody listens on {address}")))
}
