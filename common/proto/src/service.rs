//! A program as a service that starts at boot: what is written and which commands are run, under
//! systemd and under launchd.

mod launchd;
mod state;
mod systemd;
#[cfg(test)]
mod tests;

pub use state::ServiceState;

/// The first words of each file that `service install` writes. A file without them is not replaced.
pub const MADE: &str = "Made by `service install`";

/// Who starts the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manager {
    /// systemd, as a service of the system. Needs root.
    System,
    /// systemd, as a service of a user.
    User,
    /// launchd, as a service of the system. Needs root.
    LaunchdSystem,
    /// launchd, as a service of a user; it runs from login to logout.
    LaunchdUser,
}

/// A program as a service.
#[derive(Debug, Clone)]
pub struct Service {
    pub manager: Manager,
    /// The program's name: `adit` or `aditd`.
    pub program: &'static str,
    /// The name of the service: that of the program, or with that of a server behind it.
    pub name: String,
    /// The file of the program.
    pub path: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// The unit of the packages for this manager.
    pub unit: &'static str,
    /// The users that the unit of the system needs, for systemd-sysusers.
    pub sysusers: Option<&'static str>,
    /// The home of the user.
    pub home: String,
    /// The user's name and uid.
    pub user: (String, u32),
}

/// A command to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub program: &'static str,
    pub args: Vec<String>,
    pub if_fails: IfFails,
}

/// What a failed command means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IfFails {
    /// Nothing after it is done.
    Stop,
    /// It makes no difference.
    GoOn,
    /// This is said, and the next command is run.
    Say(String),
}

impl Step {
    fn new(program: &'static str, args: &[&str]) -> Self {
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        Self { program, args, if_fails: IfFails::Stop }
    }

    fn if_fails(self, if_fails: IfFails) -> Self {
        Self { if_fails, ..self }
    }

    /// The command as a person types it.
    pub fn typed(&self) -> String {
        let words = std::iter::once(self.program).chain(self.args.iter().map(String::as_str));
        words.collect::<Vec<_>>().join(" ")
    }
}

/// What is wrong with a service before anything is done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Obstacle {
    /// The service cannot see the program.
    #[error("the service cannot read `{path}`: it sees no home directories and no temporary files")]
    Hidden {
        path: String,
        /// Commands that cure it.
        cure: String,
    },
    /// The text of a unit cannot have it.
    #[error("`{0}` contains a line break")]
    Unspeakable(String),
}

impl Obstacle {
    /// What cures it, if that is known.
    pub fn cure(&self) -> Option<String> {
        match self {
            Self::Hidden { cure, .. } => {
                Some(format!("put it where the service sees it: `{cure}`"))
            }
            Self::Unspeakable(_) => None,
        }
    }
}

impl Service {
    fn is_launchd(&self) -> bool {
        matches!(self.manager, Manager::LaunchdSystem | Manager::LaunchdUser)
    }

    /// The files of the service, with their texts. The first one is its unit.
    ///
    /// # Errors
    /// Why it can't be a service as it stands.
    pub fn files(&self) -> Result<Vec<(String, String)>, Obstacle> {
        let all = std::iter::once(&self.path).chain(&self.args);
        if let Some(broken) = all.into_iter().find(|word| word.contains(['\n', '\r', '\0'])) {
            return Err(Obstacle::Unspeakable(broken.escape_default().to_string()));
        }
        if self.is_launchd() {
            return Ok(vec![(self.file(), launchd::plist(self))]);
        }
        let hidden = ["/home/", "/root/", "/tmp/", "/var/tmp/", "/run/user/"];
        if self.manager == Manager::System && hidden.iter().any(|dir| self.path.starts_with(dir)) {
            let to = format!("/usr/local/bin/{}", self.program);
            let cure =
                format!("sudo install -m 755 '{}' {to} && sudo {to} service install", self.path);
            return Err(Obstacle::Hidden { path: self.path.clone(), cure });
        }
        let mut files = vec![(self.file(), systemd::unit(self))];
        if let Some(users) = self.sysusers {
            files.push((
                format!("/etc/sysusers.d/{}.conf", self.program),
                format!("# {MADE}.\n{users}"),
            ));
        }
        Ok(files)
    }

