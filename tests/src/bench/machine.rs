//! The equipment of this machine, and how quiet it is.

use std::{fs, path::Path, time::Instant};

use proto::crypto::sha256;
use serde::Serialize;

use super::{contestant::Peer, plan::Machine, row::Congestion};
use crate::{
    lab::Lab,
    sshd::Sshd,
    stats::{median, quantile},
};

/// A few milliseconds of work.
const WORK: usize = 4 << 20;

impl Machine {
    /// Examines this machine.
    pub fn look() -> Self {
        let ssh = (!Sshd::is_there()).then(|| {
            "there is no OpenSSH server and client: `apt install openssh-server`".to_owned()
        });
        let missing = Peer::ALL.into_iter().filter_map(|peer| {
            let program = peer.programs().iter().find(|program| !is_on_path(program))?;
            Some((peer, *program))
        });
        Self {
            no_lab: Lab::what_is_missing().map(str::to_owned),
            no_ssh: ssh,
            bbr: has_congestion_control(Congestion::Bbr),
            missing: missing.collect(),
        }
    }
}

fn is_on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

fn has_congestion_control(which: Congestion) -> bool {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
    socket.and_then(|socket| socket.set_tcp_congestion(which.name().as_bytes())).is_ok()
}

/// Measures how quiet the machine is while the benchmark runs.
pub struct Watch {
    load: f64,
    stolen: Option<(u64, u64)>,
    work: Vec<f64>,
}

/// How quiet the machine was.
#[derive(Debug, Clone, Serialize)]
pub struct Quiet {
    /// Logical processors.
    pub processors: usize,
    /// The kernel's release.
    pub kernel: String,
    /// The load average of the minute before the benchmark began.
    pub load_before: f64,
    /// The part of the processors' time that the hypervisor gave to other machines, from 0 to 1.
    pub stolen: Option<f64>,
    /// How long the same piece of work took between measurements, in ms: the median.
    pub work_ms: f64,
    /// The same: the slowest tenth took at least this long, in ms.
    pub work_p90_ms: f64,
}

impl Watch {
    /// Begins to measure.
    pub fn new() -> Self {
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let load = load.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(0.0);
        Self { load, stolen: stolen(), work: Vec::new() }
    }

    /// Does a fixed piece of work and records how long it took.
    pub fn work(&mut self) {
        let bytes = vec![7; WORK];
        let began = Instant::now();
        std::hint::black_box(sha256(std::hint::black_box(&bytes)));
        self.work.push(began.elapsed().as_secs_f64() * 1e3);
    }

    /// Ends the measurement and returns its result.
    pub fn quiet(mut self) -> Quiet {
        let stolen = self
            .stolen
            .zip(stolen())
            .map(|(before, now)| (now.0 - before.0) as f64 / (now.1 - before.1).max(1) as f64);
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Quiet {
            processors: std::thread::available_parallelism().map_or(1, Into::into),
            kernel: kernel.trim().to_owned(),
            load_before: self.load,
            stolen,
            work_ms: median(&self.work).unwrap_or(0.0),
            work_p90_ms: quantile(&mut self.work, 0.9).unwrap_or(0.0),
        }
    }
}

impl Default for Watch {
    fn default() -> Self {
        Self::new()
    }
}

/// The processors' time that was stolen, and all of it, in ticks (proc_stat(5)).
fn stolen() -> Option<(u64, u64)> {
    let stat = fs::read_to_string(Path::new("/proc/stat")).ok()?;
    let fields = stat.lines().next()?.split_whitespace().skip(1);
    let ticks: Vec<u64> = fields.map_while(|field| field.parse().ok()).take(8).collect();
    Some((*ticks.get(7)?, ticks.iter().sum()))
}
