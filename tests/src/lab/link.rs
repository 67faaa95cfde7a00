//! What a link does to packets, and the ladder of links that everything is tried on.

use std::time::Duration;

/// A link between a laptop and a server, the same in both directions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Link {
    /// What it is called.
    pub name: &'static str,
    /// How long each packet takes, one way.
    pub delay: Duration,
    /// So much longer at the most. It does not change the order.
    pub jitter: Duration,
    /// Which packets are lost.
    pub loss: Loss,
    /// What passes in a second, in bits; without a number, everything.
    pub rate: Option<u64>,
    /// How long a packet may wait for its turn at that rate; more are lost.
    pub queue: Duration,
    /// The share of packets that others overtake.
    pub reorder: f64,
    /// When nothing passes at all.
    pub holes: Option<Holes>,
}

/// Which packets a link loses.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Loss {
    /// None.
    None,
    /// This share, each by itself.
    Random(f64),
    /// This share, in runs of this many packets on average (the model of Gilbert).
    Bursts {
        /// Of all packets.
        share: f64,
        /// Packets.
        length: f64,
    },
}

/// Times in which nothing passes, again and again.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Holes {
    /// From the end of one to the end of the next.
    pub every: Duration,
    /// How long each is.
    pub lasting: Duration,
}

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A link without any fault.
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

/// From the best to the worst; each is what one meets.
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

/// The rung of this name.
///
/// # Panics
/// If there is none.
pub fn rung(name: &str) -> Link {
    *LADDER
        .iter()
        .find(|link| link.name == name)
        .unwrap_or_else(|| panic!("no link is called {name}"))
}
