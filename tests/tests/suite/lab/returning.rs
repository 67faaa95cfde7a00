//! What an outage costs beyond itself, from the path's return to the next token, for an answer
//! beside an upload that fills the path.

use std::time::{Duration, Instant};

use crate::PROGRAM;
use tests::lab::{Chance, Far, LOOPBACK, Lab, Link, Setting, rung, seed};

const WITHIN: Duration = Duration::from_secs(60);
/// How long the outages are, in milliseconds: long enough to be noticed.
const OUTAGES: [u64; 5] = [2_000, 3_000, 2_500, 5_000, 4_000];

/// From the return of the path to the next token, after each outage, beside an upload.
async fn returns(link: Link, seed: u64) -> Vec<Duration> {
    let far = Far::start(PROGRAM, Setting { link, seed, ..Setting::default() }).await;
    let mut chance = Chance::new(seed);
    let mut answer = far.ask(-1, seed).await;
    let mut upload = far.upload().await;
    answer.has(3_000, WITHIN).await;
    let mut returns = Vec::new();
    for length in OUTAGES {
        tokio::time::sleep(chance.between(Duration::from_secs(2), Duration::from_secs(4))).await;
        far.lab.cut();
        tokio::time::sleep(Duration::from_millis(length)).await;
        let back = Instant::now();
        far.lab.mend();
        returns.push(answer.next_after(back, WITHIN).await.expect("the next token"));
    }
    assert!(upload.try_join_next().is_none(), "the upload was cut");
    far.is_one_session();
    returns
}

#[tokio::test]
async fn beside_an_upload_the_next_token_comes_soon_after_an_outage() {
    if Lab::is_missing() {
        return;
    }
    let fast = Link {
        name: "fast",
        delay: Duration::from_millis(25),
        rate: Some(100_000_000),
        ..LOOPBACK
    };
    let (slow, fast, lte) = tokio::join!(
        returns(rung("dsl"), seed(600)),
        returns(fast, seed(601)),
        returns(rung("lte"), seed(602))
    );
    println!("from the path's return to the next token: dsl {slow:?}, fast {fast:?}, lte {lte:?}");
    // 50 ms to the next probe and two round trips: at most 170, 200 and 270 ms on a quiet machine.
    // This machine may be busy.
    for (mut after, half) in [(slow, 300), (fast, 300), (lte, 400)] {
        after.sort();
        assert!(after[after.len() / 2] < Duration::from_millis(half), "{after:?}");
        assert!(after.iter().all(|after| *after < Duration::from_secs(1)), "{after:?}");
    }
}
