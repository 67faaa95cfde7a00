//! What a key opens, and that it ends at once.

use std::time::Duration;

use serde_json::Value;
use tests::{cli_assert::assert_ok, fake_clock::FakeClock, ollama::Options, raw, world::SOON};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Https, address, endless::Endless};

const GENERATE: &str = r#"{"model":"stand-in:latest","prompt":"x","options":{"num_predict":4}}"#;

#[tokio::test]
async fn a_key_opens_as_bearer_as_x_api_key_and_as_a_password_and_the_service_sees_none_of_them() {
    let service = raw::Upstream::start().await;
    let https =
        Https::start_with(Options::default(), "", &["--upstream", &service.flag("http")]).await;
    let key = https.key("phone", &[]).await;
    let (bearer, api_key, user) =
        (format!("Authorization: Bearer {key}"), format!("X-Api-Key: {key}"), format!("me:{key}"));
    for args in [["--header", &*bearer], ["--header", &*api_key], ["--user", &*user]] {
        let args = [&args[..], &["--header", "X-Other: 1", "--cookie", "a=b"]].concat();
        let asked = https.curl("/api/tags", &args);
        let answered = async {
            let mut tcp = service.accept().await;
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(tcp.read_u8().await.expect("a byte"));
            }
            AsyncWriteExt::write_all(&mut tcp, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
                .await
                .expect("sent");
            String::from_utf8(head).expect("text")
        };
        let (got, head) = tokio::join!(asked, answered);
        assert_eq!((got.status, got.body.as_str()), (200, "{}"), "{got:?}");
        let head = head.to_ascii_lowercase();
        assert!(head.starts_with("get /api/tags http/1.1\r\nhost: localhost\r\n"), "{head}");
        assert!(head.contains("x-other: 1\r\n"), "{head}");
        for secret in ["authorization", "x-api-key", "adit_", "cookie"] {
            assert!(!head.contains(secret), "{head}");
        }
    }
}

