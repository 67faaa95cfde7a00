//! What a running server needs, derived from its settings alone: the files, the ports and the
//! sockets. Everything else is given up when the server has started.

use std::{
    collections::BTreeSet,
    fmt,
    path::{Component, Path, PathBuf},
};

use reqwest::Url;

use crate::{
    config::{Config, OutgoingPlace},
    https::CertificateSource,
    outside::PROXIES,
};

/// One right, and the setting that needs it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Need {
    pub(crate) right: Right,
    /// The setting, as it is written in the configuration.
    pub(crate) of: String,
}

/// What may be done.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Right {
    /// To read a file, or all files in a directory and below it.
    Read(PathBuf),
    /// To read, write, make and remove files in a directory and below it.
    Write(PathBuf),
    /// To remove files in a directory.
    Remove(PathBuf),
    /// To connect to a TCP port, of any address: the kernel compares no more.
    Connect(u16),
    /// To connect to a Unix socket.
    Socket(PathBuf),
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(path) => write!(f, "read `{}`", path.display()),
            Self::Write(path) => write!(f, "write to `{}`", path.display()),
            Self::Remove(path) => write!(f, "remove files from `{}`", path.display()),
            Self::Connect(port) => write!(f, "connect to the TCP port {port}"),
            Self::Socket(path) => write!(f, "connect to the socket `{}`", path.display()),
        }
    }
}

/// What is needed, each with the setting that needs it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Rules(BTreeSet<Need>);

/// What of the machine the rules depend on.
pub(crate) struct Machine<'a> {
    /// The directory of the user.
    pub(crate) home: Option<PathBuf>,
    /// The value of an environment variable.
    pub(crate) variable: &'a dyn Fn(&str) -> Option<String>,
    /// A path without links; `None` if nothing is there.
    pub(crate) real: &'a dyn Fn(&Path) -> Option<PathBuf>,
    /// The links on the way to a path, and the path that each leads to.
    pub(crate) links: &'a dyn Fn(&Path) -> Vec<(PathBuf, PathBuf)>,
}

/// Where systems keep the certificates of the CAs that they trust, and where links there lead. None of
/// these has a private key, as `/etc/ssl/private` has.
const CA_PLACES: [&str; 10] = [
    "/etc/ssl/certs",
    "/etc/ssl/cert.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/certs",
    "/etc/pki/tls/cert.pem",
    "/etc/pki/ca-trust",
    "/etc/ca-certificates",
    "/usr/share/ca-certificates",
    "/usr/local/share/ca-certificates",
    "/var/lib/ca-certificates",
];
/// Files of them that a link may lead to any place, as on NixOS.
const CA_FILES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// What libraries and `doctor` read of the kernel.
const KERNEL_FILES: [&str; 4] = [
    "/dev/urandom",
    "/proc/sys/kernel/random/boot_id",
    "/proc/sys/net/core/rmem_max",
    "/proc/sys/net/core/wmem_max",
];
/// What needs them.
const SYSTEM_CAS: &str = "the system's CA certificates";

impl Rules {
    /// What a server with these settings needs after its start.
    pub(crate) fn of(config: &Config, machine: &Machine<'_>) -> Self {
        let mut rules = Self::of_reload(config, machine);
        rules.add(Right::Write(config.state_dir.clone()), "state_dir");
        rules.add(Right::Write(config.accounting.audit.dir.clone()), "audit_dir");
        let control = config.state_dir.join("control.sock");
        rules.add(Right::Socket(control), "state_dir");
        for (name, upstream) in config.upstreams() {
            let of = format!("services.{name}");
            match upstream.socket() {
                Some(path) => rules.add(Right::Socket(path.to_owned()), &of),
                None => rules
                    .0
                    .extend(upstream.port().map(|port| Need { right: Right::Connect(port), of })),
            }
        }
        rules.ask(config.acme_place().as_slice(), machine);
        for file in config.acme_files() {
            rules.read_again(file, "the files of `[https.acme]`", machine);
        }
        let sockets = [
            config
                .accounting
                .metrics
                .as_ref()
                .and_then(|metrics| Some((metrics.socket()?, "metrics"))),
            config.enroll_group.as_ref().map(|_| (&*config.enroll_socket, "enroll_socket")),
        ];
        for (path, of) in sockets.into_iter().flatten() {
            // One that stays behind is replaced at the next start.
            if let Some(dir) = path.parent().filter(|dir| !is_broad(dir, machine)) {
                rules.add(Right::Remove(dir.to_owned()), of);
            }
        }
        for path in KERNEL_FILES {
            rules.add(Right::Read(path.into()), "aditd");
        }
        rules.read_system_cas(machine);
        rules
    }

    /// What of it depends on settings that are in force at once when the file is read again.
    pub(crate) fn of_reload(config: &Config, machine: &Machine<'_>) -> Self {
        let mut rules = Self::default();
        if let Some(file) = &config.file {
            rules.read_again(file, "--config", machine);
        }
        if let Some(authorize) = config.authorize() {
            match authorize.address.socket() {
                Some(path) => rules.add(Right::Socket(path.to_owned()), "authorize"),
                None => rules.0.extend(
                    authorize
                        .address
                        .port()
                        .map(|port| Need { right: Right::Connect(port), of: "authorize".into() }),
                ),
            }
            if let Some(file) = authorize.trust.as_ref().and_then(|trust| trust.file()) {
                rules.read_again(file, "authorize_ca", machine);
            }
        }
        if let Some(CertificateSource::Files(cert, key)) =
            config.https.as_ref().map(|https| &https.source)
        {
            rules.read_again(cert, "tls_cert", machine);
            rules.read_again(key, "tls_key", machine);
        }
        for file in config.provider_files() {
            rules.read_again(file, "the files of `[jwt]` and `[oidc]`", machine);
        }
        rules.ask(&config.provider_places(), machine);
        rules
    }

