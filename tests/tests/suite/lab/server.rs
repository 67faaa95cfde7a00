//! The server's side: a server that is restarted, and one whose client is away.

use std::time::{Duration, Instant};

use tests::{
    cli_assert::{FAILED, assert_told},
    credentials,
    lab::{Far, LOOPBACK, Lab, Namespace, Setting, rung, seed},
    ollama::{Options, seeded_bytes},
    raw::{Ending, Upstream, read_exactly},
    world::World,
};
use tokio::io::AsyncWriteExt;

use crate::PROGRAM;

const WITHIN: Duration = Duration::from_secs(180);

#[tokio::test]
async fn a_restarted_server_is_noticed_within_a_keep_alive_and_its_answers_are_cut() {
    if Lab::is_missing() {
        return;
    }
    let mut far =
        Far::start(PROGRAM, Setting { link: rung("dsl"), seed: seed(400), ..Setting::default() })
            .await;
    let mut answers = [far.ask(400, 1).await, far.ask(400, 2).await];
    for answer in &mut answers {
        answer.has(2000, WITHIN).await;
    }
    far.world.kill_server().await;
    far.restart_server().await;
    let restarted = Instant::now();
    // A keep-alive is 5 s; without a stateless reset this would take half an hour.
    for answer in answers {
        let cut = answer.ended(WITHIN).await;
        assert_eq!(cut.ending, Ending::Reset, "never complete: {}", cut.text);
    }
    println!("cut {:?} after the restart", restarted.elapsed());
    far.up.adit.says("the server was restarted").await;
    far.ask_both(20, 3).await.are_equal(WITHIN).await;
}

#[tokio::test]
async fn an_address_that_changes_after_the_start_is_in_the_next_code() {
    if Lab::is_missing() {
        return;
    }
    for listen in ["0.0.0.0:11435", "[::]:11435"] {
        let network = Namespace::new().expect("a network namespace");
        let flags = ["--listen", listen, "--allow-from", "198.51.100.0/24"];
        let mut world =
            network.within(World::start_with(PROGRAM, Options::default(), &flags)).await;
        // Standard output has nothing that could be taken for a code.
        let told = world.aditd(&["invite", "laptop"]).await;
        assert_told(&told, FAILED, &["no address", "--advertise", "ip address"]);
        for address in ["198.51.100.7", "198.51.100.8"] {
            network.ip(&format!("addr flush dev lo\naddr add {address}/24 dev lo")).expect("set");
            let wanted = [format!("{address}:11435")];
            let code = world.invite("laptop").await;
            assert_eq!(credentials::parse(&code).addresses, wanted);
            assert_eq!(world.status().await["addresses"], serde_json::json!(wanted));
        }
        // While the server does not run, its last addresses are used.
        world.aditd.says("devices are told to connect to 198.51.100.8:11435").await;
        world.kill_server().await;
        let code = world.invite("laptop").await;
        assert_eq!(credentials::parse(&code).addresses, ["198.51.100.8:11435"]);
    }
}

/// The bytes that a service sends: only letters.
fn letters(count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    seeded_bytes(7).fill(&mut bytes);
    bytes.iter().map(|byte| b'a' + byte % 26).collect()
}

#[tokio::test]
async fn while_the_client_is_away_the_server_reads_until_its_window_is_full() {
    const ALL: usize = 48 << 20;
    if Lab::is_missing() {
        return;
    }
    let lab = Lab::new(LOOPBACK, seed(410));
    let upstream = lab.server.within(Upstream::start()).await;
    let setting = Setting { link: rung("lan"), seed: seed(410), ..Setting::default() };
    let far = Far::start_in(lab, PROGRAM, setting, &["--upstream", &upstream.flag("tcp")]).await;
    let asked = far.request(b"go".to_vec()).await;
    let mut service = upstream.accept().await;
    read_exactly(&mut service, 2).await;
    far.lab.cut();
    let all = letters(ALL);
    let mut sent = 0;
    // Nothing was accepted for this long: the service waits.
    while let Ok(taken) =
        tokio::time::timeout(Duration::from_secs(8), service.write(&all[sent..])).await
    {
        sent += taken.expect("still open");
        assert!(sent < ALL, "a client that is away was sent everything");
    }
    println!("{sent} bytes were taken while the client was away");
    assert!(sent > 2 << 20, "the server stopped reading after {sent} bytes");
    let held = far.world.aditd.rss();
    assert!(held < 200_000, "the server holds {held} KiB");
    far.lab.mend();
    service.write_all(&all[sent..]).await.expect("taken");
    service.shutdown().await.expect("closed");
    let got = asked.ended(WITHIN).await;
    assert_eq!(got.ending, Ending::Closed);
    assert!(got.text.as_bytes() == all, "{} bytes of {ALL}", got.text.len());
    far.is_one_session();
}
