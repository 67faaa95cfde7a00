//! The checks of the environment: a proxy for connections to this computer itself, or the address
//! of another Ollama.

use std::net::IpAddr;

use super::LaptopFound;
use crate::{
    doctor::{Judgement, bundle::without_password, ok, warn},
    wire::OLLAMA_PORT,
};

/// The environment variables that tools read.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    /// A proxy for HTTP: the variable and its value.
    pub proxy: Option<(String, String)>,
    /// The hosts for which no proxy is used (`NO_PROXY`).
    pub no_proxy: Option<String>,
    /// The address that `ollama` uses (`OLLAMA_HOST`).
    pub ollama_host: Option<String>,
}

/// The names by which a tool may call this computer.
const HERE: [&str; 2] = ["localhost", "127.0.0.1"];

pub(super) fn proxies(found: &LaptopFound) -> Option<Judgement> {
    let Some((name, value)) = &found.environment.proxy else {
        return Some(ok("no proxy for HTTP in the environment"));
    };
    let no_proxy = found.environment.no_proxy.as_deref().unwrap_or_default();
    let entries: Vec<_> = no_proxy.split(',').map(str::trim).filter(|e| !e.is_empty()).collect();
    let is_exempt = |host: &&str| {
        entries
            .iter()
            .any(|entry| *entry == "*" || entry.trim_start_matches('.').eq_ignore_ascii_case(host))
    };
    let missing: Vec<_> = HERE.iter().filter(|host| !is_exempt(host)).copied().collect();
    let proxy = without_password(value);
    if missing.is_empty() {
        return Some(ok(format!("{name} is set, and NO_PROXY leaves this laptop out")));
    }
    let what = format!(
        "{name} sends the requests of tools to {proxy}, and NO_PROXY does not leave out {}",
        missing.join(" and ")
    );
    let mut all = entries;
    all.extend(HERE.iter().filter(|host| missing.contains(host)));
    if !all.contains(&"::1") {
        all.push("::1");
    }
    Some(warn(what).cure_by(
        "for curl, Python and others alike",
        format!("export NO_PROXY='{0}' no_proxy='{0}'", all.join(",")),
    ))
}

/// Where `ollama` and other tools go by a value of `OLLAMA_HOST`, as Ollama reads it: host and
/// port.
fn target(value: &str) -> (String, u16) {
    let value = value.trim().trim_matches(['"', '\'']);
    let (scheme, rest) = value.split_once("://").unwrap_or(("", value));
    let usual = match scheme {
        "http" => 80,
        "https" => 443,
        _ => OLLAMA_PORT,
    };
    let authority = rest.split('/').next().unwrap_or_default();
    let authority = authority.rsplit('@').next().unwrap_or_default();
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
            (host, port.parse().unwrap_or(usual))
        }
        _ => (authority, usual),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    (if host.is_empty() { "127.0.0.1" } else { host }.to_owned(), port)
}

/// Whether a client that connects to this host reaches this computer's loopback.
fn is_here(host: &str) -> bool {
    let is_near = |ip: IpAddr| ip.is_loopback() || ip.is_unspecified();
    host.eq_ignore_ascii_case("localhost") || host.parse().is_ok_and(is_near)
}

pub(super) fn ollama_host(found: &LaptopFound) -> Option<Judgement> {
    let port = found.adit.port();
    let right = if port == OLLAMA_PORT {
        "unset OLLAMA_HOST".to_owned()
    } else {
        format!("export OLLAMA_HOST=http://localhost:{port}")
    };
    let Some(value) =
        found.environment.ollama_host.as_deref().filter(|value| !value.trim().is_empty())
    else {
        if port == OLLAMA_PORT {
            return Some(ok(format!(
                "not set: tools go to localhost:{OLLAMA_PORT}, where adit belongs"
            )));
        }
        let what = format!(
            "not set: tools go to localhost:{OLLAMA_PORT}, and adit listens on port {port}"
        );
        return Some(warn(what).cure(right));
    };
    let (host, to) = target(value);
    if is_here(&host) && to == port {
        return Some(ok(format!("{}: that is adit", without_password(value))));
    }
    let past = if is_here(&host) { "where adit does not listen" } else { "past adit" };
    let what = format!("`{}` sends `ollama` to {host}:{to}, {past}", without_password(value));
    Some(warn(what).cure_by("in this shell, and in whatever sets it", right))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ollama_host_is_read_as_ollama_reads_it() {
        for (value, host, port) in [
            ("gpu.lan", "gpu.lan", 11434),
            ("gpu.lan:8080", "gpu.lan", 8080),
            ("http://gpu.lan", "gpu.lan", 80),
            ("https://gpu.lan/", "gpu.lan", 443),
            ("http://gpu.lan:1234/x", "gpu.lan", 1234),
            (":11500", "127.0.0.1", 11500),
            ("0.0.0.0", "0.0.0.0", 11434),
            ("[::1]:7", "::1", 7),
            ("::1", "::1", 11434),
            ("\"localhost:9\"", "localhost", 9),
            ("host:what", "host", 11434),
        ] {
            assert_eq!(target(value), (host.to_owned(), port), "{value}");
        }
    }
}
