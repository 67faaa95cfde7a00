//! The gate connects to the service for a request, and for nothing else.

use tests::{
    raw::{self, Ending, Upstream},
    world::{SOON, World},
};
use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::PROGRAM;

const GET: &str = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// Sends a request on a connection that may have had others before.
async fn ask(app: &mut TcpStream) {
    app.write_all(GET.as_bytes()).await.expect("sent");
}

/// Receives a request and answers it.
async fn serve(service: &mut TcpStream) {
    assert_eq!(raw::read_exactly(service, GET.len()).await, GET.as_bytes());
    service.write_all(OK).await.expect("answered");
}

#[tokio::test]
async fn a_connection_without_a_whole_head_holds_no_connection_to_the_service() {
    let upstream = Upstream::start().await;
    let world = World::in_front_of(PROGRAM, &upstream.flag("http")).await;
    let up = world.up("laptop").await;
    let mut silent = Vec::new();
    for i in 0..100 {
        let mut app = raw::connect(up.address).await;
        app.write_all(&GET.as_bytes()[..i % 20]).await.expect("sent");
        silent.push(app);
    }
    let mut app = raw::connect(up.address).await;
    ask(&mut app).await;
    // The first connection of all.
    let mut service = upstream.accept().await;
    serve(&mut service).await;
    assert_eq!(raw::read_exactly(&mut app, OK.len()).await, OK);
    // The next request on the same stream uses the same connection.
    ask(&mut app).await;
    serve(&mut service).await;
    assert_eq!(raw::read_exactly(&mut app, OK.len()).await, OK);
}

#[tokio::test]
async fn a_connection_opened_while_the_service_was_down_works_when_it_is_back() {
    let reserved = tokio::net::TcpSocket::new_v4().expect("socket");
    reserved.bind("127.0.0.1:0".parse().expect("address")).expect("bound");
    let address = reserved.local_addr().expect("address").to_string();
    let world = World::in_front_of(PROGRAM, &address).await;
    let up = world.up("laptop").await;
    let mut app = raw::connect(up.address).await;
    app.write_all(&GET.as_bytes()[..5]).await.expect("sent");
    let down = raw::exchange(up.address, raw::ROOT).await;
    assert!(down.starts_with("HTTP/1.1 502 "), "{down}");
    let listener = reserved.listen(8).expect("listening");
    app.write_all(&GET.as_bytes()[5..]).await.expect("sent");
    let accepted = tokio::time::timeout(SOON, listener.accept()).await.expect("called");
    let (mut service, _) = accepted.expect("accepted");
    serve(&mut service).await;
    assert_eq!(raw::read_exactly(&mut app, OK.len()).await, OK);
}

#[tokio::test]
async fn a_service_that_closes_between_requests_closes_the_stream_and_within_a_head_is_dialled_again()
 {
    let upstream = Upstream::start().await;
    let world = World::in_front_of(PROGRAM, &upstream.flag("http")).await;
    let up = world.up("laptop").await;
    for has_begun in [false, true] {
        let mut app = raw::connect(up.address).await;
        ask(&mut app).await;
        let mut service = upstream.accept().await;
        serve(&mut service).await;
        assert_eq!(raw::read_exactly(&mut app, OK.len()).await, OK);
        if !has_begun {
            drop(service);
            assert_eq!(raw::read_to_end(&mut app).await, (vec![], Ending::Closed));
            continue;
        }
        app.write_all(&GET.as_bytes()[..5]).await.expect("sent");
        // Another request was answered before, and this one has begun.
        let mut other = raw::connect(up.address).await;
        ask(&mut other).await;
        serve(&mut upstream.accept().await).await;
        drop(service);
        app.write_all(&GET.as_bytes()[5..]).await.expect("sent");
        serve(&mut upstream.accept().await).await;
        assert_eq!(raw::read_exactly(&mut app, OK.len()).await, OK);
    }
}

/// A world whose device has an answered request behind it, and the connection on which it was
/// answered: at the application, and at the service.
async fn answered(upstream: &Upstream) -> (World, tests::world::Up, TcpStream, TcpStream) {
    let world = World::in_front_of(PROGRAM, &upstream.flag("http")).await;
    let up = world.up("laptop").await;
    let mut app = raw::connect(up.address).await;
    ask(&mut app).await;
    let mut service = upstream.accept().await;
    serve(&mut service).await;
    assert_eq!(raw::read_exactly(&mut app, OK.len()).await, OK);
    (world, up, app, service)
}

