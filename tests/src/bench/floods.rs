//! Attacks on a server of its own, one after another, while an honest device works through it.

mod attack;
mod datagrams;
mod device;
mod table;

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    path::Path,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use common::machine::report::{self as shown, Exit, Failure};
use tokio::task::JoinSet;

use self::{
    attack::Attack,
    datagrams::Counts,
    device::BadDevice,
    table::{Row, Times},
};
use super::{
    load::Seat,
    open::{Stage, TwoDevices},
    plan::Machine,
    row::{Figure, Work},
    work::{Outcome, measure},
};

/// How long an attack goes on before anything is measured.
const UNDER_WAY: Duration = Duration::from_millis(300);
/// How long a busy machine may take to begin one.
const BEGINS_WITHIN: Duration = Duration::from_secs(60);
const TOKEN_STREAMS: usize = 16;

/// Which attacks there are, for `--attacks`.
pub(super) fn names() -> Vec<&'static str> {
    Attack::ALL.map(Attack::id).to_vec()
}

/// Makes each of these attacks, or all, with the programs in the file `program`; measures the honest
/// device for `seconds` before and during each, and writes the table to `out`.
///
/// # Errors
/// If it cannot be done here, or if something came back that must not.
pub(super) async fn run(
    program: &Path,
    seconds: f64,
    only: &[String],
    out: &Path,
) -> Result<(), Failure> {
    if let Some(why) = Machine::look().no_lab {
        return Err(Failure::new(format!("cannot make attacks here: {why}")).exit(Exit::Failed));
    }
    let unwritable = |e: io::Error| {
        Failure::new(format!("cannot write to {}", out.display()))
            .source(e)
            .hint("choose another directory with --out")
    };
    std::fs::create_dir_all(out).map_err(unwritable)?;
    if cfg!(debug_assertions) {
        shown::say("this is a debug build: its numbers say nothing about a release");
    }
    let chosen = Attack::ALL
        .into_iter()
        .filter(|one| only.is_empty() || only.iter().any(|id| id == one.id()));
    let mut rows = Vec::new();
    for attack in chosen {
        shown::say(format_args!("{}: {}", attack.id(), attack.title()));
        let row = one(program, attack, seconds).await;
        rows.push(row.map_err(|e| {
            Failure::new(format!("cannot make the attack {}", attack.id())).source(e)
        })?);
    }
    let json = serde_json::to_string_pretty(&rows).map_err(io::Error::other).map_err(unwritable)?;
    std::fs::write(out.join("floods.json"), json + "\n").map_err(unwritable)?;
    std::fs::write(out.join("floods.md"), table::render(&rows)).map_err(unwritable)?;
    shown::data(table::render(&rows))?;
    let wrong: Vec<_> = rows
        .iter()
        .filter(|row| row.must_be_unanswered && row.answered > 0 || !row.served_after)
        .map(|row| row.id)
        .collect();
    if wrong.is_empty() {
        return Ok(());
    }
    Err(Failure::new(format!("answered, or served no more: {}", wrong.join(", ")))
        .exit(Exit::Failed))
}

