//! An `adit up` that is killed without a word: its watcher tells the server, so that Ollama stops.

use std::path::Path;

use tests::{
    raw, skip,
    world::{Device, SOON, Up, World},
};
use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::PROGRAM;

/// Processes can be looked at in `/proc` alone.
fn cannot_look() -> bool {
    !Path::new("/proc/self/cmdline").exists() && skip::skip_test("there is no /proc here")
}

/// The watchers that run for a device.
fn watchers(device: &Device) -> Vec<u32> {
    let is_one = |pid: &u32| {
        let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<&str> = line.split('\0').collect();
        words.get(1) == Some(&"watcher") && words.iter().any(|word| Path::new(word) == device.dir)
    };
    let entries = std::fs::read_dir("/proc").expect("processes").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(is_one).collect()
}

/// The only watcher, when it has begun: from then on it holds off SIGTERM.
async fn watcher(device: &Device) -> u32 {
    let holds_off = |pid: u32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:"));
        let blocked = blocked.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
        blocked.is_some_and(|mask| mask & (1 << (15 - 1)) != 0)
    };
    let found = async {
        loop {
            if let [pid] = watchers(device)[..]
                && holds_off(pid)
            {
                return pid;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, found).await.expect("a watcher")
}

/// Waits until a process is gone, and not even a zombie is left.
async fn gone(pid: u32) {
    let gone = async {
        while Path::new(&format!("/proc/{pid}")).exists() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, gone).await.expect("it ends");
}

fn send(signal: &str, pid: u32) {
    let kill = format!("kill -{signal} {pid}");
    let sent = std::process::Command::new("sh").arg("-c").arg(&kill).status();
    assert!(sent.is_ok_and(|status| status.success()), "{kill}");
}

async fn endless(up: &Up) -> TcpStream {
    let mut app = raw::connect(up.address).await;
    app.write_all(raw::generate(-1, 1).as_bytes()).await.expect("sent");
    raw::read_exactly(&mut app, 300).await;
    app
}

#[tokio::test]
async fn ollama_stops_when_adit_is_killed_and_nothing_is_left_that_keeps_the_next_one_away() {
    if cannot_look() {
        return;
    }
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let mut up = device.up(&[]).await;
    let _app = endless(&up).await;
    let watcher = watcher(&device).await;
    // A service manager sends its orders to all processes of a service.
    for order in ["TERM", "INT", "HUP"] {
        send(order, watcher);
    }
    up.adit.kill().await;
    world
        .ollama
        .wait_for(|now| now.cancelled == 1 && now.running == 0, SOON)
        .await
        .expect("the watcher has told the server");
    gone(watcher).await;
    let logs = device.adit(&["logs"], "").await;
    assert!(logs.stdout.contains("has ended without a word: the server is told"), "{logs:?}");
    let again = device.up(&[]).await;
    let answer = raw::exchange(again.address, raw::ROOT).await;
    assert!(answer.ends_with("Ollama is running"), "{answer}");
}

#[tokio::test]
async fn an_adit_that_is_started_again_at_once_keeps_its_session() {
    if cannot_look() {
        return;
    }
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    for _ in 0..3 {
        let up = device.up(&[]).await;
        let old = watcher(&device).await;
        up.end().await;
        let mut up = device.start(&[]).await;
        gone(old).await;
        let answer = raw::exchange(up.address, raw::ROOT).await;
        assert!(answer.ends_with("Ollama is running"), "{answer}");
        let log = up.adit.log();
        assert!(!log.contains("another `adit up`"), "{log}");
        up.adit.kill().await;
    }
}

#[tokio::test]
async fn a_watcher_ends_with_an_adit_that_is_stopped_in_order_and_takes_no_session_over() {
    if cannot_look() {
        return;
    }
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    for order in ["INT", "TERM", "HUP"] {
        let mut up = device.up(&[]).await;
        let watcher = watcher(&device).await;
        up.adit.signal(order);
        assert_eq!(up.adit.ended().await.expect("it ends").code(), Some(0));
        assert!(!Path::new(&format!("/proc/{watcher}")).exists(), "it was waited for");
    }
    let audit = world.aditd(&["audit", "--json"]).await.stdout;
    assert!(audit.contains("\"connect\"") && !audit.contains("\"taken_over\""), "{audit}");
}

#[tokio::test]
async fn a_watcher_that_dies_leaves_no_zombie_and_the_tunnel_goes_on() {
    if cannot_look() {
        return;
    }
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let mut up = device.up(&[]).await;
    let watcher = watcher(&device).await;
    send("KILL", watcher);
    gone(watcher).await;
    let answer = raw::exchange(up.address, raw::ROOT).await;
    assert!(answer.ends_with("Ollama is running"), "{answer}");
    up.adit.signal("TERM");
    assert_eq!(up.adit.ended().await.expect("it ends").code(), Some(0));
}

#[tokio::test]
async fn a_watcher_of_a_tunnel_that_never_came_up_has_nothing_to_tell() {
    if cannot_look() {
        return;
    }
    let mut world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    world.kill_server().await;
    let mut up = device.start(&[]).await;
    let watcher = watcher(&device).await;
    up.adit.kill().await;
    gone(watcher).await;
    world.restart_server().await;
    let audit = world.aditd(&["audit", "--json"]).await.stdout;
    assert!(!audit.contains("\"connect\""), "{audit}");
}
