//! The sessions that an older process of this server still has: their datagrams are handed on to it.
//!
//! The process that has replaced it reads the sockets. A datagram's connection ID says which process
//! has chosen it. The older process sends by the same sockets itself.

use std::{
    fmt,
    os::fd::BorrowedFd,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use common::transport::carrier::HandOn;
use quinn::udp::RecvMeta;

use crate::ingress::admission::{
    connection_ids::{self, Generation, IdKey},
    replay::destination_id,
};

/// The older processes that have sessions on one socket.
pub(crate) struct Older {
    key: IdKey,
    ways: Mutex<Vec<(Generation, HandOn)>>,
    /// Whether there are any. It spares each datagram the lock.
    some: AtomicBool,
}

impl fmt::Debug for Older {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Older").field("some", &self.some).finish_non_exhaustive()
    }
}

impl Older {
    /// The ways to the older processes, by their generation.
    pub(crate) fn new(key: IdKey, ways: Vec<(Generation, HandOn)>) -> Self {
        Self { key, some: AtomicBool::new(!ways.is_empty()), ways: Mutex::new(ways) }
    }

    /// Hands a datagram on if it is for an older process. False if it is not, or that process is
    /// gone.
    pub(crate) fn takes(&self, datagram: &[u8], meta: &RecvMeta) -> bool {
        if !self.some.load(Relaxed) {
            return false;
        }
        let Some(generation) = own_id(datagram).and_then(|id| self.key.generation(id)) else {
            return false;
        };
        let mut ways = self.lock();
        let Some(at) = ways.iter().position(|(older, _)| *older == generation) else {
            return false;
        };
        let is_there = ways[at].1.send(datagram, meta);
        if !is_there {
            ways.remove(at);
            self.some.store(!ways.is_empty(), Relaxed);
        }
        is_there
    }

    /// Gives `take` the ways to the processes that are still there, for the process that replaces
    /// this one.
    pub(crate) fn with_ways<T>(
        &self,
        take: impl FnOnce(&[(Generation, BorrowedFd<'_>)]) -> T,
    ) -> T {
        use std::os::fd::AsFd;
        let ways = self.lock();
        take(&ways.iter().map(|(generation, way)| (*generation, way.as_fd())).collect::<Vec<_>>())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Generation, HandOn)>> {
        self.ways.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The connection ID of a datagram, if it is as long as those of this server.
fn own_id(datagram: &[u8]) -> Option<&[u8]> {
    let is_long = datagram.first()? & 0x80 != 0;
    let id =
        if is_long { destination_id(datagram) } else { datagram.get(1..1 + connection_ids::LEN) };
    id.filter(|id| id.len() == connection_ids::LEN)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use common::transport::carrier::handed_on;
    use proto::knock::SharedKey;
    use quinn_proto::ConnectionIdGenerator;

    use super::*;
    use crate::ingress::admission::connection_ids::OwnIds;

    #[tokio::test]
    async fn only_datagrams_of_its_sessions_go_to_an_older_process_and_none_when_it_is_gone() {
        let key = || IdKey::new(&SharedKey::from_bytes([1; 32]));
        let id = |generation| OwnIds::new(key(), generation, Arc::default()).generate_cid();
        let short = |id: &[u8]| [&[0x40], id, &[0; 100]].concat();
        let long =
            |first: u8, id: &[u8]| [&[first, 0, 0, 0, 1, id.len() as u8], id, &[0; 100]].concat();
        let (near, inbox) = handed_on().expect("sockets");
        let older = Older::new(key(), vec![(7, HandOn::new(near).expect("usable"))]);
        let meta = RecvMeta::default();
        for (datagram, is_taken) in [
            (short(&id(7)), true),
            (short(&id(8)), false),
            (long(0xe0, &id(7)), true),
            (long(0xc0, &id(7)), true),
            (long(0xe0, &id(8)), false),
            (long(0xc0, &[9; 20]), false),
            (short(&[9; 8]), false),
            (vec![0x40, 1, 2], false),
            (vec![], false),
        ] {
            assert_eq!(older.takes(&datagram, &meta), is_taken, "{datagram:?}");
        }
        drop(inbox);
        assert!(!older.takes(&short(&id(7)), &meta), "a reset tells the client");
        older.with_ways(|ways| assert!(ways.is_empty()));
    }
}
