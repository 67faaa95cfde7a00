//! Follows the bytes that pass a splice: counts them, and knows whether a request is under way.

use std::sync::{Mutex, MutexGuard, PoisonError, atomic::Ordering::Relaxed};

use proto::{http1::exchanges::Exchanges, wire::ServiceKind};

use super::{ByteCounters, Facing, Kept};

/// Follows the bytes of one splice.
pub(super) struct Passed<'a> {
    pub(super) facing: Facing,
    pub(super) counters: &'a ByteCounters,
    state: Mutex<ExchangeState>,
}

struct ExchangeState {
    /// The HTTP exchanges; `None` for a `tcp` service.
    exchanges: Option<Exchanges>,
    /// The only request, if it may be sent again.
    kept: Kept,
    /// Whether TCP sends nothing more.
    has_ended: bool,
    /// Whether a byte has passed.
    is_used: bool,
    /// Whether bytes of the service are being written to the application.
    is_delivering: bool,
    /// Whether this connection is counted in `ByteCounters::underway`.
    is_counted: bool,
}

impl<'a> Passed<'a> {
    pub(super) fn new(facing: Facing, counters: &'a ByteCounters) -> Self {
        let is_http = facing == Facing::Application(ServiceKind::Http);
        let state = ExchangeState {
            exchanges: is_http.then(Exchanges::default),
            kept: Kept::default(),
            has_ended: false,
            is_used: false,
            is_delivering: false,
            is_counted: false,
        };
        Self { facing, counters, state: Mutex::new(state) }
    }

    /// These bytes were read from TCP, for the tunnel.
    pub(super) fn up(&self, bytes: &[u8]) {
        self.change(|state| {
            if let Some(exchanges) = &mut state.exchanges {
                let keep = exchanges.asks(bytes);
                state.kept.follow(keep, bytes);
            }
        });
    }

    /// This many bytes were written to the tunnel.
    pub(super) fn up_done(&self, count: usize) {
        self.counters.sent.fetch_add(count as u64, Relaxed);
    }

    /// TCP sends nothing more.
    pub(super) fn up_ended(&self) {
        let mut state = self.lock();
        if let Some(exchanges) = &mut state.exchanges {
            exchanges.ends();
        }
        state.kept.forget();
        state.has_ended = true;
    }

    /// These bytes were read from the tunnel, for TCP.
    pub(super) fn down(&self, chunk: &[u8]) {
        self.change(|state| {
            state.is_delivering = true;
            state.kept.forget();
            if let Some(exchanges) = &mut state.exchanges {
                exchanges.answers(chunk);
            }
        });
    }

    /// All bytes from the tunnel were written to TCP.
    pub(super) fn down_done(&self) {
        self.change(|state| state.is_delivering = false);
    }

    /// Whether no request is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.lock().is_idle()
    }

    /// Whether no request is under way and another may follow: then the application need not notice
    /// that the stream has ended.
    pub(super) fn may_go_on(&self) -> bool {
        let state = self.lock();
        !state.is_delivering && state.exchanges.as_ref().is_some_and(Exchanges::may_go_on)
    }

    /// Whether the only request is under way, and no byte of its answer has arrived.
    pub(super) fn waits_for_answer(&self) -> bool {
        let state = self.lock();
        let asked = |exchanges: &Exchanges| exchanges.unanswered().is_some_and(|l| !l.is_empty());
        !state.has_ended && state.exchanges.as_ref().is_some_and(asked)
    }

    /// The first line of the only request that is under way, if no byte of its answer has come; and
    /// the request, if it may be sent again.
    pub(super) fn unanswered(&self) -> Option<(Vec<u8>, Option<Kept>)> {
        let mut state = self.lock();
        let line = state.exchanges.as_ref().and_then(Exchanges::unanswered)?.to_vec();
        Some((line, state.kept.take()))
    }

    fn change(&self, change: impl FnOnce(&mut ExchangeState)) {
        let mut state = self.lock();
        state.is_used = true;
        change(&mut state);
        let is_underway = !state.is_idle();
        if is_underway != state.is_counted {
            state.is_counted = is_underway;
            match is_underway {
                true => {
                    if self.counters.underway.fetch_add(1, Relaxed) == 0 {
                        self.counters.begun.notify_one();
                    }
                }
                false => _ = self.counters.underway.fetch_sub(1, Relaxed),
            };
        }
    }

    fn lock(&self) -> MutexGuard<'_, ExchangeState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ExchangeState {
    fn is_idle(&self) -> bool {
        match &self.exchanges {
            Some(exchanges) => exchanges.is_idle() && !self.is_delivering,
            // For a `tcp` service nobody can know, so it is under way from the first byte.
            None => !self.is_used,
        }
    }
}

impl Drop for Passed<'_> {
    fn drop(&mut self) {
        if self.lock().is_counted {
            self.counters.underway.fetch_sub(1, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    const EMPTY: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

    #[test]
    fn an_exchange_is_under_way_until_all_of_its_answer_is_delivered() {
        let counters = ByteCounters::default();
        let underway = || counters.underway.load(Relaxed);
        let passed = Passed::new(Facing::Application(ServiceKind::Http), &counters);
        assert!(passed.is_idle() && passed.may_go_on() && underway() == 0);
        passed.up(GET);
        assert!(!passed.is_idle() && underway() == 1, "a model may load for long");
        passed.down(EMPTY);
        assert!(!passed.is_idle() && !passed.may_go_on() && underway() == 1);
        passed.down_done();
        assert!(passed.is_idle() && passed.may_go_on() && underway() == 0);
        passed.up(GET);
        assert_eq!(underway(), 1);
        drop(passed);
        assert_eq!(underway(), 0, "what has ended is not under way");
    }

    #[test]
    fn bytes_without_a_meaning_are_under_way_from_the_first_to_the_end() {
        let counters = ByteCounters::default();
        for facing in [Facing::Application(ServiceKind::Tcp), Facing::Upstream] {
            let passed = Passed::new(facing, &counters);
            assert!(passed.is_idle() && !passed.may_go_on() && passed.unanswered().is_none());
            passed.up(GET);
            passed.down(EMPTY);
            passed.down_done();
            assert!(!passed.is_idle() && passed.unanswered().is_none());
        }
        assert_eq!(counters.underway.load(Relaxed), 0);
    }
}
