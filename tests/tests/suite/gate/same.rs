//! Permitted requests have the same answers through the tunnel as without it: a table of requests,
//! each sent both ways.

use std::time::Duration;

use tests::{
    ollama::Options,
    raw::{self, Ending, Upstream},
    world::World,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::PROGRAM;

/// Requests of applications; several in one line belong together.
fn table() -> Vec<String> {
    let mut all = Vec::new();
    let versions = [
        ("HTTP/1.1", "Host: localhost:11434\r\nConnection: close\r\n"),
        ("HTTP/1.0", ""),
        ("HTTP/1.0", "Host: 127.0.0.1\r\n"),
    ];
    let paths = [
        "/",
        "/api/version",
        "/api/tags",
        "/api/ps",
        "/v1/models",
        "/v1/models/stand-in",
        "/no/such/route",
        "/api/generate",
        "/x?q=1#f",
        "//",
        "/api/./tags",
        "/%61pi/tags",
        "/api/tags/",
        "/api%2Ftags",
    ];
    for (version, fields) in versions {
        for path in paths {
            for method in ["GET", "HEAD", "DELETE", "OPTIONS"] {
                all.push(format!("{method} {path} {version}\r\n{fields}\r\n"));
            }
        }
    }
    let model = r#""model":"stand-in""#;
    for (path, json) in [
        (
            "/api/generate",
            format!(r#"{{{model},"prompt":"a b","options":{{"num_predict":9,"seed":1}}}}"#),
        ),
        (
            "/api/generate",
            format!(
                r#"{{{model},"prompt":"a b","stream":false,"options":{{"num_predict":9,"seed":1}}}}"#
            ),
        ),
        ("/api/generate", format!("{{{model}}}")),
        ("/api/generate", r#"{"model":"absent","prompt":"x"}"#.to_owned()),
        ("/api/generate", "{".to_owned()),
        ("/api/generate", String::new()),
        ("/api/generate", format!(r#"{{"model":"absent",{model},"prompt":"x"}}"#)),
        (
            "/api/chat",
            format!(
                r#"{{{model},"messages":[{{"role":"user","content":"ü \ud83d\ude00"}}],"options":{{"num_predict":5}}}}"#
            ),
        ),
        (
            "/api/chat",
            format!(
                r#"{{{model},"messages":[{{"content":"{}"}}],"options":{{"num_predict":2}}}}"#,
                "word ".repeat(40_000)
            ),
        ),
        ("/api/embed", format!(r#"{{{model},"input":["a","b"]}}"#)),
        ("/api/show", r#"{"name":"stand-in"}"#.to_owned()),
        ("/api/pull", r#"{"model":"stand-in"}"#.to_owned()),
        (
            "/v1/chat/completions",
            format!(r#"{{"messages":[{{"content":"x"}}],{model},"stream":true,"max_tokens":6}}"#),
        ),
        (
            "/v1/chat/completions",
            format!(r#"{{{model},"messages":[{{"content":"x"}}],"max_tokens":6}}"#),
        ),
        (
            "/v1/completions",
            format!(
                r#"{{{model},"prompt":"x","max_tokens":3,"stream":true,"stream_options":{{"include_usage":true}}}}"#
            ),
        ),
        ("/v1/embeddings", format!(r#"{{{model},"input":"a"}}"#)),
    ] {
        all.push(raw::post(path, &json));
        let (half, rest) = json.split_at(json.len() / 2);
        if !half.is_empty() {
            let chunks = format!(
                "{:x}\r\n{half}\r\n{:x};ext=1\r\n{rest}\r\n0\r\nTrailer: yes\r\n\r\n",
                half.len(),
                rest.len()
            );
            let head = format!(
                "POST {path} HTTP/1.1\r\nhost: LOCALHOST\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
            );
            all.push(head + &chunks);
        }
        all.push(format!("POST {path} HTTP/1.0\r\nContent-Length: {}\r\n\r\n{json}", json.len()));
        // Three on one connection, sent at once.
        let kept = raw::post(path, &json).replace("Connection: close\r\n", "");
        all.push(format!(
            "{kept}HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\n{}",
            raw::post(path, &json)
        ));
    }
    let upgrade = "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n";
    all.push(upgrade.to_owned());
    let blob = "/api/blobs/sha256:b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde9";
    all.push(raw::post(blob, "hello world"));
    all.push(raw::post(blob, "another"));
    all.push(format!("HEAD {blob} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"));
    all.push(raw::post("/api/blobs/sha256:xyz", "hello"));
    all
}

#[tokio::test]
async fn two_hundred_requests_get_the_same_answers_through_the_tunnel_as_without_it() {
    let options = || Options { token_interval: Duration::from_millis(1), ..Options::default() };
    let world = World::start_with(PROGRAM, options(), &[]).await;
    // A stand-in of its own, because some requests change its state.
    let other = tests::ollama::Ollama::start(options()).await.expect("a stand-in");
    let up = world.up("laptop").await;
    let table = table();
    assert!(table.len() > 200, "{}", table.len());
    for request in table {
        let direct = raw::exchange(other.addr(), &request).await;
        let tunnelled = raw::exchange(up.address, &request).await;
        assert!(!direct.is_empty(), "{request}");
        assert_eq!(raw::without_date(&tunnelled), raw::without_date(&direct), "{request}");
    }
}

/// An application whose request has arrived at the service.
async fn pair(
    up: &tests::world::Up,
    upstream: &Upstream,
    request: &[u8],
) -> (tokio::net::TcpStream, tokio::net::TcpStream) {
    let mut app = raw::connect(up.address).await;
    app.write_all(request).await.expect("sent");
    let mut service = upstream.accept().await;
    assert_eq!(raw::read_exactly(&mut service, request.len()).await, request);
    (app, service)
}

async fn world_of(upstream: &Upstream) -> World {
    World::in_front_of(PROGRAM, &upstream.flag("http")).await
}

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
const POST: &[u8] =
    b"POST /api/blobs/x HTTP/1.1\r\nhOsT: localhost\r\nX-Odd:   spaces  \r\nContent-Length: 10\r\nExpect: 100-continue\r\n\r\n";

#[tokio::test]
async fn heads_pass_byte_for_byte_and_only_the_service_sends_interim_responses() {
    let upstream = Upstream::start().await;
    let world = world_of(&upstream).await;
    let up = world.up("laptop").await;
    let (mut app, mut service) = pair(&up, &upstream, POST).await;
    assert!(
        tokio::time::timeout(Duration::from_millis(300), app.read_u8()).await.is_err(),
        "100 is the service's to say"
    );
    for interim in
        [&b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"[..], b"HTTP/1.1 100 Continue\r\n\r\n"]
    {
        service.write_all(interim).await.expect("sent");
        assert_eq!(raw::read_exactly(&mut app, interim.len()).await, interim);
    }
    app.write_all(b"0123456789").await.expect("sent");
    assert_eq!(raw::read_exactly(&mut service, 10).await, b"0123456789");
    let answer =
        b"HTTP/1.1 201 Created\r\nlower: 1\r\nUPPER:2\r\nTransfer-Encoding: chunked\r\n\r\n1;e\r\na\r\n0\r\nTrailer: t\r\n\r\n";
    for byte in answer {
        service.write_all(&[*byte]).await.expect("sent");
        assert_eq!(raw::read_exactly(&mut app, 1).await, [*byte], "each byte at once");
    }
    // The connection can be used again, and a FIN of the service reaches the application.
    app.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await.expect("sent");
    raw::read_exactly(&mut service, 35).await;
    service.write_all(b"HTTP/1.1 200 OK\r\n\r\nuntil the end").await.expect("sent");
    drop(service);
    let (answer, ending) = raw::read_to_end(&mut app).await;
    assert_eq!(
        (answer.as_slice(), ending),
        (&b"HTTP/1.1 200 OK\r\n\r\nuntil the end"[..], Ending::Closed)
    );
}

#[tokio::test]
async fn an_early_answer_arrives_during_the_upload_and_a_service_that_closes_is_noticed() {
    let upstream = Upstream::start().await;
    let world = world_of(&upstream).await;
    let up = world.up("laptop").await;
    let (mut app, mut service) = pair(&up, &upstream, POST).await;
    service.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.expect("sent");
    assert_eq!(raw::read_exactly(&mut app, 38).await.len(), 38, "before the body");
    app.write_all(b"0123456789").await.expect("sent");
    assert_eq!(raw::read_exactly(&mut service, 10).await, b"0123456789");
    // Between two requests.
    service.shutdown().await.expect("half-closed");
    assert_eq!(raw::read_to_end(&mut app).await, (vec![], Ending::Closed));

    let (mut app, mut service) = pair(&up, &upstream, GET).await;
    service.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf").await.expect("sent");
    raw::read_exactly(&mut app, 42).await;
    service.set_zero_linger().expect("linger");
    drop(service);
    assert_eq!(raw::read_to_end(&mut app).await.1, Ending::Reset, "a cut is never an end");
}

#[tokio::test]
async fn an_application_that_disconnects_between_within_or_after_requests_disconnects_the_service()
{
    let upstream = Upstream::start().await;
    let world = world_of(&upstream).await;
    let up = world.up("laptop").await;
    for behind in [&b""[..], b"GET / HT", GET, POST] {
        for abort in [false, true] {
            let (mut app, mut service) = pair(&up, &upstream, GET).await;
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
            service.write_all(answer).await.expect("answered");
            raw::read_exactly(&mut app, answer.len()).await;
            app.write_all(behind).await.expect("sent");
            if behind.ends_with(b"\r\n\r\n") {
                raw::read_exactly(&mut service, behind.len()).await;
            }
            if abort {
                app.set_zero_linger().expect("linger");
            }
            drop(app);
            let (rest, ending) = raw::read_to_end(&mut service).await;
            assert_eq!(
                (rest.len(), ending),
                (0, if abort { Ending::Reset } else { Ending::Closed }),
                "{abort}"
            );
        }
    }
}
