//! Requests that can be read in two ways are refused, and no byte of them reaches the service.

use std::{sync::Arc, time::Duration};

use tests::{
    raw::{self, Ending, Upstream},
    world::{SOON, World},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::watch,
    task::JoinSet,
};

use crate::PROGRAM;

/// A service that keeps every byte that it receives, and answers each head.
struct Recorder {
    got: watch::Receiver<Vec<u8>>,
    _tasks: JoinSet<()>,
}

impl Recorder {
    fn of(upstream: Arc<Upstream>) -> Self {
        let (keep, got) = watch::channel(Vec::new());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok(mut tcp) = upstream.try_accept().await {
                let keep = keep.clone();
                connections.spawn(async move {
                    let mut block = [0; 4096];
                    while let Ok(n @ 1..) = tcp.read(&mut block).await {
                        keep.send_modify(|all| all.extend_from_slice(&block[..n]));
                        if block[..n].ends_with(b"\r\n\r\n") {
                            let _ = tcp
                                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                                .await;
                        }
                    }
                });
            }
        });
        Self { got, _tasks: tasks }
    }

    async fn has(&mut self, text: &str) -> bool {
        let found = self.got.wait_for(|all| String::from_utf8_lossy(all).contains(text));
        tokio::time::timeout(SOON, found).await.is_ok_and(|found| found.is_ok())
    }
}

async fn world() -> (Recorder, World) {
    let upstream = Arc::new(Upstream::start().await);
    let world = World::in_front_of(PROGRAM, &upstream.flag("http")).await;
    (Recorder::of(upstream), world)
}

