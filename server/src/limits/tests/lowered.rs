//! What `authorize` says of limits.

use super::*;

fn granted(user: Option<&str>, limits: &str) -> Granted {
    let settings: LimitSettings = toml::from_str(limits).expect(limits);
    let limits = settings.besides_others().expect(limits);
    Granted { user: user.map(|user| user.parse().expect("a user")), limits }
}

fn enter(
    people: &People,
    name: &str,
    granted: &Granted,
) -> Result<RunningCount<FakeRelativeClock>, String> {
    let device = people.device(name).with(Some(granted));
    people.limiter.enter(device, None, NOON).map_err(|e| e.to_string())
}

#[test]
fn a_granted_limit_lowers_the_one_of_the_configuration_and_never_raises_it() {
    let people = People::new("limits = { at_once = 2, tokens_per_day = 100, body = 1000 }");
    let lower = granted(None, "at_once = 1\ntokens_per_day = 10\nbody = 10");
    let higher = granted(None, "at_once = 9\ntokens_per_day = 999\nbody = 9999");
    let body = |granted| {
        let device = people.device("laptop").with(Some(granted));
        people.limiter.body(device, None).expect("of unknown length")
    };
    assert_eq!((body(&lower), body(&higher)), (Some(10), Some(1000)));
    let running = enter(&people, "laptop", &lower).expect("one");
    let refused = enter(&people, "phone", &lower).expect_err("all of the user's run together");
    assert!(refused.starts_with("user `alice` may have 1 request running"), "{refused}");
    let second = enter(&people, "phone", &higher).expect("two");
    let refused = enter(&people, "phone", &higher).expect_err("three");
    assert!(refused.starts_with("user `alice` may have 2 requests running"), "{refused}");
    drop((running, second));
    people.use_tokens("laptop", 11);
    let refused = enter(&people, "phone", &lower).expect_err("used up");
    assert!(refused.starts_with("user `alice` may use 10 tokens per day"), "{refused}");
    let device = people.device("phone");
    people.limiter.within(device.with(Some(&lower)), NOON).expect_err("also while it runs");
    people.limiter.within(device.with(Some(&higher)), NOON).expect("11 of 100");
}

#[test]
fn a_granted_rate_counts_apart_from_the_configured_one() {
    let people = People::new("limits = { requests_per_minute = 60 }");
    let once = granted(None, "requests_per_minute = 1");
    enter(&people, "laptop", &once).expect("one");
    let refused = enter(&people, "phone", &once).expect_err("one per minute of the user");
    assert!(refused.starts_with("user `alice` may make 1 request per minute"), "{refused}");
    people.enter("laptop").expect("without the grant");
    let burst = granted(None, "requests_per_minute = 1\nburst = 3");
    for _ in 0..3 {
        enter(&people, "desk", &burst).expect("within the burst");
    }
    enter(&people, "desk", &burst).expect_err("four");
    let device = people.device("desk");
    people.limiter.enter(device, None, NOON).expect("nothing was granted");
}

#[test]
fn a_granted_person_has_a_share_of_its_own_whatever_device_it_uses() {
    let people = People::new("limits = { at_once = 1, tokens_per_day = 100 }");
    let [ada, bob] = ["ada", "bob"].map(|user| granted(Some(user), ""));
    let running = enter(&people, "laptop", &ada).expect("ada's first");
    let refused = enter(&people, "desk", &ada).expect_err("ada's second");
    assert!(refused.starts_with("user `ada` may have 1 request running"), "{refused}");
    let of_bob = enter(&people, "laptop", &bob).expect("bob's first");
    let of_alice = people.enter("laptop").expect("alice's first");
    drop((running, of_bob, of_alice));
    let on_laptop = people.device("laptop").with(Some(&ada));
    let payer = people.limiter.payer(on_laptop);
    assert_eq!(payer, people.limiter.payer(people.device("desk").with(Some(&ada))));
    people.limiter.settle(payer, 0, 101, NOON);
    enter(&people, "desk", &ada).expect_err("ada has used up hers");
    people.limiter.within(on_laptop, NOON).expect_err("also while it runs");
    people.limiter.within(people.device("laptop"), NOON).expect("alice has not");
    let account = people.limiter.account(on_laptop);
    assert_eq!(account, Account::User("ada".parse().expect("a user")));
    // The register's own user pays as before.
    let alice = granted(Some("alice"), "");
    let laptop = people.device("laptop");
    assert_eq!(people.limiter.payer(laptop.with(Some(&alice))), laptop.id);
}

#[test]
fn a_device_with_a_limit_of_its_own_keeps_it_whoever_is_granted() {
    let people = People::new(
        "limits = { at_once = 1, tokens_per_day = 10 }
         devices = { ci = { at_once = 2, tokens_per_day = 50, requests_per_minute = 60 } }",
    );
    let ada = granted(Some("ada"), "at_once = 1\ntokens_per_day = 20\nrequests_per_minute = 1");
    let ci = people.device("ci").with(Some(&ada));
    assert_eq!(people.limiter.payer(ci), ci.id);
    let running = enter(&people, "ci", &ada).expect("one");
    let refused = enter(&people, "ci", &ada).expect_err("per minute");
    assert!(refused.starts_with("device `ci` may make 1 request per minute"), "{refused}");
    let others = granted(Some("ada"), "at_once = 1");
    let refused = enter(&people, "ci", &others).expect_err("at once");
    assert!(refused.starts_with("device `ci` may have 1 request running"), "{refused}");
    drop(running);
    people.use_tokens("ci", 21);
    let over = people.limiter.within(ci, NOON).expect_err("used up");
    assert!(over.to_string().starts_with("device `ci` may use 20 tokens"), "{over}");
}
