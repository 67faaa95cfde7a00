//! The fair queue by itself, and tasks that wait in it.

use std::{collections::HashMap, num::NonZeroUsize, sync::Arc, task::Poll};

use proptest::prelude::*;
use proto::identity::DeviceId;

use super::{
    Queue, QueueFull, Turn, Waiting,
    fair_queue::{Entered, FairQueue, Ticket},
};
use crate::limits::Account;

fn most(n: usize) -> Option<NonZeroUsize> {
    NonZeroUsize::new(n)
}

fn fair_queue(most_at_once: usize, room: usize) -> FairQueue<u8> {
    FairQueue::new(most(most_at_once), room)
}

fn waits(entered: Entered) -> Ticket {
    match entered {
        Entered::Waits(ticket) => ticket,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_device_waits_for_at_most_one_turn_of_a_greedy_one() {
    let mut fair = fair_queue(1, 512);
    assert_eq!(fair.enter(b'g'), Entered::Now);
    let greedy: Vec<_> = (0..100).map(|_| waits(fair.enter(b'g'))).collect();
    let person = waits(fair.enter(b'p'));
    fair.end();
    let mut order = Vec::new();
    while let Some(ticket) = fair.next() {
        order.push(ticket);
        fair.end();
    }
    let at = order.iter().position(|ticket| *ticket == person).expect("served");
    assert!(at <= 1, "{at} turns of the other came first");
    order.remove(at);
    assert_eq!(order, greedy, "within a device, first come, first served");
}

#[test]
fn many_devices_are_served_in_turn() {
    let mut fair = fair_queue(2, 512);
    let mut owner = HashMap::new();
    for device in 0..4u8 {
        for _ in 0..5 {
            match fair.enter(device) {
                Entered::Waits(ticket) => {
                    owner.insert(ticket, device);
                }
                entered => assert_eq!((entered, device), (Entered::Now, 0)),
            }
        }
    }
    fair.end();
    fair.end();
    let mut order = Vec::new();
    while let Some(ticket) = fair.next() {
        order.push(owner[&ticket]);
        fair.end();
    }
    assert_eq!(order[..8], [0, 1, 2, 3, 0, 1, 2, 3]);
    assert_eq!(order.len(), 18);
}

#[test]
fn a_request_knows_its_place_when_it_arrives() {
    let mut fair = fair_queue(1, 512);
    assert_eq!(fair.enter(b'a'), Entered::Now);
    assert_eq!(fair.before_newest_of(b'a'), 0);
    let mut place = |device| {
        let ticket = waits(fair.enter(device));
        let before = fair.before_newest_of(device);
        let order = fair.in_order();
        assert_eq!(order[before], (device, ticket));
        (before, order.iter().map(|(device, _)| *device as char).collect::<String>())
    };
    for (device, before, order) in [
        (b'a', 0, "a"),
        (b'a', 1, "aa"),
        (b'b', 1, "aba"),
        (b'a', 3, "abaa"),
        (b'b', 3, "ababa"),
        (b'c', 2, "abcaba"),
    ] {
        assert_eq!(place(device), (before, order.to_owned()));
    }
}

#[test]
fn no_request_overtakes_the_waiting_ones() {
    let mut fair = fair_queue(1, 512);
    assert_eq!(fair.enter(1), Entered::Now);
    let second = waits(fair.enter(2));
    fair.end();
    // The turn is free but not yet given: the newcomer is not first.
    let third = waits(fair.enter(3));
    assert_eq!((fair.next(), fair.next()), (Some(second), None));
    fair.end();
    assert_eq!(fair.next(), Some(third));
}

#[test]
fn a_full_queue_refuses() {
    let mut fair = fair_queue(1, 2);
    fair.enter(1);
    let first = waits(fair.enter(1));
    waits(fair.enter(2));
    assert_eq!(fair.enter(3), Entered::Full);
    fair.leave(first);
    waits(fair.enter(3));
}

fn ready(waiting: &mut Waiting) -> Option<Turn> {
    match look(waiting) {
        Poll::Ready(turn) => turn.ok(),
        Poll::Pending => None,
    }
}

fn look(waiting: &mut Waiting) -> Poll<Result<Turn, QueueFull>> {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    Future::poll(std::pin::Pin::new(waiting), &mut context)
}

#[test]
fn a_device_that_fills_the_queue_loses_its_newest_request_to_others() {
    let queue = Queue::new(most(1), 8);
    let (script, person) = (DeviceId::generate(), DeviceId::generate());
    let turn = ready(&mut queue.enter(Account::Device(script), script).expect("in")).expect("now");
    let mut waiting: Vec<_> = (0..8)
        .map(|_| queue.enter(Account::Device(script), script).expect("in the queue"))
        .collect();
    assert_eq!(queue.enter(Account::Device(script), script).err(), Some(QueueFull));
    let mut persons =
        queue.enter(Account::Device(person), person).expect("there is room for somebody else");
    assert!(
        matches!(look(&mut waiting[7]), Poll::Ready(Err(QueueFull))),
        "the newest request of the device with the most"
    );
    assert_eq!(queue.waiting(), 8);
    drop(turn);
    let first = ready(&mut waiting[0]).expect("it came first");
    drop(first);
    assert!(ready(&mut persons).is_some());
}

#[test]
fn a_request_that_stops_waiting_frees_its_place_at_once() {
    let queue = Queue::new(most(1), 1);
    let (one, two) = (DeviceId::generate(), DeviceId::generate());
    let turn = ready(&mut queue.enter(Account::Device(one), one).expect("in")).expect("now");
    let waiting = queue.enter(Account::Device(one), one).expect("in the queue");
    assert_eq!(queue.enter(Account::Device(two), two).err(), Some(QueueFull));
    drop(waiting);
    assert_eq!(queue.waiting(), 0);
    let mut waiting = queue.enter(Account::Device(two), two).expect("there is room again");
    assert!(ready(&mut waiting).is_none());
    drop(turn);
    assert!(ready(&mut waiting).is_some());
    assert_eq!(queue.running(), 0);
}

#[test]
fn a_turn_that_was_given_to_a_dropped_future_goes_to_the_next() {
    let queue = Queue::new(most(1), 8);
    let id = DeviceId::generate();
    let turn = ready(&mut queue.enter(Account::Device(id), id).expect("in")).expect("now");
    let called = queue.enter(Account::Device(id), id).expect("in the queue");
    let mut next = queue.enter(Account::Device(id), id).expect("in the queue");
    drop(turn);
    assert!(ready(&mut next).is_none(), "the first has been called, and has not looked yet");
    drop(called);
    assert!(ready(&mut next).is_some());
}

#[test]
fn more_room_calls_waiting_requests() {
    let queue = Queue::new(most(1), 8);
    let id = DeviceId::generate();
    let _turn = ready(&mut queue.enter(Account::Device(id), id).expect("in")).expect("now");
    let mut waiting: Vec<_> =
        (0..3).map(|_| queue.enter(Account::Device(id), id).expect("in the queue")).collect();
    queue.resize(most(3), 8);
    let turns: Vec<_> = waiting.iter_mut().filter_map(ready).collect();
    assert_eq!((turns.len(), queue.running()), (2, 3));
    queue.resize(None, 8);
    assert!(ready(&mut waiting[2]).is_some());
}

#[tokio::test]
async fn a_waiting_task_is_woken() {
    let queue = Queue::new(most(1), 8);
    let id = DeviceId::generate();
    let turn = queue.enter(Account::Device(id), id).expect("in").await.expect("a turn");
    let waiting = queue.enter(Account::Device(id), id).expect("in the queue");
    let (turn, ()) = tokio::join!(waiting, async move {
        tokio::task::yield_now().await;
        drop(turn);
    });
    drop(turn);
    assert_eq!((queue.running(), queue.waiting()), (0, 0));
}

#[derive(Debug, Clone)]
enum Step {
    Enter(usize),
    Poll(usize),
    Leave(usize),
    End(usize),
    Resize(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..4usize).prop_map(Step::Enter),
        4 => (0..64usize).prop_map(Step::Poll),
        2 => (0..64usize).prop_map(Step::Leave),
        3 => (0..64usize).prop_map(Step::End),
        1 => (0..4usize).prop_map(Step::Resize),
    ];
    prop::collection::vec(step, 0..200)
}

proptest! {
    #[test]
    fn no_turn_is_ever_lost_or_given_twice(at_once in 1..4usize, steps in steps()) {
        let devices: Vec<_> = (0..4).map(|_| DeviceId::generate()).collect();
        let queue = Queue::new(most(at_once), 16);
        let (mut waiting, mut turns): (Vec<Waiting>, Vec<Turn>) = Default::default();
        let mut bound = at_once;
        for step in steps {
            match step {
                Step::Enter(device) => waiting.extend(queue.enter(Account::Device(devices[device]), devices[device])),
                Step::Poll(at) if !waiting.is_empty() => {
                    let at = at % waiting.len();
                    if let Poll::Ready(turn) = look(&mut waiting[at]) {
                        turns.extend(turn);
                        drop(waiting.remove(at));
                    }
                }
                Step::Leave(at) if !waiting.is_empty() => drop(waiting.remove(at % waiting.len())),
                Step::End(at) if !turns.is_empty() => drop(turns.remove(at % turns.len())),
                Step::Resize(n) => {
                    queue.resize(most(n), 16);
                    bound = if n == 0 { usize::MAX } else { n.max(queue.running()) };
                }
                _ => {}
            }
            prop_assert!(queue.running() >= turns.len());
            prop_assert!(queue.running() <= bound);
            prop_assert!(queue.waiting() <= waiting.len());
        }
        queue.resize(most(1), 16);
        // With one turn at a time, the remaining requests get it one after the other, and then the
        // queue is empty.
        turns.clear();
        while !waiting.is_empty() {
            let before = waiting.len();
            waiting.retain_mut(|one| look(one).is_pending());
            prop_assert!(waiting.len() < before, "requests wait, and none is called");
        }
        prop_assert_eq!((queue.running(), queue.waiting()), (0, 0));
        prop_assert_eq!(Arc::strong_count(&queue), 1);
    }
}
