//! Outages during running answers, short and long, and a laptop that sleeps.

use std::time::{Duration, Instant};

use crate::PROGRAM;
use tests::{
    endurance::cuts::{self, tokens_in},
    lab::{Carrier, Far, Lab, Setting, rung, seed},
    sshd::Sshd,
    timing::usual_or_long,
};

/// Long enough for every answer here, also on a busy machine.
const WITHIN: Duration = Duration::from_secs(240);

fn is_missing() -> bool {
    Lab::is_missing() || Sshd::is_missing()
}

#[tokio::test]
async fn outages_at_any_moment_lose_no_token_and_repeat_none() {
    if is_missing() {
        return;
    }
    let cut = cuts::all(PROGRAM, cuts::LABS.len(), usual_or_long(8, 25), seed(100)).await;
    assert_eq!(cut.leaks, Vec::<String>::new());
}

/// A long outage, with the laptop awake or asleep.
async fn long_outage(carrier: Carrier, asleep: bool, seed: u64, next_within: Duration) {
    let far =
        Far::start(PROGRAM, Setting { link: rung("dsl"), seed, carrier, ..Setting::default() })
            .await;
    let away = Duration::from_secs(usual_or_long(20, 60));
    let tokens = tokens_in(away + Duration::from_secs(10));
    let mut answers = [far.ask_both(tokens, seed).await, far.ask_both(tokens, seed + 1).await];
    for answer in &mut answers {
        answer.tunnelled.has(2_000, WITHIN).await;
    }
    if asleep {
        far.up.adit.signal("STOP");
    }
    far.lab.cut();
    tokio::time::sleep(away).await;
    far.lab.mend();
    let back = Instant::now();
    if asleep {
        far.up.adit.signal("CONT");
    }
    for answer in &mut answers {
        let next = answer.tunnelled.next_after(back, WITHIN).await.expect("the next token");
        println!("{carrier:?}, asleep {asleep}: the next token came {next:?} after the path");
        assert!(next < next_within, "{next:?}");
    }
    for answer in answers {
        let answered = answer.are_equal(WITHIN).await;
        assert!(
            answered.largest_gap() > away / 2,
            "there was no outage: {:?}",
            answered.largest_gap()
        );
    }
    far.is_one_session();
}

#[tokio::test]
async fn a_long_outage_or_sleep_loses_no_token() {
    if is_missing() {
        return;
    }
    // Plain QUIC would take about as long as the outage lasted; ssh has to log in.
    tokio::join!(
        long_outage(Carrier::Udp, false, seed(200), Duration::from_secs(15)),
        long_outage(Carrier::Udp, true, seed(210), Duration::from_secs(15)),
        long_outage(Carrier::Ssh, false, seed(220), Duration::from_secs(60)),
        long_outage(Carrier::Ssh, true, seed(230), Duration::from_secs(60)),
    );
}
