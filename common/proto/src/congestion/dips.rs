//! Dips: less is sent for a moment, so that the path's own round trip shows, and who is in the queue.

use std::time::Duration;

use super::{Phase, Shallow, rivals::Rivals};

/// What is left of the window in a dip.
pub(super) const DIP_LEAVES: f64 = 0.6;
/// When the path's own round trip has not been seen for so long, less is sent for two round trips
/// to see it;
/// but not within so many rounds of the last dip.
pub(super) const DIP_AFTER: Duration = Duration::from_secs(8);
const DIP_ROUNDS: u32 = 8;
/// And after so many rounds with a queue that is so many times as long as it should be.
const TALL: (u32, f64) = (5, 2.0);
/// For so long after others were there, this is enough to look for them again.
pub(super) const WARY: Duration = Duration::from_secs(30);
const TALL_WARY: (u32, f64) = (2, 1.5);

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Dip {
    /// The part of the window that is kept.
    pub(super) part: f64,
    /// The round trip before, in seconds.
    before: f64,
    /// When so little was in flight as there should be.
    reached: Option<Duration>,
    /// The lowest round trip since.
    low: Option<Duration>,
}

impl Shallow {
    pub(super) fn begin_dip(&mut self, part: f64) {
        let before = self.path.base() + self.path.queue();
        self.phase = Phase::Dip(Dip { part, before, reached: None, low: None });
    }

    pub(super) fn dip(&mut self, now: Duration, mut dip: Dip, in_flight: u64, sent: Duration) {
        let Some(reached) = dip.reached else {
            let enough = self.wanted() + 2.0 * self.mtu;
            if in_flight as f64 <= enough && self.permitted <= enough {
                dip.reached = Some(now);
            }
            self.phase = Phase::Dip(dip);
            return;
        };
        if sent < reached {
            return;
        }
        let low = dip.low.map_or(now - sent, |low| low.min(now - sent));
        dip.low = Some(low);
        self.phase = Phase::Dip(dip);
        let enough = if self.rivals.is_some() && dip.part == DIP_LEAVES { low / 4 } else { low };
        if sent - reached >= enough {
            (self.phase, self.tall) = (Phase::Steady, 0);
            (self.dipped_at, self.dip_low) = (now, low);
            self.judge_dip(now, dip, low);
        }
    }

    /// The round trip fell to `low` when a part of what we had in flight was away: is anybody else
    /// in the queue?
    fn judge_dip(&mut self, now: Duration, dip: Dip, low: Duration) {
        let (before, floor, after) = (dip.before, self.path.floor(), low.as_secs_f64());
        let much = if self.rivals.is_some() {
            self.expected() + 2.0 * self.path.jitter()
        } else {
            self.allowed().max(0.1 * floor)
        };
        let much = much.max(0.05 * (before - floor));
        // A queue that is shorter than ever may be shorter still.
        let known = self.rivals.is_none() || after > 0.97 * floor - 4.0 * self.path.jitter();
        let empty = after - floor < much && known;
        let sure = self
            .rivals
            .as_mut()
            .is_none_or(|rivals| rivals.was_empty(empty, dip.part < DIP_LEAVES));
        if empty && sure {
            (self.rivals, self.short) = (None, 0);
            self.path.add_low(now, low);
            return;
        }
        self.path.add_low(now, low);
        // Our own part of the queue fell by as much as we took away.
        let share = ((1.0 - after / before) / (1.0 - dip.part)).clamp(0.0, 1.0);
        let rivals = self.rivals.get_or_insert_with(|| {
            self.window = self.window.max(self.recent * 0.7);
            Rivals::new(now, share)
        });
        if rivals.measured(now, share) {
            self.settle(now, low);
        }
    }

    /// What looked like the queue of others was the path's own round trip.
    pub(super) fn settle(&mut self, now: Duration, low: Duration) {
        self.rivals = None;
        self.path.settle(now, low);
        self.window = self.window.min(self.rate.best() * self.path.base()).max(self.least());
    }

    /// After how many rounds with a queue of how many times its length others are looked for.
    pub(super) fn tall_rounds(&self, now: Duration) -> (u32, f64) {
        if now < self.wary_until { TALL_WARY } else { TALL }
    }

    pub(super) fn is_dip_due(&self, now: Duration) -> bool {
        let rtt = Duration::from_secs_f64(self.path.base() + self.path.queue());
        match &self.rivals {
            Some(rivals) => rivals.is_test_due(now, rtt),
            None => {
                let rested = now - self.dipped_at > rtt * DIP_ROUNDS;
                let old = self.path.base_age(now) > DIP_AFTER;
                rested && (self.tall >= self.tall_rounds(now).0 || old)
            }
        }
    }
}
