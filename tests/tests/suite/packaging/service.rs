//! `service …` and `adit down`: against a systemd that only notes what it is told, and under a real one.

use std::{fs, path::PathBuf};

use serde_json::Value;
use tests::{
    cli_assert::{assert_no_defect, assert_ok, document},
    process::{Ended, Programs},
    raw,
    state_files::chmod,
    systemd,
    world::{Device, World},
};

use crate::PROGRAM;

/// A user's session whose systemd only notes what it is told.
struct Session {
    dir: tempfile::TempDir,
    programs: Programs,
}

impl Session {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir(dir.path().join("bin")).expect("a directory");
        let bin = dir.path().join("bin");
        let programs = Programs::link(std::path::Path::new(PROGRAM), &bin).expect("linked");
        let session = Self { dir, programs };
        for name in ["systemctl", "loginctl", "journalctl", "systemd-sysusers"] {
            session.program(name, "");
        }
        session
    }

    /// A program that notes its arguments, and then runs `script`.
    fn program(&self, name: &str, script: &str) {
        let path = self.path("bin").join(name);
        let told = self.path("told");
        let text = format!("#!/bin/sh\necho \"{name} $*\" >>'{}'\n{script}\n", told.display());
        fs::write(&path, text).expect("written");
        chmod(&path, 0o755);
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What the programs have been told since this was asked last.
    fn told(&self) -> Vec<String> {
        let told = fs::read_to_string(self.path("told")).unwrap_or_default();
        let _ = fs::remove_file(self.path("told"));
        told.lines().map(str::to_owned).collect()
    }

    async fn adit(&self, device: &Device, args: &[&str]) -> Ended {
        let mut command = self.programs.command("adit", args);
        command
            .arg("--state-dir")
            .arg(&device.dir)
            .env("HOME", self.path("home"))
            .env("PATH", format!("{}:/usr/bin:/bin", self.path("bin").display()));
        let ended = Ended::from(command.output().await.expect("it runs"));
        assert_no_defect(&ended.stderr);
        ended
    }

    fn unit(&self) -> PathBuf {
        self.path("home/.config/systemd/user/adit.service")
    }
}

#[tokio::test]
async fn a_service_is_installed_shown_and_uninstalled() {
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let session = Session::new();
    let missing = session.adit(&device, &["service", "status"]).await;
    assert_eq!(missing.code, Some(2));
    assert!(missing.stderr.contains("`adit service install --state-dir "), "{}", missing.stderr);

    assert_ok(&session.adit(&device, &["service", "install"]).await);
    let told = session.told();
    let begins = [
        "systemctl --user show --property=Version",
        "systemctl --user daemon-reload",
        "systemctl --user enable adit",
        "systemctl --user restart adit",
        "loginctl enable-linger ",
    ];
    assert_eq!(told.len(), begins.len(), "{told:?}");
    for (told, begin) in told.iter().zip(begins) {
        assert!(told.starts_with(begin), "{told}");
    }
    let unit = fs::read_to_string(session.unit()).expect("a unit");
    let program = session.path("bin/adit");
    let start =
        format!("ExecStart={} up default --state-dir {}", program.display(), device.dir.display());
    assert!(unit.lines().any(|line| line == start), "{unit}");

    assert_ok(&session.adit(&device, &["service", "logs", "-n", "7"]).await);
    assert_eq!(session.told(), ["journalctl --user-unit=adit --no-pager --lines=7 --quiet"]);
    session.program("systemctl", "exit 3");
    assert_eq!(session.adit(&device, &["service", "status"]).await.code, Some(1));
    session.program("systemctl", "");
    session.told();
    assert_ok(&session.adit(&device, &["service", "uninstall"]).await);
    let told = session.told();
    assert!(told.contains(&"systemctl --user disable --now adit".to_owned()), "{told:?}");
    assert!(!session.unit().exists());
}

