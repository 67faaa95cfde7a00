//! The networks of one contestant: this machine's loopback, two that are joined by a cable, or two
//! with an emulated link between them.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use super::row::Scene;
use crate::lab::{DEVICE, LOOPBACK, Lab, Namespace, SERVER, Wire};

/// Both ends' networks.
pub enum Net {
    /// The machine's own, for both.
    Loopback,
    /// Joined by a cable.
    Wire(Wire),
    /// Joined by a link.
    Lab(Lab),
}

impl Net {
    /// Makes those of a scene. A link does nothing to packets before [`Net::begin`]: what is measured
    /// is not how a contestant is enrolled.
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

    /// Commands that give TCP the congestion control that ordinary systems have, whatever this one
    /// has. A namespace may not choose any for itself, but for each of its routes.
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

    /// Lets the link be that of the scene.
    pub fn begin(&self, scene: Scene) {
        if let (Self::Lab(lab), Some(link)) = (self, scene.link()) {
            lab.set_link(link);
        }
    }

    /// The laptop's network, unless it is the machine's.
    pub fn client(&self) -> Option<&Arc<Namespace>> {
        match self {
            Self::Loopback => None,
            Self::Wire(wire) => Some(&wire.client),
            Self::Lab(lab) => Some(&lab.client),
        }
    }

    /// The server's network, unless it is the machine's.
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

    /// The laptop's address, as the server sees it where no address translator is between.
    pub fn client_ip(&self) -> Ipv4Addr {
        match self {
            Self::Loopback => Ipv4Addr::LOCALHOST,
            Self::Wire(_) => Wire::CLIENT,
            Self::Lab(_) => Lab::FIRST_ADDRESS,
        }
    }

    /// Runs `future` in the laptop's network; what it spawns as a task of its own is outside.
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

    /// A free TCP port of the laptop's loopback. It is given up again: whoever gets it has to be
    /// quick, which only matters on a machine's own loopback.
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
