//! Measures the carriers, and what a change of carrier costs a running answer: UDP and SSH through
//! `adit`, `ssh -L` to the same sshd, and no tunnel, all in the same run.
//!
//! `cargo bench -p adit-tests --bench carriers`. Needs OpenSSH's server and client.

#![allow(missing_docs)]

use std::{
    net::SocketAddr,
    process::Stdio,
    time::{Duration, Instant},
};

use tests::{
    load::{connections, download, quantile, requests, serve, tokens, upload},
    raw::{self, Upstream},
    sshd::Sshd,
    udp_or_ssh::Crossroads,
    world::{SOON, Up},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::{Child, Command},
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
        costs().await;
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
    let median = |i: usize| quantile(&mut took.iter().map(|t| t[i]).collect::<Vec<_>>(), 0.5);
    println!(
        "first command to: enrolled {:.0} ms, tunnel up {:.0} ms, first token {:.0} ms",
        median(0),
        median(1),
        median(2)
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
        let (median, worst) = (quantile(&mut gaps, 0.5), quantile(&mut gaps, 1.0));
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

/// Latency and throughput, each way in turn.
async fn costs() {
    let upstream = Upstream::start().await;
    let direct: SocketAddr =
        upstream.flag("tcp").trim_start_matches("tcp://").parse().expect("an address");
    let crossroads = Crossroads::new(PROGRAM, &["--upstream", &upstream.flag("tcp")]).await;
    tokio::spawn(serve(upstream));
    let (forwarded, _ssh) = forward(&crossroads.sshd, direct).await;
    let mut ways: [[Vec<f64>; 5]; 4] = Default::default();
    for _ in 0..ROUNDS {
        for (way, [kept, fresh, late, down, up_bulk]) in ways.iter_mut().enumerate() {
            // A device has one session, so the carriers take turns.
            let up = match way {
                2 => Some(crossroads.up(&["--carrier", "ssh"]).await),
                3 => Some(crossroads.up(&["--carrier", "udp"]).await),
                _ => None,
            };
            let to = up.as_ref().map_or(if way == 0 { direct } else { forwarded }, |up| up.address);
            kept.extend(requests(to, 1000).await);
            fresh.extend(connections(to, 200).await);
            late.extend(tokens(to, 16).await);
            down.push(download(to).await);
            up_bulk.push(upload(to).await);
        }
    }
    println!(
        "{:<34} {:>10} {:>10} {:>10} {:>10}",
        "", "direct", "ssh -L", "adit, ssh", "adit, udp"
    );
    let rows = [
        ("small request, p50, µs", 0, 0.5),
        ("new connection, p50, µs", 1, 0.5),
        ("16 token streams, p50 late, µs", 2, 0.5),
        ("16 token streams, p99 late, µs", 2, 0.99),
        ("download, MB/s", 3, 0.5),
        ("upload, MB/s", 4, 0.5),
    ];
    for (name, row, q) in rows {
        let [a, b, c, d] = [0, 1, 2, 3].map(|way| quantile(&mut ways[way][row], q));
        println!("{name:<34} {a:>10.0} {b:>10.0} {c:>10.0} {d:>10.0}");
    }
}

/// `ssh -L` to the same sshd.
async fn forward(sshd: &Sshd, to: SocketAddr) -> (SocketAddr, Child) {
    let free =
        std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port");
    let mut command = Command::new(&sshd.ssh);
    let url = sshd.url.clone();
    command.args(["-N", "-o", "ExitOnForwardFailure=yes", "-L", &format!("{free}:{to}"), &url]);
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .spawn();
    let listens = async {
        while TcpStream::connect(free).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, listens).await.expect("ssh -L listens");
    (free, child.expect("ssh starts"))
}