#[tokio::test]
async fn scripts_get_json_of_a_service() {
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let session = Session::new();
    let json = async |args: &[&str]| {
        session.adit(&device, &[&["service"], args, &["--json"]].concat()).await
    };
    let unit = session.unit().display().to_string();
    let installed = document(&json(&["install"]).await);
    let mut page = crate::readme::json::Page::read();
    page.has("adit service install", &installed);
    assert_eq!(
        (&installed["service"], &installed["installed"]),
        (&"adit".into(), &unit.as_str().into())
    );
    let says =
        "case \"$*\" in *show*) printf 'ActiveState=%s\\nUnitFileState=enabled\\nMainPID=7\\n' ";
    session.program("systemctl", &format!("{says} active;; esac"));
    let shown = document(&json(&["status"]).await);
    page.has("adit service status", &shown);
    assert_eq!((&shown["state"], &shown["at_boot"]), (&"active".into(), &true.into()));
    assert_eq!((&shown["pid"], &shown["file"]), (&7.into(), &unit.as_str().into()));
    session.program("systemctl", &format!("{says} failed;; *) exit 3;; esac"));
    let failed = json(&["status"]).await;
    let shown: Value = serde_json::from_str(&failed.stdout).expect("JSON");
    assert_eq!((failed.code, &shown["state"]), (Some(1), &"failed".into()));
    session.program(
        "journalctl",
        "printf '{\"MESSAGE\":\" INFO ready\",\"__REALTIME_TIMESTAMP\":\"1800000000000001\"}\\n'",
    );
    session.told();
    let line = json(&["logs"]).await;
    assert_eq!(
        session.told(),
        ["journalctl --user-unit=adit --no-pager --lines=100 --quiet --output=json"]
    );
    let line: Value = serde_json::from_str(&line.stdout).expect("a line of JSON");
    page.has("adit service logs", &line);
    assert_eq!((&line["level"], &line["message"]), (&"info".into(), &"ready".into()));
    assert_eq!(line["time"], "2027-01-15T08:00:00.000001Z");
    session.program("systemctl", "");
    let removed = document(&json(&["uninstall"]).await);
    page.has("adit service uninstall", &removed);
    page.is_printed(|command| command.starts_with("adit service "));
    assert_eq!(removed["removed"], unit.as_str());
    let missing = json(&["status"]).await;
    let told: Value = serde_json::from_str(&missing.stdout).expect("JSON");
    assert_eq!((missing.code, &told["error"]["exit"]), (Some(2), &2.into()));
}

#[tokio::test]
async fn an_install_that_cannot_work_changes_nothing_and_says_what_works() {
    let world = World::start(PROGRAM).await;
    let (device, stranger) = (world.device("laptop").await, world.stranger("other"));
    let session = Session::new();
    let ended = session.adit(&stranger, &["service", "install"]).await;
    assert!(ended.code != Some(0) && ended.stderr.contains("adit enroll"), "{}", ended.stderr);

    session.program("systemctl", "echo 'Failed to connect to bus' >&2; exit 1");
    let ended = session.adit(&device, &["service", "install"]).await;
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("Failed to connect to bus"), "{}", ended.stderr);
    assert!(ended.stderr.contains("`nohup "), "{}", ended.stderr);
    assert!(!session.unit().exists());

    // Somebody's own unit is not replaced.
    session.program("systemctl", "");
    fs::create_dir_all(session.unit().parent().expect("a directory")).expect("made");
    fs::write(session.unit(), "[Service]\nExecStart=/my/own\n").expect("written");
    for verb in ["install", "uninstall"] {
        let ended = session.adit(&device, &["service", verb]).await;
        assert_eq!(ended.code, Some(1), "{verb}");
        assert!(ended.stderr.contains(".old`"), "{}", ended.stderr);
    }
    let unit = fs::read_to_string(session.unit()).expect("a unit");
    assert!(unit.contains("/my/own"), "{unit}");
}

#[tokio::test]
async fn a_login_that_may_not_linger_gets_the_line_that_lets_it() {
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let session = Session::new();
    session.program("loginctl", "exit 1");
    let ended = session.adit(&device, &["service", "install"]).await;
    assert_ok(&ended);
    assert!(ended.stderr.contains("sudo loginctl enable-linger "), "{}", ended.stderr);
}

#[tokio::test]
async fn down_ends_the_tunnel_and_lets_running_answers_end_first() {
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let session = Session::new();
    let ended = session.adit(&device, &["down"]).await;
    assert_ok(&ended);
    assert!(ended.stderr.contains("No tunnel"), "{}", ended.stderr);
    for flags in [&["down"][..], &["down", "--now"]] {
        let mut up = device.up(&[]).await;
        let answer = raw::exchange(up.address, "GET / HTTP/1.0\r\n\r\n").await;
        assert!(answer.ends_with("Ollama is running"), "{answer}");
        assert_ok(&session.adit(&device, flags).await);
        let status = up.adit.ended().await.expect("it ends");
        assert!(status.success(), "{flags:?}: {status}");
    }
}

