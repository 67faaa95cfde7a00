//! Memory for requests that are read whole before they are forwarded: so much for all, and no device has more than its share.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use common::identity::DeviceId;

/// For all devices together, in bytes.
const MOST: usize = 256 << 20;
/// For one of them.
const SHARE: usize = MOST / 4;

/// All of it.
#[derive(Debug, Default)]
pub(super) struct Room(Mutex<Taken>);

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by_device: HashMap<DeviceId, usize>,
}

/// There is no more now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Full {
    /// For this device.
    Device,
    /// For anybody.
    All,
}

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
        match (mine > SHARE, taken.all + more > MOST) {
            (true, _) => return Err(Full::Device),
            (_, true) => return Err(Full::All),
            _ => {}
        }
        taken.by_device.insert(self.device, mine);
        taken.all += more;
        self.bytes = bytes;
        Ok(())
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        let mut taken = self.room.lock();
        taken.all -= self.bytes;
        if let Some(mine) = taken.by_device.get_mut(&self.device) {
            *mine -= self.bytes;
            if *mine == 0 {
                taken.by_device.remove(&self.device);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_takes_more_than_a_share_and_all_is_given_back() {
        let room = Room::default();
        let [first, others @ ..] = std::array::from_fn::<_, 5, _>(|_| DeviceId::generate());
        let mut mine = room.share(first);
        assert_eq!(mine.grow(SHARE), Ok(()));
        assert_eq!(mine.grow(SHARE - 1), Ok(()), "it has that already");
        assert_eq!(room.share(first).grow(1), Err(Full::Device));
        let mut theirs: Vec<_> = others.iter().map(|device| room.share(*device)).collect();
        let grown: Vec<_> = theirs.iter_mut().map(|share| share.grow(SHARE)).collect();
        assert_eq!(grown, [Ok(()), Ok(()), Ok(()), Err(Full::All)]);
        drop((mine, theirs));
        assert!(room.lock().all == 0 && room.lock().by_device.is_empty());
    }
}
