//! Findings of a laptop, and the line and cure that each is told.

use super::{ports::Holder, *};
use crate::{
    doctor::{
        Group, Line, Report, Verdict,
        breakage::{Breakage, assert_each_is_named},
        examine,
    },
    failure::Exit,
};

const NOW: i64 = clock::RELEASED + 86_400;
const WANTED: u64 = 4 << 20;

/// A laptop where all is well and `adit up` runs.
fn well() -> LaptopFound {
    let at = |text: &str| text.parse().expect("an address");
    LaptopFound {
        version: "1.0.0".to_owned(),
        now: NOW,
        argument: " lab".to_owned(),
        flag: " --name lab".to_owned(),
        profile: Ok(ProfileFound {
            server: "lab".parse().expect("a name"),
            device: "laptop 0e6f-5090".to_owned(),
            valid: (NOW - 100, NOW + 86_400 * 20),
            recovers_for: 90 * 86_400,
            revoked: None,
        }),
        key: Some(KeyFound { place: "in the token `t`, as `adit-lab`".to_owned(), wrong: None }),
        state: Vec::new(),
        settings: Ok(None),
        state_dir: "/home/me/.local/share/adit".to_owned(),
        adit: AditFound::Running {
            pid: 77,
            version: "1.0.0".to_owned(),
            listening: vec![at("127.0.0.1:11434"), at("[::1]:11434")],
            stopping: false,
        },
        ports: vec![
            Port { address: at("127.0.0.1:11434"), holder: Holder::This },
            Port { address: at("[::1]:11434"), holder: Holder::This },
        ],
        environment: Environment::default(),
        buffers: Some(Buffers { wanted: WANTED, rmem_max: WANTED, wmem_max: WANTED }),
        free: Some(1 << 40),
    }
}

fn lines(found: &LaptopFound) -> Vec<Line> {
    let mut lines = Vec::new();
    examine(Group::Laptop, &CHECKS, found, &mut lines);
    lines
}

fn stopped(mut found: LaptopFound) -> LaptopFound {
    found.adit = AditFound::NotRunning;
    found.ports.iter_mut().for_each(|port| port.holder = Holder::Nobody);
    found
}

#[test]
fn where_all_is_well_each_line_is_ok() {
    let lines = lines(&well());
    assert_eq!(lines.len(), CHECKS.len());
    assert!(
        lines.iter().all(|line| line.verdict == Verdict::Ok && line.cures.is_empty()),
        "{lines:#?}"
    );
}

