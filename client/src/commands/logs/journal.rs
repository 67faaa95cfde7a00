//! The journal of systemd: whether this process logs to it, and as which unit.

use std::{fs, os::unix::process::CommandExt, process::Command};

use common::machine::{log_lines, report::Failure};
use serde::{Deserialize, Serialize};

/// A unit whose log is in the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct JournalUnit {
    unit: String,
    /// Whether a user's service manager runs it, and not the system's.
    of_user: bool,
}

impl JournalUnit {
    /// The unit of this process, if its standard error is the journal.
    pub(super) fn own() -> Option<Self> {
        let stream = std::env::var("JOURNAL_STREAM").ok()?;
        let stat = rustix::fs::fstat(std::io::stderr()).ok()?;
        if stream != format!("{}:{}", stat.st_dev, stat.st_ino) {
            // The variable is inherited; standard error leads elsewhere.
            return None;
        }
        Self::in_cgroup(&fs::read_to_string("/proc/self/cgroup").ok()?)
    }

    /// The unit in the text of `/proc/self/cgroup`.
    fn in_cgroup(text: &str) -> Option<Self> {
        let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
        let is_service = |part: &&str| part.ends_with(".service");
        let mut services = path.split('/').filter(is_service);
        let unit = services.next_back()?;
        let of_user = services.any(|part| part.starts_with("user@"));
        Some(Self { unit: unit.to_owned(), of_user })
    }

    /// Becomes `journalctl`. Returns only if that fails.
    pub(super) fn show(&self, lines: usize, follow: bool) -> Failure {
        let arguments = self.arguments(lines, follow);
        let error = Command::new("journalctl").args(&arguments).exec();
        Failure::new("cannot show the journal, where the log is")
            .source(format!("journalctl: {error}"))
            .hint(format!("to see it: `journalctl {}`", arguments.join(" ")))
    }

    /// Prints what `journalctl` says as JSON.
    ///
    /// # Errors
    /// If it cannot be run, or fails.
    pub(super) fn show_as_json(&self, lines: usize, follow: bool) -> Result<(), Failure> {
        let mut command = Command::new("journalctl");
        command.args(self.arguments(lines, follow)).arg("--output=json");
        match log_lines::of_command(command, true)? {
            Some(ended) if !ended.success() => {
                Err(Failure::new("cannot show the journal, where the log is")
                    .source(format!("journalctl: {ended}")))
            }
            _ => Ok(()),
        }
    }

    fn arguments(&self, lines: usize, follow: bool) -> Vec<String> {
        let of_user = self.of_user.then(|| "--user".to_owned());
        let which = [format!("--unit={}", self.unit), format!("--lines={lines}")];
        let follow = follow.then(|| "--follow".to_owned());
        of_user.into_iter().chain(which).chain(follow).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_is_the_innermost_service() {
        for (cgroup, unit) in [
            (
                "0::/user.slice/user-1000.slice/user@1000.service/app.slice/adit.service\n",
                Some(("adit.service", true)),
            ),
            ("1:name=systemd:/x\n0::/system.slice/adit.service", Some(("adit.service", false))),
            (
                "0::/user.slice/user-1000.slice/user@1000.service/init.scope",
                Some(("user@1000.service", false)),
            ),
            ("0::/user.slice/user-1000.slice/session-2.scope", None),
            ("0::/\n", None),
            ("", None),
        ] {
            let is = JournalUnit::in_cgroup(cgroup);
            assert_eq!(is.as_ref().map(|is| (is.unit.as_str(), is.of_user)), unit, "{cgroup}");
        }
    }

    #[test]
    fn journalctl_is_asked_for_that_unit_alone() {
        let mut unit = JournalUnit { unit: "adit.service".to_owned(), of_user: true };
        assert_eq!(unit.arguments(7, false), ["--user", "--unit=adit.service", "--lines=7"]);
        unit.of_user = false;
        assert_eq!(unit.arguments(7, true), ["--unit=adit.service", "--lines=7", "--follow"]);
    }
}
