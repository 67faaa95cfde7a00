//! Does the work of a row with a contestant, and measures it.

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tokio::task::JoinSet;

use crate::stats::quantile;

use super::{
    load::{self, TOKEN_PERIOD_US, Target, Token},
    open::Stage,
    row::{Congestion, Direction, Disturbance, Figure, Work},
};

/// How long after the token streams the download beside them begins.
const HEAD_START: Duration = Duration::from_millis(500);
/// How long to wait for tokens after the last one was made. A token that is missing then counts as
/// late as it is then.
const GRACE: Duration = Duration::from_secs(10);
/// The part of a transfer at its beginning that is not counted, while its speed still grows.
const WARM_UP: f64 = 0.3;
/// How long to wait until freed memory has gone back to the system.
const SETTLE: Duration = Duration::from_millis(1_500);
/// How long a download runs before another one begins beside it.
const FIRST_ALONE: Duration = Duration::from_secs(3);
const DISTURBED_STREAMS: usize = 4;
/// How long tokens are watched before and after a disturbance.
const AROUND: Duration = Duration::from_secs(1);
/// After a NAT or an address has changed, packets that were on their way do not count for this time.
const ON_ITS_WAY: Duration = Duration::from_millis(300);

/// The result of one measurement.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// Its numbers.
    pub figures: BTreeMap<Figure, f64>,
    /// The times behind them, in µs, where there are some.
    pub samples: Vec<f64>,
}

/// Measures once, for about `seconds`.
///
/// # Errors
/// If a connection was cut or refused: the contestant may be of no more use.
pub(super) async fn measure(stage: &Stage, work: Work, seconds: f64) -> io::Result<Outcome> {
    let (to, during) = (stage.target, Duration::from_secs_f64(seconds));
    match work {
        Work::Requests => times(stage.apps.run(load::requests(to, during)).await??),
        Work::Connections => times(stage.apps.run(load::connections(to, during)).await??),
        Work::Tokens { streams, beside_download } => {
            tokens(stage, streams, beside_download, during).await
        }
        Work::Bulk { direction, flows } => bulk(stage, direction, flows, during).await,
        Work::Beside { other } => beside(stage, other, during).await,
        Work::Memory { idle } => memory(stage, idle).await,
        Work::Disturbance(what) => disturbance(stage, what, during).await,
    }
}

fn times(mut samples: Vec<f64>) -> io::Result<Outcome> {
    let at = |samples: &mut [f64], q| {
        quantile(samples, q).ok_or_else(|| io::Error::other("nothing came in time"))
    };
    let figures = [(Figure::P50, at(&mut samples, 0.5)?), (Figure::P99, at(&mut samples, 0.99)?)];
    Ok(Outcome { figures: figures.into(), samples })
}

/// Running token streams.
struct Streams {
    arrived: Vec<Arc<Mutex<Vec<Token>>>>,
    /// When the first could have been made, in ns.
    began: u64,
    count: u64,
    tasks: JoinSet<io::Result<()>>,
}

impl Streams {
    fn start(stage: &Stage, streams: usize, during: Duration) -> Self {
        let count = (during.as_micros() as u64 / TOKEN_PERIOD_US).max(1);
        let arrived: Vec<Arc<Mutex<Vec<Token>>>> = (0..streams).map(|_| Arc::default()).collect();
        let mut tasks = JoinSet::new();
        for (number, arrived) in arrived.iter().enumerate() {
            let (to, arrived) = (stage.target, arrived.clone());
            // The streams do not begin at the same moment.
            let after = Duration::from_micros(TOKEN_PERIOD_US * number as u64 / streams as u64);
            let one = async move {
                tokio::time::sleep(after).await;
                load::tokens(to, count, |token| {
                    arrived.lock().unwrap_or_else(PoisonError::into_inner).push(token);
                })
                .await
            };
            tasks.spawn_on(one, stage.apps.runtime());
        }
        Self { arrived, began: load::now(), count, tasks }
    }

