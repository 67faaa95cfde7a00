//! dumbpipe: TCP over iroh's QUIC. No relay is in reach: it goes by the addresses in its ticket.

use std::{io, net::SocketAddr, process::Stdio, time::Duration};

use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Child,
};

use super::{Running, at_client, at_server, program, running};
use crate::bench::net::Net;

/// It looks for a relay first.
const TICKET_WITHIN: Duration = Duration::from_secs(30);

pub(super) async fn open(net: &Net, dir: TempDir, upstream: SocketAddr) -> io::Result<Running> {
    let here = net.free_at_client()?;
    let mut listen = program("dumbpipe", &["listen-tcp", "--host", &upstream.to_string()]);
    listen.stderr(Stdio::piped());
    let mut server = at_server(net, listen).await?;
    let ticket = tokio::time::timeout(TICKET_WITHIN, ticket(&mut server)).await??;
    let connect = program("dumbpipe", &["connect-tcp", "--addr", &here.to_string(), &ticket]);
    let client = at_client(net, connect).await?;
    Ok(running(here, [server, client], dir))
}

/// The ticket that it prints for the other end.
async fn ticket(server: &mut Child) -> io::Result<String> {
    let stderr = server.stderr.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
    let mut lines = BufReader::new(stderr).lines();
    while let Some(line) = lines.next_line().await? {
        if let Some((_, ticket)) = line.split_once("dumbpipe connect-tcp ") {
            return Ok(ticket.trim().to_owned());
        }
    }
    Err(io::Error::other("it printed no ticket"))
}
