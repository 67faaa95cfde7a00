//! A laptop that reaches a world's server only by SSH: its `adit`, the sshd, and the configuration
//! of its ssh.

use std::{
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use crate::{
    process::{Ended, Process},
    sshd::Sshd,
    state_files::chmod,
    terminal::Terminal,
    world::{Device, SOON, Up, World},
};

/// A device, and its sshd.
pub struct Laptop {
    pub device: Device,
    pub sshd: Sshd,
    /// More environment variables.
    pub environment: Vec<(String, String)>,
    devices: AtomicUsize,
}

impl Laptop {
    /// A world whose server has a relay, and a laptop in it. `None` if the test must be skipped
    /// because this machine has no OpenSSH.
    pub async fn in_a_world(program: &str) -> Option<(World, Self)> {
        if Sshd::is_missing() {
            return None;
        }
        let world = World::start_with_relay(program).await;
        let laptop = Self::new(&world).await;
        Some((world, laptop))
    }

    /// Like [`Laptop::in_a_world`]; the laptop is enrolled.
    pub async fn enrolled_in_a_world(program: &str) -> Option<(World, Self)> {
        let (world, laptop) = Self::in_a_world(program).await?;
        laptop.enrolled(&world, &[]).await;
        Some((world, laptop))
    }

    /// A laptop whose key may do everything on the server.
    pub async fn new(world: &World) -> Self {
        let sshd = Sshd::start(&world.scratch("sshd"), &remote_aditd(world)).await;
        Self {
            device: world.stranger("laptop"),
            sshd,
            environment: Vec::new(),
            devices: AtomicUsize::new(1),
        }
    }

    /// An `adit` command with this laptop's ssh.
    pub fn command(&self, world: &World, args: &[&str]) -> tokio::process::Command {
        let mut command = world.programs.command("adit", args);
        command
            .arg("--state-dir")
            .arg(&self.device.dir)
            .env("ADIT_SSH", &self.sshd.ssh)
            .env_remove("SSH_AUTH_SOCK");
        command.envs(self.environment.iter().cloned());
        command
    }

    /// Runs an `adit` command to its end, without a terminal.
    pub async fn adit(&self, world: &World, args: &[&str]) -> Ended {
        let run = self.command(world, args).output();
        tokio::time::timeout(2 * SOON, run).await.expect("in time").expect("it runs").into()
    }

    /// Runs `adit enroll` with more arguments, each time as another device.
    pub async fn enroll(&self, world: &World, more: &[&str]) -> Ended {
        let device = format!("laptop-{}", self.devices.fetch_add(1, Relaxed));
        self.adit(
            world,
            &[&["enroll", &self.sshd.url, "--replace", "--device", &device], more].concat(),
        )
        .await
    }

    /// Enrolls.
    ///
    /// # Panics
    /// If that fails.
    pub async fn enrolled(&self, world: &World, more: &[&str]) {
        let enrolled = self.enroll(world, more).await;
        assert!(
            enrolled.code == Some(0) && enrolled.stderr.contains("Enrolled as laptop"),
            "{}",
            enrolled.stderr
        );
    }

    /// Starts `adit up` and waits until it is ready.
    pub async fn up(&self, world: &World, more: &[&str]) -> Up {
        let command =
            self.command(world, &[&["up", "-v", "--listen", "127.0.0.1:0"], more].concat());
        let mut adit = Process::spawn(command, "adit").expect("it starts");
        adit.ready().await.expect("ready");
        let log = adit.log();
        let address = address_in(&log).unwrap_or_else(|| panic!("no address in {log}"));
        Up { adit, address }
    }

    /// Starts an `adit` command at a terminal.
    pub fn at_a_terminal(&self, world: &World, args: &[&str]) -> Terminal {
        Terminal::run(&self.command(world, args))
    }
}

/// The local address of `adit up` in its log.
pub fn address_in(log: &str) -> Option<std::net::SocketAddr> {
    log.split("listening on http://").nth(1)?.split_whitespace().next()?.parse().ok()
}

/// A directory with an `aditd` for remote commands that uses the world's state.
pub fn remote_aditd(world: &World) -> PathBuf {
    let dir = world.scratch("remote-bin");
    std::fs::create_dir_all(&dir).expect("a directory");
    let (real, state, config) = (world.scratch("aditd"), world.state(), world.config());
    let script = format!(
        "#!/bin/sh\nexport ADITD_STATE_DIR={} ADITD_CONFIG={}\nexec {} \"$@\"\n",
        state.display(),
        config.display(),
        real.display()
    );
    std::fs::write(dir.join("aditd"), script).expect("written");
    chmod(&dir.join("aditd"), 0o700);
    dir
}
