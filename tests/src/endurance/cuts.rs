//! Outages at seeded moments: no byte of an answer is lost or repeated.

use std::time::Duration;

use tokio::task::JoinSet;

use super::held::{Held, quiet, quiet_after};
use crate::lab::{Carrier, Chance, Far, Setting, rung};

/// Long enough for the rest of an answer after the last outage, also on a busy machine.
const WITHIN: Duration = Duration::from_secs(240);
/// The time between two tokens.
const TOKEN: Duration = Duration::from_millis(50);

/// The links and the carriers of all labs.
pub const LABS: [(&str, Carrier); 10] = [
    ("wifi", Carrier::Udp),
    ("dsl", Carrier::Ssh),
    ("lan", Carrier::Udp),
    ("dsl", Carrier::Udp),
    ("lte", Carrier::Udp),
    ("sat", Carrier::Udp),
    ("hotel", Carrier::Udp),
    ("wifi", Carrier::Ssh),
    ("lte", Carrier::Udp),
    ("wifi", Carrier::Udp),
];

/// What the outages of one lab, or of several, were.
#[derive(Debug, Clone, Default)]
pub struct Outages {
    /// All of them.
    pub count: u32,
    /// Those that met a running answer.
    pub met: u32,
    /// What both programs held before and after; of several labs, where they hold most.
    pub before: Held,
    pub after: Held,
    /// What was held more after than before, a line for each lab.
    pub leaks: Vec<String>,
}

/// The number of tokens that an answer of this length has.
pub fn tokens_in(time: Duration) -> i64 {
    (time.as_millis() / TOKEN.as_millis()) as i64
}

/// Makes `count` outages of 0.05 to 3 s on each link of the first `labs` labs, side by side.
///
/// # Panics
/// If an answer is not the one that came without a tunnel, or needed a second session.
pub async fn all(program: &str, labs: usize, count: u32, seed: u64) -> Outages {
    let mut running = JoinSet::new();
    for ((link, carrier), at) in LABS.into_iter().take(labs).zip(0..) {
        let program = program.to_owned();
        running.spawn(async move { on(&program, link, carrier, count, seed + at * 10).await });
    }
    let mut sum = Outages::default();
    while let Some(one) = running.join_next().await {
        let one = one.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()));
        sum.count += one.count;
        sum.met += one.met;
        sum.leaks.extend(one.leaks);
        if one.after.server.rss_kib > sum.after.server.rss_kib {
            (sum.before, sum.after) = (one.before, one.after);
        }
    }
    // All of them, except on a machine that is too busy to keep to the times.
    assert!(2 * sum.met > sum.count, "only {} of {} met a running answer", sum.met, sum.count);
    sum
}

/// Makes outages during three answers on one link.
async fn on(program: &str, link: &'static str, carrier: Carrier, count: u32, seed: u64) -> Outages {
    let setting = Setting { link: rung(link), seed, carrier, ..Setting::default() };
    let far = Far::start(program, setting).await;
    let before = quiet(&far.world, &far.device, &far.up, "before").await;
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
        met += u32::from(answers.iter().any(|answer| !answer.tunnelled.is_over()));
        far.lab.cut();
        tokio::time::sleep(chance.between(Duration::from_millis(50), Duration::from_millis(3000)))
            .await;
        far.lab.mend();
    }
    // A long answer has a rest that is as long as a third of all outages.
    let within = WITHIN + count * Duration::from_secs(2);
    for answer in answers {
        answer.are_equal(within).await;
    }
    far.is_one_session();
    let after = quiet_after(&far.world, &far.device, &far.up, &before).await;
    let leak = after.is_more_than(&before).map(|more| format!("{link} over {carrier:?}: {more}"));
    Outages { count, met, before, after, leaks: leak.into_iter().collect() }
}
