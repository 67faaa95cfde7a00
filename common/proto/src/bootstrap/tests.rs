use super::*;
use crate::failure::Exit;

/// What is found on a box with Ollama and nothing else.
const BARE: &str = "system=Linux\nmachine=x86_64\nuid=1000\nuser=me\nhome=/home/me\ndir=/home/me/.local/share/adit\n\
    state=/home/me/.local/share/aditd\nwritable=yes\nruns=yes\nfree_kib=1000000\nudp=- 0100007F:0035\n\
    tcp=- 0100007F:2CAA 0A00000A:0016\nollama=127.0.0.1:11434\n";
/// `e_machine` of x86_64.
pub(super) const X86: u8 = 62;

pub(super) fn machine(number: u8) -> Machine {
    let mut header = *b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x03\0\0\0";
    header[18] = number;
    Machine::of_program(&header).expect("a program")
}

fn wish(machine: Machine) -> Wish<'static> {
    let (file, sha256) = ("/usr/bin/aditd".to_owned(), "ab".repeat(32));
    let binary = Binary { file, machine, len: 10 << 20, sha256 };
    Wish { to: "me@gpu", version: "0.1.0", binary: Ok(binary), upstream: None }
}

/// The plan for the bare box with other lines: a line replaces those with the same key, and one
/// without a value takes them away.
fn planned(lines: &str) -> Result<Plan, Obstacle> {
    Plan::new(&found(lines), &wish(machine(X86)))
}

pub(super) fn found(lines: &str) -> Found {
    let key = |line: &str| line.split('=').next().unwrap_or_default().to_owned();
    let changed: Vec<_> = lines.lines().map(key).collect();
    let kept = BARE.lines().filter(|line| !changed.contains(&key(line)));
    let all: Vec<_> = kept.chain(lines.lines()).collect();
    Found::read(&all.join("\n")).expect("understood")
}

fn installed(lines: &str) -> Install {
    match planned(lines) {
        Ok(Plan::Install(install)) => install,
        other => panic!("{lines}: {other:?}"),
    }
}

#[test]
fn a_bare_box_gets_everything() {
    let install = installed("");
    assert_eq!(
        (install.upload, install.service, install.listen, &*install.upstream),
        (Some(10 << 20), Service::Process, None, "http://127.0.0.1:11434")
    );
    assert_eq!(
        Plan::Install(install).text("me@gpu", Some("thinkpad")),
        "On me@gpu, adit will\n  \
         1. upload aditd 0.1.0 (10 MiB) to /home/me/.local/share/adit/bin/abababababab…/aditd\n  \
         2. start it: it listens on loopback only (port 11435), and forwards to Ollama at http://127.0.0.1:11434. It outlives the login, and a reboot ends it\n  \
         3. enroll this computer as `thinkpad`\n\
         and then open the tunnel on this computer.\n\
         Nothing is downloaded there, and nothing else is changed. `adit remove me@gpu` undoes it."
    );
}

#[test]
fn what_keeps_aditd_running_is_the_best_that_the_box_has() {
    for (lines, service, unit) in [
        ("", Service::Process, ""),
        ("uid=0\nuser=root", Service::Process, ""),
        ("uid=0\nsystemd=yes", Service::System, "/etc/systemd/system/aditd.service"),
        (
            "systemd=yes",
            Service::User { enable_linger: true },
            "/home/me/.config/systemd/user/aditd.service",
        ),
        (
            "user_manager=yes\nlinger=yes",
            Service::User { enable_linger: false },
            "/home/me/.config/systemd/user/aditd.service",
        ),
    ] {
        let install = installed(lines);
        assert_eq!((install.service, &*install.unit_file()), (service, unit), "{lines}");
        assert_eq!(install.unit().is_empty(), unit.is_empty());
    }
}

