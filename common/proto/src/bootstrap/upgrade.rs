//! How `adit upgrade` replaces the aditd that adit has installed on a box: what was found there becomes
//! a plan, or the obstacle and its cure.

use super::{Binary, Found, ROOM, text::short};
use crate::{
    failure::{Exit, Failure},
    human::size,
};

/// What an upgrade does on a box.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upgrade {
    /// The program runs there already.
    Nothing {
        /// Its version.
        version: String,
    },
    /// Another program replaces the one that runs.
    Replace(Replace),
}

/// How a program replaces the one that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replace {
    /// The directory for the program and what belongs to it.
    pub dir: String,
    /// The directory of the state.
    pub state: String,
    /// The SHA-256 of the program in hexadecimal.
    pub sha256: String,
    /// How many bytes are uploaded, unless the program is there already.
    pub upload: Option<u64>,
    /// The version of the program.
    pub version: String,
    /// What keeps aditd running there: `system`, `user` or `process`.
    pub service: String,
    from: String,
}

/// What stands in the way of an upgrade.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UpgradeObstacle {
    /// No aditd runs there that answers this login.
    NotRunning,
    /// adit has not installed the aditd that runs there.
    NotOurs {
        /// The version of that one.
        runs: String,
    },
    /// There is no program to upload.
    NoBinary {
        /// What `uname -m` says.
        machine: String,
        /// Why not, and what was tried.
        why: String,
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
    /// The directory can't be written.
    NotWritable {
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
}

impl Upgrade {
    /// Decides what is done on a box where this was found. `version` is that of `binary`; the error of
    /// `binary` says why there is none.
    ///
    /// # Errors
    /// What stands in the way.
    pub fn new(
        found: &Found,
        version: &str,
        binary: &Result<Binary, String>,
    ) -> Result<Self, UpgradeObstacle> {
        let Some(running) = &found.running else { return Err(UpgradeObstacle::NotRunning) };
        let Some(service) = &found.installed else {
            return Err(UpgradeObstacle::NotOurs { runs: running.version.clone() });
        };
        let machine = found.machine.clone();
        let binary = match binary {
            Ok(binary) if binary.machine.runs_on(&found.machine) => binary,
            Ok(Binary { file, machine: has, .. }) => {
                let (file, has) = (file.clone(), has.name());
                return Err(UpgradeObstacle::OtherMachine { machine, file, has });
            }
            Err(why) => return Err(UpgradeObstacle::NoBinary { machine, why: why.clone() }),
        };
        if found.present && found.linked && running.version == version {
            return Ok(Self::Nothing { version: version.to_owned() });
        }
        let dir = || found.dir.clone();
        if let Err(says) = &found.writable {
            return Err(UpgradeObstacle::NotWritable { dir: dir(), says: says.clone() });
        }
        let needed = if found.present { 0 } else { binary.len } + ROOM;
        if let Some(free) = found.free.filter(|free| *free < needed) {
            return Err(UpgradeObstacle::NoSpace { dir: dir(), free, needed });
        }
        Ok(Self::Replace(Replace {
            dir: dir(),
            state: found.state.clone(),
            sha256: binary.sha256.clone(),
            upload: (!found.present).then_some(binary.len),
            version: version.to_owned(),
            service: service.clone(),
            from: running.version.clone(),
        }))
    }

    /// The plan as text.
    pub fn text(&self, to: &str) -> String {
        match self {
            Self::Nothing { version } => {
                format!("This aditd {version} runs on {to} already: nothing is done there.")
            }
            Self::Replace(replace) => {
                let Replace { version, from, dir, sha256, .. } = replace;
                let program = short(dir, sha256);
                let upload = match replace.upload {
                    Some(len) => format!("upload aditd {version} ({}) to {program}", size(len)),
                    None => format!("use the aditd {version} in {program}, which is there already"),
                };
                format!(
                    "On {to}, adit will\n  1. {upload}\n  \
                     2. let it replace aditd {from}, which runs there: running answers go on to their end in that one, and new requests go to the new one\n  \
                     3. remove the program of aditd {from}\n\
                     Nothing else is changed: the settings, the state and the enrolled devices stay."
                )
            }
        }
    }
}

impl UpgradeObstacle {
    /// The failure for people. `to` is the login, and `again` the command that was typed, without what
    /// a cure adds to it.
    pub fn failure(&self, to: &str, again: &str) -> Failure {
        let failure = Failure::new(format!("cannot upgrade aditd on {to}"));
        match self {
            Self::NotRunning => failure
                .source("no aditd runs there that answers this login")
                .hint(format!("to install and start it: `adit up {to}`")),
            Self::NotOurs { runs } => failure
                .source(format!("adit has not installed the aditd {runs} that runs there"))
                .hint("upgrade it there as it was installed, for example by its package; running answers go on if you then run `aditd replace` there"),
            Self::NoBinary { machine, why } => failure
                .source(why.clone())
                .hint(format!("name an aditd for Linux on {machine}: `{again} --server-binary FILE`"))
                .exit(Exit::Usage),
            Self::OtherMachine { machine, file, has } => failure
                .source(format!("it is a machine of the kind {machine}, and `{file}` is a program for {has}"))
                .hint(format!("name an aditd for {machine}: `{again} --server-binary FILE`"))
                .exit(Exit::Usage),
            Self::NotWritable { dir, says } => failure
                .source(format!("the login can write no file for `{dir}`: {says}"))
                .hint("log in as the user who has installed it"),
            Self::NoSpace { dir, free, needed } => failure
                .source(format!(
                    "`{dir}` has {} left, and the new aditd needs {}",
                    size(*free),
                    size(*needed)
                ))
                .hint(format!("free space there, and run `{again}` again")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{X86, found, machine},
        *,
    };

    const RUNS: &str = "program=aditd\nstatus={\"version\":\"0.1.0\",\"upstream\":\"http://127.0.0.1:1\"}\ninstalled=user";

    fn binary() -> Result<Binary, String> {
        let (file, sha256) = ("/usr/bin/aditd".to_owned(), "ab".repeat(32));
        Ok(Binary { file, machine: machine(X86), len: 10 << 20, sha256 })
    }

    fn planned(lines: &str) -> Result<Upgrade, UpgradeObstacle> {
        Upgrade::new(&found(&format!("{RUNS}\n{lines}")), "0.2.0", &binary())
    }

    #[test]
    fn what_runs_is_replaced_and_the_plan_says_what_becomes_of_its_answers() {
        let Ok(plan @ Upgrade::Replace(_)) = planned("") else { panic!("a plan") };
        assert_eq!(
            plan.text("me@gpu"),
            "On me@gpu, adit will\n  \
             1. upload aditd 0.2.0 (10 MiB) to /home/me/.local/share/adit/bin/abababababab…/aditd\n  \
             2. let it replace aditd 0.1.0, which runs there: running answers go on to their end in that one, and new requests go to the new one\n  \
             3. remove the program of aditd 0.1.0\n\
             Nothing else is changed: the settings, the state and the enrolled devices stay."
        );
        // It is there, and does not run.
        let Ok(Upgrade::Replace(replace)) = planned("present=yes\nlinked=yes\nfree_kib=9000")
        else {
            panic!("a plan")
        };
        assert_eq!((replace.upload, &*replace.service), (None, "user"));
    }

    #[test]
    fn the_program_that_runs_is_left_alone() {
        let found = found(&format!("{RUNS}\npresent=yes\nlinked=yes"));
        let plan = Upgrade::new(&found, "0.1.0", &binary()).expect("a plan");
        assert_eq!(plan, Upgrade::Nothing { version: "0.1.0".to_owned() });
        assert!(plan.text("me@gpu").contains("nothing is done"));
    }

    #[test]
    fn each_obstacle_is_named_with_its_cure() {
        let none = || Err("there is no aditd beside adit".to_owned());
        for (lines, binary, cause, cure) in [
            ("status=", binary(), "no aditd runs there", "`adit up me@gpu`"),
            ("installed=", binary(), "has not installed the aditd 0.1.0", "`aditd replace`"),
            (
                "",
                none(),
                "no aditd beside adit",
                "x86_64: `adit upgrade me@gpu --server-binary FILE`",
            ),
            ("machine=aarch64", binary(), "program for x86_64", "an aditd for aarch64"),
            ("writable=Read-only file system", binary(), "Read-only", "who has installed it"),
            ("free_kib=1024", binary(), "1 MiB left, and the new aditd needs 18 MiB", "free space"),
        ] {
            let runs: Vec<_> = RUNS.lines().filter(|line| !lines.starts_with(&line[..5])).collect();
            let found = found(&format!("{}\n{lines}", runs.join("\n")));
            let obstacle = Upgrade::new(&found, "0.2.0", &binary).expect_err(cause);
            let failure = obstacle.failure("me@gpu", "adit upgrade me@gpu");
            assert!(failure.to_string().contains(cause), "{failure}");
            assert!(failure.hints().iter().any(|hint| hint.contains(cure)), "{failure}");
        }
    }
}
