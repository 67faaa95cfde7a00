//! A world in one line: a stand-in for Ollama, a real `aditd`, and devices that a test enrolls and
//! connects.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Command;

use crate::{
    fake_clock::FakeClock,
    ollama::{Ollama, Options},
    process::{Ended, Process, Programs},
};

/// Long enough for any machine, short enough for a person.
pub const SOON: Duration = Duration::from_secs(30);

/// The server's side: the stand-in for Ollama and `aditd`, each on a free port.
pub struct World {
    pub ollama: Ollama,
    pub aditd: Process,
    pub programs: Programs,
    /// Flags of `aditd serve` besides the state directory.
    pub serve_flags: Vec<String>,
    dir: TempDir,
}

/// An enrolled device.
pub struct Device {
    pub dir: PathBuf,
    programs: Programs,
}

/// A running `adit up`.
pub struct Up {
    pub adit: Process,
    /// The address that applications connect to.
    pub address: SocketAddr,
}

/// A server process that has replaced another one. Dropping it kills it.
pub struct Successor {
    pub pid: i32,
}

impl Drop for Successor {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_raw(self.pid).expect("a process id");
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

impl World {
    /// Starts everything with the programs in the file `this`; see [`Programs::link`].
    pub async fn start(this: &str) -> Self {
        Self::start_with(this, Options::default(), &[]).await
    }

    /// Like [`World::start`], with other options of the stand-in, and flags of `aditd serve`.
    /// Without `--upstream` among them, the stand-in is the upstream.
    pub async fn start_with(this: &str, options: Options, flags: &[&str]) -> Self {
        Self::start_configured(this, options, flags, "").await
    }

    /// Like [`World::start`], with this value of `--upstream` instead of the stand-in.
    pub async fn in_front_of(this: &str, upstream: &str) -> Self {
        Self::start_with(this, Options::default(), &["--upstream", upstream]).await
    }

    /// Like [`World::start_with`], with this configuration file; `{dir}` in it is a directory for
    /// the test's files.
    pub async fn start_configured(
        this: &str,
        options: Options,
        flags: &[&str],
        config: &str,
    ) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let config = config.replace("{dir}", dir.path().to_str().expect("a path"));
        std::fs::write(config_file(dir.path()), config).expect("written");
        let programs = Programs::link(Path::new(this), dir.path()).expect("links to the programs");
        let ollama = Ollama::start(options).await.expect("the stand-in starts");
        let mut serve_flags: Vec<String> = flags.iter().map(ToString::to_string).collect();
        if !flags.contains(&"--upstream") {
            serve_flags.extend(["--upstream".to_owned(), format!("http://{}", ollama.addr())]);
        }
        if !flags.contains(&"--listen") {
            serve_flags.extend(["--listen".to_owned(), "127.0.0.1:0".to_owned()]);
        }
        let aditd = serve(&programs, dir.path(), &serve_flags, &[], None).await;
        let mut world = Self { ollama, aditd, programs, serve_flags, dir };
        world.keep_port().await;
        world
    }

    /// Like [`World::start`], with a relay for SSH. A server has none if another process has the TCP
    /// port of the number of its UDP port.
    ///
    /// # Panics
    /// If that happens again and again.
    pub async fn start_with_relay(this: &str) -> Self {
        for _ in 0..5 {
            let world = Self::start(this).await;
            if world.status().await["relay"].is_u64() {
                return world;
            }
        }
        panic!("another process has the TCP port of each server");
    }

    /// The server's state directory.
    pub fn state(&self) -> PathBuf {
        self.dir.path().join("server")
    }

    /// The server's configuration file.
    pub fn config(&self) -> PathBuf {
        let named = self
            .serve_flags
            .iter()
            .position(|flag| flag == "--config")
            .and_then(|at| self.serve_flags.get(at + 1));
        named.map_or_else(|| config_file(self.dir.path()), PathBuf::from)
    }

