//! A port scan, as a stranger in another network makes it.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    sync::Arc,
    time::Duration,
};

use super::Namespace;

const THREADS: usize = 4;
/// A closed port answers at once; a port without an answer in this time may be open.
const SILENT_AFTER: Duration = Duration::from_secs(1);
/// How often a port is tried: on a busy machine the first answer may be missed.
const TRIES: u32 = 6;

/// The TCP ports of `address` that are not closed.
pub async fn tcp(from: &Arc<Namespace>, address: Ipv4Addr) -> Vec<u16> {
    scan(from, move |port| {
        TcpStream::connect_timeout(&SocketAddr::from((address, port)), SILENT_AFTER).map(drop)
    })
    .await
}

/// The UDP ports of `address` that are not closed.
pub async fn udp(from: &Arc<Namespace>, address: Ipv4Addr) -> Vec<u16> {
    let knock = move |port| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect((address, port))?;
        socket.set_read_timeout(Some(SILENT_AFTER))?;
        socket.send(b"anybody there?")?;
        socket.recv(&mut [0]).map(drop)
    };
    scan(from, knock).await
}

async fn scan<K>(from: &Arc<Namespace>, knock: K) -> Vec<u16>
where
    K: Fn(u16) -> io::Result<()> + Copy + Send + 'static,
{
    let mut open: Vec<u16> = (1..=u16::MAX).collect();
    for _ in 0..TRIES {
        let parts: Vec<_> = (0..THREADS)
            .map(|thread| open.iter().copied().skip(thread).step_by(THREADS).collect())
            .collect();
        let knocking = parts.into_iter().map(|ports: Vec<u16>| {
            let from = from.clone();
            let is_open = move |port: &u16| {
                !knock(*port).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused)
            };
            tokio::task::spawn_blocking(move || {
                from.inside(|| ports.into_iter().filter(is_open).collect::<Vec<_>>())
            })
        });
        open.clear();
        for part in knocking.collect::<Vec<_>>() {
            open.extend(part.await.expect("no panic"));
        }
        open.sort_unstable();
    }
    open
}
