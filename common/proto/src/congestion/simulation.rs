//! Several senders behind one bottleneck, simulated: no clock, no socket, and the same result for
//! the same seed. Senders behave as quinn's do: batches of ten packets, its pacer, its loss
//! detection (RFC 9002 section 6) and its delayed acknowledgements.

mod bbr;
mod cubic;
mod flow;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    ops::Range,
    time::Duration,
};

use self::flow::Flow;
pub(super) use self::{
    bbr::Bbr,
    cubic::Cubic,
    flow::{MTU, Source},
};

/// What a sender is steered by; as quinn's trait, and a rate for those that have one.
pub(super) trait Control {
    fn on_sent(&mut self, now: Duration, bytes: u64);
    fn on_ack(&mut self, now: Duration, sent: Duration, bytes: u64, limited: bool);
    fn on_acks_done(&mut self, now: Duration, in_flight: u64, limited: bool);
    /// `outage`: all packets of a long time were lost.
    fn on_lost(&mut self, now: Duration, sent: Duration, bytes: u64, outage: bool);
    fn window(&self) -> u64;
    /// Bytes per second; without one, quinn's pacer follows from the window.
    fn pacing(&self) -> Option<f64> {
        None
    }
    /// TCP's Cubic sends whatever the window has room for.
    fn is_paced(&self) -> bool {
        true
    }
}

/// A path with one bottleneck; the way back has no queue.
#[derive(Debug, Clone, Copy)]
pub(super) struct Link {
    /// Bits per second.
    pub(super) rate: f64,
    /// One way.
    pub(super) delay: Duration,
    /// So much longer at the most, on each way; it does not change the order.
    pub(super) jitter: Duration,
    /// How long a packet may wait at the bottleneck.
    pub(super) queue: Duration,
    /// The share of packets that are lost at random, each way.
    pub(super) loss: f64,
    /// Acknowledgements come together at multiples of this.
    pub(super) ack_every: Duration,
}

pub(super) const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

impl Link {
    /// Megabits per second, and milliseconds each way; 100 ms of queue.
    pub(super) const fn new(megabits: u64, delay: u64) -> Self {
        Self {
            rate: megabits as f64 * 1e6,
            delay: ms(delay),
            jitter: Duration::ZERO,
            queue: ms(100),
            loss: 0.0,
            ack_every: Duration::ZERO,
        }
    }
}

pub(super) struct Rng(pub(super) u64);

impl Rng {
    fn next(&mut self) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(super) fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A packet reaches the receiver.
    Deliver(u64),
    /// A delayed acknowledgement is due.
    AckTimer,
    /// Acknowledgements reach the sender.
    Acks(Vec<u64>),
    /// The sender looks at what it may send.
    Send,
    /// Its loss timer.
    LossTimer,
    /// Its application writes.
    Write,
    /// The queue is looked at.
    Look,
    /// The link changes.
    Change,
}

/// Everything that happens.
pub(super) struct World {
    pub(super) link: Link,
    flows: Vec<Flow>,
    events: BinaryHeap<Reverse<(Duration, u64, usize, Event)>>,
    number: u64,
    rng: Rng,
    /// When the bottleneck has sent all that it holds.
    free_at: Duration,
    /// The order is kept.
    last: BTreeMap<(usize, bool), Duration>,
    changes: Vec<(Duration, Link)>,
    /// How long a packet would have waited, every 5 ms.
    waits: Vec<(Duration, Duration)>,
    tail_lost: u64,
}

impl World {
    pub(super) fn new(link: Link, seed: u64) -> Self {
        Self {
            link,
            flows: Vec::new(),
            events: BinaryHeap::new(),
            number: 0,
            rng: Rng(seed),
            free_at: Duration::ZERO,
            last: BTreeMap::new(),
            changes: Vec::new(),
            waits: Vec::new(),
            tail_lost: 0,
        }
    }

    /// A sender that begins at `from`.
    pub(super) fn add(
        &mut self,
        control: impl Control + 'static,
        source: Source,
        from: Duration,
    ) -> usize {
        let id = self.flows.len();
        self.flows.push(Flow::new(Box::new(control), source));
        self.put(from, id, Event::Write);
        id
    }

    /// Another link from `at` on.
    pub(super) fn change(&mut self, at: Duration, link: Link) {
        self.changes.push((at, link));
        self.put(at, 0, Event::Change);
    }

    fn put(&mut self, at: Duration, flow: usize, event: Event) {
        self.number += 1;
        self.events.push(Reverse((at, self.number, flow, event)));
    }

    /// Lets time go by until `until`.
    pub(super) fn run(&mut self, until: Duration) {
        if self.number > 0 && self.waits.is_empty() {
            self.put(Duration::ZERO, 0, Event::Look);
        }
        while let Some(Reverse((at, ..))) = self.events.peek()
            && *at <= until
        {
            let Some(Reverse((now, _, id, event))) = self.events.pop() else { break };
            self.happen(now, id, event);
        }
    }

