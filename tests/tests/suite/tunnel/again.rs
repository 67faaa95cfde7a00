//! Requests that were under way, without a byte of an answer, when the server ended: they are sent
//! again where that is safe, and told otherwise.

use std::process::Stdio;

use serde_json::Value;
use tests::{
    ollama::Options,
    raw::{self, Ending, Upstream},
    skip,
    world::{SOON, Up, World},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::PROGRAM;

const GET: &str = "GET /api/tags HTTP/1.1\r\nHost: localhost\r\n\r\n";
const CHAT: &str =
    "POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 13\r\n\r\n{\"model\":\"a\"}";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";

async fn start() -> (World, Upstream, Up) {
    let upstream = Upstream::start().await;
    let world =
        World::start_with(PROGRAM, Options::default(), &["--upstream", &upstream.flag("http")])
            .await;
    let up = world.up("laptop").await;
    (world, upstream, up)
}

/// The next request of so many bytes that comes whole, and its connection.
async fn whole(upstream: &Upstream, length: usize) -> (TcpStream, Vec<u8>) {
    loop {
        let (mut service, mut request) = (upstream.accept().await, vec![0; length]);
        let read = tokio::time::timeout(SOON, service.read_exact(&mut request)).await;
        if read.expect("it comes, or its connection ends").is_ok() {
            return (service, request);
        }
    }
}

/// Answers the next request, which is this one. Returns the service's side of it.
async fn answers(app: &mut TcpStream, upstream: &Upstream, request: &str) -> TcpStream {
    let (mut service, read) = whole(upstream, request.len()).await;
    assert_eq!(String::from_utf8_lossy(&read), request);
    service.write_all(ANSWER).await.expect("sent");
    assert_eq!(raw::read_exactly(app, ANSWER.len()).await, ANSWER);
    service
}

/// The server dies without a word. So does its connection to the service, which may stop there.
async fn kill(world: &mut World, service: &mut TcpStream) {
    world.kill_server().await;
    assert!(raw::read_to_end(service).await.0.is_empty());
}

#[tokio::test]
async fn whatever_the_moment_at_which_the_server_is_killed_a_request_without_an_answer_gets_one() {
    let (mut world, upstream, up) = start().await;
    let head = CHAT.len() - 13;
    // How much of the request was sent before.
    for (request, before) in
        [(GET, 0), (GET, GET.len()), (CHAT, CHAT.len()), (CHAT, head), (CHAT, head + 3), (CHAT, 5)]
    {
        let (mut fresh, mut kept) =
            (raw::connect(up.address).await, raw::connect(up.address).await);
        kept.write_all(GET.as_bytes()).await.expect("sent");
        let mut service = answers(&mut kept, &upstream, GET).await;
        for app in [&mut fresh, &mut kept] {
            app.write_all(&request.as_bytes()[..before]).await.expect("sent");
        }
        if before == request.len() {
            whole(&upstream, before).await;
            raw::read_exactly(&mut service, before).await;
        }
        world.kill_server().await;
        for app in [&mut fresh, &mut kept] {
            app.write_all(&request.as_bytes()[before..]).await.expect("sent");
        }
        world.restart_server().await;
        let mut services = Vec::new();
        for _ in 0..2 {
            let (mut service, read) = whole(&upstream, request.len()).await;
            assert_eq!(String::from_utf8_lossy(&read), request, "{before} bytes before");
            service.write_all(ANSWER).await.expect("sent");
            services.push(service);
        }
        for app in [&mut fresh, &mut kept] {
            assert_eq!(raw::read_exactly(app, ANSWER.len()).await, ANSWER);
        }
    }
}

#[tokio::test]
async fn what_changes_something_or_is_too_long_to_be_kept_is_told_and_not_sent_again() {
    let (mut world, upstream, up) = start().await;
    let long = format!("{{\"model\":\"a\",\"prompt\":\"{}\"}}", "x".repeat(1 << 20));
    for request in [raw::post("/api/pull", "{\"model\":\"a\"}"), raw::post("/api/chat", &long)] {
        let mut app = raw::connect(up.address).await;
        app.write_all(request.as_bytes()).await.expect("sent");
        let (mut service, _) = whole(&upstream, request.len()).await;
        kill(&mut world, &mut service).await;
        world.restart_server().await;
        let (answer, ending) = raw::read_to_end(&mut app).await;
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("was lost"), "{answer}");
        assert_eq!(ending, Ending::Closed);
        // The next that comes to the service is another.
        let mut app = raw::connect(up.address).await;
        app.write_all(GET.as_bytes()).await.expect("sent");
        answers(&mut app, &upstream, GET).await;
    }
}

