//! Real `aditd` and `adit` processes.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
};

use client::profile::Profile;

use super::Running;
use crate::{
    bench::{contestant::Carrier, net::Net, processes::Processes, row::Scene},
    lab::PORT,
    laptop::{address_in, remote_aditd},
    ollama::Options,
    process::Process,
    sshd::Sshd,
    state_files::profile,
    world::{Device, World},
};

const DEVICE: &str = "laptop";

/// Starts both with the programs in the file `program`, to `upstream`. The session begins on the
/// link of `scene`, because it learns from its first packets what its path is like.
pub(super) async fn open(
    net: &Net,
    scene: Scene,
    program: &Path,
    carrier: Carrier,
    upstream: &str,
) -> io::Result<Running> {
    let ip = if carrier == Carrier::Udp { net.server_ip() } else { Ipv4Addr::LOCALHOST };
    let world = world(net, program, ip, upstream, "").await?;
    match carrier {
        Carrier::Udp => {
            let device = net.at_client(world.device(DEVICE)).await;
            net.begin(scene);
            Ok(over_udp(net, world, device).await)
        }
        Carrier::Ssh => over_ssh(net, scene, world).await,
    }
}

/// The service that the second device uses.
pub(in crate::bench) const ANOTHER: &str = "another";

/// The same over UDP, with a second device that was enrolled and is not connected, and a second
/// service, [`ANOTHER`].
pub(super) async fn open_with_another(
    net: &Net,
    program: &Path,
    upstream: &str,
    another: &str,
) -> io::Result<(Running, Profile)> {
    let service = format!("[services.{ANOTHER}]\nupstream = '{another}'\nkind = 'http'\n");
    let world = world(net, program, net.server_ip(), upstream, &service).await?;
    let device = net.at_client(world.device(DEVICE)).await;
    let other = profile(&net.at_client(world.device("another")).await);
    Ok((over_udp(net, world, device).await, other))
}

/// A server that listens at `ip` and forwards to `upstream`, with this configuration.
async fn world(
    net: &Net,
    program: &Path,
    ip: Ipv4Addr,
    upstream: &str,
    config: &str,
) -> io::Result<World> {
    let program = program.to_str().ok_or(io::ErrorKind::InvalidFilename)?;
    // A port of its own, unless all of the networks are its own.
    let port = if net.server().is_some() { PORT } else { 0 };
    let listen = SocketAddr::from((ip, port)).to_string();
    let flags = ["--listen", &listen, "--allow-from", "0.0.0.0/0", "--upstream", upstream];
    let started = World::start_configured(program, Options::default(), &flags, config);
    Ok(net.at_server(started).await)
}

async fn over_udp(net: &Net, world: World, device: Device) -> Running {
    let up = net.at_client(device.up(&["--carrier", "udp", "--hold", "10m"])).await;
    let processes = Processes { roots: vec![world.aditd.pid(), up.adit.pid()], hosts: vec![] };
    Running { address: up.address, processes, keep: Box::new((up, device, world)) }
}

async fn over_ssh(net: &Net, scene: Scene, world: World) -> io::Result<Running> {
    let (dir, path) = (world.scratch("sshd"), remote_aditd(&world));
    let sshd = net.at_server(Sshd::start_at(net.server_ip().into(), &dir, &path)).await;
    let device = world.stranger(DEVICE);
    let mut enroll = command(&world, &device, &sshd, &["enroll", &sshd.url, "--device", DEVICE]);
    let enrolled = net.at_client(async { enroll.output().await }).await?;
    if !enrolled.status.success() {
        return Err(io::Error::other(String::from_utf8_lossy(&enrolled.stderr).into_owned()));
    }
    // What roles keep from a device is not what is measured.
    world.aditd(&["device", "role", DEVICE, "admin"]).await;
    net.begin(scene);
    let up = ["up", "-v", "--listen", "127.0.0.1:0", "--carrier", "ssh", "--hold", "10m"];
    let up = command(&world, &device, &sshd, &up);
    let mut adit = net.at_client(async { Process::spawn(up, "adit") }).await?;
    adit.ready().await?;
    let address = address_in(&adit.log()).ok_or(io::ErrorKind::AddrNotAvailable)?;
    let processes =
        Processes { roots: vec![world.aditd.pid(), adit.pid()], hosts: vec![sshd.pid()] };
    Ok(Running { address, processes, keep: Box::new((adit, sshd, device, world)) })
}

/// A command of the device's, with the ssh that knows the server.
fn command(world: &World, device: &Device, sshd: &Sshd, args: &[&str]) -> tokio::process::Command {
    let mut command = world.programs.command("adit", args);
    command
        .arg("--state-dir")
        .arg(&device.dir)
        .env("ADIT_SSH", &sshd.ssh)
        .env_remove("SSH_AUTH_SOCK");
    command
}
