//! What keeps aditd running on a box: the texts of its unit and of the script that starts it.

use crate::typed::quoted;

/// The units of the packages.
const OF_SYSTEM: &str = include_str!("../../../../server/packaging/aditd.service");
const OF_USER: &str = include_str!("../../../../server/packaging/user/aditd.service");
/// The user of the system's unit, for systemd-sysusers.
const SYSUSERS: &str = include_str!("../../../../server/packaging/sysusers.conf");
/// The line in each unit that adit makes.
pub(super) const MADE: &str = "# Made by `adit up`; `adit remove` deletes it.";

/// What keeps aditd running.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// A unit of the system's systemd.
    System,
    /// A unit of the user's systemd.
    User {
        /// Whether that one has to be allowed to run without a login first.
        enable_linger: bool,
    },
    /// A process that outlives the login.
    Process,
}

/// How aditd is installed and started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Install {
    /// The login, as commands take it.
    pub to: String,
    pub(super) home: String,
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
    pub service: Service,
    /// The service that it forwards to, as `--upstream` takes it.
    pub upstream: String,
    /// The port of 127.0.0.1 that it listens on, if not its own.
    pub listen: Option<u16>,
    pub(super) others: Vec<u32>,
}

impl Install {
    /// The path of the program on the box.
    pub fn program(&self) -> String {
        format!("{}/bin/{}/aditd", self.dir, self.sha256)
    }

    /// The link to the program, which commands use.
    pub fn link(&self) -> String {
        format!("{}/aditd", self.dir)
    }

    /// The file of the unit; empty for a process.
    pub fn unit_file(&self) -> String {
        match self.service {
            Service::System => "/etc/systemd/system/aditd.service".to_owned(),
            Service::User { .. } => format!("{}/.config/systemd/user/aditd.service", self.home),
            Service::Process => String::new(),
        }
    }

    /// The text of the unit: that of the packages, for this program. Empty for a process.
    pub fn unit(&self) -> String {
        let (packaged, settings) = match self.service {
            Service::System => (OF_SYSTEM, String::new()),
            Service::User { .. } => {
                let state = in_unit(&format!("ADITD_STATE_DIR={}", self.state));
                (OF_USER, format!("\nEnvironment={state}"))
            }
            Service::Process => return String::new(),
        };
        // The comments at its head say how it is installed by hand.
        let sections = packaged.split_once("\n[Unit]").map_or(packaged, |(_, sections)| sections);
        let link = in_unit(&self.link());
        let start = format!("ExecStart={link} {}{settings}", self.serve(in_unit));
        let sections = sections
            .replace("# systemd looks in /usr/local/bin, then in /usr/bin.\n", "")
            .replace("ExecStart=aditd serve", &start)
            .replace("ExecReload=aditd reload", &format!("ExecReload={link} reload"));
        format!("{MADE}\n\n[Unit]{sections}")
    }

    /// The users that the unit needs, for systemd-sysusers; empty if it needs none.
    pub fn sysusers(&self) -> &'static str {
        if self.service == Service::System { SYSUSERS } else { "" }
    }

    /// A script that starts it as a process that outlives the login, and prints its id.
    pub fn start_script(&self) -> String {
        let serve = format!("{} {}", quoted(&self.link()), self.serve(quoted));
        let log = quoted(&self.log());
        format!(
            "#!/bin/sh\n# Starts aditd as a process that outlives the login, and prints its id.\n{MADE}\n\
             export ADITD_STATE_DIR={}\ncd / || exit\n\
             if command -v setsid >/dev/null 2>&1; then keep=setsid; else keep=nohup; fi\n\
             $keep {serve} </dev/null >{log} 2>&1 &\necho $!\n",
            quoted(&self.state)
        )
    }

    /// The log of a process.
    pub fn log(&self) -> String {
        format!("{}/aditd.log", self.dir)
    }

    /// The line that makes a process last: a command for the box.
    pub fn lasting_line(&self) -> String {
        let start = format!("@reboot {}/start", self.dir);
        format!("(crontab -l 2>/dev/null; echo {}) | crontab -", quoted(&start))
    }

    /// The command and the flags that are not the default.
    fn serve(&self, quote: impl Fn(&str) -> String) -> String {
        let mut words = vec!["serve".to_owned()];
        if self.upstream != "http://127.0.0.1:11434" {
            words.extend(["--upstream".to_owned(), quote(&self.upstream)]);
        }
        if let Some(port) = self.listen {
            words.extend(["--listen".to_owned(), format!("127.0.0.1:{port}")]);
        }
        words.join(" ")
    }
}

/// A word as systemd reads it: `%` and `$` mean something else there, and so do blanks and quotes.
fn in_unit(word: &str) -> String {
    let word = word.replace('\\', r"\\").replace('"', "\\\"").replace('%', "%%").replace('$', "$$");
    if word.contains(|c: char| c.is_whitespace() || "\"'".contains(c)) {
        format!("\"{word}\"")
    } else {
        word
    }
}
