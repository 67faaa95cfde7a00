//! The audit log records what was done and how it ended, and no content; a full disk or a crash
//! does not make it wrong.

use std::{
    collections::BTreeSet, fs, io::Write, os::unix::fs::PermissionsExt, path::Path, process::Stdio,
    time::Duration,
};

use serde_json::Value;
use tests::{
    disk::SmallDisk,
    ollama::Options,
    raw::{self, Upstream},
    world::{SOON, Up, World},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
};

use crate::PROGRAM;

const VERSION: &str = "GET /api/version HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

async fn start(config: &str) -> World {
    let options = Options { token_interval: Duration::from_millis(5), ..Options::default() };
    World::start_configured(PROGRAM, options, &[], config).await
}

/// A device with the role `infer` and a tunnel that is up.
async fn up(world: &World, name: &str) -> Up {
    world.device_as(name, "infer").await.up(&[]).await
}

/// Waits until the log has a matching line, because it is written beside the requests.
async fn line(world: &World, is_it: impl Fn(&Value) -> bool) -> Value {
    world.audit_has(1, is_it).await.swap_remove(0)
}

/// A request whose answer has begun and does not end.
async fn endless(world: &World, up: &Up) -> TcpStream {
    let running = world.ollama.counters().running;
    let mut tcp = raw::connect(up.address).await;
    tcp.write_all(raw::generate(1_000_000, 1).as_bytes()).await.expect("sent");
    world.ollama.wait_for(|now| now.running > running, SOON).await.expect("it runs");
    raw::read_exactly(&mut tcp, 1000).await;
    tcp
}

