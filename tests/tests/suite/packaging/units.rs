//! The units of systemd: valid, with few rights, and tried under a real systemd.

use std::{path::Path, process::Command};

use tests::{skip, systemd};

use crate::PROGRAM;

pub(super) const SERVER: &str = include_str!("../../../../server/packaging/aditd.service");
const SERVER_OF_USER: &str = include_str!("../../../../server/packaging/user/aditd.service");
const CLIENT: &str = include_str!("../../../../client/packaging/adit.service");
pub(super) const SYSUSERS: &str = include_str!("../../../../server/packaging/sysusers.conf");

/// Runs `systemd-analyze`. `None` if it is not there.
fn analyze(args: &[&str], unit: &Path) -> Option<(bool, String)> {
    let tool = "systemd-analyze";
    let is_there = Command::new(tool).arg("--version").output().is_ok_and(|o| o.status.success());
    if !is_there && skip::skip_test("there is no systemd-analyze") {
        return None;
    }
    let out = Command::new(tool)
        .args(args)
        .arg(unit)
        // That of a user looks for its directory.
        .env("XDG_RUNTIME_DIR", std::env::temp_dir())
        .output()
        .expect("it runs");
    let text = [out.stdout, out.stderr].concat();
    Some((out.status.success(), String::from_utf8_lossy(&text).into_owned()))
}

#[test]
fn each_unit_is_valid() {
    let units = [
        ("aditd", SERVER, "--system"),
        ("aditd", SERVER_OF_USER, "--user"),
        ("adit", CLIENT, "--user"),
    ];
    for (name, text, manager) in units {
        let tmp = tempfile::tempdir().expect("a directory");
        let unit = tmp.path().join(format!("{name}.service"));
        // It looks for the program and the manual on this machine, too.
        let text = text.replace(&format!("={name} "), &format!("={PROGRAM} "));
        let text = text.replace("Documentation=", "#");
        std::fs::write(&unit, text).expect("written");
        let Some((sound, says)) = analyze(&["verify", manager], &unit) else { return };
        assert!(sound && says.is_empty(), "{name} {manager}: {says}");
    }
}

#[test]
fn the_servers_unit_exposes_little() {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../server/packaging/aditd.service");
    // It reports tenths.
    let analyzed = analyze(&["security", "--offline=yes", "--threshold=14"], &unit);
    let Some((safe, says)) = analyzed else { return };
    assert!(safe, "{says}");
}

#[test]
fn under_a_real_systemd_the_server_runs_with_its_restrictions_and_root_can_ask_it() {
    let script = r#"
install -m 644 /given/aditd.service /etc/systemd/system/
install -D -m 644 /given/sysusers.conf /etc/sysusers.d/aditd.conf
install -D -m 644 /given/aditd.toml /etc/adit/aditd.toml
systemd-sysusers
systemctl daemon-reload
systemctl start aditd
pid=$(systemctl show --property=MainPID --value aditd)
echo "user $(stat --format=%U /proc/$pid)"
grep -E '^(NoNewPrivs|CapBnd|Seccomp):' /proc/$pid/status
echo "state $(stat --format='%U %a' /var/lib/adit)"
aditd status >/dev/null && echo asked
aditd invite laptop >/dev/null && echo invited
aditd device list --json | grep -c laptop || true
systemctl reload aditd && echo reloaded
systemctl restart aditd && echo restarted
aditd status >/dev/null && echo asked again
# One that has replaced another comes to its end, too. Its parent was not systemd.
aditd replace 2>/dev/null
tries=0
until [ "$(ps -o ppid= -p "$(systemctl show --property=MainPID --value aditd)" | tr -d ' ')" = 1 ]; do
    tries=$((tries + 1))
    [ $tries -lt 300 ]
    sleep 0.1
done
systemctl stop aditd
echo "replaced, then stopped: $(systemctl show --property=Result --value aditd)"
systemctl start aditd
# One that hangs is started again.
mkdir -p /etc/systemd/system/aditd.service.d
printf '[Service]\nWatchdogSec=2s\n' >/etc/systemd/system/aditd.service.d/watchdog.conf
systemctl daemon-reload
systemctl restart aditd
sleep 5
echo "alive, restarts $(systemctl show --property=NRestarts --value aditd)"
kill -STOP "$(systemctl show --property=MainPID --value aditd)"
tries=0
until [ "$(systemctl show --property=NRestarts --value aditd)" = 1 ] && aditd status >/dev/null 2>&1; do
    tries=$((tries + 1))
    [ $tries -lt 300 ]
    sleep 0.1
done
echo "hung, restarts $(systemctl show --property=NRestarts --value aditd)"
rm -r /etc/systemd/system/aditd.service.d
systemctl daemon-reload
systemctl stop aditd
echo "result $(systemctl show --property=Result --value aditd)"
# A wrong configuration does not make it try for ever.
echo 'nonsense = 1' >/etc/adit/aditd.toml
systemctl start aditd 2>/dev/null || echo refused
echo "restarts $(systemctl show --property=NRestarts --value aditd)"
echo "state $(systemctl show --property=ActiveState --value aditd)"
"#;
    let files = [
        ("aditd.service", SERVER),
        ("sysusers.conf", SYSUSERS),
        ("aditd.toml", "listen = ['127.0.0.1:11435']\n"),
    ];
    let Some((said, ended)) = systemd::run(PROGRAM, &files, script) else { return };
    assert!(ended, "{said}");
    for line in [
        "user aditd",
        "NoNewPrivs:\t1",
        "CapBnd:\t0000000000000000",
        "Seccomp:\t2",
        "state aditd 700",
        "asked",
        "invited",
        "reloaded",
        "restarted",
        "asked again",
        "replaced, then stopped: success",
        "alive, restarts 0",
        "hung, restarts 1",
        "result success",
        "refused",
        "restarts 0",
        "state failed",
    ] {
        assert!(said.lines().any(|said| said == line), "`{line}` is missing:\n{said}");
    }
}

#[test]
fn under_a_real_systemd_a_users_server_starts_at_boot_without_a_login() {
    let script = r#"
useradd --create-home joe
home=/home/joe/.config/systemd/user
install -D -m 644 /given/aditd.service "$home/aditd.service"
mkdir "$home/default.target.wants"
ln -s ../aditd.service "$home/default.target.wants/"
chown -R joe: /home/joe
uid=$(id -u joe)
joe() {
    setpriv --reuid=joe --regid=joe --init-groups \
        env HOME=/home/joe XDG_RUNTIME_DIR=/run/user/$uid "$@"
}
loginctl enable-linger joe
tries=0
until joe systemctl --user is-active --quiet aditd; do
    tries=$((tries + 1))
    [ $tries -lt 300 ]
    sleep 0.1
done
pid=$(joe systemctl --user show --property=MainPID --value aditd)
echo "user $(stat --format=%U /proc/$pid)"
grep -E '^(NoNewPrivs|Seccomp):' /proc/$pid/status
joe aditd invite laptop >/dev/null && echo invited
"#;
    let files = [("aditd.service", SERVER_OF_USER)];
    let Some((said, ended)) = systemd::run(PROGRAM, &files, script) else { return };
    assert!(ended, "{said}");
    for line in ["user joe", "NoNewPrivs:\t1", "Seccomp:\t2", "invited"] {
        assert!(said.lines().any(|said| said == line), "`{line}` is missing:\n{said}");
    }
}
