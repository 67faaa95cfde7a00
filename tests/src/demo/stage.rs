//! The demo's temporary directory, with a real `aditd` and a real `adit`, and how all of it is
//! removed.

use std::{io, net::SocketAddr, path::Path, time::Duration};

use common::machine::report::Failure;
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Command;

use crate::process::{Ended, Process, Programs};

/// The name of the device.
pub(super) const DEVICE: &str = "laptop";

/// Both programs, their state, and their running processes.
pub(super) struct Stage {
    dir: TempDir,
    programs: Programs,
    aditd: Option<Process>,
    adit: Option<Process>,
}

impl Stage {
    /// Creates the directory and the programs in it.
    pub(super) fn new() -> Result<Self, Failure> {
        let failed = |e: io::Error| Failure::new("cannot set up a temporary directory").source(e);
        let this = std::env::current_exe().map_err(failed)?;
        // A short name: the path of a Unix socket in it must not be long.
        let dir = tempfile::Builder::new().prefix("adit-demo-").tempdir().map_err(failed)?;
        let programs = Programs::link(&this, dir.path()).map_err(failed)?;
        // An empty configuration, because the system's belongs to another server.
        std::fs::write(dir.path().join("aditd.toml"), "").map_err(failed)?;
        Ok(Self { dir, programs, aditd: None, adit: None })
    }

    /// The directory.
    pub(super) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The flags that an `aditd` command needs for this server.
    pub(super) fn server_flags(&self) -> [String; 4] {
        let path = |name| self.dir.path().join(name).to_string_lossy().into_owned();
        ["--config".to_owned(), path("aditd.toml"), "--state-dir".to_owned(), path("server")]
    }

    /// The flags that an `adit` command needs for this device.
    fn device_flags(&self) -> [String; 2] {
        ["--state-dir".to_owned(), self.dir.path().join(DEVICE).to_string_lossy().into_owned()]
    }

    /// Runs an `aditd` command, which must succeed.
    pub(super) async fn aditd(&self, args: &[&str]) -> Result<Ended, Failure> {
        self.run("aditd", args, &self.server_flags(), "").await
    }

    /// Runs an `adit` command with `input` on its standard input; it must succeed.
    pub(super) async fn adit(&self, args: &[&str], input: &str) -> Result<Ended, Failure> {
        self.run("adit", args, &self.device_flags(), input).await
    }

    async fn run(
        &self,
        program: &str,
        args: &[&str],
        flags: &[String],
        input: &str,
    ) -> Result<Ended, Failure> {
        let failed = || Failure::new(format!("`{program} {}` failed", args.join(" ")));
        let ended = self.programs.run(program, &with(args, flags), input).await;
        let ended = ended.map_err(|e| failed().source(e))?;
        match ended.code {
            Some(0) => Ok(ended),
            _ => Err(failed().source(ended.stderr.trim().to_owned())),
        }
    }

    /// Starts the server and returns its UDP address.
    pub(super) async fn serve(&mut self, upstream: SocketAddr) -> Result<String, Failure> {
        let upstream = format!("http://{upstream}");
        let args = ["serve", "--listen", "127.0.0.1:0", "--upstream", &upstream];
        let command = self.programs.command("aditd", &with(&args, &self.server_flags()));
        start(&mut self.aditd, command, "aditd").await?;
        let status = self.aditd(&["status", "--json"]).await?;
        listening(&status)
    }

    /// Starts the tunnel and returns its local address.
    pub(super) async fn up(&mut self) -> Result<SocketAddr, Failure> {
        let command = self
            .programs
            .command("adit", &with(&["up", "--listen", "127.0.0.1:0"], &self.device_flags()));
        start(&mut self.adit, command, "adit").await?;
        let status = self.adit(&["status", "--json"], "").await?;
        let address = listening(&status)?.parse();
        address.map_err(|e| Failure::new("`adit status` shows no address").source(e))
    }

    /// Waits until one of the processes ends, which neither does by itself.
    pub(super) async fn died(&mut self) -> Failure {
        loop {
            let (who, how, log) = tokio::select! {
                Ok((how, log)) = end_of(&mut self.adit) => ("adit", how, log),
                Ok((how, log)) = end_of(&mut self.aditd) => ("aditd", how, log),
                // Nothing else can be said in time.
                else => continue,
            };
            return Failure::new(format!("{who} ended by itself ({how})"))
                .source(log.trim_end().to_owned());
        }
    }

    /// Ends both processes and removes the directory.
    pub(super) async fn clear(self) -> Result<(), Failure> {
        if let Some(mut adit) = self.adit {
            // In order, so that its watcher ends with it.
            adit.stop().await;
        }
        if let Some(mut aditd) = self.aditd {
            // It has nothing to save.
            aditd.kill().await;
        }
        let path = self.dir.keep();
        let mut removed = std::fs::remove_dir_all(&path);
        // A command that Ctrl-C has interrupted may have written one more file in the meantime.
        for _ in 0..20 {
            if removed.is_ok() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
            removed = std::fs::remove_dir_all(&path);
        }
        removed.map_err(|e| Failure::new(format!("cannot remove {}", path.display())).source(e))
    }
}

fn with<'a>(args: &[&'a str], flags: &'a [String]) -> Vec<&'a str> {
    args.iter().copied().chain(flags.iter().map(String::as_str)).collect()
}

/// Starts a process and keeps it, so that it is ended even if it never becomes ready.
async fn start(
    place: &mut Option<Process>,
    mut command: Command,
    name: &str,
) -> Result<(), Failure> {
    let failed = |e: io::Error| Failure::new(format!("cannot start {name}")).source(e);
    // Ctrl-C in the terminal is for the demo, which then ends the processes in order.
    command.process_group(0);
    let process = place.insert(Process::spawn(command, name).map_err(failed)?);
    process.ready().await.map_err(failed)
}

fn listening(status: &Ended) -> Result<String, Failure> {
    let wrong = || Failure::new("a status shows no address");
    let status: Value = serde_json::from_str(&status.stdout).map_err(|e| wrong().source(e))?;
    status["listening"][0].as_str().map(str::to_owned).ok_or_else(wrong)
}

async fn end_of(process: &mut Option<Process>) -> io::Result<(std::process::ExitStatus, String)> {
    match process {
        Some(process) => Ok((process.ended().await?, process.log())),
        None => std::future::pending().await,
    }
}
