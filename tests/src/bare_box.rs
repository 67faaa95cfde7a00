//! A box with sshd and Ollama and nothing of ours: its network, its processes, its users and its
//! mounts are in namespaces of their own, so the usual ports are free there, and whatever runs there
//! ends with it. A laptop that can reach it is in the same network.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    os::unix::fs::{MetadataExt, chown},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use tokio::net::TcpStream;

use crate::{
    lab::namespace::Namespace,
    ollama::{Ollama, Options},
    process::{Ended, Process, Programs},
    raw, skip,
    sshd::{Sshd, keygen},
    state_files::chmod,
    terminal::Terminal,
    world::{SOON, Up},
};

/// The user of the box, whom the machine does not know.
pub const UID: u32 = 54321;
const USER: &str = "boxer";
const OLLAMA: &str = "127.0.0.1:11434";

/// How a box is made.
#[derive(Debug, Clone)]
pub struct Kind {
    /// The user's login shell.
    pub shell: &'static str,
    /// Files in the home directory: name and content.
    pub files: &'static [(&'static str, &'static str)],
    /// Options of a tmpfs that is the home directory; without them it is on the machine's disk.
    pub home: Option<&'static str>,
    /// Whether Ollama runs.
    pub ollama: bool,
    /// Programs that the box has not got.
    pub without: &'static [&'static str],
}

impl Default for Kind {
    fn default() -> Self {
        Self { shell: "/bin/sh", files: &[], home: None, ollama: true, without: &[] }
    }
}

/// A running box, and a laptop. Dropping it ends everything that runs there.
pub struct BareBox {
    /// The login, as `ssh://USER@127.0.0.1:PORT`.
    pub url: String,
    /// The aditd that the laptop has for the box.
    pub binary: PathBuf,
    pub net: Namespace,
    pub ollama: Option<Ollama>,
    programs: Programs,
    init: Child,
    dir: tempfile::TempDir,
}