/// Heads that are refused; `H` stands for the field that every HTTP/1.1 request needs.
const HEADS: &[&str] = &[
    // Two lengths, or an invalid one.
    "POST /api/chat HTTP/1.1\r\nH\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "POST /api/chat HTTP/1.1\r\nH\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
    "POST /api/chat HTTP/1.1\r\nH\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
    "POST /api/chat HTTP/1.1\r\nH\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    "POST /api/chat HTTP/1.1\r\nH\r\nContent-Length: 3, 3\r\n\r\nabc",
    "POST /api/chat HTTP/1.1\r\nH\r\nContent-Length: +3\r\n\r\nabc",
    "POST /api/chat HTTP/1.1\r\nH\r\nContent-Length: -3\r\n\r\nabc",
    "POST /api/chat HTTP/1.1\r\nH\r\nContent-Length: 0x3\r\n\r\nabc",
    "POST /api/chat HTTP/1.1\r\nH\r\nContent-Length: 3 3\r\n\r\nabc",
    "POST /api/chat HTTP/1.1\r\nH\r\nContent-Length:\r\n\r\nabc",
    "POST /api/chat HTTP/1.1\r\nH\r\nContent-Length: 18446744073709551617\r\n\r\nabc",
    // Every transfer coding but `chunked`.
    "POST /api/chat HTTP/1.1\r\nH\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "POST /api/chat HTTP/1.1\r\nH\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "POST /api/chat HTTP/1.1\r\nH\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "POST /api/chat HTTP/1.1\r\nH\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "POST /api/chat HTTP/1.1\r\nH\r\nTransfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
    "POST /api/chat HTTP/1.1\r\nH\r\nTransfer-Encoding:\r\n\r\n0\r\n\r\n",
    "POST /api/chat HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    // Lines.
    "GET / HTTP/1.1\r\nH\r\nX: a\r\n b\r\n\r\n",
    "GET / HTTP/1.1\r\nH\r\nX: a\r\n\tb\r\n\r\n",
    "GET / HTTP/1.1\r\n H\r\n\r\n",
    "GET / HTTP/1.1\nHost: localhost\n\n",
    "GET / HTTP/1.1\r\nH\nX: a\r\n\r\n",
    "GET / HTTP/1.1\r\nH\rX: a\r\n\r\n",
    "GET / HTTP/1.1\r\nH\r\n\n",
    "\r\nGET / HTTP/1.1\r\nH\r\n\r\n",
    "\nGET / HTTP/1.1\r\nH\r\n\r\n",
    // Fields.
    "POST /api/chat HTTP/1.1\r\nH\r\nContent-Length : 3\r\n\r\nabc",
    "POST /api/chat HTTP/1.1\r\nH\r\nTransfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n",
    "GET / HTTP/1.1\r\nH\r\n: a\r\n\r\n",
    "GET / HTTP/1.1\r\nH\r\nno colon\r\n\r\n",
    "GET / HTTP/1.1\r\nH\r\nX: a\0b\r\n\r\n",
    "GET / HTTP/1.1\r\nH\r\nX\0: a\r\n\r\n",
    "GET / HTTP/1.1\r\nH\r\nX: a\x08\r\n\r\n",
    "GET / HTTP/1.1\r\nH\r\nX: a\x7f\r\n\r\n",
    "GET / HTTP/1.1\r\nH\r\nX(: a\r\n\r\n",
    // Host.
    "GET / HTTP/1.1\r\n\r\n",
    "GET / HTTP/1.1\r\nH\r\nH\r\n\r\n",
    "GET / HTTP/1.1\r\nH\r\nhost: evil.example\r\n\r\n",
    "GET / HTTP/1.0\r\nH\r\nHost: evil.example\r\n\r\n",
    // The request line.
    "GET http://localhost/ HTTP/1.1\r\nH\r\n\r\n",
    "GET http://evil.example/ HTTP/1.1\r\nH\r\n\r\n",
    "OPTIONS * HTTP/1.1\r\nH\r\n\r\n",
    "CONNECT localhost:22 HTTP/1.1\r\nH\r\n\r\n",
    "GET  / HTTP/1.1\r\nH\r\n\r\n",
    "GET / HTTP/1.1 \r\nH\r\n\r\n",
    "GET /\r\nH\r\n\r\n",
    "GET / HTTP/1.2\r\nH\r\n\r\n",
    "GET / HTTP/2.0\r\nH\r\n\r\n",
    "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "GET /\u{e9} HTTP/1.1\r\nH\r\n\r\n",
    "G\x01T / HTTP/1.1\r\nH\r\n\r\n",
    "nonsense\r\n\r\n",
    "\x16\x03\x01\x02\x00\x01\x00\x01\u{fc}\x03\x03",
];

/// Bodies with invalid chunks.
const CHUNKS: &[&str] = &[
    "+3\r\nabc\r\n0\r\n\r\n",
    "-3\r\nabc\r\n0\r\n\r\n",
    " 3\r\nabc\r\n0\r\n\r\n",
    "3 \r\nabc\r\n0\r\n\r\n",
    "0x3\r\nabc\r\n0\r\n\r\n",
    "3\nabc\r\n0\r\n\r\n",
    "3\r\nabc\n0\r\n\r\n",
    "3\r\nabcd\r\n0\r\n\r\n",
    "fffffffffffffffff\r\nabc\r\n0\r\n\r\n",
    "3;a\nb\r\nabc\r\n0\r\n\r\n",
    "\r\n",
    "0\r\nno colon\r\n\r\n",
    "0\r\n\n",
];

fn request(text: &str) -> Vec<u8> {
    let head = text
        .replace("\r\n H\r\n", "\r\n Host: localhost\r\n")
        .replace("H\r", "Host: localhost\r")
        .replace("H\n", "Host: localhost\n");
    // As Latin-1, so that single bytes above ASCII can be written.
    head.chars().map(|c| u8::try_from(u32::from(c)).expect("a byte")).collect()
}

async fn refused(up: &tests::world::Up, request: &[u8]) -> String {
    let mut app = raw::connect(up.address).await;
    app.write_all(request).await.expect("sent");
    let (answer, ending) = raw::read_to_end(&mut app).await;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert_eq!(ending, Ending::Closed, "{answer}");
    answer
}

