//! Metrics: what they report of the traffic, with a bounded number of lines.

use std::process::Stdio;

use tests::{
    ollama::Options,
    raw, skip,
    world::{SOON, Up, World},
};
use tokio::io::AsyncWriteExt;

use crate::PROGRAM;

const CONFIG: &str = "metrics = 'unix:{dir}/metrics.sock'";

async fn start(config: &str) -> World {
    let options =
        Options { token_interval: std::time::Duration::from_millis(1), ..Options::default() };
    World::start_configured(PROGRAM, options, &[], config).await
}

/// A device with the role `infer` and a tunnel that is up.
async fn up(world: &World, name: &str) -> Up {
    world.device_as(name, "infer").await.up(&[]).await
}

/// The metrics, as curl gets them from the world's socket.
async fn scrape(world: &World) -> Option<String> {
    let socket = world.scratch("metrics.sock");
    let mut curl = tokio::process::Command::new("curl");
    curl.args(["-sS", "--fail", "--max-time", "30", "--unix-socket"])
        .arg(socket)
        .arg("http://localhost/metrics");
    match curl.stdin(Stdio::null()).output().await {
        Ok(output) => {
            assert!(output.status.success(), "{output:?}");
            let text = String::from_utf8(output.stdout).expect("text");
            assert!(text.ends_with("# EOF\n"), "{text}");
            Some(text)
        }
        Err(_) => {
            skip::skip_test("there is no curl");
            None
        }
    }
}

/// The value of a metric, 0 if it is missing.
fn value(text: &str, line: &str) -> f64 {
    let found = text.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(' '));
    found.map_or(0.0, |value| value.parse().expect("a number"))
}

