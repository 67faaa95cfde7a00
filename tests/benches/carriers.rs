//! How long the first answer over SSH takes from the first command on, and what a change of carrier
//! costs a running answer.
//!
//! `cargo bench -p adit-tests --bench carriers`. Needs OpenSSH's server and client.

#![allow(missing_docs)]

use std::time::{Duration, Instant};

use tests::{
    raw,
    sshd::Sshd,
    stats::median,
    udp_or_ssh::Crossroads,
    world::{SOON, Up},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_adit-demo");
const ROUNDS: usize = 3;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        if !Sshd::is_there() {
            return println!("there is no OpenSSH server and client here: nothing to measure");
        }
        common::machine::process::raise_descriptor_limit();
        from_the_first_command().await;
        changes().await;
    });
}

/// From the first command on a new laptop to the first token.
async fn from_the_first_command() {
    let mut took = Vec::new();
    for _ in 0..ROUNDS {
        // The device's UDP route is not needed here.
        let mut crossroads = Crossroads::new(PROGRAM, &[]).await;
        crossroads.device = crossroads.world.stranger("newcomer");
        let began = Instant::now();
        let enrolled =
            crossroads.command(&["enroll", &crossroads.sshd.url, "--device", "newcomer"]).output();
        assert!(enrolled.await.is_ok_and(|out| out.status.success()));
        let enrolled = began.elapsed();
        let up = crossroads.up(&[]).await;
        let ready = began.elapsed();
        let mut app = answer(&up, 1).await;
        raw::read_exactly(&mut app, 1).await;
        took.push([enrolled, ready, began.elapsed()].map(|t| t.as_secs_f64() * 1e3));
    }
    let [enrolled, up, token] =
        [0, 1, 2].map(|at| median(&took.iter().map(|t| t[at]).collect::<Vec<_>>()).unwrap_or(0.0));
    println!(
        "first command to: enrolled {enrolled:.0} ms, tunnel up {up:.0} ms, first token {token:.0} ms"
    );
}

/// The largest gap in an answer of 20 tokens a second, in ms.
async fn changes() {
    for (what, flags) in [
        ("ssh dies", ["--carrier", "ssh"]),
        ("UDP appears", ["--carrier", "auto"]),
        ("UDP is blocked", ["--carrier", "auto"]),
    ] {
        let mut gaps = Vec::new();
        for _ in 0..ROUNDS {
            let mut crossroads = Crossroads::new(PROGRAM, &[]).await;
            if what == "UDP appears" {
                crossroads.path.cut();
            }
            let mut up = crossroads.up(&flags).await;
            let mut app = answer(&up, 20_000).await;
            raw::read_exactly(&mut app, 2000).await;
            let watched = tokio::spawn(largest_gap(app, Duration::from_secs(12)));
            match what {
                "ssh dies" => {
                    crossroads.sshd.kill();
                    crossroads.sshd.restart().await;
                }
                "UDP appears" => {
                    crossroads.path.mend();
                    up.adit.says("goes over UDP now").await;
                }
                _ => {
                    crossroads.path.cut();
                    up.adit.says("goes over SSH now").await;
                }
            }
            gaps.push(watched.await.expect("no panic"));
        }
        let worst = gaps.iter().copied().fold(0.0, f64::max);
        let median = median(&gaps).unwrap_or(0.0);
        println!(
            "largest gap at 50 ms a token when {what:<15} median {median:>6.0} ms, worst {worst:>6.0} ms"
        );
    }
}

async fn answer(up: &Up, tokens: i64) -> TcpStream {
    let mut app = raw::connect(up.address).await;
    app.write_all(raw::generate(tokens, 3).as_bytes()).await.expect("sent");
    app
}

async fn largest_gap(mut app: TcpStream, during: Duration) -> f64 {
    let (began, mut last, mut largest) = (Instant::now(), Instant::now(), Duration::ZERO);
    let mut block = [0; 65_536];
    while began.elapsed() < during {
        let read = tokio::time::timeout(SOON, app.read(&mut block))
            .await
            .expect("in time")
            .expect("it goes on");
        assert!(read > 0, "an answer was cut");
        largest = largest.max(last.elapsed());
        last = Instant::now();
    }
    largest.as_secs_f64() * 1e3
}
