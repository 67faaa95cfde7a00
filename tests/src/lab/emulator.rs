//! Carries packets between two namespaces, in user space, in a thread of its own.

use std::{
    io,
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    thread::JoinHandle,
    time::Instant,
};

use tokio::sync::watch;
use tokio_tun::Tun;

use super::{link::Link, namespace::Namespace, nat::Nat, packet, pipe::Pipe, timer::Timer};

/// The MTU of ordinary networks.
pub(super) const MTU: usize = 1500;
/// The kernel keeps as many packets for us: what is lost is lost by the link, not by its emulation.
const KEPT_BY_KERNEL: usize = 10_000;
/// So many packets are taken in before those that are due are delivered.
const BATCH: usize = 32;

/// The current behaviour of the path.
#[derive(Debug, Clone, Copy)]
pub(super) struct Conditions {
    pub(super) link: Link,
    /// All packets are dropped.
    pub(super) cut: bool,
    /// Longer packets are dropped silently.
    pub(super) longest: usize,
    /// Packets with ECN marks are dropped silently.
    pub(super) unmarked_only: bool,
    /// The laptop is behind a NAT.
    pub(super) nat: bool,
    /// How often the NAT was made to forget its flows.
    pub(super) forgotten: u32,
}

impl Conditions {
    fn let_through(&self, packet: &[u8]) -> bool {
        packet::protocol(packet).is_some()
            && !(self.cut
                || packet.len() > self.longest
                || (self.unmarked_only && packet::is_marked(packet)))
    }
}

pub(super) struct Ends {
    pub(super) client: Arc<Namespace>,
    pub(super) server: Arc<Namespace>,
    pub(super) server_address: Ipv4Addr,
    /// Counts the UDP packets with an ECN mark that the laptop has sent.
    pub(super) marked: Arc<AtomicU64>,
}

/// Starts the thread; it ends when `conditions` can't change any more.
pub(super) fn start(
    ends: Ends,
    seed: u64,
    conditions: watch::Receiver<Conditions>,
) -> io::Result<JoinHandle<()>> {
    let (tell, told) = mpsc::sync_channel(1);
    let thread = std::thread::Builder::new().name("link".to_owned()).spawn(move || {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(e) => return drop(tell.send(Err(e))),
        };
        let _guard = runtime.enter();
        match Emulator::new(&ends, seed, conditions) {
            Ok(emulator) => {
                let _ = tell.send(Ok(()));
                runtime.block_on(emulator.run());
            }
            Err(e) => drop(tell.send(Err(e))),
        }
    })?;
    told.recv().map_err(io::Error::other)??;
    Ok(thread)
}

struct Emulator {
    client: Tun,
    server: Tun,
    up: Pipe,
    down: Pipe,
    nat: Nat,
    conditions: watch::Receiver<Conditions>,
    timer: Timer,
    /// How often the NAT has forgotten its flows.
    forgotten: u32,
    marked: Arc<AtomicU64>,
}

impl Emulator {
    fn new(ends: &Ends, seed: u64, conditions: watch::Receiver<Conditions>) -> io::Result<Self> {
        let device = |namespace: &Namespace, commands: &str| -> io::Result<Tun> {
            let built = namespace
                .inside(|| Tun::builder().name(super::DEVICE).mtu(MTU as i32).up().build());
            let tun = built.map_err(io::Error::other)?.pop().ok_or(io::ErrorKind::NotFound)?;
            namespace.ip(&format!(
                "link set {} txqueuelen {KEPT_BY_KERNEL}\n{commands}",
                super::DEVICE
            ))?;
            Ok(tun)
        };
        let begun = Instant::now();
        let server_side = format!(
            "addr add {}/32 dev {d}\nroute add default dev {d}",
            ends.server_address,
            d = super::DEVICE
        );
        Ok(Self {
            client: device(&ends.client, &super::come_to(0))?,
            server: device(&ends.server, &server_side)?,
            up: Pipe::new(seed.wrapping_mul(2), begun),
            down: Pipe::new(seed.wrapping_mul(2) + 1, begun),
            nat: Nat::default(),
            conditions,
            timer: Timer::new()?,
            forgotten: 0,
            marked: ends.marked.clone(),
        })
    }

    async fn run(mut self) {
        let (mut from_client, mut from_server) = (vec![0; 2 * MTU], vec![0; 2 * MTU]);
        loop {
            let next = [self.up.next_due(), self.down.next_due()].into_iter().flatten().min();
            let due = async {
                match next {
                    Some(next) => self.timer.until(next).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = self.conditions.changed() => if changed.is_err() {
                    return;
                },
                () = due => {}
                read = self.client.recv(&mut from_client) => match read {
                    Ok(n) => self.all_upward(n, &mut from_client),
                    Err(_) => return,
                },
                read = self.server.recv(&mut from_server) => match read {
                    Ok(n) => self.all_downward(n, &mut from_server),
                    Err(_) => return,
                },
            }
            self.deliver();
        }
    }

    /// The packet of `n` bytes that was read, and those that are there behind it.
    fn all_upward(&mut self, n: usize, packet: &mut [u8]) {
        self.upward(packet[..n].to_vec());
        for _ in 1..BATCH {
            let Ok(n) = self.client.try_recv(packet) else { return };
            self.upward(packet[..n].to_vec());
        }
    }

    fn all_downward(&mut self, n: usize, packet: &mut [u8]) {
        self.downward(packet[..n].to_vec());
        for _ in 1..BATCH {
            let Ok(n) = self.server.try_recv(packet) else { return };
            self.downward(packet[..n].to_vec());
        }
    }

    /// The current conditions: a change by the test applies to every packet that is sent
    /// afterwards.
    fn conditions(&mut self) -> Conditions {
        let now = *self.conditions.borrow();
        if self.forgotten != now.forgotten {
            self.forgotten = now.forgotten;
            self.nat.forget();
        }
        now
    }

    fn upward(&mut self, mut packet: Vec<u8>) {
        let (conditions, now) = (self.conditions(), Instant::now());
        if packet::protocol(&packet) == Some(packet::UDP) && packet::is_marked(&packet) {
            self.marked.fetch_add(1, Relaxed);
        }
        // Translated even if it is lost afterwards: the NAT has seen it.
        let passes = !conditions.nat || self.nat.outward(&mut packet, now);
        if passes && conditions.let_through(&packet) {
            self.up.admit(&conditions.link, now, packet);
        }
    }

    fn downward(&mut self, packet: Vec<u8>) {
        let conditions = self.conditions();
        if conditions.let_through(&packet) {
            self.down.admit(&conditions.link, Instant::now(), packet);
        }
    }

    fn deliver(&mut self) {
        let (conditions, now) = (self.conditions(), Instant::now());
        // A full device drops packets, as a full queue does.
        while let Some(packet) = self.up.arrived(now) {
            let _ = self.server.try_send(&packet);
        }
        while let Some(mut packet) = self.down.arrived(now) {
            if !conditions.nat || self.nat.inward(&mut packet, now) {
                let _ = self.client.try_send(&packet);
            }
        }
    }
}
