//! Findings about what starts and stops, and about what it writes: the unit, the audit log, the sockets.

use super::*;

fn unit_of(found: &mut BoxFound) -> &mut Unit {
    found.unit.as_mut().expect("a unit")
}

pub(super) fn state_of(found: &mut BoxFound) -> &mut UnitState {
    unit_of(found).state.as_mut().expect("a state")
}

fn refuse_batches(found: &mut BoxFound, to: &str) {
    let ServerFound::Running { batches_refused, refused_to, .. } = &mut found.server else {
        panic!("it runs");
    };
    (*batches_refused, *refused_to) = (1, Some(to.parse().expect("an address")));
}

const BREAKAGES: [Breakage<BoxFound>; 17] = [
    (
        |found| unit_of(found).state = None,
        "unit",
        Verdict::Warn,
        "does not come back after a boot",
        "sudo aditd service install",
    ),
    (
        |found| state_of(found).enabled = false,
        "unit",
        Verdict::Warn,
        "is not enabled",
        "sudo systemctl enable aditd",
    ),
    (
        |found| {
            state_of(found).is_users = true;
            unit_of(found).user = "me".to_owned();
        },
        "unit",
        Verdict::Warn,
        "ends when that user logs out",
        "loginctl enable-linger me",
    ),
    (
        |found| state_of(found).active = "failed".to_owned(),
        "unit",
        Verdict::Bad,
        "has failed",
        "sudo journalctl -u aditd -n 20",
    ),
    (
        |found| {
            *state_of(found) =
                UnitState { is_users: true, enabled: false, active: "failed".to_owned() };
        },
        "unit",
        Verdict::Bad,
        "has failed",
        "journalctl --user -u aditd -n 20",
    ),
    (
        |found| {
            found.unit = None;
            found.argument = " --state-dir '/x'".to_owned();
            found.version = "2.0.0".to_owned();
        },
        "aditd",
        Verdict::Warn,
        "version 1.0.0 runs (pid 7), and version 2.0.0 is installed",
        "aditd replace --state-dir '/x'",
    ),
    (
        |found| {
            state_of(found).is_users = true;
            found.certificate = Some((NOW - 1, NOW));
        },
        "box_certificate",
        Verdict::Bad,
        "a new one is made at the start",
        "systemctl --user restart aditd",
    ),
    (
        |found| found.audit.as_mut().expect("a log").failing = Some("no space left".to_owned()),
        "audit",
        Verdict::Bad,
        "`/var/log/adit` can't be written: no space left; so nobody will know",
        "df -h '/var/log/adit'",
    ),
    (
        |found| {
            let audit = found.audit.as_mut().expect("a log");
            audit.failing = Some("no space left".to_owned());
            audit.cure = Some("free some disk space".to_owned());
        },
        "audit",
        Verdict::Bad,
        "is the disk full?",
        "df -h '/var/log/adit'",
    ),
    (
        |found| {
            let audit = found.audit.as_mut().expect("a log");
            audit.failing = Some("it belongs to another user (uid 0)".to_owned());
            audit.cure = Some("if you know it: `sudo chown 7 '/var/log/adit'`".to_owned());
        },
        "audit",
        Verdict::Bad,
        "belongs to another user",
        "sudo chown 7 '/var/log/adit'",
    ),
    (
        |found| found.audit.as_mut().expect("a log").lost = 2,
        "audit",
        Verdict::Warn,
        "2 lines lost since the start; it can be written now",
        "df -h '/var/log/adit'",
    ),
    (
        |found| refuse_batches(found, "::ffff:192.168.1.9"),
        "box_buffers",
        Verdict::Warn,
        "until the next boot; then start aditd again",
        "sudo ethtool -K \"$(ip -o route get 192.168.1.9 | sed 's/.* dev \\([^ ]*\\).*/\\1/')\" tx-udp-segmentation off",
    ),
    (
        |found| refuse_batches(found, "fd00::9"),
        "box_buffers",
        Verdict::Warn,
        "refuses batches of datagrams (GSO)",
        "sudo ethtool -K \"$(ip -o route get fd00::9 | sed 's/.* dev \\([^ ]*\\).*/\\1/')\" tx-udp-segmentation off",
    ),
    (
        |found| {
            found.buffers = Some(laptop::Buffers { wanted: 8, rmem_max: 4, wmem_max: 8 });
        },
        "box_buffers",
        Verdict::Warn,
        "then start aditd again",
        "sudo sysctl -w net.core.rmem_max=8",
    ),
    (
        |found| found.sandbox = Some(Sandbox::default()),
        "sandbox",
        Verdict::Warn,
        "off (`sandbox = false` or --no-sandbox)",
        "sudo systemctl restart aditd",
    ),
    (
        |found| found.sandbox = Some(Sandbox::of(0, true)),
        "sandbox",
        Verdict::Warn,
        "this kernel cannot limit files, TCP ports, signals",
        "sudo cat /sys/kernel/security/lsm",
    ),
    (
        |found| {
            let failed = vec!["seccomp failed: Operation not permitted".to_owned()];
            found.sandbox = Some(Sandbox { failed, ..Sandbox::of(7, false) });
        },
        "sandbox",
        Verdict::Warn,
        "so nothing limits system calls",
        "sudo systemctl restart aditd",
    ),
];

