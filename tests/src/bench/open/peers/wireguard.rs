//! WireGuard in user space (boringtun), on both ends. Applications connect to the server's address
//! in it.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use tempfile::TempDir;

use super::{Running, at_client, at_server, printed, program, running, write};
use crate::{bench::net::Net, lab::Namespace};

const PORT: u16 = 51_820;
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
const UP_WITHIN: Duration = Duration::from_secs(10);

pub(super) async fn open(net: &Net, dir: TempDir, upstream: SocketAddr) -> io::Result<Running> {
    let (Some(there), Some(here)) = (net.server(), net.client()) else {
        return Err(io::Error::other("it needs networks of its own"));
    };
    let (server_key, client_key) = (key(dir.path(), "server")?, key(dir.path(), "client")?);
    let (at_box, at_laptop) = (name(), name());
    let server = at_server(net, boringtun(&at_box)).await?;
    let client = at_client(net, boringtun(&at_laptop)).await?;
    let listen = format!("listen-port {PORT} peer {client_key} allowed-ips {CLIENT}/32");
    set_up(there, &at_box, &dir.path().join("server"), &listen, SERVER).await?;
    let endpoint = SocketAddr::from((net.server_ip(), PORT));
    let connect = format!("peer {server_key} allowed-ips {SERVER}/32 endpoint {endpoint}");
    set_up(here, &at_laptop, &dir.path().join("client"), &connect, CLIENT).await?;
    Ok(running(SocketAddr::from((SERVER, upstream.port())), [server, client], dir))
}

/// A name for an interface. Its control socket is the machine's, so no two may be alike.
fn name() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("ab{}-{}", std::process::id() % 1_000_000, COUNT.fetch_add(1, Relaxed))
}

fn boringtun(interface: &str) -> tokio::process::Command {
    program("boringtun-cli", &["--foreground", "--disable-drop-privileges", interface])
}

/// Makes a private key in a file; the public one.
fn key(dir: &Path, name: &str) -> io::Result<String> {
    let private = printed(Command::new("wg").arg("genkey").output()?, "wg genkey")?;
    let file = dir.join(name);
    write(&file, &private)?;
    let private = Stdio::from(std::fs::File::open(&file)?);
    let public = Command::new("wg").arg("pubkey").stdin(private).output()?;
    Ok(printed(public, "wg pubkey")?.trim().to_owned())
}

async fn set_up(
    network: &Arc<Namespace>,
    interface: &str,
    key: &Path,
    peer: &str,
    ip: Ipv4Addr,
) -> io::Result<()> {
    let key = key.to_string_lossy();
    let args = [&["set", interface, "private-key", &key][..], &peer.split(' ').collect::<Vec<_>>()]
        .concat();
    let up = async {
        // Until its control socket is there.
        loop {
            let mut command = Command::new("wg");
            let set = network.inside(|| command.args(&args).output())?;
            if set.status.success() {
                return io::Result::Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(UP_WITHIN, up).await??;
    network.ip(&format!("addr add {ip}/24 dev {interface}\nlink set {interface} mtu 1420 up"))
}
