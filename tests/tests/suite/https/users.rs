//! A user's devices and keys have one share together, and end together.

use std::time::Duration;

use serde_json::Value;
use tests::{
    cli_assert::assert_ok,
    ollama::Options,
    raw,
    world::{SOON, Up},
};
use tokio::{io::AsyncWriteExt, net::TcpStream};

use super::{Https, endless::Endless};

const GENERATE: &str = r#"{"model":"stand-in:latest","prompt":"x","options":{"num_predict":4}}"#;
const COPY: &str = r#"{"source":"stand-in","destination":"other"}"#;

/// A device of this user, with its tunnel up.
async fn device(https: &Https, name: &str, user: &str) -> Up {
    let invited = https.world.aditd(&["invite", name, "--user", user]).await;
    assert_ok(&invited);
    let device = https.world.stranger(name);
    assert_ok(&device.enroll(&invited.stdout, &[]).await);
    device.up(&[]).await
}

/// An answer without an end, through a tunnel. Some of it has come.
async fn endless(up: &Up) -> TcpStream {
    let mut app = raw::connect(up.address).await;
    app.write_all(raw::generate(-1, 1).as_bytes()).await.expect("sent");
    raw::read_exactly(&mut app, 300).await;
    app
}

/// The status, once it is as `is_so` says.
async fn status_when(https: &Https, is_so: impl Fn(&Value) -> bool) -> Value {
    let wait = async {
        loop {
            let status = https.world.status().await;
            if is_so(&status) {
                return status;
            }
        }
    };
    tokio::time::timeout(SOON, wait).await.expect("in time")
}

#[tokio::test]
async fn devices_and_keys_of_a_user_share_a_limit_and_a_revoked_user_loses_all_of_them_at_once() {
    let options = Options { token_interval: Duration::from_millis(20), ..Options::default() };
    let https = Https::start(options, "[limits]\nat_once = 2").await;
    let laptop = device(&https, "laptop", "alice").await;
    let phone = https.key("phone", &["--user", "alice"]).await;
    let desk = https.key("desk", &["--user", "bob"]).await;
    let mut app = endless(&laptop).await;
    let answer = Endless::begun(&https, &phone).await;
    let refused = https.with_key(&phone, "/api/generate", &["--data", GENERATE]).await;
    assert_eq!(refused.status, 429, "{refused:?}");
    assert!(refused.body.contains("user `alice` may have 2 requests"), "{refused:?}");
    let refused = raw::exchange(laptop.address, &raw::generate(1, 1)).await;
    assert!(refused.starts_with("HTTP/1.1 429 "), "{refused}");
    assert_eq!(https.with_key(&desk, "/api/generate", &["--data", GENERATE]).await.status, 200);

    let status = status_when(&https, |status| status["users"][0]["running"] == 2).await;
    let alice = &status["users"][0];
    assert_eq!((&alice["user"], &alice["at_once"]), (&"alice".into(), &2.into()), "{status}");
    let requests = alice["requests"].as_array().expect("a list");
    let mut callers: Vec<_> = requests.iter().map(|one| (&one["kind"], &one["device"])).collect();
    callers.sort_by_key(|caller| caller.1.to_string());
    let (device, key): (Value, Value) = ("device".into(), "key".into());
    let (of_laptop, of_phone): (Value, Value) = ("laptop".into(), "phone".into());
    assert_eq!(callers, [(&device, &of_laptop), (&key, &of_phone)]);
    assert!(requests.iter().all(|one| one["service"] == "ollama"), "{status}");
    let text = https.world.aditd(&["status"]).await.stdout;
    assert!(text.contains("alice, 2 of 2 running"), "{text}");

    assert_ok(&https.world.aditd(&["user", "revoke", "alice", "--reason", "left"]).await);
    let (_, ending) = raw::read_to_end(&mut app).await;
    assert_eq!(ending, raw::Ending::Reset, "a cut never looks like an end");
    answer.was_cut().await;
    let stopped = https.world.ollama.wait_for(|now| now.running == 0, SOON).await;
    stopped.expect("the service stops");
    let refused = https.with_key(&phone, "/api/tags", &[]).await;
    assert_ne!(refused.status, 200, "{refused:?}");
    assert_eq!(https.with_key(&desk, "/api/tags", &[]).await.status, 200);
}

#[tokio::test]
async fn the_tokens_of_the_day_are_shared_by_all_that_a_user_has() {
    let https = Https::start(Options::default(), "[limits]\ntokens_per_day = 20").await;
    let laptop = device(&https, "laptop", "alice").await;
    let phone = https.key("phone", &["--user", "alice"]).await;
    let desk = https.key("desk", &["--user", "bob"]).await;
    let used = raw::exchange(laptop.address, &raw::generate(30, 1)).await;
    assert!(used.starts_with("HTTP/1.1 200 "), "{used}");
    let refused = https.with_key(&phone, "/api/generate", &["--data", GENERATE]).await;
    assert_eq!(refused.status, 429, "{refused:?}");
    assert!(refused.body.contains("user `alice` may use 20 tokens per day"), "{refused:?}");
    assert_eq!(https.with_key(&desk, "/api/generate", &["--data", GENERATE]).await.status, 200);
}

#[tokio::test]
async fn the_requests_of_a_user_wait_as_one_whatever_they_come_from() {
    let options = Options { token_interval: Duration::from_millis(20), ..Options::default() };
    let https = Https::start(options, "max_in_flight = 1").await;
    let laptop = device(&https, "laptop", "alice").await;
    let phone = https.key("phone", &["--user", "alice"]).await;
    let desk = https.key("desk", &["--user", "bob"]).await;
    let _running = endless(&laptop).await;
    let waits = |count: usize| {
        move |status: &Value| {
            status["queue"]["waiting"].as_array().is_some_and(|all| all.len() == count)
        }
    };
    // Two of Alice's wait before Bob comes: one of the laptop, one of the phone.
    let mut second = raw::connect(laptop.address).await;
    second.write_all(raw::generate(-1, 1).as_bytes()).await.expect("sent");
    status_when(&https, waits(1)).await;
    let _third = Endless::ask(&https, &phone);
    status_when(&https, waits(2)).await;
    let _of_bob = Endless::ask(&https, &desk);
    let status = status_when(&https, waits(3)).await;
    let waiting = status["queue"]["waiting"].as_array().expect("a list");
    let of_bob = waiting.iter().position(|one| one["user"] == "bob").expect("bob waits");
    assert!(of_bob < 2, "a second device is no second turn: {status}");
}

#[tokio::test]
async fn the_role_of_a_user_is_that_of_all_devices_and_keys() {
    let https = Https::start(Options::default(), "").await;
    let laptop = device(&https, "laptop", "alice").await;
    let phone = https.key("phone", &["--user", "alice"]).await;
    let desk = https.key("desk", &["--user", "bob"]).await;
    let by_laptop = async || {
        let told = raw::exchange(laptop.address, &raw::post("/api/copy", COPY)).await;
        told.split(' ').nth(1).map(str::to_owned).expect("a status")
    };
    let by_key = async |key: &str| https.with_key(key, "/api/copy", &["--data", COPY]).await.status;
    assert_eq!((by_laptop().await.as_str(), by_key(&phone).await), ("403", 403));
    assert_ok(&https.world.aditd(&["user", "role", "alice", "models"]).await);
    assert_ne!(by_laptop().await, "403");
    assert_ne!(by_key(&phone).await, 403);
    assert_eq!(by_key(&desk).await, 403, "that of another user");
}
