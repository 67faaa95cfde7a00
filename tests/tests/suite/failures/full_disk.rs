//! Full disks: they are reported with the cure, and no code, device or existing file is lost.

use std::fs;

use serde_json::Value;
use tests::{
    cli_assert::{FAILED, assert_no_defect, assert_ok, assert_told},
    disk::SmallDisk,
    process::Ended,
    raw::{self, ROOT},
    state_files::{device_names, identity_file, text},
    world::{SOON, World},
};

use crate::PROGRAM;

/// Asserts that a command failed because the disk is full, and says so. SQLite reports some cases
/// as an I/O error.
#[track_caller]
fn assert_told_full(ended: &Ended) {
    assert_told(ended, FAILED, &["\n  Caused by: "]);
    let cure = [
        "free some disk space and run it again: nothing was changed",
        "look at the free space of its disk",
    ];
    assert!(cure.iter().any(|words| ended.stderr.contains(words)), "{}", ended.stderr);
}

#[tokio::test]
async fn a_full_disk_during_init_loses_nothing() {
    let Some(disk) = SmallDisk::mount("256k") else { return };
    let world = World::start(PROGRAM).await;
    let (mut failures, mut successes) = (0, 0);
    for pages in 0..=40 {
        let state = disk.path("state");
        let init = async || {
            world
                .programs
                .run("aditd", &["init", "--state-dir", text(&state)], "")
                .await
                .expect("aditd runs")
        };
        disk.fill_but(pages);
        let first = init().await;
        if first.code == Some(0) {
            successes += 1;
        } else {
            failures += 1;
            assert_told_full(&first);
        }
        disk.free();
        assert_ok(&init().await);
        let left: Vec<_> = fs::read_dir(&state)
            .expect("a directory")
            .map(|e| e.expect("an entry").file_name())
            .collect();
        assert!(
            left.iter().all(|name| !name.to_string_lossy().starts_with(".tmp")),
            "half-written files stay: {left:?}"
        );
        fs::remove_dir_all(&state).expect("removed");
    }
    assert!(failures >= 5 && successes >= 1, "{failures} failures, {successes} successes");
}

#[tokio::test]
async fn no_code_is_printed_if_the_disk_is_full() {
    let Some(disk) = SmallDisk::mount("512k") else { return };
    let world = World::start(PROGRAM).await;
    let state = disk.path("state");
    let run = async |args: &[&str]| {
        let args = [args, &["--state-dir", text(&state)]].concat();
        world.programs.run("aditd", &args, "").await.expect("aditd runs")
    };
    assert_ok(&run(&["init"]).await);
    let mut failures = 0;
    for pages in 0..=16 {
        disk.fill_but(pages);
        let invited = run(&["invite", "laptop"]).await;
        if invited.code != Some(0) {
            failures += 1;
            assert_told_full(&invited);
        }
        disk.free();
        assert_ok(&run(&["invite", "laptop"]).await);
        assert_ok(&run(&["device", "list"]).await);
    }
    assert!(failures > 0, "the disk was never full");
}

#[tokio::test]
async fn a_full_disk_on_the_device_loses_neither_the_code_nor_the_device() {
    let Some(disk) = SmallDisk::mount("256k") else { return };
    let world = World::start(PROGRAM).await;
    let mut failures = 0;
    for pages in 0..=4 {
        let name = format!("laptop{pages}");
        let code = world.invite(&name).await;
        let state = disk.path(&name);
        let enroll = async || {
            world
                .programs
                .run("adit", &["enroll", "--state-dir", text(&state)], &code)
                .await
                .expect("adit runs")
        };
        disk.fill_but(pages);
        let first = enroll().await;
        disk.free();
        if first.code != Some(0) {
            failures += 1;
            assert_told_full(&first);
            assert!(!state.join("servers/default/identity.json").exists());
            assert_ok(&enroll().await);
        }
        let place = fs::read_dir(state.join("servers/default")).expect("a directory");
        let left = place.map(|e| e.expect("an entry").file_name());
        let left: Vec<_> = left.filter(|name| name != "lock").collect();
        assert_eq!(left, ["identity.json"]);
        assert_eq!(device_names(&world).await.iter().filter(|n| **n == name).count(), 1);
    }
    assert!((2..=4).contains(&failures), "{failures}");
}

#[tokio::test]
async fn a_full_disk_on_the_server_refuses_a_device_and_keeps_its_invitation() {
    let Some(disk) = SmallDisk::mount("1m") else { return };
    let world = World::start(PROGRAM).await;
    let state = disk.path("state");
    let upstream = format!("http://{}", world.ollama.addr());
    let mut aditd = world
        .programs
        .start(
            "aditd",
            &[
                "serve",
                "--listen",
                "127.0.0.1:0",
                "--upstream",
                &upstream,
                "--state-dir",
                text(&state),
                "-v",
            ],
        )
        .expect("aditd starts");
    aditd.ready().await.expect("aditd is ready");
    let run = async |args: &[&str]| {
        let args = [args, &["--state-dir", text(&state)]].concat();
        world.programs.run("aditd", &args, "").await.expect("aditd runs")
    };
    let earlier = world.stranger("earlier");
    assert_ok(&earlier.enroll(&run(&["invite", "earlier"]).await.stdout, &[]).await);
    let invited = run(&["invite", "laptop"]).await;
    assert_ok(&invited);
    disk.fill_but(0);
    let device = world.stranger("laptop");
    let told = device.enroll(&invited.stdout, &[]).await;
    let says = [
        "error: the server refused to enroll this device\n  Caused by: the server could not store the new device",
        "with the same code",
    ];
    assert_told(&told, FAILED, &says);
    assert!(!identity_file(&device).exists());
    aditd.says("full").await;
    assert_no_defect(&aditd.log());
    // Enrolled devices work although the disk is full.
    let up = earlier.up(&[]).await;
    assert!(raw::exchange(up.address, ROOT).await.ends_with("Ollama is running"));
    disk.free();
    assert_ok(&device.enroll(&invited.stdout, &[]).await);
    let up = device.up(&[]).await;
    assert!(raw::exchange(up.address, ROOT).await.ends_with("Ollama is running"));
    let listed = run(&["device", "list", "--json"]).await;
    let listed: Value = serde_json::from_str(&listed.stdout).expect("JSON");
    assert_eq!(listed["devices"].as_array().expect("devices").len(), 2, "{listed}");
    aditd.signal("TERM");
    drop(up);
    tokio::time::timeout(SOON, aditd.ended()).await.expect("it ends").expect("a status");
}
