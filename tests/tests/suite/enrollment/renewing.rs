//! Certificates renew themselves; a device whose certificate has expired can still renew it.

use tests::{
    ollama::Options,
    raw,
    world::{Device, SOON, World},
};
use tokio::io::AsyncWriteExt;

use crate::PROGRAM;

fn certificate_until(device: &Device) -> i64 {
    let place = client::profile::ProfileDir::new(&device.dir, "default".parse().expect("a name"));
    place.read().expect("a profile").certificate().expect("a certificate").not_after
}

#[tokio::test]
async fn a_certificate_is_renewed_during_an_answer_which_continues_after_the_old_expiry() {
    let world = World::start_with(PROGRAM, Options::default(), &["--device-life", "6s"]).await;
    let device = world.device("laptop").await;
    let first = certificate_until(&device);
    let mut up = device.up(&[]).await;
    let mut app = raw::connect(up.address).await;
    app.write_all(raw::generate(-1, 1).as_bytes()).await.expect("sent");
    up.adit.says("certificate renewed").await;
    assert!(certificate_until(&device) > first, "and it is stored");
    // Tokens continue until some time after the first certificate has expired; so do new requests
    // on the same connection.
    while common::machine::process::unix_now() < first + 2 {
        raw::read_exactly(&mut app, 200).await;
    }
    let answer = raw::exchange(up.address, "GET / HTTP/1.0\r\n\r\n").await;
    assert!(answer.ends_with("Ollama is running"), "{answer}");
    assert_eq!(
        up.adit.log().matches("connected to").count(),
        1,
        "the connection was never dropped: {}",
        up.adit.log()
    );
}

#[tokio::test]
async fn a_device_with_an_expired_certificate_renews_it_unless_it_was_revoked() {
    let world = World::start_with(PROGRAM, Options::default(), &["--device-life", "2s"]).await;
    let (laptop, lost) = (world.device("laptop").await, world.device("lost").await);
    assert_eq!(world.aditd(&["device", "revoke", "lost"]).await.code, Some(0));
    let end = certificate_until(&laptop).max(certificate_until(&lost));
    let passed = async {
        while common::machine::process::unix_now() <= end {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, passed).await.expect("time passes");

    let up = laptop.up(&[]).await;
    assert!(up.adit.log().contains("certificate renewed"), "{}", up.adit.log());
    let answer = raw::exchange(up.address, "GET / HTTP/1.0\r\n\r\n").await;
    assert!(answer.ends_with("Ollama is running"), "{answer}");

    // The server does not answer a revoked device. What it would say to one that uses another's
    // knock is tested in `strangers`.
    let mut up = lost.start(&[]).await;
    up.adit.says("no tunnel: no answer from").await;
    assert!(!up.adit.log().contains("certificate renewed"), "{}", up.adit.log());
}

#[tokio::test]
async fn a_certificate_that_could_not_be_renewed_expires_on_open_connections_too() {
    let world = World::start_with(PROGRAM, Options::default(), &["--device-life", "3s"]).await;
    let device = world.device("laptop").await;
    let up = device.up(&[]).await;
    // A process that locks the register keeps the server from storing a renewal.
    let register =
        rusqlite::Connection::open(world.state().join("register.sqlite")).expect("opened");
    register.execute_batch("BEGIN IMMEDIATE").expect("held");
    let mut app = raw::connect(up.address).await;
    const GET: &[u8] = b"GET /api/version HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let answer = async |app: &mut tokio::net::TcpStream| {
        app.write_all(GET).await.expect("sent");
        String::from_utf8(raw::read_exactly(app, 16).await).expect("text")
    };
    let mut beginning = answer(&mut app).await;
    assert_eq!(beginning, "HTTP/1.1 200 OK\r");
    let ends = async {
        while beginning.starts_with("HTTP/1.1 200") {
            while raw::read_exactly(&mut app, 1).await != b"}" {}
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            beginning = answer(&mut app).await;
        }
    };
    tokio::time::timeout(SOON, ends).await.expect("the certificate ends");
    let (rest, _) = raw::read_to_end(&mut app).await;
    let refused = beginning + &String::from_utf8(rest).expect("text");
    assert!(
        refused.starts_with("HTTP/1.1 503 ") && refused.contains("certificate has expired"),
        "{refused}"
    );
    drop(register);
    let served = async {
        while !raw::exchange(up.address, "GET / HTTP/1.0\r\n\r\n")
            .await
            .ends_with("Ollama is running")
        {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(SOON, served).await.expect("it is renewed");
}
