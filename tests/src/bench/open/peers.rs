//! Other tunnels, each set up as its documentation says, with encryption, and with keys that are
//! made for this run alone.

mod dumbpipe;
mod rathole;
mod stunnel;
mod wireguard;
mod wstunnel;

use std::{
    io,
    net::SocketAddr,
    path::Path,
    process::{Output, Stdio},
};

use tempfile::TempDir;
use tokio::process::{Child, Command};

use super::Running;
use crate::{
    bench::{contestant::Peer, net::Net, processes::Processes},
    state_files::chmod,
};

/// Opens one to `upstream`.
pub(super) async fn open(net: &Net, peer: Peer, upstream: SocketAddr) -> io::Result<Running> {
    let dir = tempfile::tempdir()?;
    match peer {
        Peer::Dumbpipe => dumbpipe::open(net, dir, upstream).await,
        Peer::Stunnel => stunnel::open(net, dir, upstream).await,
        Peer::Wstunnel => wstunnel::open(net, dir, upstream).await,
        Peer::Rathole => rathole::open(net, dir, upstream).await,
        Peer::Boringtun => wireguard::open(net, dir, upstream).await,
    }
}

/// A program with these arguments, whose output nobody reads.
fn program(name: &str, args: &[&str]) -> Command {
    let mut command = Command::new(name);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.kill_on_drop(true);
    command
}

async fn at_server(net: &Net, mut command: Command) -> io::Result<Child> {
    net.at_server(async { command.spawn() }).await
}

async fn at_client(net: &Net, mut command: Command) -> io::Result<Child> {
    net.at_client(async { command.spawn() }).await
}

/// What a program printed that ended well.
fn printed(output: Output, name: &str) -> io::Result<String> {
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            Err(io::Error::other(format!("{name}: {}", said.trim())))
        }
    }
}

/// Writes a file that only its owner can read: keys are in some of them.
fn write(path: &Path, text: &str) -> io::Result<()> {
    std::fs::write(path, "")?;
    chmod(path, 0o600);
    std::fs::write(path, text)
}

fn running(address: SocketAddr, both: [Child; 2], dir: TempDir) -> Running {
    let roots = both.iter().filter_map(Child::id).collect();
    let processes = Processes { roots, hosts: vec![] };
    Running { address, processes, keep: Box::new((both, dir)) }
}
