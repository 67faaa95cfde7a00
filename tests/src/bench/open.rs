//! Sets contestants up, each in networks of its own and with a service of its own.

mod adit;
mod peers;
mod ssh;

use std::{io, net::SocketAddr, path::PathBuf, time::Duration};

use tokio::net::TcpStream;

use super::{
    contestant::{Congestion, Contestant, Kind},
    load::{Seat, Service, Target},
    net::Net,
    processes::Processes,
    row::Scene,
};

/// Until a contestant's own port answers.
const ANSWERS_WITHIN: Duration = Duration::from_secs(30);

/// A contestant that is up. Dropping it ends it.
pub(super) struct Stage {
    /// Where applications connect.
    pub(super) target: Target,
    /// What works for it.
    pub(super) processes: Processes,
    /// Where applications run.
    pub(super) apps: Seat,
    /// What they ask.
    pub(super) service: Service,
    // In this order: the processes end before the networks that they are in.
    _running: Keep,
    /// Both ends' networks.
    pub(super) net: Net,
}

/// Whatever has to be kept for as long as a contestant runs.
type Keep = Box<dyn Send + Sync>;

/// A contestant's own part of a stage.
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
    /// What kept it from coming up.
    ///
    /// # Panics
    /// If a process of Adit's does not come up, with its log.
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
                direct(&net, &service, which)?
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

fn direct(net: &Net, service: &Service, congestion: Congestion) -> io::Result<Running> {
    let listening = match congestion {
        Congestion::Cubic => service.cubic,
        Congestion::Bbr => service.bbr.ok_or(io::ErrorKind::Unsupported)?,
    };
    let address = SocketAddr::from((net.server_ip(), listening.port()));
    Ok(Running { address, processes: Processes::default(), keep: Box::new(()) })
}

/// Waits until somebody listens there.
async fn answers(net: &Net, address: SocketAddr) -> io::Result<()> {
    let connects = async {
        while TcpStream::connect(address).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let listens = net.at_client(tokio::time::timeout(ANSWERS_WITHIN, connects)).await;
    listens.map_err(|_| io::Error::other(format!("nobody listens on {address}")))
}
