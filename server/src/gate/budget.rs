//! A budget that devices share: memory for bytes that are read ahead, or connections to the
//! service. A device may have as much as it leaves free: one device gets at most half, two get a
//! third each, and a newcomer always finds some. A request that does not fit waits; devices are
//! served in turn.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use proto::identity::DeviceId;
use tokio::sync::{Notify, oneshot};

/// The most requests that wait at once.
const MOST_WAITING: usize = 8192;

#[derive(Debug)]
pub(super) struct Budget {
    most: AtomicUsize,
    /// How long a request waits for its share before it is refused.
    wait: Duration,
    ledger: Mutex<Ledger>,
    /// Notified when a request begins to wait.
    short: Notify,
}

/// No more is available for this device now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BudgetExhausted;

/// One connection's share of the budget; given back when dropped.
#[derive(Debug)]
pub(super) struct Share<'a> {
    budget: &'a Budget,
    device: DeviceId,
    amount: usize,
}

impl Budget {
    /// A budget of `most` units. A request that waits for its share is refused after `wait`.
    pub(super) fn new(most: usize, wait: Duration) -> Self {
        Self { most: AtomicUsize::new(most), wait, ledger: Mutex::default(), short: Notify::new() }
    }

    /// Sets the size of the budget. Shares that were taken stay taken.
    pub(super) fn resize(&self, most: usize) {
        self.most.store(most, Relaxed);
    }

    /// Ends when a request of this device waits: a connection that does not need its share now
    /// gives it back.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn wanted(&self, device: DeviceId) {
        loop {
            let mut short = std::pin::pin!(self.short.notified());
            short.as_mut().enable();
            if self.lock().waits(device) {
                return;
            }
            short.await;
        }
    }

    fn most(&self) -> usize {
        self.most.load(Relaxed)
    }

    /// An empty share, for a connection of this device.
    pub(super) fn share(&self, device: DeviceId) -> Share<'_> {
        Share { budget: self, device, amount: 0 }
    }

    fn lock(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Share<'_> {
    pub(super) fn amount(&self) -> usize {
        self.amount
    }

    /// Grows the share to `amount` at once, if it is smaller.
    ///
    /// # Errors
    /// [`BudgetExhausted`]; the share is unchanged.
    pub(super) fn try_grow(&mut self, amount: usize) -> Result<(), BudgetExhausted> {
        let more = amount.saturating_sub(self.amount);
        if more > 0 {
            self.budget.lock().take(self.device, more, self.budget.most())?;
            self.amount = amount;
        }
        Ok(())
    }

    /// Grows the share to `amount`, if it is smaller; waits for it.
    ///
    /// # Errors
    /// [`BudgetExhausted`] if the wait timed out; the share is unchanged.
    ///
    /// # Cancel safety
    /// The share is unchanged.
    pub(super) async fn grow(&mut self, amount: usize) -> Result<(), BudgetExhausted> {
        if self.try_grow(amount).is_ok() {
            return Ok(());
        }
        let more = amount - self.amount;
        let (waits, granted) = self.budget.lock().wait(self.device, more, self.budget.most())?;
        self.budget.short.notify_waiters();
        let mut waiting = WaitingPlace { budget: self.budget, waits, device: self.device, more };
        match tokio::time::timeout(self.budget.wait, granted).await {
            Ok(Ok(())) => {
                waiting.more = 0;
                self.amount = amount;
                Ok(())
            }
            _ => Err(BudgetExhausted),
        }
    }

    /// Takes over another share of the same device.
    pub(super) fn join(&mut self, mut other: Share<'_>) {
        debug_assert_eq!(self.device, other.device);
        self.amount += std::mem::take(&mut other.amount);
    }

    /// Gives back all above `amount`.
    pub(super) fn shrink(&mut self, amount: usize) {
        let less = self.amount.saturating_sub(amount);
        if less > 0 {
            self.amount -= less;
            self.budget.lock().give_back(self.device, less, self.budget.most());
        }
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        self.shrink(0);
    }
}

/// A place among the waiting requests; left when dropped.
struct WaitingPlace<'a> {
    budget: &'a Budget,
    waits: u64,
    device: DeviceId,
    /// The units that it waits for; 0 when it has got them.
    more: usize,
}

impl Drop for WaitingPlace<'_> {
    fn drop(&mut self) {
        if self.more == 0 {
            return;
        }
        let mut ledger = self.budget.lock();
        if !ledger.leave(self.waits) {
            // They were granted in this moment.
            ledger.give_back(self.device, self.more, self.budget.most());
        }
        ledger.grant(self.budget.most());
    }
}

/// Who has how much, and who waits.
#[derive(Debug, Default)]
struct Ledger {
    all: usize,
    by_device: HashMap<DeviceId, usize>,
    waiting: VecDeque<Waiter>,
    next: u64,
}

#[derive(Debug)]
struct Waiter {
    id: u64,
    device: DeviceId,
    more: usize,
    granted: oneshot::Sender<()>,
}

impl Ledger {
    fn fits(&self, device: DeviceId, more: usize, most: usize) -> bool {
        self.of(device) + more + self.all + more <= most
    }

    fn of(&self, device: DeviceId) -> usize {
        self.by_device.get(&device).copied().unwrap_or(0)
    }

    fn waits(&self, device: DeviceId) -> bool {
        self.waiting.iter().any(|waiting| waiting.device == device)
    }

