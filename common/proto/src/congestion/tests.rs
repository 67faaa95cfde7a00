use std::time::Duration;

use super::{
    Shallow,
    simulation::{Bbr, Control, Cubic, Link, MTU, Source, World, ms},
};

impl Control for Shallow {
    fn on_sent(&mut self, now: Duration, bytes: u64) {
        self.on_sent(now, bytes);
    }

    fn on_ack(&mut self, now: Duration, sent: Duration, bytes: u64, limited: bool) {
        self.on_ack(now, sent, bytes, limited);
    }

    fn on_acks_done(&mut self, now: Duration, in_flight: u64, limited: bool) {
        self.on_acks_done(now, in_flight, limited);
    }

    fn on_lost(&mut self, _now: Duration, sent: Duration, bytes: u64, outage: bool) {
        self.on_lost(sent, bytes, outage);
    }

    fn window(&self) -> u64 {
        self.window()
    }
}

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn ours() -> Shallow {
    Shallow::new(Duration::ZERO, MTU as u16)
}

/// What one flow alone makes of a link, from the fifth second on: megabits per second, and how long
/// packets wait in the queue at half and at 99 % of all times, in milliseconds.
fn alone(link: Link, seed: u64) -> (f64, f64, f64) {
    let mut world = World::new(link, seed);
    let flow = world.add(ours(), Source::Bulk, s(0));
    world.run(s(20));
    let during = s(5)..s(20);
    (
        world.megabits(flow, during.clone()),
        world.wait(0.5, during.clone()),
        world.wait(0.99, during),
    )
}

#[test]
fn alone_it_fills_the_link_and_keeps_the_queue_short() {
    let link = Link::new(20, 25);
    let lossy = |loss| Link { loss, ..link };
    // Megabits per second at least; milliseconds in the queue at the most, half of the time and
    // nearly always.
    let table = [
        ("clean", link, 19.5, 8.0, 25.0),
        ("1 % lost", lossy(0.01), 19.0, 8.0, 25.0),
        ("3 % lost", lossy(0.03), 18.5, 12.0, 35.0),
        ("5 % lost", lossy(0.05), 17.5, 12.0, 35.0),
        ("slow", Link { queue: ms(500), ..Link::new(2, 25) }, 1.9, 35.0, 60.0),
        ("dsl", Link { jitter: ms(2), queue: ms(200), ..Link::new(10, 15) }, 9.7, 12.0, 30.0),
        ("wifi", Link { jitter: ms(8), loss: 0.005, ..Link::new(40, 3) }, 36.0, 8.0, 25.0),
        ("lte", Link { jitter: ms(20), queue: ms(300), ..Link::new(30, 30) }, 20.0, 20.0, 65.0),
        ("a deep buffer", Link { queue: s(2), jitter: ms(1), ..link }, 19.0, 10.0, 30.0),
        ("a shallow buffer", Link { queue: ms(8), ..link }, 19.0, 8.1, 8.6),
        ("bursts of ACKs", Link { ack_every: ms(10), ..link }, 18.5, 20.0, 35.0),
    ];
    for (name, link, least, half, nearly) in table {
        for seed in 1..=2 {
            let (megabits, q50, q99) = alone(link, seed);
            let found = format!("{name}, seed {seed}: {megabits:.1}, {q50:.1} and {q99:.1} ms");
            assert!(megabits >= least && q50 <= half && q99 <= nearly, "{found}");
        }
    }
}

#[test]
fn on_a_fast_and_near_link_nothing_is_lost() {
    let link = Link { delay: Duration::from_micros(50), queue: ms(5), ..Link::new(1000, 0) };
    let mut world = World::new(link, 1);
    let flow = world.add(ours(), Source::Bulk, s(0));
    world.run(s(2));
    let megabits = world.megabits(flow, ms(500)..s(2));
    assert!(megabits > 900.0 && world.tail_lost() < 1000, "{megabits} {}", world.tail_lost());
    assert!(world.wait(0.5, ms(500)..s(2)) < 2.0);
}

/// How much of our fair share we get beside another flow, over 60 s of both.
fn beside(link: Link, other: impl Control + 'static, first: bool, seed: u64) -> f64 {
    let mut world = World::new(link, seed);
    let (own_begin, other_begin) = if first { (s(0), s(5)) } else { (s(5), s(0)) };
    let own = world.add(ours(), Source::Bulk, own_begin);
    let other = world.add(other, Source::Bulk, other_begin);
    world.run(s(65));
    let (own, other) = (world.megabits(own, s(5)..s(65)), world.megabits(other, s(5)..s(65)));
    2.0 * own / (own + other)
}

