//! The user's configuration for a host: the output of `ssh -G`, or OpenSSH's defaults if there is
//! no ssh.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::process::Command;

use super::{SshError, program};

/// `Match exec` and a slow resolver can take long.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);
/// OpenSSH's own port.
pub(crate) const SSH_PORT: u16 = 22;
const KEY_NAMES: [&str; 3] = ["id_ed25519", "id_ecdsa", "id_rsa"];

/// The settings for one host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostConfig {
    /// The host name for TCP.
    pub(crate) host_name: String,
    /// The TCP port.
    pub(crate) port: u16,
    /// The user who logs in.
    pub(crate) user: String,
    /// Private keys, in the order in which they are tried.
    pub(crate) identity_files: Vec<PathBuf>,
    /// Of the agent's keys, use only those in `identity_files` (`IdentitiesOnly`).
    pub(crate) identities_only: bool,
    /// The agent's socket.
    pub(crate) agent: Option<PathBuf>,
    /// The jump hosts, in order, as `[user@]host[:port]`.
    pub(crate) jumps: Vec<String>,
    /// The name under which its key is stored (`HostKeyAlias`).
    pub(crate) alias: Option<String>,
    /// Files of known hosts. New keys are added to the first.
    pub(crate) user_known_hosts: Vec<PathBuf>,
    /// Files of known hosts for all users.
    pub(crate) global_known_hosts: Vec<PathBuf>,
    /// `StrictHostKeyChecking`.
    pub(crate) strict: Strict,
    /// New keys are stored under a hash of the name (`HashKnownHosts`).
    pub(crate) hash_known_hosts: bool,
    /// No questions may be asked (`BatchMode`).
    pub(crate) batch: bool,
    /// `ConnectTimeout`, for TCP and for the key exchange.
    pub(crate) connect_timeout: Option<Duration>,
    /// A setting that only the system's ssh supports.
    pub(crate) beyond: Option<&'static str>,
}

/// What to do about an unknown host key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Strict {
    /// Refuse it.
    Refuse,
    /// Ask.
    Ask,
    /// The configuration would accept it without a question, but adit asks.
    AskAnyway,
}

/// The home directory, the user and the environment of this process.
#[derive(Debug, Clone)]
pub(crate) struct Here {
    home: PathBuf,
    user: String,
    variable: fn(&str) -> Option<String>,
}

impl Here {
    fn look() -> Self {
        let home = directories::BaseDirs::new()
            .map_or_else(|| PathBuf::from("/"), |dirs| dirs.home_dir().to_owned());
        let variable = |name: &str| std::env::var(name).ok();
        let user =
            variable("USER").or_else(|| variable("LOGNAME")).unwrap_or_else(|| "root".to_owned());
        Self { home, user, variable }
    }
}

/// Asks `ssh -G` what it would do for `destination` (`[user@]host`).
pub(crate) async fn of(destination: &str, port: Option<u16>) -> Result<HostConfig, SshError> {
    let program = program();
    let mut command = Command::new(&program);
    command.arg("-G");
    if let Some(port) = port {
        command.args(["-p", &port.to_string()]);
    }
    command.arg("--").arg(destination).stdin(Stdio::null()).kill_on_drop(true);
    let wrong = |said: String| SshError::Config { program: program.clone(), said };
    let here = Here::look();
    match tokio::time::timeout(ANSWER_WITHIN, command.output()).await {
        Ok(Ok(out)) if out.status.success() => {
            Ok(parse(&String::from_utf8_lossy(&out.stdout), destination, port, &here))
        }
        Ok(Ok(out)) => Err(wrong(String::from_utf8_lossy(&out.stderr).trim().to_owned())),
        Ok(Err(e))
            if e.kind() == std::io::ErrorKind::NotFound
                && std::env::var_os("ADIT_SSH").is_none() =>
        {
            Ok(parse("", destination, port, &here))
        }
        Ok(Err(e)) => Err(wrong(e.to_string())),
        Err(_) => Err(wrong(format!("no answer within {} s", ANSWER_WITHIN.as_secs()))),
    }
}

/// Splits `[user@]host[:port]` of a `ProxyJump`.
pub(crate) fn split_jump(jump: &str) -> (String, Option<u16>) {
    let rest = jump.strip_prefix("ssh://").unwrap_or(jump).trim_end_matches('/');
    let (user, host) =
        rest.rsplit_once('@').map_or((None, rest), |(user, host)| (Some(user), host));
    let (host, port) = match host.strip_prefix('[').and_then(|h| h.split_once(']')) {
        Some((inner, after)) => (inner, after.strip_prefix(':').and_then(|p| p.parse().ok())),
        None => match host.rsplit_once(':') {
            Some((name, port)) if !name.contains(':') => (name, port.parse().ok()),
            _ => (host, None),
        },
    };
    (user.map_or_else(|| host.to_owned(), |user| format!("{user}@{host}")), port)
}

