//! A real sshd that belongs to a test, with keys, a configuration and a port of its own, and a
//! client configuration that knows only it.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use tokio::net::TcpStream;

use crate::state_files::chmod;

const SSHD: &str = "/usr/sbin/sshd";

/// A running sshd that lets this user in. Dropping it ends it.
pub struct Sshd {
    /// The address, as `ssh://USER@127.0.0.1:PORT`.
    pub url: String,
    /// A program that runs `ssh` with the test's configuration, for `ADIT_SSH`.
    pub ssh: PathBuf,
    pub address: SocketAddr,
    /// The directory of its files: `host` and `user` (keys), `authorized_keys`, `known_hosts`,
    /// `ssh_config`.
    pub dir: PathBuf,
    /// The file that it sees as /etc/shadow, if not the machine's own.
    shadow: Option<PathBuf>,
    child: Child,
}

/// A port that no other test of this process gets, below those that the system hands out by itself.
fn free_port(ip: IpAddr) -> Option<SocketAddr> {
    static NEXT: std::sync::atomic::AtomicU16 = std::sync::atomic::AtomicU16::new(0);
    let first = 20_000 + (std::process::id() % 50) as u16 * 200;
    let next = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed) % 200;
    std::net::TcpListener::bind((ip, first + next)).and_then(|l| l.local_addr()).ok()
}

impl Sshd {
    /// Whether a test must be skipped because this machine has no OpenSSH; says so.
    pub fn is_missing() -> bool {
        !Self::is_there() && crate::skip::skip_test("there is no OpenSSH server and client")
    }

    /// Whether this machine has OpenSSH.
    pub fn is_there() -> bool {
        let ssh = Command::new("ssh").arg("-V").output().is_ok_and(|out| out.status.success());
        ssh && Path::new(SSHD).exists()
    }

    /// Starts it in `dir`. Remote commands are found in `path`.
    pub async fn start(dir: &Path, path: &Path) -> Self {
        Self::start_at(Ipv4Addr::LOCALHOST.into(), dir, path).await
    }

    /// Like [`Sshd::start`], on another address of this machine.
    pub async fn start_at(ip: IpAddr, dir: &Path, path: &Path) -> Self {
        fs::create_dir_all(dir).expect("a directory");
        chmod(dir, 0o700);
        keygen(&dir.join("host"), &["-t", "ed25519", "-N", ""]);
        keygen(&dir.join("user"), &["-t", "ed25519", "-N", ""]);
        // The port is freed just before sshd binds it, because sshd can't report which free port it
        // took.
        let address = (0..100).find_map(|_| free_port(ip)).expect("a port");
        let d = dir.display();
        let config = format!(
            "ListenAddress {address}\nHostKey {d}/host\nAuthorizedKeysFile {d}/authorized_keys\nPidFile none\nUsePAM no\n\
             StrictModes no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin yes\n\
             SetEnv PATH={}:/usr/bin:/bin\nLogLevel ERROR\nMaxStartups 100\n",
            path.display()
        );
        fs::write(dir.join("sshd_config"), config).expect("written");
        let ssh = dir.join("ssh");
        fs::write(&ssh, format!("#!/bin/sh\nexec ssh -F {d}/ssh_config \"$@\"\n"))
            .expect("written");
        chmod(&ssh, 0o700);
        let url = format!("ssh://{}@{address}", user_name());
        let sshd =
            Self { url, ssh, address, dir: dir.to_owned(), shadow: None, child: run(dir, None) };
        sshd.authorize("user", "");
        sshd.know(&sshd.line());
        sshd.client("StrictHostKeyChecking yes\nBatchMode yes\n");
        sshd.answers().await;
        sshd
    }

    /// Lets only the key `name` in, with these options of authorized_keys.
    pub fn authorize(&self, name: &str, options: &str) {
        let file = self.dir.join("authorized_keys");
        fs::write(&file, format!("{options} {}", self.public(name)).trim_start()).expect("written");
        chmod(&file, 0o600);
    }

    /// Makes a key `name` with these arguments of ssh-keygen.
    pub fn key(&self, name: &str, arguments: &[&str]) -> PathBuf {
        let path = self.dir.join(name);
        keygen(&path, arguments);
        path
    }

    pub fn public(&self, name: &str) -> String {
        fs::read_to_string(self.dir.join(format!("{name}.pub"))).expect("a key")
    }

    /// Its name in known_hosts.
    pub fn name(&self) -> String {
        format!("[{}]:{}", self.address.ip(), self.address.port())
    }

    /// The command by which a person logs in.
    pub fn by_hand(&self) -> String {
        format!(
            "{} -p {} {}@{}",
            self.ssh.display(),
            self.address.port(),
            user_name(),
            self.address.ip()
        )
    }

    /// Its line in known_hosts.
    pub fn line(&self) -> String {
        format!("{} {}", self.name(), self.public("host"))
    }

    /// Sets the content of the client's known_hosts.
    pub fn know(&self, lines: &str) {
        fs::write(self.dir.join("known_hosts"), lines).expect("written");
    }

