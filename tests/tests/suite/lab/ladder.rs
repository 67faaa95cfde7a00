//! Every link that occurs in practice, from the best to the worst, over each carrier.

use std::time::{Duration, Instant};

use aws_lc_rs::digest::{SHA256, digest};
use data_encoding::HEXLOWER;
use tests::{
    lab::{Carrier, Far, LADDER, Lab, Link, Setting, seed},
    ollama::seeded_bytes,
    sshd::Sshd,
};
use tokio::task::JoinSet;

use crate::PROGRAM;

const WITHIN: Duration = Duration::from_secs(240);

/// Answers, an upload and a download in parallel.
async fn climb(link: Link, carrier: Carrier, seed: u64) {
    let began = Instant::now();
    let far = Far::start(PROGRAM, Setting { link, seed, carrier, ..Setting::default() }).await;
    let up = began.elapsed();
    let answers = [
        far.ask_both(100, seed).await,
        far.ask_both(150, seed + 1).await,
        far.ask_both(1, seed + 2).await,
    ];
    let mut bytes = vec![0; 300_000];
    seeded_bytes(seed).fill(&mut bytes);
    let expected = HEXLOWER.encode(digest(&SHA256, &bytes).as_ref());
    let head = format!(
        "POST /test/sha256 HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        bytes.len()
    );
    let upload = far.request([head.into_bytes(), bytes].concat()).await;
    let download = format!(
        "GET /test/bytes?n=300000&seed={seed} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    );
    let download = far.twice(download.into_bytes()).await;
    for answer in answers {
        answer.are_equal(WITHIN).await;
    }
    let uploaded = upload.ended(WITHIN).await.text;
    assert!(uploaded.contains(&expected), "{uploaded}");
    download.are_equal(WITHIN).await;
    far.is_one_session();
    println!("{} by {carrier:?}: up after {up:?}, all done after {:?}", link.name, began.elapsed());
}

/// All links in parallel.
async fn climb_all(carrier: Carrier, seed: u64) {
    let mut climbs = JoinSet::new();
    for (link, i) in LADDER.into_iter().zip(0..) {
        climbs.spawn(climb(link, carrier, seed + i));
    }
    climbs.join_all().await;
}

#[tokio::test]
async fn every_link_carries_answers_uploads_and_downloads_whole() {
    if Lab::is_missing() {
        return;
    }
    climb_all(Carrier::Udp, seed(500)).await;
}

#[tokio::test]
async fn every_link_carries_them_over_ssh_too() {
    if Lab::is_missing() || Sshd::is_missing() {
        return;
    }
    climb_all(Carrier::Ssh, seed(550)).await;
}
