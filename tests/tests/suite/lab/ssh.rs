//! The same over SSH: a tunnel through sshd survives what a tunnel over UDP survives.

use std::time::{Duration, Instant};

use tests::{
    lab::{Carrier, Far, Lab, SERVER, Setting, rung, scan, seed},
    skip,
    sshd::Sshd,
    world::SOON,
};

use crate::PROGRAM;

const WITHIN: Duration = Duration::from_secs(240);

fn is_missing() -> bool {
    Lab::is_missing() || Sshd::is_missing()
}

fn setting(carrier: Carrier, seed: u64) -> Setting {
    Setting { link: rung("dsl"), seed, carrier, ..Setting::default() }
}

async fn carrier(far: &Far) -> String {
    far.device.status().await["tunnel"]["carrier"].as_str().unwrap_or("none").to_owned()
}

#[tokio::test]
async fn if_udp_is_blocked_the_tunnel_uses_ssh() {
    if is_missing() || Lab::has_no_firewall() {
        return;
    }
    let far =
        Far::start(PROGRAM, Setting { udp_blocked: true, ..setting(Carrier::Both, seed(610)) })
            .await;
    assert_eq!(carrier(&far).await, "ssh");
    far.ask_both(60, 1).await.are_equal(WITHIN).await;
    far.is_one_session();
}

#[tokio::test]
async fn if_udp_becomes_blocked_a_running_answer_continues_over_ssh() {
    if is_missing() || Lab::has_no_firewall() {
        return;
    }
    let far = Far::start(PROGRAM, setting(Carrier::Both, seed(620))).await;
    assert_eq!(carrier(&far).await, "udp");
    let mut answer = far.ask_both(200, 2).await;
    answer.tunnelled.has(2000, WITHIN).await;
    far.lab.block_udp(true);
    // Packets that are under way arrive.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let blocked = Instant::now();
    let next = answer.tunnelled.next_after(blocked, WITHIN).await.expect("the next token");
    println!("the next token came {next:?} after UDP was blocked, by {}", carrier(&far).await);
    answer.are_equal(WITHIN).await;
    far.is_one_session();
}

#[tokio::test]
async fn a_killed_ssh_is_restarted_and_running_answers_lose_no_token() {
    if is_missing() {
        return;
    }
    let up_flags = &["--ssh-client", "system"];
    let far = Far::start(PROGRAM, Setting { up_flags, ..setting(Carrier::Ssh, seed(630)) }).await;
    let mut answer = far.ask_both(250, 3).await;
    for bytes in [2_000, 6_000, 10_000] {
        answer.tunnelled.has(bytes, WITHIN).await;
        kill_ssh(far.up.adit.pid()).await;
    }
    answer.are_equal(WITHIN).await;
    far.is_one_session();
}

/// Kills the child processes of the client, as soon as it has one.
async fn kill_ssh(adit: u32) {
    let kill = format!("kill -9 $(cat /proc/{adit}/task/*/children)");
    let killed = async {
        while !tokio::process::Command::new("sh")
            .args(["-c", &kill])
            .status()
            .await
            .is_ok_and(|status| status.success())
        {}
    };
    tokio::time::timeout(SOON, killed).await.expect("the client runs ssh");
}

#[tokio::test]
async fn over_ssh_too_a_client_that_disconnects_during_an_outage_is_cancelled_when_the_path_is_back()
 {
    if is_missing() {
        return;
    }
    let far = Far::start(PROGRAM, setting(Carrier::Ssh, seed(650))).await;
    let mut goes = far.ask(-1, 1).await;
    goes.has(1000, WITHIN).await;
    far.lab.cut();
    drop(goes);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(far.world.ollama.counters().cancelled, 0);
    far.lab.mend();
    let cancelled = far.world.ollama.wait_for(|now| now.cancelled == 1, WITHIN).await;
    assert!(cancelled.is_ok(), "{cancelled:?}");
    far.is_one_session();
}

#[tokio::test]
async fn a_port_scan_from_another_network_finds_only_sshd() {
    if is_missing() {
        return;
    }
    let far = Far::start(
        PROGRAM,
        Setting { link: tests::lab::LOOPBACK, ..setting(Carrier::Ssh, seed(660)) },
    )
    .await;
    let sshd: u16 = far
        .sshd
        .as_ref()
        .and_then(|sshd| sshd.url.rsplit(':').next()?.parse().ok())
        .expect("a port");
    assert_eq!(scan::tcp(&far.lab.client, SERVER).await, [sshd]);
    // Linux limits how often it reports a closed port to one address.
    let limits =
        [("icmp_ratelimit", "0"), ("icmp_msgs_per_sec", "1000000"), ("icmp_msgs_burst", "1000000")];
    if limits
        .iter()
        .any(|(limit, value)| far.lab.server.set(&format!("ipv4/{limit}"), value).is_err())
    {
        skip::skip_test("this kernel limits ICMP for all networks together");
        return;
    }
    let open = scan::udp(&far.lab.client, SERVER).await;
    let sockets = far
        .lab
        .server
        .inside(|| std::fs::read_to_string("/proc/thread-self/net/udp"))
        .unwrap_or_default();
    assert_eq!(open, Vec::<u16>::new(), "{sockets}");
    far.ask_both(10, 1).await.are_equal(WITHIN).await;
}
