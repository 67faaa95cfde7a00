//! What `adit doctor` measures: clocks, loss, the length of datagrams, and the versions of both ends.

use std::{fs, path::Path, time::Duration};

use common::machine::process::unix_now;
use tests::{
    doctor::Diagnosis,
    fake_clock::FakeClock,
    path,
    process::{Ended, Programs},
    state_files::{chmod, store, stored},
    world::{Device, SOON, World},
};

use crate::PROGRAM;

/// How long QUIC may search for longer datagrams, and some more.
const SEARCHED: Duration = Duration::from_secs(120);

async fn doctor(device: &Device) -> Diagnosis {
    Diagnosis::of(device.adit(&["doctor", "--json"], "").await)
}

/// A device whose datagrams take this path to the server.
async fn device_on_a_path(world: &World) -> (Device, path::Path) {
    let device = world.device("laptop").await;
    let path = path::Path::to(world.address().await).await;
    let mut identity = stored(&device);
    identity["addresses"] = vec![path.address.to_string()].into();
    store(&device, &identity);
    (device, path)
}

#[tokio::test]
async fn clocks_that_differ_are_told_with_the_command_that_sets_them() {
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let Some(clock) = FakeClock::new(&world.scratch("")) else { return };
    let ahead_by = async |seconds: i64| {
        clock.set_ahead(seconds);
        let mut command = device.command(&["doctor", "--json"]);
        clock.give(&mut command);
        Diagnosis::of(Ended::from(command.output().await.expect("it runs")))
    };
    let set = "sudo timedatectl set-ntp true";
    let ahead = ahead_by(600).await;
    ahead.names("skew", "warn", "behind this laptop's: certificates are judged by both", set);
    ahead.names("skew", "warn", "the box's is ", "timedatectl");
    assert_eq!((ahead.verdict("session"), ahead.ended.code), ("ok", Some(0)), "{ahead:#?}");
    ahead_by(-600).await.names("skew", "warn", "ahead of this laptop's", set);
    assert_eq!(ahead_by(5).await.verdict("skew"), "ok");
    // A machine without a battery for its clock.
    let reset = ahead_by(86_400 - unix_now()).await;
    reset.names("clock", "bad", "it shows 1970-01-02T", set);
    reset.names("udp", "bad", "this computer's clock is wrong", set);
    assert_eq!(reset.found("certificate"), "not checked: needs `clock`");
    assert_eq!(reset.ended.code, Some(1));
}

#[tokio::test]
async fn a_path_that_loses_packets_is_told_while_adit_runs_and_while_it_does_not() {
    let world = World::start(PROGRAM).await;
    let (device, path) = device_on_a_path(&world).await;
    let said = doctor(&device).await;
    assert_eq!(said.verdict("probe"), "ok", "{:#?}", said.line("probe"));
    path.lose(25);
    let ping = "ping -c 20 127.0.0.1";
    let said = doctor(&device).await;
    said.names("probe", "warn", "tokens come late when packets are lost", ping);
    // Copies of small packets hide the losses from QUIC, not from the doctor.
    path.lose(10);
    let up = device.up(&[]).await;
    let said = async {
        loop {
            let said = doctor(&device).await;
            if said.found("probe").contains("of the packets, so small ones are sent twice") {
                return said;
            }
        }
    };
    let said = tokio::time::timeout(3 * SOON, said).await.expect("the loss is told");
    said.names("probe", "warn", "the link loses ", ping);
    assert_eq!(said.ended.code, Some(0));
    up.end().await;
}

#[tokio::test]
async fn a_path_that_carries_only_the_shortest_datagrams_is_told() {
    let world = World::start(PROGRAM).await;
    let (device, path) = device_on_a_path(&world).await;
    path.limit(1200);
    let _up = device.up(&[]).await;
    let said = async {
        loop {
            // Until the search is over, nothing is wrong.
            let said = doctor(&device).await;
            if said.verdict("mtu") != "ok" {
                return said;
            }
            assert!(said.found("mtu").contains("up to 1200 bytes arrive so far"), "{said:#?}");
        }
    };
    let said = tokio::time::timeout(SEARCHED, said).await.expect("the search ends");
    said.names("mtu", "warn", "up to 1200 bytes arrive, and no longer ones", "tracepath 127.0.0.1");
    assert_eq!(said.ended.code, Some(0));
}

/// Links to a copy of the programs that says that it is version 0.0.9.
fn of_another_version(dir: &Path) -> Programs {
    let (is, other) = (env!("CARGO_PKG_VERSION").as_bytes(), *b"0.0.9");
    assert_eq!(is.len(), other.len(), "the versions are of one length");
    let mut program = fs::read(PROGRAM).expect("read");
    let found: Vec<usize> = memchr::memmem::find_iter(&program, is).collect();
    for at in found {
        program[at..at + other.len()].copy_from_slice(&other);
    }
    let copy = dir.join("another");
    fs::write(&copy, program).expect("written");
    chmod(&copy, 0o755);
    Programs::link(&copy, dir).expect("links")
}

#[tokio::test]
async fn versions_that_differ_are_told_on_the_way_and_on_the_box() {
    let mut world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let dir = world.scratch("another");
    fs::create_dir(&dir).expect("a directory");
    let other = of_another_version(&dir);
    let installed = std::mem::replace(&mut world.programs, other);
    world.kill_server().await;
    world.restart_server().await;
    world.programs = installed;

    let said = doctor(&device).await;
    let both = format!("adit {} and aditd 0.0.9", env!("CARGO_PKG_VERSION"));
    said.names("version", "warn", &both, "cargo install --locked --path client");
    said.names(
        "version",
        "warn",
        "both should be the same",
        "cargo install --locked --path server",
    );
    said.names("version", "warn", "both should be the same", "aditd replace");
    assert_eq!((said.verdict("session"), said.ended.code), ("ok", Some(0)), "{said:#?}");
    let said = Diagnosis::of(world.aditd(&["doctor", "--json"]).await);
    said.names("aditd", "warn", "version 0.0.9 runs", "aditd replace --state-dir '");
}