    fn happen(&mut self, now: Duration, id: usize, event: Event) {
        match event {
            Event::Look => {
                self.waits.push((now, self.free_at.saturating_sub(now)));
                self.put(now + ms(5), 0, Event::Look);
            }
            Event::Change => {
                if let Some(change) = self.changes.iter().find(|change| change.0 == now) {
                    self.link = change.1;
                    self.free_at = now;
                }
            }
            Event::Write => {
                if let Some(next) = self.flows[id].write(now) {
                    self.put(next, id, Event::Write);
                }
                self.send(now, id);
            }
            Event::Send => {
                if self.flows[id].wake_at == Some(now) {
                    self.flows[id].wake_at = None;
                    self.send(now, id);
                }
            }
            Event::Deliver(number) => self.deliver(now, id, number),
            Event::AckTimer => {
                if self.flows[id].ack_timer.take_if(|at| *at == now).is_some() {
                    self.acknowledge(now, id);
                }
            }
            Event::Acks(numbers) => {
                self.flows[id].acknowledged(now, &numbers);
                self.loss_timer(now, id);
                self.send(now, id);
            }
            Event::LossTimer => {
                if self.flows[id].loss_at == Some(now) {
                    self.flows[id].loss_timer(now);
                    self.loss_timer(now, id);
                    self.send(now, id);
                }
            }
        }
    }

    fn loss_timer(&mut self, now: Duration, id: usize) {
        if let Some(at) = self.flows[id].next_loss_timer(now) {
            self.put(at, id, Event::LossTimer);
        }
    }

    fn send(&mut self, now: Duration, id: usize) {
        // Batches, until the window, the pacer or the application stops it.
        while let Some(batch) = self.flows[id].batch(now) {
            for (number, size) in batch {
                self.forward(now, id, number, size);
            }
        }
        if let Some(at) = self.flows[id].wake(now) {
            self.put(at, id, Event::Send);
        }
        self.loss_timer(now, id);
    }

    fn forward(&mut self, now: Duration, id: usize, number: u64, size: u64) {
        let link = self.link;
        if self.rng.fraction() < link.loss {
            return;
        }
        let begun = self.free_at.max(now);
        if begun - now > link.queue {
            self.tail_lost += 1;
            return;
        }
        self.free_at = begun + Duration::from_secs_f64(size as f64 * 8.0 / link.rate);
        let at = self.delayed(self.free_at, id, false);
        self.put(at, id, Event::Deliver(number));
    }

    fn delayed(&mut self, from: Duration, id: usize, back: bool) -> Duration {
        let jitter = self.link.jitter.mul_f64(self.rng.fraction());
        let at = from + self.link.delay + jitter;
        // One interface carries all of a direction, whosever it is.
        let last = self.last.entry((if back { id } else { 0 }, back)).or_default();
        *last = at.max(*last);
        *last
    }

    fn deliver(&mut self, now: Duration, id: usize, number: u64) {
        if self.flows[id].received(now, number) {
            self.acknowledge(now, id);
        } else if self.flows[id].ack_timer.is_none() {
            let at = now + ms(25);
            self.flows[id].ack_timer = Some(at);
            self.put(at, id, Event::AckTimer);
        }
    }

    fn acknowledge(&mut self, now: Duration, id: usize) {
        if self.rng.fraction() < self.link.loss {
            return;
        }
        let numbers = self.flows[id].acknowledging();
        let mut at = self.delayed(now, id, true);
        let every = self.link.ack_every.as_nanos();
        if every > 0 {
            at = Duration::from_nanos((at.as_nanos().div_ceil(every) * every) as u64);
        }
        self.put(at, id, Event::Acks(numbers));
    }

    /// What has reached the receiver meanwhile, in megabits per second.
    pub(super) fn megabits(&self, flow: usize, during: Range<Duration>) -> f64 {
        let took = (during.end - during.start).as_secs_f64();
        let bytes: u64 = self.flows[flow].delivered.range(during).map(|(_, bytes)| bytes).sum();
        bytes as f64 * 8.0 / took / 1e6
    }

    /// How long a packet waits at the bottleneck, in milliseconds: this share of the time it is
    /// less.
    pub(super) fn wait(&self, share: f64, during: Range<Duration>) -> f64 {
        let mut waits: Vec<_> =
            self.waits.iter().filter(|(at, _)| during.contains(at)).map(|wait| wait.1).collect();
        waits.sort_unstable();
        waits
            .get((waits.len() as f64 * share) as usize)
            .map_or(0.0, |wait| wait.as_secs_f64() * 1e3)
    }

    pub(super) fn tail_lost(&self) -> u64 {
        self.tail_lost
    }

    pub(super) fn window(&self, flow: usize) -> u64 {
        self.flows[flow].control.window()
    }
}
