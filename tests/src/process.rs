//! Real `adit` and `aditd` processes: they are started, waited for, listened to, and ended with
//! their owner.

use std::{
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
    process::{ExitStatus, Output, Stdio},
    time::Duration,
};

use crate::state_files::chmod;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::UnixDatagram,
    process::{Child, Command},
    sync::watch,
};

/// Long, because a loaded machine starts processes slowly.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// The path of the programs: one file that is `adit` or `aditd` by the name under which it is
/// called.
#[derive(Debug, Clone)]
pub struct Programs {
    dir: PathBuf,
    /// What is set in the environment of each command.
    environment: Vec<(String, String)>,
}

impl Programs {
    /// Links `adit` and `aditd` in `dir` to the program `this`, which checks its own name (see
    /// [`run_as_named`]).
    pub fn link(this: &Path, dir: &Path) -> io::Result<Self> {
        crate::timing::begin();
        for name in ["adit", "aditd"] {
            std::os::unix::fs::symlink(this, dir.join(name))?;
        }
        Ok(Self { dir: dir.to_owned(), environment: Vec::new() })
    }

    /// Where they are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The same with this variable in the environment of each command.
    pub fn with_variable(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// A command of one of them, without the settings of this process's environment.
    pub fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new(self.dir.join(program));
        command.args(args).stdin(Stdio::null()).kill_on_drop(true);
        for (name, _) in
            std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("ADIT"))
        {
            command.env_remove(name);
        }
        // Not the settings of whoever runs the tests.
        command.env("XDG_CONFIG_HOME", self.dir.join("config"));
        command.env("NO_COLOR", "1").env_remove("JOURNAL_STREAM").env_remove("NOTIFY_SOCKET");
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Runs a command to its end, with `input` on its standard input.
    pub async fn run(&self, program: &str, args: &[&str], input: &str) -> io::Result<Ended> {
        let mut command = self.command(program, args);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // The command may end without reading it.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        let output = tokio::time::timeout(READY_WITHIN, child.wait_with_output()).await??;
        Ok(output.into())
    }

    /// Starts a program that runs until it is stopped. Its log is kept.
    pub fn start(&self, program: &str, args: &[&str]) -> io::Result<Process> {
        Process::spawn(self.command(program, args), program)
    }
}

/// Runs `adit` or `aditd` if this process was called by that name; otherwise returns.
pub fn run_as_named() {
    let mut args = std::env::args_os();
    let name = args.next().and_then(|name| Path::new(&name).file_name().map(OsStr::to_owned));
    let name = name.as_deref().and_then(OsStr::to_str);
    // A tunnel that programs share has no parent for long: it ends with the last of them. A watcher
    // waits for the end of its parent.
    let is_shared = std::env::args_os().nth(3).is_some_and(|command| command == "hold-tunnel");
    let is_watcher = std::env::args_os().nth(1).is_some_and(|first| first == "watcher");
    // Started to outlive the login that has started it. In a PID namespace whose session's leader is
    // outside, the number of the session is 0: `rustix::process::getsid` panics there.
    let is_own_session = nix::unistd::getsid(None).ok() == Some(nix::unistd::getpid());
    // One that replaces its parent outlives it.
    let takes_over = std::env::args_os().any(|arg| arg == "--take-over");
    let outlives = is_shared || is_watcher || is_own_session || takes_over;
    if matches!(name, Some("adit" | "aditd")) && !outlives {
        end_with_parent();
    }
    #[cfg(target_os = "linux")]
    if name == Some("aditd") {
        crate::tries::run_if_named();
    }
    let code = match name {
        Some("adit") => client::run(std::env::args_os()),
        Some("aditd") => server::run(std::env::args_os()),
        _ => return,
    };
    // `ExitCode` can't be converted to a number, so this exits as `main` would.
    std::process::exit(if code == std::process::ExitCode::SUCCESS { 0 } else { exit_number(code) });
}

/// Makes the kernel end the child when the test ends, also after SIGKILL.
fn end_with_parent() {
    #[cfg(target_os = "linux")]
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
}

fn exit_number(code: std::process::ExitCode) -> i32 {
    (1..=255u8).find(|n| std::process::ExitCode::from(*n) == code).map_or(1, i32::from)
}

/// The result of a command.
#[derive(Debug, Clone)]
pub struct Ended {
    /// The exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Self {
            code: output.status.code(),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }
}

/// A running program. Dropping it kills it.
pub struct Process {
    child: Child,
    name: String,
    log: watch::Receiver<String>,
    notify: Notify,
}

