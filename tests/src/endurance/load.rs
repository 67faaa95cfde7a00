//! Everything at once for a long time: both programs hold as much afterwards as before.

use std::{
    future::Future,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tokio::{io::AsyncWriteExt, task::JoinSet};

use super::{
    cancels,
    held::{Held, quiet, quiet_after},
};
use crate::{
    ollama::Options,
    raw,
    world::{Device, SOON, Up, World},
};

/// The first part of the load fills pools and caches, which stay: this share of the time, and at most
/// so much.
const FIRST_SHARE: u32 = 10;
const FIRST_MOST: Duration = Duration::from_secs(180);
/// How often memory is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Failures that are told; the others are only counted.
const TOLD: usize = 20;

const TOKEN: Duration = Duration::from_millis(10);
const TOKENS: i64 = 100;
/// Bytes of an upload or a download.
const BULK: usize = 1 << 20;

/// What the load was, and what the programs held.
#[derive(Debug, Clone, Default)]
pub struct Loaded {
    /// Answers, requests, cancellations, uploads, downloads, tunnels and revocations.
    pub count: u64,
    pub failed: u64,
    /// The first of them.
    pub failures: Vec<String>,
    pub before: Held,
    pub after: Held,
    /// The most memory during the load.
    pub most_server_kib: u64,
    pub most_client_kib: u64,
}

#[derive(Default)]
struct Counts {
    done: AtomicU64,
    cancelled: AtomicU64,
    whole: AtomicU64,
    failed: AtomicU64,
    failures: std::sync::Mutex<Vec<String>>,
    is_over: AtomicBool,
}

impl Counts {
    fn fail(&self, why: String) {
        self.failed.fetch_add(1, Relaxed);
        let mut failures = self.failures.lock().unwrap_or_else(|e| e.into_inner());
        if failures.len() < TOLD {
            failures.push(why);
        }
    }

    /// Does something again and again, with a pause in between, until the load is over. What panics
    /// has failed.
    async fn again<F>(self: Arc<Self>, pause: Duration, mut work: impl FnMut(u64) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let mut number = 0;
        while !self.is_over.load(Relaxed) {
            match tokio::spawn(work(number)).await {
                Ok(()) => {
                    self.done.fetch_add(1, Relaxed);
                }
                Err(e) => self.fail(super::told(e)),
            }
            number += 1;
            tokio::time::sleep(pause).await;
        }
    }
}

struct Ends {
    world: World,
    /// Its tunnel is up all the time.
    laptop: Device,
    up: Up,
    /// Its tunnel comes and goes.
    desk: Device,
    counts: Arc<Counts>,
}

/// Loads a server and its devices for this time.
///
/// # Panics
/// If it cannot be set up, or if connections stay open.
pub async fn all(program: &str, time: Duration, seed: u64) -> Loaded {
    let options = Options { token_interval: TOKEN, ..Options::default() };
    let world = World::start_with(program, options, &[]).await;
    let (laptop, desk) = (world.device("laptop").await, world.device("desk").await);
    world.device("guest").await;
    let up = laptop.up(&[]).await;
    let ends = Arc::new(Ends { world, laptop, up, desk, counts: Arc::default() });
    let first = (time / FIRST_SHARE).min(FIRST_MOST);
    ends.clone().load(first, seed).await;
    let before = quiet(&ends.world, &ends.laptop, &ends.up, "before").await;
    let most = ends.clone().load(time.saturating_sub(first), seed + 1).await;
    let after = quiet_after(&ends.world, &ends.laptop, &ends.up, &before).await;
    let counts = &ends.counts;
    let failures = counts.failures.lock().unwrap_or_else(|e| e.into_inner()).clone();
    Loaded {
        count: counts.done.load(Relaxed),
        failed: counts.failed.load(Relaxed),
        failures,
        before,
        after,
        most_server_kib: most.0,
        most_client_kib: most.1,
    }
}

impl Ends {
    /// Does everything for this time, and waits for its end. Returns the most memory of the server
    /// and of the laptop's `adit`, in KiB.
    async fn load(self: Arc<Self>, time: Duration, seed: u64) -> (u64, u64) {
        let until = Instant::now() + time;
        self.counts.is_over.store(false, Relaxed);
        let mut running = JoinSet::new();
        let (tunnel, direct) = (self.up.address, self.world.ollama.addr());
        for stream in 0..4 {
            let (counts, this) = (self.counts.clone(), self.clone());
            running.spawn(counts.again(TOKEN, move |n| {
                let this = this.clone();
                async move {
                    cancels::one_whole(tunnel, direct, TOKENS, seed + 4 * n + stream).await;
                    this.counts.whole.fetch_add(2, Relaxed);
                }
            }));
        }
        for _ in 0..2 {
            let (counts, this) = (self.counts.clone(), self.clone());
            running.spawn(counts.again(10 * TOKEN, move |n| {
                let this = this.clone();
                async move {
                    cancels::one(tunnel, n).await;
                    this.counts.cancelled.fetch_add(1, Relaxed);
                }
            }));
            let counts = self.counts.clone();
            running.spawn(counts.again(2 * TOKEN, move |n| small(tunnel, n)));
        }
        running.spawn(self.counts.clone().again(50 * TOKEN, move |n| uploaded(tunnel, direct, n)));
        running
            .spawn(self.counts.clone().again(50 * TOKEN, move |n| downloaded(tunnel, direct, n)));
        let this = self.clone();
        running.spawn(self.counts.clone().again(Duration::from_secs(3), move |_| {
            let this = this.clone();
            async move { this.desk.up(&[]).await.works().await }
        }));
        let this = self.clone();
        running.spawn(self.counts.clone().again(Duration::from_secs(5), move |_| {
            let this = this.clone();
            async move { this.revoked_and_restored().await }
        }));
        let mut most = (0, 0);
        while Instant::now() < until {
            let rest = until.saturating_duration_since(Instant::now());
            tokio::time::sleep(rest.min(LOOK_EVERY)).await;
            most.0 = most.0.max(self.world.aditd.rss());
            most.1 = most.1.max(self.up.adit.rss());
        }
        self.counts.is_over.store(true, Relaxed);
        running.join_all().await;
        self.is_settled().await;
        most
    }

    async fn revoked_and_restored(&self) {
        for command in ["revoke", "restore"] {
            let ended = self.world.aditd(&["device", command, "guest"]).await;
            assert_eq!(ended.code, Some(0), "{command}: {}", ended.stderr);
        }
    }

    /// The service has seen each cancellation and no other one.
    async fn is_settled(&self) {
        let (counts, ollama) = (&self.counts, &self.world.ollama);
        let expected = (counts.cancelled.load(Relaxed), counts.whole.load(Relaxed));
        let is_so = |now: &crate::ollama::Counters| {
            now.running == 0 && (now.cancelled, now.completed) == expected
        };
        // After a failure they differ anyway.
        if let Err(now) = ollama.wait_for(is_so, SOON).await {
            counts.fail(format!("cancelled and whole: {expected:?}, the service has seen {now:?}"));
        }
    }
}

/// A small request; every tenth connection is reset without one.
async fn small(tunnel: SocketAddr, number: u64) {
    if number % 10 == 9 {
        raw::connect(tunnel).await.set_zero_linger().expect("linger");
        return;
    }
    let answer = raw::exchange(tunnel, "GET / HTTP/1.0\r\n\r\n").await;
    assert!(answer.ends_with("Ollama is running"), "{answer}");
}

async fn uploaded(tunnel: SocketAddr, direct: SocketAddr, number: u64) {
    let json = char::from(b'a' + (number % 26) as u8).to_string().repeat(BULK);
    let request = raw::post("/test/sha256", &json);
    let (one, other) =
        tokio::join!(raw::exchange(tunnel, &request), raw::exchange(direct, &request));
    assert_eq!(raw::without_date(&one), raw::without_date(&other));
}

async fn downloaded(tunnel: SocketAddr, direct: SocketAddr, number: u64) {
    let request = format!(
        "GET /test/bytes?n={BULK}&seed={number} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    );
    let get = async |from| {
        let mut tcp = raw::connect(from).await;
        tcp.write_all(request.as_bytes()).await.expect("sent");
        let (mut bytes, ending) = raw::read_to_end(&mut tcp).await;
        assert_eq!(ending, raw::Ending::Closed);
        // What is before the body has a date.
        bytes.split_off(bytes.len().saturating_sub(BULK))
    };
    let (one, other) = tokio::join!(get(tunnel), get(direct));
    assert!(one.len() == BULK && one == other, "{} bytes", one.len());
}
