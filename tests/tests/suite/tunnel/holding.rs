//! While there is no way to Ollama: connections wait, and then get an error that every tool shows.

use std::{net::SocketAddr, time::Duration};

use serde_json::Value;
use tests::{
    cli_assert::{NOT_ALLOWED, USAGE, assert_told},
    ollama::{Ollama, Options},
    raw::{self, Ending, Upstream},
    world::{SOON, World},
};
use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::PROGRAM;

const GET: &str = "GET /api/tags HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// The status line, and the text of Ollama's `{"error":"…"}`.
fn error_of(answer: &str) -> (&str, String) {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer}"));
    let json: Value = serde_json::from_str(body).unwrap_or_else(|e| panic!("{e}: {answer}"));
    assert!(
        head.to_ascii_lowercase().contains(&format!("content-length: {}", body.len())),
        "{head}"
    );
    (
        head.lines().next().unwrap_or_default(),
        json["error"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned(),
    )
}

#[tokio::test]
async fn without_a_server_a_request_is_held_and_then_refused_with_the_reason() {
    let mut world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let server = world.address().await;
    world.kill_server().await;
    let up = device.start(&["--hold", "1s"]).await;

    let started = std::time::Instant::now();
    let answer = raw::exchange(up.address, GET).await;
    assert!(started.elapsed() >= Duration::from_secs(1), "it was held");
    let (status, error) = error_of(&answer);
    assert_eq!(status, "HTTP/1.1 503 Service Unavailable");
    // On a slow machine the first attempt may be under way, or may have failed by now.
    for said in [error, device.adit(&["status"], "").await.stdout] {
        // `status` wraps its lines.
        let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
        let waits = said.contains(&format!("no answer yet from {server}"));
        assert!(waits || said.contains(&format!("cannot reach {server}: ")), "{said}");
        assert!(
            said.contains("check that this computer is online and the server is up")
                || said.contains("check on the server that aditd runs"),
            "{said}"
        );
    }

    let head = raw::exchange(up.address, "HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 503") && head.ends_with("\r\n\r\n"), "{head}");
    assert!(head.contains("\r\nRetry-After: "), "{head}");
    let old = raw::exchange(up.address, "GET / HTTP/1.0\r\n\r\n").await;
    assert!(old.starts_with("HTTP/1.0 503"), "{old}");
    // A body that is under way does not destroy the answer.
    let upload = raw::exchange(up.address, &raw::post("/api/chat", &"x".repeat(1_000_000))).await;
    assert!(upload.starts_with("HTTP/1.1 503"), "{upload}");

    let mut not_http = raw::connect(up.address).await;
    not_http.write_all(b"\x16\x03\x01\n").await.expect("sent");
    assert_eq!(
        raw::read_to_end(&mut not_http).await,
        (vec![], Ending::Reset),
        "what is no HTTP gets none"
    );
}

#[tokio::test]
async fn a_held_request_passes_when_the_server_comes_and_status_shows_it_until_then() {
    let mut world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    world.kill_server().await;
    let up = device.start(&["--hold", "10m"]).await;
    let mut app = raw::connect(up.address).await;
    app.write_all(b"GET / HTTP/1.0\r\n\r\n").await.expect("sent");
    let status = device.status().await;
    assert_eq!(status["tunnel"]["state"], "down", "{status}");
    assert_eq!(status["schema"], 1);
    world.restart_server().await;
    let (answer, ending) = raw::read_to_end(&mut app).await;
    assert!(answer.ends_with(b"Ollama is running"), "{}", String::from_utf8_lossy(&answer));
    assert_eq!(ending, Ending::Closed);
    assert_eq!(device.status().await["tunnel"]["state"], "up");
}

#[tokio::test]
async fn a_held_request_is_dropped_when_its_application_disconnects() {
    let mut world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    world.kill_server().await;
    let up = device.start(&["--hold", "10m"]).await;
    let app = raw::connect(up.address).await;
    let held = |status: &Value| status["connections"].as_u64();
    while held(&device.status().await) != Some(1) {}
    app.set_zero_linger().expect("linger");
    drop(app);
    let gone = async { while held(&device.status().await) != Some(0) {} };
    tokio::time::timeout(SOON, gone).await.expect("given up");
}

