//! One session that changes its carrier between UDP and a real sshd during running answers.

use tests::{raw, sshd::Sshd, udp_or_ssh::Crossroads, world::SOON};
use tokio::io::AsyncWriteExt;

use crate::PROGRAM;

/// With the stand-in's 50 ms each, longer than all changes take.
const TOKENS: i64 = 20_000;

#[tokio::test]
async fn an_answer_moves_from_udp_to_ssh_and_back_without_loss() {
    if Sshd::is_missing() {
        return;
    }
    let crossroads = Crossroads::new(PROGRAM, &[]).await;
    let mut up = crossroads.up(&[]).await;
    let status = crossroads.device.status().await;
    assert_eq!(status["tunnel"]["carrier"], "udp", "it is the better one: {status}");
    let mut app = raw::connect(up.address).await;
    app.write_all(raw::generate(TOKENS, 5).as_bytes()).await.expect("sent");
    let mut answer = raw::read_exactly(&mut app, 800).await;

    crossroads.path.cut();
    up.adit.says("the session goes over SSH now").await;
    answer.extend(raw::read_exactly(&mut app, 2000).await);
    let status = crossroads.device.status().await;
    assert_eq!(status["tunnel"]["carrier"], "ssh", "{status}");
    assert!(status["events"].to_string().contains("goes over SSH now"), "{status}");

    crossroads.path.mend();
    up.adit.says("the session goes over UDP now").await;
    answer.extend(raw::read_exactly(&mut app, 2000).await);
    assert_eq!(crossroads.device.status().await["tunnel"]["carrier"], "udp");

    let mut direct = raw::connect(crossroads.world.ollama.addr()).await;
    direct.write_all(raw::generate(TOKENS, 5).as_bytes()).await.expect("sent");
    let direct = tokio::time::timeout(SOON * 10, raw::read_exactly(&mut direct, answer.len()))
        .await
        .expect("in time");
    let text = |bytes: &[u8]| raw::without_date(&String::from_utf8_lossy(bytes));
    assert_eq!(text(&answer), text(&direct), "as far as it has come");
    assert_eq!(up.adit.log().matches("connected to").count(), 1, "one session: {}", up.adit.log());
}

#[tokio::test]
async fn a_tunnel_that_began_over_ssh_moves_to_udp_when_udp_works() {
    if Sshd::is_missing() {
        return;
    }
    let crossroads = Crossroads::new(PROGRAM, &[]).await;
    crossroads.path.cut();
    let mut up = crossroads.up(&[]).await;
    let status = crossroads.device.status().await;
    assert_eq!(status["tunnel"]["carrier"], "ssh", "{status}");
    let answer = raw::exchange(up.address, "GET / HTTP/1.0\r\n\r\n").await;
    assert!(answer.ends_with("Ollama is running"), "{answer}");
    crossroads.path.mend();
    up.adit.says("the session goes over UDP now").await;
    let answer = raw::exchange(up.address, "GET / HTTP/1.0\r\n\r\n").await;
    assert!(answer.ends_with("Ollama is running"), "{answer}");
}

#[tokio::test]
async fn a_named_carrier_is_the_only_one_used() {
    if Sshd::is_missing() {
        return;
    }
    let crossroads = Crossroads::new(PROGRAM, &[]).await;
    for (named, other) in [("ssh", "udp"), ("udp", "ssh")] {
        let up = crossroads.up(&["--carrier", named]).await;
        let status = crossroads.device.status().await;
        assert_eq!(status["tunnel"]["carrier"], named, "{status}");
        let why = status["tunnel"]["why_not_other"].as_str().unwrap_or_default();
        assert!(why.contains(&format!("--carrier {named}")), "not {other}: {why}");
        drop(up);
    }
}
