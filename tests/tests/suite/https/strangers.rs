//! What somebody without a key gets, and how much of the server.

use std::time::Duration;

use tests::{
    ollama::Options,
    process::Ended,
    raw,
    world::{SOON, World},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::Https;
use crate::PROGRAM;

const FORGED: &str = "adit_aaaaaaaabbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

#[tokio::test]
async fn a_stranger_is_told_to_bring_a_key_in_the_shape_of_ollamas_errors() {
    let https = Https::start(Options::default(), "").await;
    for (path, begins) in
        [("/api/tags", "{\"error\":\"adit: "), ("/v1/models", "{\"error\":{\"message\":\"adit: ")]
    {
        let got = https.curl(path, &[]).await;
        assert_eq!(got.status, 401, "{got:?}");
        assert!(got.body.starts_with(begins), "{got:?}");
        for challenge in
            ["www-authenticate: bearer realm=\"adit\"", "www-authenticate: basic realm=\"adit\""]
        {
            assert!(got.headers.to_ascii_lowercase().contains(challenge), "{got:?}");
        }
    }
    assert_eq!(https.world.ollama.counters().started, 0);
}

#[tokio::test]
async fn guesses_are_limited_and_a_caller_of_the_same_address_is_not() {
    let https = Https::start(Options::default(), "").await;
    let (known, late) = (https.key("known", &[]).await, https.key("late", &[]).await);
    assert_eq!(https.with_key(&known, "/api/tags", &[]).await.status, 200);
    let (mut statuses, began) = (Vec::new(), std::time::Instant::now());
    for _ in 0..30 {
        statuses.push(https.with_key(FORGED, "/api/tags", &[]).await.status);
    }
    let looked_at = statuses.iter().filter(|status| **status == 401).count();
    // Ten at once, and another one after each ten seconds: a loaded machine takes its time.
    let most = 11 + began.elapsed().as_secs() as usize / 10;
    assert!((10..=most).contains(&looked_at), "{statuses:?}");
    let limited = https.with_key(FORGED, "/api/tags", &[]).await;
    if limited.status == 429 {
        assert!(limited.headers.to_ascii_lowercase().contains("retry-after: "), "{limited:?}");
    }
    assert_eq!(https.with_key(&known, "/api/tags", &[]).await.status, 200);
    // Whoever guesses may not learn that the right key was found.
    let unknown = https.with_key(&late, "/api/tags", &[]).await.status;
    assert!(unknown == 429 || unknown == 200, "{unknown}");
    let refused = https.world.audit_has(10, |line| line["event"] == "key_refused").await;
    assert_eq!(refused[0]["prefix"], "adit_aaaaaaaa");
    assert!(refused.len() <= looked_at + 1, "{}", refused.len());
}

#[tokio::test]
async fn a_token_at_a_server_without_a_provider_is_told_that_none_counts() {
    let https = Https::start(Options::default(), "").await;
    // {"alg":"RS256"}.{"iss":"https://a.example"}.x
    let token = "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJodHRwczovL2EuZXhhbXBsZSJ9.eA";
    let got = https.with_key(token, "/api/tags", &[]).await;
    assert_eq!(got.status, 401, "{got:?}");
    assert!(got.body.contains("this server does not accept tokens"), "{got:?}");
    assert!(got.headers.contains("error=\"invalid_token\""), "{got:?}");
    // It counts as a guess, like a wrong key.
    let limited = async { while https.with_key(token, "/api/tags", &[]).await.status != 429 {} };
    tokio::time::timeout(SOON, limited).await.expect("limited");
    let refused = https.world.audit_has(10, |line| line["event"] == "token_refused").await;
    assert!(refused[0]["why"].as_str().is_some_and(|why| why.contains("[jwt]")), "{refused:?}");
}

#[tokio::test]
async fn only_tls_1_3_is_spoken() {
    let https = Https::start(Options::default(), "").await;
    let old = https.curl("/", &["--tls-max", "1.2"]).await;
    assert_eq!((old.code, old.status), (Some(35), 0), "the handshake fails: {old:?}");
    let plain = raw::connect(https.address).await;
    let mut plain = plain;
    plain.write_all(raw::ROOT.as_bytes()).await.expect("sent");
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(SOON, plain.read_to_end(&mut answer)).await.expect("it ends");
    assert!(!answer.starts_with(b"HTTP/"), "{answer:?}");
}

/// openssl's own client, which sends what it is told.
fn client(https: &Https) -> tokio::process::Child {
    let mut command = tokio::process::Command::new("openssl");
    command.args([
        "s_client",
        "-quiet",
        "-verify_quiet",
        "-connect",
        &https.address.to_string(),
        "-CAfile",
    ]);
    command.arg(&https.ca).kill_on_drop(true);
    command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    command.stderr(std::process::Stdio::null()).spawn().expect("openssl runs")
}

/// What the server answers to these bytes, without an end of them.
async fn answer(https: &Https, bytes: &[u8]) -> String {
    let mut client = client(https);
    let mut stdin = client.stdin.take().expect("its input");
    let mut stdout = client.stdout.take().expect("its output");
    let _ = stdin.write_all(bytes).await;
    let _ = stdin.flush().await;
    let mut all = Vec::new();
    tokio::time::timeout(4 * SOON, stdout.read_to_end(&mut all))
        .await
        .expect("the server ends it")
        .expect("read");
    drop(stdin);
    String::from_utf8_lossy(&all).into_owned()
}

#[tokio::test]
async fn slow_and_huge_heads_and_idle_strangers_are_ended() {
    let https = Https::start(Options::default(), "").await;
    let huge = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n", "x".repeat(70_000));
    let (slow, idle, huge) = tokio::join!(
        answer(&https, b"GET / HTTP/1.1\r\nHost: a\r\n"),
        answer(&https, b""),
        answer(&https, huge.as_bytes()),
    );
    assert!(slow.starts_with("HTTP/1.1 408 "), "{slow}");
    assert_eq!(idle, "");
    assert!(huge.starts_with("HTTP/1.1 431 "), "{huge}");
}

#[tokio::test]
async fn strangers_of_one_address_hold_few_connections_and_each_for_a_short_time() {
    let https = Https::start(Options::default(), "").await;
    let key = https.key("ci", &[]).await;
    let mut open = Vec::new();
    for _ in 0..100 {
        open.push(raw::connect(https.address).await);
    }
    // Those above the bound are closed at once.
    let closed = async {
        let mut closed = 0;
        for tcp in &mut open {
            let mut byte = [0];
            let read = tokio::time::timeout(Duration::from_millis(100), tcp.read(&mut byte)).await;
            closed += usize::from(matches!(read, Ok(Ok(0) | Err(_))));
        }
        closed
    };
    assert!(closed.await >= 60);
    // The others in a while, without a word of theirs.
    let works = async {
        while https.with_key(&key, "/api/tags", &[]).await.status != 200 {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::time::timeout(4 * SOON, works).await.expect("there is a place again");
}

#[tokio::test]
async fn https_is_off_and_open_to_no_network_that_was_not_named() {
    let world = World::start(PROGRAM).await;
    assert!(world.status().await["https"].is_null());
    let made = world.aditd(&["key", "create", "ci"]).await;
    assert!(made.stderr.contains("--https-allow-from"), "{}", made.stderr);
    let state = world.scratch("other");
    let refused = |args: Vec<String>| {
        let (state, world) = (state.to_str().expect("a path").to_owned(), &world);
        async move {
            let mut all = vec![
                "serve".to_owned(),
                "--state-dir".to_owned(),
                state,
                "--listen".to_owned(),
                "127.0.0.1:0".to_owned(),
            ];
            all.extend(args);
            let all: Vec<&str> = all.iter().map(String::as_str).collect();
            let ended: Ended = world.programs.run("aditd", &all, "").await.expect("it runs");
            (ended.code, ended.stderr)
        }
    };
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let (code, text) = refused(words("--https 0.0.0.0:8443")).await;
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("--https 0.0.0.0:8443 --https-allow-from 192.168.1.0/24"), "{text}");
    let (code, text) = refused(words("--https 127.0.0.1")).await;
    assert!(code == Some(2) && text.contains("has no port"), "{text}");
    let (code, text) = refused(words("--https 127.0.0.1:0 --upstream tcp://127.0.0.1:1")).await;
    assert!(code == Some(2) && text.contains("--upstream http://127.0.0.1:1"), "{text}");
    assert!(!state.exists(), "nothing was made");
}
