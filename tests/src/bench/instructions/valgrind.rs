//! Programs under valgrind, whose instructions can be counted from one moment to another.

use std::{
    io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Stdio,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

use tokio::process::Command;

use crate::state_files::chmod;

/// Much longer than any order takes.
const OBEYS_WITHIN: Duration = Duration::from_secs(60);

/// Whether it is installed, with what gives it orders.
pub(super) fn is_there() -> bool {
    let runs = |program: &str, flag: &str| {
        let output = std::process::Command::new(program).arg(flag).output();
        output.is_ok()
    };
    runs("valgrind", "--version") && runs("vgdb", "--help")
}

/// Makes a program in `dir` that is `adit` or `aditd` by its name, as `this` is, and runs under
/// valgrind if it is to run for long.
pub(super) fn wrap(this: &Path, dir: &Path) -> io::Result<PathBuf> {
    let (real, script) = (dir.join("real"), dir.join("counted"));
    std::fs::create_dir(&real)?;
    for name in ["adit", "aditd"] {
        symlink(this, real.join(name))?;
    }
    // Nothing is counted before it is asked for: starting would take long. Valgrind itself makes calls
    // that a server in its sandbox may not make.
    let text = format!(
        "#!/bin/sh\nname=$(basename \"$0\")\n[ \"$1\" = serve ] && set -- \"$@\" --no-sandbox\ncase \"$1\" in\n\
         serve|up) exec valgrind -q --tool=callgrind --instr-atstart=no --callgrind-out-file='{dir}'/\"$name\".out '{real}'/\"$name\" \"$@\" ;;\n\
         *) exec '{real}'/\"$name\" \"$@\" ;;\nesac\n",
        dir = dir.display(),
        real = real.display(),
    );
    std::fs::write(&script, text)?;
    chmod(&script, 0o700);
    Ok(script)
}

/// A running program whose instructions are counted.
pub(super) struct Counted {
    pid: u32,
    out: PathBuf,
    dumps: AtomicUsize,
}

impl Counted {
    /// The process `pid`, started by what [`wrap`] made in `dir`, as `name`.
    pub(super) fn new(pid: u32, dir: &Path, name: &str) -> Self {
        Self { pid, out: dir.join(format!("{name}.out")), dumps: AtomicUsize::new(0) }
    }

    /// Begins to count.
    pub(super) async fn begin(&self) -> io::Result<()> {
        self.order(&["instrumentation", "on"]).await
    }

    /// Forgets what was counted.
    pub(super) async fn zero(&self) -> io::Result<()> {
        self.order(&["zero"]).await
    }

    /// How many there were since the last [`Counted::zero`].
    pub(super) async fn dump(&self) -> io::Result<u64> {
        let number = self.dumps.fetch_add(1, Relaxed) + 1;
        self.order(&["dump"]).await?;
        let file = format!("{}.{number}", self.out.display());
        let written = async {
            loop {
                // It is written while the program goes on.
                if let Some(total) = std::fs::read_to_string(&file).ok().as_deref().and_then(total)
                {
                    return total;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        Ok(tokio::time::timeout(OBEYS_WITHIN, written).await?)
    }

    async fn order(&self, order: &[&str]) -> io::Result<()> {
        let mut command = Command::new("vgdb");
        command
            .arg(format!("--pid={}", self.pid))
            .args(order)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let output = tokio::time::timeout(OBEYS_WITHIN, command.output()).await??;
        match output.status.success() {
            true => Ok(()),
            false => Err(io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned())),
        }
    }
}

/// The last line of a dump that is whole.
fn total(dump: &str) -> Option<u64> {
    let line = dump.lines().rfind(|line| !line.is_empty())?;
    line.strip_prefix("totals:")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dump_counts_when_it_is_whole() {
        assert_eq!(total("events: Ir\nfn=(1) x\n1 5\n\ntotals: 162461\n"), Some(162_461));
        assert_eq!(total("events: Ir\nfn=(1) x\n1 5\n"), None);
        assert_eq!(total(""), None);
    }
}
