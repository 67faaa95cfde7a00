//! A server process that another one replaces while answers run.

use serde_json::json;
use tests::{
    laptop::Laptop,
    raw,
    world::{SOON, Up, World},
};
use tokio::{io::AsyncWriteExt, net::TcpStream, task::JoinSet};

use crate::PROGRAM;

const ANSWERS: u64 = 64;
/// Tokens of an answer that is long enough for everything that happens meanwhile.
const LONG: i64 = 240;

/// How often a process is told again to stop.
const LOOK_EVERY: std::time::Duration = std::time::Duration::from_millis(100);

/// Running answers, a part of each of which has come.
struct Running(Vec<(u64, TcpStream, Vec<u8>)>);

impl Running {
    async fn begin(up: &Up, seeds: std::ops::Range<u64>) -> Self {
        let mut asking = JoinSet::new();
        for seed in seeds {
            let address = up.address;
            asking.spawn(async move {
                let mut app = raw::connect(address).await;
                app.write_all(raw::generate(LONG, seed).as_bytes()).await.expect("sent");
                let begun = raw::read_exactly(&mut app, 300).await;
                (seed, app, begun)
            });
        }
        Self(asking.join_all().await)
    }

    /// Asserts that each goes on to its end, byte for byte as without a tunnel.
    async fn are_whole(self, world: &World) {
        let mut reading = JoinSet::new();
        for (seed, mut app, begun) in self.0 {
            let ollama = world.ollama.addr();
            reading.spawn(async move {
                let request = raw::generate(LONG, seed);
                let direct = raw::exchange(ollama, &request);
                let (direct, (rest, ending)) = tokio::join!(direct, raw::read_to_end(&mut app));
                let whole = String::from_utf8([begun, rest].concat()).expect("text");
                assert_eq!(ending, raw::Ending::Closed, "seed {seed}");
                assert!(whole.contains("\"done\":true"), "seed {seed}: {whole}");
                assert_eq!(raw::without_date(&whole), raw::without_date(&direct), "seed {seed}");
            });
        }
        reading.join_all().await;
    }
}

async fn has_tokens(up: &Up, seed: u64) {
    let answer = raw::exchange(up.address, &raw::generate(3, seed)).await;
    assert!(answer.contains("\"done\":true"), "{answer}");
}

/// The process ids of earlier servers in which answers run.
async fn older(world: &World) -> serde_json::Value {
    world.status().await["older"].clone()
}

async fn no_answer_is_lost(mut world: World, up: Up) {
    let old = world.aditd.pid();
    let running = Running::begin(&up, 0..ANSWERS).await;
    let new = world.replace_server().await;
    assert_ne!(new.pid.unsigned_abs(), old);
    for seed in 0..5 {
        has_tokens(&up, 1000 + seed).await;
    }
    assert_eq!(older(&world).await, json!([old]), "the long answers run in the old process");
    assert_eq!(
        world.status().await["sessions"].as_array().map(Vec::len),
        Some(1),
        "the device has a session in the new one"
    );
    running.are_whole(&world).await;
    let ended = world.aditd.ended().await.expect("the old process ends with its last answer");
    assert_eq!(ended.code(), Some(0));
    assert_eq!(world.ollama.counters().cancelled, 0);
    has_tokens(&up, 2000).await;
    let requests = |line: &serde_json::Value| line["event"] == "request" && line["status"] == 200;
    let expected = usize::try_from(ANSWERS).expect("few") + 6;
    let requests = world.audit_has(expected, requests).await;
    assert_eq!(requests.len(), expected);
    let none_left = async { while older(&world).await != json!([]) {} };
    tokio::time::timeout(SOON, none_left).await.expect("the new process sees it");
    let tokens = |line: &serde_json::Value| {
        line["tokens_in"].as_u64().unwrap_or(0) + line["tokens_out"].as_u64().unwrap_or(0)
    };
    charged(&world, requests.iter().map(tokens).sum()).await;
}