#[tokio::test]
async fn without_ollama_a_request_gets_a_502_and_the_next_one_works_when_ollama_runs() {
    // A port on which nobody listens, and that no other process gets meanwhile.
    let reserved = tokio::net::TcpSocket::new_v4().expect("socket");
    reserved.set_reuseaddr(true).expect("reuse");
    reserved.bind("127.0.0.1:0".parse().expect("address")).expect("bound");
    let address: SocketAddr = reserved.local_addr().expect("address");
    let world = World::in_front_of(PROGRAM, &address.to_string()).await;
    let up = world.up("laptop").await;

    let (status, error) = {
        let answer = raw::exchange(up.address, GET).await;
        let (status, error) = error_of(&answer);
        (status.to_owned(), error)
    };
    assert_eq!(status, "HTTP/1.1 502 Bad Gateway");
    assert!(
        error.contains("Ollama is not running on the server") && error.contains("ollama serve"),
        "{error}"
    );
    let v1 = raw::exchange(up.address, &raw::post("/v1/chat/completions", "{}")).await;
    assert!(v1.contains(r#"{"error":{"message":"adit: Ollama is not running"#), "{v1}");
    let head = raw::exchange(up.address, "HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 502") && head.ends_with("\r\n\r\n"), "{head}");

    drop(reserved);
    let _ollama =
        Ollama::start(Options { listen: address, ..Options::default() }).await.expect("it starts");
    let answer = raw::exchange(up.address, "GET / HTTP/1.0\r\n\r\n").await;
    assert!(answer.ends_with("Ollama is running"), "{answer}");
}

#[tokio::test]
async fn an_application_that_connects_early_and_asks_later_gets_an_error_too() {
    let reserved = tokio::net::TcpSocket::new_v4().expect("socket");
    reserved.bind("127.0.0.1:0".parse().expect("address")).expect("bound");
    let address = reserved.local_addr().expect("address").to_string();
    let world = World::in_front_of(PROGRAM, &address).await;
    let up = world.up("laptop").await;
    let mut app = raw::connect(up.address).await;
    app.write_all(GET.as_bytes()).await.expect("sent");
    let (answer, ending) = raw::read_to_end(&mut app).await;
    assert!(answer.starts_with(b"HTTP/1.1 502 "), "{}", String::from_utf8_lossy(&answer));
    assert_eq!(ending, Ending::Closed);
}

#[tokio::test]
async fn a_missing_tcp_service_causes_a_reset_without_http() {
    let reserved = tokio::net::TcpSocket::new_v4().expect("socket");
    reserved.bind("127.0.0.1:0".parse().expect("address")).expect("bound");
    let flag = format!("tcp://{}", reserved.local_addr().expect("address"));
    let world = World::in_front_of(PROGRAM, &flag).await;
    let up = world.up("laptop").await;
    let mut app = raw::connect(up.address).await;
    let _ = app.write_all(GET.as_bytes()).await;
    assert_eq!(raw::read_to_end(&mut app).await, (vec![], Ending::Reset));
}

#[tokio::test]
async fn a_revoked_device_gets_an_error_at_once_and_its_next_start_exits_with_4() {
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let mut up = device.up(&["--hold", "10m"]).await;
    assert_eq!(world.aditd(&["device", "revoke", "laptop"]).await.code, Some(0));
    up.adit.says("revoked").await;
    let answer = raw::exchange(up.address, GET).await;
    let (status, error) = error_of(&answer);
    assert_eq!(status, "HTTP/1.1 503 Service Unavailable");
    assert!(error.contains("this device was revoked") && error.contains("adit enroll"), "{error}");
    assert_eq!(device.status().await["tunnel"]["state"], "refused");
    up.adit.kill().await;

    let again = device.adit(&["up", "--listen", "127.0.0.1:0"], "").await;
    assert_told(
        &again,
        NOT_ALLOWED,
        &[
            "revoked",
            "`aditd device forget laptop`",
            "`aditd invite laptop`",
            "`adit enroll --replace`",
        ],
    );
    for once in ["revoked", "aditd invite", "adit enroll"] {
        assert_eq!(again.stderr.matches(once).count(), 1, "{}", again.stderr);
    }
    // That hint works.
    assert_eq!(world.aditd(&["device", "forget", "laptop"]).await.code, Some(0));
    let enrolled = device.enroll(&world.invite("laptop").await, &["--replace"]).await;
    assert_eq!(enrolled.code, Some(0), "{}", enrolled.stderr);
    let answer = raw::exchange(device.up(&[]).await.address, "GET / HTTP/1.0\r\n\r\n").await;
    assert!(answer.ends_with("Ollama is running"), "{answer}");
}

#[tokio::test]
async fn a_second_machine_with_a_copied_certificate_is_reported_on_the_first() {
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let mut first = device.up(&[]).await;
    let copy = world.stranger("copy");
    let copied = std::process::Command::new("cp")
        .arg("-a")
        .arg(&device.dir)
        .arg(&copy.dir)
        .status()
        .expect("cp");
    assert!(copied.success());
    let second = copy.up(&[]).await;
    first.adit.says("another `adit up` connected with this device's certificate").await;
    let (_, error) = {
        let answer = raw::exchange(first.address, GET).await;
        let (status, error) = error_of(&answer);
        (status.to_owned(), error)
    };
    assert!(error.contains("aditd invite"), "{error}");
    let answer = raw::exchange(second.address, "GET / HTTP/1.0\r\n\r\n").await;
    assert!(answer.ends_with("Ollama is running"), "{answer}");
}

#[tokio::test]
async fn a_carrier_without_a_route_is_refused_at_once() {
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let told = device.adit(&["up", "--listen", "127.0.0.1:0", "--carrier", "ssh"], "").await;
    assert_told(
        &told,
        USAGE,
        &[
            "enrolled by code, so SSH is not available",
            "leave out `--carrier ssh`",
            "`adit enroll --replace",
        ],
    );
    assert!(!told.stderr.contains("let the server listen"), "{}", told.stderr);
}

#[tokio::test]
async fn one_profile_has_one_tunnel() {
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let up = device.up(&[]).await;
    let second = device.adit(&["up", "--listen", "127.0.0.1:0"], "").await;
    assert_eq!(second.code, Some(1));
    assert!(
        second.stderr.contains(&format!("running already (pid {})", up.adit.pid())),
        "{}",
        second.stderr
    );
    assert!(second.stderr.contains("hint: "), "{}", second.stderr);
}

#[tokio::test]
async fn at_the_stream_limit_a_connection_waits_and_then_gets_an_error() {
    const LIMIT: usize = common::transport::MOST_STREAMS as usize;
    common::machine::process::raise_descriptor_limit();
    let upstream = Upstream::start().await;
    let world = World::in_front_of(PROGRAM, &upstream.flag("http")).await;
    let device = world.device("laptop").await;
    let up = device.up(&["--hold", "2s"]).await;
    let mut open: Vec<(TcpStream, TcpStream)> = Vec::with_capacity(LIMIT);
    for i in 0..LIMIT {
        let mut app = raw::connect(up.address).await;
        app.write_all(GET.as_bytes()).await.unwrap_or_else(|e| panic!("connection {i}: {e}"));
        open.push((app, upstream.accept().await));
    }
    let answer = raw::exchange(up.address, GET).await;
    let (status, error) = error_of(&answer);
    assert_eq!(status, "HTTP/1.1 503 Service Unavailable");
    assert!(error.contains("too many requests of this device"), "{error}");
    // When one ends, the next one gets its place.
    drop(open.pop());
    let mut app = raw::connect(up.address).await;
    app.write_all(GET.as_bytes()).await.expect("sent");
    let mut service = upstream.accept().await;
    assert_eq!(raw::read_exactly(&mut service, GET.len()).await, GET.as_bytes());
}

#[tokio::test]
async fn a_tunnel_to_its_own_listener_is_refused() {
    // Ollama would listen here if it ran.
    let reserved = tokio::net::TcpSocket::new_v4().expect("socket");
    reserved.set_reuseaddr(true).expect("reuse");
    reserved.bind("127.0.0.1:0".parse().expect("address")).expect("bound");
    let address = reserved.local_addr().expect("address").to_string();
    let world = World::in_front_of(PROGRAM, &address).await;
    let device = world.device("laptop").await;
    let refused = device.adit(&["up", "--listen", &address], "").await;
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    assert!(
        refused.stderr.contains("this same computer")
            && refused.stderr.contains("--listen localhost:"),
        "{}",
        refused.stderr
    );
}

#[tokio::test]
async fn a_held_request_is_not_forwarded_into_a_tunnel_to_its_own_listener() {
    let reserved = tokio::net::TcpSocket::new_v4().expect("socket");
    reserved.set_reuseaddr(true).expect("reuse");
    reserved.bind("127.0.0.1:0".parse().expect("address")).expect("bound");
    let address = reserved.local_addr().expect("address").to_string();
    let mut world = World::in_front_of(PROGRAM, &address).await;
    let device = world.device("laptop").await;
    world.kill_server().await;
    // It also listens at the address where the server expects its Ollama.
    let mut up = device.start(&["--listen", &address, "--hold", "1h"]).await;
    let mut app = raw::connect(up.address).await;
    app.write_all(GET.as_bytes()).await.expect("sent");
    while device.status().await["connections"] != 1 {}
    world.restart_server().await;
    let (status, log) = up.adit.ended_saying().await.expect("it ends");
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("this same computer"), "{log}");
    let _ = raw::read_to_end(&mut app).await;
    let audit = world.aditd(&["audit", "--json"]).await;
    assert_eq!((audit.code, audit.stdout.contains("/api/tags")), (Some(0), false), "{audit:?}");
}

