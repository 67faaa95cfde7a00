//! A timer that is exact to microseconds: tokio's own counts milliseconds, which is as long as some
//! links are.

use std::{
    io,
    time::{Duration, Instant},
};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::net::unix::pipe::Receiver;

/// A timer of the kernel's.
pub(super) struct Timer {
    // It is read as a pipe is: eight bytes come when the time has come.
    descriptor: Receiver,
}

impl Timer {
    /// Makes one, in the runtime that will wait for it.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let descriptor = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        Ok(Self { descriptor: Receiver::from_owned_fd_unchecked(descriptor)? })
    }

    /// Waits until `at`, or not at all if that is over.
    ///
    /// # Cancel safety
    /// Safe: the next call sets the timer anew.
    pub(super) async fn until(&self, at: Instant) {
        let left = at.saturating_duration_since(Instant::now());
        // A time of zero would switch the timer off.
        if left.is_zero() || self.set(left).is_err() {
            return;
        }
        let mut expirations = [0; 8];
        while self.descriptor.readable().await.is_ok() {
            if self.descriptor.try_read(&mut expirations).is_ok() {
                return;
            }
        }
    }

    fn set(&self, left: Duration) -> io::Result<()> {
        let once = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec {
                tv_sec: left.as_secs() as i64,
                tv_nsec: left.subsec_nanos().into(),
            },
        };
        timerfd_settime(&self.descriptor, TimerfdTimerFlags::empty(), &once)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_waits_until_the_time_and_not_for_one_that_is_over() {
        let timer = Timer::new().expect("a timer");
        let at = Instant::now() + Duration::from_micros(300);
        timer.until(at).await;
        assert!(Instant::now() >= at);
        timer.until(at).await;
    }

    #[tokio::test]
    async fn one_that_was_given_up_does_not_end_the_next() {
        let timer = Timer::new().expect("a timer");
        let soon = Instant::now() + Duration::from_millis(1);
        let waiting = timer.until(soon + Duration::from_secs(60));
        assert!(tokio::time::timeout(Duration::from_millis(1), waiting).await.is_err());
        timer.until(soon).await;
        let later = Instant::now() + Duration::from_millis(2);
        timer.until(later).await;
        assert!(Instant::now() >= later);
    }
}
