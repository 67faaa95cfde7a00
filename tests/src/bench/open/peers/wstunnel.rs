//! wstunnel: WebSocket over TLS.

use std::{io, net::SocketAddr};

use tempfile::TempDir;

use super::{Running, at_client, at_server, program, running};
use crate::bench::net::Net;

pub(super) async fn open(net: &Net, dir: TempDir, upstream: SocketAddr) -> io::Result<Running> {
    let (there, here) = (net.free_at_server()?, net.free_at_client()?);
    let (url, to) = (format!("wss://{there}"), upstream.to_string());
    let server =
        at_server(net, program("wstunnel", &["server", "--restrict-to", &to, &url])).await?;
    let forward = format!("tcp://{here}:{upstream}");
    let client = at_client(net, program("wstunnel", &["client", "-L", &forward, &url])).await?;
    Ok(running(here, [server, client], dir))
}