    /// Sets the client's configuration: `lines`, and then the test's own files.
    pub fn client(&self, lines: &str) {
        let d = self.dir.display();
        let rest = format!(
            "UserKnownHostsFile {d}/known_hosts\nGlobalKnownHostsFile {d}/global_known_hosts\nIdentityFile {d}/user\nIdentitiesOnly yes\n\
             IdentityAgent none\n"
        );
        fs::write(self.dir.join("ssh_config"), format!("{lines}{rest}")).expect("written");
    }

    /// Restarts it with more lines in its configuration.
    pub async fn configure(&mut self, lines: &str) {
        let file = self.dir.join("sshd_config");
        let before = fs::read_to_string(&file).expect("read");
        fs::write(&file, format!("{lines}{before}")).expect("written");
        self.kill();
        self.restart().await;
    }

    /// Restarts it so that this user logs in only with a password, whose hash (crypt(5)) is `hash`.
    /// It applies only to this sshd, in a mount namespace of its own. Needs root.
    pub async fn take_password(&mut self, hash: &str, lines: &str) {
        let shadow = self.dir.join("shadow");
        fs::write(&shadow, format!("{}:{hash}:20000:0:99999:7:::\n", user_name()))
            .expect("written");
        chmod(&shadow, 0o600);
        self.shadow = Some(shadow);
        self.configure(&format!("PubkeyAuthentication no\n{lines}")).await;
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Starts `ssh -L`, as one types it: connections to `from` are carried to `to`, as sshd sees it.
    ///
    /// # Errors
    /// What the system says.
    pub fn forward(
        &self,
        from: SocketAddr,
        to: SocketAddr,
        cipher: Option<&str>,
    ) -> std::io::Result<tokio::process::Child> {
        let mut command = tokio::process::Command::new(&self.ssh);
        command.args(cipher.into_iter().flat_map(|cipher| ["-c", cipher]));
        command.args([
            "-N",
            "-o",
            "ExitOnForwardFailure=yes",
            "-L",
            &format!("{from}:{to}"),
            &self.url,
        ]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        command.spawn()
    }

    /// Kills sshd and every connection that it serves.
    pub fn kill(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        // Its children serve the connections; for a user who is not root, theirs do.
        let below = "below() { for one in $(cat /proc/$1/task/*/children); do \
                     case $(cat /proc/$one/comm) in sshd*) echo $one; below $one;; esac; done; }";
        let pid = self.child.id();
        let _ = Command::new("sh")
            .arg("-c")
            .arg(format!("{below}; kill -9 {pid} $(below {pid}) 2>/dev/null"))
            .stderr(Stdio::null())
            .status();
        let _ = self.child.wait();
    }

    /// Restarts it on the same port.
    pub async fn restart(&mut self) {
        self.child = run(&self.dir, self.shadow.as_deref());
        self.answers().await;
    }

    async fn answers(&self) {
        let answers = async {
            while TcpStream::connect(self.address).await.is_err() {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(crate::world::SOON, answers).await.expect("sshd listens");
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A running ssh-agent. Dropping it ends it.
pub struct Agent {
    /// The path of its socket.
    pub socket: PathBuf,
    child: Child,
}

impl Agent {
    /// Starts one in `dir`, with these keys.
    pub async fn start(dir: &Path, keys: &[&Path]) -> Self {
        let socket = dir.join("agent.sock");
        let mut command = Command::new("ssh-agent");
        command
            .arg("-D")
            .arg("-a")
            .arg(&socket)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let agent = Self { child: command.spawn().expect("ssh-agent starts"), socket };
        let listens = async {
            while tokio::net::UnixStream::connect(&agent.socket).await.is_err() {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(crate::world::SOON, listens).await.expect("ssh-agent listens");
        for key in keys {
            let added = Command::new("ssh-add")
                .arg("-q")
                .arg(key)
                .env("SSH_AUTH_SOCK", &agent.socket)
                .stdin(Stdio::null())
                .output();
            assert!(added.as_ref().is_ok_and(|out| out.status.success()), "{added:?}");
        }
        agent
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs ssh-keygen for a key at `path`.
///
/// # Panics
/// If it fails.
pub fn keygen(path: &Path, arguments: &[&str]) {
    let made = Command::new("ssh-keygen")
        .arg("-q")
        .args(arguments)
        .arg("-f")
        .arg(path)
        .stdin(Stdio::null())
        .output();
    assert!(made.as_ref().is_ok_and(|out| out.status.success()), "{made:?}");
}

fn run(dir: &Path, shadow: Option<&Path>) -> Child {
    let mut command = match shadow {
        Some(shadow) => {
            let mut command = Command::new("unshare");
            command
                .args(["--mount", "sh", "-c", "mount --bind \"$0\" /etc/shadow && exec \"$@\""])
                .arg(shadow)
                .arg(SSHD);
            command
        }
        None => Command::new(SSHD),
    };
    command.arg("-D").arg("-e").arg("-f").arg(dir.join("sshd_config"));
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("sshd starts")
}

/// The name of this user.
pub fn user_name() -> String {
    let out = Command::new("id").arg("-un").output().expect("id");
    String::from_utf8_lossy(&out.stdout).trim().to_owned()
}
