//! What the look at a box has found, read from the lines that its script prints: `key=value`.

use serde::Deserialize;

/// Why an answer of the box is not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("its answer has no `{0}`")]
pub struct Missing(pub &'static str);

/// What stands on a box.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// What `uname -s` says.
    pub system: String,
    /// What `uname -m` says.
    pub machine: String,
    pub uid: u32,
    pub user: String,
    /// The user's home directory.
    pub home: String,
    /// The directory for the program and what belongs to it.
    pub dir: String,
    /// The directory that aditd keeps its state in.
    pub state: String,
    /// Whether `dir` can be written; else what the box says.
    pub writable: Result<(), String>,
    /// Whether a program in `dir` can be run; else what the box says.
    pub runs: Result<(), String>,
    /// The free space for `dir` in bytes, if it is known.
    pub free: Option<u64>,
    /// Whether the program that would be uploaded is there already.
    pub present: bool,
    /// How adit has installed an aditd in `dir`, if it has: `system`, `user` or `process`.
    pub installed: Option<String>,
    /// Whether that one is the program that would be uploaded.
    pub linked: bool,
    /// Whether systemd manages the machine.
    pub systemd: bool,
    /// Whether a systemd manager of this user answers.
    pub user_manager: bool,
    /// Whether that manager runs without a login.
    pub linger: bool,
    /// A unit `aditd` that adit has not made.
    pub foreign_unit: Option<String>,
    /// The aditd that runs here and answers this user.
    pub running: Option<Running>,
    /// Whether members of a group may enroll devices here, and this user is one.
    pub enroll_group: bool,
    /// The process ids of other aditd.
    pub others: Vec<u32>,
    /// The UDP and TCP ports that are taken; `None` if the box does not tell.
    pub ports: Option<Vec<u16>>,
    /// The TCP ports on which something listens that is reached over loopback.
    pub listening: Option<Vec<u16>>,
    /// Values of `OLLAMA_HOST`, the likeliest first.
    pub ollama: Vec<String>,
}

/// An aditd that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    /// The path of the program that has asked it.
    pub program: String,
    pub version: String,
    /// The service that it forwards to.
    pub upstream: String,
    /// Whether commands on the box have to be told its state.
    pub needs_state: bool,
}

/// A part of what `aditd status --json` prints.
#[derive(Deserialize)]
struct Status {
    version: String,
    upstream: String,
}

impl Found {
    /// Reads the answer of the script. Lines that are not known are passed over.
    ///
    /// # Errors
    /// The first key without which nothing can be decided.
    pub fn read(answer: &str) -> Result<Self, Missing> {
        let lines = Lines(answer);
        let running = lines.first("status").and_then(|status| {
            let Status { version, upstream } = serde_json::from_str(status).ok()?;
            let (program, needs_state) = (lines.first("program")?, lines.is("named_state"));
            Some(Running { program: program.to_owned(), version, upstream, needs_state })
        });
        let (udp, tcp) = (lines.first("udp"), lines.first("tcp"));
        let sockets = udp.zip(tcp).map(|(udp, tcp)| (sockets(udp), sockets(tcp)));
        let near = |sockets: &[(bool, u16)]| {
            sockets.iter().filter(|(is_near, _)| *is_near).map(|(_, port)| *port).collect()
        };
        Ok(Self {
            system: lines.must("system")?,
            machine: lines.must("machine")?,
            uid: lines.must("uid")?.parse().map_err(|_| Missing("uid"))?,
            user: lines.must("user")?,
            home: lines.must("home")?,
            dir: lines.must("dir")?,
            state: lines.must("state")?,
            writable: lines.worked("writable"),
            runs: lines.worked("runs"),
            free: lines
                .first("free_kib")
                .and_then(|kib| kib.parse::<u64>().ok()?.checked_mul(1024)),
            present: lines.is("present"),
            installed: lines.first("installed").map(ToOwned::to_owned),
            linked: lines.is("linked"),
            systemd: lines.is("systemd"),
            user_manager: lines.is("user_manager"),
            linger: lines.is("linger"),
            foreign_unit: lines.first("foreign_unit").map(ToOwned::to_owned),
            running,
            enroll_group: lines.is("enroll_group"),
            others: lines.all("other").filter_map(|pid| pid.parse().ok()).collect(),
            listening: sockets.as_ref().map(|(_, tcp)| near(tcp)),
            ports: sockets
                .map(|(udp, tcp)| udp.iter().chain(&tcp).map(|(_, port)| *port).collect()),
            ollama: lines.all("ollama").map(ToOwned::to_owned).collect(),
        })
    }
}

/// The lines `key=value` of an answer.
pub struct Lines<'a>(pub &'a str);

impl<'a> Lines<'a> {
    /// The values of a key, without the empty ones.
    pub fn all(&self, key: &str) -> impl Iterator<Item = &'a str> {
        let all = self.0.lines().filter_map(|line| line.split_once('='));
        all.filter(move |(name, value)| *name == key && !value.is_empty()).map(|(_, value)| value)
    }

    /// The first value of a key.
    pub fn first(&self, key: &str) -> Option<&'a str> {
        self.all(key).next()
    }

    fn must(&self, key: &'static str) -> Result<String, Missing> {
        self.first(key).map(ToOwned::to_owned).ok_or(Missing(key))
    }

    fn is(&self, key: &str) -> bool {
        self.first(key) == Some("yes")
    }

    fn worked(&self, key: &str) -> Result<(), String> {
        match self.first(key) {
            Some("yes") => Ok(()),
            Some(words) => Err(words.to_owned()),
            None => Err("the box does not say why".to_owned()),
        }
    }
}

/// Reads local addresses of `/proc/net/udp` and its like, in hexadecimal: whether each is reached over
/// loopback, and its port.
fn sockets(text: &str) -> Vec<(bool, u16)> {
    /// Loopback (IPv4 in the order of little-endian machines and of others, IPv6, mapped IPv4).
    const NEAR: [&str; 5] = [
        "0100007F",
        "7F000001",
        "00000000000000000000000001000000",
        "00000000000000000000000000000001",
        "0000000000000000FFFF00000100007F",
    ];
    let socket = |word: &str| {
        let (address, port) = word.split_once(':')?;
        let is_near = NEAR.contains(&address) || address.bytes().all(|digit| digit == b'0');
        Some((is_near, u16::from_str_radix(port, 16).ok()?))
    };
    text.split_whitespace().filter_map(socket).collect()
}
