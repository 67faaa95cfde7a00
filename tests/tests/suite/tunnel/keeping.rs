//! Idle connections that an application keeps: they survive sessions and the server; only running
//! answers are cut.

use tests::{
    raw::{self, Ending, Upstream},
    world::{Device, SOON, Up, World},
};
use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::PROGRAM;

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
const CHUNKED: &[u8] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";

/// Sends a request on a connection that stays open.
async fn ask(app: &mut TcpStream) {
    app.write_all(GET).await.expect("sent");
    let mut answer = Vec::new();
    while !answer.ends_with(b"Ollama is running") {
        answer.extend(raw::read_exactly(app, 1).await);
    }
}

async fn kept(up: &Up) -> TcpStream {
    let mut app = raw::connect(up.address).await;
    ask(&mut app).await;
    app
}

/// Waits until the device has had this many sessions.
async fn has_had(device: &Device, sessions: usize) {
    let connected = |event: &serde_json::Value| {
        event["what"].as_str().is_some_and(|what| what.starts_with("connected to"))
    };
    let back = async {
        loop {
            let status = device.status().await;
            let events = status["events"].as_array().expect("events");
            if events.iter().filter(|event| connected(event)).count() == sessions {
                return;
            }
        }
    };
    tokio::time::timeout(SOON, back).await.expect("it is up again");
}

#[tokio::test]
async fn an_idle_connection_survives_a_killed_and_a_stopped_server() {
    let mut world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let up = device.up(&[]).await;
    let (mut used, mut fresh) = (kept(&up).await, raw::connect(up.address).await);
    world.kill_server().await;
    world.restart_server().await;
    has_had(&device, 2).await;
    ask(&mut used).await;
    ask(&mut fresh).await;

    world.aditd.signal("TERM");
    assert_eq!(world.aditd.ended().await.expect("it ends").code(), Some(0));
    // Sent while there is no server: held.
    used.write_all(GET).await.expect("sent");
    world.restart_server().await;
    let mut answer = Vec::new();
    while !answer.ends_with(b"Ollama is running") {
        answer.extend(raw::read_exactly(&mut used, 1).await);
    }
    ask(&mut fresh).await;
}

/// An application and the service, at which its request has arrived.
async fn arrived(up: &Up, upstream: &Upstream) -> (TcpStream, TcpStream) {
    let mut app = raw::connect(up.address).await;
    app.write_all(GET).await.expect("sent");
    let mut service = upstream.accept().await;
    raw::read_exactly(&mut service, GET.len()).await;
    (app, service)
}

/// Sends these pieces from the service, each when the one before has arrived.
async fn delivered(service: &mut TcpStream, app: &mut TcpStream, pieces: &[&[u8]]) {
    for piece in pieces {
        service.write_all(piece).await.expect("sent");
        assert_eq!(raw::read_exactly(app, piece.len()).await, *piece);
    }
}

#[tokio::test]
async fn an_answer_whose_last_chunk_comes_in_pieces_does_not_delay_a_stop() {
    let upstream = Upstream::start().await;
    let world = World::in_front_of(PROGRAM, &upstream.flag("http")).await;
    let device = world.device("laptop").await;
    let mut up = device.up(&["--drain", "1h"]).await;
    let (mut app, mut service) = arrived(&up, &upstream).await;
    delivered(&mut service, &mut app, &[CHUNKED, b"3\r\nabc\r\n", b"0\r\n", b"\r\n"]).await;
    up.adit.signal("INT");
    assert_eq!(raw::read_to_end(&mut app).await, (vec![], Ending::Closed));
    assert_eq!(up.adit.ended().await.expect("it ends").code(), Some(0));
}

#[tokio::test]
async fn a_token_with_the_text_of_a_last_chunk_is_not_taken_for_the_end() {
    let upstream = Upstream::start().await;
    let world = World::in_front_of(PROGRAM, &upstream.flag("http")).await;
    let device = world.device("laptop").await;
    let mut up = device.up(&["--drain", "1h"]).await;
    let (mut app, mut service) = arrived(&up, &upstream).await;
    let token = b"5\r\n0\r\n\r\n";
    delivered(&mut service, &mut app, &[CHUNKED, token]).await;
    up.adit.signal("INT");
    up.adit.says("stopping, 1 answer").await;
    delivered(&mut service, &mut app, &[b"\r\n", b"1\r\nx\r\n", b"0\r\n\r\n"]).await;
    assert_eq!(raw::read_to_end(&mut app).await, (vec![], Ending::Closed));
    assert_eq!(up.adit.ended().await.expect("it ends").code(), Some(0));
}
