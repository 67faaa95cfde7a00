//! Checks `Host` as Ollama does, because Ollama skips its check when it listens on more than
//! loopback. The check stops DNS rebinding: a web page whose name resolves to this machine sends
//! requests with that name, and they are refused.

use std::net::{IpAddr, Ipv6Addr};

/// The names and addresses of this machine.
pub trait Own {
    /// Whether this is its host name, in lower case.
    fn is_name(&self, name: &str) -> bool;
    /// Whether this is one of its addresses.
    fn is_address(&self, address: IpAddr) -> bool;
}

/// Whether a request with this `Host` is allowed.
pub fn allows(host: &str, own: &impl Own) -> bool {
    let host = without_port(host);
    if let Ok(address) = host.parse::<IpAddr>() {
        return is_near(address.to_canonical()) || own.is_address(address);
    }
    let host = host.to_ascii_lowercase();
    let suffix = ["localhost", "local", "internal"]
        .iter()
        .any(|name| host.strip_suffix(name).is_some_and(|h| h.ends_with('.')));
    host.is_empty() || host == "localhost" || suffix || own.is_name(&host)
}

/// Splits as Go's `net.SplitHostPort` does. Text that cannot be split is a host.
fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, _)) => match name.strip_prefix('[') {
            Some(inner) => {
                inner.strip_suffix(']').filter(|inner| !inner.contains(['[', ']'])).unwrap_or(host)
            }
            None if name.contains([':', '[', ']']) => host,
            None => name,
        },
        None => host,
    }
}

/// Loopback, private or unspecified.
fn is_near(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_private() || v4.is_unspecified(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local() || v6 == Ipv6Addr::UNSPECIFIED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Gpu;

    impl Own for Gpu {
        fn is_name(&self, name: &str) -> bool {
            name == "gpu"
        }

        fn is_address(&self, address: IpAddr) -> bool {
            address == IpAddr::from([100, 64, 0, 7])
        }
    }

    #[test]
    fn the_names_that_ollama_answers_to_pass_and_no_others() {
        for good in [
            "",
            ":11434",
            "localhost",
            "LOCALHOST:1",
            "localhost:",
            "a.localhost",
            "gpu.local:1",
            "x.internal",
            "GPU:11434",
            "gpu",
            "127.0.0.1",
            "127.9.9.9:1",
            "10.0.0.7",
            "172.16.0.1:5",
            "192.168.1.7:11434",
            "0.0.0.0",
            "[::1]:11434",
            "::1",
            "[::]:1",
            "[fd00::7]:1",
            "[::ffff:127.0.0.1]:1",
            "100.64.0.7:11434",
        ] {
            assert!(allows(good, &Gpu), "{good}");
        }
        for bad in [
            "evil.example",
            "evil.example:11434",
            "localhost.evil.example",
            "local",
            "internal",
            "notlocalhost",
            "localhost.",
            "gpu.lan",
            "100.64.0.8",
            "8.8.8.8:11434",
            "172.32.0.1",
            "[2001:db8::1]:1",
            "[::1]",
            "[::1",
            "127.0.0.1.evil.example",
            "127.1",
            "0x7f000001",
            "2130706433",
            "localhost:1:2",
            "user@localhost",
            "[localhost]:[1]:2",
        ] {
            assert!(!allows(bad, &Gpu), "{bad}");
        }
    }
}
