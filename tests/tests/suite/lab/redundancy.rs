//! Small packets that are sent twice where the link loses.

use std::{path::Path, time::Duration};

use tests::{
    lab::{Far, LOOPBACK, Lab, Link, Loss, Setting, seed},
    raw,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

use crate::PROGRAM;

const WITHIN: Duration = Duration::from_secs(120);

/// How much the link loses, if the client sends small packets twice for that, and how many it has,
/// by its own account.
async fn by_client(far: &Far) -> (Option<f64>, u64) {
    let tunnel = &far.device.status().await["tunnel"];
    let repeated = tunnel["repeated_packets"].as_u64().expect("a number");
    (tunnel["redundancy_for_loss"].as_f64(), repeated)
}

/// To how many devices the server sends small packets twice, and how many it has.
async fn by_server(metrics: &Path) -> (u64, u64) {
    let mut stream = UnixStream::connect(metrics).await.expect("metrics");
    let ask = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    stream.write_all(ask).await.expect("asked");
    let mut text = String::new();
    stream.read_to_string(&mut text).await.expect("an answer");
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {name}: {text}"))
    };
    (value("adit_sessions_with_redundancy"), value("adit_repeated_packets_total"))
}

#[tokio::test]
async fn small_packets_are_sent_twice_where_the_link_loses_and_nowhere_else() {
    if Lab::is_missing() {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let (config, metrics) = (dir.path().join("aditd.toml"), dir.path().join("metrics.sock"));
    std::fs::write(&config, format!("metrics = 'unix:{}'", metrics.display())).expect("written");
    let setting = Setting { token_interval: Duration::from_millis(2), ..Setting::default() };
    let lab = Lab::new(LOOPBACK, seed(510));
    let flags = ["--config", config.to_str().expect("a path")];
    let far = Far::start_in(lab, PROGRAM, setting, &flags).await;
    far.ask_both(500, 1).await.are_equal(WITHIN).await;
    assert_eq!((by_client(&far).await, by_server(&metrics).await), ((None, 0), (0, 0)));

    let loss = Loss::Random(0.05);
    far.lab.set_link(Link { delay: Duration::from_millis(5), loss, ..LOOPBACK });
    let both = async {
        loop {
            // Each request is a small packet, and so is each token.
            far.ask_both(200, 2).await.are_equal(WITHIN).await;
            let (client, server) = (by_client(&far).await, by_server(&metrics).await);
            let knows = client.0.is_some_and(|loss| (0.03..0.08).contains(&loss));
            if knows && client.1 > 0 && server.0 == 1 && server.1 > 0 {
                return;
            }
        }
    };
    tokio::time::timeout(WITHIN, both)
        .await
        .expect("both send small packets twice, and the client knows how much is lost");
    // What comes twice is taken once.
    let page = raw::generate(300, 3).into_bytes();
    far.twice(page).await.are_equal(WITHIN).await;
    far.is_one_session();
}