    /// The CA certificates of the system, for whatever settings may need them later.
    fn read_system_cas(&mut self, machine: &Machine<'_>) {
        for path in CA_PLACES {
            self.add(Right::Read(path.into()), SYSTEM_CAS);
        }
        for real in CA_FILES.into_iter().filter_map(|path| (machine.real)(Path::new(path))) {
            let read = Right::Read(real);
            if !self.has(&read) {
                self.add(read, SYSTEM_CAS);
            }
        }
        if let Some(path) = (machine.variable)("SSL_CERT_FILE") {
            self.read_again(Path::new(&path), "SSL_CERT_FILE", machine);
        }
        let dirs = (machine.variable)("SSL_CERT_DIR").unwrap_or_default();
        for dir in std::env::split_paths(&dirs).filter(|dir| dir.is_absolute()) {
            self.add(Right::Read(dir), "SSL_CERT_DIR");
        }
    }

    /// The ports of places that are asked over HTTPS.
    fn ask(&mut self, places: &[OutgoingPlace], machine: &Machine<'_>) {
        for place in places {
            self.add(Right::Connect(place.port), place.setting);
            // It may name other addresses, of its keys, of its tokens, or of its orders.
            self.add(Right::Connect(443), place.setting);
        }
        for name in PROXIES.into_iter().filter(|_| !places.is_empty()) {
            let proxy = (machine.variable)(name);
            if let Some(port) = proxy.and_then(|text| proxy_port(&text)) {
                self.add(Right::Connect(port), name);
            }
        }
    }

    /// Everything that is needed.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Right> {
        self.0.iter().map(|need| &need.right)
    }

    /// What `other` needs and this has not.
    pub(crate) fn missing<'a>(&self, other: &'a Self) -> Vec<&'a Need> {
        other.0.iter().filter(|need| !self.has(&need.right)).collect()
    }

    /// Another port that is needed.
    pub(crate) fn add_port(&mut self, port: u16, of: &str) {
        self.add(Right::Connect(port), of);
    }

    /// The ports that may be connected to.
    pub(crate) fn ports(&self) -> impl Iterator<Item = u16> {
        self.iter().filter_map(|right| match right {
            Right::Connect(port) => Some(*port),
            _ => None,
        })
    }

    fn has(&self, right: &Right) -> bool {
        self.iter().any(|has| match (has, right) {
            (Right::Read(dir) | Right::Write(dir), Right::Read(path)) => is_inside(path, dir),
            (has, right) => has == right,
        })
    }

    fn add(&mut self, right: Right, of: &str) {
        self.0.insert(Need { right, of: of.to_owned() });
    }

    /// A file that is read again later. Programs replace a file by another of its name, and a right
    /// to the file would be none to the other: so the right is to its directory, and to that of the
    /// file that a link leads to. Programs switch a link to a directory (`current`), too: so the right
    /// is also to the directory of each link on the way, and to that which holds what it leads to.
    fn read_again(&mut self, path: &Path, of: &str, machine: &Machine<'_>) {
        let mut places = vec![path.to_owned()];
        places.extend((machine.real)(path));
        for path in places {
            match path.parent().filter(|dir| !is_broad(dir, machine)) {
                Some(dir) => self.add(Right::Read(dir.to_owned()), of),
                None => self.add(Right::Read(path), of),
            }
        }
        // Links in the root are the layout of the machine, and what they lead to is half of it.
        let is_switched = |link: &Path| link.parent().is_some_and(|dir| dir.parent().is_some());
        for (link, target) in
            (machine.links)(path).into_iter().filter(|(link, _)| is_switched(link))
        {
            for dir in [link.parent(), target.parent()].into_iter().flatten() {
                if !is_broad(dir, machine) {
                    self.add(Right::Read(dir.to_owned()), of);
                }
            }
        }
    }
}

fn proxy_port(text: &str) -> Option<u16> {
    // A proxy may be named without a scheme.
    let url =
        if text.contains("://") { Url::parse(text) } else { Url::parse(&format!("http://{text}")) };
    url.ok()?.port_or_known_default()
}

/// Whether a directory holds much that has nothing to do with the server: one of the root, or the
/// user's own.
fn is_broad(dir: &Path, machine: &Machine<'_>) -> bool {
    let real = (machine.real)(dir);
    [Some(dir), real.as_deref()].into_iter().flatten().any(|dir| {
        dir.components().count() <= 2 || machine.home.as_deref() == Some(dir) || !dir.is_absolute()
    })
}

/// Whether `path` is `dir`, or below it. A path that climbs out of it again is not.
fn is_inside(path: &Path, dir: &Path) -> bool {
    let climbs = |rest: &Path| rest.components().any(|part| part == Component::ParentDir);
    path.strip_prefix(dir).is_ok_and(|rest| !climbs(rest))
}

#[cfg(test)]
mod tests;
