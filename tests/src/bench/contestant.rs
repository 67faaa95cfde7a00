//! The contestants: no tunnel, `ssh -L`, Adit, and other tunnels.

use super::row::{Congestion, Direction, Row, Scene, Work};

/// A way to carry connections from the laptop to the service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contestant {
    /// Its name on the command line and in the report.
    pub name: String,
    /// The kind of contestant.
    pub kind: Kind,
}

/// The kinds of contestants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// No tunnel: TCP, with this congestion control.
    Direct(Congestion),
    /// `ssh -L`, with the cipher that it chooses, or with AES-128-GCM.
    Ssh {
        /// Whether the cipher is AES-128-GCM.
        gcm: bool,
    },
    /// Adit.
    Adit {
        /// The index of the build among those that are compared; 0 is this build.
        program: usize,
        /// What carries the tunnel's packets to the server.
        carrier: Carrier,
        /// The kind of the service (`--upstream http://` or `tcp://`).
        service: Service,
    },
    /// Another tunnel that is installed on this machine.
    Peer(Peer),
}

/// What carries Adit's packets to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carrier {
    /// UDP.
    Udp,
    /// Frames over SSH.
    Ssh,
}

/// The kind of the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// `tcp://`: bytes are forwarded without being read.
    Tcp,
    /// `http://`: the gate reads each request.
    Http,
}

/// Other tunnels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// TCP over iroh's QUIC.
    Dumbpipe,
    /// TLS with certificates on both sides.
    Stunnel,
    /// WebSocket over TLS.
    Wstunnel,
    /// A reverse tunnel, with Noise.
    Rathole,
    /// WireGuard in user space.
    Boringtun,
}

impl Service {
    /// Its scheme in `--upstream`.
    pub fn scheme(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Http => "http",
        }
    }
}

impl Peer {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Dumbpipe, Self::Stunnel, Self::Wstunnel, Self::Rathole, Self::Boringtun];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dumbpipe => "dumbpipe",
            Self::Stunnel => "stunnel",
            Self::Wstunnel => "wstunnel",
            Self::Rathole => "rathole",
            Self::Boringtun => "boringtun",
        }
    }

    /// The programs that have to be on PATH.
    pub fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Dumbpipe => &["dumbpipe"],
            Self::Stunnel => &["stunnel"],
            Self::Wstunnel => &["wstunnel"],
            Self::Rathole => &["rathole"],
            Self::Boringtun => &["boringtun-cli", "wg"],
        }
    }
}

impl Contestant {
    /// All contestants, in the order of the table. `also` names other builds of Adit.
    pub fn all(also: &[String]) -> Vec<Self> {
        let of = |name: &str, kind| Self { name: name.to_owned(), kind };
        let mut all = vec![
            of("direct", Kind::Direct(Congestion::Cubic)),
            of("direct-bbr", Kind::Direct(Congestion::Bbr)),
            of("ssh", Kind::Ssh { gcm: false }),
            of("ssh-gcm", Kind::Ssh { gcm: true }),
        ];
        let builds = std::iter::once("adit").chain(also.iter().map(String::as_str));
        for (program, build) in builds.enumerate() {
            for (carrier, carried) in [(Carrier::Udp, ""), (Carrier::Ssh, "-ssh")] {
                for (service, read) in [(Service::Tcp, ""), (Service::Http, "-http")] {
                    let kind = Kind::Adit { program, carrier, service };
                    all.push(of(&format!("{build}{carried}{read}"), kind));
                }
            }
        }
        all.extend(Peer::ALL.map(|peer| of(peer.name(), Kind::Peer(peer))));
        all
    }

    /// Whether this contestant is measured in this row. `--quick` leaves out contestants that
    /// differ little from others.
    pub fn takes_part(&self, row: &Row, quick: bool) -> bool {
        let clean = row.scene.link().is_none();
        let bulk = matches!(row.work, Work::Bulk { .. });
        let disturbed = matches!(row.work, Work::Disturbance(_));
        if matches!(row.work, Work::Beside { .. }) {
            // Over SSH, the congestion control is that of TCP.
            return match self.kind {
                Kind::Direct(_) => true,
                Kind::Adit { service, carrier, .. } => {
                    (service, carrier) == (Service::Tcp, Carrier::Udp)
                }
                Kind::Ssh { .. } | Kind::Peer(_) => false,
            };
        }
        match self.kind {
            // Without a tunnel there is no process whose memory could be measured.
            Kind::Direct(_) if matches!(row.work, Work::Memory { .. }) => false,
            Kind::Direct(congestion) => congestion == Congestion::Cubic || !(clean || disturbed),
            // The cipher matters only where the processors are the limit.
            Kind::Ssh { gcm: true } => clean && (bulk || !quick),
            Kind::Ssh { gcm: false } => true,
            Kind::Adit { service: Service::Http, carrier, .. } if quick => {
                carrier == Carrier::Udp && row.scene == Scene::Veth && !is_upload(row.work)
            }
            Kind::Adit { service: Service::Http, .. } => !disturbed,
            Kind::Adit { .. } => true,
            // With `--quick`, other tunnels are measured only if they are named.
            Kind::Peer(_) if quick => false,
            // WireGuard is a network interface and needs a network namespace.
            Kind::Peer(Peer::Boringtun) => row.scene != Scene::Loopback,
            // In a reverse tunnel the box connects to the laptop, and the laptop's address changes.
            Kind::Peer(Peer::Rathole) => !disturbed,
            Kind::Peer(_) => true,
        }
    }
}

fn is_upload(work: Work) -> bool {
    matches!(work, Work::Bulk { direction: Direction::Upload, .. })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::row::ROWS;

    fn who(row: &str, quick: bool) -> Vec<String> {
        let row = ROWS.iter().find(|candidate| candidate.id == row).expect("a row");
        let all = Contestant::all(&[]).into_iter();
        let own = all.filter(|contestant| quick || !matches!(contestant.kind, Kind::Peer(_)));
        own.filter(|one| one.takes_part(row, quick)).map(|one| one.name).collect()
    }

    #[test]
    fn who_takes_part_depends_on_what_a_row_can_show() {
        let (udp, ssh) = (["adit", "adit-http"], ["adit-ssh", "adit-ssh-http"]);
        let adit = [udp, ssh].concat();
        for (row, others) in [
            ("veth/memory", &["ssh", "ssh-gcm"][..]),
            ("veth/requests", &["direct", "ssh", "ssh-gcm"][..]),
            ("w2/download", &["direct", "direct-bbr", "ssh"][..]),
        ] {
            assert_eq!(who(row, false), [others, &adit].concat(), "{row}");
        }
        assert_eq!(who("w1/beside-cubic", false), ["direct", "direct-bbr", "adit"]);
        assert_eq!(who("roaming/nat", false), ["direct", "ssh", "adit", "adit-ssh"]);
        assert_eq!(who("w2/download", true), ["direct", "direct-bbr", "ssh", "adit", "adit-ssh"]);
        assert_eq!(who("veth/tokens-16", true), ["direct", "ssh", "adit", "adit-http", "adit-ssh"]);
    }

    #[test]
    fn another_build_takes_part_in_all_its_kinds() {
        let names: Vec<_> =
            Contestant::all(&["before".to_owned()]).into_iter().map(|one| one.name).collect();
        let at = names.iter().position(|name| name == "before").expect("there");
        assert_eq!(names[at..at + 4], ["before", "before-http", "before-ssh", "before-ssh-http"]);
    }
}
