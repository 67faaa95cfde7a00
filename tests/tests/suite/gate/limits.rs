//! Limits and the queue: a refusal says why, and one device never costs another its share.

use std::{net::SocketAddr, time::Duration};

use serde_json::Value;
use tests::{
    ollama::Options,
    raw::{self, Upstream},
    world::{SOON, Up, World},
};
use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::PROGRAM;

const VERSION: &str = "GET /api/version HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
/// More tokens than any test reads.
const ENDLESS: i64 = 1_000_000;

pub(super) async fn start(config: &str) -> World {
    let options = Options { token_interval: Duration::from_millis(5), ..Options::default() };
    World::start_configured(PROGRAM, options, &[], config).await
}

/// A device with the role `infer` and a tunnel that is up.
pub(super) async fn up(world: &World, name: &str) -> Up {
    world.device_as(name, "infer").await.up(&[]).await
}

/// A request whose answer has begun and does not end.
pub(super) async fn endless(world: &World, to: SocketAddr) -> TcpStream {
    let running = world.ollama.counters().running;
    let mut tcp = raw::connect(to).await;
    tcp.write_all(raw::generate(ENDLESS, 1).as_bytes()).await.expect("sent");
    world.ollama.wait_for(|now| now.running > running, SOON).await.expect("it runs");
    tcp
}

