//! Endurance: both programs do much, for long, and lose nothing.

mod table;

use std::{
    future::Future,
    io,
    path::PathBuf,
    time::{Duration, Instant},
};

use clap::{Args, ValueEnum};
use common::machine::report::{self as shown, Exit, Failure};

use self::table::Row;
use crate::{
    endurance::{cancels, cuts, held, kills, load, redeemers, told},
    lab::Lab,
    ollama::Options,
    world::World,
};

/// What `adit-bench endure` is told.
#[derive(Debug, Clone, Args)]
pub(super) struct Wishes {
    /// A little of everything: less than a minute
    #[arg(long)]
    short: bool,
    /// How long the mixed load lasts, in minutes [default: 60]
    #[arg(long, conflicts_with = "short", value_parser = clap::value_parser!(u32).range(1..=10_080))]
    minutes: Option<u32>,
    /// What decides when something is cut or killed
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only these parts
    #[arg(long, value_delimiter = ',', value_name = "PART")]
    only: Vec<Part>,
    /// Where the table is written
    #[arg(long, value_name = "DIR", default_value = "target/adit-bench")]
    out: PathBuf,
}

/// How many devices use the code at the same time. The server has places for half as many handshakes.
const REDEEMERS_AT_ONCE: usize = 16;

/// A part of the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Outages of both carriers during answers
    Cuts,
    /// SIGKILL of aditd, of its commands and of adit
    Kills,
    /// Cancelled answers beside whole ones
    Cancels,
    /// Devices that use one code
    Redeemers,
    /// Everything at once
    Load,
}

/// How much of each part.
struct Amount {
    labs: usize,
    cuts_each: u32,
    kills: u32,
    cancels: u64,
    redeemers: usize,
    load: Duration,
}

impl Wishes {
    fn amount(&self) -> Amount {
        if self.short {
            let load = Duration::from_secs(10);
            return Amount { labs: 2, cuts_each: 5, kills: 16, cancels: 200, redeemers: 200, load };
        }
        let load = Duration::from_secs(60 * u64::from(self.minutes.unwrap_or(60)));
        Amount { labs: 10, cuts_each: 100, kills: 1_000, cancels: 10_000, redeemers: 10_000, load }
    }
}

/// Does each of these parts, or all, with this program as `adit` and `aditd`, and writes the table.
///
/// # Errors
/// If a part fails: the table says which and why.
pub(super) async fn run(program: PathBuf, wishes: &Wishes) -> Result<(), Failure> {
    let out = &wishes.out;
    let unwritable = |e: io::Error| {
        Failure::new(format!("cannot write to {}", out.display()))
            .source(e)
            .hint("choose another directory with --out")
    };
    std::fs::create_dir_all(out).map_err(unwritable)?;
    let program = program.to_str().ok_or_else(|| Failure::new("this program has no name"))?;
    let (amount, seed, mut rows) = (wishes.amount(), wishes.seed, Vec::new());
    let chosen = Part::value_variants()
        .iter()
        .filter(|part| wishes.only.is_empty() || wishes.only.contains(part));
    for part in chosen {
        let missing = Lab::what_is_missing().filter(|_| *part == Part::Cuts);
        if let Some(why) = missing {
            // Whoever has asked for everything must not be told that all of it holds.
            if wishes.only.contains(part) || std::env::var_os("ADIT_REQUIRE_ALL").is_some() {
                rows.push(Row::failed("outages", why.to_owned(), Duration::ZERO));
            } else {
                shown::say(format_args!("left out: outages: {why}"));
            }
            continue;
        }
        let name = part.to_possible_value().map_or_else(String::new, |name| name.get_name().into());
        shown::say(format_args!("{name} …"));
        let row = done(*part, program.to_owned(), &amount, seed).await;
        for failure in &row.failures {
            shown::say(format_args!("{name}: FAILED: {failure}"));
        }
        rows.push(row);
    }
    let json = serde_json::to_string_pretty(&rows).map_err(io::Error::other).map_err(unwritable)?;
    std::fs::write(out.join("endure.json"), json + "\n").map_err(unwritable)?;
    std::fs::write(out.join("endure.md"), table::render(&rows)).map_err(unwritable)?;
    shown::data(table::render(&rows))?;
    let failed: Vec<_> = rows.iter().filter(|row| row.failed > 0).map(|row| row.what).collect();
    if failed.is_empty() {
        return Ok(());
    }
    let hint = format!("to repeat the same cuts and kills: --seed {seed}");
    Err(Failure::new(format!("did not endure: {}", failed.join(", ")))
        .hint(hint)
        .exit(Exit::Failed))
}

