//! A real ACME server: pebble of Let's Encrypt, on loopback, with a DNS of its own.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener as StdListener},
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use serde_json::json;
use tempfile::TempDir;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    process::{Child, Command},
    sync::watch,
};
use tokio_util::task::AbortOnDropHandle;

use crate::{skip::skip_test, world::SOON};

/// A name that leads to the server, and whatever else ends so.
pub const NAME: &str = "gpu.example.test";
/// An account that its owner has at the authority: its id, and its key in base64url.
pub const EXTERNAL: (&str, &str) =
    ("kid-1", "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W");

/// What differs between two of them.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// How long certificates are valid, in seconds.
    pub life: u32,
    /// The address of every name.
    pub names_at: Ipv4Addr,
    /// Whether only those get certificates who have an account.
    pub is_closed: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { life: 90 * 86_400, names_at: Ipv4Addr::LOCALHOST, is_closed: false }
    }
}

/// A running one. Dropping it kills it.
pub struct Pebble {
    dir: TempDir,
    at: Addresses,
    /// What stands at the port that it checks.
    pub port: Port,
    children: Vec<Child>,
}

/// The port that the authority checks, in place of 443: connections wait there until they are let
/// through.
pub struct Port {
    pub address: SocketAddr,
    to: watch::Sender<Option<SocketAddr>>,
    waiting: watch::Receiver<usize>,
    _task: AbortOnDropHandle<()>,
}

impl Port {
    /// Forwards connections to this address from now on, also those that wait.
    pub fn lead_to(&self, address: SocketAddr) {
        self.to.send_replace(Some(address));
    }

    /// Waits until a connection waits.
    ///
    /// # Panics
    /// If none comes in time.
    pub async fn is_knocked(&self) {
        let mut waiting = self.waiting.clone();
        let waited = tokio::time::timeout(4 * SOON, waiting.wait_for(|count| *count > 0)).await;
        waited.expect("a connection in time").expect("the port is there");
    }

    async fn open(ip: Ipv4Addr) -> Self {
        let listener = TcpListener::bind((ip, 0)).await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let (to, leads) = watch::channel(None);
        let (count, waiting) = watch::channel(0);
        let count = Arc::new(count);
        let task = tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                count.send_modify(|count| *count += 1);
                tokio::spawn(forward(tcp, ip, leads.clone()));
            }
        });
        Self { address, to, waiting, _task: AbortOnDropHandle::new(task) }
    }
}

/// Forwards a connection, from the address `ip`.
async fn forward(mut tcp: TcpStream, ip: Ipv4Addr, mut to: watch::Receiver<Option<SocketAddr>>) {
    let Ok(to) = to.wait_for(Option::is_some).await.map(|to| *to) else { return };
    let Some(to) = to else { return };
    let Ok(socket) = tokio::net::TcpSocket::new_v4() else { return };
    if socket.bind((ip, 0).into()).is_err() {
        return;
    }
    if let Ok(mut server) = socket.connect(to).await {
        let _ = copy_bidirectional(&mut tcp, &mut server).await;
    }
}

impl Pebble {
    /// Starts one. `None`, with the test skipped, if the program is not installed.
    ///
    /// # Panics
    /// If it does not start.
    pub async fn start(options: Options) -> Option<Self> {
        let help = Command::new("pebble").arg("-h").stderr(Stdio::null()).output().await;
        if help.is_err() {
            skip_test("pebble is not installed");
            return None;
        }
        let dir = tempfile::tempdir().expect("a directory");
        own_certificate(dir.path());
        let port = Port::open(options.names_at).await;
        // Somebody else may take a port between its choice and its use.
        for _ in 0..5 {
            let at = Addresses::free();
            let config = config(dir.path(), &at, port.address, options);
            std::fs::write(dir.path().join("pebble.json"), config).expect("written");
            let mut children = at.start(dir.path(), options);
            if at.are_listening(&mut children).await {
                return Some(Self { dir, at, port, children });
            }
        }
        panic!("pebble does not start");
    }

    /// The URL of its directory.
    pub fn directory(&self) -> String {
        format!("https://{}/dir", self.at.listen)
    }

