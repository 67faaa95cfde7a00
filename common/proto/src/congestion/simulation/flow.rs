//! One sender and its receiver.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use super::{Control, ms};

pub(in crate::congestion) const MTU: u64 = 1452;
/// Packets in one batch, as quinn sends them.
const BATCH: usize = 10;

/// What a flow's application has to send.
#[derive(Debug, Clone, Copy)]
pub(in crate::congestion) enum Source {
    /// As much as can be sent.
    Bulk,
    /// So many bytes, again and again.
    Every(Duration, u64),
    /// As much as can be sent, for the first time, and nothing for the second, in turns.
    OnOff(Duration, Duration),
}

struct Packet {
    at: Duration,
    size: u64,
}

pub(in crate::congestion) struct Flow {
    pub(in crate::congestion) control: Box<dyn Control>,
    source: Source,
    backlog: u64,
    /// Not acknowledged and not lost, from the packet `first` on.
    packets: VecDeque<Option<Packet>>,
    first: u64,
    pub(super) in_flight: u64,
    limited: bool,
    srtt: Option<Duration>,
    var: Duration,
    largest: Option<u64>,
    pub(super) lost: u64,
    // The pacer.
    tokens: f64,
    refilled: Duration,
    next: Option<Duration>,
    pub(super) wake_at: Option<Duration>,
    pub(super) loss_at: Option<Duration>,
    last_sent: Duration,
    probes: u32,
    timeouts: u32,
    // The receiver.
    expected: u64,
    pending: Vec<u64>,
    pub(super) ack_timer: Option<Duration>,
    sizes: VecDeque<u64>,
    sizes_from: u64,
    pub(super) delivered: BTreeMap<Duration, u64>,
}

impl Flow {
    pub(super) fn new(control: Box<dyn Control>, source: Source) -> Self {
        Self {
            control,
            source,
            backlog: 0,
            packets: VecDeque::new(),
            first: 0,
            in_flight: 0,
            limited: true,
            srtt: None,
            var: Duration::ZERO,
            largest: None,
            lost: 0,
            tokens: (BATCH as u64 * MTU) as f64,
            refilled: Duration::ZERO,
            next: None,
            wake_at: None,
            loss_at: None,
            last_sent: Duration::ZERO,
            probes: 0,
            timeouts: 0,
            expected: 0,
            pending: Vec::new(),
            ack_timer: None,
            sizes: VecDeque::new(),
            sizes_from: 0,
            delivered: BTreeMap::new(),
        }
    }

    pub(super) fn sent_packets(&self) -> u64 {
        self.first + self.packets.len() as u64
    }

    /// The application writes; when it writes again.
    pub(super) fn write(&mut self, now: Duration) -> Option<Duration> {
        match self.source {
            Source::Bulk => {
                self.backlog = u64::MAX / 2;
                None
            }
            Source::Every(pause, bytes) => {
                self.backlog += bytes;
                Some(now + pause)
            }
            Source::OnOff(on, off) => {
                let is_off = self.backlog > 0;
                self.backlog = if is_off { 0 } else { u64::MAX / 2 };
                Some(now + if is_off { off } else { on })
            }
        }
    }

    fn smoothed(&self) -> Duration {
        self.srtt.unwrap_or(ms(333))
    }

    /// Packets that may leave now: their numbers and sizes.
    pub(super) fn batch(&mut self, now: Duration) -> Option<Vec<(u64, u64)>> {
        let mut batch = Vec::new();
        let mut blocked = false;
        while batch.len() < BATCH && self.backlog > 0 {
            if self.probes > 0 {
                self.probes -= 1;
            } else if self.in_flight + MTU >= self.control.window() || !self.may_pace(now) {
                blocked = true;
                break;
            }
            let size = self.backlog.min(MTU);
            self.backlog -= size;
            self.tokens -= size as f64;
            self.in_flight += size;
            batch.push((self.sent_packets(), size));
            self.packets.push_back(Some(Packet { at: now, size }));
            self.sizes.push_back(size);
        }
        if batch.is_empty() {
            self.limited = !blocked;
            return None;
        }
        self.last_sent = now;
        self.control.on_sent(now, batch.iter().map(|packet| packet.1).sum());
        Some(batch)
    }

    fn may_pace(&mut self, now: Duration) -> bool {
        if !self.control.is_paced() || self.tokens >= MTU as f64 {
            return true;
        }
        let window_rate = 1.25 * self.control.window() as f64 / self.smoothed().as_secs_f64();
        let rate = self.control.pacing().unwrap_or(window_rate);
        let capacity = (rate / 1.25 * 0.002).clamp((BATCH as u64 * MTU) as f64, 256.0 * MTU as f64);
        let capacity = if self.control.pacing().is_some() { 2.0 * MTU as f64 } else { capacity };
        let elapsed = (now - self.refilled).as_secs_f64();
        self.tokens = (self.tokens + rate * elapsed).min(capacity);
        self.refilled = now;
        if self.tokens >= MTU as f64 {
            return true;
        }
        self.next = Some(now + Duration::from_secs_f64((capacity - self.tokens) / rate));
        false
    }

