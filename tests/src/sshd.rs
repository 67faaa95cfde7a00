//! A real sshd of a test's own: its own keys, configuration and port, and a client configuration that knows only it.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use tokio::net::TcpStream;

const SSHD: &str = "/usr/sbin/sshd";

/// A running sshd that lets this very user in. Dropping it ends it.
pub struct Sshd {
    /// Where it listens, as `ssh://USER@ADDRESS:PORT`.
    pub url: String,
    /// A program that is `ssh` with the test's own configuration, for `ADIT_SSH`.
    pub ssh: PathBuf,
    address: SocketAddr,
    dir: PathBuf,
    child: Child,
}

impl Sshd {
    /// Whether this machine has what is needed.
    pub fn is_there() -> bool {
        let ssh = Command::new("ssh").arg("-V").output().is_ok_and(|out| out.status.success());
        ssh && Path::new(SSHD).exists()
    }

    /// Starts it in `dir`. `authorized` stands before the key in authorized_keys: options, or nothing. `path` is where remote commands are found.
    pub async fn start(dir: &Path, authorized: &str, path: &Path) -> Self {
        Self::start_at(Ipv4Addr::LOCALHOST.into(), dir, authorized, path).await
    }

    /// Like [`Sshd::start`], on another address of this machine.
    pub async fn start_at(ip: IpAddr, dir: &Path, authorized: &str, path: &Path) -> Self {
        fs::create_dir_all(dir).expect("a directory");
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).expect("chmod");
        for key in ["host", "user"] {
            let file = dir.join(key);
            let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&file).status();
            assert!(made.is_ok_and(|status| status.success()), "ssh-keygen");
        }
        let user = fs::read_to_string(dir.join("user.pub")).expect("a key");
        fs::write(dir.join("authorized_keys"), format!("{authorized} {user}")).expect("written");
        fs::set_permissions(dir.join("authorized_keys"), fs::Permissions::from_mode(0o600)).expect("chmod");
        // Given up again just before sshd takes it: sshd can't say which free port it took.
        let port = std::net::TcpListener::bind((ip, 0)).and_then(|l| l.local_addr()).expect("a port").port();
        let name = user_name();
        let d = dir.display();
        let config = format!(
            "ListenAddress {ip}:{port}\nHostKey {d}/host\nAuthorizedKeysFile {d}/authorized_keys\nPidFile none\nUsePAM no\n\
             StrictModes no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin yes\n\
             SetEnv PATH={}:/usr/bin:/bin\nLogLevel ERROR\n",
            path.display()
        );
        fs::write(dir.join("sshd_config"), config).expect("written");
        let host = fs::read_to_string(dir.join("host.pub")).expect("a key");
        fs::write(dir.join("known_hosts"), format!("[{ip}]:{port} {host}")).expect("written");
        let client = format!(
            "UserKnownHostsFile {d}/known_hosts\nGlobalKnownHostsFile none\nIdentityFile {d}/user\nIdentitiesOnly yes\n\
             IdentityAgent none\nBatchMode yes\nStrictHostKeyChecking yes\n"
        );
        fs::write(dir.join("ssh_config"), client).expect("written");
        let ssh = dir.join("ssh");
        fs::write(&ssh, format!("#!/bin/sh\nexec ssh -F {d}/ssh_config \"$@\"\n")).expect("written");
        fs::set_permissions(&ssh, fs::Permissions::from_mode(0o700)).expect("chmod");
        let child = run(dir);
        let sshd = Self { url: format!("ssh://{name}@{ip}:{port}"), ssh, address: (ip, port).into(), dir: dir.to_owned(), child };
        sshd.answers().await;
        sshd
    }

    /// Kills sshd and every connection that it serves.
    pub fn kill(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        // Its children are the connections.
        let pid = self.child.id();
        let _ = Command::new("sh").arg("-c").arg(format!("kill -9 {pid} $(cat /proc/{pid}/task/*/children)")).status();
        let _ = self.child.wait();
    }

    /// Starts it again, on the same port.
    pub async fn restart(&mut self) {
        self.child = run(&self.dir);
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

fn run(dir: &Path) -> Child {
    let mut command = Command::new(SSHD);
    command.arg("-D").arg("-e").arg("-f").arg(dir.join("sshd_config"));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("sshd starts")
}

fn user_name() -> String {
    let out = Command::new("id").arg("-un").output().expect("id");
    String::from_utf8_lossy(&out.stdout).trim().to_owned()
}