    /// The certificate of its own listener, which is a CA's too.
    pub fn ca(&self) -> PathBuf {
        self.dir.path().join("own.crt")
    }

    /// Writes the certificate of the CA whose certificates it issues.
    ///
    /// # Panics
    /// If it does not tell.
    pub async fn root(&self) -> PathBuf {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--fail", "--noproxy", "*", "--max-time", "60"]);
        curl.arg("--cacert").arg(self.ca()).kill_on_drop(true);
        let url = format!("https://{}/roots/0", self.at.management);
        let out = curl.arg(url).output().await.expect("curl runs");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let path = self.dir.path().join("root.pem");
        std::fs::write(&path, out.stdout).expect("written");
        path
    }

    /// The lines of a configuration that make `aditd` order a certificate here for [`NAME`].
    pub fn table(&self) -> String {
        format!(
            "[https.acme]\nnames = [\"{NAME}\"]\nagree_to_terms = true\n\
             directory = \"{}\"\ndirectory_ca = \"{}\"\n",
            self.directory(),
            self.ca().display()
        )
    }

    /// Kills it.
    pub async fn stop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill().await;
        }
    }
}

/// Where its parts listen.
struct Addresses {
    listen: SocketAddr,
    management: SocketAddr,
    dns: SocketAddr,
    dns_management: SocketAddr,
}

impl Addresses {
    /// Addresses that are free now.
    fn free() -> Self {
        let free = || StdListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let held = [free(), free(), free(), free()];
        let [listen, management, dns, dns_management] =
            held.each_ref().map(|one| one.local_addr().expect("its address"));
        Self { listen, management, dns, dns_management }
    }

    fn start(&self, dir: &Path, options: Options) -> Vec<Child> {
        let mut names = Command::new("pebble-challtestsrv");
        names.args(["-dns01", &self.dns.to_string()]);
        names.args(["-management", &self.dns_management.to_string()]);
        names.args(["-defaultIPv4", &options.names_at.to_string(), "-defaultIPv6", ""]);
        names.args(["-http01", "", "-https01", "", "-tlsalpn01", ""]);
        let mut pebble = Command::new("pebble");
        pebble.args(["-dnsserver", &self.dns.to_string(), "-config"]);
        pebble.arg(dir.join("pebble.json")).env("PEBBLE_VA_NOSLEEP", "1");
        let spawned = [names, pebble].into_iter().map(|mut command| {
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            command.kill_on_drop(true).spawn().expect("it runs")
        });
        spawned.collect()
    }

    /// Waits until all listen; `false` if one of the programs has ended.
    async fn are_listening(&self, children: &mut [Child]) -> bool {
        let waited = tokio::time::timeout(4 * SOON, async {
            for address in [self.listen, self.management, self.dns] {
                while TcpStream::connect(address).await.is_err() {
                    let has_ended = |child: &mut Child| !matches!(child.try_wait(), Ok(None));
                    if children.iter_mut().any(has_ended) {
                        return false;
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
            true
        });
        waited.await.unwrap_or(false)
    }
}

fn config(dir: &Path, at: &Addresses, checked: SocketAddr, options: Options) -> String {
    let (id, key) = EXTERNAL;
    let pebble = json!({ "pebble": {
        "listenAddress": at.listen.to_string(),
        "managementListenAddress": at.management.to_string(),
        "certificate": dir.join("own.crt"),
        "privateKey": dir.join("own.key"),
        "httpPort": 1,
        "tlsPort": checked.port(),
        "ocspResponderURL": "",
        "certificateValidityPeriod": options.life,
        "externalAccountBindingRequired": options.is_closed,
        "externalAccountMACKeys": { id: key },
    }});
    pebble.to_string()
}

/// The certificate of its own listener.
fn own_certificate(dir: &Path) {
    let out = std::process::Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"])
        .args(["-days", "10", "-subj", "/CN=pebble", "-addext", "subjectAltName=IP:127.0.0.1"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .arg("-keyout")
        .arg(dir.join("own.key"))
        .arg("-out")
        .arg(dir.join("own.crt"))
        .output()
        .expect("openssl runs");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}