/// Makes one attack, on processes of its own.
async fn one(program: &Path, attack: Attack, seconds: f64) -> io::Result<Row> {
    let TwoDevices { stage, aditd, server, other, _another } = TwoDevices::open(program).await?;
    let before = times(&stage, seconds).await?;
    let memory_before = aditd.rss_mb();
    let attacker = Seat::new("attacker", stage.net.client().cloned())?;
    // An attacker has processors of its own.
    attacker.give_way().await?;
    let counts = Arc::new(Counts::default());
    let bad = BadDevice { server, profile: other };
    // Kept open and never read, for the control.
    let sink = stage.net.at_server(async { UdpSocket::bind((stage.net.server_ip(), 0)) }).await?;
    let place = if attack == Attack::Elsewhere { sink.local_addr()? } else { server };
    let planned = attacker.run(plan(attack, bad, place, seconds)).await??;
    let mut running = JoinSet::new();
    running.spawn_on(planned.perform(counts.clone()), attacker.runtime());
    tokio::time::sleep(UNDER_WAY).await;
    let late = Instant::now() + BEGINS_WITHIN;
    while counts.sent.load(Relaxed) == 0 {
        if let Some(ended) = running.try_join_next() {
            ended.map_err(io::Error::other)??;
        }
        if Instant::now() > late {
            return Err(io::Error::other("this machine is too busy for an attack"));
        }
        tokio::time::sleep(UNDER_WAY).await;
    }
    let (cpu, began, sent) = (aditd.cpu_seconds(), Instant::now(), counts.sent.load(Relaxed));
    let during = times(&stage, seconds).await;
    let (cpu, took) = (aditd.cpu_seconds() - cpu, began.elapsed());
    let sent = counts.sent.load(Relaxed) - sent;
    if let Some(ended) = running.try_join_next() {
        ended.map_err(io::Error::other)??;
    }
    drop((running, attacker));
    let after = measure(&stage, Work::Connections, 0.2).await;
    Ok(Row {
        id: attack.id(),
        title: attack.title(),
        sent: counts.sent.load(Relaxed),
        per_second: sent as f64 / took.as_secs_f64(),
        answered: counts.answered.load(Relaxed),
        must_be_unanswered: attack.is_unanswered(),
        before,
        during: during?,
        memory_before,
        memory_peak: aditd.peak_mb(),
        cpu_us: cpu * 1e6 / (sent.max(1)) as f64,
        served_after: after.is_ok(),
    })
}

/// The honest device's times.
async fn times(stage: &Stage, seconds: f64) -> io::Result<Times> {
    let tokens = Work::Tokens { streams: TOKEN_STREAMS, beside_download: false };
    let tokens = measure(stage, tokens, seconds).await?;
    let requests = measure(stage, Work::Requests, seconds / 2.0).await?;
    let at = |outcome: &Outcome, which| outcome.figures.get(&which).copied().unwrap_or_default();
    Ok(Times {
        tokens_p50: at(&tokens, Figure::P50),
        tokens_p99: at(&tokens, Figure::P99),
        requests_p50: at(&requests, Figure::P50),
        requests_p99: at(&requests, Figure::P99),
    })
}

/// An attack with everything that it takes.
enum Planned {
    Datagrams { to: SocketAddr, datagrams: Vec<Vec<u8>>, per_second: u64, again: bool },
    Handshakes(BadDevice),
    Streams(BadDevice, Attack),
}

async fn plan(attack: Attack, bad: BadDevice, to: SocketAddr, seconds: f64) -> io::Result<Planned> {
    let Some(per_second) = attack.per_second() else {
        return Ok(match attack {
            Attack::Handshakes => Planned::Handshakes(bad),
            _ => Planned::Streams(bad, attack),
        });
    };
    let (datagrams, again) = match attack {
        Attack::Initials => (datagrams::initials(), true),
        Attack::Replayed => {
            let flight = datagrams::knocks(&bad.profile, 1).await?.concat();
            datagrams::heard(to, &flight).await?;
            (flight, true)
        }
        Attack::HalfOpen => {
            let count = attack::half_open(Duration::from_secs_f64(seconds * 2.0));
            (datagrams::knocks(&bad.profile, count).await?.concat(), false)
        }
        _ => (datagrams::strange(), true),
    };
    Ok(Planned::Datagrams { to, datagrams, per_second, again })
}

impl Planned {
    /// Until it is dropped.
    async fn perform(self, counts: Arc<Counts>) -> io::Result<()> {
        match self {
            Self::Datagrams { to, datagrams, per_second, again } => {
                datagrams::flood(to, &datagrams, per_second, again, &counts).await
            }
            Self::Handshakes(device) => {
                device.handshakes(counts).await;
                Ok(())
            }
            Self::Streams(device, attack) => device.streams(attack, counts).await,
        }
    }
}
