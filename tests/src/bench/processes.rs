//! What the processes of a contestant use: processor time and memory, from `/proc`.

use std::{collections::BTreeSet, fs};

/// The processes of both ends, with all that they have started.
#[derive(Debug, Clone, Default)]
pub struct Processes {
    /// Processes that are counted, with all processes that they have started.
    pub roots: Vec<u32>,
    /// Processes that would run anyway: only the processes that they have started are counted.
    pub hosts: Vec<u32>,
}

impl Processes {
    /// Processor time so far, in seconds, of those that run.
    pub fn cpu_seconds(&self) -> f64 {
        let ticks: u64 =
            self.all().into_iter().filter_map(|pid| cpu_ticks(&read(pid, "stat")?)).sum();
        ticks as f64 / rustix::param::clock_ticks_per_second() as f64
    }

    /// Resident memory, in MB.
    pub fn rss_mb(&self) -> f64 {
        self.memory_mb("VmRSS:")
    }

    /// The most resident memory that each had so far, in MB.
    pub fn peak_mb(&self) -> f64 {
        self.memory_mb("VmHWM:")
    }

    fn memory_mb(&self, which: &str) -> f64 {
        let kib: u64 =
            self.all().into_iter().filter_map(|pid| kib(&read(pid, "status")?, which)).sum();
        kib as f64 * 1024.0 / 1e6
    }

    fn all(&self) -> BTreeSet<u32> {
        let mut found = BTreeSet::new();
        let mut next: Vec<u32> = self.roots.clone();
        next.extend(self.hosts.iter().flat_map(|host| children(*host)));
        while let Some(pid) = next.pop() {
            if found.insert(pid) {
                next.extend(children(pid));
            }
        }
        found
    }
}

fn read(pid: u32, file: &str) -> Option<String> {
    fs::read_to_string(format!("/proc/{pid}/{file}")).ok()
}

fn children(pid: u32) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists =
        threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists
        .flat_map(|list| {
            list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()
        })
        .collect()
}

/// The time in user and kernel mode, out of `/proc/PID/stat` (proc_pid_stat(5)).
fn cpu_ticks(stat: &str) -> Option<u64> {
    // The name of the program is in parentheses, and may have any character in it.
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ').skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

/// A line of `/proc/PID/status` (proc_pid_status(5)).
fn kib(status: &str, which: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(which))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_behind_any_name() {
        let stat = "4242 (a) b (c) S 1 4242 4242 0 -1 4194560 520 0 0 0 17 25 0 0 20 0 1 0 5 6 7";
        assert_eq!(cpu_ticks(stat), Some(42));
        assert_eq!(cpu_ticks("4242 (x"), None);
        assert_eq!(kib("Name:\tx\nVmRSS:\t    1234 kB\n", "VmRSS:"), Some(1234));
    }

    #[test]
    fn what_a_process_has_started_counts_with_it_and_a_host_does_not() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("it runs");
        let own = std::process::id();
        let both = Processes { roots: vec![own], hosts: vec![] };
        let hosted = Processes { roots: vec![], hosts: vec![own] };
        let (with, without) = (both.all(), hosted.all());
        let (more, less) = (both.rss_mb(), hosted.rss_mb());
        child.kill().and_then(|()| child.wait()).expect("ended");
        assert!(with.contains(&own) && with.contains(&child.id()));
        assert!(!without.contains(&own) && without.contains(&child.id()));
        assert!(more > less && less > 0.0, "{more} {less}");
    }
}
