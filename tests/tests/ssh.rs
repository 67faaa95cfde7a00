//! Through a real sshd: enrolling with one command, and a tunnel where no UDP port can be reached.

#![allow(missing_docs)]

use tests::{
    ollama::Options,
    process::Process,
    raw::{self, Ending},
    skip,
    sshd::Sshd,
    world::{Device, World},
};
use tokio::io::AsyncWriteExt;

const PROGRAM: &str = env!("CARGO_BIN_EXE_adit-demo");

fn there_is_no_sshd() -> bool {
    !Sshd::is_there() && skip::because("there is no OpenSSH server and client")
}

/// An `aditd` for remote commands that knows where the world's state is.
fn remote_aditd(world: &World) -> std::path::PathBuf {
    let dir = world.scratch("remote-bin");
    std::fs::create_dir_all(&dir).expect("a directory");
    let real = world.scratch("aditd");
    let (state, config) = (world.state(), world.config());
    let script = format!(
        "#!/bin/sh\nexport ADITD_STATE_DIR={} ADITD_CONFIG={}\nexec {} \"$@\"\n",
        state.display(),
        config.display(),
        real.display()
    );
    std::fs::write(dir.join("aditd"), script).expect("written");
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(dir.join("aditd"), executable).expect("chmod");
    dir
}

struct Laptop {
    device: Device,
    sshd: Sshd,
}

impl Laptop {
    async fn new(world: &World, authorized: &str) -> Self {
        let sshd = Sshd::start(&world.scratch("sshd"), authorized, &remote_aditd(world)).await;
        Self { device: world.stranger("laptop"), sshd }
    }

    fn command(&self, world: &World, args: &[&str]) -> tokio::process::Command {
        let mut command = world.programs.command("adit", args);
        command.arg("--state-dir").arg(&self.device.dir).env("ADIT_SSH", &self.sshd.ssh);
        command
    }

    async fn adit(&self, world: &World, args: &[&str]) -> std::process::Output {
        tokio::time::timeout(tests::world::SOON, self.command(world, args).output()).await.expect("in time").expect("it runs")
    }

    async fn up(&self, world: &World) -> tests::world::Up {
        let command = self.command(world, &["up", "-v", "--listen", "127.0.0.1:0"]);
        let mut adit = Process::spawn(command, "adit").expect("it starts");
        adit.ready().await.expect("ready");
        let log = adit.log();
        let address = log.split("listening on http://").nth(1).and_then(|l| l.split_whitespace().next());
        let address = address.and_then(|a| a.parse().ok()).expect("an address");
        tests::world::Up { adit, address }
    }
}

#[tokio::test]
async fn one_command_enrolls_and_the_tunnel_goes_where_only_sshd_is_reached() {
    if there_is_no_sshd() {
        return;
    }
    let world = World::start(PROGRAM).await;
    let laptop = Laptop::new(&world, "").await;
    let enrolled = laptop.adit(&world, &["enroll", &laptop.sshd.url, "--device", "laptop"]).await;
    let said = String::from_utf8_lossy(&enrolled.stderr).into_owned();
    assert!(enrolled.status.success() && said.contains("Enrolled as laptop"), "{said}");
    let up = laptop.up(&world).await;
    let answer = raw::exchange(up.address, "GET / HTTP/1.0\r\n\r\n").await;
    assert!(answer.ends_with("Ollama is running"), "{answer}");
    let status = laptop.device.status().await;
    assert_eq!(status["tunnel"]["carrier"], "ssh", "the server advertises loopback alone: {status}");
}

#[tokio::test]
async fn an_answer_survives_the_death_of_its_ssh_connection_byte_for_byte() {
    if there_is_no_sshd() {
        return;
    }
    let world = World::start_with(PROGRAM, Options::default(), &[]).await;
    let mut laptop = Laptop::new(&world, "").await;
    assert!(laptop.adit(&world, &["enroll", &laptop.sshd.url, "--device", "laptop"]).await.status.success());
    let mut up = laptop.up(&world).await;
    let mut app = raw::connect(up.address).await;
    app.write_all(raw::generate(150, 8).as_bytes()).await.expect("sent");
    let mut answer = raw::read_exactly(&mut app, 800).await;
    laptop.sshd.kill();
    up.adit.says("ssh has ended").await;
    laptop.sshd.restart().await;
    let (rest, ending) = raw::read_to_end(&mut app).await;
    answer.extend(rest);
    assert_eq!(ending, Ending::Closed);
    let direct = raw::exchange(world.ollama.addr(), &raw::generate(150, 8)).await;
    assert_eq!(raw::without_date(&String::from_utf8_lossy(&answer)), raw::without_date(&direct));
    assert_eq!(up.adit.log().matches("connected to").count(), 1, "one session: {}", up.adit.log());
}

#[tokio::test]
async fn a_key_that_may_do_nothing_but_relay_is_enough_for_the_tunnel() {
    if there_is_no_sshd() {
        return;
    }
    let world = World::start(PROGRAM).await;
    let laptop = Laptop::new(&world, "").await;
    assert!(laptop.adit(&world, &["enroll", &laptop.sshd.url, "--device", "laptop"]).await.status.success());
    let keys = world.scratch("sshd").join("authorized_keys");
    let key = std::fs::read_to_string(&keys).expect("a key");
    std::fs::write(&keys, format!("restrict,command=\"aditd relay\" {}", key.trim())).expect("written");
    let up = laptop.up(&world).await;
    let answer = raw::exchange(up.address, "GET / HTTP/1.0\r\n\r\n").await;
    assert!(answer.ends_with("Ollama is running"), "{answer}");
}

#[tokio::test]
async fn what_fails_over_ssh_says_whether_it_was_ssh_or_aditd_and_keeps_nothing() {
    if there_is_no_sshd() {
        return;
    }
    let world = World::start(PROGRAM).await;
    let mut laptop = Laptop::new(&world, "").await;
    let url = laptop.sshd.url.clone();
    let said = async |laptop: &Laptop, args: &[&str]| {
        let out = laptop.adit(&world, &[&["enroll", url.as_str(), "--device", "laptop"], args].concat()).await;
        assert_eq!(out.status.code(), Some(1));
        String::from_utf8_lossy(&out.stderr).into_owned()
    };
    let absent = said(&laptop, &["--remote-command", "/nowhere/aditd"]).await;
    assert!(absent.contains("there is no aditd on") && absent.contains("--remote-command"), "{absent}");
    assert_eq!(world.aditd(&["invite", "other"]).await.code, Some(0));
    world.device("taken").await;
    let out = laptop.adit(&world, &["enroll", &url, "--device", "taken"]).await;
    let taken = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(taken.contains("there is a device `taken` already"), "{taken}");
    laptop.sshd.kill();
    let dead = said(&laptop, &[]).await;
    assert!(dead.contains("Connection refused") && dead.contains("try by hand"), "{dead}");
    assert!(!laptop.device.dir.join("servers/default/identity.json").exists());
}