/// Waits until this many requests are in the queue.
pub(super) async fn line_has(world: &World, waiting: u64) {
    let wait = async {
        while world.status().await["waiting"] != waiting {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(SOON, wait)
        .await
        .unwrap_or_else(|_| panic!("the line never had {waiting}"));
}

/// The error message of an answer with this status.
#[track_caller]
pub(super) fn told(answer: &str, status: &str) -> String {
    assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    let body = answer.split("\r\n\r\n").nth(1).expect("a body");
    let body: Value = serde_json::from_str(body).unwrap_or_else(|e| panic!("{e}: {answer}"));
    body["error"].as_str().expect("a sentence").to_owned()
}

fn retry_after(answer: &str) -> Option<u64> {
    let line = answer.lines().find_map(|line| {
        line.to_ascii_lowercase().strip_prefix("retry-after: ").map(str::to_owned)
    });
    line.map(|secs| secs.trim().parse().expect("seconds"))
}

#[tokio::test]
async fn a_device_above_its_rate_gets_retry_after_and_another_device_is_served() {
    let world = start("[limits]\nrequests_per_minute = 1\nburst = 2").await;
    let (greedy, person) = (up(&world, "greedy").await, up(&world, "person").await);
    for _ in 0..2 {
        assert!(raw::exchange(greedy.address, VERSION).await.starts_with("HTTP/1.1 200 OK"));
    }
    let refused = raw::exchange(greedy.address, VERSION).await;
    let sentence = told(&refused, "429");
    assert!(
        sentence.starts_with("adit: device `greedy` may make 1 request per minute; try again in "),
        "{sentence}"
    );
    assert!(retry_after(&refused).is_some_and(|secs| (1..=60).contains(&secs)), "{refused}");
    assert!(raw::exchange(person.address, VERSION).await.starts_with("HTTP/1.1 200 OK"));
}

#[tokio::test]
async fn requests_at_once_are_counted_until_they_end() {
    let world = start("[devices.laptop.limits]\nat_once = 1").await;
    let up = up(&world, "laptop").await;
    let running = endless(&world, up.address).await;
    let refused = raw::exchange(up.address, VERSION).await;
    assert_eq!(
        told(&refused, "429"),
        "adit: device `laptop` may have 1 request running at once; try again when one has ended"
    );
    assert_eq!(retry_after(&refused), Some(1));
    drop(running);
    let wait = async {
        while !raw::exchange(up.address, VERSION).await.starts_with("HTTP/1.1 200 OK") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(SOON, wait).await.expect("there is room again");
}

#[tokio::test]
async fn a_reload_puts_new_limits_in_force() {
    let world = start("[limits]\nrequests_per_minute = 1").await;
    let up = up(&world, "laptop").await;
    assert!(raw::exchange(up.address, VERSION).await.starts_with("HTTP/1.1 200 OK"));
    assert!(raw::exchange(up.address, VERSION).await.starts_with("HTTP/1.1 429 "));
    std::fs::write(world.config(), "[limits]\nrequests_per_minute = 'none'").expect("written");
    assert_eq!(world.aditd(&["reload"]).await.code, Some(0));
    assert!(raw::exchange(up.address, VERSION).await.starts_with("HTTP/1.1 200 OK"));
}

#[tokio::test]
async fn a_body_above_the_limit_is_refused_with_or_without_a_content_length() {
    let world = start("[roles.infer.limits]\nbody = '1KiB'").await;
    let up = up(&world, "laptop").await;
    let json = format!(r#"{{"model":"stand-in:latest","prompt":"{}"}}"#, "x".repeat(2000));
    let refused = raw::exchange(up.address, &raw::post("/api/generate", &json)).await;
    assert_eq!(
        told(&refused, "413"),
        "adit: device `laptop` may send 1 KiB with a request (limit `body`)"
    );
    let chunked = format!(
        "POST /api/generate HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n{:x}\r\n{json}\r\n0\r\n\r\n",
        json.len()
    );
    let refused = raw::exchange(up.address, &chunked).await;
    assert!(refused.starts_with("HTTP/1.1 413 "), "{refused}");
    let small = raw::exchange(up.address, &raw::generate(1, 1)).await;
    assert!(small.starts_with("HTTP/1.1 200 OK"), "{small}");
    assert_eq!(world.ollama.counters().completed, 1, "what was refused was not generated");
}

#[tokio::test]
async fn the_tokens_used_today_survive_a_killed_server() {
    let mut world = start("[limits]\ntokens_per_day = 20").await;
    let day = || common::machine::process::unix_now() / 86_400;
    let today = day();
    let up = up(&world, "laptop").await;
    let used = raw::exchange(up.address, &raw::generate(30, 1)).await;
    assert!(used.starts_with("HTTP/1.1 200 OK"), "{used}");
    let kept = world.state().join("usage.json");
    let used_up = |usage: String| {
        let usage: Value = serde_json::from_str(&usage).expect("JSON");
        let tokens = usage["tokens"].as_object().expect("an object");
        tokens.values().filter_map(Value::as_u64).sum::<u64>() >= 20
    };
    let is_kept = async {
        while !std::fs::read_to_string(&kept).is_ok_and(used_up) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, is_kept).await.expect("it is kept");
    for killed in [false, true] {
        if killed {
            world.kill_server().await;
            world.restart_server().await;
        }
        // The client answers what was sent into the connection of the dead server.
        let mut refused = raw::exchange(up.address, VERSION).await;
        for _ in 0..100 {
            if !refused.starts_with("HTTP/1.1 502 ") {
                break;
            }
            refused = raw::exchange(up.address, VERSION).await;
        }
        if day() != today {
            return;
        }
        let sentence = told(&refused, "429");
        assert!(
            sentence.starts_with(
                "adit: device `laptop` may use 20 tokens per day (UTC), and has used them"
            ),
            "{sentence}"
        );
        assert!(
            retry_after(&refused).is_some_and(|secs| (1..=86_400).contains(&secs)),
            "{refused}"
        );
    }
}

/// A world whose server forwards one request at a time to this service.
async fn one_at_a_time(service: &Upstream) -> World {
    let flags = ["--upstream", &service.flag("http")];
    World::start_configured(PROGRAM, Options::default(), &flags, "max_in_flight = 1").await
}

/// The requests in the order in which they ended, with their devices, by the audit log.
async fn ended(world: &World) -> Vec<(String, String)> {
    let text = |line: &Value, name: &str| line[name].as_str().expect("text").to_owned();
    let lines = world.audit(&[]).await.into_iter();
    lines
        .filter(|l| l["event"] == "request")
        .map(|l| (text(&l, "device"), text(&l, "end")))
        .collect()
}

#[tokio::test]
async fn a_person_waits_for_at_most_one_turn_of_a_greedy_script() {
    const GREEDY: u64 = 12;
    let world = start("max_in_flight = 1").await;
    let (script, person) = (up(&world, "script").await, up(&world, "person").await);
    let first = endless(&world, script.address).await;
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..GREEDY {
        waiting.spawn(async move { raw::exchange(script.address, &raw::generate(1, 1)).await });
    }
    line_has(&world, GREEDY).await;
    waiting.spawn(async move { raw::exchange(person.address, &raw::generate(1, 2)).await });
    line_has(&world, GREEDY + 1).await;
    // A request that needs no GPU does not wait for one.
    assert!(raw::exchange(script.address, VERSION).await.starts_with("HTTP/1.1 200 OK"));
    drop(first);
    for answer in waiting.join_all().await {
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    }
    let all = tokio::time::timeout(SOON, async {
        loop {
            let ended = ended(&world).await;
            if ended.len() as u64 == GREEDY + 3 {
                return ended;
            }
        }
    });
    let all = all.await.expect("all are noted");
    let turns: Vec<_> = all
        .iter()
        .skip_while(|(_, end)| end != "cancelled")
        .skip(1)
        .map(|(device, _)| device)
        .collect();
    let at = turns.iter().position(|device| *device == "person").expect("the person was served");
    assert!(at <= 1, "{at} turns of the script came first: {turns:?}");
    assert_eq!(turns.len() as u64, GREEDY + 1);
}

#[tokio::test]
async fn a_cancelled_request_leaves_the_queue_and_a_full_queue_answers_like_ollamas() {
    let world = start("max_in_flight = 1\nmax_queue = 1").await;
    let up = up(&world, "laptop").await;
    let running = endless(&world, up.address).await;
    for _ in 0..3 {
        let mut waits = raw::connect(up.address).await;
        waits.write_all(raw::generate(1, 1).as_bytes()).await.expect("sent");
        line_has(&world, 1).await;
        let refused = raw::exchange(up.address, &raw::generate(1, 1)).await;
        assert_eq!(
            told(&refused, "503"),
            "server busy, please try again.  maximum pending requests exceeded"
        );
        assert!(retry_after(&refused).is_some(), "{refused}");
        drop(waits);
        line_has(&world, 0).await;
    }
    assert_eq!(world.ollama.counters().started, 1, "nobody who gave up has reached the service");
    drop(running);
    let answer = raw::exchange(up.address, &raw::generate(1, 1)).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
}

#[tokio::test]
async fn an_incomplete_request_takes_no_turn() {
    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";
    let service = Upstream::start().await;
    let world = one_at_a_time(&service).await;
    let (script, person) = (up(&world, "script").await, up(&world, "person").await);
    // Complete as JSON before it is complete as a body.
    let json = r#"{"model":"stand-in","prompt":"x"}"#;
    let (half, rest) = json.split_at(20);
    let head = format!(
        "POST /api/generate HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        json.len() + 1
    );
    let mut unfinished = raw::connect(script.address).await;
    unfinished.write_all(format!("{head}{half}").as_bytes()).await.expect("sent");
    let mut at_service = service.accept().await;
    assert_eq!(
        raw::read_exactly(&mut at_service, head.len() + half.len()).await,
        format!("{head}{half}").as_bytes()
    );

    // It has no turn yet; the other device's request has one now.
    let whole = raw::post("/api/generate", json);
    let mut asked = raw::connect(person.address).await;
    asked.write_all(whole.as_bytes()).await.expect("sent");
    let mut running = service.accept().await;
    raw::read_exactly(&mut running, whole.len()).await;

    // While that runs, a complete JSON object is not a complete request: it does not reach the
    // service, and is not in the queue.
    unfinished.write_all(rest.as_bytes()).await.expect("sent");
    let mut next = raw::connect(person.address).await;
    next.write_all(whole.as_bytes()).await.expect("sent");
    line_has(&world, 1).await;
    unfinished.write_all(b" ").await.expect("sent");
    line_has(&world, 2).await;
    let early = at_service.try_read(&mut [0; 64]);
    assert!(early.as_ref().is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock), "{early:?}");
    running.write_all(ANSWER).await.expect("answered");
    drop(running);
    assert!(raw::read_to_end(&mut asked).await.0.ends_with(b"ok"));
    let mut running = service.accept().await;
    raw::read_exactly(&mut running, whole.len()).await;
    running.write_all(ANSWER).await.expect("answered");
    drop(running);
    assert!(raw::read_to_end(&mut next).await.0.ends_with(b"ok"));
    assert_eq!(
        raw::read_exactly(&mut at_service, rest.len() + 1).await,
        format!("{rest} ").as_bytes()
    );
    at_service.write_all(ANSWER).await.expect("answered");
    drop(at_service);
    assert!(raw::read_to_end(&mut unfinished).await.0.ends_with(b"ok"));
}

#[tokio::test]
async fn a_turn_ends_with_the_answer_even_if_the_connection_stays_open() {
    let service = Upstream::start().await;
    let world = one_at_a_time(&service).await;
    let (script, person) = (up(&world, "script").await, up(&world, "person").await);
    // An answer that ends when the service closes the connection.
    let request = raw::generate(1, 1).replace("HTTP/1.1", "HTTP/1.0");
    let mut kept = raw::connect(script.address).await;
    kept.write_all(request.as_bytes()).await.expect("sent");
    let mut at_service = service.accept().await;
    raw::read_exactly(&mut at_service, request.len()).await;
    at_service.write_all(b"HTTP/1.0 200 OK\r\n\r\nok").await.expect("answered");
    drop(at_service);
    assert!(raw::read_to_end(&mut kept).await.0.ends_with(b"ok"));
    let request = raw::generate(1, 2);
    let mut asked = raw::connect(person.address).await;
    asked.write_all(request.as_bytes()).await.expect("sent");
    let mut at_service = service.accept().await;
    assert_eq!(raw::read_exactly(&mut at_service, request.len()).await, request.as_bytes());
    drop(kept);
}

#[tokio::test]
async fn a_request_that_waits_for_its_turn_is_dropped_with_its_tunnel() {
    let service = Upstream::start().await;
    let world = one_at_a_time(&service).await;
    let person = up(&world, "person").await;
    let device = world.device_as("laptop", "infer").await;
    let lost = device.up(&[]).await;
    let request = raw::generate(1, 1);
    let mut asked = raw::connect(person.address).await;
    asked.write_all(request.as_bytes()).await.expect("sent");
    let mut running = service.accept().await;
    raw::read_exactly(&mut running, request.len()).await;

    let mut waits = raw::connect(lost.address).await;
    waits.write_all(request.as_bytes()).await.expect("sent");
    let mut at_service = service.accept().await;
    line_has(&world, 1).await;
    lost.end().await;
    // The new tunnel ends the old one.
    let _again = device.up(&[]).await;
    assert_eq!(raw::read_to_end(&mut at_service).await, (Vec::new(), raw::Ending::Reset));
    line_has(&world, 0).await;
}
