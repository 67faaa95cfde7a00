//! The lab: a laptop's network and a server's network, real for every process in them, with an
//! emulated path in between.
//!
//! Needs root and Linux. Each lab has two network namespaces of its own and touches nothing else on
//! the machine; nothing is left behind, however the test ends.

mod answer;
mod chance;
mod emulator;
mod far;
mod link;
pub mod namespace;
mod nat;
mod packet;
mod pipe;
pub mod scan;
mod timer;
mod wire;

pub use answer::{Answered, Asked, Both};
pub use chance::{Chance, seed};
pub use far::{Carrier, Far, PORT, Setting};
pub use link::{Holes, LADDER, LOOPBACK, Link, Loss, rung};
pub use namespace::{Namespace, Within};
pub use nat::FORGETS_UDP as NAT_FORGETS_UDP;
pub use wire::Wire;

use std::{
    net::Ipv4Addr,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
};

use tokio::sync::watch;

use self::emulator::{Conditions, Ends, MTU};
use crate::skip;

/// The server's address, as the laptop sees it.
pub const SERVER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
/// The name of the network device on both sides.
pub const DEVICE: &str = "wan";

/// Two networks and the path between them.
pub struct Lab {
    /// The laptop's network.
    pub client: Arc<Namespace>,
    /// The server's network.
    pub server: Arc<Namespace>,
    conditions: Option<watch::Sender<Conditions>>,
    emulator: Option<JoinHandle<()>>,
    network: AtomicU8,
    marked: Arc<AtomicU64>,
    seed: u64,
}

impl Lab {
    /// The laptop's address, until it is taken to another network.
    pub const FIRST_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 0, 2);

    /// Whether the test must be skipped because this machine can't have a lab; says why.
    pub fn is_missing() -> bool {
        Self::what_is_missing().is_some_and(skip::skip_test)
    }

    /// Why there can be no lab on this machine.
    pub fn what_is_missing() -> Option<&'static str> {
        let ip = Command::new("ip").arg("-V").output().is_ok_and(|out| out.status.success());
        match (rustix::process::geteuid().is_root(), ip, Path::new("/dev/net/tun").exists()) {
            (false, ..) => Some("the lab needs root"),
            (_, false, _) => Some("there is no `ip` (iproute2)"),
            (.., false) => Some("there is no /dev/net/tun"),
            _ => Namespace::new().err().map(|_| "this root may not make network namespaces"),
        }
    }

    /// A path over `link`; its behaviour is the same for the same `seed`.
    ///
    /// # Panics
    /// If the kernel refuses; see [`Lab::is_missing`].
    pub fn new(link: Link, seed: u64) -> Self {
        let namespace = || Arc::new(Namespace::new().expect("a network namespace"));
        let (client, server) = (namespace(), namespace());
        let now = Conditions {
            link,
            cut: false,
            longest: MTU,
            unmarked_only: false,
            nat: false,
            forgotten: 0,
        };
        let (conditions, seen) = watch::channel(now);
        let marked = Arc::new(AtomicU64::new(0));
        let ends = Ends {
            client: client.clone(),
            server: server.clone(),
            server_address: SERVER,
            marked: marked.clone(),
        };
        let emulator = emulator::start(ends, seed, seen).expect("packets are carried");
        Self {
            client,
            server,
            conditions: Some(conditions),
            emulator: Some(emulator),
            network: AtomicU8::new(0),
            marked,
            seed,
        }
    }

    /// Drops every packet from now on, in both directions. Packets that are under way arrive.
    pub fn cut(&self) {
        self.change(|now| now.cut = true);
    }

    /// Carries packets again.
    pub fn mend(&self) {
        self.change(|now| now.cut = false);
    }

    /// Changes the properties of the path.
    pub fn set_link(&self, link: Link) {
        self.change(|now| now.link = link);
    }

    /// Silently drops packets longer than this many bytes, as a misconfigured tunnel in the network
    /// does.
    pub fn set_longest_packet(&self, bytes: usize) {
        self.change(|now| now.longest = bytes);
    }

    /// Silently drops packets with ECN marks, in both directions, or carries them again.
    pub fn lose_marked(&self, lost: bool) {
        self.change(|now| now.unmarked_only = lost);
    }

    /// How many UDP packets with an ECN mark the laptop has sent on this path.
    pub fn marked_by_laptop(&self) -> u64 {
        self.marked.load(Relaxed)
    }

    /// Drops only UDP, or carries it again: both networks silently drop incoming UDP, as a firewall
    /// does.
    ///
    /// # Panics
    /// If nftables refuses; see [`Lab::has_no_firewall`].
    pub fn block_udp(&self, blocked: bool) {
        let mut rules = "add table inet lab\ndelete table inet lab\n".to_owned();
        if blocked {
            rules += "add table inet lab\nadd chain inet lab in { type filter hook input priority 0 ; }\n";
            rules += &format!("add rule inet lab in iifname {DEVICE} meta l4proto udp drop\n");
        }
        for network in [&self.client, &self.server] {
            network.nft(&rules).expect("rules");
        }
    }

    /// Whether a test that blocks UDP must be skipped; says why.
    pub fn has_no_firewall() -> bool {
        Self::is_missing()
            || Namespace::new().and_then(|network| network.nft("add table inet lab\n")).is_err()
                && skip::skip_test("there is no nftables")
    }

    /// Takes the laptop's only interface down, with its address and its routes.
    ///
    /// # Panics
    /// If that fails.
    pub fn unplug(&self) {
        self.client
            .ip(&format!("addr flush dev {DEVICE}\nlink set {DEVICE} down"))
            .expect("no interface");
    }

    /// Brings the interface up again, in another network.
    ///
    /// # Panics
    /// If that fails.
    pub fn plug_in(&self) {
        let network = self.network.fetch_add(1, Relaxed) + 1;
        self.client
            .ip(&format!("link set {DEVICE} up\n{}", come_to(network)))
            .expect("an interface");
    }

    /// Puts the laptop behind a NAT that forgets a UDP flow after [`NAT_FORGETS_UDP`] without a
    /// packet from inside.
    pub fn put_behind_nat(&self) {
        self.change(|now| now.nat = true);
    }

    /// Makes the NAT forget all flows: the next packet of each gets another port.
    pub fn rebind_nat(&self) {
        self.change(|now| now.forgotten += 1);
    }

    /// Moves the laptop to another network: it gets another address.
    ///
    /// # Panics
    /// If that fails.
    pub fn change_address(&self) {
        let network = self.network.fetch_add(1, Relaxed) + 1;
        let commands = format!("addr flush dev {DEVICE}\n{}", come_to(network));
        self.client.ip(&commands).expect("another address");
    }

    fn change(&self, change: impl FnOnce(&mut Conditions)) {
        if let Some(conditions) = &self.conditions {
            conditions.send_modify(change);
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("this lab's seed was {} (to repeat: ADIT_LAB_SEED)", self.seed);
        }
        self.conditions = None;
        if let Some(emulator) = self.emulator.take() {
            let _ = emulator.join();
        }
    }
}

/// The commands that move the laptop into its `number`th network.
fn come_to(number: u8) -> String {
    format!("addr add 192.168.{number}.2/24 dev {DEVICE}\nroute replace default dev {DEVICE}")
}