#[tokio::test]
async fn a_request_is_logged_with_its_ending_and_without_its_content() {
    let world = start("").await;
    let up = up(&world, "laptop").await;
    let json = r#"{"model":"stand-in:latest","prompt":"PRIVATE-PROMPT","options":{"num_predict":7,"seed":3}}"#;
    let request = raw::post("/api/generate?PRIVATE-QUERY=1", json)
        .replace("Host:", "Authorization: Bearer PRIVATE-KEY\r\nHost:");
    let answer = raw::exchange(up.address, &request).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    let done = line(&world, |line| line["end"] == "done").await;
    for (name, expected) in [
        ("event", Value::from("request")),
        ("device", "laptop".into()),
        ("role", "infer".into()),
        ("carrier", "local".into()),
        ("method", "POST".into()),
        ("path", "/api/generate".into()),
        ("status", 200.into()),
        ("tokens_out", 7.into()),
        ("bytes_in", request.len().into()),
        ("bytes_out", answer.len().into()),
    ] {
        assert_eq!(done[name], expected, "{name} in {done:#}");
    }
    assert!(
        done["first_byte_ms"].as_f64() <= done["total_ms"].as_f64()
            && done["first_byte_ms"].as_f64() > Some(0.0),
        "{done:#}"
    );
    drop(endless(&world, &up).await);
    assert_eq!(line(&world, |line| line["end"] == "cancelled").await["status"], 200);
    let denied =
        raw::exchange(up.address, &raw::post("/api/delete", r#"{"model":"PRIVATE-MODEL"}"#)).await;
    assert!(denied.starts_with("HTTP/1.1 403 "), "{denied}");
    let refused = line(&world, |line| line["end"] == "refused").await;
    assert_eq!(
        (&refused["why"], &refused["status"], &refused["path"]),
        (&"role".into(), &403.into(), &"/api/delete".into())
    );
    let mut cut = endless(&world, &up).await;
    assert_eq!(world.aditd(&["device", "revoke", "laptop"]).await.code, Some(0));
    raw::read_to_end(&mut cut).await;
    line(&world, |line| line["end"] == "cut").await;
    // No other field may be in the line.
    let known: BTreeSet<_> =
        "time event device device_id role carrier remote method path model status bytes_in bytes_out queued_ms \
                              first_byte_ms total_ms tokens_in tokens_out tokens_estimated end why user request service"
            .split_whitespace()
            .collect();
    for line in world.audit(&[]).await.iter().filter(|line| line["event"] == "request") {
        let names: BTreeSet<_> =
            line.as_object().expect("an object").keys().map(String::as_str).collect();
        assert!(names.is_subset(&known), "{line:#}");
    }
    let log = fs::read_to_string(world.state().join("audit.jsonl")).expect("a log");
    for private in ["PRIVATE-PROMPT", "PRIVATE-QUERY", "PRIVATE-KEY"] {
        assert!(!log.contains(private), "{private} in {log}");
    }
    assert_eq!(
        fs::metadata(world.state().join("audit.jsonl")).expect("a log").permissions().mode()
            & 0o777,
        0o600
    );
}

#[tokio::test]
async fn a_request_to_an_unreachable_service_is_logged() {
    // The port is bound, but nobody listens.
    let reserved = tokio::net::TcpSocket::new_v4().expect("a socket");
    reserved.bind("127.0.0.1:0".parse().expect("an address")).expect("bound");
    let nobody = reserved.local_addr().expect("an address");
    let world = World::in_front_of(PROGRAM, &nobody.to_string()).await;
    let up = up(&world, "laptop").await;
    let answer = raw::exchange(up.address, VERSION).await;
    assert!(
        answer.starts_with("HTTP/1.1 502 ")
            && answer.contains("adit: Ollama is not running on the server"),
        "{answer}"
    );
    let noted = line(&world, |line| line["path"] == "/api/version").await;
    assert_eq!(
        (&noted["end"], &noted["why"], &noted["status"]),
        (&"refused".into(), &"upstream".into(), &502.into())
    );
    assert_eq!(
        (&noted["bytes_in"], &noted["bytes_out"]),
        (&VERSION.len().into(), &answer.len().into())
    );
    let denied = raw::exchange(up.address, &raw::post("/api/delete", "{}")).await;
    assert!(denied.starts_with("HTTP/1.1 403 "), "{denied}");
    assert_eq!(line(&world, |line| line["path"] == "/api/delete").await["why"], "role");
    let torn = raw::exchange(up.address, "GET /x HTTP/1.1\nHost: x\n\n").await;
    assert!(torn.starts_with("HTTP/1.1 400 "), "{torn}");
    assert_eq!(line(&world, |line| line["why"] == "malformed").await["status"], 400);
}

#[tokio::test]
async fn an_answer_without_framing_is_not_logged_as_done_when_it_was_cut() {
    let service = Upstream::start().await;
    let world = World::in_front_of(PROGRAM, &service.flag("http")).await;
    let up = up(&world, "laptop").await;
    let half = b"HTTP/1.0 200 OK\r\n\r\n{\"response\":\"half";
    for (path, expected) in
        [("/api/generate", "cancelled"), ("/api/chat", "cut"), ("/api/embed", "done")]
    {
        let request = raw::post(path, r#"{"model":"stand-in"}"#).replace("HTTP/1.1", "HTTP/1.0");
        let mut app = raw::connect(up.address).await;
        app.write_all(request.as_bytes()).await.expect("sent");
        let mut at_service = service.accept().await;
        raw::read_exactly(&mut at_service, request.len()).await;
        at_service.write_all(half).await.expect("answered");
        raw::read_exactly(&mut app, half.len()).await;
        match expected {
            "cancelled" => app.set_zero_linger().expect("linger"),
            "cut" => at_service.set_zero_linger().expect("linger"),
            _ => {
                at_service.shutdown().await.expect("ended");
                assert_eq!(raw::read_to_end(&mut app).await, (Vec::new(), raw::Ending::Closed));
            }
        }
        if expected == "cut" {
            drop(at_service);
        } else {
            drop(app);
        }
        assert_eq!(line(&world, |line| line["path"] == path).await["end"], expected);
    }
    // A killed service closes within the answer; then the application closes, too.
    let request = raw::post("/api/embeddings", r#"{"model":"stand-in"}"#);
    let mut app = raw::connect(up.address).await;
    app.write_all(request.as_bytes()).await.expect("sent");
    let mut at_service = service.accept().await;
    raw::read_exactly(&mut at_service, request.len()).await;
    let torn = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab";
    at_service.write_all(torn).await.expect("answered");
    drop(at_service);
    assert_eq!(raw::read_to_end(&mut app).await, (torn.to_vec(), raw::Ending::Closed));
    drop(app);
    assert_eq!(line(&world, |line| line["path"] == "/api/embeddings").await["end"], "cut");
}

#[tokio::test]
async fn every_change_of_access_is_logged() {
    let mut world = start("").await;
    world.device_as("laptop", "infer").await;
    world.invite("tmp").await;
    for command in [
        &["role", "laptop", "admin"][..],
        &["revoke", "laptop"],
        &["forget", "laptop"],
        &["revoke", "tmp"],
    ] {
        let ended = world.aditd(&[&["device"], command].concat()).await;
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    }
    assert_eq!(world.aditd(&["reload"]).await.code, Some(0));
    fs::write(world.config(), "nonsense = 1").expect("written");
    world.aditd.signal("HUP");
    world.aditd.says("the settings have not changed").await;
    fs::write(world.config(), "").expect("written");
    world.aditd.signal("TERM");
    world.aditd.ended().await.expect("it ends");
    let lines = world.audit(&[]).await;
    let events: Vec<_> =
        lines.iter().map(|line| line["event"].as_str().expect("an event")).collect();
    assert_eq!(
        events,
        [
            "start", "invite", "enroll", "invite", "role", "revoke", "forget", "withdraw",
            "reload", "reload", "stop"
        ]
    );
    let role = &lines[4];
    assert_eq!(
        (&role["device"], &role["before"], &role["role"]),
        (&"laptop".into(), &"infer".into(), &"admin".into())
    );
    assert_eq!(lines[7]["device"], "tmp");
    assert!(
        lines[9]["refused"].as_str().is_some_and(|why| why.contains("nonsense")),
        "{:#}",
        lines[9]
    );
    let of_device = world.audit(&["--device", "laptop", "--since", "1h"]).await;
    assert_eq!(of_device.len(), 5);
    let table = world.aditd(&["audit"]).await.stdout;
    assert_eq!(table.lines().count(), lines.len() + 1, "{table}");
}

#[tokio::test]
async fn a_log_with_a_line_torn_by_a_crash_continues() {
    let mut world = start("").await;
    line(&world, |line| line["event"] == "start").await;
    world.kill_server().await;
    let path = world.state().join("audit.jsonl");
    let mut file = fs::OpenOptions::new().append(true).open(&path).expect("a log");
    file.write_all(b"{\"time\":\"2026-").expect("torn");
    world.restart_server().await;
    line(&world, |line| line["event"] == "start" && line["pid"] == world.aditd.pid()).await;
    let starts = world.audit(&[]).await.iter().filter(|line| line["event"] == "start").count();
    assert_eq!(starts, 2, "{}", fs::read_to_string(&path).expect("a log"));
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path")
}

/// Waits until the audit log's part of `aditd status` satisfies `is_so`.
async fn status(world: &World, is_so: impl Fn(&Value) -> bool) -> Value {
    let wait = async {
        loop {
            let audit = world.status().await["audit"].take();
            if is_so(&audit) {
                return audit;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, wait).await.expect("the status becomes so")
}

#[tokio::test]
async fn lines_lost_on_a_full_disk_are_counted_and_logged() {
    let Some(disk) = SmallDisk::mount("64k") else { return };
    let world = start(&format!("audit_dir = '{}'", text(&disk.path("audit")))).await;
    let up = up(&world, "laptop").await;
    line(&world, |line| line["event"] == "enroll").await;
    disk.fill_but(0);
    // The last page has room for a few more lines.
    for _ in 0..40 {
        assert!(
            raw::exchange(up.address, VERSION).await.starts_with("HTTP/1.1 200 OK"),
            "no request is refused for it"
        );
    }
    let full =
        status(&world, |audit| audit["failing"].is_string() && audit["lost"].as_u64() > Some(0))
            .await;
    assert!(full["failing"].as_str().is_some_and(|why| why.contains("audit.jsonl")), "{full}");
    assert_eq!(
        world.aditd.log().matches("the audit log can't be written").count(),
        1,
        "{}",
        world.aditd.log()
    );
    disk.free();
    let lost = status(&world, |audit| audit["failing"].is_null()).await["lost"]
        .as_u64()
        .expect("a number");
    assert_eq!(line(&world, |line| line["event"] == "lost").await["lines"], lost);
    let noted =
        world.audit(&[]).await.iter().filter(|line| line["event"] == "request").count() as u64;
    assert_eq!(noted + lost, 40);
}

#[tokio::test]
async fn with_audit_required_no_request_passes_without_the_log() {
    let Some(disk) = SmallDisk::mount("64k") else { return };
    let config = format!("audit_required = true\naudit_dir = '{}'", text(&disk.path("audit")));
    let world = start(&config).await;
    let up = up(&world, "laptop").await;
    disk.fill_but(0);
    let mut refused = String::new();
    // Each request fills the last page a little more.
    for _ in 0..1000 {
        let answer = raw::exchange(up.address, VERSION).await;
        if !answer.starts_with("HTTP/1.1 200 OK") {
            refused = answer;
            break;
        }
    }
    assert!(
        refused.starts_with("HTTP/1.1 503 ")
            && refused.contains("\r\nRetry-After: ")
            && refused.contains("adit: the audit log can't be written"),
        "{refused}"
    );
    disk.free();
    status(&world, |audit| audit["failing"].is_null()).await;
    let answer = raw::exchange(up.address, VERSION).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    line(&world, |line| line["event"] == "lost").await;
}

#[tokio::test]
async fn follow_continues_in_new_files_and_ends_when_its_output_is_closed() {
    const REQUESTS: usize = 40;
    let world = start("audit_size = '1KiB'").await;
    let up = up(&world, "laptop").await;
    let (state, config) = (world.state(), world.config());
    let args = [
        "audit",
        "--follow",
        "--json",
        "--device",
        "laptop",
        "--state-dir",
        text(&state),
        "--config",
        text(&config),
    ];
    let mut command = world.programs.command("aditd", &args);
    let mut follower =
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let mut lines = BufReader::new(follower.stdout.take().expect("piped")).lines();
    let asked = async {
        for i in 0..REQUESTS {
            let request = VERSION
                .replace("/api/version", &format!("/api/version?{i}"))
                .replace("GET", "HEAD");
            assert!(raw::exchange(up.address, &request).await.starts_with("HTTP/1.1 200 OK"));
        }
    };
    let read = async {
        let mut requests = 0;
        while requests < REQUESTS {
            let line = lines.next_line().await.expect("read").expect("a line");
            let line: Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"));
            requests += usize::from(line["event"] == "request");
        }
    };
    tokio::time::timeout(SOON, async { tokio::join!(asked, read) })
        .await
        .expect("all of them are shown");
    assert!(
        fs::read_dir(&state).expect("a directory").count() > 5 + REQUESTS / 5,
        "the log is put aside again and again"
    );
    assert_eq!(
        world.audit(&[]).await.iter().filter(|line| line["event"] == "request").count(),
        REQUESTS
    );
    drop(lines);
    let ended = tokio::time::timeout(SOON, follower.wait_with_output())
        .await
        .expect("it ends")
        .expect("a status");
    assert_eq!((ended.status.code(), ended.stderr.as_slice()), (Some(0), &b""[..]));
}

#[tokio::test]
async fn an_answer_that_the_service_completes_after_its_application_has_gone_is_logged_as_cancelled()
 {
    let service = Upstream::start().await;
    let world = World::in_front_of(PROGRAM, &service.flag("http")).await;
    let up = up(&world, "laptop").await;
    let begun = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1f\r\n{\"response\":\"a\",\"done\":false}\n\r\n";
    for (path, closes) in [("/api/generate", false), ("/api/chat", true)] {
        let request = raw::post(path, r#"{"model":"stand-in"}"#);
        let mut app = raw::connect(up.address).await;
        app.write_all(request.as_bytes()).await.expect("sent");
        let mut at_service = service.accept().await;
        raw::read_exactly(&mut at_service, request.len()).await;
        at_service.write_all(begun.as_bytes()).await.expect("answered");
        raw::read_exactly(&mut app, begun.len()).await;
        app.shutdown().await.expect("half-closed");
        let kept = (!closes).then_some(app);
        assert_eq!(raw::read_to_end(&mut at_service).await, (vec![], raw::Ending::Closed));
        // Ollama ends a stream like this after a cancellation.
        at_service.write_all(b"0\r\n\r\n").await.expect("ended");
        drop(at_service);
        assert_eq!(line(&world, |line| line["path"] == path).await["end"], "cancelled");
        drop(kept);
    }
}
