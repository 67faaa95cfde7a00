//! Under a real systemd the one command installs a unit that lasts, and its counterpart removes it.

use tests::{sshd::Sshd, systemd};

use crate::PROGRAM;

/// Starts sshd and lets root log in as `$who`, with what pam_systemd does at a login if `$pam` is yes.
const SSHD: &str = r#"
export HOME=/root
rm -rf /root/.ssh
mkdir -p /run/sshd
# The boot is over for users, too.
rm -f /run/nologin
mkdir -m 700 /root/.ssh
ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519
ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/test_key
echo "[127.0.0.1]:2222 $(cat /etc/ssh/test_key.pub)" >/root/.ssh/known_hosts
useradd --create-home --shell /bin/bash joe
install -d -o joe -m 700 /home/joe/.ssh
install -o joe -m 600 /root/.ssh/id_ed25519.pub /home/joe/.ssh/authorized_keys
cp /root/.ssh/id_ed25519.pub /root/.ssh/authorized_keys
printf '%s\n' 'ListenAddress 127.0.0.1:2222' 'HostKey /etc/ssh/test_key' "UsePAM $pam" 'PidFile none' \
    'PermitRootLogin yes' >/etc/ssh/test_config
systemd-run --quiet --unit=test-sshd /usr/sbin/sshd -D -f /etc/ssh/test_config
# wait_for COMMAND...
wait_for() {
    tries=0
    until "$@" >/dev/null 2>&1; do
        tries=$((tries + 1))
        [ $tries -lt 300 ]
        sleep 0.1
    done
}
wait_for ssh "$who@127.0.0.1" -p 2222 true
export ADIT_STATE_DIR=/var/laptop
# up WHO: the whole command, until the tunnel is up.
up() {
    adit up "ssh://$1@127.0.0.1:2222" --yes --upstream http://127.0.0.1:7 --listen 127.0.0.1:0 2>/up.log &
    up=$!
    wait_for grep -q 'ready: Ollama' /up.log || { cat /up.log; exit 1; }
    kill $up
    wait $up || true
}
# upgrade SHOW: another program takes the place of the one that runs as $pid. SHOW prints a property of
# the unit.
upgrade() {
    cp "$(command -v aditd)" /newer
    echo >>/newer
    adit upgrade --yes --server-binary /newer 2>/upgrade.log || { cat /upgrade.log; exit 1; }
    rm /newer
    old=$pid
    pid=$("$@" --property=MainPID)
    [ "$pid" != "$old" ] && echo "another main process"
    wait_for test ! -e /proc/$old
    echo "the unit is $("$@" --property=ActiveState), $("$@" --property=NRestarts) restarts"
    kill -9 $pid
    restarted() { [ "$("$@" --property=NRestarts)" = 1 ]; }
    wait_for restarted "$@"
    wait_for aditd_answers
    pid=$("$@" --property=MainPID)
}
"#;

fn ends_saying(who: &str, pam: &str, script: &str, lines: &[&str]) {
    if Sshd::is_missing() {
        return;
    }
    let Some((said, ended)) =
        systemd::run(PROGRAM, &[], &format!("who={who} pam={pam}{SSHD}{script}"))
    else {
        return;
    };
    assert!(ended, "{said}");
    for line in lines {
        assert!(said.lines().any(|said| said == *line), "`{line}` is missing:\n{said}");
    }
}