/// Reads the output of `ssh -G`. Missing settings have OpenSSH's defaults.
fn parse(text: &str, destination: &str, port: Option<u16>, here: &Here) -> HostConfig {
    let (user, host) =
        destination.rsplit_once('@').map_or((None, destination), |(user, host)| (Some(user), host));
    let said = |key: &'static str| {
        text.lines().filter_map(move |line| {
            let (name, value) = line.split_once(' ')?;
            name.eq_ignore_ascii_case(key).then(|| value.trim())
        })
    };
    let first = |key| said(key).next().filter(|value| !value.eq_ignore_ascii_case("none"));
    let mut config = HostConfig {
        host_name: first("hostname").unwrap_or(host).to_owned(),
        port: first("port").and_then(|p| p.parse().ok()).or(port).unwrap_or(SSH_PORT),
        user: first("user").or(user).unwrap_or(&here.user).to_owned(),
        identity_files: Vec::new(),
        identities_only: first("identitiesonly") == Some("yes"),
        agent: None,
        jumps: first("proxyjump")
            .map(|jumps| jumps.split(',').map(|jump| jump.trim().to_owned()).collect())
            .unwrap_or_default(),
        alias: first("hostkeyalias").map(ToOwned::to_owned),
        user_known_hosts: Vec::new(),
        global_known_hosts: Vec::new(),
        strict: match first("stricthostkeychecking") {
            Some("yes" | "true") => Strict::Refuse,
            Some("no" | "false" | "off" | "accept-new") => Strict::AskAnyway,
            _ => Strict::Ask,
        },
        hash_known_hosts: first("hashknownhosts") == Some("yes"),
        batch: first("batchmode") == Some("yes"),
        connect_timeout: first("connecttimeout")
            .and_then(|seconds| seconds.parse().ok())
            .filter(|seconds| *seconds > 0)
            .map(Duration::from_secs),
        beyond: first("proxycommand").map(|_| "ProxyCommand"),
    };
    let expand = |value: &str| expand(value, &config, host, here);
    let files = |key, default: &[String]| -> Vec<PathBuf> {
        let mut values = said(key).peekable();
        if values.peek().is_none() {
            return default.iter().map(|value| expand(value)).collect();
        }
        values
            .flat_map(str::split_whitespace)
            .filter(|v| !v.eq_ignore_ascii_case("none"))
            .map(expand)
            .collect()
    };
    let known = |dir: &str, name: &str| [format!("{dir}/{name}"), format!("{dir}/{name}2")];
    let user_known_hosts = files("userknownhostsfile", &known("~/.ssh", "known_hosts"));
    let global_known_hosts = files("globalknownhostsfile", &known("/etc/ssh", "ssh_known_hosts"));
    // One name in each line, which may contain spaces.
    let identity_files = match said("identityfile").next() {
        Some(_) => {
            said("identityfile").filter(|v| !v.eq_ignore_ascii_case("none")).map(expand).collect()
        }
        None => KEY_NAMES.iter().map(|name| expand(&format!("~/.ssh/{name}"))).collect(),
    };
    let agent = match said("identityagent").next() {
        Some(none) if none.eq_ignore_ascii_case("none") => None,
        Some(named) if named != "SSH_AUTH_SOCK" => match named.strip_prefix('$') {
            Some(variable) if !variable.starts_with('{') => {
                (here.variable)(variable).map(PathBuf::from)
            }
            _ => Some(expand(named)),
        },
        _ => (here.variable)("SSH_AUTH_SOCK").map(PathBuf::from),
    };
    config.agent = agent.filter(|path| !path.as_os_str().is_empty());
    (config.identity_files, config.user_known_hosts, config.global_known_hosts) =
        (identity_files, user_known_hosts, global_known_hosts);
    config
}