struct Notify {
    socket: UnixDatagram,
    _dir: tempfile::TempDir,
}

impl Process {
    /// Spawns `command` and keeps its standard error.
    pub fn spawn(mut command: Command, name: &str) -> io::Result<Self> {
        // The protocol of systemd's Type=notify: the program reports when it is ready.
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path)?;
        // Anyone may send to it, as with systemd: a program that has given up root's rights must
        // reach it.
        chmod(dir.path(), 0o711);
        chmod(&path, 0o777);
        let mut child = command
            .env("NOTIFY_SOCKET", &path)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let stderr = child.stderr.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let (keep, log) = watch::channel(String::new());
        tokio::spawn(async move {
            let mut lines = BufReader::new(stderr).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                keep.send_modify(|log| {
                    log.push_str(&line);
                    log.push('\n');
                });
            }
        });
        Ok(Self { child, name: name.to_owned(), log, notify: Notify { socket, _dir: dir } })
    }

    /// Waits until the program reports that it is ready.
    ///
    /// # Errors
    /// Its log, if it ended.
    pub async fn ready(&mut self) -> io::Result<()> {
        let mut message = [0; 256];
        let wait = async {
            loop {
                tokio::select! {
                    received = self.notify.socket.recv(&mut message) => {
                        let n = received?;
                        if message[..n].starts_with(b"READY=1") {
                            return Ok(());
                        }
                    }
                    ended = self.child.wait() => {
                        let ended = ended?;
                        return Err(io::Error::other(format!("{} ended ({ended}): {}", self.name, self.log.borrow().as_str())));
                    }
                }
            }
        };
        match tokio::time::timeout(READY_WITHIN, wait).await {
            Ok(result) => result,
            Err(_) => Err(io::Error::other(format!("{} is not ready: {}", self.name, self.log()))),
        }
    }

    /// Its process id.
    ///
    /// # Panics
    /// If it has ended.
    pub fn pid(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        self.log.borrow().clone()
    }

    /// Waits until `text` is in its log.
    ///
    /// # Panics
    /// If it does not come.
    pub async fn says(&mut self, text: &str) {
        let said = tokio::time::timeout(READY_WITHIN, self.log.wait_for(|log| log.contains(text)))
            .await
            .is_ok_and(|said| said.is_ok());
        assert!(said, "{} never said `{text}`:\n{}", self.name, self.log());
    }

    /// Sends a signal by its name.
    pub fn signal(&self, name: &str) {
        // The `kill` of the shell: there may be no program with that name.
        let sent = std::process::Command::new("sh")
            .arg("-c")
            .arg(format!("kill -{name} {}", self.pid()))
            .status();
        assert!(sent.is_ok_and(|s| s.success()), "kill -{name} {}", self.pid());
    }

    /// Ends it in order, without draining.
    pub async fn stop(&mut self) {
        if self.child.id().is_some() {
            // The second order cuts what the first would wait for.
            for _ in 0..2 {
                self.signal("TERM");
            }
            let _ = self.ended().await;
        }
    }

    /// Ends it with SIGKILL.
    pub async fn kill(&mut self) {
        let _ = self.child.kill().await;
    }

    pub async fn ended(&mut self) -> io::Result<ExitStatus> {
        tokio::time::timeout(READY_WITHIN, self.child.wait()).await?
    }

    /// Waits for its end, and returns its whole log.
    pub async fn ended_saying(&mut self) -> io::Result<(ExitStatus, String)> {
        let status = self.ended().await?;
        let mut log = self.log.clone();
        // Its end closes the pipe, and the task that reads the pipe then drops its half of this.
        tokio::time::timeout(READY_WITHIN, async { while log.changed().await.is_ok() {} }).await?;
        Ok((status, self.log()))
    }

    /// The number of open file descriptors.
    pub fn fds(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).map_or(0, Iterator::count)
    }

    /// Resident memory, in KiB.
    pub fn rss(&self) -> u64 {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
    }

    /// Waits until its resident memory satisfies `is_so`, and returns it, in KiB.
    ///
    /// # Panics
    /// If it does not in time.
    pub async fn rss_until(&self, is_so: impl Fn(u64) -> bool) -> u64 {
        let wait = async {
            loop {
                let rss = self.rss();
                if is_so(rss) {
                    return rss;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let last = tokio::time::timeout(READY_WITHIN, wait).await;
        last.unwrap_or_else(|_| panic!("{} has {} KiB", self.name, self.rss()))
    }
}