#[test]
fn ollama_is_found_where_it_listens() {
    for (lines, upstream) in [
        ("ollama=", "http://127.0.0.1:11434"),
        ("ollama=0.0.0.0\ntcp=- 00000000:2CAA", "http://127.0.0.1:11434"),
        ("ollama=http://localhost:7000/\ntcp=- 0100007F:1B58", "http://127.0.0.1:7000"),
        ("ollama=[::1]:7000\ntcp=- 00000000000000000000000001000000:1B58", "http://[::1]:7000"),
        ("ollama=:7000\ntcp=- 00000000000000000000000000000000:1B58", "http://127.0.0.1:7000"),
        // The first value is old, and the usual port has an Ollama.
        ("ollama=127.0.0.1:9", "http://127.0.0.1:11434"),
        // The box does not tell what listens.
        ("ollama=127.0.0.1:7000\ntcp=", "http://127.0.0.1:7000"),
        ("ollama=10.0.0.10:7000", "http://127.0.0.1:11434"),
    ] {
        assert_eq!(installed(lines).upstream, upstream, "{lines}");
    }
    let named = Wish { upstream: Some("http://127.0.0.1:5"), ..wish(machine(X86)) };
    let Ok(Plan::Install(install)) = Plan::new(&found("tcp=-"), &named) else { panic!("a plan") };
    assert_eq!(install.upstream, "http://127.0.0.1:5");
}

#[test]
fn a_port_that_is_taken_is_not_used() {
    for (lines, listen) in [
        ("udp=-", None),
        ("udp=", None),
        ("udp=- 0100007F:2CAB", Some(11436)),
        ("udp=- 0100007F:2CAB\ntcp=- 0100007F:2CAA 0100007F:2CAC", Some(11437)),
    ] {
        assert_eq!(installed(lines).listen, listen, "{lines}");
    }
}

#[test]
fn a_compatible_aditd_is_kept_and_another_is_told() {
    let status = |version: &str| {
        format!(
            "program=aditd\nstatus={{\"version\":\"{version}\",\"upstream\":\"http://127.0.0.1:1\",\"x\":1}}"
        )
    };
    for (version, works) in [("0.1.0", true), ("0.1.9", true), ("0.2.0", false), ("1.0.0", false)] {
        match planned(&status(version)) {
            Ok(Plan::Keep { running: Some(running) }) => {
                assert!(works && running.version == version, "{version}");
            }
            Err(Obstacle::OtherVersion { runs }) => assert!(!works && runs == version, "{version}"),
            other => panic!("{version}: {other:?}"),
        }
    }
    // A kept one needs no program, no space and no Ollama.
    let all = format!("{}\nfree_kib=0\nruns=no\ntcp=-", status("0.1.0"));
    let none = Wish { binary: Err("none".to_owned()), ..wish(machine(X86)) };
    let plan = Plan::new(&found(&all), &none).expect("kept");
    assert_eq!(
        plan.text("me@gpu", Some("thinkpad")),
        "On me@gpu, adit will\n  1. keep aditd 0.1.0, which runs there and forwards to http://127.0.0.1:1\n  \
         2. enroll this computer as `thinkpad`\nand then open the tunnel on this computer."
    );
    assert_eq!(planned("enroll_group=yes"), Ok(Plan::Keep { running: None }));
    // One that does not answer this login is left alone.
    let text = planned("other=7\nother=9").expect("a plan").text("me@gpu", Some("x"));
    assert!(text.contains("Another aditd runs there (pid 7, 9)"), "{text}");
}

/// Asserts that nothing is installed where these lines are found, and that the failure says why and
/// what cures it.
fn is_refused(lines: &str, wish: &Wish<'_>, cause: &str, cure: &str) {
    let obstacle = Plan::new(&found(lines), wish).expect_err(cause);
    let failure = obstacle.failure("me@gpu", "adit up me@gpu");
    assert_eq!(failure.what(), "cannot install aditd on me@gpu");
    let text = failure.to_string();
    assert!(
        text.contains(cause) && failure.hints().iter().any(|hint| hint.contains(cure)),
        "{text}"
    );
    assert!(matches!(failure.exit_code(), Exit::Failed | Exit::Usage));
}