    /// The file of its unit.
    pub fn file(&self) -> String {
        match self.manager {
            Manager::System => format!("/etc/systemd/system/{}.service", self.name),
            Manager::User => format!("{}/.config/systemd/user/{}.service", self.home, self.name),
            Manager::LaunchdSystem => {
                format!("/Library/LaunchDaemons/{}.plist", launchd::label(self))
            }
            Manager::LaunchdUser => {
                format!("{}/Library/LaunchAgents/{}.plist", self.home, launchd::label(self))
            }
        }
    }

    /// The file in which a package puts the unit; `None` where there are no packages.
    pub fn packaged(&self) -> Option<String> {
        let kind = match self.manager {
            Manager::System => "system",
            Manager::User => "user",
            Manager::LaunchdSystem | Manager::LaunchdUser => return None,
        };
        Some(format!("/usr/lib/systemd/{kind}/{}.service", self.name))
    }

    /// The same as a service of the system, if it is one of a user.
    pub fn of_system(&self) -> Option<Self> {
        let manager = match self.manager {
            Manager::User => Manager::System,
            Manager::LaunchdUser => Manager::LaunchdSystem,
            Manager::System | Manager::LaunchdSystem => return None,
        };
        Some(Self { manager, ..self.clone() })
    }

    /// A command that fails where no manager runs that could start the service.
    pub fn probe(&self) -> Step {
        if self.is_launchd() { launchd::probe(self) } else { systemd::probe(self) }
    }

    /// The commands that start the service, now and at each boot, when its files are written.
    pub fn start(&self) -> Vec<Step> {
        if self.is_launchd() { launchd::start(self) } else { systemd::start(self) }
    }

    /// The command that stops the service until it is started again. What runs comes to its end.
    pub fn stop(&self) -> Step {
        if self.is_launchd() { launchd::stop(self) } else { systemd::stop(self) }
    }

    /// The command that tells the process id of the service.
    pub fn main_pid(&self) -> Step {
        if self.is_launchd() { launchd::status(self) } else { systemd::main_pid(self) }
    }

    /// The commands that end the service for ever, before its files are removed.
    pub fn end(&self) -> Vec<Step> {
        if self.is_launchd() { launchd::end(self) } else { systemd::end(self) }
    }

    /// The commands after its files are removed.
    pub fn after_end(&self) -> Vec<Step> {
        if self.is_launchd() { Vec::new() } else { vec![systemd::reload(self)] }
    }

    /// The command that shows the service.
    pub fn status(&self) -> Step {
        if self.is_launchd() { launchd::status(self) } else { systemd::status(self) }
    }

    /// The command whose output [`Service::state`] reads.
    pub fn properties(&self) -> Step {
        if self.is_launchd() { launchd::status(self) } else { systemd::properties(self) }
    }

    /// How the service is, by the output of [`Service::properties`].
    pub fn state(&self, output: &str) -> ServiceState {
        if self.is_launchd() {
            ServiceState::of_launchd(output)
        } else {
            ServiceState::of_systemd(output)
        }
    }

    /// Like [`Service::logs`], but each line is one that [`LogLine`] reads: as text, or, if this
    /// returns true, as JSON of the journal.
    ///
    /// [`LogLine`]: crate::log_line::LogLine
    pub fn logs_as_data(&self, lines: u32, follow: bool) -> (Step, bool) {
        let mut step = self.logs(lines, follow);
        if !self.is_launchd() {
            step.args.push("--output=json".to_owned());
        }
        (step, !self.is_launchd())
    }

    /// The command that shows the last `lines` of its log, and goes on if `follow`.
    pub fn logs(&self, lines: u32, follow: bool) -> Step {
        if self.is_launchd() {
            launchd::logs(self, lines, follow)
        } else {
            systemd::logs(self, lines, follow)
        }
    }

    /// The command `service VERB` of this service, as a person types it.
    pub fn command(&self, verb: &str) -> String {
        let sudo = match self.manager {
            Manager::System | Manager::LaunchdSystem => "sudo ",
            Manager::User | Manager::LaunchdUser => "",
        };
        let server = self.name.strip_prefix(self.program).and_then(|rest| rest.strip_prefix('-'));
        let server = server.map(|server| format!(" --server {server}")).unwrap_or_default();
        format!("{sudo}{} service {verb}{server}", self.program)
    }

    /// The line that runs the program until the next boot where no manager runs.
    pub fn without(&self) -> String {
        let words = std::iter::once(&self.path).chain(&self.args);
        let words: Vec<_> = words.map(|word| shell(word)).collect();
        format!("nohup {} >{}.log 2>&1 &", words.join(" "), self.name)
    }
}

/// A word for a shell.
fn shell(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-:=+@,".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}