    fn tokens(&self, stream: usize) -> Vec<Token> {
        self.arrived[stream].lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until all have ended, or for so long.
    async fn end(&mut self, within: Duration) -> io::Result<()> {
        let all = async {
            while let Some(one) = self.tasks.join_next().await {
                one.map_err(io::Error::other)??;
            }
            Ok(())
        };
        tokio::time::timeout(within, all).await.unwrap_or(Ok(()))
    }

    /// How late each token came that was made from `since` on, in µs. A token that has not come
    /// counts as late as it is now.
    fn lateness(&self, since: u64) -> Vec<f64> {
        let now = load::now();
        let mut late = Vec::new();
        for stream in 0..self.arrived.len() {
            let tokens = self.tokens(stream);
            let began = tokens.first().map_or(self.began, |token| token.made);
            late.extend(
                tokens
                    .iter()
                    .filter(|token| token.made >= since)
                    .map(|token| token.arrived.saturating_sub(token.made) as f64 / 1e3),
            );
            let missing = tokens.len() as u64..self.count;
            let made = missing.map(|token| began + token * TOKEN_PERIOD_US * 1_000);
            late.extend(
                made.filter(|made| *made >= since && *made < now)
                    .map(|made| (now - made) as f64 / 1e3),
            );
        }
        late
    }
}

async fn tokens(
    stage: &Stage,
    streams: usize,
    beside: bool,
    during: Duration,
) -> io::Result<Outcome> {
    let mut running = Streams::start(stage, streams, during);
    if !beside {
        running.end(during + GRACE).await?;
        return times(running.lateness(0));
    }
    tokio::time::sleep(HEAD_START).await;
    let (mut flows, counter) = start_flows(stage, stage.target, Direction::Download, 1);
    let since = load::now();
    let (carried, _) = steady(stage, &counter, during - HEAD_START).await;
    let ended = running.end(GRACE).await;
    still_run(&mut flows)?;
    ended?;
    let mut outcome = times(running.lateness(since))?;
    outcome.figures.insert(Figure::Rate, carried.mbit_per_second());
    Ok(outcome)
}

/// What was carried in the steady part of a transfer.
struct Carried {
    bytes: u64,
    seconds: f64,
}

impl Carried {
    fn mbit_per_second(&self) -> f64 {
        self.bytes as f64 * 8e-6 / self.seconds
    }
}

async fn bulk(
    stage: &Stage,
    direction: Direction,
    flows: usize,
    during: Duration,
) -> io::Result<Outcome> {
    let (mut flows, counter) = start_flows(stage, stage.target, direction, flows);
    let (carried, cpu) = steady(stage, &counter, during).await;
    still_run(&mut flows)?;
    let mut outcome = Outcome::default();
    outcome.figures.insert(Figure::Rate, carried.mbit_per_second());
    if !stage.processes.roots.is_empty() && carried.bytes > 0 {
        outcome.figures.insert(Figure::Cpu, cpu / (carried.bytes as f64 / 1e9));
    }
    Ok(outcome)
}

type Flows = JoinSet<io::Result<()>>;

fn start_flows(
    stage: &Stage,
    to: Target,
    direction: Direction,
    flows: usize,
) -> (Flows, Arc<AtomicU64>) {
    let counter = match direction {
        Direction::Download => Arc::default(),
        Direction::Upload => stage.service.received.clone(),
    };
    let mut tasks = JoinSet::new();
    for _ in 0..flows {
        let counter = counter.clone();
        match direction {
            Direction::Download => {
                tasks.spawn_on(load::download(to, counter), stage.apps.runtime())
            }
            Direction::Upload => tasks.spawn_on(load::upload(to), stage.apps.runtime()),
        };
    }
    (tasks, counter)
}

/// A transfer has no end of its own: if it ended, it was cut.
fn still_run(flows: &mut Flows) -> io::Result<()> {
    match flows.try_join_next() {
        Some(ended) => {
            ended.map_err(io::Error::other)?.and(Err(io::ErrorKind::UnexpectedEof.into()))
        }
        None => Ok(()),
    }
}

/// Waits, and returns what was carried in the steady part and the processor time that it took.
async fn steady(stage: &Stage, counter: &AtomicU64, during: Duration) -> (Carried, f64) {
    let now = || (counter.load(Relaxed), stage.processes.cpu_seconds(), Instant::now());
    tokio::time::sleep(during.mul_f64(WARM_UP)).await;
    let (bytes, cpu, began) = now();
    tokio::time::sleep(during.mul_f64(1.0 - WARM_UP)).await;
    let after = now();
    let seconds = (after.2 - began).as_secs_f64();
    (Carried { bytes: after.0 - bytes, seconds }, after.1 - cpu)
}

/// A download beside one of plain TCP that was there first, for so long.
async fn beside(stage: &Stage, other: Congestion, during: Duration) -> io::Result<Outcome> {
    let to = stage.service.target(other, stage.net.server_ip())?;
    let (mut others, rivals) = start_flows(stage, to, Direction::Download, 1);
    tokio::time::sleep(FIRST_ALONE).await;
    let (mut flows, own) = start_flows(stage, stage.target, Direction::Download, 1);
    let before = rivals.load(Relaxed);
    tokio::time::sleep(during).await;
    let (own, rivals) = (own.load(Relaxed) as f64, (rivals.load(Relaxed) - before) as f64);
    still_run(&mut flows)?;
    still_run(&mut others)?;
    let mut outcome = Outcome::default();
    outcome.figures.insert(Figure::Share, 2.0 * own / (own + rivals).max(1.0));
    outcome.figures.insert(Figure::Rate, own * 8e-6 / during.as_secs_f64());
    Ok(outcome)
}

async fn memory(stage: &Stage, idle: usize) -> io::Result<Outcome> {
    let start = stage.processes.rss_mb();
    let open = stage.apps.run(load::idle(stage.target, idle)).await??;
    tokio::time::sleep(SETTLE).await;
    let figures = [(Figure::RssStart, start), (Figure::RssIdle, stage.processes.rss_mb())];
    drop(open);
    Ok(Outcome { figures: figures.into(), samples: Vec::new() })
}

async fn disturbance(stage: &Stage, what: Disturbance, within: Duration) -> io::Result<Outcome> {
    let lab = stage.net.lab().ok_or(io::ErrorKind::Unsupported)?;
    let mut running = Streams::start(stage, DISTURBED_STREAMS, AROUND * 4 + within);
    tokio::time::sleep(AROUND).await;
    let began = load::now();
    let back = match what {
        Disturbance::Nat => {
            lab.rebind_nat();
            began + ON_ITS_WAY.as_nanos() as u64
        }
        Disturbance::Address => {
            lab.change_address();
            began + ON_ITS_WAY.as_nanos() as u64
        }
        Disturbance::Hole(length) => {
            lab.cut();
            tokio::time::sleep(length).await;
            lab.mend();
            load::now()
        }
    };
    let until = Instant::now() + within.saturating_sub(Duration::from_nanos(load::now() - began));
    while !(0..DISTURBED_STREAMS)
        .all(|stream| running.tokens(stream).last().is_some_and(|last| last.arrived > back))
    {
        let cut = running.tasks.try_join_next().is_some();
        if cut || Instant::now() > until {
            let why = if cut { "cut" } else { "no token came any more" };
            return Err(io::Error::other(why));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(AROUND).await;
    let gaps = (0..DISTURBED_STREAMS).map(|stream| largest_gap(&running.tokens(stream)));
    let figures = [(Figure::Gap, gaps.fold(0.0, f64::max))];
    Ok(Outcome { figures: figures.into(), samples: Vec::new() })
}

/// The longest time between two tokens, in seconds.
fn largest_gap(tokens: &[Token]) -> f64 {
    let gaps = tokens.windows(2).map(|two| two[1].arrived - two[0].arrived);
    gaps.max().unwrap_or(0) as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    fn streams(tokens: &[&[(u64, u64)]], count: u64, began: u64) -> Streams {
        let one = |list: &&[(u64, u64)]| {
            let tokens =
                list.iter().map(|(made, arrived)| Token { made: *made, arrived: *arrived });
            Arc::new(Mutex::new(tokens.collect()))
        };
        Streams { arrived: tokens.iter().map(one).collect(), began, count, tasks: JoinSet::new() }
    }

    #[test]
    fn a_token_that_has_not_come_is_as_late_as_it_is_now() {
        let now = load::now();
        std::thread::sleep(Duration::from_millis(50));
        let two = streams(&[&[(now, now + 1_000)], &[]], 2, now);
        let mut late = two.lateness(0);
        late.sort_by(f64::total_cmp);
        // One came after 1 µs; of the others two were due 20 ms later, and one at once.
        assert_eq!((late.len(), late[0]), (4, 1.0));
        assert!(late[1] >= 30_000.0 && late[3] >= 50_000.0, "{late:?}");
        assert_eq!(two.lateness(now + 1).len(), 2);
    }

    #[test]
    fn a_gap_is_between_arrivals() {
        let token = |arrived| Token { made: 0, arrived };
        let tokens = [token(1_000_000_000), token(1_020_000_000), token(3_020_000_000)];
        assert_eq!(largest_gap(&tokens), 2.0);
        assert_eq!(largest_gap(&tokens[..1]), 0.0);
    }
}
