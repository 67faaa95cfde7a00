//! Every cancellation reaches the service, whatever it cancels.

use std::time::Duration;

use tests::{
    endurance::cancels,
    ollama::Options,
    raw,
    timing::usual_or_long,
    world::{SOON, World},
};
use tokio::io::AsyncWriteExt;

use crate::PROGRAM;

#[tokio::test]
async fn each_cancelled_answer_is_cancelled_at_the_service_and_no_other_one() {
    let options = Options { token_interval: Duration::from_millis(20), ..Options::default() };
    let world = World::start_with(PROGRAM, options, &[]).await;
    let up = world.up("laptop").await;
    let whole = cancels::all(&world, up.address, usual_or_long(300, 1000), 1).await;
    assert!(whole > 0);
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
