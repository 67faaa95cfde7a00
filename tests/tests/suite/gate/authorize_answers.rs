//! `authorize`: what it is told, and what its answer may say beside yes and no.

use std::sync::atomic::Ordering::Relaxed;

use serde_json::Value;
use tests::{raw, world::SOON};
use tokio::io::AsyncWriteExt;

use super::authorize::{Guarded, TAGS, status};

#[tokio::test]
async fn authorize_gets_the_uri_and_the_named_fields_as_the_application_sent_them() {
    let guarded = Guarded::start("yes", "['request']").await;
    let up = guarded.world.up("laptop").await;
    let request = TAGS.replace(
        "Host: ",
        "AUTHORIZATION: Bearer of-the-team\r\nX-Team: a\r\nX-Team: b\r\nCookie: c=1\r\nHost: ",
    );
    assert_eq!(status(&up, &request).await, 200);
    let head = guarded.checker.last_head().to_lowercase();
    assert!(head.contains("x-original-uri: /api/tags?secret=1"), "{head}");
    assert!(head.contains("x-original-method: get"), "{head}");
    assert!(!head.contains("of-the-team") && !head.contains("cookie"), "{head}");
    let question = guarded.checker.last();
    assert_eq!(
        (&question["uri"], &question["path"], &question["enrolled"]),
        (&"/api/tags?secret=1".into(), &"/api/tags".into(), &"code".into())
    );

    guarded.ask_with("yes", "authorize_headers = ['Authorization', 'x-team']").await;
    assert_eq!(status(&up, &request).await, 200);
    let head = guarded.checker.last_head().to_lowercase();
    assert!(head.contains("authorization: bearer of-the-team\r\n"), "{head}");
    assert!(head.contains("x-team: a\r\n") && head.contains("x-team: b"), "{head}");
    assert!(!head.contains("cookie"), "{head}");
}