    /// When the pacer lets the next packet go, if that is not known yet.
    pub(super) fn wake(&mut self, now: Duration) -> Option<Duration> {
        let next = self.next.take()?.max(now + Duration::from_nanos(1));
        if self.wake_at.is_some_and(|at| at > now && at <= next) {
            return None;
        }
        self.wake_at = Some(next);
        Some(next)
    }

    /// A packet has come; whether it is acknowledged at once.
    pub(super) fn received(&mut self, now: Duration, number: u64) -> bool {
        let size = self.sizes[(number - self.sizes_from) as usize];
        while self.sizes_from + 4 * (BATCH as u64) + 20_000 < number {
            self.sizes.pop_front();
            self.sizes_from += 1;
        }
        *self.delivered.entry(now).or_default() += size;
        let in_order = number == self.expected;
        self.expected = self.expected.max(number + 1);
        self.pending.push(number);
        !in_order || self.pending.len() >= 2
    }

    pub(super) fn acknowledging(&mut self) -> Vec<u64> {
        self.ack_timer = None;
        std::mem::take(&mut self.pending)
    }

    fn take(&mut self, number: u64) -> Option<Packet> {
        let packet = self.packets.get_mut(number.checked_sub(self.first)? as usize)?.take()?;
        self.in_flight -= packet.size;
        while self.packets.front().is_some_and(Option::is_none) {
            self.packets.pop_front();
            self.first += 1;
        }
        Some(packet)
    }

    /// Acknowledgements have come.
    pub(super) fn acknowledged(&mut self, now: Duration, numbers: &[u64]) {
        let mut newest = None;
        for number in numbers {
            let Some(packet) = self.take(*number) else { continue };
            self.control.on_ack(now, packet.at, packet.size, self.limited);
            newest = newest.max(Some((*number, packet.at)));
        }
        let Some((number, at)) = newest else { return };
        self.control.on_acks_done(now, self.in_flight, self.limited);
        if self.largest.is_none_or(|largest| number > largest) {
            self.largest = Some(number);
            let rtt = now - at;
            let srtt = *self.srtt.get_or_insert(rtt);
            self.var = (self.var * 3 + srtt.abs_diff(rtt)) / 4;
            self.srtt = Some((srtt * 7 + rtt) / 8);
        }
        self.detect(now);
        self.timeouts = 0;
    }

    fn detect(&mut self, now: Duration) {
        let Some(largest) = self.largest else { return };
        let late = self.smoothed().mul_f64(1.125);
        let (mut bytes, mut newest) = (0, None);
        let numbers: Vec<u64> = (self.first..largest)
            .take_while(|number| largest - number >= 3 || self.is_late(*number, now, late))
            .collect();
        for number in numbers {
            if let Some(packet) = self.take(number) {
                self.lost += 1;
                bytes += packet.size;
                newest = Some(packet.at);
            }
        }
        if let Some(sent) = newest {
            // RFC 9002 section 7.6.
            let outage = self.timeouts >= 2;
            self.control.on_lost(now, sent, bytes, outage);
        }
    }

    fn is_late(&self, number: u64, now: Duration, late: Duration) -> bool {
        match &self.packets[(number - self.first) as usize] {
            Some(packet) => now - packet.at >= late,
            None => true,
        }
    }

    pub(super) fn loss_timer(&mut self, now: Duration) {
        self.loss_at = None;
        let before = self.lost;
        self.detect(now);
        if self.lost == before && self.in_flight > 0 {
            self.probes = 2;
            self.timeouts += 1;
        }
    }

    /// When the loss timer fires, if that has changed.
    pub(super) fn next_loss_timer(&mut self, now: Duration) -> Option<Duration> {
        if self.in_flight == 0 {
            self.loss_at = None;
            return None;
        }
        let early = match (self.largest, self.packets.front()) {
            (Some(largest), Some(Some(packet))) if self.first < largest => {
                packet.at + self.smoothed().mul_f64(1.125)
            }
            _ => {
                let timeout = self.smoothed() + (self.var * 4).max(ms(1)) + ms(25);
                self.last_sent + timeout * 2u32.pow(self.timeouts.min(10))
            }
        };
        let at = early.max(now + Duration::from_micros(1));
        if self.loss_at.is_some_and(|known| known <= at && known > now) {
            return None;
        }
        self.loss_at = Some(at);
        Some(at)
    }
}