#[test]
fn each_obstacle_is_named_with_its_cure() {
    let none =
        Wish { binary: Err("there is no `aditd` beside adit".to_owned()), ..wish(machine(X86)) };
    let (arm, other) = (wish(machine(183)), "`/usr/bin/aditd` is a program for aarch64");
    is_refused("", &arm, other, "`adit up me@gpu --server-binary FILE`");
    let cure = "for Linux on x86_64: `adit up me@gpu --server-binary FILE`";
    is_refused("", &none, "there is no `aditd` beside adit", cure);
    const FULL: &str = "has 1 MiB left, and aditd needs 18 MiB";
    const SILENT: &str = "nothing listens on 127.0.0.1:7 or 127.0.0.1:11434";
    for (lines, cause, cure) in [
        ("system=Darwin", "it runs Darwin", "`adit enroll me@gpu`"),
        ("writable=Read-only", "Read-only", "`adit up me@gpu --remote-dir DIR`"),
        ("runs=Denied", "`noexec`: Denied", "`adit up me@gpu --remote-dir /var/tmp/adit`"),
        ("free_kib=1024", FULL, "`adit up me@gpu --remote-dir DIR`"),
        ("tcp=-\nollama=127.0.0.1:7", SILENT, "--upstream http://127.0.0.1:PORT`"),
        ("foreign_unit=/x/a.service", "`/x/a.service`", "`systemctl --user start aditd`"),
    ] {
        is_refused(lines, &wish(machine(X86)), cause, cure);
    }
    // It is there already, and needs no space again.
    assert_eq!(installed("free_kib=9000\npresent=yes").upload, None);
}

#[test]
fn what_the_box_is_told_is_what_its_shell_and_its_systemd_read() {
    let odd = "state=/s s/o'brien 50%\nsystemd=yes\nlinger=yes\nudp=- 0100007F:2CAB\nollama=:7000\ntcp=- 0100007F:1B58";
    let install = installed(odd);
    let unit = install.unit();
    for line in [
        "ExecStart=/home/me/.local/share/adit/aditd serve --upstream http://127.0.0.1:7000 --listen 127.0.0.1:11436",
        "ExecReload=/home/me/.local/share/adit/aditd reload",
        "Environment=\"ADITD_STATE_DIR=/s s/o'brien 50%%\"",
    ] {
        assert!(unit.lines().any(|is| is == line), "no {line} in {unit}");
    }
    let script = install.start_script();
    assert!(script.contains(r"export ADITD_STATE_DIR='/s s/o'\''brien 50%'"), "{script}");
    let system = installed("uid=0\nsystemd=yes\ndir=/usr/local/lib/adit").unit();
    assert!(
        system.starts_with(service::MADE)
            && system.contains("\nExecStart=/usr/local/lib/adit/aditd serve\n")
            && system.contains("\nExecReload=/usr/local/lib/adit/aditd reload\n")
            && system.contains("\nUser=aditd\n")
            && install.sysusers().is_empty(),
        "{system}"
    );
    assert_eq!(
        installed("").lasting_line(),
        "(crontab -l 2>/dev/null; echo '@reboot /home/me/.local/share/adit/start') | crontab -"
    );
}

#[test]
fn an_answer_without_what_is_needed_is_refused() {
    for key in ["system", "machine", "uid", "user", "home", "dir", "state"] {
        let without: Vec<_> =
            BARE.lines().filter(|line| !line.starts_with(&format!("{key}="))).collect();
        assert_eq!(Found::read(&without.join("\n")), Err(Missing(key)));
    }
    assert_eq!(Found::read("uid=x\nsystem=a\nmachine=b"), Err(Missing("uid")));
}
