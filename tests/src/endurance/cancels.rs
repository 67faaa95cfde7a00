//! Every cancellation reaches the service, and no answer is cancelled that nobody cancels.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinSet,
};

use crate::{
    ollama::Counters,
    raw,
    world::{SOON, World},
};

const AT_ONCE: usize = 40;
/// Answers at the same time that come to their end.
const KEPT: u64 = 4;
const KEPT_TOKENS: i64 = 40;

/// A request for an endless answer, cancelled after the answer has begun: by a close, a reset or a
/// half-close.
pub async fn one(address: SocketAddr, way: u64) {
    let mut app = raw::connect(address).await;
    app.write_all(raw::generate(-1, 1).as_bytes()).await.expect("sent");
    raw::read_exactly(&mut app, 300).await;
    match way % 3 {
        0 => {}
        1 => app.set_zero_linger().expect("linger"),
        _ => {
            app.shutdown().await.expect("half-closed");
            let _ = tokio::time::timeout(SOON, app.read_to_end(&mut Vec::new()))
                .await
                .expect("it ends");
        }
    }
}

/// Asserts that an answer of `tokens` tokens is the same through the tunnel as without it.
pub async fn one_whole(tunnel: SocketAddr, direct: SocketAddr, tokens: i64, seed: u64) {
    let request = raw::generate(tokens, seed);
    let (tunnelled, expected) =
        tokio::join!(raw::exchange(tunnel, &request), raw::exchange(direct, &request));
    let is_same = raw::without_date(&tunnelled) == raw::without_date(&expected);
    assert!(is_same, "seed {seed}: {} bytes of {}", tunnelled.len(), expected.len());
}

/// Cancels `count` answers at `tunnel`, many at the same time, while others come to their end there.
/// Returns how many those were.
///
/// # Panics
/// If the service has not seen exactly these cancellations.
pub async fn all(world: &World, tunnel: SocketAddr, count: u64, seed: u64) -> u64 {
    let before = world.ollama.counters();
    let (mut running, mut kept, is_done) = (JoinSet::new(), JoinSet::new(), Arc::default());
    for kept_at in 0..KEPT {
        let (direct, is_done) = (world.ollama.addr(), Arc::<AtomicBool>::clone(&is_done));
        kept.spawn(async move {
            let mut whole = 0;
            while whole == 0 || !is_done.load(Relaxed) {
                one_whole(tunnel, direct, KEPT_TOKENS, seed + KEPT * whole + kept_at).await;
                whole += 1;
            }
            whole
        });
    }
    for way in 0..count {
        if running.len() >= AT_ONCE {
            running.join_next().await.expect("one").expect("no panic");
        }
        running.spawn(one(tunnel, way));
    }
    running.join_all().await;
    is_done.store(true, Relaxed);
    let whole: u64 = kept.join_all().await.into_iter().sum();
    let seen = |now: &Counters| {
        let more = |of: fn(&Counters) -> u64| of(now) - of(&before);
        (more(|c| c.started), more(|c| c.cancelled), more(|c| c.completed))
    };
    let is_over = |now: &Counters| {
        let (_, cancelled, completed) = seen(now);
        now.running == 0 && cancelled + completed >= count + 2 * whole
    };
    // Those were sent directly, too.
    let expected = (count + 2 * whole, count, 2 * whole);
    let now = world.ollama.wait_for(is_over, SOON).await;
    let now = now.unwrap_or_else(|now| panic!("{expected:?} were expected: {now:?}"));
    assert_eq!(seen(&now), expected);
    whole
}