#[test]
fn beside_flows_that_fill_the_queue_it_has_a_fair_share() {
    for (megabits, delay) in [(20, 25), (50, 10), (100, 25), (100, 10)] {
        let link = Link { jitter: Duration::from_micros(300), ..Link::new(megabits, delay) };
        for seed in [1, 4] {
            for (other, share) in [
                ("before Cubic", beside(link, Cubic::default(), true, seed)),
                ("after Cubic", beside(link, Cubic::default(), false, seed)),
                ("before BBR", beside(link, Bbr::new(2.0), true, seed)),
                ("after BBR", beside(link, Bbr::new(2.0), false, seed)),
            ] {
                let found = format!("{megabits} Mbit/s, {delay} ms, seed {seed}: {share:.2}");
                assert!((0.5..=1.5).contains(&share), "{other}, {found}");
            }
        }
    }
}

#[test]
fn two_of_its_kind_share_and_the_queue_stays_short() {
    let mut world = World::new(Link::new(20, 25), 1);
    let first = world.add(ours(), Source::Bulk, s(0));
    let second = world.add(ours(), Source::Bulk, s(5));
    world.run(s(45));
    let during = s(10)..s(45);
    let ratio = world.megabits(first, during.clone()) / world.megabits(second, during.clone());
    assert!((0.7..=1.4).contains(&ratio), "{ratio}");
    assert!(world.wait(0.5, during) < 15.0);
}

#[test]
fn many_of_its_kind_share_and_the_queue_stays_short() {
    let link = Link { jitter: Duration::from_micros(100), ..Link::new(50, 25) };
    for seed in 1..=3 {
        let mut world = World::new(link, seed);
        let flows: Vec<_> =
            (0..4).map(|at| world.add(ours(), Source::Bulk, ms(500 * at))).collect();
        world.run(s(40));
        let during = s(10)..s(40);
        for flow in flows {
            let megabits = world.megabits(flow, during.clone());
            assert!((5.0..=25.0).contains(&megabits), "seed {seed}: {megabits:.1} of 12.5");
        }
        assert!(world.wait(0.5, during) < 20.0, "seed {seed}");
    }
}

#[test]
fn tokens_freeze_what_was_learned_and_loss_does_not_shrink_it() {
    let mut world = World::new(Link { loss: 0.03, ..Link::new(20, 60) }, 1);
    let flow = world.add(ours(), Source::Every(ms(2), 150), s(0));
    world.run(s(30));
    let megabits = world.megabits(flow, s(5)..s(30));
    assert!(megabits > 0.55, "all of 0.6 Mbit/s but what is lost: {megabits}");
    let window = world.window(flow);
    assert!((10 * MTU..40 * MTU).contains(&window), "{window}");
}

#[test]
fn what_pauses_comes_back_at_once() {
    for (on, off) in [(2000, 1000), (500, 1000), (3000, 12_000)] {
        let mut world = World::new(Link::new(20, 25), 1);
        let flow = world.add(ours(), Source::OnOff(ms(on), ms(off)), s(0));
        world.run(s(45));
        let could = 20.0 * on as f64 / (on + off) as f64;
        let megabits = world.megabits(flow, s(15)..s(45));
        assert!(megabits > 0.9 * could, "{on} of {}: {megabits:.1} of {could:.1}", on + off);
        assert!(world.wait(0.99, s(15)..s(45)) < 35.0);
    }
}

#[test]
fn a_link_that_changes_is_learned_anew() {
    let link = Link::new(20, 25);
    for (what, to, soon) in [
        ("slower", Link::new(5, 25), 4.5),
        ("faster", Link::new(40, 25), 35.0),
        ("shorter", Link::new(20, 5), 19.0),
        ("lossy", Link { loss: 0.03, ..link }, 16.0),
    ] {
        let mut world = World::new(link, 1);
        let flow = world.add(ours(), Source::Bulk, s(0));
        world.change(s(10), to);
        world.run(s(20));
        let megabits = world.megabits(flow, s(11)..s(20));
        assert!(megabits > soon, "{what}: {megabits:.1}");
    }
}

