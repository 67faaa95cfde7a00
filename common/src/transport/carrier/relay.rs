//! The server's end of a byte stream that carries datagrams.

use std::{
    future::poll_fn,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use quinn::{
    AsyncUdpSocket,
    udp::{BATCH_SIZE, RecvMeta, Transmit},
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{Marks, RECEIVE_SEGMENTS, REMOTE, UdpCarrier, frame_datagram, next_datagram};
use crate::transport;

/// A session sends something every few seconds. After this silence it is gone, even if TCP has not
/// noticed yet.
const SILENT: Duration = Duration::from_secs(60);
/// The most bytes that the kernel takes at once.
const MOST_BYTES: usize = 60_000;
/// The buffer size for datagrams that the kernel has joined.
const RECEIVED: usize = u16::MAX as usize + 1;

/// The server's end of a [`crate::transport::carrier::StreamCarrier`]: copies its datagrams to and
/// from the UDP address of a server on this machine, until the stream ends.
pub async fn relay<R, W>(read: R, write: W, server: SocketAddr) -> io::Error
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let socket =
        match beside(server).and_then(|socket| UdpCarrier::new(socket, server, Marks::Without)) {
            Ok(socket) => socket,
            Err(e) => return e,
        };
    tokio::select! { end = inward(read, socket.clone()) => end, end = outward(socket, write) => end }
}

/// The address from which relays send, if this machine has all of 127.0.0.0/8, so that the server
/// can record which sessions use SSH. It is not proof: any program on this machine may send from
/// this address.
pub const RELAY_SOURCE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// A socket that only the server can reach, so that it is not an open port for others.
fn beside(server: SocketAddr) -> io::Result<UdpSocket> {
    let own = || transport::socket(SocketAddr::new(server.ip(), 0));
    let socket = match server.ip() {
        IpAddr::V4(Ipv4Addr::LOCALHOST) => {
            transport::socket(SocketAddr::from((RELAY_SOURCE, 0))).or_else(|_| own())?
        }
        _ => own()?,
    };
    // Other systems do not let a connected socket send to an explicit address.
    if cfg!(target_os = "linux") {
        socket.connect(server)?;
    }
    Ok(socket)
}

/// From the stream to the server.
async fn inward(mut read: impl AsyncRead + Unpin, socket: Arc<UdpCarrier>) -> io::Error {
    let (mut bytes, mut batch) = (BytesMut::with_capacity(1 << 17), RelayBatch::new(socket));
    loop {
        while let Some(datagram) = next_datagram(&mut bytes) {
            batch.add(datagram).await;
        }
        batch.send().await;
        bytes.reserve(1 << 17);
        match tokio::time::timeout(SILENT, read.read_buf(&mut bytes)).await {
            Ok(Ok(0)) => return io::ErrorKind::UnexpectedEof.into(),
            Ok(Ok(_)) => {}
            Ok(Err(e)) => return e,
            Err(_) => return io::ErrorKind::TimedOut.into(),
        }
    }
}

/// Datagrams of one size (the last may be shorter) that go to the kernel at once.
struct RelayBatch {
    socket: Arc<UdpCarrier>,
    bytes: BytesMut,
    size: usize,
    count: usize,
}

impl RelayBatch {
    fn new(socket: Arc<UdpCarrier>) -> Self {
        Self { socket, bytes: BytesMut::new(), size: 0, count: 0 }
    }

    async fn add(&mut self, datagram: Bytes) {
        let fits = datagram.len() <= self.size
            && self.count < self.socket.max_transmit_segments()
            && self.bytes.len() + datagram.len() <= MOST_BYTES;
        if !fits {
            self.send().await;
            self.size = datagram.len();
        }
        self.bytes.extend_from_slice(&datagram);
        self.count += 1;
        if datagram.len() < self.size {
            self.send().await;
        }
    }

    async fn send(&mut self) {
        if self.count == 0 {
            return;
        }
        let segment_size = (self.count > 1).then_some(self.size);
        let transmit = Transmit {
            destination: REMOTE,
            ecn: None,
            contents: &self.bytes,
            segment_size,
            src_ip: None,
        };
        // If the server is not there for a moment, the datagram is lost.
        while self.socket.try_send(&transmit).is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock)
        {
            let mut room = self.socket.clone().create_io_poller();
            if poll_fn(|cx| room.as_mut().poll_writable(cx)).await.is_err() {
                break;
            }
        }
        self.bytes.clear();
        (self.size, self.count) = (0, 0);
    }
}