    /// A path for a file of the test.
    pub fn scratch(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs an `aditd` command on the server's state.
    pub async fn aditd(&self, args: &[&str]) -> Ended {
        let (state, config) = (self.state(), self.config());
        let mut all = [args, &["--state-dir", state.to_str().expect("a path")]].concat();
        if !args.contains(&"--config") {
            all.extend(["--config", config.to_str().expect("a path")]);
        }
        self.programs.run("aditd", &all, "").await.expect("aditd runs")
    }

    /// The output of `aditd status --json`.
    pub async fn status(&self) -> Value {
        let status = self.aditd(&["status", "--json"]).await;
        serde_json::from_str(&status.stdout).unwrap_or_else(|e| panic!("{e}: {status:?}"))
    }

    /// The lines of the audit log, as `aditd audit --json` prints them with these flags.
    pub async fn audit(&self, flags: &[&str]) -> Vec<Value> {
        let log = self.aditd(&[&["audit", "--json"], flags].concat()).await;
        assert_eq!((log.code, log.stderr.as_str()), (Some(0), ""));
        log.stdout
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
            .collect()
    }

    /// Waits until the audit log has `count` lines that match, and returns them. The server writes
    /// the log beside the requests.
    ///
    /// # Panics
    /// If it does not have them soon, with the log.
    pub async fn audit_has(&self, count: usize, matches: impl Fn(&Value) -> bool) -> Vec<Value> {
        let wait = async {
            loop {
                let mut lines = self.audit(&[]).await;
                lines.retain(&matches);
                if lines.len() >= count {
                    return lines;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        match tokio::time::timeout(SOON, wait).await {
            Ok(lines) => lines,
            Err(_) => panic!("fewer than {count} such lines in {:#?}", self.audit(&[]).await),
        }
    }

    /// The server's UDP address.
    pub async fn address(&self) -> SocketAddr {
        self.status().await["listening"][0]
            .as_str()
            .and_then(|a| a.parse().ok())
            .expect("an address")
    }

    /// Makes an invitation and returns its code. The device has the role `admin`: roles have tests
    /// of their own.
    pub async fn invite(&self, name: &str) -> String {
        self.invite_as(name, "admin").await
    }

    /// Makes an invitation for a device with this role.
    pub async fn invite_as(&self, name: &str, role: &str) -> String {
        let invited = self.aditd(&["invite", name, "--role", role]).await;
        assert_eq!(invited.code, Some(0), "{}", invited.stderr);
        invited.stdout
    }

    /// Enrolls a device with this name and the role `admin`.
    pub async fn device(&self, name: &str) -> Device {
        self.device_as(name, "admin").await
    }

    /// Enrolls a device with this name and role.
    pub async fn device_as(&self, name: &str, role: &str) -> Device {
        let device = self.stranger(name);
        let enrolled = device.enroll(&self.invite_as(name, role).await, &[]).await;
        assert_eq!(enrolled.code, Some(0), "{}", enrolled.stderr);
        device
    }

    /// A device that has not enrolled.
    pub fn stranger(&self, name: &str) -> Device {
        Device { dir: self.dir.path().join("devices").join(name), programs: self.programs.clone() }
    }

    /// A device with a tunnel that is up.
    pub async fn up(&self, name: &str) -> Up {
        self.device(name).await.up(&[]).await
    }

    /// Kills the server with SIGKILL.
    pub async fn kill_server(&mut self) {
        self.aditd.kill().await;
    }

    /// Restarts the server on the same port with the same flags.
    pub async fn restart_server(&mut self) {
        self.aditd = serve(&self.programs, self.dir.path(), &self.serve_flags, &[], None).await;
    }

    /// Starts the server that was killed, and kills it with SIGKILL after this time, whether it is
    /// ready or not.
    pub async fn start_and_kill_server(&mut self, after: Duration) {
        let command = serve_command(&self.programs, self.dir.path(), &self.serve_flags, &[]);
        self.aditd = Process::spawn(command, "aditd").expect("aditd starts");
        tokio::time::sleep(after).await;
        self.aditd.kill().await;
    }

    /// Like [`World::restart_server`], by this clock.
    pub async fn restart_server_by(&mut self, clock: &FakeClock) {
        let (programs, flags) = (&self.programs, &self.serve_flags);
        self.aditd = serve(programs, self.dir.path(), flags, &[], Some(clock)).await;
    }

    /// Like [`World::restart_server`], as on a kernel that has neither Landlock nor seccomp.
    #[cfg(target_os = "linux")]
    pub async fn restart_server_on_an_old_kernel(&mut self) {
        let (programs, flags) = (&self.programs, &self.serve_flags);
        let before = [crate::tries::OLD_KERNEL];
        self.aditd = serve(programs, self.dir.path(), flags, &before, None).await;
    }

    /// Replaces the server with a new process of the same program, while answers run.
    ///
    /// # Panics
    /// If that fails.
    pub async fn replace_server(&self) -> Successor {
        let replaced = self.aditd(&["replace"]).await;
        assert_eq!(replaced.code, Some(0), "{}\n{}", replaced.stderr, self.aditd.log());
        let pid = self.status().await["pid"].as_i64().expect("a number");
        Successor { pid: i32::try_from(pid).expect("a process id") }
    }

    /// From the second start on the port is that of the first.
    async fn keep_port(&mut self) {
        let listens = |pair: &[String]| pair[0] == "--listen" && pair[1] == "127.0.0.1:0";
        if let Some(at) = self.serve_flags.windows(2).position(listens) {
            self.serve_flags[at + 1] = self.address().await.to_string();
        }
    }
}

/// A configuration file for this world, so that the machine's is not used.
fn config_file(dir: &Path) -> PathBuf {
    dir.join("world.toml")
}

fn serve_command(programs: &Programs, dir: &Path, flags: &[String], before: &[&str]) -> Command {
    let state = dir.join("server");
    let config = config_file(dir);
    let mut args = before.to_vec();
    args.extend(["serve", "--state-dir", state.to_str().expect("a path"), "-v"]);
    if !flags.iter().any(|flag| flag == "--config") {
        args.extend(["--config", config.to_str().expect("a path")]);
    }
    args.extend(flags.iter().map(String::as_str));
    programs.command("aditd", &args)
}

async fn serve(
    programs: &Programs,
    dir: &Path,
    flags: &[String],
    before: &[&str],
    clock: Option<&FakeClock>,
) -> Process {
    let mut command = serve_command(programs, dir, flags, before);
    if let Some(clock) = clock {
        clock.give(&mut command);
    }
    let mut aditd = Process::spawn(command, "aditd").expect("aditd starts");
    aditd.ready().await.expect("aditd is ready");
    aditd
}

impl Device {
    /// The same with this variable in the environment of its commands.
    pub fn with_variable(mut self, name: &str, value: &str) -> Self {
        self.programs = self.programs.with_variable(name, value);
        self
    }

    /// Runs an `adit` command on this device.
    pub async fn adit(&self, args: &[&str], input: &str) -> Ended {
        let args = [args, &["--state-dir", self.dir()]].concat();
        self.programs.run("adit", &args, input).await.expect("adit runs")
    }

    /// A command of `adit` on this device; what it runs may have arguments of its own.
    pub fn command(&self, args: &[&str]) -> Command {
        self.programs.command("adit", &[&["--state-dir", self.dir()], args].concat())
    }

    /// Runs a program with `adit run`, to its end.
    pub async fn run(&self, args: &[&str]) -> Ended {
        let args = [&["--state-dir", self.dir(), "run"], args].concat();
        self.programs.run("adit", &args, "").await.expect("adit runs")
    }

    /// Enrolls with a code on standard input.
    pub async fn enroll(&self, code: &str, flags: &[&str]) -> Ended {
        self.adit(&[&["enroll"], flags].concat(), code).await
    }

    /// Starts `adit up` on a free port and waits until it is ready.
    pub async fn up(&self, flags: &[&str]) -> Up {
        let mut up = self.start(flags).await;
        up.adit.ready().await.expect("adit is ready");
        up
    }

    /// Starts `adit up` on a free port; the tunnel may not be up yet.
    pub async fn start(&self, flags: &[&str]) -> Up {
        let args =
            [&["up", "--state-dir", self.dir(), "-v", "--listen", "127.0.0.1:0"], flags].concat();
        let mut adit = self.programs.start("adit", &args).expect("adit starts");
        adit.says("listening on http://").await;
        let log = adit.log();
        let line =
            log.split("listening on http://").nth(1).and_then(|l| l.split_whitespace().next());
        let address =
            line.and_then(|a| a.parse().ok()).unwrap_or_else(|| panic!("no address in {log}"));
        Up { adit, address }
    }

    /// The output of `adit status --json`.
    pub async fn status(&self) -> Value {
        let status = self.adit(&["status", "--json"], "").await;
        serde_json::from_str(&status.stdout).unwrap_or_else(|e| panic!("{e}: {status:?}"))
    }

    fn dir(&self) -> &str {
        self.dir.to_str().expect("a path")
    }
}

impl Up {
    /// Asserts that Ollama answers through the tunnel, and ends it.
    pub async fn works(self) {
        let answer = crate::raw::exchange(self.address, "GET / HTTP/1.0\r\n\r\n").await;
        assert!(answer.ends_with("Ollama is running"), "{answer}");
        self.end().await;
    }

    /// Kills it and waits until it has ended, so that its lock is free.
    pub async fn end(mut self) {
        self.adit.kill().await;
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}