#[tokio::test]
async fn a_key_has_its_role_its_models_and_its_limits_and_the_audit_log_names_it() {
    let config = "[devices.phone.limits]\nbody = \"1KiB\"\n";
    let https = Https::start(Options::default(), config).await;
    let key = https.key("phone", &["--user", "alice@example.com", "--models", "stand-in*"]).await;
    let made = https.with_key(&key, "/api/generate", &["--data", GENERATE]).await;
    assert_eq!(made.status, 200, "{made:?}");
    let denied =
        https.with_key(&key, "/api/delete", &["--request", "DELETE", "--data", "{}"]).await;
    assert_eq!(denied.status, 403, "{denied:?}");
    assert!(denied.body.contains("`aditd key role phone models`"), "{}", denied.body);
    let other = https.with_key(&key, "/api/generate", &["--data", r#"{"model":"other"}"#]).await;
    assert_eq!(other.status, 403, "{other:?}");
    assert!(other.body.contains("`aditd key models phone MODEL…`"), "{}", other.body);
    let long = format!(r#"{{"model":"stand-in:latest","prompt":"{}"}}"#, "x".repeat(2000));
    assert_eq!(https.with_key(&key, "/api/generate", &["--data", &long]).await.status, 413);
    assert_ok(&https.world.aditd(&["key", "role", "phone", "models"]).await);
    let now = https
        .with_key(
            &key,
            "/api/delete",
            &["--request", "DELETE", "--data", r#"{"model":"stand-in:latest"}"#],
        )
        .await;
    assert_ne!(now.status, 403, "the cure of the first refusal works: {now:?}");
    let lines = https
        .world
        .audit_has(4, |line| line["event"] == "request" && line["device"] == "phone")
        .await;
    let first = &lines[0];
    assert_eq!(
        (&first["carrier"], &first["key"], &first["user"]),
        (&"https".into(), &true.into(), &"alice@example.com".into())
    );
    assert!(
        first["remote"].as_str().is_some_and(|remote| remote.starts_with("127.0.0.1:")),
        "{first}"
    );
    let text = https.world.audit(&[]).await.iter().map(Value::to_string).collect::<String>();
    assert!(!text.contains(&key), "a key is in no line");
    let doctor = https.world.aditd(&["doctor", "--json"]).await;
    assert!(doctor.stdout.contains("for those who have a key"), "{}", doctor.stdout);
    let status = https.world.status().await;
    assert_eq!(status["https"]["callers"][0]["name"], "phone", "{status}");
    let listed = https.world.aditd(&["key", "models", "phone", "other"]).await;
    assert_ok(&listed);
    let note = "Ollama here does not have `other`";
    assert!(listed.stderr.contains(note), "a mistake in a name is told: {}", listed.stderr);
}

#[tokio::test]
async fn a_revoked_key_cuts_its_answer_in_the_middle_and_opens_nothing_more() {
    let options = Options { token_interval: Duration::from_millis(20), ..Options::default() };
    let https = Https::start(options, "").await;
    let (key, other) = (https.key("phone", &[]).await, https.key("desk", &[]).await);
    let running = Endless::begun(&https, &key).await;
    assert_ok(&https.world.aditd(&["key", "revoke", "phone"]).await);
    running.was_cut().await;
    https
        .world
        .ollama
        .wait_for(|c| c.cancelled == 1 && c.running == 0, SOON)
        .await
        .expect("the service stops");
    let refused = https.with_key(&key, "/api/tags", &[]).await;
    assert_eq!(refused.status, 401, "{refused:?}");
    assert_eq!(https.with_key(&other, "/api/tags", &[]).await.status, 200);
    let cut =
        https.world.audit_has(1, |line| line["event"] == "request" && line["end"] == "cut").await;
    assert_eq!(cut[0]["device"], "phone");
}

#[tokio::test]
async fn a_rotated_key_works_with_both_secrets_until_the_overlap_ends() {
    let https = Https::start(Options::default(), "").await;
    let old = https.key("ci", &[]).await;
    let rotated = https.world.aditd(&["key", "rotate", "ci"]).await;
    assert_ok(&rotated);
    let new = rotated.stdout.trim().to_owned();
    for key in [&old, &new] {
        assert_eq!(https.with_key(key, "/api/tags", &[]).await.status, 200);
    }
    let listed = https.world.aditd(&["key", "list", "--json"]).await;
    let listed: Value = serde_json::from_str(&listed.stdout).expect("JSON");
    let secrets = listed["keys"][0]["secrets"].as_array().expect("secrets");
    assert_eq!(secrets.len(), 2, "{listed}");
    assert!(new.starts_with(secrets[0]["prefix"].as_str().expect("a prefix")), "{listed}");
    assert!(!listed.to_string().contains(&new) && !listed.to_string().contains(&old));
    let rotated = https.world.aditd(&["key", "rotate", "ci", "--overlap", "0s"]).await;
    assert_ok(&rotated);
    for key in [&old, &new] {
        assert_eq!(https.with_key(key, "/api/tags", &[]).await.status, 401);
    }
    assert_eq!(https.with_key(rotated.stdout.trim(), "/api/tags", &[]).await.status, 200);
}

#[tokio::test]
async fn a_key_ends_when_it_was_said() {
    let https = Https::start(Options::default(), "").await;
    let key = https.key("ci", &["--expires", "2s"]).await;
    let ends = async { while https.with_key(&key, "/api/tags", &[]).await.status != 401 {} };
    tokio::time::timeout(SOON, ends).await.expect("it ends");
    let wrong = https.world.aditd(&["key", "create", "x", "--expires", "0s"]).await;
    assert_eq!(wrong.code, Some(2), "{}", wrong.stderr);
}

#[tokio::test]
async fn the_end_of_a_key_and_that_of_an_overlap_cut_what_runs_and_no_other_key() {
    let options = Options { token_interval: Duration::from_millis(20), ..Options::default() };
    let mut https = Https::start(options, "").await;
    let Some(clock) = FakeClock::new(&https.world.scratch("")) else { return };
    https.world.aditd.stop().await;
    https.world.restart_server_by(&clock).await;
    https.address = address(&https.world).await;
    let rotated = https.key("rotated", &[]).await;
    let ends = https.key("ends", &["--expires", "1h"]).await;
    let stays = https.key("stays", &["--expires", "30d"]).await;
    let mut of_rotated = Endless::begun(&https, &rotated).await;
    let mut of_ends = Endless::begun(&https, &ends).await;
    let mut of_stays = Endless::begun(&https, &stays).await;
    // The key had no end when its answer began.
    let new = https.world.aditd(&["key", "rotate", "rotated", "--overlap", "20m"]).await;
    assert_ok(&new);
    of_rotated.goes_on().await;
    clock.set_ahead(40 * 60);
    of_rotated.was_cut().await;
    let now = https.world.ollama.wait_for(|c| c.running == 2, SOON).await.expect("it stops");
    assert_eq!(now.cancelled, 1);
    of_ends.goes_on().await;
    assert_eq!(https.with_key(&rotated, "/api/tags", &[]).await.status, 401);
    assert_eq!(https.with_key(new.stdout.trim(), "/api/tags", &[]).await.status, 200);
    assert_eq!(https.with_key(&ends, "/api/tags", &[]).await.status, 200);
    clock.set_ahead(80 * 60);
    of_ends.was_cut().await;
    let now = https.world.ollama.wait_for(|c| c.running == 1, SOON).await.expect("it stops");
    assert_eq!(now.cancelled, 2);
    assert_eq!(https.with_key(&ends, "/api/tags", &[]).await.status, 401);
    of_stays.goes_on().await;
    assert_eq!(https.with_key(&stays, "/api/tags", &[]).await.status, 200);
    let cut =
        https.world.audit_has(2, |line| line["event"] == "request" && line["end"] == "cut").await;
    let names: Vec<_> = cut.iter().map(|line| line["device"].as_str()).collect();
    assert_eq!(names, [Some("rotated"), Some("ends")]);
}

#[tokio::test]
async fn requests_of_two_keys_on_one_connection_are_those_of_each() {
    let https = Https::start(Options::default(), "").await;
    let (one, other) =
        (https.key("one", &[]).await, https.key("other", &["--role", "admin"]).await);
    let (one, other) = (format!("X-Api-Key: {one}"), format!("X-Api-Key: {other}"));
    let url = https.url("/api/tags");
    let args = [
        "--header",
        &*one,
        "--next",
        "--silent",
        "--cacert",
        https.ca.to_str().expect("a path"),
        "--header",
        &*other,
    ];
    let mut command = https.curl_command("/api/tags", &[]);
    command.args(["--output", "/dev/null", "--write-out", "%{http_code} %{num_connects}\n"]);
    // The URL of the first request comes before these.
    command
        .args(&args[..2])
        .args([
            "--next",
            "--silent",
            "--write-out",
            "%{http_code} %{num_connects}\n",
            "--output",
            "/dev/null",
        ])
        .args(&args[4..])
        .arg(&url);
    let out =
        tokio::time::timeout(SOON, command.output()).await.expect("in time").expect("curl runs");
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert_eq!(text, "200 1\n200 0\n", "{}", String::from_utf8_lossy(&out.stderr));
    let lines = https.world.audit_has(2, |line| line["event"] == "request").await;
    let names: Vec<_> =
        lines.iter().map(|line| line["device"].as_str().unwrap_or_default()).collect();
    assert_eq!(names, ["one", "other"]);
    assert_eq!(lines[1]["role"], "admin");
}

#[tokio::test]
async fn a_restart_keeps_keys_and_what_was_seen_of_them() {
    let mut https = Https::start(Options::default(), "").await;
    let key = https.key("ci", &[]).await;
    assert_eq!(https.with_key(&key, "/api/tags", &[]).await.status, 200);
    let is_seen = async {
        loop {
            let listed = https.world.aditd(&["key", "list", "--json"]).await;
            let listed: Value = serde_json::from_str(&listed.stdout).expect("JSON");
            if listed["keys"][0]["seen"].is_i64() {
                return;
            }
        }
    };
    tokio::time::timeout(SOON, is_seen).await.expect("it is noted");
    https.world.kill_server().await;
    https.world.restart_server().await;
    https.address = address(&https.world).await;
    assert_eq!(https.with_key(&key, "/api/tags", &[]).await.status, 200);
}

#[tokio::test]
async fn authorize_is_told_of_the_key_and_the_metrics_count_who_was_turned_away() {
    let checker = raw::Upstream::start().await;
    let config = format!(
        "authorize = 'http://{}/check'\nmetrics = 'unix:{{dir}}/metrics.sock'\n",
        checker.address()
    );
    let https = Https::start(Options::default(), &config).await;
    let key = https.key("phone", &["--user", "alice"]).await;
    let asked = async {
        let mut tcp = checker.accept().await;
        let mut bytes = Vec::new();
        let question = loop {
            assert!(tcp.read_buf(&mut bytes).await.expect("read") > 0, "no question");
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let body = text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
            if let Some(Ok(question)) = body.map(|body| serde_json::from_str::<Value>(&body)) {
                break question;
            }
        };
        tcp.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n").await.expect("sent");
        question
    };
    let (denied, question) = tokio::join!(https.with_key(&key, "/api/tags", &[]), asked);
    assert_eq!(denied.status, 403, "{denied:?}");
    assert_eq!(
        (&question["device"], &question["key"], &question["user"]),
        (&"phone".into(), &true.into(), &"alice".into())
    );
    assert_eq!(https.curl("/api/tags", &[]).await.status, 401);
    let socket = https.world.scratch("metrics.sock");
    let scraped = tokio::process::Command::new("curl")
        .args(["-sS", "--fail", "--max-time", "30", "--unix-socket"])
        .arg(socket)
        .arg("http://localhost/metrics")
        .output();
    let scraped = scraped.await.expect("curl runs");
    let text = String::from_utf8(scraped.stdout).expect("text");
    for line in [
        r#"adit_keys{state="valid"} 1"#,
        r#"adit_https_turned_away_total{reason="no_key"} 1"#,
        r#"adit_https_turned_away_total{reason="wrong_key"} 0"#,
    ] {
        assert!(text.lines().any(|own| own == line), "no `{line}` in {text}");
    }
    assert!(text.contains(r#"adit_certificate_end_timestamp_seconds{of="https"}"#), "{text}");
}

#[tokio::test]
async fn a_key_reaches_a_service_besides_ollama_by_its_name_in_the_path() {
    let service = raw::Upstream::start().await;
    let config = format!("[services.vllm]\nupstream = '{}'\n", service.flag("openai"));
    let https = Https::start(Options::default(), &config).await;
    let key = https.key("phone", &[]).await;
    let asked = https.with_key(&key, "/services/vllm/v1/models?x=1", &[]);
    let answered = async {
        let mut tcp = service.accept().await;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(tcp.read_u8().await.expect("a byte"));
        }
        AsyncWriteExt::write_all(&mut tcp, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
            .await
            .expect("sent");
        String::from_utf8(head).expect("text")
    };
    let (got, head) = tokio::join!(asked, answered);
    assert_eq!((got.status, got.body.as_str()), (200, "{}"), "{got:?}");
    assert!(head.starts_with("GET /v1/models?x=1 HTTP/1.1\r\n"), "{head}");
    let denied = https.with_key(&key, "/services/vllm/metrics", &[]).await;
    assert_eq!(denied.status, 403, "{denied:?}");
    let unknown = https.with_key(&key, "/services/other/v1/models", &[]).await;
    assert_eq!(unknown.status, 400, "{unknown:?}");
    assert!(unknown.body.contains("no service `other`"), "{unknown:?}");
}
