//! What a running server can still do on its machine.

use serde::{Deserialize, Serialize};

use super::{BoxFound, Judgement, ok, start_again, warn};

/// The first ABI of Landlock that limits TCP ports, and the first that limits signals.
const PORTS: u8 = 4;
const SIGNALS: u8 = 6;

/// The rights that a server has given up after its start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// Whether the settings want it.
    pub on: bool,
    /// It opens only its own files.
    pub files: bool,
    /// It connects only to the TCP ports that its settings name, and binds to none.
    pub tcp_ports: bool,
    /// It sends signals only to itself.
    pub signals: bool,
    /// It makes no system calls that it has no use for.
    pub system_calls: bool,
    /// The kernel's ABI of Landlock; 0 for none.
    pub landlock_abi: u8,
    /// What has failed that this kernel could do.
    #[serde(default)]
    pub failed: Vec<String>,
}

impl Sandbox {
    /// What is in force on a kernel with this ABI of Landlock, which limits `system_calls` or not.
    pub fn of(landlock_abi: u8, system_calls: bool) -> Self {
        Self {
            on: true,
            files: landlock_abi > 0,
            tcp_ports: landlock_abi >= PORTS,
            signals: landlock_abi >= SIGNALS,
            system_calls,
            landlock_abi,
            failed: Vec::new(),
        }
    }

    /// What is limited, and what is not.
    pub fn limits(&self) -> (Vec<&'static str>, Vec<&'static str>) {
        let all = [
            ("files", self.files),
            ("TCP ports", self.tcp_ports),
            ("signals", self.signals),
            ("system calls", self.system_calls),
        ];
        let of =
            |wanted| all.into_iter().filter(move |(_, is)| *is == wanted).map(|(name, _)| name);
        (of(true).collect(), of(false).collect())
    }

    /// In words.
    pub fn sentence(&self) -> String {
        if !self.on {
            return "off (`sandbox = false` or --no-sandbox)".to_owned();
        }
        let (limited, missing) = self.limits();
        let why = match self.failed.is_empty() {
            true => "this kernel cannot limit".to_owned(),
            false => format!("{}, so nothing limits", self.failed.join("; ")),
        };
        let [limits, not] = [limited.join(", "), missing.join(", ")];
        match (limited.is_empty(), missing.is_empty()) {
            (_, true) => format!("limits {limits}"),
            (true, false) => format!("{why} {not}"),
            (false, false) => format!("limits {limits}; {why} {not}"),
        }
    }
}

pub(super) fn sandbox(found: &BoxFound) -> Option<Judgement> {
    let sandbox = found.sandbox.as_ref()?;
    let said = sandbox.sentence();
    if !sandbox.on {
        return Some(warn(said).cure_by(
            "whoever takes aditd over has all rights of its user: take `sandbox = false` out of the configuration, or --no-sandbox out of the command that starts aditd, then",
            start_again(found),
        ));
    }
    if !sandbox.failed.is_empty() {
        return Some(warn(said).cure_by(
            "a container may refuse the system calls of Landlock and seccomp, without which aditd goes on: allow them, then",
            start_again(found),
        ));
    }
    if !sandbox.files || !sandbox.system_calls {
        return Some(warn(said).cure_by(
            "Linux 5.13 and newer can do it if `landlock` is among the modules that were started (`lsm=` at boot)",
            "sudo cat /sys/kernel/security/lsm",
        ));
    }
    // Less on an older kernel: nothing that the owner has to mend.
    Some(ok(said))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_limited_and_what_is_not_is_said() {
        let failed =
            |what: &str, abi| Sandbox { failed: vec![what.to_owned()], ..Sandbox::of(abi, false) };
        for (sandbox, says) in [
            (Sandbox::of(7, true), "limits files, TCP ports, signals, system calls"),
            (
                Sandbox::of(1, true),
                "limits files, system calls; this kernel cannot limit TCP ports, signals",
            ),
            (
                Sandbox::of(0, false),
                "this kernel cannot limit files, TCP ports, signals, system calls",
            ),
            (
                failed("seccomp failed: EPERM", 7),
                "limits files, TCP ports, signals; seccomp failed: EPERM, so nothing limits system calls",
            ),
            (
                failed("cannot start the broker: EACCES", 0),
                "cannot start the broker: EACCES, so nothing limits files, TCP ports, signals, system calls",
            ),
            (Sandbox::default(), "off (`sandbox = false` or --no-sandbox)"),
        ] {
            assert_eq!(sandbox.sentence(), says);
        }
    }
}