/// Scrapes until a metric has reached a value: a request is counted when it has ended, which its
/// client may know a moment earlier.
async fn scrape_until(world: &World, line: &str, at_least: f64) -> Option<String> {
    let wait = async {
        loop {
            let text = scrape(world).await?;
            if value(&text, line) >= at_least {
                return Some(text);
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    match tokio::time::timeout(SOON, wait).await {
        Ok(text) => text,
        Err(_) => {
            panic!("never {at_least} of `{line}`:\n{}", scrape(world).await.unwrap_or_default())
        }
    }
}

#[tokio::test]
async fn requests_are_counted() {
    let world = start(CONFIG).await;
    let up = up(&world, "laptop").await;
    world.device("away").await;
    for seed in 0..3 {
        let answer = raw::exchange(up.address, &raw::generate(5, seed)).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    }
    let denied = raw::exchange(up.address, &raw::post("/api/pull", r#"{"model":"x"}"#)).await;
    assert!(denied.starts_with("HTTP/1.1 403 "), "{denied}");
    // A stranger's packet without a knock gets no answer.
    let stranger = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port");
    let mut initial = vec![0xc0, 0, 0, 0, 1, 20];
    initial.extend([7; 20]);
    initial.extend([0, 0, 0x44, 0x90]);
    initial.resize(1200, 0);
    stranger.send_to(&initial, world.address().await).expect("sent");
    let refused = r#"adit_requests_refused_total{reason="role"}"#;
    if scrape_until(&world, refused, 1.0).await.is_none() {
        return;
    }
    let done = r#"adit_requests_ended_total{service="ollama",route="generate",end="done"}"#;
    let text = scrape_until(&world, done, 3.0).await.expect("metrics");
    for (line, expected) in [
        (
            r#"adit_requests_total{service="ollama",role="infer",route="generate",status="2xx"}"#,
            3.0,
        ),
        (r#"adit_requests_total{service="ollama",role="infer",route="models",status="4xx"}"#, 1.0),
        (refused, 1.0),
        (r#"adit_tokens_total{service="ollama",role="infer",direction="out"}"#, 15.0),
        (r#"adit_first_byte_seconds_count{service="ollama",route="generate"}"#, 3.0),
        (r#"adit_devices{state="up"}"#, 1.0),
        (r#"adit_devices{state="away"}"#, 1.0),
        (r#"adit_sessions{carrier="local"}"#, 1.0),
        (r#"adit_handshakes_total{outcome="tunnel"}"#, 1.0),
        (r#"adit_handshakes_total{outcome="enrollment"}"#, 2.0),
        ("adit_audit_failing", 0.0),
    ] {
        assert_eq!(value(&text, line), expected, "{line} in:\n{text}");
    }
    assert!(value(&text, r#"adit_bytes_total{direction="out"}"#) > 1000.0, "{text}");
    assert!(
        value(&text, r#"adit_certificate_end_timestamp_seconds{of="first_device"}"#) > 1.7e9,
        "{text}"
    );
    scrape_until(&world, r#"adit_door_ignored_total{reason="stranger"}"#, 1.0)
        .await
        .expect("metrics");
    let garbage = tokio::net::UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
    garbage.send_to(&[0xff; 1200], world.address().await).await.expect("sent");
    scrape_until(&world, r#"adit_door_ignored_total{reason="datagram"}"#, 1.0)
        .await
        .expect("metrics");
}

#[tokio::test]
async fn the_time_between_the_pieces_of_an_answer_is_observed() {
    const PIECES: [&str; 3] = [
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        "4\r\n{ } \r\n",
        "4\r\n{ }\n\r\n0\r\n\r\n",
    ];
    let upstream = raw::Upstream::start().await;
    let flags = ["--upstream", &upstream.flag("http")];
    let world = World::start_configured(PROGRAM, Options::default(), &flags, CONFIG).await;
    let up = up(&world, "laptop").await;
    let mut app = raw::connect(up.address).await;
    let request = raw::generate(2, 0);
    app.write_all(request.as_bytes()).await.expect("sent");
    let mut service = upstream.accept().await;
    raw::read_exactly(&mut service, request.len()).await;
    // The next piece leaves when the application has the one before: they cannot be joined on the
    // way.
    for piece in PIECES {
        service.write_all(piece.as_bytes()).await.expect("sent");
        assert_eq!(raw::read_exactly(&mut app, piece.len()).await, piece.as_bytes());
    }
    let between = r#"adit_between_pieces_seconds_count{route="generate"}"#;
    let Some(text) = scrape_until(&world, between, 2.0).await else { return };
    assert_eq!(value(&text, between), 2.0, "{text}");
}

#[tokio::test]
async fn metrics_show_the_expiry_of_the_renewed_certificate() {
    let flags = ["--device-life", "4s"];
    let world = World::start_configured(PROGRAM, Options::default(), &flags, CONFIG).await;
    let device = world.device("laptop").await;
    let enrolled = common::machine::process::unix_now();
    if scrape_until(&world, "adit_devices_expired", 1.0).await.is_none() {
        return;
    }
    let _up = device.up(&[]).await;
    let first = r#"adit_certificate_end_timestamp_seconds{of="first_device"}"#;
    // The first certificate expired 4 s after the enrollment; the device has another one now.
    let text = scrape_until(&world, first, (enrolled + 5) as f64).await.expect("metrics");
    assert_eq!(value(&text, "adit_devices_expired"), 0.0, "{text}");
}

#[tokio::test]
async fn requests_add_no_label_values() {
    let world = start(CONFIG).await;
    let up = up(&world, "laptop").await;
    let ask = async |path: &str| {
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let answer = raw::exchange(up.address, &request).await;
        assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    };
    let all = r#"adit_requests_refused_total{reason="role"}"#;
    ask("/unknown").await;
    let Some(before) = scrape_until(&world, all, 1.0).await else { return };
    for i in 0..100 {
        ask(&format!("/unknown/{i}?secret={i}")).await;
    }
    let after = scrape_until(&world, all, 101.0).await.expect("metrics");
    assert_eq!(after.lines().count(), before.lines().count(), "{after}");
    assert!(!after.contains("unknown") && !after.contains("laptop"), "{after}");
}

#[tokio::test]
async fn metrics_are_off_by_default_and_only_on_loopback() {
    let world = start("").await;
    assert!(!world.aditd.log().contains("metrics at"), "{}", world.aditd.log());
    std::fs::write(world.config(), "metrics = '0.0.0.0:9464'").expect("written");
    let told = world.aditd(&["serve", "--listen", "127.0.0.1:0"]).await;
    assert_eq!(told.code, Some(2), "{told:?}");
    assert!(
        told.stderr.contains("not a loopback address") && told.stderr.contains("line 1"),
        "{}",
        told.stderr
    );
}

#[tokio::test]
async fn metrics_are_served_on_a_loopback_port_too() {
    let mut world = start("metrics = '127.0.0.1:0'").await;
    world.aditd.says("metrics at http://127.0.0.1:").await;
    let log = world.aditd.log();
    let at = log
        .split("metrics at http://")
        .nth(1)
        .and_then(|rest| rest.split('/').next())
        .expect("an address");
    let answer = raw::exchange(
        at.parse().expect("an address"),
        "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    )
    .await;
    assert!(
        answer.starts_with("HTTP/1.1 200 OK") && answer.contains("application/openmetrics-text"),
        "{answer}"
    );
}

#[tokio::test]
async fn the_queue_is_counted_who_waits_now_and_how_long_requests_have_waited() {
    let world = start(&format!("{CONFIG}\nmax_in_flight = 1")).await;
    let up = up(&world, "laptop").await;
    let running = super::limits::endless(&world, up.address).await;
    let waiting =
        tokio::spawn(async move { raw::exchange(up.address, &raw::generate(1, 1)).await });
    super::limits::line_has(&world, 1).await;
    let Some(text) = scrape(&world).await else { return };
    assert_eq!(value(&text, "adit_queue_waiting"), 1.0, "{text}");
    assert_eq!(value(&text, "adit_queue_running"), 1.0, "{text}");
    let longer = async {
        while world.status().await["queue"]["waiting"][0]["seconds"].as_f64() < Some(0.15) {}
    };
    tokio::time::timeout(SOON, longer).await.expect("it waits");
    drop(running);
    let answer = waiting.await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    let waited = r#"adit_queue_wait_seconds_count{route="generate"}"#;
    let text = scrape_until(&world, waited, 2.0).await.expect("metrics");
    assert_eq!(value(&text, "adit_queue_waiting"), 0.0, "{text}");
    let sum = value(&text, r#"adit_queue_wait_seconds_sum{route="generate"}"#);
    assert!((0.15..SOON.as_secs_f64()).contains(&sum), "{text}");
    // One of the two has waited longer than a tenth of a second.
    let short = value(&text, r#"adit_queue_wait_seconds_bucket{le="0.1",route="generate"}"#);
    assert!(short <= 1.0, "{text}");
}
