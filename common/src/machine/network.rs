//! The network and the addresses of this computer.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};

use if_addrs::{IfAddr, Interface};
use ipnet::{IpNet, Ipv4Net};

/// The IPv4 network in which this computer is, as far as can be known: that of its default route, or
/// else of its first interface. `None` if it is in none.
pub fn own_network() -> Option<IpNet> {
    let interfaces = if_addrs::get_if_addrs().unwrap_or_default();
    of_interfaces(&interfaces, default_source())
}

/// Like [`own_network`]; an example if this computer is in no network.
pub fn own_network_or_example() -> String {
    own_network().map_or_else(|| "192.168.1.0/24".to_owned(), |network| network.to_string())
}

/// The addresses of all interfaces of this computer; none if they cannot be told.
pub fn own_addresses() -> Vec<IpAddr> {
    let interfaces = if_addrs::get_if_addrs().unwrap_or_default();
    interfaces.iter().map(Interface::ip).collect()
}

/// The network of an interface of this computer in which `address` is, and the interface's name; `None`
/// if it is in none, or is loopback.
pub fn network_around(address: IpAddr) -> Option<(String, IpNet)> {
    around(&if_addrs::get_if_addrs().unwrap_or_default(), address)
}

/// Whether an address is of use only with the interface of whoever sends to it.
pub fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

/// The address from which the kernel would send into the internet. Sends nothing.
fn default_source() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    // An address for documentation (RFC 5737).
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

fn around(interfaces: &[Interface], address: IpAddr) -> Option<(String, IpNet)> {
    let networks = interfaces.iter().filter_map(|interface| {
        let network = match &interface.addr {
            IfAddr::V4(v4) => IpNet::with_netmask(v4.ip.into(), v4.netmask.into()),
            IfAddr::V6(v6) => IpNet::with_netmask(v6.ip.into(), v6.netmask.into()),
        };
        Some((&interface.name, network.ok()?))
    });
    let with_it = networks.filter(|(_, net)| !net.addr().is_loopback() && net.contains(&address));
    let narrowest = with_it.max_by_key(|(_, network)| network.prefix_len());
    narrowest.map(|(name, network)| (name.clone(), network.trunc()))
}

fn of_interfaces(interfaces: &[Interface], source: Option<IpAddr>) -> Option<IpNet> {
    let networks = interfaces.iter().filter_map(|interface| match &interface.addr {
        IfAddr::V4(v4) if !v4.ip.is_loopback() && !v4.ip.is_link_local() => {
            let network = Ipv4Net::with_netmask(v4.ip, v4.netmask).ok()?;
            // A VPN's interface may be alone in its network.
            (network.prefix_len() < 32).then_some((interface, IpNet::V4(network.trunc())))
        }
        _ => None,
    });
    let networks: Vec<_> = networks.collect();
    let of_route = networks.iter().find(|(interface, _)| Some(interface.ip()) == source);
    of_route.or(networks.first()).map(|(_, network)| *network)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(address: &str) -> Interface {
        let net: Ipv4Net = address.parse().expect("a network");
        Interface {
            name: "eth0".to_owned(),
            addr: IfAddr::V4(if_addrs::Ifv4Addr {
                ip: net.addr(),
                netmask: net.netmask(),
                prefixlen: net.prefix_len(),
                broadcast: None,
            }),
            index: None,
            oper_status: if_addrs::IfOperStatus::Up,
            is_p2p: false,
        }
    }

    #[test]
    fn the_network_around_an_address_is_the_narrowest_of_an_interface() {
        let all = ["127.0.0.1/8", "172.18.0.1/16", "172.18.5.1/24", "100.64.0.7/32"];
        let all: Vec<_> = all.into_iter().map(interface).collect();
        for (address, is) in [
            ("172.18.0.2", Some("172.18.0.0/16")),
            ("172.18.5.2", Some("172.18.5.0/24")),
            ("172.19.0.2", None),
            ("127.0.0.1", None),
            ("fd00::1", None),
        ] {
            let network = around(&all, address.parse().expect("an address"));
            let network = network.map(|(_, network)| network.to_string());
            assert_eq!(network.as_deref(), is, "{address}");
        }
    }

    #[test]
    fn it_is_the_network_of_the_default_route_or_else_the_first_that_is_none_of_ours_alone() {
        let all = ["127.0.0.1/8", "100.64.0.7/32", "172.17.0.1/16", "192.168.7.23/24"];
        let all: Vec<_> = all.into_iter().map(interface).collect();
        for (source, is) in [
            (Some("192.168.7.23"), "192.168.7.0/24"),
            (Some("100.64.0.7"), "172.17.0.0/16"),
            (None, "172.17.0.0/16"),
        ] {
            let source = source.map(|ip| ip.parse().expect("an address"));
            assert_eq!(of_interfaces(&all, source), Some(is.parse().expect("a network")));
        }
        assert_eq!(of_interfaces(&all[..2], None), None);
    }
}
