//! What waits on both sides of a byte stream: bytes to be written, and datagrams for QUIC.

use std::{collections::VecDeque, task::Waker, time::Instant};

use bytes::{Bytes, BytesMut};

use super::super::portion::Portion;

/// Bytes that are handed to QUIC as one, in datagrams of one size.
const GATHERED: usize = 60_000;

/// What waits on both sides of a byte stream.
pub(super) struct Queues {
    pub(super) out: BytesMut,
    /// Bytes that are being written, and how many may wait with them: few, as this is a queue in
    /// front of every token.
    pub(super) writing: usize,
    pub(super) limit: usize,
    /// When the first was written.
    pub(super) first: Option<Instant>,
    /// The tasks that wait for room in `out`.
    pub(super) writers: Vec<Waker>,
    pub(super) arrived: VecDeque<Bytes>,
    pub(super) reader: Option<Waker>,
}

impl Default for Queues {
    fn default() -> Self {
        Self {
            out: BytesMut::new(),
            writing: 0,
            limit: Portion::default().waiting(),
            first: None,
            writers: Vec::new(),
            arrived: VecDeque::new(),
            reader: None,
        }
    }
}

impl Queues {
    pub(super) fn is_full(&self) -> bool {
        self.out.len() + self.writing >= self.limit
    }

    /// Takes what has to be written, and who waits for room.
    pub(super) fn take(&mut self, batch: &mut BytesMut) -> Vec<Waker> {
        std::mem::swap(&mut self.out, batch);
        self.writing = batch.len();
        if !batch.is_empty() {
            self.first.get_or_insert_with(Instant::now);
        }
        self.writers_with_room()
    }

    pub(super) fn writers_with_room(&mut self) -> Vec<Waker> {
        if self.is_full() { Vec::new() } else { std::mem::take(&mut self.writers) }
    }

    /// Puts as many datagrams into `buf` as go there as one: all of one size, but for the last.
    pub(super) fn gather(&mut self, buf: &mut [u8]) -> Option<(usize, usize)> {
        let first = self.arrived.pop_front()?;
        // One that is longer than any of ours is not ours: it is shortened here and fails QUIC's
        // authentication.
        let stride = first.len().min(buf.len());
        buf[..stride].copy_from_slice(&first[..stride]);
        let (mut len, most) = (stride, buf.len().min(GATHERED));
        while let Some(next) = self.arrived.pop_front_if(|next| {
            !next.is_empty() && next.len() <= stride && len + next.len() <= most
        }) {
            buf[len..len + next.len()].copy_from_slice(&next);
            len += next.len();
            if next.len() < stride {
                break;
            }
        }
        Some((len, stride.max(1)))
    }
}