impl BareBox {
    /// Starts it. `None` if the test must be skipped because this machine can't.
    ///
    /// # Panics
    /// If it does not start.
    pub async fn start(program: &str, kind: Kind) -> Option<Self> {
        if Sshd::is_missing() {
            return None;
        }
        let has = |program: &str| Command::new(program).arg("--version").output().is_ok();
        if !Path::new(kind.shell).exists() {
            skip::skip_test(&format!("there is no {}", kind.shell));
            return None;
        }
        if !rustix::process::geteuid().is_root() || !has("unshare") || !has("strip") {
            skip::skip_test("a box in namespaces of its own needs root, unshare and strip");
            return None;
        }
        let dir = tempfile::tempdir().expect("a directory");
        chmod(dir.path(), 0o711);
        let at = |name: &str| dir.path().join(name);
        let net = Namespace::new().expect("a network");
        fs::create_dir(at("laptop")).expect("a directory");
        let programs = Programs::link(Path::new(program), &at("laptop")).expect("links");
        // What is uploaded need not have the lines of its source.
        let binary = at("aditd");
        let stripped =
            Command::new("strip").arg("-o").arg(&binary).arg(program).status().expect("strip");
        assert!(stripped.success(), "stripped");
        let ollama = match kind.ollama {
            true => {
                let listen = OLLAMA.parse().expect("an address");
                let options = Options { listen, ..Options::default() };
                Some(net.within(Ollama::start(options)).await.expect("Ollama starts"))
            }
            false => None,
        };
        let address = net
            .inside(|| std::net::TcpListener::bind(("127.0.0.1", 0)).and_then(|l| l.local_addr()))
            .expect("a port");
        let home = at("home");
        fs::create_dir(&home).expect("a directory");
        own(&home, 0o700);
        for (name, content) in kind.files {
            let file = home.join(name);
            let parent = file.parent().expect("a directory");
            fs::create_dir_all(parent).expect("a directory");
            fs::write(&file, content).expect("written");
            for path in file.ancestors().take_while(|path| *path != home) {
                own(path, 0o700);
            }
        }
        configure(dir.path(), address, &kind);
        let init = run(&net, dir.path(), kind.home);
        let url = format!("ssh://{USER}@{address}");
        let this = Self { url, binary, net, ollama, programs, init, dir };
        let answers = async {
            while this.net.within(TcpStream::connect(address)).await.is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(SOON, answers).await.expect("sshd listens");
        Some(this)
    }

    /// The home directory of its user, as seen from outside.
    pub fn home(&self) -> PathBuf {
        // Through its init, which sees the mounts.
        let home = self.dir.path().join("home");
        PathBuf::from(format!("/proc/{}/root{}", self.init_pid(), home.display()))
    }

    /// The home directory, as it is called on the box.
    pub fn home_there(&self) -> String {
        self.dir.path().join("home").display().to_string()
    }

    /// A path for a file of the laptop.
    pub fn scratch(&self, name: &str) -> PathBuf {
        self.dir.path().join("laptop").join(name)
    }

    /// Everything in the home directory: what each path is, and its inode and length.
    pub fn everything(&self) -> BTreeMap<PathBuf, (u64, u64)> {
        fn walk(dir: &Path, found: &mut BTreeMap<PathBuf, (u64, u64)>) {
            for entry in fs::read_dir(dir).expect("a directory") {
                let path = entry.expect("an entry").path();
                let metadata = fs::symlink_metadata(&path).expect("there");
                found.insert(path.clone(), (metadata.ino(), metadata.len()));
                if metadata.is_dir() {
                    walk(&path, found);
                }
            }
        }
        let mut found = BTreeMap::new();
        walk(&self.home(), &mut found);
        found
    }

    /// The process ids of each aditd that runs on the box and serves, as the box counts them.
    pub fn servers(&self) -> Vec<String> {
        let script = "for p in /proc/[0-9]*; do if tr '\\0' ' ' <$p/cmdline 2>/dev/null | grep -q 'adit[d] serve'; then echo ${p#/proc/}; fi; done; true";
        self.on_the_box(script).split_whitespace().map(str::to_owned).collect()
    }

    /// Runs a script on the box as its user; returns what it prints.
    ///
    /// # Panics
    /// If it fails.
    pub fn on_the_box(&self, script: &str) -> String {
        self.as_user(UID, script)
    }

    /// Runs a script on the box as root, with the home directory of its user; returns what it prints.
    /// What it mounts is seen on the box only.
    ///
    /// # Panics
    /// If it fails.
    pub fn as_root(&self, script: &str) -> String {
        self.as_user(0, script)
    }

    fn as_user(&self, uid: u32, script: &str) -> String {
        let out = Command::new("nsenter")
            .args(["--target", &self.init_pid(), "--all", "--", "setsid", "--wait", "setpriv"])
            .args([format!("--reuid={uid}"), format!("--regid={uid}")])
            .args(["--clear-groups", "--", "env", "-i", "PATH=/usr/bin:/bin"])
            .arg(format!("HOME={}", self.home_there()))
            .args(["sh", "-c", script])
            .output()
            .expect("nsenter");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(out.status.success(), "{script}: {}", text(&out.stderr));
        text(&out.stdout)
    }

    /// An `adit` command of the laptop.
    pub fn command(&self, args: &[&str]) -> tokio::process::Command {
        let mut command = self.programs.command("adit", args);
        command
            .arg("--state-dir")
            .arg(self.scratch("state"))
            .env("ADIT_SSH", self.dir.path().join("ssh"))
            .env_remove("SSH_AUTH_SOCK");
        command
    }

    /// `adit up` for the login, with the aditd that the laptop has, and more arguments.
    pub fn up_args<'a>(&'a self, more: &[&'a str]) -> Vec<&'a str> {
        let binary = self.binary.to_str().expect("a path");
        [&["up", &self.url, "--listen", "127.0.0.1:0", "-v", "--server-binary", binary], more]
            .concat()
    }

    /// Runs an `adit` command to its end, without a terminal.
    pub async fn adit(&self, args: &[&str]) -> Ended {
        let mut command = self.command(args);
        let child = self.net.inside(|| {
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts")
        });
        let ended = tokio::time::timeout(4 * SOON, child.wait_with_output()).await;
        ended.expect("in time").expect("it runs").into()
    }

    /// Starts a command that opens the tunnel, and waits until it is ready.
    pub async fn up(&self, args: &[&str]) -> Up {
        let command = self.command(args);
        let mut adit = self.net.inside(|| Process::spawn(command, "adit")).expect("it starts");
        adit.ready().await.expect("ready");
        let log = adit.log();
        let address =
            crate::laptop::address_in(&log).unwrap_or_else(|| panic!("no address: {log}"));
        Up { adit, address }
    }

    /// Starts an `adit` command at a terminal.
    pub fn at_a_terminal(&self, args: &[&str]) -> Terminal {
        self.net.inside(|| Terminal::run(&self.command(args)))
    }

    /// Asserts that tokens come through the tunnel.
    ///
    /// # Panics
    /// If they do not.
    pub async fn has_tokens(&self, up: &Up) {
        let body = r#"{"model":"stand-in:latest","prompt":"x","options":{"num_predict":3}}"#;
        let request = format!(
            "POST /api/generate HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let answer = self.net.within(raw::exchange(up.address, &request)).await;
        assert!(answer.contains("\"done\":true"), "{answer}");
    }

    /// The process that is the first of the box.
    fn init_pid(&self) -> String {
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.init.id()))
            .expect("it runs");
        children.split_whitespace().next().expect("a child").to_owned()
    }
}

impl Drop for BareBox {
    fn drop(&mut self) {
        // The first process of its namespace ends with it, and all others with that one.
        let _ = self.init.kill();
        let _ = self.init.wait();
    }
}

fn own(path: &Path, mode: u32) {
    chmod(path, mode);
    chown(path, Some(UID), Some(UID)).expect("chown");
}

/// Writes the keys, the configuration of sshd and of the laptop's ssh, and the users of the box.
fn configure(dir: &Path, address: SocketAddr, kind: &Kind) {
    let d = dir.display();
    for key in ["host", "user"] {
        keygen(&dir.join(key), &["-t", "ed25519", "-N", ""]);
    }
    let public =
        |name: &str| fs::read_to_string(dir.join(name).with_extension("pub")).expect("a key");
    fs::write(dir.join("authorized_keys"), public("user")).expect("written");
    fs::write(dir.join("motd"), "Welcome! You have mail.\n").expect("written");
    let path = match kind.without {
        [] => "/usr/bin:/bin".to_owned(),
        without => only_others(dir, without),
    };
    let config = format!(
        "ListenAddress {address}\nHostKey {d}/host\nAuthorizedKeysFile {d}/authorized_keys\nPidFile none\nUsePAM no\n\
         StrictModes no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nBanner {d}/motd\n\
         SetEnv PATH={path}\nLogLevel ERROR\nMaxStartups 100\n"
    );
    fs::write(dir.join("sshd_config"), config).expect("written");
    let known = format!("[{}]:{} {}", address.ip(), address.port(), public("host"));
    fs::write(dir.join("known_hosts"), known).expect("written");
    let client = format!(
        "StrictHostKeyChecking yes\nBatchMode yes\nUserKnownHostsFile {d}/known_hosts\nGlobalKnownHostsFile none\n\
         IdentityFile {d}/user\nIdentitiesOnly yes\nIdentityAgent none\n"
    );
    fs::write(dir.join("ssh_config"), client).expect("written");
    fs::write(dir.join("ssh"), format!("#!/bin/sh\nexec ssh -F {d}/ssh_config \"$@\"\n"))
        .expect("written");
    chmod(&dir.join("ssh"), 0o755);
    let users = fs::read_to_string("/etc/passwd").expect("users");
    let user = format!("{USER}:x:{UID}:{UID}::{d}/home:{}\n", kind.shell);
    fs::write(dir.join("passwd"), users + &user).expect("written");
    chmod(&dir.join("passwd"), 0o644);
}

/// A directory with all programs of the machine but these.
fn only_others(dir: &Path, without: &[&str]) -> String {
    let bin = dir.join("bin");
    fs::create_dir(&bin).expect("a directory");
    chmod(&bin, 0o755);
    for entry in fs::read_dir("/usr/bin").expect("programs").map(|entry| entry.expect("an entry")) {
        let name = entry.file_name();
        if !without.iter().any(|missing| *missing == name) {
            std::os::unix::fs::symlink(entry.path(), bin.join(name)).expect("a link");
        }
    }
    bin.display().to_string()
}

/// Starts sshd as the first process of the box.
fn run(net: &Namespace, dir: &Path, home: Option<&str>) -> Child {
    let d = dir.display();
    let mount = home.map_or_else(String::new, |options| {
        format!("mount -t tmpfs -o {options},uid={UID},gid={UID},mode=700 tmpfs {d}/home && ")
    });
    let script = format!(
        "mount --bind {d}/passwd /etc/passwd && {mount}exec /usr/sbin/sshd -D -e -f {d}/sshd_config"
    );
    let mut command = Command::new("unshare");
    command
        .args([
            "--mount",
            "--pid",
            "--fork",
            "--kill-child=KILL",
            "--mount-proc",
            "sh",
            "-c",
            &script,
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    net.inside(|| command.spawn()).expect("unshare")
}
