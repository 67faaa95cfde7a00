//! A server and a laptop with a lab between them: real processes, each in its own network.

use std::{
    net::{IpAddr, SocketAddr},
    process::Output,
    time::Duration,
};

use tokio::{io::AsyncWriteExt, process::Command, task::JoinSet};

use super::{Asked, Both, LOOPBACK, Lab, Link, SERVER};
use crate::{
    laptop::remote_aditd,
    ollama::Options,
    process::Process,
    raw,
    sshd::Sshd,
    world::{Device, SOON, Up, World},
};

/// aditd's port; its network has no other process.
pub const PORT: u16 = 11_435;

/// How a far world is built.
#[derive(Debug, Clone)]
pub struct Setting {
    pub link: Link,
    /// The seed of the path.
    pub seed: u64,
    /// How the laptop reaches the server.
    pub carrier: Carrier,
    /// The time between two tokens.
    pub token_interval: Duration,
    /// Whether the laptop is behind a NAT.
    pub nat: bool,
    /// Whether UDP is blocked from the beginning.
    pub udp_blocked: bool,
    /// More flags of `adit up`.
    pub up_flags: &'static [&'static str],
}

/// How a laptop reaches its server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carrier {
    /// By UDP; there is no sshd.
    Udp,
    /// By SSH; aditd listens only on loopback.
    Ssh,
    /// By either; UDP is preferred.
    Both,
}

impl Default for Setting {
    fn default() -> Self {
        Self {
            link: LOOPBACK,
            seed: 1,
            carrier: Carrier::Udp,
            token_interval: Duration::from_millis(50),
            nat: false,
            udp_blocked: false,
            up_flags: &[],
        }
    }
}

/// Both ends, and the path between them. Dropping it ends everything.
pub struct Far {
    pub up: Up,
    pub device: Device,
    /// The sshd that the laptop may log in to.
    pub sshd: Option<Sshd>,
    pub world: World,
    pub lab: Lab,
}

impl Far {
    /// Starts everything with the programs in the file `this`, and waits until the tunnel is up.
    pub async fn start(this: &str, setting: Setting) -> Self {
        Self::start_in(Lab::new(LOOPBACK, setting.seed), this, setting, &[]).await
    }

    /// Starts it in an existing lab, with flags of `aditd serve`.
    pub async fn start_in(lab: Lab, this: &str, setting: Setting, flags: &[&str]) -> Self {
        if setting.nat {
            lab.put_behind_nat();
        }
        let options = Options { token_interval: setting.token_interval, ..Options::default() };
        let listen_on = if setting.carrier == Carrier::Ssh {
            IpAddr::from([127, 0, 0, 1])
        } else {
            SERVER.into()
        };
        let listen = SocketAddr::new(listen_on, PORT).to_string();
        let flags = [&["--listen", listen.as_str(), "--allow-from", "0.0.0.0/0"], flags].concat();
        let world = lab.server.within(World::start_with(this, options, &flags)).await;
        let (device, sshd) = match setting.carrier {
            Carrier::Udp => (lab.client.within(world.device("laptop")).await, None),
            Carrier::Ssh | Carrier::Both => {
                let path = remote_aditd(&world);
                let sshd = lab
                    .server
                    .within(Sshd::start_at(SERVER.into(), &world.scratch("sshd"), &path))
                    .await;
                let enroll = ["enroll", sshd.url.as_str(), "--device", "laptop"];
                let device = world.stranger("laptop");
                let enrolled = run(&lab, adit(&world, &device, Some(&sshd), &enroll)).await;
                assert!(enrolled.status.success(), "{}", String::from_utf8_lossy(&enrolled.stderr));
                // Roles are not tested here.
                let admin = world.aditd(&["device", "role", "laptop", "admin"]).await;
                assert_eq!(admin.code, Some(0), "{}", admin.stderr);
                (device, Some(sshd))
            }
        };
        if setting.udp_blocked {
            lab.block_udp(true);
        }
        // On a bad link only the tunnel is tested: enrollment uses a good one.
        lab.set_link(setting.link);
        let command =
            [&["up", "-v", "--listen", "127.0.0.1:0", "--hold", "10m"], setting.up_flags].concat();
        let up = up(&lab, adit(&world, &device, sshd.as_ref(), &command)).await;
        Self { up, device, sshd, world, lab }
    }

