//! Limits, with a clock that the test moves.

use governor::clock::FakeRelativeClock;

use super::*;

const NOON: i64 = 1_800_014_400 - 1_800_014_400 % 86_400 + 43_200;

struct Bench {
    limiter: Arc<Limiter<FakeRelativeClock>>,
    clock: FakeRelativeClock,
    name: Name,
    id: DeviceId,
}

impl Bench {
    fn new(settings: &str) -> Self {
        let table =
            LimitTable { default: toml::from_str(settings).expect(settings), ..Default::default() };
        let clock = FakeRelativeClock::default();
        let limiter = Limiter::with_clock(table, Usage::default(), clock.clone());
        Self { limiter, clock, name: "laptop".parse().expect("a name"), id: DeviceId::generate() }
    }

    fn device(&self) -> LimitedDevice<'_> {
        LimitedDevice { kind: CallerKind::Device, id: self.id, name: &self.name, role: "infer" }
    }

    fn enter(&self) -> Result<RunningCount<FakeRelativeClock>, Exceeded> {
        self.limiter.arrive(self.device())?;
        self.limiter.enter(self.device(), None, NOON)
    }

    fn refused(&self) -> Exceeded {
        self.enter().expect_err("refused")
    }
}

#[test]
fn a_burst_passes_and_then_the_rate_counts() {
    let bench = Bench::new("requests_per_minute = 60\nburst = 3");
    for _ in 0..3 {
        bench.enter().expect("within the burst");
    }
    let refused = bench.refused();
    assert_eq!(
        (refused.status(), refused.limit.as_str(), refused.retry_after_secs()),
        (429, "requests_per_minute", Some(1))
    );
    assert_eq!(
        refused.to_string(),
        "device `laptop` may make 60 requests per minute; try again in 1s"
    );
    bench.clock.advance(Duration::from_millis(900));
    assert_eq!(
        bench.refused().retry_after_secs(),
        Some(1),
        "rounded up: a second too early is refused again"
    );
    bench.clock.advance(Duration::from_millis(100));
    bench.enter().expect("a second later there is room for one");
    bench.refused();
}

#[test]
fn a_request_after_retry_after_is_admitted() {
    let bench = Bench::new("requests_per_minute = 7\nburst = 1");
    for _ in 0..20 {
        bench.enter().expect("in");
        let wait = bench.refused().retry_after_secs().expect("a time");
        bench.clock.advance(Duration::from_secs(wait));
    }
}

#[test]
fn requests_at_once_are_counted_until_they_end() {
    let bench = Bench::new("at_once = 2");
    let first = bench.enter().ok();
    let _second = bench.enter().expect("two at once");
    let refused = bench.refused();
    assert_eq!(
        refused.to_string(),
        "device `laptop` may have 2 requests running at once; try again when one has ended"
    );
    drop(first);
    bench.enter().expect("one has ended");
}

#[test]
fn a_body_that_is_too_long_is_never_allowed() {
    let bench = Bench::new("body = '1KiB'");
    let enter = |body| bench.limiter.enter(bench.device(), Some(body), NOON).map(drop);
    enter(1024).expect("just so");
    let refused = enter(1025).expect_err("too long");
    assert_eq!((refused.status(), refused.retry_after_secs()), (413, None));
    assert_eq!(bench.limiter.body(bench.device(), Some(1024)), Ok(Some(1024)));
    assert!(bench.limiter.body(bench.device(), Some(1025)).is_err());
}

#[test]
fn tokens_are_counted_until_midnight_utc() {
    let bench = Bench::new("tokens_per_day = 100");
    bench.limiter.settle(bench.id, 0, 99, NOON);
    bench.enter().expect("one is left");
    bench.limiter.settle(bench.id, 0, 50, NOON);
    let refused = bench.refused();
    assert_eq!(refused.retry_after_secs(), Some(43_200));
    let sentence =
        "device `laptop` may use 100 tokens per day (UTC), and has used them; try again in 12h";
    assert_eq!(refused.to_string(), sentence);
    let other = LimitedDevice { id: DeviceId::generate(), ..bench.device() };
    bench.limiter.enter(other, None, NOON).expect("another device has its own");
    bench.limiter.enter(bench.device(), None, NOON + 43_200).expect("a new day");
}

#[test]
fn running_requests_of_a_device_are_counted_together_and_end_above_its_limit() {
    let bench = Bench::new("tokens_per_day = 100");
    let settle = |before, tokens| bench.limiter.settle(bench.id, before, tokens, NOON);
    settle(0, 60);
    settle(0, 40);
    bench.limiter.within(bench.device(), NOON).expect("the last token may be used");
    settle(40, 41);
    let exceeded = bench.limiter.within(bench.device(), NOON).expect_err("one too many");
    assert_eq!((exceeded.status(), exceeded.retry_after_secs()), (429, Some(43_200)));
    // An estimate that was too high is given back.
    settle(60, 10);
    bench.limiter.within(bench.device(), NOON).expect("50 are left");
    assert_eq!(bench.limiter.tokens(bench.device(), NOON), (51, Some(100)));
}

#[test]
fn a_clock_that_ran_ahead_does_not_stop_the_counting() {
    let bench = Bench::new("tokens_per_day = 100");
    bench.limiter.settle(bench.id, 0, 1, NOON + 365 * 86_400);
    bench.limiter.settle(bench.id, 0, 100, NOON);
    bench.refused();
}

#[test]
fn a_request_that_another_limit_refuses_still_counts_for_the_rate() {
    let bench = Bench::new("requests_per_minute = 2\nat_once = 1");
    let running = bench.enter().expect("the first");
    assert_eq!(bench.refused().limit.as_str(), "at_once");
    drop(running);
    assert_eq!(bench.refused().limit.as_str(), "requests_per_minute");
}

#[test]
fn new_settings_apply_at_once_and_running_requests_still_count() {
    let bench = Bench::new("at_once = 5");
    let running: Vec<_> = (0..3).map(|_| bench.enter().expect("in")).collect();
    let table = LimitTable {
        default: toml::from_str("at_once = 3").expect("settings"),
        ..Default::default()
    };
    bench.limiter.update(table);
    bench.refused();
    bench.limiter.retain(|_| false);
    assert_eq!(bench.refused().limit.as_str(), "at_once", "what runs is not forgotten");
    drop(running);
    bench.enter().expect("in");
}
