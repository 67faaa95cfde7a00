//! `adit logs`: the log of the running `adit up`, or of the last one.

use std::os::unix::fs::PermissionsExt;

use tests::{
    cli_assert::{FAILED, assert_ok, assert_told},
    process::Process,
    state_files::{chmod, text},
    world::{Device, SOON, World},
};
use tokio::io::{AsyncBufReadExt, BufReader};

use super::profiles::two_boxes;
use crate::PROGRAM;

/// What `adit logs` prints with these arguments.
async fn logs(device: &Device, args: &[&str]) -> String {
    let shown = device.adit(&[&["logs"], args].concat(), "").await;
    assert_ok(&shown);
    shown.stdout
}

#[tokio::test]
async fn the_log_is_shown_while_adit_up_runs_and_after_its_end_and_to_nobody_else() {
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let none = device.adit(&["logs"], "").await;
    assert_told(&none, FAILED, &["there is no log yet", "`adit up`"]);
    let up = device.up(&[]).await;
    let address = up.address.to_string();
    let running = logs(&device, &[]).await;
    assert!(running.matches(&address).count() >= 2, "{running}");
    up.end().await;
    let ended = logs(&device, &[]).await;
    assert!(ended.starts_with(&running), "{ended}");
    // The next one adds to it.
    let up = device.up(&[]).await;
    let both = logs(&device, &[]).await;
    assert!(both.contains(&address) && both.contains(&up.address.to_string()), "{both}");
    assert_eq!(logs(&device, &["--lines", "2"]).await.lines().count(), 2);
    let mode = device.dir.join("servers/default/up.log").metadata().expect("a file").permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
}

#[tokio::test]
async fn the_error_with_which_adit_up_ended_is_in_its_log() {
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let ended = device.adit(&["up", "--listen", &address], "").await;
    assert_eq!(ended.code, Some(FAILED));
    let log = logs(&device, &[]).await;
    assert!(log.contains(&format!("cannot listen on {address}")), "{log}");
}

#[tokio::test]
async fn following_shows_each_new_line_and_ends_in_order() {
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let up = device.up(&[]).await;
    let mut command = device.command(&["logs", "--follow", "-n", "0"]);
    command.stdout(std::process::Stdio::piped());
    let mut following = command.spawn().expect("it starts");
    let mut lines = BufReader::new(following.stdout.take().expect("a pipe")).lines();
    let pid = up.adit.pid().to_string();
    up.end().await;
    let up = device.up(&[]).await;
    let address = up.address.to_string();
    let comes = async {
        while let Some(line) = lines.next_line().await.expect("a line") {
            assert!(!line.contains(&format!("pid {pid}")), "that was before: {line}");
            if line.contains(&address) {
                return;
            }
        }
        panic!("it ended");
    };
    tokio::time::timeout(SOON, comes).await.expect("in time");
    let pid = following.id().expect("it runs");
    let sent = std::process::Command::new("sh").arg("-c").arg(format!("kill -INT {pid}")).status();
    assert!(sent.is_ok_and(|sent| sent.success()));
    let ended = tokio::time::timeout(SOON, following.wait()).await.expect("in time");
    assert_eq!(ended.expect("its end").code(), Some(0));
}

#[tokio::test]
async fn the_log_of_several_servers_is_found_by_each_name() {
    let (_home, _lab, device) = two_boxes().await;
    let up = device.up(&["lab", "default"]).await;
    let address = up.address.to_string();
    for args in [&["lab"][..], &["default"], &[]] {
        let log = logs(&device, args).await;
        assert!(log.contains(&address), "{args:?}: {log}");
    }
    let unknown = device.adit(&["logs", "nowhere"], "").await;
    assert_told(&unknown, FAILED, &["not enrolled at a server `nowhere`"]);
}

#[tokio::test]
async fn where_the_journal_has_the_log_journalctl_shows_it() {
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    // As an `adit up` in this unit notes it.
    let mark = device.dir.join("servers/default/up.journal");
    std::fs::write(&mark, r#"{"unit":"adit.service","of_user":true}"#).expect("written");
    chmod(&mark, 0o600);
    let bin = world.scratch("bin");
    std::fs::create_dir(&bin).expect("made");
    let journalctl = bin.join("journalctl");
    std::fs::write(&journalctl, "#!/bin/sh\necho \"asked: $*\"\n").expect("written");
    chmod(&journalctl, 0o755);
    let mut command = device.command(&["logs", "-n", "7", "-f"]);
    let shown = command.env("PATH", format!("{}:/usr/bin:/bin", text(&bin))).output().await;
    let shown: tests::process::Ended = shown.expect("it runs").into();
    assert_ok(&shown);
    assert_eq!(shown.stdout, "asked: --user --unit=adit.service --lines=7 --follow\n");
    let missing = device.command(&["logs"]).env("PATH", "/nowhere").output().await;
    let missing: tests::process::Ended = missing.expect("it runs").into();
    assert_told(
        &missing,
        FAILED,
        &["cannot show the journal", "`journalctl --user --unit=adit.service"],
    );
    // An `adit up` that is not in a unit logs to its file again.
    let _up: Process = device.up(&[]).await.adit;
    assert!(!mark.exists());
    assert!(!logs(&device, &[]).await.is_empty());
}