#[test]
fn an_older_kernel_that_limits_files_and_system_calls_is_well() {
    let found = BoxFound { sandbox: Some(Sandbox::of(1, true)), ..well() };
    let line = lines(&found).into_iter().find(|line| line.id == "sandbox").expect("a line");
    assert_eq!(line.verdict, Verdict::Ok);
    assert!(line.found.contains("this kernel cannot limit TCP ports"), "{line:?}");
}

#[test]
fn each_breakage_is_named_with_a_cure() {
    assert_each_is_named(&BREAKAGES, well, lines);
}

#[test]
fn a_setting_that_may_be_there_already_is_changed_and_not_added_again() {
    let cures = |is_users: bool| {
        let mut found = well();
        found.ollama.answer = VersionAnswer::Refused;
        state_of(&mut found).is_users = is_users;
        if let ServerFound::Running { addresses, .. } = &mut found.server {
            addresses.clear();
        }
        let all = lines(&found).into_iter().flat_map(|line| line.cures);
        let set =
            all.filter(|cure| cure.note.contains("upstream") || cure.note.contains("advertise"));
        let set: Vec<_> = set.map(|cure| (cure.note, cure.command.expect("a command"))).collect();
        set
    };
    let (in_unit, in_file) = (cures(true), cures(false));
    let edit = "systemctl --user edit --full aditd && systemctl --user restart aditd";
    for ((note, command), flag) in
        in_unit.iter().zip(["--advertise HOST:PORT", "--upstream http://127.0.0.1:PORT"])
    {
        let name = flag.split(' ').next().expect("a name");
        assert!(note.contains(&format!("change what is behind `{name}`; if it is not")), "{note}");
        assert!(note.ends_with(&format!("add `{flag}` behind `aditd serve`")), "{note}");
        assert_eq!(command, edit);
    }
    let file = "in `/etc/adit/aditd.toml`, change the line that begins with";
    for ((note, command), line) in in_file
        .iter()
        .zip([r#"advertise = ["HOST:PORT"]"#, r#"upstream = "http://127.0.0.1:PORT""#])
    {
        let key = line.split(' ').next().expect("a key");
        assert!(note.contains(&format!("{file} `{key}`; if there is none, add")), "{note}");
        assert!(note.contains(&format!("add `{line}` above the first `[table]`")), "{note}");
        assert!(note.ends_with("; a flag in the unit overrides it; then"), "{note}");
        assert_eq!(command, "sudo systemctl restart aditd");
    }
    assert_eq!((in_unit.len(), in_file.len()), (2, 2));
}