#[tokio::test]
async fn down_stops_the_unit_that_runs_the_tunnel_and_no_other() {
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let session = Session::new();
    assert_ok(&session.adit(&device, &["service", "install"]).await);
    let mut up = device.up(&[]).await;
    // The unit runs as another process: this one is ended by itself.
    session.program("systemctl", "echo MainPID=1");
    session.told();
    assert_ok(&session.adit(&device, &["down"]).await);
    assert!(up.adit.ended().await.expect("it ends").success());
    assert_eq!(session.told(), ["systemctl --user show --property=MainPID adit"]);

    let mut up = device.up(&[]).await;
    let pid = up.adit.pid();
    session.program(
        "systemctl",
        &format!("case \"$*\" in *MainPID*) echo MainPID={pid};; *stop*) kill {pid};; esac"),
    );
    assert_ok(&session.adit(&device, &["down"]).await);
    assert!(up.adit.ended().await.expect("it ends").success());
    assert!(session.told().contains(&"systemctl --user stop adit".to_owned()));
}

#[test]
fn under_a_real_systemd_both_programs_become_services() {
    let script = r#"
# adit takes the port of Ollama here.
mkdir -p /etc/adit
echo 'upstream = "http://127.0.0.1:11500"' >/etc/adit/aditd.toml
aditd service install
systemctl is-active aditd && systemctl is-enabled aditd
echo "user $(stat --format=%U "/proc/$(systemctl show --property=MainPID --value aditd)")"
aditd service status >/dev/null && echo "the server is shown"
aditd service logs -n 5 >/dev/null && echo "its log is shown"
aditd invite laptop >/invited 2>&1
code=$(grep ^adit /invited)
echo "its note: $(grep -o 'then run `sudo systemctl restart aditd`' /invited)"
echo "doctor: $(aditd doctor | grep -o 'can read `/var/lib/adit`')"

useradd --create-home joe
uid=$(id -u joe)
joe() {
    setpriv --reuid=joe --regid=joe --init-groups \
        env HOME=/home/joe XDG_RUNTIME_DIR=/run/user/$uid "$@"
}
cure=$(joe aditd service install 2>&1 | grep -o 'loginctl enable-linger joe')
echo "the cure: $cure"
$cure
tries=0
until [ -S /run/user/$uid/systemd/private ]; do
    tries=$((tries + 1))
    [ $tries -lt 300 ]
    sleep 0.1
done
echo "of root: $(joe aditd device list --json 2>&1 | grep -o 'sudo aditd device list --json')"
echo "of root: $(joe aditd status 2>&1 | grep -o 'sudo aditd status')"
echo "of the system: $(joe aditd service status 2>&1 | grep -o 'sudo aditd service status')"
echo "$code" | joe adit enroll >/dev/null
joe adit service install
tries=0
until joe adit status --json 2>/dev/null | grep -q '"state": *"up"'; do
    tries=$((tries + 1))
    [ $tries -lt 300 ]
    sleep 0.1
done
echo "the tunnel is up"
echo "lingers $(loginctl show-user joe --property=Linger --value)"
joe adit down
echo "after down $(joe systemctl --user show --property=ActiveState --value adit)"
joe adit service uninstall
aditd service uninstall
systemctl is-active aditd || true
ls /etc/systemd/system/aditd.service 2>/dev/null || echo "its unit is gone"
ls /var/lib/adit/ca.key
joe aditd service install
# A login by su(1) does not know where the manager of its units is.
echo "by su: $(setpriv --reuid=joe --regid=joe --init-groups env -u XDG_RUNTIME_DIR HOME=/home/joe \
    aditd doctor | grep -o 'the unit is enabled and active')"
"#;
    let Some((said, ended)) = systemd::run(PROGRAM, &[], script) else { return };
    assert!(ended, "{said}");
    for line in [
        "its note: then run `sudo systemctl restart aditd`",
        "doctor: can read `/var/lib/adit`",
        "the cure: loginctl enable-linger joe",
        "of root: sudo aditd device list --json",
        "of root: sudo aditd status",
        "of the system: sudo aditd service status",
        "by su: the unit is enabled and active",
        "active",
        "enabled",
        "user aditd",
        "the server is shown",
        "its log is shown",
        "the tunnel is up",
        "lingers yes",
        "after down inactive",
        "inactive",
        "its unit is gone",
        "/var/lib/adit/ca.key",
    ] {
        assert!(said.lines().any(|said| said == line), "`{line}` is missing:\n{said}");
    }
}