/// Waits until the file in which a server keeps the day's tokens has this many.
async fn charged(world: &World, tokens: u64) {
    let file = world.state().join("usage.json");
    let of_all = || {
        let usage = std::fs::read(&file).unwrap_or_default();
        let usage: serde_json::Value = serde_json::from_slice(&usage).unwrap_or_default();
        let all = usage["tokens"].as_object().into_iter().flat_map(|all| all.values());
        all.filter_map(serde_json::Value::as_u64).sum::<u64>()
    };
    let counted = async {
        while of_all() != tokens {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    let in_time = tokio::time::timeout(SOON, counted).await;
    in_time.unwrap_or_else(|_| panic!("{} tokens are counted, and {tokens} were used", of_all()));
}

#[tokio::test]
async fn no_running_answer_is_lost_over_udp_and_new_requests_are_answered() {
    let world = World::start(PROGRAM).await;
    let up = world.up("laptop").await;
    no_answer_is_lost(world, up).await;
}

#[tokio::test]
async fn no_running_answer_is_lost_over_ssh_and_new_requests_are_answered() {
    let Some((world, laptop)) = Laptop::enrolled_in_a_world(PROGRAM).await else { return };
    let up = laptop.up(&world, &[]).await;
    no_answer_is_lost(world, up).await;
}

#[tokio::test]
async fn a_revocation_ends_answers_in_the_old_process_too() {
    let mut world = World::start(PROGRAM).await;
    let (revoked, other) = (world.up("stolen").await, world.up("laptop").await);
    let mut lost = Running::begin(&revoked, 0..4).await;
    let running = Running::begin(&other, 4..8).await;
    let _new = world.replace_server().await;
    has_tokens(&revoked, 9).await;
    let out = world.aditd(&["device", "revoke", "stolen"]).await;
    assert_eq!(out.code, Some(0), "{}", out.stderr);
    for (seed, app, _) in &mut lost.0 {
        let (rest, _) = raw::read_to_end(app).await;
        assert!(!String::from_utf8_lossy(&rest).contains("\"done\":true"), "seed {seed}");
    }
    world.ollama.wait_for(|now| now.cancelled == 4, SOON).await.expect("the GPU is free");
    running.are_whole(&world).await;
    assert_eq!(world.aditd.ended().await.expect("it ends").code(), Some(0));
}

#[tokio::test]
async fn both_processes_end_well_when_both_are_told_to_stop_in_any_order() {
    // The old process sees the order and the end of the new one at the same moment: which one it
    // takes first is a matter of chance.
    for _ in 0..6 {
        let mut world = World::start(PROGRAM).await;
        let up = world.up("laptop").await;
        // Without an answer that runs, the old process ends by itself.
        let _running = Running::begin(&up, 0..1).await;
        let new = world.replace_server().await;
        world.aditd.signal("STOP");
        drop(new);
        world.aditd.signal("TERM");
        world.aditd.signal("CONT");
        // The second order ends the answer at once.
        let told = async {
            loop {
                tokio::select! {
                    ended = world.aditd.ended() => break ended.expect("it ends"),
                    () = tokio::time::sleep(LOOK_EVERY) => world.aditd.signal("TERM"),
                }
            }
        };
        let ended = tokio::time::timeout(SOON, told).await.expect("it ends soon");
        assert_eq!(ended.code(), Some(0), "{}", world.aditd.log());
    }
}

#[tokio::test]
async fn answers_of_three_processes_run_side_by_side() {
    let mut world = World::start(PROGRAM).await;
    let up = world.up("laptop").await;
    let first = Running::begin(&up, 0..4).await;
    let (one, two) = (world.aditd.pid(), world.replace_server().await);
    has_tokens(&up, 100).await;
    let second = Running::begin(&up, 4..8).await;
    let three = world.replace_server().await;
    assert_ne!(two.pid, three.pid);
    has_tokens(&up, 101).await;
    let third = Running::begin(&up, 8..12).await;
    assert_eq!(older(&world).await, json!([one, two.pid]));
    first.are_whole(&world).await;
    second.are_whole(&world).await;
    third.are_whole(&world).await;
    assert_eq!(world.aditd.ended().await.expect("it ends").code(), Some(0));
    assert_eq!(world.ollama.counters().cancelled, 0);
    has_tokens(&up, 102).await;
}

#[tokio::test]
async fn a_new_process_that_cannot_take_over_changes_nothing() {
    let world = World::start(PROGRAM).await;
    let up = world.up("laptop").await;
    let running = Running::begin(&up, 0..2).await;
    let pid = world.status().await["pid"].clone();
    let config = std::fs::read(world.config()).expect("read");
    for (text, says) in [
        ("listen = ['127.0.0.1:1', '127.0.0.1:2']\nnonsense = 1\n", "nonsense"),
        ("metrics = 'unix:/nowhere/at/all.sock'\n", "/nowhere/at/all.sock"),
    ] {
        std::fs::write(world.config(), text).expect("written");
        let refused = world.aditd(&["replace"]).await;
        assert_ne!(refused.code, Some(0));
        assert!(
            refused.stderr.contains("goes on as before") && refused.stderr.contains(says),
            "{}",
            refused.stderr
        );
        assert_eq!(world.status().await["pid"], pid);
        has_tokens(&up, 9).await;
    }
    std::fs::write(world.config(), config).expect("written");
    let _new = world.replace_server().await;
    assert_ne!(world.status().await["pid"], pid, "a later attempt can succeed");
    running.are_whole(&world).await;
}

#[tokio::test]
async fn without_a_server_there_is_nothing_to_replace() {
    let mut world = World::start(PROGRAM).await;
    world.kill_server().await;
    let refused = world.aditd(&["replace"]).await;
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains("aditd serve"), "{}", refused.stderr);
}