/// From the server to the stream.
async fn outward(socket: Arc<UdpCarrier>, mut write: impl AsyncWrite + Unpin) -> io::Error {
    let mut buffers = vec![vec![0; RECEIVED.min(1500 * RECEIVE_SEGMENTS)]; BATCH_SIZE.min(4)];
    let mut batch = BytesMut::new();
    loop {
        let mut meta = [RecvMeta::default(); BATCH_SIZE];
        let received = poll_fn(|cx| {
            let mut slices: Vec<_> =
                buffers.iter_mut().map(|buffer| io::IoSliceMut::new(buffer)).collect();
            socket.poll_recv(cx, &mut slices, &mut meta)
        });
        let received = match received.await {
            Ok(received) => received,
            Err(e) => return e,
        };
        for (buffer, meta) in buffers.iter().zip(&meta[..received]) {
            for datagram in buffer[..meta.len].chunks(meta.stride.max(1)) {
                frame_datagram(&mut batch, datagram);
            }
        }
        let written = async {
            write.write_all(&batch).await?;
            write.flush().await
        };
        if let Err(e) = written.await {
            return e;
        }
        batch.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::carrier::StreamCarrier;

    #[tokio::test]
    async fn datagrams_pass_a_stream_and_a_relay_and_come_back() {
        let echo = tokio::net::UdpSocket::bind("127.0.0.1:0").await.expect("a port");
        let server = echo.local_addr().expect("an address");
        let (near, far) = tokio::io::duplex(1 << 20);
        let (read, write) = tokio::io::split(far);
        let relayed = tokio::spawn(relay(read, write, server));
        let (read, write) = tokio::io::split(near);
        let (carrier, moving) = StreamCarrier::new(read, write);
        let moved = tokio::spawn(moving);
        let transmit = Transmit {
            destination: REMOTE,
            ecn: None,
            contents: b"aaabb",
            segment_size: Some(3),
            src_ip: None,
        };
        carrier.try_send(&transmit).expect("sent");
        let mut datagram = [0; 16];
        for expected in [&b"aaa"[..], b"bb"] {
            let (n, from) = echo.recv_from(&mut datagram).await.expect("received");
            assert_eq!(&datagram[..n], expected);
            echo.send_to(&datagram[..n], from).await.expect("sent");
        }
        let mut got = Vec::new();
        while got.len() < 2 {
            let mut buffers = [[0; 64]; 2];
            let (metas, n) = {
                let mut slices = buffers.each_mut().map(|b| io::IoSliceMut::new(b));
                let mut meta = [RecvMeta::default(); 2];
                let n = std::future::poll_fn(|cx| carrier.poll_recv(cx, &mut slices, &mut meta))
                    .await
                    .expect("received");
                assert!(meta[..n].iter().all(|m| m.addr == REMOTE));
                (meta, n)
            };
            for (buffer, meta) in buffers.iter().zip(&metas[..n]) {
                got.extend(buffer[..meta.len].chunks(meta.stride).map(<[u8]>::to_vec));
            }
        }
        assert_eq!(got, [b"aaa".to_vec(), b"bb".to_vec()]);
        relayed.abort();
        moved.abort();
    }

    #[tokio::test]
    async fn long_datagrams_pass_both_ways() {
        let server = tokio::net::UdpSocket::bind("127.0.0.1:0").await.expect("a port");
        let to = server.local_addr().expect("an address");
        let (mut near, far) = tokio::io::duplex(1 << 16);
        let (read, write) = tokio::io::split(far);
        let relayed = tokio::spawn(relay(read, write, to));
        let (long, mut datagram) = ([5; 16_384], vec![0; 1 << 16]);
        let mut framed = BytesMut::new();
        for _ in 0..5 {
            frame_datagram(&mut framed, &long);
        }
        near.write_all(&framed).await.expect("sent");
        for _ in 0..5 {
            let (n, from) = server.recv_from(&mut datagram).await.expect("received");
            assert_eq!(datagram[..n], long);
            server.send_to(&long, from).await.expect("sent");
        }
        let mut came = vec![0; framed.len()];
        near.read_exact(&mut came).await.expect("all of them");
        assert_eq!(came, framed);
        relayed.abort();
    }
}
