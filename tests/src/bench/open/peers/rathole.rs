//! rathole: a reverse tunnel. What it calls its client runs beside the service, and what it calls
//! its server on the laptop.

use std::{io, net::SocketAddr, process::Command};

use tempfile::TempDir;

use super::{Running, at_client, at_server, printed, program, running, write};
use crate::bench::net::Net;

const NOISE: &str = "type = \"noise\"";

pub(super) async fn open(net: &Net, dir: TempDir, upstream: SocketAddr) -> io::Result<Running> {
    let here = net.free_at_client()?;
    let laptop = SocketAddr::from((net.client_ip(), net.free_at_client()?.port()));
    let keys = printed(Command::new("rathole").arg("--genkey").output()?, "rathole --genkey")?;
    let key = |name: &str| {
        let lines = keys.lines().skip_while(|line| !line.starts_with(name));
        lines.skip(1).find(|line| !line.is_empty()).map(str::trim).ok_or(io::ErrorKind::InvalidData)
    };
    let token = "default_token = \"bench\"";
    let on_laptop = format!(
        "[server]\nbind_addr = \"{laptop}\"\n{token}\n[server.transport]\n{NOISE}\n[server.transport.noise]\nlocal_private_key = \"{}\"\n\
         [server.services.bench]\nbind_addr = \"{here}\"\n",
        key("Private")?
    );
    let on_box = format!(
        "[client]\nremote_addr = \"{laptop}\"\n{token}\n[client.transport]\n{NOISE}\n[client.transport.noise]\nremote_public_key = \"{}\"\n\
         [client.services.bench]\nlocal_addr = \"{upstream}\"\n",
        key("Public")?
    );
    let file = |name: &str| dir.path().join(name);
    write(&file("laptop.toml"), &on_laptop)?;
    write(&file("box.toml"), &on_box)?;
    let start = |name: &str| program("rathole", &[&file(name).to_string_lossy()]);
    let client = at_client(net, start("laptop.toml")).await?;
    let server = at_server(net, start("box.toml")).await?;
    Ok(running(here, [server, client], dir))
}