#[tokio::test]
async fn an_ambiguous_head_is_refused_and_not_a_byte_of_it_reaches_the_service() {
    let (mut recorder, world) = world().await;
    let up = world.up("laptop").await;
    for head in HEADS {
        let answer = refused(&up, &request(head)).await;
        assert!(
            answer.starts_with("HTTP/1.1 400 ") || answer.starts_with("HTTP/1.0 400 "),
            "{head:?}: {answer}"
        );
        assert!(
            answer.contains("\r\nConnection: close\r\n")
                && answer.contains("{\"error\":\"adit: the request "),
            "{answer}"
        );
    }
    let long = format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(70_000));
    assert!(refused(&up, long.as_bytes()).await.starts_with("HTTP/1.1 431 "));
    // Everything after a refused request is dropped with it.
    let smuggled = request(
        "POST /api/chat HTTP/1.1\r\nH\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcGET /smuggled HTTP/1.1\r\nH\r\n\r\n",
    );
    refused(&up, &smuggled).await;

    let mut app = raw::connect(up.address).await;
    app.write_all(&request("GET /last HTTP/1.1\r\nH\r\n\r\n")).await.expect("sent");
    assert!(recorder.has("GET /last").await, "a good one gets through");
    let got = String::from_utf8_lossy(&recorder.got.borrow()).into_owned();
    assert_eq!(got, "GET /last HTTP/1.1\r\nHost: localhost\r\n\r\n");
}

#[tokio::test]
async fn a_malformed_chunk_ends_the_request_and_no_later_byte_reaches_the_service() {
    let (mut recorder, world) = world().await;
    let up = world.up("laptop").await;
    let head = "POST /api/chat HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
    for chunk in CHUNKS {
        let answer = refused(
            &up,
            format!("{head}{chunk}GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes(),
        )
        .await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{chunk:?}: {answer}");
    }
    // A malformed chunk long after the head has passed.
    let mut app = raw::connect(up.address).await;
    app.write_all(format!("{head}5\r\nfirst\r\n").as_bytes()).await.expect("sent");
    assert!(recorder.has("first").await);
    app.write_all(b"+6\r\nsecond\r\n0\r\n\r\n").await.expect("sent");
    let (answer, _) = raw::read_to_end(&mut app).await;
    assert!(answer.starts_with(b"HTTP/1.1 400 "), "{}", String::from_utf8_lossy(&answer));

    let mut app = raw::connect(up.address).await;
    app.write_all(&request("GET /last HTTP/1.1\r\nH\r\n\r\n")).await.expect("sent");
    assert!(recorder.has("GET /last").await, "a good one gets through");
    let got = String::from_utf8_lossy(&recorder.got.borrow()).into_owned();
    assert!(!got.contains("smuggled") && !got.contains("second"), "{got}");
}

#[tokio::test]
async fn a_request_sent_byte_by_byte_is_judged_like_one_sent_at_once() {
    let (mut recorder, world) = world().await;
    let up = world.up("laptop").await;
    let good = request(
        "POST /api/chat HTTP/1.1\r\nH\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX: y\r\n\r\n",
    );
    let mut app = raw::connect(up.address).await;
    for byte in &good {
        app.write_all(&[*byte]).await.expect("sent");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(recorder.has("X: y\r\n\r\n").await);
    assert_eq!(*recorder.got.borrow(), good);

    let mut app = raw::connect(up.address).await;
    for byte in request("POST /api/chat HTTP/1.1\r\nH\r\nContent-Length : 3\r\n\r\n") {
        // It may be refused before its end.
        let _ = app.write_all(&[byte]).await;
    }
    let (answer, _) = raw::read_to_end(&mut app).await;
    assert!(answer.starts_with(b"HTTP/1.1 400 "), "{}", String::from_utf8_lossy(&answer));
    assert_eq!(*recorder.got.borrow(), good);
}
