//! Findings of a way, and the line and cure that each is told.

use super::*;
use crate::{
    doctor::{
        Group, Line, Report, Verdict,
        breakage::{Breakage, assert_each_is_named},
        examine,
    },
    failure::{Exit, Failure},
};

const NOW: i64 = clock::RELEASED + 86_400;

/// A way where all is well, and `adit up` runs.
fn well() -> WayFound {
    WayFound {
        version: "1.0.0".to_owned(),
        argument: String::new(),
        address: "127.0.0.1:11434".to_owned(),
        names: vec![("gpu.lan".to_owned(), Ok(vec!["192.0.2.7".parse().expect("an address")]))],
        udp: Some(Udp::Answers {
            remote: "192.0.2.7:11435".to_owned(),
            rtt: Duration::from_millis(18),
        }),
        ssh: Some(Ssh {
            to: "me@gpu".to_owned(),
            login: Ok(LoginFound {
                by: "the key `/home/me/.ssh/id_ed25519`".to_owned(),
                command: SshCommand::Any,
                forwards: Some(Ok(())),
            }),
        }),
        expired: false,
        session: Ok(SessionFound {
            quiet_seconds: 0,
            carrier: "udp".to_owned(),
            remote: "192.0.2.7:11435".to_owned(),
            seconds: 3600,
            why_not_other: "UDP is preferred".to_owned(),
            drops_ecn_marks: false,
            server_version: "1.0.0".to_owned(),
            mtu: 1452,
            batches_refused: 0,
            redundancy_for_loss: None,
            probe: Ok(ProbeFound {
                shortest: 17.0,
                middle: 18.0,
                longest: 25.0,
                sent: 40,
                lost: 0,
                ahead: 40,
                now: NOW,
            }),
        }),
        request: Some(RequestFound::Answered("0.33.0".to_owned())),
    }
}

fn lines(found: &WayFound) -> Vec<Line> {
    let mut lines = Vec::new();
    examine(Group::Way, &CHECKS, found, &mut lines);
    lines
}

fn up(found: &mut WayFound) -> &mut SessionFound {
    found.session.as_mut().expect("a session")
}

fn probed(found: &mut WayFound) -> &mut ProbeFound {
    up(found).probe.as_mut().expect("a probe")
}

fn login(found: &mut WayFound) -> &mut LoginFound {
    found.ssh.as_mut().expect("SSH").login.as_mut().expect("a login")
}

#[test]
fn where_all_is_well_each_line_is_ok() {
    let lines = lines(&well());
    assert_eq!(lines.len(), CHECKS.len());
    assert!(
        lines.iter().all(|line| line.verdict == Verdict::Ok && line.cures.is_empty()),
        "{lines:#?}"
    );
    let mut by_code = well();
    (by_code.ssh, by_code.names, by_code.request) = (None, Vec::new(), None);
    let lines = super::tests::lines(&by_code);
    assert_eq!(lines.len(), CHECKS.len() - 1);
    assert!(lines.iter().all(|line| line.verdict == Verdict::Ok), "{lines:#?}");
}

