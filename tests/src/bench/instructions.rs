//! Guards against slow growth: how many instructions each end needs for a token, a request and a
//! megabyte, counted by valgrind. Unlike times, counts are nearly the same on every machine and
//! under any load.

mod counts;
mod lockstep;
mod valgrind;

use std::path::{Path, PathBuf};

use common::machine::report::{self as shown, Failure};

use self::{
    counts::{Comparison, Counts, Work},
    lockstep::LockStep,
    valgrind::Counted,
};
use crate::{ollama::Options, world::World};

/// Each count is the median of so many runs in one tunnel.
const REPEATS: usize = 3;
/// How datagrams fall into batches differs from tunnel to tunnel and with the load of the machine (a
/// quiet one needs more instructions), and a megabyte costs up to an eighth more or less by that. What
/// grew beyond the band has to do so in each of so many tunnels.
const TUNNELS: usize = 5;

/// Counts, and compares with the counts in `file`, or writes them there.
///
/// # Errors
/// If one has grown by more than the band, or nothing could be counted.
pub(super) async fn run(file: &Path, accept: bool) -> Result<(), Failure> {
    if !valgrind::is_there() {
        return missing();
    }
    if accept {
        let mut counts = Counts::here();
        for _ in 0..TUNNELS {
            counts.extend(in_one_tunnel().await?);
        }
        counts.write(file)?;
        shown::say(format_args!("the counts are in {} now", file.display()));
        return shown::data(counts);
    }
    let accepted = Counts::read(file)?;
    let mut comparison = Comparison::new(accepted, in_one_tunnel().await?);
    for _ in 1..TUNNELS {
        if comparison.verdict(file).is_ok() {
            break;
        }
        comparison = comparison.with_fewer_of(in_one_tunnel().await?);
    }
    shown::data(&comparison)?;
    comparison.verdict(file)
}

async fn in_one_tunnel() -> Result<Counts, Failure> {
    let dir = tempfile::tempdir()
        .map_err(|e| Failure::new("cannot make a temporary directory").source(e))?;
    count(dir.path()).await.map_err(|e| Failure::new("cannot count instructions").source(e))
}

/// Where no test may be skipped, a machine without valgrind is an error.
fn missing() -> Result<(), Failure> {
    let why = "valgrind is not installed";
    if std::env::var_os("ADIT_REQUIRE_ALL").is_some() {
        return Err(Failure::new(format!("{why}, and ADIT_REQUIRE_ALL is set"))
            .hint("apt install valgrind"));
    }
    shown::say(format_args!("skipped: {why}"));
    Ok(())
}

async fn count(dir: &Path) -> std::io::Result<Counts> {
    let program = valgrind::wrap(&std::env::current_exe()?, dir)?;
    let upstream = LockStep::listen().await?;
    let flags = ["--upstream".to_owned(), format!("http://{}", upstream.address())];
    let flags: Vec<_> = flags.iter().map(String::as_str).collect();
    let program = program.to_str().ok_or(std::io::ErrorKind::InvalidFilename)?;
    let world = World::start_with(program, Options::default(), &flags).await;
    let device = world.device("laptop").await;
    let up = device.up(&["--carrier", "udp"]).await;
    let ends: [(&str, Counted); 2] = [
        ("adit", Counted::new(up.adit.pid(), dir, "adit")),
        ("aditd", Counted::new(world.aditd.pid(), dir, "aditd")),
    ];
    for (_, end) in &ends {
        end.begin().await?;
    }
    let mut counts = Counts::here();
    for work in Work::ALL {
        let mut running = upstream.begin(up.address, work).await?;
        running.warm_up().await?;
        for _ in 0..REPEATS {
            for (_, end) in &ends {
                end.zero().await?;
            }
            let units = running.work().await?;
            for (name, end) in &ends {
                counts.add(work, name, end.dump().await? as f64 / units);
            }
        }
    }
    Ok(counts)
}

/// Where the accepted counts are.
pub(super) fn default_file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("instructions.json")
}