#[tokio::test]
async fn the_remaining_one_of_two_machines_with_one_certificate_serves_requests() {
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let first = device.up(&[]).await;
    let copy = world.stranger("copy");
    let copied = std::process::Command::new("cp").arg("-a").args([&device.dir, &copy.dir]).status();
    assert!(copied.expect("cp").success());
    let mut second = copy.up(&[]).await;
    let refused = async { while device.status().await["tunnel"]["state"] != "refused" {} };
    tokio::time::timeout(SOON, refused).await.expect("the second has taken the session");
    second.adit.signal("TERM");
    assert_eq!(second.adit.ended().await.expect("it ends").code(), Some(0));

    // Without a request it would try again after half a minute at the earliest.
    let deadline = tokio::time::Instant::now() + Duration::from_secs(25);
    let served = async {
        loop {
            let answer = raw::exchange(first.address, "GET / HTTP/1.0\r\n\r\n").await;
            if answer.ends_with("Ollama is running") {
                return;
            }
            assert!(answer.starts_with("HTTP/1.0 503"), "{answer}");
            let wait = answer.split("Retry-After: ").nth(1).and_then(|rest| rest.lines().next());
            let wait: u64 = wait.and_then(|wait| wait.parse().ok()).expect("when to come again");
            assert!(wait <= 20, "{answer}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout_at(deadline, served).await.expect("a waiting request wakes an attempt");
}