/// Does one part.
async fn done(part: Part, program: String, amount: &Amount, seed: u64) -> Row {
    match part {
        Part::Cuts => {
            let (labs, each) = (amount.labs, amount.cuts_each);
            row("outages over UDP and SSH, answers the same", async move {
                let cut = cuts::all(&program, labs, each, seed).await;
                let held = Some((cut.before, cut.after));
                Row { held, ..Row::of(cut.count.into()).leaks(cut.leaks) }
            })
            .await
        }
        Part::Kills => {
            let count = amount.kills;
            row("SIGKILL of aditd, its commands and adit, nothing lost", async move {
                let killed = kills::all(&program, count, seed).await;
                let note = format!(
                    "aditd {}, commands {}, adit {}",
                    killed.aditd, killed.commands, killed.adit
                );
                Row { note, ..Row::of(killed.sum().into()) }
            })
            .await
        }
        Part::Cancels => {
            let count = amount.cancels;
            row("cancelled answers, each seen by the service", async move {
                let options =
                    Options { token_interval: Duration::from_millis(20), ..Options::default() };
                let world = World::start_with(&program, options, &[]).await;
                let device = world.device("laptop").await;
                let up = device.up(&[]).await;
                // The first ones fill pools and caches, which stay.
                cancels::all(&world, up.address, count / 10, 0).await;
                let before = held::quiet(&world, &device, &up, "before").await;
                let whole = cancels::all(&world, up.address, count - count / 10, seed).await;
                let after = held::quiet_after(&world, &device, &up, &before).await;
                let note = format!("{whole} answers beside them were whole");
                let leak = after.is_more_than(&before);
                Row { note, held: Some((before, after)), ..Row::of(count).leaks(leak) }
            })
            .await
        }
        Part::Redeemers => {
            let count = amount.redeemers;
            row("devices that use one code, one of them enrolled", async move {
                let world = World::start(&program).await;
                redeemers::all(&world, count, REDEEMERS_AT_ONCE).await;
                Row::of(count as u64)
            })
            .await
        }
        Part::Load => {
            let time = amount.load;
            row("mixed load, memory and descriptors flat", async move {
                let loaded = load::all(&program, time, seed).await;
                let mut failures = loaded.failures.clone();
                failures.extend(loaded.after.is_more_than(&loaded.before));
                let more = u64::from(failures.len() > loaded.failures.len());
                let most = |kib: u64| kib as f64 / 1024.0;
                let note = format!(
                    "during it at most {:.1} and {:.1} MiB",
                    most(loaded.most_server_kib),
                    most(loaded.most_client_kib)
                );
                Row {
                    note,
                    failed: loaded.failed + more,
                    failures,
                    held: Some((loaded.before, loaded.after)),
                    ..Row::of(loaded.count)
                }
            })
            .await
        }
    }
}

/// Does a part on a task of its own: what panics has failed.
async fn row(what: &'static str, part: impl Future<Output = Row> + Send + 'static) -> Row {
    let began = Instant::now();
    match tokio::spawn(part).await {
        Ok(row) => Row { what, seconds: began.elapsed().as_secs_f64(), ..row },
        Err(e) => Row::failed(what, told(e), began.elapsed()),
    }
}
