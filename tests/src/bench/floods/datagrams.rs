//! Floods of datagrams.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use client::profile::Profile;
use proto::wire::ALPN_TUNNEL;
use tokio::net::UdpSocket;

use crate::stranger::{crypto, first_flight, random, sealed};

/// From how many ports a flood comes.
const PORTS: usize = 8;
/// How many different datagrams a flood repeats.
const DIFFERENT: u64 = 2_048;
const PAUSE: Duration = Duration::from_millis(1);

/// What has been sent and what has come back.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) sent: AtomicU64,
    pub(super) answered: AtomicU64,
}

/// Sends `datagrams` to `to`, from several ports in turn, `per_second` of them; again and again, or
/// once.
///
/// # Errors
/// If no socket could be had.
pub(super) async fn flood(
    to: SocketAddr,
    datagrams: &[Vec<u8>],
    per_second: u64,
    again: bool,
    counts: &Counts,
) -> io::Result<()> {
    let mut sockets = Vec::new();
    for _ in 0..PORTS {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
        socket.connect(to).await?;
        sockets.push(socket);
    }
    let (began, mut sent, mut answer) = (Instant::now(), 0, [0; 2048]);
    loop {
        let due = (began.elapsed().as_secs_f64() * per_second as f64) as u64;
        while sent < due {
            let number = sent as usize;
            if !again && number >= datagrams.len() {
                return Ok(());
            }
            // What the kernel refuses counts as lost on the way.
            let _ = sockets[number % PORTS].try_send(&datagrams[number % datagrams.len()]);
            sent += 1;
        }
        counts.sent.store(sent, Relaxed);
        for socket in &sockets {
            while socket.try_recv(&mut answer).is_ok() {
                counts.answered.fetch_add(1, Relaxed);
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Datagrams of random bytes and lengths.
pub(super) fn strange() -> Vec<Vec<u8>> {
    (0..DIFFERENT).map(|i| random(i, 1 + (i as usize * 37) % 1400)).collect()
}

/// First packets that are valid as far as the server can see, without a knock.
pub(super) fn initials() -> Vec<Vec<u8>> {
    let noise = random(1, 4096);
    let one = |i: u64| sealed(0xc0 | (i % 16) as u8, 1, &random(i, 20), &[], &noise);
    (0..DIFFERENT).map(one).collect()
}

/// The first packets of a device that has the knock key of `profile`: both datagrams of each.
///
/// # Errors
/// If the profile is of no use.
pub(super) async fn knocks(profile: &Profile, count: u64) -> io::Result<Vec<[Vec<u8>; 2]>> {
    let mut flights = Vec::new();
    for _ in 0..count {
        let knock = profile.enrolled.knock_key.knock();
        let flight = first_flight(crypto(profile, None, &[ALPN_TUNNEL]), &knock).await;
        let two = flight.try_into().map_err(|_| io::Error::other("not two datagrams"))?;
        flights.push(two);
    }
    Ok(flights)
}

/// Sends what a device would, once, and waits until the server has answered it: from then on the
/// server has heard these packets.
///
/// # Errors
/// If the server does not answer.
pub(super) async fn heard(to: SocketAddr, flight: &[Vec<u8>]) -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    socket.connect(to).await?;
    for datagram in flight {
        socket.send(datagram).await?;
    }
    tokio::time::timeout(Duration::from_secs(5), socket.recv(&mut [0; 2048])).await??;
    Ok(())
}
