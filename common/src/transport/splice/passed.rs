//! What passes a splice, for all who want to know.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::{Facing, Meter};
use crate::transport::exchange::Exchange;

/// The beginning of a request that is remembered, so that a failure can be answered as the
/// application expects.
const HEAD: usize = 8 * 1024;

/// What passes one splice, for all who want to know.
pub(super) struct Passed<'a> {
    pub(super) facing: Facing,
    pub(super) meter: &'a Meter,
    pub(super) exchange: Exchange<'a>,
    pub(super) answered: AtomicBool,
}

impl Passed<'_> {
    /// From TCP, on their way into the tunnel.
    pub(super) fn up(&self, bytes: &[u8]) {
        match self.facing {
            Facing::Application => self.exchange.asked(bytes),
            Facing::Upstream => self.exchange.answering(bytes),
        }
    }

    /// All of them are in the tunnel.
    pub(super) fn up_done(&self, bytes: &[u8]) {
        self.meter.sent.fetch_add(bytes.len() as u64, Relaxed);
        if self.facing == Facing::Upstream {
            self.exchange.delivered(bytes);
        }
    }

    /// From the tunnel, on their way to TCP.
    pub(super) fn down(&self, chunk: &[u8]) {
        match self.facing {
            Facing::Application => self.exchange.answering(chunk),
            Facing::Upstream => self.exchange.asked(chunk),
        }
    }

    /// All of them are in TCP.
    pub(super) fn down_done(&self, last: &[u8]) {
        if self.facing == Facing::Application {
            self.exchange.delivered(last);
        }
    }
}

/// The first line of what an application asks, as far as it has come.
pub(super) struct Head {
    pub(super) bytes: Vec<u8>,
    complete: bool,
}

impl Head {
    pub(super) fn new(facing: Facing) -> Self {
        Self { bytes: Vec::new(), complete: facing == Facing::Upstream }
    }

    pub(super) fn remember(&mut self, bytes: &[u8]) {
        if self.complete {
            return;
        }
        let room = HEAD - self.bytes.len();
        let line = bytes.iter().position(|b| *b == b'\n').map_or(bytes.len(), |at| at + 1);
        self.bytes.extend_from_slice(&bytes[..line.min(room)]);
        self.complete = line < bytes.len() || bytes.ends_with(b"\n") || self.bytes.len() == HEAD;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_request_its_first_line_is_remembered_and_no_more() {
        let mut head = Head::new(Facing::Application);
        head.remember(b"POST /api/ch");
        head.remember(b"at HTTP/1.1\r\nHost: x\r\n");
        head.remember(b"more");
        assert_eq!(head.bytes, b"POST /api/chat HTTP/1.1\r\n");
        let mut endless = Head::new(Facing::Application);
        for _ in 0..10 {
            endless.remember(&[b'x'; 4096]);
        }
        assert_eq!(endless.bytes.len(), HEAD);
        let mut upstream = Head::new(Facing::Upstream);
        upstream.remember(b"HTTP/1.1 200 OK\r\n");
        assert!(upstream.bytes.is_empty());
    }
}
