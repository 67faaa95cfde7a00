//! What a device that was enrolled can do, if it has gone bad.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use client::profile::Profile;
use proto::wire::{ALPN_TUNNEL, StreamHead};
use quinn::{Connection, RecvStream, SendStream};
use tokio::task::JoinSet;

use super::{attack::Attack, datagrams::Counts};
use crate::{
    bench::{load::GET, open::ANOTHER},
    stranger::{Outcome, attempt},
};

/// How many connect at the same time.
const CONNECTING: usize = 16;
/// Streams with a head or a body that does not come to its end.
const SLOW: usize = 1_000;
const UNREAD: usize = 256;
const STREAMS: usize = 4_096;
const BYTE_EVERY: Duration = Duration::from_millis(100);
const ASK_EVERY: Duration = Duration::from_secs(1);

/// A device with its certificate.
#[derive(Clone)]
pub(super) struct BadDevice {
    pub(super) server: SocketAddr,
    pub(super) profile: Profile,
}

impl BadDevice {
    async fn connect(&self) -> io::Result<Connection> {
        let identity = self.profile.certified_key().map_err(io::Error::other)?;
        let key = &self.profile.enrolled.knock_key;
        match attempt(self.server, &self.profile, Some(identity), &[ALPN_TUNNEL], key).await {
            Outcome::In(connection) => Ok(connection),
            Outcome::Out(why) => Err(io::Error::other(why)),
        }
    }

    /// Connects again and again.
    pub(super) async fn handshakes(self, counts: Arc<Counts>) {
        let mut workers = JoinSet::new();
        for _ in 0..CONNECTING {
            let (device, counts) = (self.clone(), counts.clone());
            workers.spawn(async move {
                loop {
                    counts.sent.fetch_add(1, Relaxed);
                    if let Ok(connection) = device.connect().await {
                        counts.answered.fetch_add(1, Relaxed);
                        connection.close(0u32.into(), b"");
                    }
                }
            });
        }
        workers.join_all().await;
    }

    /// Opens streams over one connection, and misuses each.
    ///
    /// # Errors
    /// If it is not let in.
    pub(super) async fn streams(self, attack: Attack, counts: Arc<Counts>) -> io::Result<()> {
        let connection = self.connect().await?;
        let count = match attack {
            Attack::Unread => UNREAD,
            Attack::Streams => STREAMS,
            _ => SLOW,
        };
        let mut open = JoinSet::new();
        for _ in 0..count {
            let (connection, counts) = (connection.clone(), counts.clone());
            open.spawn(async move {
                // A stream that the server ends is opened anew.
                while connection.close_reason().is_none() {
                    let _ = misuse(&connection, attack, &counts).await;
                    tokio::time::sleep(BYTE_EVERY).await;
                }
            });
        }
        open.join_all().await;
        Err(io::Error::other("the server ended the connection"))
    }
}

async fn misuse(connection: &Connection, attack: Attack, counts: &Counts) -> io::Result<()> {
    let (mut send, mut recv) = connection.open_bi().await?;
    let service = ANOTHER.parse().map_err(io::Error::other)?;
    send.write_all(&StreamHead::Forward(service).encode()).await?;
    match attack {
        Attack::SlowHeads => {
            byte_by_byte(&mut send, b"GET /api/version HTTP/1.1\r\nX-A: ", counts).await
        }
        Attack::SlowBodies => {
            let head = b"POST /api/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n";
            byte_by_byte(&mut send, head, counts).await
        }
        Attack::Unread => {
            send.write_all(b"GET /api/tags HTTP/1.1\r\nHost: localhost\r\n\r\n").await?;
            counts.sent.fetch_add(1, Relaxed);
            // Until the server ends it.
            send.stopped().await?;
            Ok(())
        }
        _ => asking(&mut send, &mut recv, counts).await,
    }
}

/// Sends `first`, then a byte now and then.
async fn byte_by_byte(send: &mut SendStream, first: &[u8], counts: &Counts) -> io::Result<()> {
    send.write_all(first).await?;
    loop {
        send.write_all(b" ").await?;
        counts.sent.fetch_add(1, Relaxed);
        tokio::time::sleep(BYTE_EVERY).await;
    }
}

/// Small requests, one after another.
async fn asking(send: &mut SendStream, recv: &mut RecvStream, counts: &Counts) -> io::Result<()> {
    let mut answer = vec![0; 4096];
    loop {
        send.write_all(GET).await?;
        counts.sent.fetch_add(1, Relaxed);
        if recv.read(&mut answer).await?.is_none() {
            return Ok(());
        }
        counts.answered.fetch_add(1, Relaxed);
        tokio::time::sleep(ASK_EVERY).await;
    }
}