/// What is changed, the check that says so, its verdict, a part of its line, and its first command.
const BREAKAGES: [Breakage<WayFound>; 23] = [
    (
        |found| up(found).quiet_seconds = 21,
        "session",
        Verdict::Bad,
        "no answer for 21s; the session of 1h is kept",
        "adit status --watch",
    ),
    (
        |found| (found.expired, found.session) = (true, Err(Failure::new("x"))),
        "session",
        Verdict::NotChecked,
        "needs a certificate that has not ended",
        "adit up",
    ),
    (
        |found| {
            found.names[0].1 = Err("Name or service not known".to_owned());
            (found.udp, found.ssh) = (Some(Udp::Silent(vec!["gpu.lan:11435".to_owned()])), None);
        },
        "names",
        Verdict::Bad,
        "`gpu.lan` can't be looked up: Name or service not known",
        "getent hosts gpu.lan",
    ),
    (
        |found| found.names[0].1 = Err("x".to_owned()),
        "names",
        Verdict::Warn,
        "can't be looked up",
        "getent hosts gpu.lan",
    ),
    (
        |found| {
            (found.udp, found.ssh) = (Some(Udp::Silent(vec!["192.0.2.7:11435".to_owned()])), None)
        },
        "udp",
        Verdict::Bad,
        "no answer from 192.0.2.7:11435",
        "aditd status",
    ),
    (
        |found| found.udp = Some(Udp::Silent(vec!["192.0.2.7:11435".to_owned()])),
        "udp",
        Verdict::Warn,
        "no answer from 192.0.2.7:11435",
        "aditd status",
    ),
    (
        |found| {
            found.udp = Some(Udp::Failed(
                Failure::new("cannot reach 192.0.2.7:11435: refused").hint("`aditd serve`"),
            ));
            found.ssh = None;
        },
        "udp",
        Verdict::Bad,
        "cannot reach 192.0.2.7:11435: refused",
        "aditd serve",
    ),
    (
        |found| {
            let denied = Failure::new("me@gpu does not let this computer in (it takes: publickey)");
            found.ssh.as_mut().expect("SSH").login =
                Err(denied.hint("let the host know a key of this computer: `ssh-copy-id me@gpu`"));
            found.udp = None;
        },
        "ssh",
        Verdict::Bad,
        "does not let this computer in",
        "ssh-copy-id me@gpu",
    ),
    (
        |found| {
            let locked =
                Failure::new("me@gpu does not let this computer in; locked with a passphrase: /k");
            found.ssh.as_mut().expect("SSH").login =
                Err(locked.hint("put the key into the agent: `ssh-add '/k'`"));
        },
        "ssh",
        Verdict::Warn,
        "locked with a passphrase",
        "ssh-add '/k'",
    ),
    (
        |found| {
            login(found).command = SshCommand::Nothing(
                Failure::new("there is no aditd on me@gpu").hint("start it with `aditd serve`"),
            );
            login(found).forwards = Some(Err("it refuses to forward".to_owned()));
            found.udp = None;
        },
        "ssh",
        Verdict::Bad,
        "there is no aditd on me@gpu",
        "aditd serve",
    ),
    (
        |found| {
            found.session = Err(Failure::new("this device was revoked")
                .hint("on the server run `aditd invite laptop`")
                .exit(Exit::NotAllowed))
        },
        "session",
        Verdict::Bad,
        "this device was revoked",
        "aditd invite laptop",
    ),
    (
        |found| up(found).server_version = "0.9.0".to_owned(),
        "version",
        Verdict::Warn,
        "adit 1.0.0 and aditd 0.9.0",
        "cargo install --locked --path client",
    ),
    (
        |found| probed(found).lost = 4,
        "probe",
        Verdict::Warn,
        "4 of 40 packets lost",
        "ping -c 20 192.0.2.7",
    ),
    (
        |found| probed(found).longest = 400.0,
        "probe",
        Verdict::Warn,
        "up to 383 ms of it is a queue",
        "ping -c 20 192.0.2.7",
    ),
    (
        |found| probed(found).ahead = 86_400_000,
        "skew",
        Verdict::Warn,
        "the box's is 1d ahead of this laptop's",
        "timedatectl",
    ),
    (
        |found| probed(found).ahead = -1_000 * NOW,
        "skew",
        Verdict::Bad,
        "the box's is wrong",
        "sudo timedatectl set-ntp true",
    ),
    (
        |found| (probed(found).now, probed(found).ahead) = (7, 1_000 * NOW),
        "skew",
        Verdict::Bad,
        "this laptop's is wrong",
        "sudo timedatectl set-ntp true",
    ),
    (
        |found| up(found).mtu = 1200,
        "mtu",
        Verdict::Warn,
        "up to 1200 bytes arrive, and no longer ones",
        "tracepath 192.0.2.7",
    ),
    (
        |found| up(found).redundancy_for_loss = Some(0.08),
        "probe",
        Verdict::Warn,
        "of about the last minute the link loses 8.0 % of the packets, so small ones are sent twice",
        "ping -c 20 192.0.2.7",
    ),
    (
        |found| up(found).batches_refused = 3,
        "mtu",
        Verdict::Warn,
        "refuses batches of datagrams (GSO)",
        "sudo ethtool -K \"$(ip -o route get 192.0.2.7 | sed 's/.* dev \\([^ ]*\\).*/\\1/')\" tx-udp-segmentation off",
    ),
    (
        |found| {
            found.request =
                Some(RequestFound::Failed(502, "adit: Ollama is not running".to_owned()))
        },
        "request",
        Verdict::Bad,
        "502: adit: Ollama is not running",
        "curl -i http://127.0.0.1:11434/api/version",
    ),
    (
        |found| found.request = Some(RequestFound::Unknown(Some(403))),
        "request",
        Verdict::Bad,
        "403 without a body",
        "aditd doctor",
    ),
    (
        |found| found.request = Some(RequestFound::Silent("no answer in 3 s".to_owned())),
        "request",
        Verdict::Bad,
        "no answer in 3 s",
        "curl -i http://127.0.0.1:11434/api/version",
    ),
];

#[test]
fn each_breakage_is_named_with_its_cure() {
    assert_each_is_named(&BREAKAGES, well, lines);
}

#[test]
fn keys_that_are_limited_as_the_readme_says_are_fine_and_named_as_what_they_are() {
    for (command, forwards, says) in [
        (SshCommand::Relay, Some(Err("no".to_owned())), "limited to the relay (a forced command)"),
        (SshCommand::Nothing(Failure::new("x")), Some(Ok(())), "which may only forward"),
        (SshCommand::Any, Some(Err("it refuses".to_owned())), "and not forward (it refuses)"),
        (SshCommand::Any, None, "by the key `/home/me/.ssh/id_ed25519`, which may run aditd"),
        (SshCommand::Older, None, "has no `doctor`"),
    ] {
        let mut found = well();
        (login(&mut found).command, login(&mut found).forwards) = (command, forwards);
        let line = lines(&found).into_iter().find(|line| line.id == "ssh").expect("a line");
        assert_eq!(line.verdict, Verdict::Ok);
        assert!(line.found.contains(says), "{line:#?}");
    }
}

#[test]
fn without_a_tunnel_nothing_is_said_of_it_and_a_device_that_is_refused_ends_with_its_own_code() {
    let mut found = well();
    found.session = Err(Failure::new("this device was revoked").exit(Exit::NotAllowed));
    let report = Report::new("1", lines(&found));
    assert_eq!(report.exit(), Some(Exit::NotAllowed));
    assert_eq!(report.count(Verdict::NotChecked), 6);
    let mut old = well();
    up(&mut old).probe = Err("an aditd that has `doctor`".to_owned());
    let line = lines(&old).into_iter().find(|line| line.id == "probe").expect("a line");
    assert_eq!(line.found, "not checked: needs an aditd that has `doctor`");
}
