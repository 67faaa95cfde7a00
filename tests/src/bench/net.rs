//! The networks of one contestant: this machine's loopback, two that are joined by a cable, or two
//! with an emulated link between them.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use super::row::Scene;
use crate::lab::{DEVICE, LOOPBACK, Lab, Namespace, SERVER, Wire};

/// The networks of the laptop and of the server.
pub enum Net {
    /// The machine's own network, for both.
    Loopback,
    /// Two namespaces, joined by a virtual cable.
    Wire(Wire),
    /// Two namespaces, joined by an emulated link.
    Lab(Lab),
}

impl Net {
    /// Makes the networks of a scene. Before [`Net::begin`], an emulated link neither delays nor
    /// drops packets: the enrollment of a contestant is not measured.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn new(scene: Scene, seed: u64) -> io::Result<Self> {
        let net = match scene {
            Scene::Loopback => return Ok(Self::Loopback),
            Scene::Veth => Self::Wire(Wire::new()?),
            Scene::W1 | Scene::W2 | Scene::W3 | Scene::Fat | Scene::Roaming => {
                let lab = Lab::new(LOOPBACK, seed);
                if scene == Scene::Roaming {
                    lab.put_behind_nat();
                }
                Self::Lab(lab)
            }
        };
        for (network, own) in [(net.client(), net.client_ip()), (net.server(), net.server_ip())] {
            if let Some(network) = network {
                network.ip(&net.ordinary_tcp(own))?;
            }
        }
        Ok(net)
    }

    /// Commands that give TCP the default congestion control of most systems, whatever this system
    /// uses. It is set for each route, because a namespace may not set it for itself.
    fn ordinary_tcp(&self, own: Ipv4Addr) -> String {
        let loopback = ["127.0.0.0/8", "127.0.0.1"].map(|to| {
            format!("route replace local {to} dev lo table local proto kernel scope host src 127.0.0.1 congctl cubic\n")
        });
        let out = match self {
            Self::Wire(_) => format!("{} proto kernel scope link src {own}", Wire::NETWORK),
            Self::Loopback | Self::Lab(_) => "default".to_owned(),
        };
        format!("{}route replace {out} dev {DEVICE} congctl cubic", loopback.concat())
    }

    /// From now on, the link delays and drops packets as the scene says.
    pub fn begin(&self, scene: Scene) {
        if let (Self::Lab(lab), Some(link)) = (self, scene.link()) {
            lab.set_link(link);
        }
    }

    /// The laptop's network; `None` if it is the machine's own.
    pub fn client(&self) -> Option<&Arc<Namespace>> {
        match self {
            Self::Loopback => None,
            Self::Wire(wire) => Some(&wire.client),
            Self::Lab(lab) => Some(&lab.client),
        }
    }

    /// The server's network; `None` if it is the machine's own.
    pub fn server(&self) -> Option<&Arc<Namespace>> {
        match self {
            Self::Loopback => None,
            Self::Wire(wire) => Some(&wire.server),
            Self::Lab(lab) => Some(&lab.server),
        }
    }

    /// The emulated path, if there is one.
    pub fn lab(&self) -> Option<&Lab> {
        match self {
            Self::Lab(lab) => Some(lab),
            _ => None,
        }
    }

    /// The server's address, as the laptop sees it.
    pub fn server_ip(&self) -> Ipv4Addr {
        if self.server().is_some() { SERVER } else { Ipv4Addr::LOCALHOST }
    }

    /// The laptop's address, as the server sees it if there is no NAT.
    pub fn client_ip(&self) -> Ipv4Addr {
        match self {
            Self::Loopback => Ipv4Addr::LOCALHOST,
            Self::Wire(_) => Wire::CLIENT,
            Self::Lab(_) => Lab::FIRST_ADDRESS,
        }
    }

    /// Runs `future` in the laptop's network. Tasks that it spawns run in the machine's own
    /// network.
    pub async fn at_client<F: Future>(&self, future: F) -> F::Output {
        match self.client() {
            Some(network) => network.within(future).await,
            None => future.await,
        }
    }

    /// Runs `future` in the server's network.
    pub async fn at_server<F: Future>(&self, future: F) -> F::Output {
        match self.server() {
            Some(network) => network.within(future).await,
            None => future.await,
        }
    }

    /// A TCP port of the laptop's loopback that is free now. On the machine's own loopback, another
    /// program may take it before it is used.
    ///
    /// # Errors
    /// What the system says.
    pub fn free_at_client(&self) -> io::Result<SocketAddr> {
        Self::free(self.client(), Ipv4Addr::LOCALHOST)
    }

    /// A free TCP port at the server's address.
    ///
    /// # Errors
    /// What the system says.
    pub fn free_at_server(&self) -> io::Result<SocketAddr> {
        Self::free(self.server(), self.server_ip())
    }

    fn free(network: Option<&Arc<Namespace>>, ip: Ipv4Addr) -> io::Result<SocketAddr> {
        let bind = || std::net::TcpListener::bind((ip, 0)).and_then(|l| l.local_addr());
        network.map_or_else(bind, |network| network.inside(bind))
    }
}
