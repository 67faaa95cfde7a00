//! The benchmark: what Adit costs and gives beside no tunnel, `ssh -L` and other tunnels, measured
//! in turn in the same run.

pub mod contestant;
mod endure;
mod floods;
mod instructions;
pub mod load;
pub mod machine;
pub mod net;
mod open;
pub mod plan;
pub mod processes;
pub mod report;
pub mod row;
mod run;
mod work;

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use common::machine::{
    process::{self, StopSignals},
    report::{self as shown, Exit, Failure},
};

use self::{
    plan::{Machine, Plan, Wishes},
    report::{Report, markdown, plot},
};

/// Measure Adit beside no tunnel, `ssh -L`, and other tunnels that are on PATH
///
/// Every row is measured in turn with everybody who takes part, each with real processes and in
/// network namespaces of its own; the links are emulated. That needs root; without it only the rows
/// on loopback are measured. The table goes to standard output. It is also written as Markdown, as
/// JSON and as a plot (SVG) of how late tokens were. On a machine that does something else
/// meanwhile the numbers are worth little; the report says how quiet it was.
#[derive(Debug, Parser)]
#[command(name = "adit-bench", version, args_conflicts_with_subcommands = true)]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// The rows and the time that every day has: less than five minutes
    #[arg(long)]
    quick: bool,
    /// Measure only these rows: names, or parts of names
    #[arg(long, value_delimiter = ',', value_name = "ROW")]
    rows: Vec<String>,
    /// Measure only these contestants
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    peers: Vec<String>,
    /// Compare with another build: an `adit-bench` or `adit-demo` program
    #[arg(long, value_name = "NAME=PROGRAM", value_parser = build)]
    also: Vec<(String, PathBuf)>,
    /// How often each measurement is made [default: 3, with --quick 1]
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=100))]
    rounds: Option<u8>,
    /// What decides which packets a link loses
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where the report is written
    #[arg(long, value_name = "DIR", default_value = "target/adit-bench")]
    out: PathBuf,
    /// Say what would be measured, and measure nothing
    #[arg(long)]
    list: bool,
}

/// What it can do besides.
#[derive(Debug, Subcommand)]
enum Command {
    /// Count the instructions that both ends need for a token, a request and a megabyte, and compare
    /// with the counts that were accepted
    ///
    /// Counts do not depend on the speed or the load of a machine. Needs valgrind. The counts are
    /// those of the build that runs: the accepted ones are of a debug build.
    Instructions {
        /// Accept what is counted
        #[arg(long)]
        accept: bool,
        /// The file with the accepted counts
        #[arg(long, default_value_os_t = instructions::default_file())]
        file: PathBuf,
    },
    /// Attack a server in every known way, and measure what a device notices of it meanwhile
    ///
    /// Each attack is made on processes and networks of its own, which needs root. The table goes to
    /// standard output, and as Markdown and JSON to a directory.
    Floods {
        /// Only these attacks
        #[arg(long, value_delimiter = ',', value_name = "NAME",
            value_parser = clap::builder::PossibleValuesParser::new(floods::names()))]
        attacks: Vec<String>,
        /// How long the device is measured, before each attack and during it
        #[arg(long, default_value = "3", value_parser = seconds)]
        seconds: f64,
        /// Where the table is written
        #[arg(long, value_name = "DIR", default_value = "target/adit-bench")]
        out: PathBuf,
    },
    /// Cut, kill, cancel and load both programs for long, and check that nothing is lost
    ///
    /// 1,000 outages over both carriers, with answers compared byte by byte; SIGKILL of aditd, of its
    /// commands and of adit at 1,000 moments; 10,000 cancelled answers; 10,000 devices that use one
    /// code; an hour of mixed load, after which memory and descriptors have to be what they were.
    /// The outages need root. The table goes to standard output, and as Markdown and JSON to a
    /// directory. Exit code 1 if something was lost.
    Endure(endure::Wishes),
}

fn seconds(text: &str) -> Result<f64, String> {
    let wrong = || "write a number of seconds from 0.1 to 600".to_owned();
    let seconds = text.parse().map_err(|_| wrong())?;
    if (0.1..=600.0).contains(&seconds) { Ok(seconds) } else { Err(wrong()) }
}

fn build(text: &str) -> Result<(String, PathBuf), String> {
    let wrong = || "write a name and a program: before=/tmp/adit-bench".to_owned();
    let (name, program) = text.split_once('=').ok_or_else(wrong)?;
    let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    if name.is_empty() || !plain || name.starts_with("adit") {
        return Err(
            "choose a name of letters and digits that does not begin with `adit`".to_owned()
        );
    }
    let program = std::fs::canonicalize(program).map_err(|e| format!("{program}: {e}"))?;
    Ok((name.to_owned(), program))
}

