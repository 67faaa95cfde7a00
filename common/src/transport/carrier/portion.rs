//! How much is handed to a stream at once, and how much may wait for it. It names no clock: times
//! come in.
//!
//! What lies below takes several portions before it makes anybody wait, and all of them stand in
//! front of the next token. So on a slow link they are small; where nothing is waited for they are
//! large, as each costs a system call and a packet of SSH.

use std::time::Duration;

/// Bytes of a portion: those of a large packet of SSH at the most.
const MOST: usize = 32 << 10;
const LEAST: usize = 2 << 10;
/// What the link carries in so long a time is a portion.
const LASTING: Duration = Duration::from_micros(250);
/// So many portions may wait.
const WAITING: usize = 8;
/// It is decided anew after so many bytes, or so long a wait.
const ENOUGH_BYTES: usize = 1 << 20;
const ENOUGH_TIME: Duration = Duration::from_millis(20);

/// The size of what is written at once.
#[derive(Debug)]
pub(super) struct Portion {
    size: usize,
    bytes: usize,
    time: Duration,
}

impl Default for Portion {
    fn default() -> Self {
        Self { size: MOST, bytes: 0, time: Duration::ZERO }
    }
}

impl Portion {
    /// Bytes that are written at once.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// Bytes that may wait.
    pub(super) fn waiting(&self) -> usize {
        self.size * WAITING
    }

    /// So many bytes have been taken after this time. One that was not full says nothing of the
    /// link: there was no more.
    pub(super) fn taken(&mut self, bytes: usize, after: Duration) {
        if bytes < self.size {
            return;
        }
        self.bytes += bytes;
        self.time += after;
        if self.bytes < ENOUGH_BYTES && self.time < ENOUGH_TIME {
            return;
        }
        let lasting = self.bytes as f64 * LASTING.as_secs_f64() / self.time.as_secs_f64();
        // Nothing was waited for: infinite is as good as much.
        self.size = (lasting.min(MOST as f64) as usize).max(LEAST);
        (self.bytes, self.time) = (0, Duration::ZERO);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_portion_is_what_the_link_carries_in_a_moment() {
        // Mbit/s, and the size that follows from it
        for (rate, size) in
            [(1, LEAST), (20, LEAST), (100, 3_125), (400, 12_500), (1_048, MOST), (9_000, MOST)]
        {
            let mut portion = Portion::default();
            for _ in 0..1000 {
                let taken = portion.size();
                portion
                    .taken(taken, Duration::from_secs_f64(taken as f64 * 8e-6 / f64::from(rate)));
            }
            assert!(portion.size().abs_diff(size) <= size / 10, "{rate} Mbit/s: {portion:?}");
            assert_eq!(portion.waiting(), portion.size() * WAITING);
        }
    }

    #[test]
    fn a_link_that_grows_faster_gets_more_at_once() {
        let mut portion = Portion::default();
        portion.taken(MOST, Duration::from_secs(1));
        assert_eq!(portion.size(), LEAST);
        for _ in 0..ENOUGH_BYTES / LEAST {
            portion.taken(LEAST, Duration::ZERO);
        }
        assert_eq!(portion.size(), MOST);
    }

    #[test]
    fn tokens_alone_say_nothing_of_the_link() {
        let mut portion = Portion::default();
        for _ in 0..10_000 {
            portion.taken(100, Duration::from_millis(1));
        }
        assert_eq!(portion.size(), MOST);
    }
}
