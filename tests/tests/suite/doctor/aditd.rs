//! What `aditd doctor` says of its machine.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use tests::{
    cli_assert::{assert_no_defect, assert_ok},
    disk::SmallDisk,
    doctor::{Asked, Diagnosis, Upstream},
    ollama::Options,
    process::Programs,
    raw,
    state_files::{chmod, text},
    world::{SOON, World},
};

use crate::PROGRAM;

/// A machine without a server: `aditd doctor` looks at what it would find.
struct Machine {
    dir: tempfile::TempDir,
    programs: Programs,
}

impl Machine {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let programs = Programs::link(Path::new(PROGRAM), dir.path()).expect("links");
        fs::create_dir(dir.path().join("bin")).expect("a directory");
        let machine = Self { dir, programs };
        // Whatever this very machine has for services does not count.
        machine.program("systemctl", "exit 1");
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A program that is found before the system's own.
    fn program(&self, name: &str, script: &str) {
        let path = self.path("bin").join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("written");
        chmod(&path, 0o755);
    }

    /// What the doctor says with this configuration.
    async fn doctor(&self, config: &str) -> Diagnosis {
        let (state, file) = (self.path("state"), self.path("aditd.toml"));
        fs::write(&file, config).expect("written");
        let path = format!("{}:/usr/bin:/bin", self.path("bin").display());
        let mut command = self.programs.command("aditd", &["doctor", "--json"]);
        command.arg("--state-dir").arg(&state).arg("--config").arg(&file).env("PATH", path);
        let out = command.output().await.expect("it runs");
        let diagnosis = Diagnosis::of(out.into());
        assert_no_defect(&diagnosis.ended.stderr);
        diagnosis
    }

    /// What it says with this upstream.
    async fn with(&self, upstream: &Upstream) -> Diagnosis {
        self.doctor(&format!("upstream = 'http://{}'", upstream.address)).await
    }
}

/// A systemd that has a unit for Ollama alone, with this environment.
fn only_ollama(environment: &str) -> String {
    let said = "LoadState=loaded\\nMainPID=0\\nActiveState=active\\nUnitFileState=enabled\\n";
    format!("[ \"$2\" = ollama ] && printf '{said}Environment={environment}\\n'")
}

#[tokio::test]
async fn where_all_is_well_nothing_is_bad_and_people_read_it_in_groups() {
    let ollama = Upstream::ollama("127.0.0.1:0", |_| None).await;
    let upstream = format!("http://{}", ollama.address);
    let world = World::start_with(PROGRAM, Options::default(), &["--upstream", &upstream]).await;
    world.device("laptop").await;
    let diagnosis = Diagnosis::of(world.aditd(&["doctor", "--json"]).await);
    diagnosis.is_well();
    for id in [
        "aditd",
        "config",
        "box_state",
        "ollama",
        "exposed",
        "origins",
        "models",
        "audit",
        "devices",
    ] {
        assert_eq!(diagnosis.verdict(id), "ok", "{:#?}", diagnosis.line(id));
    }
    assert!(diagnosis.found("models").contains("llama3.2:latest (2 GiB)"), "{diagnosis:?}");
    let shown = world.aditd(&["doctor"]).await;
    assert_ok(&shown);
    assert!(shown.stdout.starts_with("The box\n  ok    aditd: version "), "{}", shown.stdout);
}

#[tokio::test]
async fn a_server_that_does_not_run_a_bad_file_and_open_keys_are_named_with_their_cures() {
    let machine = Machine::new();
    let state = machine.path("state");
    let args = ["init", "--state-dir", text(&state)];
    assert_ok(&machine.programs.run("aditd", &args, "").await.expect("it runs"));
    chmod(&state.join("ca.key"), 0o644);
    let diagnosis = machine.doctor("listen = ['127.0.0.1:1']\nmax_in_flight = 0\n").await;
    let serve = format!("aditd serve --state-dir '{}'", state.display());
    diagnosis.names("aditd", "bad", "does not run on the state in", &serve);
    let chmod = format!("chmod 600 '{}'", state.join("ca.key").display());
    diagnosis.names("box_state", "bad", "ca.key` can be read by other users (mode 644)", &chmod);
    assert_eq!(diagnosis.verdict("config"), "bad");
    assert!(diagnosis.found("config").contains("line 2"), "{diagnosis:?}");
    assert_eq!(diagnosis.found("box_certificate"), "not checked: needs `state`");
    assert_eq!(diagnosis.ended.code, Some(1));
}

