//! `ssh -L`, to an sshd of its own.

use std::{io, net::SocketAddr};

use super::Running;
use crate::{
    bench::{net::Net, processes::Processes},
    sshd::Sshd,
};

/// Opens it to `upstream`.
pub(super) async fn open(net: &Net, upstream: SocketAddr, gcm: bool) -> io::Result<Running> {
    let dir = tempfile::tempdir()?;
    let here = dir.path().to_owned();
    let sshd = net.at_server(Sshd::start_at(net.server_ip().into(), &here, &here)).await;
    let address = net.free_at_client()?;
    let cipher = gcm.then_some("aes128-gcm@openssh.com");
    let ssh = net.at_client(async { sshd.forward(address, upstream, cipher) }).await?;
    let processes = Processes { roots: ssh.id().into_iter().collect(), hosts: vec![sshd.pid()] };
    Ok(Running { address, processes, keep: Box::new((ssh, sshd, dir)) })
}
