//! Which losses are the path's own, and which come from sending too much.

use std::{collections::VecDeque, time::Duration};

/// The losses of so many rounds are compared.
const ROUNDS: usize = 32;
/// No path that is worth using loses more of itself.
const MOST_OWN: f64 = 0.06;
/// This much is not rare.
const MAY_BE_OWN: f64 = 0.05;
/// Fewer packets than this are chance.
const FEW: f64 = 3.0;

/// What was acknowledged and lost in this round, and the shares that the last rounds lost.
#[derive(Debug, Clone, Default)]
pub(super) struct Losses {
    acked: f64,
    lost: f64,
    began: Duration,
    marked: bool,
    outage: bool,
    shares: VecDeque<f64>,
}

impl Losses {
    pub(super) fn on_ack(&mut self, bytes: u64) {
        self.acked += bytes as f64;
    }

    pub(super) fn on_lost(&mut self, bytes: u64) {
        self.lost += bytes as f64;
    }

    /// This round says nothing.
    pub(super) fn forget(&mut self) {
        self.outage = true;
    }

    /// Whether this is the first mark of the round.
    pub(super) fn is_first_mark(&mut self) -> bool {
        !std::mem::replace(&mut self.marked, true)
    }

    /// What has been acknowledged in this round, in bytes per second.
    pub(super) fn rate(&mut self, now: Duration) -> f64 {
        let took = (now - std::mem::replace(&mut self.began, now)).as_secs_f64();
        self.acked / took.max(1e-6)
    }

    /// A round is over. What share of its packets was lost beyond the path's own losses, if that is
    /// more than chance explains; 0 if not.
    pub(super) fn end_round(&mut self, mtu: f64) -> f64 {
        let (acked, lost) = (std::mem::take(&mut self.acked), std::mem::take(&mut self.lost));
        self.marked = false;
        let all = acked + lost;
        if std::mem::take(&mut self.outage) || all <= 0.0 {
            return 0.0;
        }
        let (share, own) = (lost / all, self.own());
        self.shares.push_back(share);
        if self.shares.len() > ROUNDS {
            self.shares.pop_front();
        }
        let chance = 3.0 * (own.max(0.005) * mtu / all).sqrt();
        if share > own + chance && lost > FEW * mtu { share - own } else { 0.0 }
    }

    /// The share of packets that the path itself loses: half of the rounds lost less. While few
    /// rounds are known, it may be much.
    pub(super) fn own(&self) -> f64 {
        let mut shares: Vec<f64> = self.shares.iter().copied().collect();
        shares.sort_unstable_by(f64::total_cmp);
        let own = shares.get(shares.len() / 2).copied().unwrap_or(0.0).min(MOST_OWN);
        if shares.len() < ROUNDS / 2 { own.max(MAY_BE_OWN) } else { own }
    }
}