    /// Takes units at once, unless others of the same device wait.
    fn take(&mut self, device: DeviceId, more: usize, most: usize) -> Result<(), BudgetExhausted> {
        if self.waits(device) || !self.fits(device, more, most) {
            return Err(BudgetExhausted);
        }
        self.add(device, more);
        Ok(())
    }

    fn add(&mut self, device: DeviceId, more: usize) {
        *self.by_device.entry(device).or_default() += more;
        self.all += more;
    }

    fn wait(
        &mut self,
        device: DeviceId,
        more: usize,
        most: usize,
    ) -> Result<(u64, oneshot::Receiver<()>), BudgetExhausted> {
        if self.waiting.len() >= MOST_WAITING {
            return Err(BudgetExhausted);
        }
        let (granted, receiver) = oneshot::channel();
        self.next += 1;
        self.waiting.push_back(Waiter { id: self.next, device, more, granted });
        // Units may have been given back in the meantime.
        self.grant(most);
        Ok((self.next, receiver))
    }

    /// Returns whether it was still waiting.
    fn leave(&mut self, id: u64) -> bool {
        let at = self.waiting.iter().position(|w| w.id == id);
        at.and_then(|at| self.waiting.remove(at)).is_some()
    }

    fn give_back(&mut self, device: DeviceId, less: usize, most: usize) {
        self.all -= less;
        if let Some(mine) = self.by_device.get_mut(&device) {
            *mine -= less;
            if *mine == 0 {
                self.by_device.remove(&device);
            }
        }
        self.grant(most);
    }

    /// Grants what fits: the device with the least first, and of each device the oldest request
    /// first.
    fn grant(&mut self, most: usize) {
        while let Some(at) = self.next_that_fits(most) {
            let Some(Waiter { device, more, granted, .. }) = self.waiting.remove(at) else {
                return;
            };
            self.add(device, more);
            // If the receiver has left in this moment, its place gives the units back.
            let _ = granted.send(());
        }
    }

    fn next_that_fits(&self, most: usize) -> Option<usize> {
        let mut seen = std::collections::HashSet::new();
        self.waiting
            .iter()
            .enumerate()
            .filter(|(_, w)| seen.insert(w.device))
            .filter(|(_, w)| self.fits(w.device, w.more, most))
            .min_by_key(|(_, w)| self.of(w.device))
            .map(|(at, _)| at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: usize = 60;

    #[test]
    fn a_greedy_device_leaves_as_much_as_it_has_and_all_is_given_back() {
        let budget = Budget::new(MOST, Duration::from_millis(20));
        let all_of_it = || {
            let mut share = budget.share(DeviceId::generate());
            let steps = (1..).take_while(|n| share.try_grow(*n).is_ok()).count();
            (share, steps)
        };
        let (first, half) = all_of_it();
        assert_eq!(half, 30);
        assert_eq!(
            budget.share(first.device).try_grow(1),
            Err(BudgetExhausted),
            "its share does not depend on the number of its requests"
        );
        let (mut second, third) = all_of_it();
        assert_eq!(third, 15);
        assert_eq!(second.try_grow(1), Ok(()), "it has that already");
        second.shrink(1);
        assert_eq!(all_of_it().1, 14);
        drop((first, second));
        assert!(budget.lock().all == 0 && budget.lock().by_device.is_empty());
    }

    /// Polls once.
    fn poll<F: Future>(future: std::pin::Pin<&mut F>) -> std::task::Poll<F::Output> {
        future.poll(&mut std::task::Context::from_waker(std::task::Waker::noop()))
    }

    #[tokio::test]
    async fn what_does_not_fit_waits_and_the_device_with_the_least_comes_first() {
        let budget = Budget::new(MOST, Duration::from_millis(20));
        let (greedy, person) = (DeviceId::generate(), DeviceId::generate());
        let mut has = budget.share(greedy);
        has.try_grow(30).expect("half");
        let (mut a, mut b, mut c) =
            (budget.share(greedy), budget.share(greedy), budget.share(person));
        let (mut a, mut b, mut c) =
            (Box::pin(a.grow(10)), Box::pin(b.grow(1)), Box::pin(c.grow(20)));
        assert!(poll(a.as_mut()).is_pending());
        assert!(poll(b.as_mut()).is_pending());
        assert!(poll(c.as_mut()).is_pending(), "20 of the 30 free units are more than its share");
        has.shrink(20);
        assert_eq!(poll(c.as_mut()), std::task::Poll::Ready(Ok(())));
        assert!(poll(a.as_mut()).is_pending());
        assert!(poll(b.as_mut()).is_pending(), "it is behind another of its device");
        drop(has);
        assert_eq!(poll(a.as_mut()), std::task::Poll::Ready(Ok(())));
        assert_eq!(poll(b.as_mut()), std::task::Poll::Ready(Ok(())));
    }

    #[tokio::test]
    async fn a_wait_that_times_out_or_is_dropped_changes_no_share() {
        let budget = Budget::new(MOST, Duration::from_millis(20));
        let device = DeviceId::generate();
        let mut has = budget.share(device);
        has.try_grow(30).expect("half");
        let mut late = budget.share(device);
        assert_eq!(late.grow(1).await, Err(BudgetExhausted));
        let mut leaves = Box::pin(late.grow(1));
        assert!(poll(leaves.as_mut()).is_pending());
        has.shrink(0);
        // Granted, and never taken.
        drop(leaves);
        assert_eq!(late.amount, 0);
        drop((has, late));
        let ledger = budget.lock();
        assert!(ledger.all == 0 && ledger.by_device.is_empty() && ledger.waiting.is_empty());
    }
}
