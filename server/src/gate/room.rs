//! Memory for requests that are read whole before they are forwarded. A device may have as much of
//! it as it leaves free: so one that takes all it can get leaves half, two a third, and whoever
//! comes next finds some.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use proto::identity::DeviceId;

/// For all devices together, in bytes.
const MOST: usize = 128 << 20;

/// All of it.
#[derive(Debug, Default)]
pub(super) struct Room(Mutex<Taken>);

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by_device: HashMap<DeviceId, usize>,
}

/// There is no more for this device now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full;

/// What one request takes of it; given back when dropped.
#[derive(Debug)]
pub(super) struct Share<'a> {
    room: &'a Room,
    device: DeviceId,
    bytes: usize,
}

impl Room {
    /// Nothing yet, for a request of this device.
    pub(super) fn share(&self, device: DeviceId) -> Share<'_> {
        Share { room: self, device, bytes: 0 }
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Share<'_> {
    /// Takes more, if it has less than `bytes`.
    ///
    /// # Errors
    /// [`Full`]; then it has what it had.
    pub(super) fn grow(&mut self, bytes: usize) -> Result<(), Full> {
        let more = bytes.saturating_sub(self.bytes);
        if more == 0 {
            return Ok(());
        }
        let mut taken = self.room.lock();
        let mine = taken.by_device.get(&self.device).copied().unwrap_or(0) + more;
        if mine + taken.all + more > MOST {
            return Err(Full);
        }
        taken.by_device.insert(self.device, mine);
        taken.all += more;
        self.bytes = bytes;
        Ok(())
    }

    /// Gives back what it has above `bytes`.
    pub(super) fn shrink(&mut self, bytes: usize) {
        let less = self.bytes.saturating_sub(bytes);
        if less == 0 {
            return;
        }
        self.bytes -= less;
        let mut taken = self.room.lock();
        taken.all -= less;
        if let Some(mine) = taken.by_device.get_mut(&self.device) {
            *mine -= less;
            if *mine == 0 {
                taken.by_device.remove(&self.device);
            }
        }
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        self.shrink(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_takes_all_that_there_is_leaves_as_much_and_all_is_given_back() {
        let room = Room::default();
        let all_of_it = || {
            let mut share = room.share(DeviceId::generate());
            let step = MOST / 60;
            let steps = (1..).take_while(|n| share.grow(n * step).is_ok()).count();
            (share, steps)
        };
        let (first, half) = all_of_it();
        assert_eq!(half, 30);
        assert_eq!(
            room.share(first.device).grow(MOST / 60),
            Err(Full),
            "it has its part, however many its requests"
        );
        let (mut second, third) = all_of_it();
        assert_eq!(third, 15);
        assert_eq!(second.grow(MOST / 60), Ok(()), "it has that already");
        second.shrink(MOST / 60);
        assert_eq!(all_of_it().1, 14);
        drop((first, second));
        assert!(room.lock().all == 0 && room.lock().by_device.is_empty());
    }
}
