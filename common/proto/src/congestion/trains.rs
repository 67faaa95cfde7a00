//! How fast the bottleneck sends, told by packets that were sent at the same moment: it spreads
//! them.

use std::{collections::VecDeque, time::Duration};

/// So many trains are compared.
const KEPT: usize = 8;
/// Fewer say nothing.
const ENOUGH: usize = 3;
/// A train has so many packets at least, behind those that were acknowledged first.
const LONG: f64 = 4.0;

/// Packets that were sent at the same moment.
#[derive(Debug, Clone, Copy)]
struct Train {
    sent: Duration,
    /// When its first packets were acknowledged.
    first: Duration,
    /// When the last ones were so far, and how many bytes came behind the first.
    last: Duration,
    behind: f64,
}

/// The rates of the last trains. The first rounds of slow start show them long before there is
/// enough in flight to show how much the path delivers.
#[derive(Debug, Clone, Default)]
pub(super) struct Trains {
    current: Option<Train>,
    /// In bytes per second.
    rates: VecDeque<f64>,
}

impl Trains {
    /// A packet of `bytes` bytes that was sent at `sent` has been acknowledged.
    pub(super) fn on_ack(&mut self, now: Duration, sent: Duration, bytes: u64, mtu: f64) {
        match &mut self.current {
            Some(train) if train.sent == sent => {
                if now > train.first {
                    train.behind += bytes as f64;
                    train.last = now;
                }
            }
            _ => {
                let ended =
                    self.current.replace(Train { sent, first: now, last: now, behind: 0.0 });
                if let Some(train) = ended.filter(|train| train.behind >= LONG * mtu) {
                    let rate = train.behind / (train.last - train.first).as_secs_f64();
                    self.rates.push_back(rate);
                    if self.rates.len() > KEPT {
                        self.rates.pop_front();
                    }
                }
            }
        }
    }

    /// What the bottleneck sends in a second, in bytes: half of the trains were slower. `None`
    /// while too few are known.
    pub(super) fn rate(&self) -> Option<f64> {
        let mut rates: Vec<f64> = self.rates.iter().copied().collect();
        rates.sort_unstable_by(f64::total_cmp);
        rates.get(rates.len() / 2).copied().filter(|_| rates.len() >= ENOUGH)
    }
}
