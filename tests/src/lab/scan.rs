//! A port scan, as a stranger in another network makes it.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    sync::Arc,
    time::Duration,
};

use super::Namespace;

const THREADS: u16 = 4;
/// A closed port says so at once; one that stays silent is not closed.
const SILENT_AFTER: Duration = Duration::from_secs(2);
/// What says so may be lost.
const TRIES: usize = 3;

/// The TCP ports of `address` that are not closed.
pub async fn tcp(from: &Arc<Namespace>, address: Ipv4Addr) -> Vec<u16> {
    scan(from, move |port| TcpStream::connect_timeout(&SocketAddr::from((address, port)), SILENT_AFTER).map(drop)).await
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
    let is_closed = move |port| {
        let refused = |answer: io::Result<()>| answer.is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused);
        (0..TRIES).any(|_| refused(knock(port)))
    };
    let part = |first: u16| {
        let from = from.clone();
        let ports = (first..=u16::MAX).step_by(THREADS.into());
        tokio::task::spawn_blocking(move || from.inside(|| ports.filter(|port| !is_closed(*port)).collect::<Vec<_>>()))
    };
    let mut open = Vec::new();
    for part in (1..=THREADS).map(part).collect::<Vec<_>>() {
        open.extend(part.await.expect("no panic"));
    }
    open
}
