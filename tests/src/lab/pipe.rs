//! One direction of a link: which packets arrive, and when.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    time::{Duration, Instant},
};

use super::{
    chance::Chance,
    link::{Link, Loss},
};

/// The most additional delay of a packet that others overtake.
const OVERTAKEN_BY: Duration = Duration::from_millis(30);

/// Packets under way in one direction.
pub(super) struct Pipe {
    chance: Chance,
    began: Instant,
    /// When the bottleneck has sent everything that waits.
    free_at: Instant,
    /// When the packet before arrives.
    last_due: Instant,
    in_burst: bool,
    under_way: BinaryHeap<Reverse<(Instant, u64, Vec<u8>)>>,
    admitted: u64,
}

impl Pipe {
    pub(super) fn new(seed: u64, now: Instant) -> Self {
        Self {
            chance: Chance::new(seed),
            began: now,
            free_at: now,
            last_due: now,
            in_burst: false,
            under_way: BinaryHeap::new(),
            admitted: 0,
        }
    }

    /// Sends a packet over `link`, unless the link loses it.
    pub(super) fn admit(&mut self, link: &Link, now: Instant, packet: Vec<u8>) {
        if let Some(due) = self.due(link, now, packet.len()) {
            self.admitted += 1;
            self.under_way.push(Reverse((due, self.admitted, packet)));
        }
    }

    /// When the next packet arrives.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.under_way.peek().map(|Reverse((due, ..))| *due)
    }

    /// The next packet that has arrived.
    pub(super) fn arrived(&mut self, now: Instant) -> Option<Vec<u8>> {
        let arrived = self.next_due().is_some_and(|due| due <= now);
        if arrived { self.under_way.pop().map(|Reverse((.., packet))| packet) } else { None }
    }

    fn due(&mut self, link: &Link, now: Instant, len: usize) -> Option<Instant> {
        if self.in_hole(link, now) || self.is_lost(link.loss) {
            return None;
        }
        let mut due = now;
        if let Some(rate) = link.rate {
            if self.free_at.saturating_duration_since(now) > link.queue {
                return None;
            }
            self.free_at =
                self.free_at.max(now) + Duration::from_secs_f64(len as f64 * 8.0 / rate as f64);
            due = self.free_at;
        }
        due += link.delay + self.chance.between(Duration::ZERO, link.jitter);
        if self.chance.happens(link.reorder) {
            return Some(due + self.chance.between(Duration::ZERO, OVERTAKEN_BY));
        }
        self.last_due = self.last_due.max(due);
        Some(self.last_due)
    }

    fn in_hole(&self, link: &Link, now: Instant) -> bool {
        link.holes.is_some_and(|holes| {
            let since = (now - self.began).as_nanos() % holes.every.as_nanos();
            since >= (holes.every - holes.lasting).as_nanos()
        })
    }

    fn is_lost(&mut self, loss: Loss) -> bool {
        match loss {
            Loss::None => false,
            Loss::Random(share) => self.chance.happens(share),
            Loss::Bursts { share, length } => {
                let leave = 1.0 / length;
                let change = if self.in_burst { leave } else { leave * share / (1.0 - share) };
                self.in_burst ^= self.chance.happens(change);
                self.in_burst
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::link::{Holes, LOOPBACK};

    /// The delay of each of 100,000 packets of 1,000 bytes, one each millisecond; `None` if it was
    /// lost.
    fn tried(link: Link) -> Vec<Option<Duration>> {
        let began = Instant::now();
        let mut pipe = Pipe::new(7, began);
        let at = |i: u64| began + Duration::from_millis(i);
        (0..100_000).map(|i| pipe.due(&link, at(i), 1000).map(|due| due - at(i))).collect()
    }

    fn lost(tried: &[Option<Duration>]) -> f64 {
        tried.iter().filter(|time| time.is_none()).count() as f64 / tried.len() as f64
    }

    #[test]
    fn a_link_loses_its_share_of_packets_independently_or_in_bursts() {
        let random = tried(Link { loss: Loss::Random(0.03), ..LOOPBACK });
        assert!((lost(&random) - 0.03).abs() < 0.003, "{}", lost(&random));
        let bursts = tried(Link { loss: Loss::Bursts { share: 0.1, length: 4.0 }, ..LOOPBACK });
        assert!((lost(&bursts) - 0.1).abs() < 0.01, "{}", lost(&bursts));
        let runs = bursts.windows(2).filter(|two| two[0].is_some() && two[1].is_none()).count();
        let length = lost(&bursts) * bursts.len() as f64 / runs as f64;
        assert!((length - 4.0).abs() < 0.4, "{length}");
        let holes = Holes { every: Duration::from_secs(10), lasting: Duration::from_secs(2) };
        assert!((lost(&tried(Link { holes: Some(holes), ..LOOPBACK })) - 0.2).abs() < 0.001);
    }

    #[test]
    fn a_link_carries_its_rate_and_delays_no_packet_longer_than_its_queue() {
        // 8 Mbit/s are sent.
        let times =
            tried(Link { rate: Some(4_000_000), queue: Duration::from_millis(50), ..LOOPBACK });
        assert!((lost(&times) - 0.5).abs() < 0.01, "{}", lost(&times));
        assert!(times.iter().flatten().all(|time| *time < Duration::from_millis(53)));
        assert!(tried(Link { rate: Some(9_000_000), ..LOOPBACK }).iter().all(Option::is_some));
    }

    #[test]
    fn only_a_reordering_link_changes_the_order_and_the_seed_decides_everything() {
        let jitter = Link {
            delay: Duration::from_millis(10),
            jitter: Duration::from_millis(20),
            ..LOOPBACK
        };
        let overtaken = |link: Link| {
            let arrivals: Vec<_> = tried(link)
                .into_iter()
                .enumerate()
                .map(|(i, t)| Duration::from_millis(i as u64) + t.expect("kept"))
                .collect();
            arrivals.windows(2).filter(|two| two[0] > two[1]).count()
        };
        assert_eq!(overtaken(jitter), 0);
        assert!(overtaken(Link { reorder: 0.02, ..jitter }) > 500);
        assert_eq!(tried(jitter), tried(jitter));
    }
}
