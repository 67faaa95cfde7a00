//! The properties of a link, and the ladder of links on which everything is tested.

use std::time::Duration;

/// A link between a laptop and a server; both directions are alike.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Link {
    pub name: &'static str,
    /// The delay of each packet, one way.
    pub delay: Duration,
    /// The most additional delay. It does not change the order.
    pub jitter: Duration,
    /// Which packets are lost.
    pub loss: Loss,
    /// The rate in bits per second; unlimited if `None`.
    pub rate: Option<u64>,
    /// How long a packet may wait for the rate; others are lost.
    pub queue: Duration,
    /// The share of packets that others overtake.
    pub reorder: f64,
    /// When no packet passes.
    pub holes: Option<Holes>,
}

/// Which packets a link loses.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Loss {
    None,
    /// This share, each independently.
    Random(f64),
    /// This share, in runs of this many packets on average (the Gilbert model).
    Bursts {
        /// The share of all packets.
        share: f64,
        /// The average length of a run, in packets.
        length: f64,
    },
}

/// Repeated times in which no packet passes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Holes {
    /// From the end of one to the end of the next.
    pub every: Duration,
    /// The length of each.
    pub lasting: Duration,
}

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A perfect link.
pub const LOOPBACK: Link = Link {
    name: "loopback",
    delay: ms(0),
    jitter: ms(0),
    loss: Loss::None,
    rate: None,
    queue: ms(100),
    reorder: 0.0,
    holes: None,
};

/// From the best to the worst; all of them occur in practice.
pub const LADDER: [Link; 8] = [
    LOOPBACK,
    Link { name: "lan", delay: ms(1), rate: Some(1_000_000_000), queue: ms(20), ..LOOPBACK },
    Link {
        name: "wifi",
        delay: ms(3),
        jitter: ms(8),
        loss: Loss::Bursts { share: 0.005, length: 3.0 },
        rate: Some(100_000_000),
        ..LOOPBACK
    },
    Link {
        name: "dsl",
        delay: ms(15),
        jitter: ms(2),
        rate: Some(10_000_000),
        queue: ms(200),
        ..LOOPBACK
    },
    Link {
        name: "lte",
        delay: ms(30),
        jitter: ms(20),
        loss: Loss::Random(0.005),
        rate: Some(30_000_000),
        queue: ms(300),
        reorder: 0.02,
        ..LOOPBACK
    },
    Link {
        name: "sat",
        delay: ms(280),
        jitter: ms(10),
        loss: Loss::Random(0.01),
        rate: Some(20_000_000),
        ..LOOPBACK
    },
    Link {
        name: "hotel",
        delay: ms(60),
        jitter: ms(10),
        loss: Loss::Random(0.03),
        rate: Some(20_000_000),
        ..LOOPBACK
    },
    Link {
        name: "train",
        delay: ms(200),
        jitter: ms(40),
        loss: Loss::Bursts { share: 0.1, length: 4.0 },
        rate: Some(10_000_000),
        queue: ms(300),
        reorder: 0.01,
        holes: Some(Holes { every: ms(10_000), lasting: ms(2_000) }),
    },
];

/// The link with this name.
///
/// # Panics
/// If there is none.
pub fn rung(name: &str) -> Link {
    *LADDER
        .iter()
        .find(|link| link.name == name)
        .unwrap_or_else(|| panic!("no link is called {name}"))
}
