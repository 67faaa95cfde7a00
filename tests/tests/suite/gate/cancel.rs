//! Every cancellation reaches the service, whatever it cancels.

use std::time::Duration;

use tests::{
    ollama::Options,
    raw,
    timing::usual_or_long,
    world::{SOON, World},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinSet,
};

use crate::PROGRAM;

const AT_ONCE: usize = 40;

/// A request for an endless answer, cancelled after the answer has begun.
async fn cancelled(address: std::net::SocketAddr, way: u64) {
    let mut app = raw::connect(address).await;
    app.write_all(raw::generate(-1, 1).as_bytes()).await.expect("sent");
    raw::read_exactly(&mut app, 300).await;
    match way % 3 {
        0 => {}
        1 => app.set_zero_linger().expect("linger"),
        _ => {
            app.shutdown().await.expect("half-closed");
            let _ = tokio::time::timeout(SOON, app.read_to_end(&mut Vec::new()))
                .await
                .expect("it ends");
        }
    }
}

#[tokio::test]
async fn each_cancelled_answer_is_cancelled_at_the_service() {
    let options = Options { token_interval: Duration::from_millis(20), ..Options::default() };
    let world = World::start_with(PROGRAM, options, &[]).await;
    let up = world.up("laptop").await;
    let mut running = JoinSet::new();
    let count = usual_or_long(300, 1000);
    for way in 0..count {
        if running.len() >= AT_ONCE {
            running.join_next().await.expect("one").expect("no panic");
        }
        running.spawn(cancelled(up.address, way));
    }
    while let Some(ended) = running.join_next().await {
        ended.expect("no panic");
    }
    let all = world
        .ollama
        .wait_for(|c| c.cancelled + c.completed == count, SOON)
        .await
        .expect("all have ended");
    assert_eq!((all.started, all.cancelled, all.running), (count, count, 0));
}

#[tokio::test]
async fn answers_without_streaming_and_answers_that_have_not_begun_are_cancelled_too() {
    let options = Options { load_time: Duration::from_secs(3600), ..Options::default() };
    let world = World::start_with(PROGRAM, options, &[]).await;
    let up = world.up("laptop").await;
    for _ in 0..usual_or_long(8, 20) {
        let before = world.ollama.counters();
        let mut waiting = Vec::new();
        for i in 0..10 {
            let mut app = raw::connect(up.address).await;
            let json = format!(r#"{{"model":"stand-in","prompt":"x","stream":{}}}"#, i % 2 == 0);
            app.write_all(raw::post("/api/generate", &json).as_bytes()).await.expect("sent");
            waiting.push(app);
        }
        world.ollama.wait_for(|c| c.started == before.started + 10, SOON).await.expect("all wait");
        drop(waiting);
        world
            .ollama
            .wait_for(|c| c.cancelled == before.cancelled + 10 && c.running == 0, SOON)
            .await
            .expect("all are cancelled");
    }
}