/// What is changed, the check that says so, its verdict, a part of its line, and its first command.
const BREAKAGES: [Breakage<LaptopFound>; 27] = [
    (
        |found| {
            let wrong = Failure::new("this user may not use the TPM at `/dev/tpmrm0`")
                .hint("join the group that may: `sudo usermod --append --groups tss me`");
            found.key = Some(KeyFound { place: "in the TPM".to_owned(), wrong: Some(wrong) });
        },
        "key",
        Verdict::Bad,
        "this user may not use the TPM at `/dev/tpmrm0`",
        "sudo usermod --append --groups tss me",
    ),
    (
        |found| {
            found.settings = Err(Failure::new("the configuration `/x.toml` is wrong")
                .source("TOML parse error at line 3, column 1\n  |\n3 | hol = 1\n  | ^^^\nunknown field `hol`")
                .hint("did you mean `hold`?"))
        },
        "settings",
        Verdict::Bad,
        "the configuration `/x.toml` is wrong: line 3, column 1: unknown field `hol` did you mean `hold`?",
        "adit config",
    ),
    (
        |found| {
            *found = stopped(found.clone());
            found.adit = AditFound::Running {
                pid: 5,
                version: "1.0.0".to_owned(),
                listening: Vec::new(),
                stopping: false,
            };
        },
        "adit",
        Verdict::Warn,
        "a tunnel of `adit run` is open (pid 5)",
        "adit up lab",
    ),
    (
        |found| found.free = Some(20 << 20),
        "laptop_disk",
        Verdict::Warn,
        "only 20 MiB free for the state (`/home/me/.local/share/adit`)",
        "df -h /home/me/.local/share/adit",
    ),
    (
        |found| found.free = Some(4096),
        "laptop_disk",
        Verdict::Bad,
        "can't enroll, and its certificate can't renew itself",
        "df -h /home/me/.local/share/adit",
    ),
    (
        |found| {
            found.state.push(
                Failure::new("`/x` can be read by other users (mode 644)")
                    .hint("if nobody has copied it: `chmod 600 '/x'`"),
            )
        },
        "state",
        Verdict::Bad,
        "`/x` can be read by other users (mode 644)",
        "chmod 600 '/x'",
    ),
    (
        |found| {
            found.profile = Err(Failure::new("this device is not enrolled")
                .hint("on the server run `aditd invite NAME`, then here `adit enroll`"))
        },
        "identity",
        Verdict::Bad,
        "this device is not enrolled",
        "aditd invite NAME",
    ),
    (
        |found| {
            found.profile.as_mut().expect("a profile").revoked = Some(Revocation::default());
        },
        "identity",
        Verdict::Bad,
        "which has revoked it",
        "aditd device restore laptop",
    ),
    (
        |found| {
            let user = Some("alice".parse().expect("a name"));
            found.profile.as_mut().expect("a profile").revoked =
                Some(Revocation { user, reason: None });
        },
        "identity",
        Verdict::Bad,
        "which has revoked its user `alice`",
        "aditd user restore alice",
    ),
    (
        |found| found.now = 7,
        "clock",
        Verdict::Bad,
        "1970-01-01T00:00:07Z",
        "sudo timedatectl set-ntp true",
    ),
    (
        |found| found.profile.as_mut().expect("a profile").valid = (NOW + 5, NOW + 9),
        "certificate",
        Verdict::Bad,
        "it is valid from 2026-11-02T00:00:05Z",
        "sudo timedatectl set-ntp true",
    ),
    (
        |found| found.profile.as_mut().expect("a profile").valid = (NOW - 9, NOW - 5),
        "certificate",
        Verdict::Warn,
        "renews itself at the next connection",
        "adit up lab",
    ),
    (
        |found| found.profile.as_mut().expect("a profile").valid = (7, 8),
        "certificate",
        Verdict::Bad,
        "too long ago",
        "aditd device revoke laptop && aditd device forget laptop && aditd invite laptop",
    ),
    (
        |found| *found = stopped(found.clone()),
        "adit",
        Verdict::Warn,
        "`adit up` does not run",
        "adit up lab",
    ),
    (
        |found| found.version = "2.0.0".to_owned(),
        "adit",
        Verdict::Warn,
        "is version 1.0.0, and this is 2.0.0",
        "adit down lab && adit up lab",
    ),
    (
        |found| {
            *found = stopped(found.clone());
            found.ports[0].holder = Holder::Ollama("`ollama` (pid 812)".to_owned());
        },
        "port",
        Verdict::Bad,
        "127.0.0.1:11434 belongs to an Ollama of this laptop, `ollama` (pid 812): `adit up` can't listen there",
        "adit up lab --listen localhost:11500",
    ),
    (
        |found| {
            *found = stopped(found.clone());
            found
                .ports
                .iter_mut()
                .for_each(|port| port.holder = Holder::Adit("`adit up other` (pid 9)".to_owned()));
        },
        "port",
        Verdict::Bad,
        "127.0.0.1:11434 and [::1]:11434 belong to another adit, `adit up other` (pid 9)",
        "adit up lab --listen localhost:11500",
    ),
    (
        |found| found.ports[1].holder = Holder::Other(String::new()),
        "port",
        Verdict::Bad,
        "[::1]:11434 belongs to another program: a tool that takes `localhost` for that one does not reach adit",
        "adit up lab --listen localhost:11500",
    ),
    (
        |found| found.ports[1].holder = Holder::Nobody,
        "port",
        Verdict::Warn,
        "adit listens on 127.0.0.1:11434 alone, and nobody on [::1]:11434",
        "adit down lab && adit up lab --listen localhost:11434",
    ),
    (
        |found| found.ports[0].holder = Holder::Nobody,
        "port",
        Verdict::Warn,
        "adit listens on [::1]:11434 alone, and nobody on 127.0.0.1:11434",
        "adit down lab && adit up lab --listen localhost:11434",
    ),
    (
        |found| found.environment.ollama_host = Some("gpu.lan".to_owned()),
        "ollama_host",
        Verdict::Warn,
        "`gpu.lan` sends `ollama` to gpu.lan:11434, past adit",
        "unset OLLAMA_HOST",
    ),
    (
        |found| found.environment.ollama_host = Some("http://me:secret@localhost".to_owned()),
        "ollama_host",
        Verdict::Warn,
        "sends `ollama` to",
        "unset OLLAMA_HOST",
    ),
    (
        |found| {
            let AditFound::Running { listening, .. } = &mut found.adit else { return };
            listening.iter_mut().for_each(|address| address.set_port(11500));
            found.ports.iter_mut().for_each(|port| port.address.set_port(11500));
        },
        "ollama_host",
        Verdict::Warn,
        "tools go to localhost:11434, and adit listens on port 11500",
        "export OLLAMA_HOST=http://localhost:11500",
    ),
    (
        |found| {
            found.environment.proxy =
                Some(("HTTP_PROXY".to_owned(), "http://me:secret@proxy:3128".to_owned()))
        },
        "proxy",
        Verdict::Warn,
        "HTTP_PROXY sends the requests of tools to http://proxy:3128, and NO_PROXY does not leave out localhost and 127.0.0.1",
        "export NO_PROXY='localhost,127.0.0.1,::1' no_proxy='localhost,127.0.0.1,::1'",
    ),
    (
        |found| {
            found.environment.proxy = Some(("http_proxy".to_owned(), "proxy:3128".to_owned()));
            found.environment.no_proxy = Some("corp.example, localhost".to_owned());
        },
        "proxy",
        Verdict::Warn,
        "does not leave out 127.0.0.1",
        "export NO_PROXY='corp.example,localhost,127.0.0.1,::1' no_proxy='corp.example,localhost,127.0.0.1,::1'",
    ),
    (
        |found| {
            found.buffers = Some(Buffers { wanted: WANTED, rmem_max: 212_992, wmem_max: WANTED })
        },
        "laptop_buffers",
        Verdict::Warn,
        "208 KiB for receiving, 4 MiB for sending",
        "sudo sysctl -w net.core.rmem_max=4194304",
    ),
    (
        |found| {
            found.adit = AditFound::Unasked(
                Failure::new("cannot ask the running process")
                    .hint("look at it with `ls -ld '/x'`"),
            )
        },
        "adit",
        Verdict::Bad,
        "cannot ask the running process",
        "ls -ld '/x'",
    ),
];

