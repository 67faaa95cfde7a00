//! Who has the port where tools look for Ollama. It is one port for all: each case has a network of its
//! own, with nobody else in it.

use std::{
    io::{Read, Write},
    net::TcpListener,
    sync::Arc,
};

use tests::{
    doctor::Diagnosis,
    lab::{Lab, Namespace},
    process::{Ended, Process},
    world::{Device, World},
};

use crate::PROGRAM;

/// A laptop in a network of its own, which reaches nobody.
struct Alone<'a> {
    world: &'a World,
    device: &'a Device,
    network: Namespace,
}

impl Alone<'_> {
    fn command(&self, args: &[&str]) -> tokio::process::Command {
        let mut command = self.world.programs.command("adit", args);
        command.arg("--state-dir").arg(&self.device.dir);
        command
    }

    async fn doctor(&self, args: &[&str]) -> Diagnosis {
        let mut command = self.command(&[&["doctor", "--json"], args].concat());
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        let child = self.network.inside(|| command.spawn()).expect("it starts");
        Diagnosis::of(Ended::from(child.wait_with_output().await.expect("it ends")))
    }

    async fn up(&self, args: &[&str]) -> Process {
        let command = self.command(&[&["up", "-v"], args].concat());
        let mut adit = self.network.inside(|| Process::spawn(command, "adit")).expect("it starts");
        adit.says("listening on http://").await;
        adit
    }

    /// A program that answers so at an address of this network, for as long as the test runs.
    fn answers(&self, address: &str, answer: &'static str) -> Arc<TcpListener> {
        let listener = Arc::new(self.network.inside(|| TcpListener::bind(address)).expect("bound"));
        let accepting = listener.clone();
        std::thread::spawn(move || {
            while let Ok((mut tcp, _)) = accepting.accept() {
                let _ = tcp.read(&mut [0; 1024]);
                let _ = tcp.write_all(answer.as_bytes());
            }
        });
        listener
    }
}

const OLLAMA: &str = "HTTP/1.0 200 OK\r\n\r\nOllama is running";

#[tokio::test(flavor = "multi_thread")]
async fn whoever_has_the_port_is_named_with_its_family_and_the_cures() {
    if Lab::is_missing() {
        return;
    }
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let alone =
        || Alone { world: &world, device: &device, network: Namespace::new().expect("a network") };

    let laptop = alone();
    let said = laptop.doctor(&[]).await;
    assert_eq!(said.found("port"), "11434 is free: `adit up` can listen there");
    said.names("adit", "warn", "`adit up` does not run", "adit up --state-dir '");

    let _ollama = laptop.answers("127.0.0.1:11434", OLLAMA);
    let said = laptop.doctor(&[]).await;
    said.names(
        "port",
        "bad",
        "127.0.0.1:11434 belongs to an Ollama of this laptop",
        "--listen localhost:11500",
    );
    said.names("port", "bad", "", "export OLLAMA_HOST=http://localhost:11500");
    said.names("port", "bad", "", "sudo systemctl disable --now ollama");

    let laptop = alone();
    let _other = laptop.answers("[::1]:11434", "hello");
    let _adit = laptop.up(&["--listen", "127.0.0.1:11434"]).await;
    let said = laptop.doctor(&[]).await;
    said.names("port", "bad", "[::1]:11434 belongs to another program", "--listen localhost:11500");
    assert_eq!(said.verdict("adit"), "ok");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adit_on_one_family_alone_and_another_adit_are_told() {
    if Lab::is_missing() {
        return;
    }
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let second = device.enroll(&world.invite("second").await, &["--name", "second"]).await;
    assert_eq!(second.code, Some(0), "{}", second.stderr);
    let network = Namespace::new().expect("a network");
    let laptop = Alone { world: &world, device: &device, network };
    for (listen, lacks) in [("127.0.0.1:11434", "[::1]:11434"), ("[::1]:11434", "127.0.0.1:11434")]
    {
        let mut adit = laptop.up(&["default", "--listen", listen]).await;
        let said = laptop.doctor(&["default"]).await;
        said.names("port", "warn", &format!("nobody on {lacks}"), "--listen localhost:11434");
        let said = laptop.doctor(&["second"]).await;
        let holder =
            format!("{listen} belongs to another adit, `adit up default` (pid {})", adit.pid());
        said.names("port", "bad", &holder, "adit down default");
        adit.kill().await;
    }
}