#[test]
fn a_path_that_becomes_longer_is_not_taken_for_a_queue() {
    let near = Link { delay: Duration::from_micros(50), ..Link::new(1000, 0) };
    for (what, from, to, least) in [
        ("another machine", near, Link::new(20, 25), 18.0),
        ("another route", Link::new(20, 10), Link::new(20, 40), 17.0),
    ] {
        let mut world = World::new(from, 1);
        let flow = world.add(ours(), Source::Bulk, s(0));
        world.change(s(2), to);
        world.run(s(10));
        let megabits = world.megabits(flow, s(4)..s(10));
        assert!(megabits > least, "{what}: {megabits:.1}");
        assert!(world.wait(0.5, s(4)..s(10)) < 12.0, "{what}");
    }
}

#[test]
fn a_path_that_is_told_to_have_changed_is_not_judged_by_the_old_one() {
    let (near, far) = (ms(5), ms(200));
    let mut controller = ours();
    let mut now = s(1);
    let mut rounds = |controller: &mut Shallow, count: u32, rtt: Duration| {
        for _ in 0..count {
            let bytes = controller.window();
            controller.on_sent(now, bytes);
            controller.on_ack(now + rtt, now, bytes, false);
            now += rtt;
            controller.on_acks_done(now, 0, false);
        }
        now
    };
    let now = rounds(&mut controller, 30, near);
    assert_eq!(controller.state().base, near);
    controller.on_path_changed(now);
    assert_eq!(controller.window(), controller.first_window());
    // What was sent before comes back late.
    controller.on_ack(now + ms(1), now - ms(1), MTU, false);
    controller.on_acks_done(now + ms(1), 0, false);
    assert_eq!(controller.state().base, Duration::ZERO.max(controller.state().base.min(ms(1))));
    rounds(&mut controller, 5, far);
    assert_eq!(controller.state().base, far);
}

#[test]
fn an_outage_is_no_congestion() {
    let link = Link::new(20, 25);
    let mut world = World::new(link, 1);
    let flow = world.add(ours(), Source::Bulk, s(0));
    world.change(s(10), Link { loss: 1.0, ..link });
    world.change(s(13), link);
    world.run(s(20));
    let megabits = world.megabits(flow, ms(14_500)..s(20));
    assert!(megabits > 18.0, "{megabits}");
}

#[test]
fn a_mark_costs_a_part_of_the_window_once_a_round() {
    let mut controller = ours();
    let before = controller.window();
    controller.on_sent(ms(0), before);
    controller.on_marked(ms(1));
    controller.on_marked(ms(2));
    // Of what is acknowledged a part may be sent again, until less is in flight.
    let mut last = before;
    for packet in 1..=10 {
        controller.on_ack(ms(20 + packet), ms(0), before / 10, true);
        controller.on_acks_done(ms(20 + packet), before - packet * before / 10, true);
        let window = controller.window();
        assert!(window <= last && last - window <= before / 10, "{last}, then {window}");
        last = window;
    }
    assert!(last < before && last > before / 3, "{last} of {before}");
}

#[test]
fn slow_start_sees_the_speed_of_the_bottleneck_before_it_fills_the_queue() {
    // How long a packet waits in the first two seconds at the most, in milliseconds, and megabits
    // per second in the next two.
    let table = [
        ("100 Mbit/s", Link::new(100, 25), 25.0, 98.0),
        ("1 % lost", Link { loss: 0.01, ..Link::new(100, 25) }, 25.0, 98.0),
        ("20 Mbit/s", Link::new(20, 25), 32.0, 19.0),
        ("3 % lost", Link { loss: 0.03, ..Link::new(20, 60) }, 45.0, 18.0),
        ("far", Link { loss: 0.01, ..Link::new(20, 100) }, 50.0, 17.0),
        ("a deep buffer", Link { queue: s(2), jitter: ms(1), ..Link::new(20, 25) }, 35.0, 19.0),
    ];
    for (name, link, most, least) in table {
        for seed in 1..=3 {
            let mut world = World::new(link, seed);
            let flow = world.add(ours(), Source::Bulk, s(0));
            world.run(s(4));
            let (waited, megabits) =
                (world.wait(0.995, s(0)..s(2)), world.megabits(flow, s(2)..s(4)));
            let found = format!("{name}, seed {seed}: {waited:.0} ms, {megabits:.1} Mbit/s");
            assert!(waited <= most && megabits >= least, "{found}");
        }
    }
}