#[test]
fn each_breakage_is_named_with_its_cure() {
    assert_each_is_named(&BREAKAGES, well, lines);
}

#[test]
fn what_is_set_right_is_no_breakage() {
    let mut found = stopped(well());
    found.environment = Environment {
        proxy: Some(("HTTP_PROXY".to_owned(), "http://proxy:3128".to_owned())),
        no_proxy: Some(".localhost,127.0.0.1".to_owned()),
        ollama_host: Some("http://[::1]:11434".to_owned()),
    };
    found.ports[1].holder = Holder::Absent;
    let lines = lines(&found);
    let of = |id| lines.iter().find(|line| line.id == id).map(|line| line.verdict);
    assert_eq!([of("proxy"), of("ollama_host"), of("port")], [Some(Verdict::Ok); 3], "{lines:#?}");
}

#[test]
fn a_revoked_device_ends_with_its_own_exit_code_and_hides_what_depends_on_it() {
    let mut found = well();
    found.profile.as_mut().expect("a profile").revoked = Some(Revocation::default());
    let report = Report::new("1", lines(&found));
    assert_eq!(report.exit(), Some(Exit::NotAllowed));
    let certificate = report.lines.iter().find(|line| line.id == "certificate").expect("a line");
    assert_eq!(certificate.found, "not checked: needs `device`");
}