#[test]
fn a_login_that_is_not_root_gets_a_unit_of_its_own_that_runs_without_a_login() {
    ends_saying(
        "joe",
        "yes",
        r#"
up joe
grep -c 'and starts at boot' /up.log
uid=$(id -u joe)
joe() {
    setpriv --reuid=joe --regid=joe --init-groups \
        env HOME=/home/joe XDG_RUNTIME_DIR=/run/user/$uid "$@"
}
echo "linger $(loginctl show-user joe --property=Linger --value)"
echo "enabled $(joe systemctl --user is-enabled aditd)"
pid=$(joe systemctl --user show --property=MainPID --value aditd)
echo "runs as $(stat --format=%U /proc/$pid)"
aditd_answers() { joe /home/joe/.local/share/adit/aditd status; }
upgrade joe systemctl --user show --value aditd
adit remove --yes 2>/remove.log || { cat /remove.log; exit 1; }
cat /remove.log
test -e /home/joe/.config/systemd/user/aditd.service || echo "no unit"
test -e /home/joe/.local || echo "no files"
test -e /proc/$pid || echo "no process"
echo "linger $(loginctl show-user joe --property=Linger --value 2>/dev/null || echo no)"
"#,
        &[
            "1",
            "linger yes",
            "enabled enabled",
            "runs as joe",
            "another main process",
            "the unit is active, 0 restarts",
            "no unit",
            "no files",
            "no process",
            "linger no",
        ],
    );
}

#[test]
fn a_login_that_is_root_gets_the_systems_unit_with_a_user_of_its_own() {
    // Root needs no manager of its own, and with pam_systemd each login would wait for the end of the
    // manager that the last one has left.
    ends_saying(
        "root",
        "no",
        r#"
up root
grep -c 'and starts at boot' /up.log
echo "enabled $(systemctl is-enabled aditd)"
pid=$(systemctl show --property=MainPID --value aditd)
echo "runs as $(stat --format=%U /proc/$pid)"
aditd_answers() { aditd status; }
upgrade systemctl show --value aditd
adit remove --yes 2>/remove.log || { cat /remove.log; exit 1; }
cat /remove.log
grep -c 'Left there: the system user aditd' /remove.log
test -e /etc/systemd/system/aditd.service || echo "no unit"
test -e /usr/local/lib/adit || echo "no files"
test -e /var/lib/adit || echo "no state"
test -e /proc/$pid || echo "no process"
"#,
        &[
            "1",
            "enabled enabled",
            "runs as aditd",
            "another main process",
            "the unit is active, 0 restarts",
            "no unit",
            "no files",
            "no state",
            "no process",
        ],
    );
}

#[test]
fn the_systems_user_of_others_stays_and_none_is_left_of_a_unit_that_does_not_start() {
    ends_saying(
        "root",
        "no",
        r#"
users=/etc/sysusers.d/aditd.conf
up root
adit remove --yes --json >/remove.json 2>/remove.log || { cat /remove.log; exit 1; }
cat /remove.json
grep -q "\"$users\"" /remove.json && echo "the file of users is named"
test -e $users || echo "and gone"
# Somebody else's unit, for another state.
mkdir -p /usr/local/lib/systemd/system
up root
printf '[Service]\nExecStart=/opt/aditd serve --state-dir /srv/other\n' >/usr/local/lib/systemd/system/aditd.service
adit remove --yes 2>/remove.log || { cat /remove.log; exit 1; }
cat /remove.log
test ! -e /var/lib/adit && test -e $users && ! grep userdel /remove.log && echo "the user of that unit stays"
rm -f /usr/local/lib/systemd/system/aditd.service
# That of `service install` stays, with and without a unit that starts.
printf '# Made by `service install`.\nu aditd - "Adit server" /var/lib/adit -\n' >$users
up root
adit remove --yes 2>/remove.log || { cat /remove.log; exit 1; }
grep -q 'Made by `service install`' $users && ! grep userdel /remove.log && echo "that of a service stays"
rm $users
# A unit that does not start.
mkdir -p /etc/systemd/system/aditd.service.d
printf '[Service]\nExecStartPre=/bin/false\n' >/etc/systemd/system/aditd.service.d/false.conf
up root
grep -q 'systemd refuses' /up.log && echo "it runs as a process"
test -e $users || echo "no file of users"
adit remove --yes 2>/remove.log || { cat /remove.log; exit 1; }
"#,
        &[
            "the file of users is named",
            "and gone",
            "the user of that unit stays",
            "that of a service stays",
            "it runs as a process",
            "no file of users",
        ],
    );
}