/// The service did not answer; `adit` may have said so.
async fn is_not_answered(app: &mut TcpStream) {
    let (answer, _) = raw::read_to_end(app).await;
    assert!(!answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
}

const CHAT: &str = "POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 27\r\n\r\n{\"model\":\"stand-in:latest\"}";

#[tokio::test]
async fn a_request_that_meets_the_end_of_a_kept_connection_is_sent_once_more() {
    for (request, resets) in [(GET, false), (GET, true), (CHAT, false), (CHAT, true)] {
        let upstream = Upstream::start().await;
        let (_world, _up, mut app, mut service) = answered(&upstream).await;
        app.write_all(request.as_bytes()).await.expect("sent");
        // It was on its way when the service closed the connection.
        assert_eq!(raw::read_exactly(&mut service, request.len()).await, request.as_bytes());
        if resets {
            service.set_zero_linger().expect("set");
        }
        drop(service);
        let mut second = upstream.accept().await;
        assert_eq!(raw::read_exactly(&mut second, request.len()).await, request.as_bytes());
        second.write_all(OK).await.expect("answered");
        assert_eq!(raw::read_exactly(&mut app, OK.len()).await, OK);
        // And the next one uses the same connection.
        ask(&mut app).await;
        serve(&mut second).await;
        assert_eq!(raw::read_exactly(&mut app, OK.len()).await, OK);
    }
}

#[tokio::test]
async fn a_request_that_changes_something_or_met_a_new_connection_is_not_sent_again() {
    const CREATE: &str = "POST /api/create HTTP/1.1\r\nHost: localhost\r\nContent-Length: 13\r\n\r\n{\"model\":\"x\"}";
    let upstream = Upstream::start().await;
    let (_world, up, mut app, mut service) = answered(&upstream).await;
    app.write_all(CREATE.as_bytes()).await.expect("sent");
    assert_eq!(raw::read_exactly(&mut service, CREATE.len()).await, CREATE.as_bytes());
    drop(service);
    is_not_answered(&mut app).await;
    // A new connection that ends is the service's answer to this request.
    let mut app = raw::connect(up.address).await;
    ask(&mut app).await;
    let mut service = upstream.accept().await;
    assert_eq!(raw::read_exactly(&mut service, GET.len()).await, GET.as_bytes());
    service.set_zero_linger().expect("set");
    drop(service);
    is_not_answered(&mut app).await;
    // Neither request has been sent again: the next connection brings another one.
    let mut app = raw::connect(up.address).await;
    app.write_all(CHAT.as_bytes()).await.expect("sent");
    let mut next = upstream.accept().await;
    assert_eq!(raw::read_exactly(&mut next, CHAT.len()).await, CHAT.as_bytes());
}

#[tokio::test]
async fn one_device_cannot_take_all_connections_to_the_service() {
    /// 128 of them are for other purposes, and one device gets half of the rest.
    const DESCRIPTORS: usize = 128 + 200;
    const GREEDY: usize = 150;
    let upstream = Upstream::start().await;
    let world = World::in_front_of(PROGRAM, &upstream.flag("http")).await;
    let pid = world.aditd.pid().to_string();
    let limit = format!("--nofile={DESCRIPTORS}");
    let limited = tokio::process::Command::new("prlimit").args(["--pid", &pid, &limit]).status();
    if !limited.await.is_ok_and(|status| status.success()) {
        tests::skip::skip_test("there is no prlimit");
        return;
    }
    let (script, person) = (world.up("script").await, world.up("person").await);
    let mut asked = Vec::new();
    for _ in 0..GREEDY {
        let mut app = raw::connect(script.address).await;
        ask(&mut app).await;
        asked.push(app);
    }
    let mut at_service = Vec::new();
    for _ in 0..100 {
        at_service.push(upstream.accept().await);
    }
    // The other requests of that device wait; those of other devices do not.
    let mut app = raw::connect(person.address).await;
    ask(&mut app).await;
    let mut service = upstream.accept().await;
    serve(&mut service).await;
    assert_eq!(raw::read_exactly(&mut app, OK.len()).await, OK);
    drop(app);
    assert_eq!(raw::read_to_end(&mut service).await, (vec![], Ending::Closed));
    // One of them continues when one of its device's connections has ended.
    let mut first = at_service.pop().expect("one");
    serve(&mut first).await;
    assert_eq!(raw::read_to_end(&mut first).await, (vec![], Ending::Closed), "it is idle now");
    serve(&mut upstream.accept().await).await;
}