#[tokio::test]
async fn authorize_may_choose_another_role_and_name_the_person() {
    let guarded = Guarded::start("yes", "['request']").await;
    let up = guarded.world.up("laptop").await;
    let role = guarded.world.aditd(&["device", "role", "laptop", "infer"]).await;
    assert_eq!(role.code, Some(0), "{}", role.stderr);
    let copy = raw::post("/api/copy", r#"{"source":"stand-in","destination":"other"}"#);
    let refused = raw::exchange(up.address, &copy).await;
    assert!(refused.starts_with("HTTP/1.1 403 ") && refused.contains("`infer`"), "{refused}");
    assert_eq!(
        guarded.checker.last()["role"],
        "infer",
        "its own role, although it lacks the route"
    );

    guarded.ask_at("grants").await;
    assert_ne!(status(&up, &copy).await, 403);
    assert_eq!(
        status(&up, "GET /debug/x HTTP/1.1\r\nHost: localhost\r\n\r\n").await,
        403,
        "the granted role lacks it"
    );
    let lines = async || {
        let log = guarded.world.aditd(&["audit", "--json", "--device", "laptop"]).await.stdout;
        let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
        lines.filter(|line| line["path"] == "/api/copy").collect::<Vec<_>>()
    };
    let written = async { while lines().await.len() < 2 {} };
    tokio::time::timeout(SOON, written).await.expect("both requests");
    let last = lines().await.pop().expect("a line");
    assert_eq!((&last["user"], &last["role"]), (&"ada".into(), &"models".into()), "{last}");

    guarded.ask_at("unknown-role").await;
    let refused = raw::exchange(up.address, TAGS).await;
    assert!(
        refused.starts_with("HTTP/1.1 403 ") && refused.contains("nobody-made-it"),
        "{refused}"
    );

    guarded.ask_at("models").await;
    let generate = r#"{"model":"stand-in","prompt":"x","options":{"num_predict":1}}"#;
    let refused = raw::exchange(up.address, &raw::post("/api/generate", generate)).await;
    assert!(refused.starts_with("HTTP/1.1 403 ") && refused.contains("other*"), "{refused}");
    assert_eq!(status(&up, TAGS).await, 200, "a route without a model");
    assert_eq!(guarded.world.ollama.counters().started, 0);

    guarded.ask_at("broken").await;
    assert_eq!(status(&up, &copy).await, 403, "its own role has no such route");
    assert_eq!(status(&up, TAGS).await, 503);
}

#[tokio::test]
async fn a_refusal_of_authorize_reaches_the_application_as_it_was_written() {
    let guarded = Guarded::start("page", "['request']").await;
    let up = guarded.world.up("laptop").await;
    let refused = raw::exchange(up.address, TAGS).await;
    assert!(refused.starts_with("HTTP/1.1 401 ") && refused.ends_with("<p>Ask Ada."), "{refused}");
    assert!(refused.contains("Content-Type: text/html\r\n"), "{refused}");
    assert!(refused.contains("WWW-Authenticate: Bearer realm=\"team\"\r\n"), "{refused}");
    guarded.ask_at("long").await;
    let refused = raw::exchange(up.address, TAGS).await;
    assert!(refused.starts_with("HTTP/1.1 403 ") && refused.contains("`authorize`"), "{refused}");
    assert!(refused.len() < 2000, "a longer body than that is not passed on");
}

#[tokio::test]
async fn authorize_may_lower_the_limits_of_the_person_whom_it_names() {
    let guarded = Guarded::start("one-at-once", "['request']").await;
    let (laptop, desk) = (guarded.world.up("laptop").await, guarded.world.up("desk").await);
    let mut app = raw::connect(laptop.address).await;
    app.write_all(raw::generate(-1, 1).as_bytes()).await.expect("sent");
    raw::read_exactly(&mut app, 500).await;
    let refused = raw::exchange(desk.address, &raw::generate(1, 1)).await;
    assert!(refused.starts_with("HTTP/1.1 429 "), "{refused}");
    assert!(refused.contains("user `ada` may have 1 request running at once"), "{refused}");
    drop(app);
    guarded.world.ollama.wait_for(|now| now.running == 0, SOON).await.expect("it stops");

    guarded.ask_at("few-tokens").await;
    let before = guarded.world.ollama.counters().started;
    let cut = raw::exchange(laptop.address, &raw::generate(-1, 1)).await;
    // The question costs some, and a fast service may use up the rest before the head of its answer
    // is forwarded: a 429 then.
    assert_eq!(guarded.world.ollama.counters().started, before + 1, "it was not refused: {cut}");
    assert!(cut.contains("user `bob` may use 60 tokens per day"), "{cut}");
    let refused = raw::exchange(desk.address, &raw::generate(1, 1)).await;
    assert!(refused.starts_with("HTTP/1.1 429 ") && refused.contains("user `bob`"), "{refused}");
    guarded.ask_at("yes").await;
    assert_eq!(status(&desk, &raw::generate(1, 1)).await, 200, "nobody has used up anything");

    // A chunked body is there as a whole before `authorize` has answered.
    guarded.ask_at("small-body").await;
    let started = guarded.world.ollama.counters().started;
    let json = r#"{"model":"stand-in","prompt":"x","options":{"num_predict":1}}"#;
    let chunked = format!(
        "POST /api/generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n{:x}\r\n{json}\r\n0\r\n\r\n",
        json.len()
    );
    assert_eq!(status(&desk, &chunked).await, 413);
    assert_eq!(status(&desk, &raw::post("/api/generate", json)).await, 413);
    assert_eq!(guarded.world.ollama.counters().started, started);

    guarded.ask_at("bad-limits").await;
    let started = guarded.world.ollama.counters().started;
    assert_eq!(
        status(&desk, &raw::generate(1, 1)).await,
        503,
        "what cannot be read allows nothing"
    );
    assert_eq!(guarded.world.ollama.counters().started, started);
}

#[tokio::test]
async fn what_runs_is_asked_about_again_a_no_cuts_it_and_an_outage_does_not() {
    let mut guarded = Guarded::start("say", "['request']").await;
    guarded.ask_with("say", "authorize_recheck = '1s'").await;
    let up = guarded.world.up("laptop").await;
    let mut app = raw::connect(up.address).await;
    app.write_all(raw::generate(-1, 1).as_bytes()).await.expect("sent");
    raw::read_exactly(&mut app, 500).await;
    guarded.checker.wait_for(2).await;
    guarded.checker.say.store(500, Relaxed);
    let before = guarded.checker.count();
    guarded.checker.wait_for(before + 3).await;
    raw::read_exactly(&mut app, 1000).await;
    guarded.checker.say.store(403, Relaxed);
    let (_, ending) = raw::read_to_end(&mut app).await;
    assert_eq!(ending, raw::Ending::Reset, "a cut never looks like an end");
    guarded.world.ollama.wait_for(|now| now.running == 0, SOON).await.expect("it stops");
}