#[tokio::test]
async fn an_answer_is_cut_when_a_server_that_was_killed_is_back_and_not_before() {
    let mut world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let mut up = device.up(&[]).await;
    let mut app = raw::connect(up.address).await;
    app.write_all(raw::generate(-1, 1).as_bytes()).await.expect("sent");
    raw::read_exactly(&mut app, 300).await;
    world.kill_server().await;
    // The laptop can't tell this from a lost network.
    up.adit.says("the server has been silent").await;
    let mut rest = [0; 65_536];
    let ended = loop {
        match app.try_read(&mut rest) {
            Ok(0) => break true,
            Ok(_) => {}
            Err(e) => break e.kind() != std::io::ErrorKind::WouldBlock,
        }
    };
    assert!(!ended, "as in an outage");
    world.restart_server().await;
    assert_eq!(raw::read_to_end(&mut app).await.1, Ending::Reset);
    up.works().await;
}

#[tokio::test]
async fn an_answer_that_has_begun_is_cut_and_its_request_is_not_sent_again() {
    let (mut world, upstream, up) = start().await;
    let mut app = raw::connect(up.address).await;
    app.write_all(CHAT.as_bytes()).await.expect("sent");
    let (mut service, _) = whole(&upstream, CHAT.len()).await;
    service.write_all(&ANSWER[..1]).await.expect("sent");
    raw::read_exactly(&mut app, 1).await;
    kill(&mut world, &mut service).await;
    world.restart_server().await;
    assert_eq!(raw::read_to_end(&mut app).await, (vec![], Ending::Reset));
    let mut app = raw::connect(up.address).await;
    app.write_all(GET.as_bytes()).await.expect("sent");
    answers(&mut app, &upstream, GET).await;
}

#[tokio::test]
async fn a_request_that_ends_the_server_each_time_is_given_up() {
    let (mut world, upstream, up) = start().await;
    let mut app = raw::connect(up.address).await;
    app.write_all(CHAT.as_bytes()).await.expect("sent");
    for _ in 0..4 {
        let (mut service, read) = whole(&upstream, CHAT.len()).await;
        assert_eq!(String::from_utf8_lossy(&read), CHAT);
        kill(&mut world, &mut service).await;
        world.restart_server().await;
    }
    let (answer, _) = raw::read_to_end(&mut app).await;
    assert!(answer.starts_with(b"HTTP/1.1 502 "), "{}", String::from_utf8_lossy(&answer));
}

#[tokio::test]
async fn a_request_that_waits_for_its_answer_outlives_a_restart_and_the_audit_says_both() {
    let (mut world, upstream, up) = start().await;
    let mut app = raw::connect(up.address).await;
    app.write_all(CHAT.as_bytes()).await.expect("sent");
    let (mut service, _) = whole(&upstream, CHAT.len()).await;
    world.aditd.signal("TERM");
    world.aditd.says("stopping: 1 stream running").await;
    // A second order does not wait for it.
    world.aditd.signal("TERM");
    assert_eq!(world.aditd.ended().await.expect("it ends").code(), Some(0));
    assert!(raw::read_to_end(&mut service).await.0.is_empty());
    world.restart_server().await;
    answers(&mut app, &upstream, CHAT).await;
    drop(app);
    let ends = async {
        loop {
            let audit = world.aditd(&["audit", "--json"]).await;
            let lines = audit.stdout.lines().filter_map(|line| serde_json::from_str(line).ok());
            let requests = lines.filter(|line: &Value| line["event"] == "request");
            let ends: Vec<_> =
                requests.map(|line| (line["end"].clone(), line["bytes_out"].clone())).collect();
            if ends.len() == 2 {
                return ends;
            }
        }
    };
    let ends = tokio::time::timeout(SOON, ends).await.expect("both are noted");
    let (cut, done) = (("cut".into(), 0.into()), ("done".into(), ANSWER.len().into()));
    assert_eq!(ends, [cut, done]);
}

#[tokio::test]
async fn curl_does_not_notice_that_the_server_was_killed_before_its_second_request_was_answered() {
    let has_curl = std::process::Command::new("curl").arg("--version").output();
    if has_curl.is_err() && skip::skip_test("there is no curl") {
        return;
    }
    let (mut world, upstream, up) = start().await;
    let url = up.url("/api/chat");
    let curl = tokio::process::Command::new("curl")
        .args(["-sS", "--noproxy", "*", "-d", "{\"model\":\"a\"}", &url, &url])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("curl starts");
    let mut service = upstream.accept().await;
    let request = read_request(&mut service).await;
    service.write_all(ANSWER).await.expect("sent");
    assert_eq!(read_request(&mut service).await, request, "on the same connection");
    kill(&mut world, &mut service).await;
    world.restart_server().await;
    let mut service = upstream.accept().await;
    assert_eq!(read_request(&mut service).await, request);
    service.write_all(ANSWER).await.expect("sent");
    let out = tokio::time::timeout(SOON, curl.wait_with_output()).await.expect("in time");
    let out = out.expect("curl ends");
    assert!(out.status.success(), "{out:?}");
    assert_eq!(out.stdout, b"hellohello");
}

/// A request that ends with its JSON.
async fn read_request(service: &mut TcpStream) -> Vec<u8> {
    let mut request = Vec::new();
    while !request.ends_with(b"}") {
        request.extend(raw::read_exactly(service, 1).await);
    }
    request
}
