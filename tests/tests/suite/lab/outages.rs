//! Outages during running answers, short and long, and a laptop that sleeps.

use std::time::{Duration, Instant};

use tests::{
    lab::{Carrier, Chance, Far, Lab, Setting, rung, seed},
    sshd::Sshd,
    timing::usual_or_long,
};
use tokio::task::JoinSet;

use crate::PROGRAM;

/// Long enough for every answer here, also on a busy machine.
const WITHIN: Duration = Duration::from_secs(240);
/// The time between two tokens.
const TOKEN: Duration = Duration::from_millis(50);

fn is_missing() -> bool {
    Lab::is_missing() || Sshd::is_missing()
}

/// The number of tokens that an answer of this length has.
fn tokens_in(time: Duration) -> i64 {
    (time.as_millis() / TOKEN.as_millis()) as i64
}

/// Outages of 0.05 to 3 s during three answers on one link. Returns how many of them met a running
/// answer.
async fn outages(link: &'static str, carrier: Carrier, count: u32, seed: u64) -> usize {
    let far =
        Far::start(PROGRAM, Setting { link: rung(link), seed, carrier, ..Setting::default() })
            .await;
    let mut chance = Chance::new(seed);
    // An outage and the pause before it take 2 s on average.
    let tokens = tokens_in(count * Duration::from_secs(3));
    let answers = [
        far.ask_both(tokens, seed).await,
        far.ask_both(tokens, seed + 1).await,
        far.ask_both(tokens, seed + 2).await,
    ];
    let mut met = 0;
    for _ in 0..count {
        tokio::time::sleep(chance.between(Duration::from_millis(50), Duration::from_millis(1000)))
            .await;
        met += usize::from(answers.iter().any(|answer| !answer.tunnelled.is_over()));
        far.lab.cut();
        tokio::time::sleep(chance.between(Duration::from_millis(50), Duration::from_millis(3000)))
            .await;
        far.lab.mend();
    }
    for answer in answers {
        answer.are_equal(WITHIN).await;
    }
    far.is_one_session();
    met
}

#[tokio::test]
async fn outages_at_any_moment_lose_no_token_and_repeat_none() {
    if is_missing() {
        return;
    }
    let (mut labs, count) = (JoinSet::new(), usual_or_long(8, 25));
    let by_udp = ["lan", "wifi", "dsl", "lte", "sat", "hotel", "lte", "wifi"]
        .map(|link| (link, Carrier::Udp));
    let by_ssh = ["wifi", "dsl"].map(|link| (link, Carrier::Ssh));
    for ((link, carrier), at) in by_udp.into_iter().chain(by_ssh).zip(0..) {
        labs.spawn(outages(link, carrier, count, seed(100) + at * 10));
    }
    let met: usize = labs.join_all().await.into_iter().sum();
    // All of them, except on a machine that is too busy to keep to the times.
    assert!(met > 5 * count as usize, "only {met} outages met a running answer");
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
