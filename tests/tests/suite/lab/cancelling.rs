//! What an application cancels is cancelled at Ollama, however bad the path is, and nothing else
//! is.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tests::{
    lab::{Carrier, Chance, Far, Lab, Setting, rung, seed},
    timing::usual_or_long,
};
use tokio::{sync::Semaphore, task::JoinSet};

use crate::PROGRAM;

const WITHIN: Duration = Duration::from_secs(180);
const ENDLESS: i64 = -1;

/// Disconnects during an outage, over one of the carriers.
async fn gone_during_an_outage(carrier: Carrier, seed: u64) {
    let far =
        Far::start(PROGRAM, Setting { link: rung("dsl"), seed, carrier, ..Setting::default() })
            .await;
    let stays = far.ask_both(200, seed).await;
    let mut goes = far.ask(ENDLESS, seed).await;
    goes.has(1000, WITHIN).await;
    far.lab.cut();
    drop(goes);
    // Before the path is back, the server can't know.
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(far.world.ollama.counters().cancelled, 0);
    far.lab.mend();
    let back = Instant::now();
    let cancelled = far.world.ollama.wait_for(|now| now.cancelled == 1, WITHIN).await;
    assert!(cancelled.is_ok(), "{cancelled:?}");
    println!("{carrier:?}: cancelled {:?} after the path's return", back.elapsed());
    stays.are_equal(WITHIN).await;
    assert_eq!(far.world.ollama.counters().cancelled, 1);
    far.is_one_session();
}

#[tokio::test]
async fn a_client_that_disconnects_during_an_outage_is_cancelled_when_the_path_is_back() {
    if Lab::is_missing() {
        return;
    }
    gone_during_an_outage(Carrier::Udp, seed(300)).await;
}

#[tokio::test]
async fn each_cancellation_reaches_ollama_and_no_other_request_is_cancelled() {
    if Lab::is_missing() {
        return;
    }
    let seed = seed(310);
    let far = Arc::new(
        Far::start(PROGRAM, Setting { link: rung("lte"), seed, ..Setting::default() }).await,
    );
    let at_once = Arc::new(Semaphore::new(50));
    let (mut cancels, mut kept) = (JoinSet::new(), JoinSet::new());
    let count = usual_or_long(300, 1000);
    for i in 0..count {
        let (far, at_once, mut chance) = (far.clone(), at_once.clone(), Chance::new(seed + i));
        cancels.spawn(async move {
            let _turn = at_once.acquire().await.expect("open");
            let mut asked = far.ask(ENDLESS, i).await;
            asked.has(1, WITHIN).await;
            tokio::time::sleep(chance.between(Duration::ZERO, Duration::from_millis(500))).await;
        });
    }
    for i in 0..20 {
        let far = far.clone();
        kept.spawn(async move { far.ask_both(200, i).await.are_equal(WITHIN).await });
    }
    let mut chance = Chance::new(seed);
    while !cancels.is_empty() {
        tokio::select! {
            ended = cancels.join_next() => ended.expect("one").expect("no panic"),
            () = tokio::time::sleep(Duration::from_secs(1)) => {
                far.lab.cut();
                tokio::time::sleep(chance.between(Duration::from_millis(50), Duration::from_millis(800))).await;
                far.lab.mend();
            }
        }
    }
    while let Some(whole) = kept.join_next().await {
        whole.expect("no panic");
    }
    let settled =
        far.world.ollama.wait_for(|now| now.running == 0, WITHIN).await.expect("nothing runs on");
    // Each request that was not cancelled was also sent directly.
    assert_eq!((settled.started, settled.cancelled, settled.completed), (count + 40, count, 40));
    far.is_one_session();
}
