//! A device with two routes to the server: a UDP path that can be cut, and a real sshd.

use tokio::process::Command;

use crate::{
    laptop::{address_in, remote_aditd},
    ollama::Options,
    path::Path,
    process::Process,
    sshd::Sshd,
    world::{Device, SOON, Up, World},
};

/// A device that can use a UDP path or SSH.
pub struct Crossroads {
    pub world: World,
    /// The device's UDP path to the server.
    pub path: Path,
    pub sshd: Sshd,
    /// The device, enrolled over SSH.
    pub device: Device,
}

impl Crossroads {
    /// Starts everything with the programs in the file `this`, and `flags` of `aditd serve`.
    pub async fn new(this: &str, flags: &[&str]) -> Self {
        let world = World::start_with(this, Options::default(), flags).await;
        let path = Path::to(world.address().await).await;
        let sshd = Sshd::start(&world.scratch("sshd"), &remote_aditd(&world)).await;
        let device = world.stranger("laptop");
        let this = Self { world, path, sshd, device };
        let enrolled = this.command(&["enroll", &this.sshd.url, "--device", "laptop"]).output();
        let enrolled =
            tokio::time::timeout(SOON, enrolled).await.expect("in time").expect("it runs");
        assert!(enrolled.status.success(), "{}", String::from_utf8_lossy(&enrolled.stderr));
        // An enrollment over SSH does not store a loopback address, so it is added here.
        let file = this.device.dir.join("servers/default/identity.json");
        let mut identity: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&file).expect("read")).expect("json");
        identity["addresses"] = vec![this.path.address.to_string()].into();
        std::fs::write(&file, identity.to_string()).expect("written");
        this
    }

    /// An `adit` command of this device.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = self.world.programs.command("adit", args);
        command.arg("--state-dir").arg(&self.device.dir).env("ADIT_SSH", &self.sshd.ssh);
        command
    }

    /// Starts `adit up` and waits until it is ready.
    pub async fn up(&self, flags: &[&str]) -> Up {
        let command = self.command(&[&["up", "-v", "--listen", "127.0.0.1:0"], flags].concat());
        let mut adit = Process::spawn(command, "adit").expect("it starts");
        adit.ready().await.expect("ready");
        let address = address_in(&adit.log()).expect("an address");
        Up { adit, address }
    }
}