#[tokio::test]
async fn whatever_is_wrong_with_ollama_is_told_apart() {
    let machine = Machine::new();
    let (_closed, closed) = raw::closed_port();
    let (silent, forbidding, other) = (
        Upstream::start("127.0.0.1:0", |_| None).await,
        Upstream::start("127.0.0.1:0", |_| Some((403, ""))).await,
        Upstream::start("127.0.0.1:0", |_| Some((200, "hello"))).await,
    );
    let of = async |address| machine.doctor(&format!("upstream = 'http://{address}'")).await;
    let gone = of(closed).await;
    let silent = of(silent.address).await;
    let forbidding = of(forbidding.address).await;
    let other = of(other.address).await;
    gone.names("ollama", "bad", "nothing listens at", "ollama serve");
    assert_eq!(gone.found("exposed"), "not checked: needs `Ollama`");
    silent.names("ollama", "bad", "no answer within 2 s", "curl -i http://");
    forbidding.names("ollama", "bad", "403 without a body", "sudo ss -ltnp");
    other.names("ollama", "bad", "that is not Ollama", "sudo ss -ltnp");
}

#[tokio::test]
async fn what_ollama_lets_in_besides_is_told_with_what_shuts_it_out() {
    let machine = Machine::new();
    let is_from = |asked: &Asked, what: &str| {
        asked.origin.as_deref().is_some_and(|origin| origin.contains(what))
    };
    let open = Upstream::ollama("127.0.0.1:0", move |asked| {
        is_from(asked, "example").then_some((200, r#"{"version":"1"}"#))
    });
    let shut = Upstream::ollama("127.0.0.1:0", move |asked| {
        is_from(asked, "extension").then_some((403, ""))
    });
    let empty = Upstream::ollama("127.0.0.1:0", |asked| {
        (asked.path == "/api/tags").then_some((200, r#"{"models":[]}"#))
    });
    let (open, shut, empty) = (open.await, shut.await, empty.await);
    let said = machine.with(&open).await;
    said.names(
        "origins",
        "warn",
        "any web page in a laptop's browser can use the GPU",
        "OLLAMA_ORIGINS='chrome-extension://*",
    );
    let said = machine.with(&shut).await;
    said.names(
        "origins",
        "warn",
        "a browser extension gets 403 without a body",
        "OLLAMA_ORIGINS='chrome-extension://*",
    );
    machine.with(&empty).await.names("models", "warn", "Ollama has none", "ollama pull llama3.2");
}

#[tokio::test]
async fn an_ollama_that_the_network_reaches_is_said_loudly() {
    let has_address = if_addrs_besides_loopback();
    if !has_address && tests::skip::skip_test("this machine has no address besides loopback") {
        return;
    }
    let machine = Machine::new();
    let open = Upstream::ollama("0.0.0.0:0", |_| None).await;
    let config = format!("upstream = 'http://127.0.0.1:{}'", open.address.port());
    let cure = format!("OLLAMA_HOST='127.0.0.1:{}' ollama serve", open.address.port());
    let said = machine.doctor(&config).await;
    said.names("exposed", "bad", "OPEN TO THE NETWORK. Ollama also answers at ", &cure);
    // As a service, its unit is what has to be changed.
    machine.program("systemctl", &only_ollama("OLLAMA_HOST=0.0.0.0"));
    let said = machine.doctor(&config).await;
    said.names("exposed", "bad", "OPEN TO THE NETWORK", "sudo install -D -m 644 /dev/stdin /etc/systemd/system/ollama.service.d/zz-ollama-host.conf");
}

fn if_addrs_besides_loopback() -> bool {
    // Whatever leads out has an address; nothing is sent.
    std::net::UdpSocket::bind("0.0.0.0:0")
        .and_then(|socket| socket.connect("192.0.2.1:9").and_then(|()| socket.local_addr()))
        .is_ok_and(|address| !address.ip().is_loopback() && !address.ip().is_unspecified())
}

#[tokio::test]
async fn more_requests_at_once_than_ollama_runs_are_told_with_both_cures() {
    let machine = Machine::new();
    machine.program("systemctl", &only_ollama("OLLAMA_NUM_PARALLEL=2 X=y"));
    let ollama = Upstream::ollama("127.0.0.1:0", |_| None).await;
    let config =
        |most: u32| format!("upstream = 'http://{}'\nmax_in_flight = {most}\n", ollama.address);
    let said = machine.doctor(&config(4)).await;
    said.names(
        "parallel",
        "warn",
        "4 requests (max_in_flight), and Ollama runs 2 of one model",
        "OLLAMA_NUM_PARALLEL=4",
    );
    said.names("parallel", "warn", "", "sed -i 's/^max_in_flight *=.*/max_in_flight = 2/'");
    assert_eq!(machine.doctor(&config(2)).await.verdict("parallel"), "ok");
}

#[tokio::test]
async fn a_unit_that_does_not_come_back_after_a_boot_is_told_with_its_command() {
    let machine = Machine::new();
    let unit = |load: &str, file: &str| {
        format!(
            "printf 'LoadState={load}\\nUnitFileState={file}\\nActiveState=inactive\\nMainPID=0\\nEnvironment=\\n'"
        )
    };
    machine.program("systemctl", &unit("loaded", "disabled"));
    let said = machine.doctor("").await;
    said.names("unit", "warn", "the unit is not enabled", "sudo systemctl enable aditd");
    said.names("aditd", "bad", "does not run", "sudo systemctl start aditd");
    machine.program("systemctl", &unit("not-found", ""));
    machine.doctor("").await.names(
        "unit",
        "warn",
        "systemd has no unit for aditd",
        "aditd service install",
    );
    // A user's own unit ends with the user's last login.
    machine.program(
        "systemctl",
        &format!(
            "if [ \"$1\" = --user ]; then {}; else {}; fi",
            unit("loaded", "enabled"),
            unit("not-found", "")
        ),
    );
    machine.program("loginctl", "echo Linger=no");
    machine.doctor("").await.names(
        "unit",
        "warn",
        "ends when that user logs out",
        "loginctl enable-linger ",
    );
    machine.program("loginctl", "echo Linger=yes");
    assert_eq!(machine.doctor("").await.verdict("unit"), "ok");
}

#[tokio::test]
async fn rules_of_the_owner_that_do_not_answer_or_take_long_are_told() {
    let machine = Machine::new();
    let (_closed, closed) = raw::closed_port();
    let good = Upstream::start("127.0.0.1:0", |_| Some((403, ""))).await;
    let of = async |address| machine.doctor(&format!("authorize = 'http://{address}/check'")).await;
    let said = of(closed).await;
    said.names(
        "authorize",
        "bad",
        "gives no answer",
        &format!("curl -i -d '{{}}' 'http://{closed}/check'"),
    );
    // A no is an answer.
    let said = of(good.address).await;
    assert_eq!(said.verdict("authorize"), "ok", "{said:?}");
    assert!(machine.doctor("").await.line("authorize").is_none());
    let slow = Duration::from_millis(400);
    let slow = Upstream::slow("127.0.0.1:0", slow, |_| Some((200, "{}"))).await;
    let said = of(slow.address).await;
    let by_hand = format!("curl -i -d '{{}}' 'http://{}/check'", slow.address);
    said.names("authorize", "warn", "ms to answer, and each request waits for it", &by_hand);
}

#[tokio::test]
async fn an_audit_log_that_cannot_be_written_is_told() {
    let world = World::start_configured(
        PROGRAM,
        Options::default(),
        &[],
        "audit_dir = '{dir}/world.toml/log'",
    )
    .await;
    let said = Diagnosis::of(world.aditd(&["doctor", "--json"]).await);
    said.names("audit", "bad", "can't be written", "ls -ld ");
    assert_eq!(said.ended.code, Some(1));
}

#[tokio::test]
async fn a_disk_that_is_nearly_full_is_told() {
    let Some(disk) = SmallDisk::mount("1m") else { return };
    let machine = Machine::new();
    let state = disk.path("state");
    fs::create_dir(&state).expect("a directory");
    chmod(&state, 0o700);
    let said =
        machine.programs.run("aditd", &["doctor", "--json", "--state-dir", text(&state)], "").await;
    let said = Diagnosis::of(said.expect("it runs"));
    said.names("disk", "bad", "free for the state", &format!("df -h '{}'", state.display()));
}

#[tokio::test]
async fn a_disk_that_is_full_under_the_audit_log_is_told_with_what_it_costs() {
    let Some(disk) = SmallDisk::mount("256k") else { return };
    let dir = disk.path("log");
    for (required, then) in
        [(false, "so nobody will know what was asked"), (true, "so every request gets 503")]
    {
        disk.free();
        let config = format!("audit_dir = '{}'\naudit_required = {required}\n", dir.display());
        let world = World::start_configured(PROGRAM, Options::default(), &[], &config).await;
        let up = world.up("laptop").await;
        disk.fill_but(0);
        // The server notices when it writes.
        let said = async {
            loop {
                raw::exchange(up.address, raw::ROOT).await;
                let said = Diagnosis::of(world.aditd(&["doctor", "--json"]).await);
                if said.verdict("audit") == "bad" {
                    return said;
                }
            }
        };
        let said = tokio::time::timeout(SOON, said).await.expect("it is noticed");
        let df = format!("df -h '{}'", dir.display());
        said.names("audit", "bad", then, &df);
        said.names("disk", "bad", "free for the audit log", &dir.display().to_string());
        assert_eq!(said.ended.code, Some(1));
    }
}
