//! Memory for bytes that are read ahead: it is counted, shared and given back.

use std::time::Duration;

use tests::{
    process::Process,
    raw,
    world::{SOON, World},
};
use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::PROGRAM;

/// Nearly the longest allowed head.
const HALF_HEAD: usize = 60 * 1024;

/// Sends a head that never ends.
async fn half_head(to: std::net::SocketAddr) -> TcpStream {
    let mut app = raw::connect(to).await;
    let begun = format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {}", "x".repeat(HALF_HEAD));
    app.write_all(begun.as_bytes()).await.expect("sent");
    app
}

/// The resident memory of a process once it grows no more, in KiB.
async fn peak(process: &Process) -> u64 {
    let settled = async {
        let (mut peak, mut unchanged) = (0, 0);
        while unchanged < 20 {
            let now = process.rss();
            unchanged = if now > peak + 1024 { 0 } else { unchanged + 1 };
            peak = peak.max(now);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        peak
    };
    tokio::time::timeout(2 * SOON, settled).await.expect("memory stops growing")
}

#[tokio::test]
async fn incomplete_heads_take_at_most_the_devices_share_of_memory_and_give_it_back() {
    const MIB: u64 = 1024;
    /// One device may have half of 192 MiB.
    const SHARE: u64 = 96 * MIB;
    /// 180 MB together.
    const ALL: usize = 3000;
    /// What the streams need themselves, with what the allocator rounds up: 16 KiB each.
    const STREAMS: u64 = ALL as u64 * 16;
    /// What one connection can leave unread in QUIC.
    const UNREAD: u64 = 68 * MIB;
    /// How close to its former size the memory must return, of some 190 MiB that it has grown: pages in
    /// which something else lives are kept, and on a loaded machine there are more of them.
    const RETURNED: u64 = 40 * MIB;
    common::machine::process::raise_descriptor_limit();
    let world = World::start(PROGRAM).await;
    let (script, person) = (world.up("script").await, world.up("person").await);
    let (before, client_before) = (world.aditd.rss(), script.adit.rss());
    let mut half = Vec::new();
    for _ in 0..ALL {
        half.push(half_head(script.address).await);
    }
    let during = peak(&world.aditd).await;
    assert!(during > before + SHARE / 4, "{during} KiB, {before} before: heads are not kept");
    // Another device gets memory.
    assert!(raw::exchange(person.address, raw::ROOT).await.starts_with("HTTP/1.1 200 OK"));
    let during = during.max(world.aditd.rss());
    assert!(during < before + SHARE + STREAMS + UNREAD, "{during} KiB, {before} before");
    drop(half);
    let over = async {
        let is_busy = |status: serde_json::Value| {
            let sessions = status["sessions"].as_array().expect("sessions").clone();
            sessions.iter().any(|session| session["streams"] != 0)
        };
        while is_busy(world.status().await) {}
    };
    tokio::time::timeout(2 * SOON, over).await.expect("all have ended");
    let returned = |before: u64| move |rss: u64| rss < before + RETURNED;
    let after = world.aditd.rss_until(returned(before)).await;
    script.adit.rss_until(returned(client_before)).await;
    // The memory that was given back can be used again, and not more.
    let mut again = Vec::new();
    for _ in 0..ALL {
        again.push(half_head(script.address).await);
    }
    assert!(raw::exchange(person.address, raw::ROOT).await.starts_with("HTTP/1.1 200 OK"));
    let second = world.aditd.rss();
    println!("KiB: {before} before, {during} during, {after} after, {second} the second time");
    assert!(second < before + SHARE + STREAMS + UNREAD, "{second} KiB, {before} before");
}
