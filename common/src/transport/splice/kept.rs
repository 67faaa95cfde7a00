//! The bytes of a request, for as long as it may have to be sent again.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use proto::http1::exchanges::Keep;

/// A longer request is not kept, in bytes.
const MOST: usize = 1 << 20;
/// All requests that this program keeps have at most so many bytes.
const MOST_OF_ALL: usize = 16 << 20;

static KEPT: AtomicUsize = AtomicUsize::new(0);

/// All bytes that an application has sent of one request, or none of them.
#[derive(Debug, Default)]
pub struct Kept {
    bytes: Vec<u8>,
    /// Whether nothing of the request is missing.
    has_all: bool,
}

impl Kept {
    /// The request as far as it has come.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Does with `bytes` as it is told.
    pub(super) fn follow(&mut self, keep: Keep, bytes: &[u8]) {
        match keep {
            Keep::Nothing => self.forget(),
            Keep::More => self.add(bytes),
            Keep::From(at) => {
                self.forget();
                self.has_all = true;
                self.add(&bytes[at..]);
            }
        }
    }

    /// The request, if it is here as far as it has come.
    pub(super) fn take(&mut self) -> Option<Self> {
        self.has_all.then(|| std::mem::take(self))
    }

    pub(super) fn forget(&mut self) {
        KEPT.fetch_sub(self.bytes.len(), Relaxed);
        self.bytes = Vec::new();
        self.has_all = false;
    }

    fn add(&mut self, bytes: &[u8]) {
        if !self.has_all {
            return;
        }
        let more = |kept: usize| kept.checked_add(bytes.len()).filter(|all| *all <= MOST_OF_ALL);
        if self.bytes.len() + bytes.len() > MOST
            || KEPT.fetch_update(Relaxed, Relaxed, more).is_err()
        {
            return self.forget();
        }
        self.bytes.extend_from_slice(bytes);
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.forget();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All that is kept is shared by the tests of this process: they are one.
    #[test]
    fn a_request_is_kept_whole_or_not_at_all_and_all_of_them_have_a_bound() {
        let mut kept = Kept::default();
        kept.follow(Keep::More, b"lost");
        assert!(kept.take().is_none(), "its beginning was not kept");
        kept.follow(Keep::From(2), b"..GET ");
        kept.follow(Keep::More, b"/");
        assert_eq!(kept.take().expect("kept").bytes(), b"GET /");
        assert!(kept.take().is_none(), "it was taken");
        kept.follow(Keep::From(0), b"a");
        kept.follow(Keep::Nothing, b"b");
        kept.follow(Keep::More, b"c");
        assert!(kept.take().is_none());

        kept.follow(Keep::From(0), &vec![0; MOST]);
        assert_eq!(kept.bytes().len(), MOST);
        kept.follow(Keep::More, b"x");
        assert!(kept.take().is_none() && kept.bytes().is_empty(), "too long");
        kept.follow(Keep::From(0), b"x");
        assert!(kept.take().is_some(), "the next one is short again");

        let many: Vec<Kept> = (0..MOST_OF_ALL / MOST + 4)
            .map(|_| {
                let mut kept = Kept::default();
                kept.follow(Keep::From(0), &vec![0; MOST]);
                kept
            })
            .collect();
        assert_eq!(many.iter().filter(|kept| kept.has_all).count(), MOST_OF_ALL / MOST);
        assert!(KEPT.load(Relaxed) <= MOST_OF_ALL);
        drop(many);
        kept.follow(Keep::From(0), b"x");
        assert!(kept.take().is_some(), "there is room again");
    }
}
