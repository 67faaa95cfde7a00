//! What a request costs in tokens: unreported tokens are counted, or estimated and marked as
//! estimates.

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
    start_limited(token_interval, load_time, "").await
}

async fn start_limited(token_interval: Duration, load_time: Duration, config: &str) -> (World, Up) {
    let options = Options { token_interval, load_time, ..Options::default() };
    let world = World::start_configured(PROGRAM, options, &[], config).await;
    let up = world.device_as("laptop", "infer").await.up(&[]).await;
    (world, up)
}

/// The lines of the log about requests, once there are `count`.
async fn requests(world: &World, count: usize) -> Vec<Value> {
    world.audit_has(count, |line| line["event"] == "request").await
}

/// The tokens that the device has used today.
async fn used(world: &World) -> u64 {
    let shown = world.aditd(&["device", "show", "laptop", "--json"]).await;
    let shown: Value = serde_json::from_str(&shown.stdout).expect("JSON");
    shown["tokens_today"]["used"].as_u64().unwrap_or_else(|| panic!("{shown:#}"))
}

#[tokio::test]
async fn the_pieces_of_a_v1_stream_without_usage_are_counted() {
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
        // The prompt's tokens are not reported.
        assert_eq!(line["tokens_estimated"], true, "{line:#}");
    }
    let used = used(&world).await;
    assert!((200..230).contains(&used), "{used}");
}

#[tokio::test]
async fn a_prompt_whose_client_left_is_charged_an_estimate() {
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
async fn an_answer_in_one_piece_whose_client_left_is_charged_by_time() {
    let (world, up) = start(Duration::from_secs(600), Duration::ZERO).await;
    let json = r#"{"model":"stand-in:latest","prompt":"x","stream":false}"#;
    let mut left = raw::connect(up.address).await;
    left.write_all(raw::post("/api/generate", json).as_bytes()).await.expect("sent");
    world.ollama.wait_for(|now| now.running == 1, SOON).await.expect("it runs");
    tokio::time::sleep(Duration::from_secs(1)).await;
    drop(left);
    let line = &requests(&world, 1).await[0];
    assert_eq!((&line["end"], &line["tokens_estimated"]), (&"cancelled".into(), &true.into()));
    // 20 per second, until an answer has shown how fast the model is.
    assert!(line["tokens_out"].as_u64().is_some_and(|n| n >= 19), "{line:#}");
}

#[tokio::test]
async fn reported_counts_are_not_estimated_and_a_refusal_costs_nothing() {
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

const USED_UP: &str = "adit: device `laptop` may use 20 tokens per day (UTC), and has used them";

/// The lines of an answer's body, without the chunk sizes.
fn body_lines(answer: &str) -> Vec<Value> {
    let body = answer.split_once("\r\n\r\n").expect("a body").1;
    let lines = body.lines().map(|line| line.strip_prefix("data: ").unwrap_or(line));
    lines
        .filter(|line| line.starts_with('{'))
        .map(|line| serde_json::from_str(line).expect(line))
        .collect()
}

#[tokio::test]
async fn a_running_answer_ends_at_the_limit_with_an_error_in_its_own_format() {
    let limit = "[limits]\ntokens_per_day = 20";
    let native = r#"{"model":"stand-in:latest","prompt":"x","options":{"num_predict":5000}}"#;
    let openai = r#"{"model":"stand-in:latest","messages":[{"role":"user","content":"x"}],"stream":true,"max_tokens":5000}"#;
    for (path, json) in [("/api/generate", native), ("/v1/chat/completions", openai)] {
        let (world, up) = start_limited(Duration::from_millis(20), Duration::ZERO, limit).await;
        let answer = raw::exchange(up.address, &raw::post(path, json)).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
        assert!(answer.ends_with("\r\n0\r\n\r\n"), "it ends as an answer does: {answer}");
        let lines = body_lines(&answer);
        let error = &lines.last().expect("a line")["error"];
        let sentence = error["message"].as_str().or(error.as_str()).expect("a sentence");
        assert!(sentence.starts_with(USED_UP), "{sentence}");
        assert_eq!(error.is_object(), path.starts_with("/v1"), "{error}");
        assert!(answer.contains("data: {\"error\"") == path.starts_with("/v1"), "{answer}");
        let line = &requests(&world, 1).await[0];
        assert_eq!(
            (&line["end"], &line["why"], &line["status"]),
            (&"refused".into(), &"tokens_per_day".into(), &200.into()),
            "{line:#}"
        );
        let used = used(&world).await;
        // Pieces may be joined on the way, on a slow machine.
        assert!((20..=50).contains(&used), "{used}");
        world.ollama.wait_for(|now| now.running == 0, SOON).await.expect("the model stops");
    }
}

#[tokio::test]
async fn parallel_requests_of_one_device_end_at_its_limit_together() {
    const AT_ONCE: u64 = 20;
    const LIMIT: u64 = 300;
    let limit = format!("[limits]\ntokens_per_day = {LIMIT}");
    let (world, up) = start_limited(Duration::from_millis(20), Duration::ZERO, &limit).await;
    let mut running = tokio::task::JoinSet::new();
    for seed in 0..AT_ONCE {
        let to = up.address;
        running.spawn(async move { raw::exchange(to, &raw::generate(5000, seed)).await });
    }
    for answer in running.join_all().await {
        assert!(
            answer.contains("\"error\":\"adit: device `laptop` may use 300 tokens"),
            "{answer}"
        );
    }
    requests(&world, AT_ONCE as usize).await;
    // Each may have had some pieces under way when the last token was used.
    let used = used(&world).await;
    assert!((LIMIT..=LIMIT + 10 * AT_ONCE).contains(&used), "{used}");
}

#[tokio::test]
async fn an_answer_in_one_piece_is_refused_when_the_limit_is_reached_before_it_comes() {
    let limit = "[limits]\ntokens_per_day = 20";
    let (_world, up) = start_limited(Duration::from_secs(600), Duration::ZERO, limit).await;
    let json = r#"{"model":"stand-in:latest","prompt":"x","stream":false}"#;
    let refused = raw::exchange(up.address, &raw::post("/api/generate", json)).await;
    assert!(refused.starts_with("HTTP/1.1 429 ") && refused.contains(USED_UP), "{refused}");
    assert!(refused.contains("\r\nRetry-After: "), "{refused}");
}