/// Runs the benchmark with these arguments, the program's name first.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args = match Args::try_parse_from(args) {
        Ok(args) => args,
        Err(e) => {
            let _ = e.print();
            return ExitCode::from(u8::try_from(e.exit_code()).unwrap_or(2));
        }
    };
    process::raise_descriptor_limit();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|e| Failure::new("cannot start").source(e));
    shown::finish(runtime.and_then(|runtime| {
        runtime.block_on(async {
            match &args.command {
                Some(Command::Instructions { accept, file }) => {
                    instructions::run(file, *accept).await
                }
                Some(Command::Floods { attacks, seconds, out }) => {
                    floods::run(&this()?, *seconds, attacks, out).await
                }
                Some(Command::Endure(wishes)) => endure::run(this()?, wishes).await,
                None => measure(args).await,
            }
        })
    }))
}

fn this() -> Result<PathBuf, Failure> {
    std::env::current_exe().map_err(|e| Failure::new("cannot find this program").source(e))
}

async fn measure(args: Args) -> Result<(), Failure> {
    let (also, others): (Vec<_>, Vec<_>) = args.also.iter().cloned().unzip();
    let wishes = Wishes {
        quick: args.quick,
        rows: args.rows.clone(),
        peers: args.peers.clone(),
        rounds: args.rounds.map(usize::from),
        also,
    };
    let plan = Plan::new(&wishes, &Machine::look())?;
    if args.list {
        return shown::data(list(&plan));
    }
    // Before anything is measured: that may take an hour.
    std::fs::create_dir_all(&args.out).map_err(|e| cannot_write(&args, e))?;
    for one in &plan.left_out {
        shown::say(format_args!("left out: {}: {}", one.what, one.why));
    }
    if cfg!(debug_assertions) {
        shown::say("this is a debug build: its numbers say nothing about a release");
    }
    shown::say(format_args!("this takes about {:.0} minutes", (plan.seconds() / 60.0).ceil()));
    let programs = [vec![this()?], others].concat();
    let mut stop =
        StopSignals::listen().map_err(|e| Failure::new("cannot listen for signals").source(e))?;
    let report = tokio::select! {
        report = run::all(plan, programs, args.seed, args.quick) => report,
        () = stop.asked() => return Err(Failure::new("stopped before the end")),
    };
    shown::data(markdown::render(&report))?;
    write(&args, &report)
}

fn list(plan: &Plan) -> String {
    let mut text = String::new();
    for entry in &plan.entries {
        let names: Vec<_> = entry.contestants.iter().map(|one| one.name.as_str()).collect();
        text += &format!(
            "{:<22} {} × {:>2.0} s  {}\n",
            entry.row.id,
            entry.rounds,
            entry.seconds,
            names.join(" ")
        );
    }
    for one in &plan.left_out {
        text += &format!("left out: {}: {}\n", one.what, one.why);
    }
    text + &format!("about {:.0} minutes", (plan.seconds() / 60.0).ceil())
}

fn cannot_write(args: &Args, e: std::io::Error) -> Failure {
    Failure::new(format!("cannot write the report to {}", args.out.display()))
        .source(e)
        .hint("choose another directory with --out")
        .exit(Exit::Failed)
}

fn write(args: &Args, report: &Report) -> Result<(), Failure> {
    let failed = |e| cannot_write(args, e);
    let write =
        |name: &str, text: String| std::fs::write(args.out.join(name), text).map_err(failed);
    write("report.md", markdown::render(report))?;
    let json =
        serde_json::to_string_pretty(report).map_err(std::io::Error::other).map_err(failed)?;
    write("report.json", json + "\n")?;
    if let Some(svg) = plot::render(report) {
        write("lateness.svg", svg)?;
    }
    shown::say(format_args!("written to {}", args.out.display()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_build_has_a_name_that_is_nobody_elses() {
        assert_eq!(build("before=/").expect("a build").0, "before");
        for wrong in ["/tmp/x", "=/", "adit=/", "adit-ssh=/", "a b=/", "before=/no/such/program"] {
            assert!(build(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_command_line_is_sound() {
        <Args as clap::CommandFactory>::command().debug_assert();
        let args = Args::try_parse_from(["adit-bench", "--quick", "--rows", "w2,veth/requests"])
            .expect("read");
        assert_eq!(args.rows, ["w2", "veth/requests"]);
        assert!(Args::try_parse_from(["adit-bench", "--rounds", "0"]).is_err());
    }
}
