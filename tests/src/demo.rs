//! The demo: a server, a device, an answer through the tunnel, what the tunnel costs, and the
//! revocation of the device. Real processes, one command.

mod http;
mod measure;
mod revocation;
mod screen;
mod source;
mod stage;

use std::{ffi::OsString, net::SocketAddr, process::ExitCode, time::Duration};

use clap::Parser;
use common::machine::{
    process::StopSignals,
    report::{self, Failure},
};
use serde_json::Value;
use tokio::signal::unix::{Signal, SignalKind, signal};

use self::{
    http::Answer,
    screen::{At, Screen},
    source::Source,
    stage::{DEVICE, Stage},
};

/// Show Adit at work on this machine: enroll a device, ask Ollama through the tunnel, measure,
/// revoke
///
/// It needs no root, and no Ollama: without one a stand-in answers. It runs real `aditd` and `adit`
/// processes in a temporary directory on free loopback ports, and leaves nothing behind. The exit
/// code is 0 only if everything held.
#[derive(Debug, Parser)]
#[command(name = "adit-demo", version)]
struct Args {
    /// Leave everything running before the revocation, until Ctrl-C
    #[arg(long)]
    keep: bool,
    /// Ask this Ollama, which has to be on loopback [default: 127.0.0.1:11434 if one answers there,
    /// else a stand-in]
    #[arg(long, value_name = "ADDR", conflicts_with = "stand_in", value_parser = source::address)]
    ollama: Option<SocketAddr>,
    /// Ask the stand-in even if there is an Ollama
    #[arg(long)]
    stand_in: bool,
}

/// Runs the demo with these arguments; the first is the program's name.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args = match Args::try_parse_from(args) {
        Ok(args) => args,
        Err(e) => {
            let _ = e.print();
            return ExitCode::from(u8::try_from(e.exit_code()).unwrap_or(2));
        }
    };
    // The stand-in gets a thread of its own, because a real Ollama is a process of its own.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|e| Failure::new("cannot start").source(e));
    report::finish(runtime.and_then(|runtime| runtime.block_on(demo(args))))
}

/// Runs the demo, and cleans up however it ended.
async fn demo(args: Args) -> Result<(), Failure> {
    let mut orders =
        Orders::listen().map_err(|e| Failure::new("cannot listen for signals").source(e))?;
    let screen = Screen::new();
    let mut stage = Stage::new()?;
    let dir = stage.dir().display().to_string();
    let mut played = play(&args, &mut stage, &mut orders, &screen).await;
    if played.is_err() {
        // A process that was interrupted may look like a failure.
        let died = tokio::time::timeout(Duration::from_millis(100), stage.died()).await;
        played = died.map_or(played, Err);
    }
    let cleared = stage.clear().await;
    let held = if played.is_ok() && !args.keep { "All of it held. " } else { "" };
    if cleared.is_ok() {
        screen.talk(format_args!("\n{held}Nothing is left running, and {dir} is gone."));
    }
    played.and(cleared)
}

async fn play(
    args: &Args,
    stage: &mut Stage,
    orders: &mut Orders,
    screen: &Screen,
) -> Result<(), Failure> {
    let (source, tunnel) = unless_stopped(orders, up_to_the_answer(args, stage, screen)).await?;
    if args.keep {
        return keep(stage, orders, &source, tunnel, screen).await;
    }
    screen.heading("The end of the device, in the middle of an answer");
    unless_stopped(orders, revocation::run(stage, &source, tunnel, screen)).await
}

/// All steps before the revocation. Returns who answers, and the tunnel's local address.
async fn up_to_the_answer(
    args: &Args,
    stage: &mut Stage,
    screen: &Screen,
) -> Result<(Source, SocketAddr), Failure> {
    screen.talk(format_args!(
        "Adit from an invitation to a revocation, with a server and a laptop that are both this machine.\n\
         Their state is in {}, which is gone afterwards. The commands are those that\n\
         you would type; flags that keep them away from your own ports and state are left out.",
        stage.dir().display()
    ));
    screen.heading("Ollama");
    let source = Source::choose(args.ollama, args.stand_in, screen).await?;

    screen.heading("The server, beside Ollama");
    screen.command(At::Server, "aditd serve");
    let udp = stage.serve(source.address).await?;
    screen.talk(format_args!(
        "It listens on {udp} (UDP), forwards to {} and to nothing else, and is silent to strangers.",
        source.address
    ));

    screen.heading("The laptop, by invitation");
    screen.command(At::Server, &format!("aditd invite {DEVICE}"));
    let invited = stage.aditd(&["invite", DEVICE]).await?;
    screen.output(&invited.stdout);
    screen.output(&invited.stderr);
    screen.command(At::Laptop, "adit enroll     # reads the code from its standard input");
    let enrolled = stage.adit(&["enroll"], &invited.stdout).await?;
    screen.output(&enrolled.stderr);
    screen.command(At::Laptop, "adit up");
    let tunnel = stage.up().await?;
    screen.talk(format_args!(
        "The tunnel is up: here Ollama is on http://{tunnel}, so that port 11434 stays as it is."
    ));

    screen.heading("An answer through the tunnel");
    let question = source.question();
    screen.command(At::Laptop, &curl(tunnel, &question));
    screen.piece("  ");
    let answered = Answer::ask(tunnel, &question).await?.whole(|token| screen.piece(token)).await;
    screen.talk("");
    answered?;

    screen.heading("What the tunnel costs");
    measure::run(&source, tunnel, screen).await?;
    Ok((source, tunnel))
}

/// Leaves the demo to the person at the terminal.
async fn keep(
    stage: &mut Stage,
    orders: &mut Orders,
    source: &Source,
    tunnel: SocketAddr,
    screen: &Screen,
) -> Result<(), Failure> {
    let aditd = stage.dir().join("aditd");
    let flags = stage.server_flags().join(" ");
    screen.heading("Yours until Ctrl-C");
    screen.talk(format_args!(
        "Ask through the tunnel:\n  {}\nEnd the laptop's access while it answers:\n  {} device revoke {DEVICE} {flags}",
        curl(tunnel, &source.question()),
        aditd.display()
    ));
    tokio::select! {
        () = orders.asked() => Ok(()),
        failure = stage.died() => Err(failure),
    }
}

/// The curl command for the same question.
fn curl(address: SocketAddr, question: &Value) -> String {
    format!("curl -N http://{address}/api/generate -d '{question}'")
}

/// The signals that end the demo early: Ctrl-C, SIGTERM, or a closed terminal.
struct Orders {
    stop: StopSignals,
    hangup: Signal,
}

impl Orders {
    fn listen() -> std::io::Result<Self> {
        Ok(Self { stop: StopSignals::listen()?, hangup: signal(SignalKind::hangup())? })
    }

    /// Waits for one of them.
    ///
    /// # Cancel safety
    /// Cancel safe.
    async fn asked(&mut self) {
        tokio::select! {
            () = self.stop.asked() => {}
            _ = self.hangup.recv() => {}
        }
    }
}

async fn unless_stopped<T>(
    orders: &mut Orders,
    part: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    tokio::select! {
        // First: Ctrl-C also reaches a running command, whose failure is not the cause.
        biased;
        () = orders.asked() => Err(Failure::new("stopped before the end")),
        done = part => done,
    }
}
