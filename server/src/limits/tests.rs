//! Limits, with a clock that the test moves.

use governor::clock::FakeRelativeClock;
mod lowered;

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
        LimitedDevice {
            kind: CallerKind::Device,
            id: self.id,
            name: &self.name,
            role: "infer",
            granted: None,
        }
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
    assert_eq!(bench.limiter.tokens(bench.device(), NOON), [(51, Some(100))]);
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
    bench.limiter.know([]);
    assert_eq!(bench.refused().limit.as_str(), "at_once", "what runs is not forgotten");
    drop(running);
    bench.enter().expect("in");
}

/// Limits of this configuration, Alice's laptop (`infer`), her phone (`infer`) and key `ci` (`models`),
/// and a device of nobody.
struct People {
    limiter: Arc<Limiter<FakeRelativeClock>>,
    devices: Vec<(DeviceId, Name, &'static str)>,
}

impl People {
    fn new(config: &str) -> Self {
        #[derive(serde::Deserialize)]
        #[serde(default)]
        #[derive(Default)]
        struct Tables {
            limits: LimitSettings,
            roles: HashMap<String, LimitSettings>,
            users: HashMap<String, LimitSettings>,
            devices: HashMap<String, LimitSettings>,
        }
        let Tables { limits: default, roles, users, devices } =
            toml::from_str(config).expect(config);
        let table = LimitTable { default, roles, users, devices };
        let limiter = Limiter::with_clock(table, Usage::default(), FakeRelativeClock::default());
        let device = |(name, role): (&str, &'static str)| {
            (DeviceId::generate(), name.parse().expect("a name"), role)
        };
        let all = [("laptop", "infer"), ("phone", "infer"), ("ci", "models"), ("desk", "infer")];
        let people = Self { limiter, devices: all.into_iter().map(device).collect() };
        let alice: UserName = "alice".parse().expect("a user");
        people.limiter.know(
            people
                .devices
                .iter()
                .map(|(id, name, _)| (*id, name, (name.as_str() != "desk").then_some(&alice))),
        );
        people
    }

    fn device(&self, name: &str) -> LimitedDevice<'_> {
        let found = self.devices.iter().find(|(_, other, _)| other.as_str() == name);
        let (id, name, role) = found.expect("a device");
        LimitedDevice { kind: CallerKind::Device, id: *id, name, role, granted: None }
    }

    fn enter(&self, name: &str) -> Result<RunningCount<FakeRelativeClock>, String> {
        let device = self.device(name);
        self.limiter.arrive(device).map_err(|e| e.to_string())?;
        self.limiter.enter(device, None, NOON).map_err(|e| e.to_string())
    }

    fn use_tokens(&self, name: &str, tokens: u64) {
        self.limiter.settle(self.device(name).id, 0, tokens, NOON);
    }
}

#[test]
fn the_devices_and_keys_of_a_user_have_one_share_together() {
    let people = People::new("limits = { at_once = 2, tokens_per_day = 100 }");
    let first = people.enter("laptop").expect("one");
    let _second = people.enter("phone").expect("two");
    let refused = people.enter("ci").expect_err("three");
    assert!(refused.starts_with("user `alice` may have 2 requests running at once"), "{refused}");
    let _other = people.enter("desk").expect("a device of nobody has its own share");
    drop(first);
    drop(people.enter("ci").expect("one has ended"));
    people.use_tokens("laptop", 60);
    people.use_tokens("phone", 41);
    let over = people.limiter.within(people.device("ci"), NOON).expect_err("over");
    assert!(over.to_string().starts_with("user `alice` may use 100 tokens per day"), "{over}");
    people.limiter.within(people.device("desk"), NOON).expect("not the desk's");
    let tokens = people.limiter.tokens(people.device("phone"), NOON);
    assert_eq!(tokens, [(41, None), (101, Some(100))]);
}

#[test]
fn requests_per_minute_count_per_user_also_if_its_devices_have_different_roles() {
    let people = People::new(
        "limits = { requests_per_minute = 2 }\nroles = { models = { requests_per_minute = 3 } }",
    );
    for (name, passes) in [
        ("laptop", true),
        ("ci", true),
        ("phone", true),
        ("laptop", false),
        ("ci", true),
        ("phone", false),
        ("ci", true),
        ("ci", false),
        ("desk", true),
    ] {
        assert_eq!(people.enter(name).is_ok(), passes, "{name}");
    }
}

