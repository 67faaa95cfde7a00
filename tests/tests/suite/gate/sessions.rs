//! The audit log has a line for each session and for each stream to a `tcp` service: the device,
//! its address, the bytes, and how it ended.

use serde_json::Value;
use tests::{
    raw::{self, Upstream},
    world::{Device, Up, World},
};
use tokio::io::AsyncWriteExt;

use crate::PROGRAM;

/// The lines of one kind of event, once there are `count`.
async fn lines(world: &World, event: &str, count: usize) -> Vec<Value> {
    world.audit_has(count, |line| line["event"] == event).await
}

async fn tcp_world(upstream: &str) -> (World, Up) {
    let world = World::in_front_of(PROGRAM, upstream).await;
    let up = world.up("laptop").await;
    (world, up)
}

/// The same device on a second machine.
fn copied(world: &World, device: &Device) -> Device {
    let copy = world.stranger("copy");
    let copied =
        std::process::Command::new("cp").arg("-a").arg(&device.dir).arg(&copy.dir).status();
    assert!(copied.expect("cp runs").success());
    copy
}

#[tokio::test]
async fn a_session_is_logged_with_its_ending_and_its_bytes() {
    let world = World::start(PROGRAM).await;
    let mut up = world.up("laptop").await;
    let connected = &lines(&world, "connect", 1).await[0];
    assert_eq!(
        (&connected["device"], &connected["carrier"]),
        (&"laptop".into(), &"local".into()),
        "{connected:#}"
    );
    let answer = raw::exchange(up.address, &raw::generate(5, 1)).await;
    up.adit.signal("INT");
    up.adit.ended().await.expect("ended");
    let ended = &lines(&world, "disconnect", 1).await[0];
    assert_eq!((&ended["why"], &ended["device_id"]), (&"done".into(), &connected["device_id"]));
    assert_eq!(ended["remote"], connected["remote"]);
    assert_eq!(ended["bytes_out"], answer.len(), "{ended:#}");
    assert_eq!(ended["bytes_in"], raw::generate(5, 1).len(), "{ended:#}");
    assert!(ended["total_ms"].as_f64() > Some(0.0), "{ended:#}");

    let up = world.up("lost").await;
    assert_eq!(world.aditd(&["device", "revoke", "lost"]).await.code, Some(0));
    assert_eq!(lines(&world, "disconnect", 2).await[1]["why"], "revoked");
    drop(up);
    let shown = world.aditd(&["audit"]).await.stdout;
    for row in ["connected from 127.0.0.1:", "disconnected from 127.0.0.1:"] {
        assert!(shown.contains(row), "no `{row}` in {shown}");
    }
}

#[tokio::test]
async fn a_session_taken_over_by_a_copied_identity_is_logged() {
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let copy = copied(&world, &device);
    let _first = device.up(&[]).await;
    let first = lines(&world, "connect", 1).await[0].clone();
    let _second = copy.start(&[]).await;
    let taken = &lines(&world, "taken_over", 1).await[0];
    assert_eq!((&taken["device"], &taken["was_alive"]), (&"laptop".into(), &true.into()));
    assert_eq!(taken["before"], first["remote"], "{taken:#}");
    assert_ne!(taken["remote"], first["remote"], "{taken:#}");
    assert_eq!(lines(&world, "disconnect", 1).await[0]["why"], "superseded");
}

#[tokio::test]
async fn a_tcp_stream_is_logged_with_its_bytes_and_its_ending() {
    let service = Upstream::start().await;
    let (world, up) = tcp_world(&service.flag("tcp")).await;
    let mut app = raw::connect(up.address).await;
    app.write_all(b"question").await.expect("sent");
    let mut at_service = service.accept().await;
    assert_eq!(raw::read_exactly(&mut at_service, 8).await, b"question");
    at_service.write_all(b"an answer").await.expect("sent");
    assert_eq!(raw::read_exactly(&mut app, 9).await, b"an answer");
    // The bytes of an open stream are counted, too.
    assert_eq!(world.status().await["sessions"][0]["sent"], 9);
    drop((app, at_service));
    let done = &lines(&world, "stream", 1).await[0];
    for (name, expected) in [
        ("device", Value::from("laptop")),
        ("service", "ollama".into()),
        ("bytes_in", 8.into()),
        ("bytes_out", 9.into()),
        ("end", "done".into()),
    ] {
        assert_eq!(done[name], expected, "{name} in {done:#}");
    }
    assert_eq!(world.status().await["sessions"][0]["sent"], 9, "and not twice");

    let mut app = raw::connect(up.address).await;
    app.write_all(b"x").await.expect("sent");
    let mut at_service = service.accept().await;
    raw::read_exactly(&mut at_service, 1).await;
    assert_eq!(world.aditd(&["device", "revoke", "laptop"]).await.code, Some(0));
    let cut = &lines(&world, "stream", 2).await[1];
    assert_eq!((&cut["end"], &cut["why"]), (&"cut".into(), &"revoked".into()), "{cut:#}");
}

#[tokio::test]
async fn a_tcp_stream_to_an_unreachable_service_is_logged() {
    // The port is bound, but nobody listens.
    let reserved = tokio::net::TcpSocket::new_v4().expect("a socket");
    reserved.bind("127.0.0.1:0".parse().expect("an address")).expect("bound");
    let (world, up) = tcp_world(&format!("tcp://{}", reserved.local_addr().expect("one"))).await;
    let mut app = raw::connect(up.address).await;
    app.write_all(b"x").await.expect("sent");
    raw::read_to_end(&mut app).await;
    let refused = &lines(&world, "stream", 1).await[0];
    assert_eq!(
        (&refused["end"], &refused["why"]),
        (&"refused".into(), &"upstream_refused".into()),
        "{refused:#}"
    );
}
