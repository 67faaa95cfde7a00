//! Carries packets between two namespaces, in user space and on a thread of its own.

use std::{
    io,
    net::Ipv4Addr,
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::Instant,
};

use tokio::sync::watch;
use tokio_tun::Tun;

use super::{
    link::Link,
    namespace::Namespace,
    nat::Nat,
    packet::{self, UDP},
    pipe::Pipe,
};

/// What ordinary networks carry.
pub(super) const MTU: usize = 1500;

/// What the path does now.
#[derive(Debug, Clone, Copy)]
pub(super) struct Conditions {
    pub(super) link: Link,
    /// Everything is lost.
    pub(super) cut: bool,
    /// Longer packets are lost without a word.
    pub(super) longest: usize,
    /// UDP is lost.
    pub(super) udp_blocked: bool,
    /// The laptop is behind a translator.
    pub(super) nat: bool,
    /// How often that has forgotten everything.
    pub(super) forgotten: u32,
}

/// The ends of the path.
pub(super) struct Ends {
    pub(super) client: Arc<Namespace>,
    pub(super) server: Arc<Namespace>,
    pub(super) server_address: Ipv4Addr,
}

/// Starts to carry; ends when nobody can change `conditions` any more.
pub(super) fn start(ends: Ends, seed: u64, conditions: watch::Receiver<Conditions>) -> io::Result<JoinHandle<()>> {
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
    now: Conditions,
}

impl Emulator {
    fn new(ends: &Ends, seed: u64, mut conditions: watch::Receiver<Conditions>) -> io::Result<Self> {
        let device = |namespace: &Namespace, commands: &str| -> io::Result<Tun> {
            let built = namespace.inside(|| Tun::builder().name(super::DEVICE).mtu(MTU as i32).up().build());
            let tun = built.map_err(io::Error::other)?.pop().ok_or(io::ErrorKind::NotFound)?;
            namespace.ip(commands)?;
            Ok(tun)
        };
        let begun = Instant::now();
        let now = *conditions.borrow_and_update();
        let server_side = format!("addr add {}/32 dev {d}\nroute add default dev {d}", ends.server_address, d = super::DEVICE);
        Ok(Self {
            client: device(&ends.client, &super::come_to(0))?,
            server: device(&ends.server, &server_side)?,
            up: Pipe::new(seed.wrapping_mul(2), begun),
            down: Pipe::new(seed.wrapping_mul(2) + 1, begun),
            nat: Nat::default(),
            conditions,
            now,
        })
    }

    async fn run(mut self) {
        let (mut from_client, mut from_server) = (vec![0; 2 * MTU], vec![0; 2 * MTU]);
        loop {
            let next = [self.up.next_due(), self.down.next_due()].into_iter().flatten().min();
            let due = async {
                match next {
                    Some(next) => tokio::time::sleep_until(next.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = self.conditions.changed() => match changed {
                    Ok(()) => self.change(),
                    Err(_) => return,
                },
                () = due => {}
                read = self.client.recv(&mut from_client) => match read {
                    Ok(n) => self.upward(from_client[..n].to_vec()),
                    Err(_) => return,
                },
                read = self.server.recv(&mut from_server) => match read {
                    Ok(n) => self.downward(from_server[..n].to_vec()),
                    Err(_) => return,
                },
            }
            self.deliver();
        }
    }

    fn change(&mut self) {
        let before = self.now;
        self.now = *self.conditions.borrow_and_update();
        if before.forgotten != self.now.forgotten {
            self.nat.forget();
        }
    }

    fn upward(&mut self, mut packet: Vec<u8>) {
        let now = Instant::now();
        // Translated even if it is lost behind that: the translator has seen it.
        let passes = !self.now.nat || self.nat.outward(&mut packet, now);
        if passes && self.lets_through(&packet) {
            self.up.admit(&self.now.link, now, packet);
        }
    }

    fn downward(&mut self, packet: Vec<u8>) {
        if self.lets_through(&packet) {
            self.down.admit(&self.now.link, Instant::now(), packet);
        }
    }

    fn lets_through(&self, packet: &[u8]) -> bool {
        let Some(protocol) = packet::protocol(packet) else { return false };
        !(self.now.cut || packet.len() > self.now.longest || (self.now.udp_blocked && protocol == UDP))
    }

    fn deliver(&mut self) {
        let now = Instant::now();
        // A full device loses packets, as a full queue does.
        while let Some(packet) = self.up.arrived(now) {
            let _ = self.server.try_send(&packet);
        }
        while let Some(mut packet) = self.down.arrived(now) {
            if !self.now.nat || self.nat.inward(&mut packet, now) {
                let _ = self.client.try_send(&packet);
            }
        }
    }
}
