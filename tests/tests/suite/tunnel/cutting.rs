//! How connections end: a FIN or RST of the application or the service reaches the other side as
//! such, and a cut never looks like an end.

use std::time::Duration;

use tests::{
    ollama::Options,
    raw::{self, Ending, Upstream},
    world::{SOON, World},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::PROGRAM;

async fn world_of(upstream: &Upstream) -> World {
    World::in_front_of(PROGRAM, &upstream.flag("tcp")).await
}

/// A request for an endless answer whose first token has come.
async fn endless_answer(up: &tests::world::Up) -> TcpStream {
    let mut app = raw::connect(up.address).await;
    app.write_all(raw::generate(-1, 1).as_bytes()).await.expect("sent");
    raw::read_exactly(&mut app, 300).await;
    app
}

/// An application and a service that have exchanged bytes through the tunnel.
async fn pair(up: &tests::world::Up, upstream: &Upstream) -> (TcpStream, TcpStream) {
    let mut app = raw::connect(up.address).await;
    let mut service = upstream.accept().await;
    app.write_all(b"a").await.expect("sent");
    service.write_all(b"b").await.expect("sent");
    raw::read_exactly(&mut service, 1).await;
    raw::read_exactly(&mut app, 1).await;
    (app, service)
}

#[tokio::test]
async fn a_close_half_close_or_reset_by_the_application_stops_ollama() {
    let world = World::start(PROGRAM).await;
    let up = world.up("laptop").await;

    let app = endless_answer(&up).await;
    drop(app);
    world.ollama.wait_for(|c| c.cancelled == 1, SOON).await.expect("a close stops it");

    let mut app = endless_answer(&up).await;
    app.shutdown().await.expect("half-closed");
    world.ollama.wait_for(|c| c.cancelled == 2, SOON).await.expect("a half-close stops it");

    let app = endless_answer(&up).await;
    app.set_zero_linger().expect("linger");
    drop(app);
    world
        .ollama
        .wait_for(|c| c.cancelled == 3 && c.running == 0, SOON)
        .await
        .expect("an abort stops it");
}

#[tokio::test]
async fn a_request_without_its_first_token_is_cancelled_too() {
    let world = World::start_with(
        PROGRAM,
        Options { load_time: Duration::from_secs(3600), ..Options::default() },
        &[],
    )
    .await;
    let up = world.up("laptop").await;
    let mut app = raw::connect(up.address).await;
    app.write_all(raw::generate(5, 1).as_bytes()).await.expect("sent");
    world.ollama.wait_for(|c| c.running == 1, SOON).await.expect("it runs");
    drop(app);
    world.ollama.wait_for(|c| c.cancelled == 1, SOON).await.expect("it is cancelled");
}

#[tokio::test]
async fn a_reset_reaches_the_service_even_behind_bytes_that_it_does_not_read() {
    let upstream = Upstream::start().await;
    let world = world_of(&upstream).await;
    let up = world.up("laptop").await;
    let (mut app, mut service) = pair(&up, &upstream).await;
    let block = vec![1; 64 * 1024];
    while tokio::time::timeout(Duration::from_secs(1), app.write_all(&block)).await.is_ok() {}
    app.set_zero_linger().expect("linger");
    drop(app);
    // As without a tunnel, the service may still read the bytes that had reached its machine; then
    // it gets the reset, and no FIN.
    let mut sink = vec![0; 64 * 1024];
    let ending = loop {
        match tokio::time::timeout(SOON, service.read(&mut sink)).await.expect("it ends") {
            Ok(0) => break Ending::Closed,
            Ok(_) => {}
            Err(_) => break Ending::Reset,
        }
    };
    assert_eq!(ending, Ending::Reset);
}

#[tokio::test]
async fn a_reset_by_the_service_reaches_the_application_as_a_reset() {
    let upstream = Upstream::start().await;
    let world = world_of(&upstream).await;
    let up = world.up("laptop").await;
    let (mut app, service) = pair(&up, &upstream).await;
    service.set_zero_linger().expect("linger");
    drop(service);
    assert_eq!(raw::read_to_end(&mut app).await.1, Ending::Reset);
}

#[tokio::test]
async fn a_reset_by_the_service_reaches_an_application_that_does_not_read() {
    let upstream = Upstream::start().await;
    let world = world_of(&upstream).await;
    let up = world.up("laptop").await;
    let (app, mut service) = pair(&up, &upstream).await;
    let block = vec![1; 64 * 1024];
    while tokio::time::timeout(Duration::from_secs(1), service.write_all(&block)).await.is_ok() {}
    service.set_zero_linger().expect("linger");
    drop(service);
    tokio::time::timeout(SOON, app.ready(tokio::io::Interest::ERROR))
        .await
        .expect("seen without reading")
        .expect("ready");
}

#[tokio::test]
async fn an_answer_during_the_upload_is_delivered_whole() {
    let upstream = Upstream::start().await;
    let world = world_of(&upstream).await;
    let up = world.up("laptop").await;
    let (mut app, mut service) = pair(&up, &upstream).await;
    let uploading = tokio::spawn(async move {
        let (mut read, mut write) = app.split();
        let mut answer = Vec::new();
        let block = vec![1; 64 * 1024];
        let upload = async { while write.write_all(&block).await.is_ok() {} };
        let ended = tokio::select! { ended = read.read_to_end(&mut answer) => ended, () = upload => read.read_to_end(&mut answer).await };
        (answer, ended.is_ok())
    });
    raw::read_exactly(&mut service, 200_000).await;
    service.write_all(&vec![b'!'; 100_000]).await.expect("sent");
    service.shutdown().await.expect("half-closed");
    let (answer, whole) =
        tokio::time::timeout(SOON, uploading).await.expect("in time").expect("no panic");
    assert_eq!((answer.len(), whole), (100_000, true));
}

#[tokio::test]
async fn an_existing_blob_is_answered_before_it_is_uploaded() {
    let world = World::start(PROGRAM).await;
    let up = world.up("laptop").await;
    let digest = "b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde9";
    let path = format!("/api/blobs/sha256:{digest}");
    let first = raw::exchange(up.address, &raw::post(&path, "hello world")).await;
    assert!(first.starts_with("HTTP/1.1 201"), "{first}");
    let mut app = raw::connect(up.address).await;
    app.write_all(
        format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n")
            .as_bytes(),
    )
    .await
    .expect("sent");
    let (answer, ending) = raw::read_to_end(&mut app).await;
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    assert_eq!(ending, Ending::Closed);
}

#[tokio::test]
async fn a_revocation_cuts_running_answers_and_stops_ollama() {
    let world = World::start(PROGRAM).await;
    let up = world.up("laptop").await;
    let bystander = world.up("desktop").await;
    let mut app = endless_answer(&up).await;
    let mut other = endless_answer(&bystander).await;
    let revoked = world.aditd(&["device", "revoke", "laptop"]).await;
    assert!(revoked.stderr.contains("has been cut"), "{revoked:?}");
    assert_eq!(raw::read_to_end(&mut app).await.1, Ending::Reset, "a cut never looks like an end");
    world.ollama.wait_for(|c| c.cancelled == 1, SOON).await.expect("it is cancelled");
    raw::read_exactly(&mut other, 1000).await;
}

#[tokio::test]
async fn a_server_that_is_killed_cuts_its_answers_and_serves_again_after_its_restart() {
    let mut world = World::start(PROGRAM).await;
    let up = world.up("laptop").await;
    let mut app = endless_answer(&up).await;
    world.kill_server().await;
    world.ollama.wait_for(|c| c.cancelled == 1, SOON).await.expect("nobody reads any more");
    world.restart_server().await;
    assert_eq!(raw::read_to_end(&mut app).await.1, Ending::Reset, "a cut never looks like an end");
    let again = raw::exchange(up.address, "GET / HTTP/1.0\r\n\r\n").await;
    assert!(again.ends_with("Ollama is running"), "{again}");
}

#[tokio::test]
async fn the_answers_of_a_killed_client_are_cancelled_when_it_comes_back() {
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let mut up = device.up(&[]).await;
    let mut app = endless_answer(&up).await;
    up.adit.kill().await;
    // The kernel closes the connections of a dead process: the JSON lines are incomplete, which
    // every client notices.
    while tokio::time::timeout(SOON, app.read(&mut [0; 4096]))
        .await
        .expect("it ends")
        .is_ok_and(|n| n > 0)
    {}
    let up = device.up(&[]).await;
    world
        .ollama
        .wait_for(|c| c.cancelled == 1 && c.running == 0, SOON)
        .await
        .expect("the new session replaces the old");
    let again = raw::exchange(up.address, "GET / HTTP/1.0\r\n\r\n").await;
    assert!(again.ends_with("Ollama is running"), "{again}");
}

#[tokio::test]
async fn a_stopped_client_ends_its_answers_after_the_drain_and_a_second_signal_at_once() {
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;

    let mut up = device.up(&[]).await;
    let mut app = raw::connect(up.address).await;
    app.write_all(raw::generate(40, 9).as_bytes()).await.expect("sent");
    raw::read_exactly(&mut app, 300).await;
    up.adit.signal("INT");
    up.adit.says("stopping, 1 answer").await;
    assert!(TcpStream::connect(up.address).await.is_err(), "no new connections");
    let (rest, ending) = raw::read_to_end(&mut app).await;
    assert_eq!(ending, Ending::Closed);
    assert!(String::from_utf8_lossy(&rest).contains("\"done\":true"), "to its end");
    assert_eq!(up.adit.ended().await.expect("ended").code(), Some(0));
    assert_eq!(world.ollama.counters().cancelled, 0);

    let mut up = device.up(&["--drain", "1h"]).await;
    let mut app = endless_answer(&up).await;
    up.adit.signal("INT");
    up.adit.says("stopping, 1 answer").await;
    up.adit.signal("INT");
    assert_eq!(raw::read_to_end(&mut app).await.1, Ending::Reset);
    assert_eq!(up.adit.ended().await.expect("ended").code(), Some(0));
    world.ollama.wait_for(|c| c.cancelled == 1, SOON).await.expect("it is cancelled");
}

/// It exits with 0, and neither warns of its stop nor reconnects.
async fn ends_in_peace(mut up: tests::world::Up) {
    let (status, log) = up.adit.ended_saying().await.expect("it ends");
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(!log.contains("WARN") && !log.contains("no tunnel"), "{log}");
    assert_eq!(log.matches("connected to").count(), 1, "{log}");
}

#[tokio::test]
async fn a_stopping_client_neither_warns_nor_reconnects() {
    let mut world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    for order in ["INT", "TERM"] {
        let up = device.up(&[]).await;
        up.adit.signal(order);
        ends_in_peace(up).await;
    }
    // Its session ends while it waits for a running answer, and the server would accept it again.
    let mut up = device.up(&["--drain", "1h"]).await;
    let mut app = endless_answer(&up).await;
    up.adit.signal("INT");
    up.adit.says("stopping, 1 answer").await;
    world.kill_server().await;
    world.restart_server().await;
    assert_eq!(raw::read_to_end(&mut app).await.1, Ending::Reset);
    ends_in_peace(up).await;
    // It has not found the server yet; on a slow machine it may have said so.
    world.kill_server().await;
    let mut up = device.start(&["--hold", "1h"]).await;
    let held = raw::connect(up.address).await;
    while device.status().await["connections"] != 1 {}
    up.adit.signal("TERM");
    assert_eq!(up.adit.ended().await.expect("it ends").code(), Some(0));
    drop(held);
}

#[tokio::test]
async fn a_stopping_server_lets_running_answers_end() {
    let mut world = World::start(PROGRAM).await;
    let up = world.up("laptop").await;
    let mut app = raw::connect(up.address).await;
    app.write_all(raw::generate(40, 9).as_bytes()).await.expect("sent");
    raw::read_exactly(&mut app, 300).await;
    world.aditd.signal("TERM");
    let (rest, ending) = raw::read_to_end(&mut app).await;
    assert_eq!(ending, Ending::Closed);
    assert!(String::from_utf8_lossy(&rest).contains("\"done\":true"), "to its end");
    assert_eq!(world.aditd.ended().await.expect("ended").code(), Some(0));
}

#[tokio::test]
async fn an_idle_connection_does_not_delay_a_stop() {
    let mut world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let kept = async |up: &tests::world::Up| {
        let mut app = raw::connect(up.address).await;
        let request = raw::generate(3, 1).replace("Connection: close\r\n", "");
        app.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = Vec::new();
        while !answer.ends_with(b"0\r\n\r\n") {
            answer.extend(raw::read_exactly(&mut app, 1).await);
        }
        app
    };
    let mut up = device.up(&["--drain", "1h"]).await;
    let mut app = kept(&up).await;
    up.adit.signal("INT");
    assert_eq!(
        raw::read_to_end(&mut app).await,
        (vec![], Ending::Closed),
        "it was between two requests"
    );
    assert_eq!(up.adit.ended().await.expect("ended").code(), Some(0));

    let up = device.up(&[]).await;
    let mut app = kept(&up).await;
    world.aditd.signal("TERM");
    assert_eq!(world.aditd.ended().await.expect("ended").code(), Some(0));
    let log = world.aditd.log();
    assert!(!log.contains("cutting what still runs"), "the drain lasted to its end: {log}");
    // The application does not notice it.
    world.restart_server().await;
    app.write_all(b"GET / HTTP/1.0\r\n\r\n").await.expect("sent");
    let (answer, ending) = raw::read_to_end(&mut app).await;
    assert!(answer.ends_with(b"Ollama is running"), "{}", String::from_utf8_lossy(&answer));
    assert_eq!(ending, Ending::Closed);
}

#[tokio::test]
async fn a_pause_between_two_tokens_is_not_taken_for_the_end_while_stopping() {
    let upstream = Upstream::start().await;
    let world = World::in_front_of(PROGRAM, &upstream.flag("http")).await;
    let device = world.device("laptop").await;
    let mut up = device.up(&["--drain", "1h"]).await;
    let mut app = raw::connect(up.address).await;
    app.write_all(b"GET / HTTP/1.0\r\n\r\n").await.expect("sent");
    let mut service = upstream.accept().await;
    raw::read_exactly(&mut service, 18).await;
    service.write_all(b"HTTP/1.0 200 OK\r\n\r\nfirst").await.expect("sent");
    raw::read_exactly(&mut app, 24).await;
    up.adit.signal("INT");
    up.adit.says("stopping, 1 answer").await;
    // Longer than any time-out that could be mistaken for an end.
    let pause = tokio::time::timeout(Duration::from_secs(8), app.read(&mut [0; 16])).await;
    assert!(pause.is_err(), "it was ended in the pause");
    service.write_all(b"second").await.expect("sent");
    drop(service);
    assert_eq!(raw::read_to_end(&mut app).await, (b"second".to_vec(), Ending::Closed));
    assert_eq!(up.adit.ended().await.expect("ended").code(), Some(0));
}
