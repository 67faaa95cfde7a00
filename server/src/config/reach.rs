//! The addresses at which devices are told to find the server.

use std::net::{IpAddr, SocketAddr};

use common::machine::network::{is_link_local, own_addresses};
use proto::invitation::MAX_ADDRESSES;

use crate::ingress::filter::Audience;

/// The addresses that devices are told, from the configured ones and those that the server listens
/// on. They are looked up at each call: an interface's address may change while the server runs.
pub(crate) fn addresses(
    advertise: &[String],
    bound: &[SocketAddr],
    audience: &Audience,
) -> Vec<String> {
    if !advertise.is_empty() {
        return advertise.to_vec();
    }
    of_interfaces(&own_addresses(), bound, audience)
}

/// The same, if the machine's interfaces have the addresses `own`.
fn of_interfaces(own: &[IpAddr], bound: &[SocketAddr], audience: &Audience) -> Vec<String> {
    let mut all: Vec<SocketAddr> = Vec::new();
    for address in bound {
        if address.ip().is_unspecified() {
            all.extend(of_family(own, *address, audience))
        } else {
            all.push(*address)
        }
    }
    all.sort_by_key(|address| address.ip().is_loopback());
    all.truncate(MAX_ADDRESSES);
    all.iter().map(SocketAddr::to_string).collect()
}

fn of_family(own: &[IpAddr], address: SocketAddr, audience: &Audience) -> Vec<SocketAddr> {
    let of_family: Vec<IpAddr> = own
        .iter()
        .filter(|ip| ip.is_ipv4() == address.is_ipv4() && !ip.is_loopback() && !is_link_local(**ip))
        .copied()
        .collect();
    // Addresses in an allowed network are the likely ones. If there are none, the devices come from
    // behind a router.
    let named: Vec<IpAddr> =
        of_family.iter().filter(|ip| audience.includes(**ip)).copied().collect();
    let likely = if named.is_empty() { of_family } else { named };
    likely.into_iter().map(|ip| SocketAddr::new(ip, address.port())).collect()
}

/// The cure for an address that is not loopback: these flags, or the setting beside the address where
/// the file names it.
pub(super) fn name_networks(flags: String, is_in_file: bool, network: &str) -> String {
    let setting = if is_in_file {
        format!("allow_from = [\"{network}\"]")
    } else {
        format!("{flags} {network}")
    };
    let beside = if is_in_file { " beside it" } else { "" };
    format!("name the networks{beside}, for example `{setting}`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_told_what_fits_the_sockets_and_the_networks() {
        let own = ["127.0.0.1", "::1", "fe80::1", "192.168.1.7", "10.0.0.7", "2001:db8::7"];
        let own = own.map(|ip| ip.parse::<IpAddr>().expect("an address"));
        for (bound, networks, own, told) in [
            (&["0.0.0.0:1"][..], &["192.168.1.0/24"][..], &own[..], &["192.168.1.7:1"][..]),
            // Devices from behind a router.
            (&["0.0.0.0:1"], &["203.0.113.0/24"], &own, &["192.168.1.7:1", "10.0.0.7:1"]),
            // A network of one address family does not hide the addresses of the other.
            (&["[::]:1"], &["192.168.1.0/24"], &own, &["[2001:db8::7]:1"]),
            (
                &["[::]:1", "0.0.0.0:1"],
                &["192.168.1.0/24"],
                &own,
                &["[2001:db8::7]:1", "192.168.1.7:1"],
            ),
            (&["127.0.0.1:1", "192.168.1.7:2"], &[], &own, &["192.168.1.7:2", "127.0.0.1:1"]),
            // The machine has no network yet.
            (&["0.0.0.0:1"], &["192.168.1.0/24"], &own[..3], &[]),
        ] {
            let bound: Vec<SocketAddr> =
                bound.iter().map(|at| at.parse().expect("an address")).collect();
            let audience = Audience::new(
                networks.iter().map(|network| network.parse().expect("a network")).collect(),
            );
            assert_eq!(of_interfaces(own, &bound, &audience), told, "{bound:?} {networks:?}");
        }
    }
}
