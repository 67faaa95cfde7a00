//! What a request costs of the day's tokens: what is not said is counted, or estimated and marked
//! as that.

use std::time::Duration;

use serde_json::Value;
use tests::{
    ollama::Options,
    raw,
    world::{SOON, Up, World},
};
use tokio::io::AsyncWriteExt;

use crate::PROGRAM;

async fn start(token_interval: Duration, load_time: Duration) -> (World, Up) {
    let options = Options { token_interval, load_time, ..Options::default() };
    let world = World::start_with(PROGRAM, options, &[]).await;
    let up = world.device_as("laptop", "infer").await.up(&[]).await;
    (world, up)
}

/// The lines of the log about requests, when there are so many.
async fn requests(world: &World, count: usize) -> Vec<Value> {
    let wait = async {
        loop {
            let log = world.aditd(&["audit", "--json"]).await;
            let lines = log.stdout.lines();
            let lines: Vec<Value> = lines
                .map(|line| serde_json::from_str(line).expect("JSON"))
                .filter(|line: &Value| line["event"] == "request")
                .collect();
            if lines.len() >= count {
                return lines;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, wait).await.expect("all are noted")
}

/// The tokens that the device has used today.
async fn used(world: &World) -> u64 {
    let shown = world.aditd(&["device", "show", "laptop", "--json"]).await;
    let shown: Value = serde_json::from_str(&shown.stdout).expect("JSON");
    shown["tokens_today"]["used"].as_u64().unwrap_or_else(|| panic!("{shown:#}"))
}

#[tokio::test]
async fn the_pieces_of_a_v1_stream_are_counted_where_it_does_not_say_its_usage() {
    let (world, up) = start(Duration::ZERO, Duration::ZERO).await;
    let chat = r#"{"model":"stand-in:latest","messages":[{"role":"user","content":"x"}],"#;
    let text = r#"{"model":"stand-in:latest","prompt":"x","#;
    for (path, json) in [("/v1/chat/completions", chat), ("/v1/completions", text)] {
        let json = format!(r#"{json}"stream":true,"max_tokens":100,"seed":1}}"#);
        let answer = raw::exchange(up.address, &raw::post(path, &json)).await;
        assert!(answer.contains("[DONE]") && !answer.contains("usage"), "{answer}");
    }
    for line in requests(&world, 2).await {
        assert_eq!(line["tokens_out"], 100, "{line:#}");
        // Of the prompt nothing was said.
        assert_eq!(line["tokens_estimated"], true, "{line:#}");
    }
    let used = used(&world).await;
    assert!((200..230).contains(&used), "{used}");
}

#[tokio::test]
async fn a_prompt_that_was_left_while_it_was_read_is_charged_an_estimate() {
    let (world, up) = start(Duration::from_millis(5), Duration::from_secs(600)).await;
    let prompt = "word ".repeat(400);
    let json = format!(r#"{{"model":"stand-in:latest","prompt":"{prompt}"}}"#);
    let mut left = raw::connect(up.address).await;
    left.write_all(raw::post("/api/generate", &json).as_bytes()).await.expect("sent");
    world.ollama.wait_for(|now| now.running == 1, SOON).await.expect("it is read");
    drop(left);
    let line = &requests(&world, 1).await[0];
    assert_eq!((&line["end"], &line["tokens_out"]), (&"cancelled".into(), &0.into()), "{line:#}");
    assert_eq!(line["tokens_estimated"], true, "{line:#}");
    assert!(line["tokens_in"].as_u64().is_some_and(|n| (400..600).contains(&n)), "{line:#}");
    assert!((400..600).contains(&used(&world).await));
    let shown = world.aditd(&["audit"]).await.stdout;
    let row = shown.lines().find(|row| row.contains("/api/generate")).expect("a row");
    assert!(row.contains(&format!(" ~{} ", line["tokens_in"])), "{row}");
}

#[tokio::test]
async fn an_answer_in_one_piece_that_was_not_waited_for_is_charged_by_the_time_it_took() {
    let (world, up) = start(Duration::from_secs(600), Duration::ZERO).await;
    let json = r#"{"model":"stand-in:latest","prompt":"x","stream":false}"#;
    let mut left = raw::connect(up.address).await;
    left.write_all(raw::post("/api/generate", json).as_bytes()).await.expect("sent");
    world.ollama.wait_for(|now| now.running == 1, SOON).await.expect("it runs");
    tokio::time::sleep(Duration::from_secs(1)).await;
    drop(left);
    let line = &requests(&world, 1).await[0];
    assert_eq!((&line["end"], &line["tokens_estimated"]), (&"cancelled".into(), &true.into()));
    // 20 in a second, until an answer has shown how fast the model is.
    assert!(line["tokens_out"].as_u64().is_some_and(|n| n >= 19), "{line:#}");
}

#[tokio::test]
async fn what_an_answer_says_itself_is_no_estimate_and_a_refusal_costs_nothing() {
    let (world, up) = start(Duration::ZERO, Duration::ZERO).await;
    raw::exchange(up.address, &raw::generate(30, 1)).await;
    let other = r#"{"model":"no-such-model","prompt":"x"}"#;
    raw::exchange(up.address, &raw::post("/api/generate", other)).await;
    let load = r#"{"model":"stand-in:latest"}"#;
    raw::exchange(up.address, &raw::post("/api/generate", load)).await;
    for line in requests(&world, 3).await {
        assert_eq!(line["tokens_estimated"], Value::Null, "{line:#}");
    }
    assert_eq!(used(&world).await, 31);
}
