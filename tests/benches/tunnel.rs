//! Measures the cost of the tunnel: every row directly and through real `aditd` and `adit`
//! processes, alternately, in the same run.
//!
//! `cargo bench -p adit-tests --bench tunnel`. Absolute numbers depend on the machine; the
//! differences and ratios count.

#![allow(missing_docs)]

use std::net::SocketAddr;

use tests::{
    load::{ask, connections, download, quantile, requests, serve, tokens, upload},
    ollama::Options,
    raw::{self, Upstream},
    world::World,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_adit-demo");
const ROUNDS: usize = 3;
const IDLE: usize = 1000;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(run());
}

async fn run() {
    common::machine::process::raise_descriptor_limit();
    let upstream = Upstream::start().await;
    let direct: SocketAddr =
        upstream.flag("tcp").trim_start_matches("tcp://").parse().expect("an address");
    let world =
        World::start_with(PROGRAM, Options::default(), &["--upstream", &upstream.flag("tcp")])
            .await;
    tokio::spawn(serve(upstream));
    let up = world.up("bench").await;
    let ways = [("direct", direct), ("adit", up.address)];

    println!("{:<44} {:>12} {:>12} {:>12}", "", "direct", "adit", "");
    let mut kept = Pair::default();
    let mut fresh = Pair::default();
    let (mut few, mut many) = (Pair::default(), Pair::default());
    let (mut down, mut up_bulk) = (Pair::default(), Pair::default());
    for _ in 0..ROUNDS {
        for (i, (_, to)) in ways.iter().enumerate() {
            kept.0[i].extend(requests(*to, 2000).await);
            fresh.0[i].extend(connections(*to, 500).await);
            few.0[i].extend(tokens(*to, 16).await);
            many.0[i].extend(tokens(*to, 256).await);
            down.0[i].push(download(*to).await);
            up_bulk.0[i].push(upload(*to).await);
        }
    }
    kept.print("small request, kept connection", "µs");
    fresh.print("new connection and request", "µs");
    few.print("token lateness, 16 streams", "µs");
    many.print("token lateness, 256 streams", "µs");
    down.print_median("download", "MB/s");
    up_bulk.print_median("upload", "MB/s");
    memory(&world, up).await;
}

/// Samples of both ways.
#[derive(Default)]
struct Pair([Vec<f64>; 2]);

impl Pair {
    fn print(&mut self, what: &str, unit: &str) {
        for (name, q) in [("p50", 0.5), ("p99", 0.99)] {
            let [direct, adit] = [0, 1].map(|i| quantile(&mut self.0[i], q));
            println!(
                "{:<44} {direct:>12.0} {adit:>12.0} {:>+9.0} {unit}",
                format!("{what}, {name}"),
                adit - direct
            );
        }
    }

    fn print_median(&mut self, what: &str, unit: &str) {
        let [direct, adit] = [0, 1].map(|i| quantile(&mut self.0[i], 0.5));
        println!("{what:<44} {direct:>12.0} {adit:>12.0} {:>8.2} × {unit}", adit / direct);
    }
}

async fn memory(world: &World, up: tests::world::Up) {
    let before = (world.aditd.rss(), up.adit.rss());
    let mut idle = Vec::new();
    for _ in 0..IDLE {
        let mut tcp = raw::connect(up.address).await;
        ask(&mut tcp).await;
        idle.push(tcp);
    }
    let after = (world.aditd.rss(), up.adit.rss());
    let each = |before: u64, after: u64| (after.saturating_sub(before)) as f64 / IDLE as f64;
    println!("resident memory now, server and client: {} and {} KiB", before.0, before.1);
    println!("… with {IDLE} idle connections:         {} and {} KiB", after.0, after.1);
    println!(
        "each idle connection:                   {:.1} and {:.1} KiB",
        each(before.0, after.0),
        each(before.1, after.1)
    );
}