#[test]
fn a_device_with_a_limit_of_its_own_is_counted_alone_and_a_limit_of_the_user_holds_too() {
    let own = "limits = { at_once = 1, tokens_per_day = 10 }
               devices = { ci = { at_once = 2, tokens_per_day = 50 } }";
    let people = People::new(own);
    let _one = people.enter("ci").expect("one");
    let _two = people.enter("ci").expect("two of its own");
    let refused = people.enter("ci").expect_err("three");
    assert!(refused.starts_with("device `ci` may have 2"), "{refused}");
    people.use_tokens("ci", 40);
    let _laptop = people.enter("laptop").expect("what ci has is not counted here");
    people.limiter.within(people.device("ci"), NOON).expect("40 of 50");
    // The user's own limit counts everything.
    let both = People::new(&format!("{own}\nusers = {{ alice = {{ tokens_per_day = 45 }} }}"));
    both.use_tokens("ci", 40);
    both.use_tokens("laptop", 6);
    for name in ["ci", "laptop"] {
        let over = both.limiter.within(both.device(name), NOON).expect_err("46 of 45");
        assert!(over.to_string().starts_with("user `alice` may use 45"), "{over}");
    }
}

#[test]
fn the_tokens_of_a_user_share_with_the_devices_and_keys_and_outlast_a_change_of_the_register() {
    let people = People::new(
        "limits = { at_once = 2, tokens_per_day = 100 }
         devices = { alice = { at_once = 9, tokens_per_day = 900 } }",
    );
    let (alice, bob) = ("alice".parse().expect("a user"), "bob".parse().expect("a user"));
    let (of_alice, of_bob) = (DeviceId::generate(), DeviceId::generate());
    people.limiter.know_tokens(of_alice, &alice);
    people.limiter.know_tokens(of_bob, &bob);
    // A device of this name has limits of its own; the person has not.
    let name: Name = "alice".parse().expect("a name");
    let holder = |id| LimitedDevice {
        kind: CallerKind::Token,
        id,
        name: &name,
        role: "infer",
        granted: None,
    };
    assert_eq!(people.limiter.account(holder(of_alice)), Account::User(alice.clone()));
    let first = people.limiter.enter(holder(of_alice), None, NOON).expect("one");
    let _second = people.enter("laptop").expect("two");
    let refused = people.limiter.enter(holder(of_alice), None, NOON).expect_err("three");
    assert!(refused.to_string().starts_with("user `alice` may have 2"), "{refused}");
    people.enter("ci").expect_err("three");
    people.limiter.enter(holder(of_bob), None, NOON).expect("bob has a share of his own");
    people.limiter.settle(of_alice, 0, 60, NOON);
    people.use_tokens("laptop", 41);
    for one in [holder(of_alice), people.device("ci")] {
        let over = people.limiter.within(one, NOON).expect_err("101 of 100");
        assert!(over.to_string().starts_with("user `alice` may use 100 tokens"), "{over}");
    }
    // All of Alice's devices and keys are gone, and what the laptop has used.
    people.limiter.know([]);
    people.limiter.enter(holder(of_alice), None, NOON).expect_err("what runs still counts");
    drop(first);
    people.limiter.enter(holder(of_alice), None, NOON).expect("60 of 100");
    assert_eq!(people.limiter.tokens(holder(of_alice), NOON)[1], (60, Some(100)));
}

#[test]
fn what_tokens_have_used_is_kept_until_their_holder_comes_after_a_start() {
    let (id, alice) = (DeviceId::generate(), "alice".parse().expect("a user"));
    let mut usage = Usage::default();
    usage.change(id, 0, 70, Day::of(NOON));
    let table = LimitTable::default();
    let limiter = Limiter::with_clock(table, usage, FakeRelativeClock::default());
    limiter.know([]);
    limiter.know_tokens(id, &alice);
    limiter.know([]);
    let name = "alice".parse().expect("a name");
    let holder =
        LimitedDevice { kind: CallerKind::Token, id, name: &name, role: "infer", granted: None };
    assert_eq!(limiter.tokens(holder, NOON)[1].0, 70);
}
