//! Two networks that are joined by a cable: nothing is between them but the kernel.

use std::{io, net::Ipv4Addr, sync::Arc};

use super::{DEVICE, Namespace, SERVER};

/// A laptop's network and a server's, joined by a pair of virtual Ethernet devices. The server is at
/// [`SERVER`], as in a [`Lab`](super::Lab).
pub struct Wire {
    /// Where the laptop is.
    pub client: Arc<Namespace>,
    /// Where the server is.
    pub server: Arc<Namespace>,
}

impl Wire {
    /// What is on the cable.
    pub const NETWORK: &str = "203.0.113.0/24";
    /// The laptop's address.
    pub const CLIENT: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);

    /// Lays one. Needs root.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn new() -> io::Result<Self> {
        let (client, server) = (Namespace::new()?, Namespace::new()?);
        let there = server.path();
        client.ip(&format!(
            "link add {DEVICE} type veth peer name {DEVICE} netns {}\n{}",
            there.display(),
            comes_up(Self::CLIENT)
        ))?;
        server.ip(&comes_up(SERVER))?;
        Ok(Self { client: Arc::new(client), server: Arc::new(server) })
    }
}

fn comes_up(address: Ipv4Addr) -> String {
    format!("addr add {address}/24 dev {DEVICE}\nlink set {DEVICE} up")
}