/// Replaces `~`, `${NAME}` and the `%` tokens of `ssh_config(5)`. Unknown tokens stay as they are.
fn expand(value: &str, config: &HostConfig, original: &str, here: &Here) -> PathBuf {
    let home = here.home.to_string_lossy();
    let value = match value.strip_prefix("~/") {
        Some(rest) => Path::new(&*home).join(rest).to_string_lossy().into_owned(),
        None => value.to_owned(),
    };
    let (mut out, mut rest) = (String::new(), value.as_str());
    while let Some(at) = rest.find(['%', '$']) {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some((name, after)) = rest.strip_prefix("${").and_then(|r| r.split_once('}')) {
            out.push_str(&(here.variable)(name).unwrap_or_default());
            rest = after;
            continue;
        }
        let token = rest.strip_prefix('%').and_then(|r| r.chars().next());
        let known = match token {
            Some('%') => Some("%".to_owned()),
            Some('d') => Some(home.to_string()),
            Some('h') => Some(config.host_name.clone()),
            Some('k') => Some(config.alias.clone().unwrap_or_else(|| original.to_owned())),
            Some('n') => Some(original.to_owned()),
            Some('p') => Some(config.port.to_string()),
            Some('r') => Some(config.user.clone()),
            Some('u') => Some(here.user.clone()),
            _ => None,
        };
        let skip = if known.is_some() { 2 } else { 1 };
        out.push_str(&known.unwrap_or_else(|| rest[..1].to_owned()));
        rest = &rest[skip..];
    }
    out.push_str(rest);
    PathBuf::from(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn here() -> Here {
        let variable = |name: &str| {
            (name == "SSH_AUTH_SOCK" || name == "AGENT").then(|| format!("/run/{name}"))
        };
        Here { home: "/home/me".into(), user: "me".into(), variable }
    }

    fn paths(paths: &[PathBuf]) -> Vec<&str> {
        paths.iter().filter_map(|p| p.to_str()).collect()
    }

    #[test]
    fn without_an_ssh_the_defaults_of_openssh_count() {
        let config = parse("", "you@gpu", Some(2222), &here());
        assert_eq!(
            (config.host_name.as_str(), config.port, config.user.as_str()),
            ("gpu", 2222, "you")
        );
        assert_eq!(paths(&config.identity_files)[0], "/home/me/.ssh/id_ed25519");
        assert_eq!(
            paths(&config.user_known_hosts),
            ["/home/me/.ssh/known_hosts", "/home/me/.ssh/known_hosts2"]
        );
        assert_eq!(config.agent.as_deref(), Some(Path::new("/run/SSH_AUTH_SOCK")));
        assert_eq!((config.strict, config.jumps.len(), config.beyond), (Strict::Ask, 0, None));
        assert_eq!(parse("", "gpu", None, &here()).user, "me");
    }

    #[test]
    fn what_ssh_says_counts() {
        let said = "host gpu\nuser you\nhostname 10.0.0.7\nport 2200\nidentityfile ~/.ssh/my key\nidentityfile %d/%r@%h:%p-%n%%\n\
                    identityfile none\nidentitiesonly yes\nidentityagent ${AGENT}\nproxyjump a@b:33,c\nhostkeyalias box\n\
                    userknownhostsfile ~/k1 /k2\nglobalknownhostsfile none\nstricthostkeychecking true\nhashknownhosts yes\n\
                    connecttimeout 7\n";
        let config = parse(said, "gpu", None, &here());
        assert_eq!(
            (config.host_name.as_str(), config.port, config.user.as_str()),
            ("10.0.0.7", 2200, "you")
        );
        assert_eq!(
            paths(&config.identity_files),
            ["/home/me/.ssh/my key", "/home/me/you@10.0.0.7:2200-gpu%"]
        );
        assert_eq!(config.agent.as_deref(), Some(Path::new("/run/AGENT")));
        assert_eq!(
            (config.jumps.as_slice(), config.alias.as_deref()),
            (&["a@b:33".to_owned(), "c".to_owned()][..], Some("box"))
        );
        assert_eq!(paths(&config.user_known_hosts), ["/home/me/k1", "/k2"]);
        assert!(
            config.global_known_hosts.is_empty()
                && config.identities_only
                && config.hash_known_hosts
        );
        assert_eq!(config.strict, Strict::Refuse);
        assert_eq!(config.connect_timeout, Some(Duration::from_secs(7)));
    }

    #[test]
    fn nothing_is_taken_silently_and_what_cannot_be_done_is_seen() {
        for lax in ["no", "false", "off", "accept-new"] {
            assert_eq!(
                parse(&format!("stricthostkeychecking {lax}"), "gpu", None, &here()).strict,
                Strict::AskAnyway
            );
        }
        assert_eq!(
            parse("proxycommand nc %h %p\n", "gpu", None, &here()).beyond,
            Some("ProxyCommand")
        );
        assert_eq!(
            parse("proxycommand none\nidentityagent none\n", "gpu", None, &here()).agent,
            None
        );
        assert_eq!(
            parse("identityagent $AGENT\n", "g", None, &here()).agent.as_deref(),
            Some(Path::new("/run/AGENT"))
        );
    }

    #[test]
    fn a_jump_is_a_user_a_host_and_a_port() {
        for (text, host, port) in [
            ("b", "b", None),
            ("a@b:33", "a@b", Some(33)),
            ("ssh://a@b:33", "a@b", Some(33)),
            ("[fd00::1]:22", "fd00::1", Some(22)),
            ("a@fd00::1", "a@fd00::1", None),
        ] {
            assert_eq!(split_jump(text), (host.to_owned(), port), "{text}");
        }
    }
}
