//! What the log says of a connection from a network that may not use the tunnel: how to let it in, and
//! how often that is said. Reads no clock.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use ipnet::IpNet;

/// How often the log tells of connections from the same network.
const TELL_EVERY: Duration = Duration::from_secs(60);
/// Networks that are kept apart; this computer has an interface in each of them but one.
const MOST: usize = 16;

/// Where the networks are written that may use the tunnel. What is written there in their place
/// replaces all of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum WrittenIn {
    /// The command line.
    Flag,
    /// An environment variable.
    Environment,
    /// The table of this server in the settings file.
    TableOf(String),
    /// The top of the settings file, or nowhere yet.
    #[default]
    File,
}

/// When the log told of which network; `None` is a network in which this computer is not.
#[derive(Debug, Default)]
pub(super) struct Told(Vec<(Option<IpNet>, Instant)>);

impl Told {
    /// Whether to tell of a connection from this network: at most once in [`TELL_EVERY`], because
    /// anyone can cause it. A stranger in one network hides no line about another network.
    pub(super) fn is_due(&mut self, network: Option<IpNet>, now: Instant) -> bool {
        self.0.retain(|(_, told)| now.duration_since(*told) < TELL_EVERY);
        let is_known = self.0.iter().any(|(other, _)| *other == network);
        if is_known || self.0.len() == MOST {
            return false;
        }
        self.0.push((network, now));
        true
    }
}

/// The line about a connection from `from`. `around` is the network in which it is, and the name of
/// this computer's interface there; `networks` are those that are let in.
pub(super) fn line(
    from: IpAddr,
    around: Option<&(String, IpNet)>,
    networks: &[IpNet],
    written_in: &WrittenIn,
) -> String {
    // Containers get other addresses when they start again; a network of people has more than one
    // computer.
    let of_containers = around.filter(|(interface, _)| is_of_containers(interface));
    let (who, more) = match of_containers {
        Some((interface, network)) => (format!("the containers of {interface}"), *network),
        None => (format!("{from} alone"), IpNet::from(from)),
    };
    let all: Vec<_> = networks.iter().chain([&more]).map(ToString::to_string).collect();
    let in_file = || format!("`allow_from = [\"{}\"]`", all.join("\", \""));
    let file = "of the settings file, which `adit config` names, and start adit again";
    let how = match written_in {
        WrittenIn::Flag => {
            format!(
                "start adit with `--allow-from {}` in the place of its --allow-from",
                all.join(",")
            )
        }
        WrittenIn::Environment => {
            format!("set `ADIT_ALLOW_FROM={}`, and start adit again", all.join(","))
        }
        WrittenIn::TableOf(server) => {
            format!("set {} in [servers.{server}] {file}", in_file())
        }
        WrittenIn::File => format!("set {} at the top {file}", in_file()),
    };
    format!(
        "refused a connection from {from}: no allowed network contains it (to let {who} in as well, {how})"
    )
}

/// Whether this is an interface that Docker or Podman has made for containers of this computer. Other
/// bridges may have the local network behind them.
fn is_of_containers(interface: &str) -> bool {
    let made = |rest: &str| rest.len() == 12 && rest.bytes().all(|b| b.is_ascii_hexdigit());
    let number = |rest: &str| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit());
    interface == "docker0"
        || interface.strip_prefix("br-").is_some_and(made)
        || ["podman", "cni-podman"]
            .iter()
            .any(|name| interface.strip_prefix(name).is_some_and(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().expect("a network")
    }

    #[test]
    fn the_cure_keeps_the_networks_in_force_and_says_where_they_are_written() {
        let networks = [net("10.0.0.0/8"), net("fd00::/64")];
        let containers = ("docker0".to_owned(), net("172.17.0.0/16"));
        let told =
            |written_in| line([172, 17, 0, 2].into(), Some(&containers), &networks, &written_in);
        for (written_in, says) in [
            (
                WrittenIn::Flag,
                "start adit with `--allow-from 10.0.0.0/8,fd00::/64,172.17.0.0/16` in the place of",
            ),
            (
                WrittenIn::Environment,
                "set `ADIT_ALLOW_FROM=10.0.0.0/8,fd00::/64,172.17.0.0/16`, and",
            ),
            (
                WrittenIn::File,
                r#"set `allow_from = ["10.0.0.0/8", "fd00::/64", "172.17.0.0/16"]` at the top"#,
            ),
            (
                WrittenIn::TableOf("lab".to_owned()),
                r#"["10.0.0.0/8", "fd00::/64", "172.17.0.0/16"]` in [servers.lab] of"#,
            ),
        ] {
            let told = told(written_in);
            assert!(told.contains(says), "{told}");
        }
    }

    #[test]
    fn of_a_network_of_people_one_address_is_proposed_and_of_containers_their_network() {
        for (interface, from, is) in [
            (
                "docker0",
                "172.17.0.2",
                "the containers of docker0 in as well, start adit with `--allow-from 172.17.0.0/16`",
            ),
            ("br-0123456789ab", "172.17.0.2", "`--allow-from 172.17.0.0/16`"),
            ("podman1", "172.17.0.2", "`--allow-from 172.17.0.0/16`"),
            (
                "eth0",
                "172.17.0.2",
                "172.17.0.2 alone in as well, start adit with `--allow-from 172.17.0.2/32`",
            ),
            ("br-lan", "172.17.0.2", "`--allow-from 172.17.0.2/32`"),
            ("br0", "172.17.0.2", "`--allow-from 172.17.0.2/32`"),
            ("podman", "172.17.0.2", "`--allow-from 172.17.0.2/32`"),
        ] {
            let around = (interface.to_owned(), net("172.17.0.0/16"));
            let from = from.parse().expect("an address");
            let told = line(from, Some(&around), &[], &WrittenIn::Flag);
            assert!(told.contains(is), "{interface}: {told}");
        }
        let told = line([192, 0, 2, 1].into(), None, &[], &WrittenIn::Flag);
        assert!(told.contains("`--allow-from 192.0.2.1/32`"), "{told}");
    }

    #[test]
    fn a_stranger_in_one_network_hides_no_line_about_another_network() {
        let (mut told, start) = (Told::default(), Instant::now());
        let (people, containers) = (Some(net("192.168.1.0/24")), Some(net("172.17.0.0/16")));
        assert!(told.is_due(people, start));
        assert!(told.is_due(containers, start) && told.is_due(None, start));
        let soon = start + TELL_EVERY - Duration::from_millis(1);
        for network in [people, containers, None] {
            assert!(!told.is_due(network, soon), "{network:?}");
        }
        assert!(told.is_due(people, start + TELL_EVERY));
        assert!(!told.is_due(people, start + TELL_EVERY));
        for i in 0..=u8::MAX {
            told.is_due(Some(IpNet::from(IpAddr::from([10, 0, 0, i]))), start + TELL_EVERY);
        }
        assert_eq!(told.0.len(), MOST);
    }
}
