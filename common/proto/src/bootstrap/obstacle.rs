//! What stands in the way on a box, as a failure with its cure.

use crate::{
    failure::{Exit, Failure},
    human::size,
};

/// What stands in the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Obstacle {
    /// The box is not Linux.
    OtherSystem {
        /// What `uname -s` says.
        system: String,
    },
    /// The program is for another processor.
    OtherMachine {
        /// What `uname -m` says.
        machine: String,
        /// The program on this computer.
        file: String,
        /// The processor that it is for.
        has: String,
    },
    /// There is no program to upload.
    NoBinary {
        /// What `uname -m` says.
        machine: String,
        /// Why not, and what was tried.
        why: String,
    },
    /// The directory's name cannot be a part of a command for every shell.
    OddName {
        /// The directory.
        dir: String,
    },
    /// The directory can't be written.
    NotWritable {
        /// Which.
        dir: String,
        /// What the box says.
        says: String,
    },
    /// No program can be run in the directory.
    RunsNothing {
        /// Which.
        dir: String,
        /// What the box says.
        says: String,
    },
    /// The disk is too full.
    NoSpace {
        /// For which directory.
        dir: String,
        /// The free space in bytes.
        free: u64,
        /// The space that is needed, in bytes.
        needed: u64,
    },
    /// Nothing listens where Ollama was looked for.
    NoOllama {
        /// The addresses.
        tried: Vec<String>,
    },
    /// The aditd that runs is of a version that does not work with this adit.
    OtherVersion {
        /// Its version.
        runs: String,
    },
    /// There is a unit `aditd` that adit has not made.
    ForeignUnit {
        /// Its file.
        unit: String,
        /// Whether the login is root.
        is_root: bool,
    },
}

impl Obstacle {
    /// The failure for people. `to` is the login, and `again` the command that was typed, without what
    /// a cure adds to it.
    pub fn failure(&self, to: &str, again: &str) -> Failure {
        let failure = Failure::new(format!("cannot install aditd on {to}"));
        const BY_HAND: &str =
            "or install aditd there by hand, start it with `aditd serve`, and run";
        let enroll = format!("{BY_HAND} `adit enroll {to}`");
        match self {
            Self::OtherSystem { system } => failure
                .source(format!("it runs {system}, and adit can install aditd only on Linux"))
                .hint(format!("install aditd there by hand, start it with `aditd serve`, and run `adit enroll {to}`")),
            Self::OtherMachine { machine, file, has } => failure
                .source(format!("it is a machine of the kind {machine}, and `{file}` is a program for {has}"))
                .hint(format!("name an aditd for {machine}: `{again} --server-binary FILE`"))
                .hint(enroll)
                .exit(Exit::Usage),
            Self::NoBinary { machine, why } => failure
                .source(why.clone())
                .hint(format!("name an aditd for Linux on {machine}: `{again} --server-binary FILE`"))
                .hint(enroll)
                .exit(Exit::Usage),
            Self::OddName { dir } => failure
                .source(format!("the name of `{dir}` has characters that shells read in different ways"))
                .hint(format!("name a directory with letters, digits, `.`, `_` and `-`: `{again} --remote-dir /var/tmp/adit`")),
            Self::NotWritable { dir, says } => failure
                .source(format!("the login can write no file for `{dir}`: {says}"))
                .hint(format!("name a directory that it can write: `{again} --remote-dir DIR`")),
            Self::RunsNothing { dir, says } => failure
                .source(format!("no program can be run for `{dir}`, which may be mounted with `noexec`: {says}"))
                .hint(format!("name a directory where programs run: `{again} --remote-dir /var/tmp/adit`")),
            Self::NoSpace { dir, free, needed } => failure
                .source(format!(
                    "`{dir}` has {} left, and aditd needs {}",
                    size(*free),
                    size(*needed)
                ))
                .hint(format!("free space there, or name a directory on another disk: `{again} --remote-dir DIR`")),
            Self::NoOllama { tried } => failure
                .source(format!("no Ollama runs there: nothing listens on {}", tried.join(" or ")))
                .hint("start it there: `ollama serve`, or `sudo systemctl start ollama` if it is a service")
                .hint(format!("if it listens on another port: `{again} --upstream http://127.0.0.1:PORT`")),
            Self::OtherVersion { runs } => Failure::new(format!("cannot use the aditd on {to}"))
                .source(format!("it is aditd {runs}, which does not work with this adit"))
                .hint(format!("install adit {runs} here, or stop that aditd and run `{again}` again")),
            Self::ForeignUnit { unit, is_root } => {
                let start = if *is_root { "systemctl start aditd" } else { "systemctl --user start aditd" };
                failure
                    .source(format!("there is a unit `{unit}` already, which adit has not made, and it does not run"))
                    .hint(format!("start it there (`{start}`), or remove that file, and run `{again}` again"))
            }
        }
    }
}
