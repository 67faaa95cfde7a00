//! Many connections leak nothing.

use std::time::Duration;

use tests::{
    raw,
    timing::usual_or_long,
    world::{SOON, World},
};
use tokio::task::JoinSet;

use crate::PROGRAM;

/// What the two processes hold.
#[derive(Debug)]
struct Held {
    fds: (usize, usize),
    tasks: (u64, u64),
    rss_kib: (u64, u64),
}

async fn held(world: &World, device: &tests::world::Device, up: &tests::world::Up) -> Held {
    let tasks = |status: serde_json::Value| status["tasks"].as_u64().expect("a number");
    Held {
        tasks: (tasks(world.status().await), tasks(device.status().await)),
        fds: (world.aditd.fds(), up.adit.fds()),
        rss_kib: (world.aditd.rss(), up.adit.rss()),
    }
}

async fn short_connections(up: &tests::world::Up, count: usize) {
    let mut running = JoinSet::new();
    for i in 0..count {
        let address = up.address;
        running.spawn(async move {
            // Every tenth connection is reset in the middle.
            if i % 10 == 0 {
                let tcp = raw::connect(address).await;
                tcp.set_zero_linger().expect("linger");
            } else {
                let answer = raw::exchange(address, "GET / HTTP/1.0\r\n\r\n").await;
                assert!(answer.ends_with("Ollama is running"), "{answer}");
            }
        });
        if running.len() >= 50 {
            running.join_next().await.expect("one").expect("no panic");
        }
    }
    while let Some(ended) = running.join_next().await {
        ended.expect("no panic");
    }
}

#[tokio::test]
async fn thousands_of_short_connections_leak_no_descriptor_task_or_memory() {
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let up = device.up(&[]).await;
    // The first connections fill pools and caches, which stay.
    short_connections(&up, 1000).await;
    let quiet = async |what: &str| {
        let settled = async {
            loop {
                let now = held(&world, &device, &up).await;
                if device.status().await["connections"] == 0
                    && world.status().await["sessions"][0]["streams"] == 0
                {
                    return now;
                }
            }
        };
        tokio::time::timeout(SOON, settled)
            .await
            .unwrap_or_else(|_| panic!("{what}: connections stay open"))
    };
    let before = quiet("before").await;
    short_connections(&up, usual_or_long(3_000, 10_000)).await;
    let mut after = quiet("after").await;
    // Sockets are closed a moment after their last byte.
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while (after.fds.0 > before.fds.0 || after.fds.1 > before.fds.1 || after.tasks != before.tasks)
        && tokio::time::Instant::now() < deadline
    {
        after = quiet("later").await;
    }
    assert!(after.fds.0 <= before.fds.0 && after.fds.1 <= before.fds.1, "{before:?} {after:?}");
    assert!(
        after.tasks.0 <= before.tasks.0 && after.tasks.1 <= before.tasks.1,
        "{before:?} {after:?}"
    );
    let grown = (
        after.rss_kib.0.saturating_sub(before.rss_kib.0),
        after.rss_kib.1.saturating_sub(before.rss_kib.1),
    );
    assert!(grown.0 < 10_000 && grown.1 < 10_000, "{before:?} {after:?}");
}
