//! Many connections leak nothing.

use tests::{
    endurance::held::{quiet, quiet_after},
    raw,
    timing::usual_or_long,
    world::World,
};
use tokio::task::JoinSet;

use crate::PROGRAM;

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
    let before = quiet(&world, &device, &up, "before").await;
    short_connections(&up, usual_or_long(3_000, 10_000)).await;
    let after = quiet_after(&world, &device, &up, &before).await;
    assert_eq!(after.is_more_than(&before), None);
}