    /// Restarts the server, on the same port.
    pub async fn restart_server(&mut self) {
        self.lab.server.within(self.world.restart_server()).await;
    }

    /// Kills the laptop's `adit up` and starts another one, without the setting's flags.
    pub async fn restart_adit(&mut self) {
        self.up.adit.kill().await;
        let command = ["up", "-v", "--listen", "127.0.0.1:0", "--hold", "10m"];
        let command = adit(&self.world, &self.device, self.sshd.as_ref(), &command);
        self.up = up(&self.lab, command).await;
    }

    /// Sends this request from an application on the laptop.
    pub async fn request(&self, request: Vec<u8>) -> Asked {
        Asked::on(self.lab.client.within(raw::connect(self.up.address)).await, request)
    }

    /// Asks, from an application on the laptop, for an answer of `tokens` tokens that depends only
    /// on `seed`.
    pub async fn ask(&self, tokens: i64, seed: u64) -> Asked {
        self.request(raw::generate(tokens, seed).into_bytes()).await
    }

    /// Uploads endlessly from an application on the laptop: the task ends only if it is cut or
    /// dropped.
    pub async fn upload(&self) -> JoinSet<()> {
        let mut app = self.lab.client.within(raw::connect(self.up.address)).await;
        let head = format!(
            "POST /api/blobs/sha256:{} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n",
            "0".repeat(64),
            1u64 << 40
        );
        let mut upload = JoinSet::new();
        upload.spawn(async move {
            let mut sent = app.write_all(head.as_bytes()).await;
            while sent.is_ok() {
                sent = app.write_all(&[0; 16 << 10]).await;
            }
        });
        upload
    }

    /// Asks for the same answer twice: through the tunnel, and directly.
    pub async fn ask_both(&self, tokens: i64, seed: u64) -> Both {
        self.twice(raw::generate(tokens, seed).into_bytes()).await
    }

    /// Sends a request through the tunnel, and directly.
    pub async fn twice(&self, request: Vec<u8>) -> Both {
        let beside = self.lab.server.within(raw::connect(self.world.ollama.addr())).await;
        Both { direct: Asked::on(beside, request.clone()), tunnelled: self.request(request).await }
    }

    /// Asserts that everything used one session.
    ///
    /// # Panics
    /// If it did not, with the client's log.
    pub fn is_one_session(&self) {
        let log = self.up.adit.log();
        assert_eq!(log.matches("connected to").count(), 1, "one session: {log}");
    }
}

/// A command on the laptop.
fn adit(world: &World, device: &Device, sshd: Option<&Sshd>, args: &[&str]) -> Command {
    let mut command = world.programs.command("adit", args);
    command.arg("--state-dir").arg(&device.dir);
    if let Some(sshd) = sshd {
        command.env("ADIT_SSH", &sshd.ssh);
    }
    command
}

async fn run(lab: &Lab, mut command: Command) -> Output {
    let output = lab.client.within(async { command.output().await });
    tokio::time::timeout(SOON * 4, output).await.expect("in time").expect("it runs")
}

async fn up(lab: &Lab, command: Command) -> Up {
    let mut adit = lab.client.inside(|| Process::spawn(command, "adit")).expect("adit starts");
    // On the worst links, and on a busy machine, this takes longer than elsewhere.
    if adit.ready().await.is_err() {
        adit.ready().await.expect("adit is ready");
    }
    let log = adit.log();
    let address =
        log.split("listening on http://").nth(1).and_then(|line| line.split_whitespace().next());
    let address = address
        .and_then(|address| address.parse().ok())
        .unwrap_or_else(|| panic!("no address in {log}"));
    Up { adit, address }
}
