//! Every event in every state.

use std::time::Duration;

use super::*;
use crate::record::{NotNow, QueueWait, Refusal};
use proto::{http1::BodyLength, wire::Code};

const BEGUN: &[u8] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n";
const REST: &[u8] = b"1\r\nb\r\n0\r\n\r\n";

/// A state of the machine, by the events that lead to it.
#[derive(Debug, Clone, Copy)]
struct State {
    name: &'static str,
    turn: TurnPoint,
    length: BodyLength,
    events: &'static [Step],
}

/// An event, as a table can hold it.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Step {
    Device(&'static str),
    DeviceEnded,
    DeviceReset,
    DeviceLost,
    AnswerRefused,
    AnswerLost,
    Forwarded,
    Delivered,
    Service(&'static [u8]),
    ServiceEnded,
    ServiceReset,
    ServiceRefused,
    Granted,
    NoTurn,
    Overruled,
    Limit,
    Draining,
}

use self::Step::*;

const ALL: [Step; 17] = [
    Device("0123456789next"),
    DeviceEnded,
    DeviceReset,
    DeviceLost,
    AnswerRefused,
    AnswerLost,
    Forwarded,
    Delivered,
    Service(REST),
    ServiceEnded,
    ServiceReset,
    ServiceRefused,
    Granted,
    NoTurn,
    Overruled,
    Limit,
    Draining,
];

const TEN: BodyLength = BodyLength::Known(10);
const NONE: BodyLength = BodyLength::Known(0);

#[rustfmt::skip]
const STATES: &[State] = &[
    State { name: "queued", turn: TurnPoint::First, length: TEN, events: &[] },
    State { name: "body", turn: TurnPoint::None, length: TEN, events: &[Forwarded] },
    State { name: "forwarding", turn: TurnPoint::None, length: TEN, events: &[] },
    State { name: "held", turn: TurnPoint::Whole, length: TEN, events: &[Forwarded, Device("0123456789")] },
    State { name: "sent", turn: TurnPoint::None, length: NONE, events: &[Forwarded] },
    State { name: "sent, answering", turn: TurnPoint::None, length: NONE, events: &[Forwarded, Service(BEGUN), Delivered] },
    State { name: "sent, delivering", turn: TurnPoint::None, length: NONE, events: &[Forwarded, Service(BEGUN)] },
    State { name: "sent, more behind", turn: TurnPoint::None, length: NONE, events: &[Forwarded, Device("next"), DeviceEnded] },
    State { name: "sent, closed", turn: TurnPoint::None, length: NONE, events: &[Forwarded, Service(BEGUN), Delivered, ServiceEnded] },
    State { name: "body, answering", turn: TurnPoint::None, length: TEN, events: &[Forwarded, Service(BEGUN), Delivered] },
    State { name: "body, whole", turn: TurnPoint::None, length: TEN, events: &[Forwarded, Service(BEGUN), Delivered, Service(REST), Delivered] },
    State { name: "body, closed", turn: TurnPoint::None, length: TEN, events: &[Forwarded, Service(BEGUN), Delivered, ServiceEnded] },
    State { name: "body, stopped", turn: TurnPoint::None, length: TEN, events: &[Forwarded, Service(BEGUN), Delivered, AnswerRefused] },
    State { name: "body, lost", turn: TurnPoint::None, length: TEN, events: &[Forwarded, Service(BEGUN), Delivered, AnswerLost] },
    State { name: "ended", turn: TurnPoint::None, length: NONE, events: &[Forwarded, DeviceEnded] },
    State { name: "ended, answering", turn: TurnPoint::None, length: NONE, events: &[Forwarded, Service(BEGUN), Delivered, DeviceEnded] },
    State { name: "ended within", turn: TurnPoint::None, length: TEN, events: &[Forwarded, DeviceEnded] },
];

fn refused() -> Refused {
    Refused::new(403, Refusal::Role, "adit: no")
}

fn not_now() -> NotNow {
    NotNow { status: 503, retry_after: None, sentence: "adit: not now".into(), limit: "queue" }
}

/// Feeds the event and returns the actions as text.
fn step(exchange: &mut Exchange<'_>, step: Step) -> String {
    let mut chunks = Vec::new();
    let limit = || Refused::from(NotNow { limit: "tokens_per_day", status: 429, ..not_now() });
    said(&exchange.on(match step {
        Device(text) => {
            chunks.push(Bytes::from_static(text.as_bytes()));
            ExchangeEvent::Device(&mut chunks)
        }
        DeviceEnded => ExchangeEvent::DeviceEnded,
        DeviceReset => ExchangeEvent::DeviceReset(Code::Aborted as u64),
        DeviceLost => ExchangeEvent::DeviceLost,
        AnswerRefused => ExchangeEvent::AnswerRefused,
        AnswerLost => ExchangeEvent::AnswerLost,
        Forwarded => ExchangeEvent::Forwarded,
        Delivered => ExchangeEvent::Delivered,
        Service(bytes) => ExchangeEvent::Service(bytes),
        ServiceEnded => ExchangeEvent::ServiceEnded,
        ServiceReset => ExchangeEvent::ServiceReset,
        ServiceRefused => ExchangeEvent::ServiceRefused,
        Granted => {
            ExchangeEvent::Turn(Ok(QueueWait { position: 2, waited: Duration::from_millis(4240) }))
        }
        NoTurn => ExchangeEvent::Turn(Err(not_now())),
        Overruled => ExchangeEvent::Overruled(refused()),
        Limit => ExchangeEvent::Limit { line: b"{}\n".to_vec(), refused: limit() },
        Draining => ExchangeEvent::Draining,
    }))
}

fn said(actions: &Actions) -> String {
    let Actions { queue, release, forward, finish_service, deliver, finish_device, again, end } =
        actions;
    let mut said = Vec::new();
    said.extend(queue.map(|queue| format!("{queue:?}").to_lowercase()));
    said.extend(release.then(|| "release".to_owned()));
    if !forward.is_empty() {
        said.push(format!("forward {:?}", String::from_utf8_lossy(&forward.concat())));
    }
    said.extend(finish_service.then(|| "end service".to_owned()));
    said.extend(deliver.as_ref().map(|deliver| match &*deliver.held {
        b"" => format!("deliver from {}", deliver.from),
        held => format!("deliver {:?} and from {}", String::from_utf8_lossy(held), deliver.from),
    }));
    said.extend(finish_device.then(|| "end device".to_owned()));
    said.extend(again.then(|| "again".to_owned()));
    said.extend(end.as_ref().map(|end| match end {
        Ending::Next(end) => format!("next: {}", end.as_str()),
        Ending::Tell(refused) => format!("tell {}", refused.answer.status),
        Ending::Last(bytes, end) => {
            format!("last {:?}: {}", String::from_utf8_lossy(bytes), end.as_str())
        }
        Ending::Cut(code, end) => format!("cut {code:?}: {}", end.as_str()),
        Ending::Close(How::Reset(_), end) => format!("reset: {}", end.as_str()),
        Ending::Close(how, end) => format!("{how:?}: {}", end.as_str()).to_lowercase(),
    }));
    said.join(", ")
}

/// Brings a machine into a state.
fn at<R>(state: &State, then: impl FnOnce(&mut Exchange<'_>) -> R) -> R {
    let (mut incoming, mut answer) = (Incoming::new(true), Tracker::new(false, true));
    let mut ahead = ReadAhead::default();
    let request = ForwardedRequest {
        begun: vec![Bytes::from_static(b"HEAD")],
        body: Body::new(state.length),
        most_body: None,
        turn: state.turn,
        added: None,
        ends_with_device: true,
        may_repeat: false,
    };
    let (mut exchange, _) = Exchange::start(request, &mut incoming, &mut answer, &mut ahead);
    for event in state.events {
        step(&mut exchange, *event);
    }
    then(&mut exchange)
}

/// Whether an event can occur: the machine waits for it, or it is always reported.
fn can_happen(exchange: &Exchange<'_>, event: Step) -> bool {
    let Wants { service, device_takes, device, turn } = exchange.wants();
    match event {
        Device(_) | DeviceEnded => {
            matches!(device, super::DeviceRead::Read | super::DeviceRead::Ahead(_))
        }
        DeviceReset => device != super::DeviceRead::Nothing,
        DeviceLost => !matches!(device, super::DeviceRead::Nothing | super::DeviceRead::Reset),
        AnswerRefused | AnswerLost => device_takes,
        Forwarded | ServiceRefused => exchange.forwarding,
        Delivered => exchange.delivering,
        Service(_) | ServiceEnded => service,
        Granted | NoTurn => turn,
        ServiceReset | Overruled | Limit | Draining => true,
    }
}

#[test]
fn every_event_in_every_state() {
    let mut table = String::new();
    for state in STATES {
        table.push_str(&format!("{}\n", state.name));
        for event in ALL {
            let said =
                at(state, |exchange| can_happen(exchange, event).then(|| step(exchange, event)));
            if let Some(said) = said {
                let said = if said.is_empty() { "-" } else { &said };
                let event = match event {
                    Device(_) => "Device".to_owned(),
                    Service(_) => "Service".to_owned(),
                    event => format!("{event:?}"),
                };
                table.push_str(&format!("  {event}: {said}\n"));
            }
        }
    }
    assert_eq!(table, include_str!("table.txt"), "{table}");
}

/// All actions of the machine during these events, as text.
fn actions_of(turn: TurnPoint, length: BodyLength, events: &[Step]) -> Vec<String> {
    let state = State { name: "", turn, length, events: &[] };
    at(&state, |exchange| events.iter().map(|event| step(exchange, *event)).collect())
}

const DONE: &[u8] = b"f\r\n{\"done\":true}\r\n\r\n0\r\n\r\n";

#[test]
fn an_answer_that_the_service_completed_after_a_cancellation_is_recorded_as_cancelled() {
    let answered = |last| {
        let events = [Forwarded, Service(BEGUN), Delivered, DeviceEnded, Service(last), Delivered];
        actions_of(TurnPoint::None, NONE, &events).pop().expect("an end")
    };
    assert_eq!(answered(REST), "next: cancelled");
    assert_eq!(answered(DONE), "next: done", "it was complete before the device ended");
    let whole = [Forwarded, Service(BEGUN), Delivered, Service(REST), Delivered];
    assert_eq!(actions_of(TurnPoint::None, NONE, &whole).pop().expect("an end"), "next: done");
}

#[test]
fn a_limit_ends_an_answer_with_a_line_if_one_can_be_added() {
    let at_limit = |before: &'static [Step], after: &'static [Step]| {
        let events = [&[Forwarded], before, &[Limit], after].concat();
        actions_of(TurnPoint::None, NONE, &events).pop().expect("an end")
    };
    let last = "last \"3\\r\\n{}\\n\\r\\n0\\r\\n\\r\\n\": refused";
    assert_eq!(at_limit(&[], &[]), "tell 429");
    assert_eq!(at_limit(&[Service(BEGUN), Delivered], &[]), last);
    assert_eq!(at_limit(&[Service(BEGUN)], &[Delivered]), last);
    let within = &[Service(BEGUN), Delivered, Service(b"5\r\nhel"), Delivered];
    assert_eq!(at_limit(within, &[]), "");
    assert_eq!(at_limit(within, &[Service(b"lo\r\n"), Delivered]), last);
    let until_close = &[Service(b"HTTP/1.0 200 OK\r\n\r\nhello\n"), Delivered];
    assert_eq!(at_limit(until_close, &[]), "last \"{}\\n\": refused");
    let known = &[Service(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello"), Delivered];
    assert_eq!(at_limit(known, &[]), "cut Aborted: refused");
}

#[test]
fn what_would_let_the_service_begin_waits_for_its_turn_and_nothing_else_does() {
    const LENGTH: BodyLength = BodyLength::Known(8);
    let events = [
        Forwarded,
        Device("{\"a\":"),
        Forwarded,
        Device("1}"),
        Device(" next"),
        Granted,
        Forwarded,
    ];
    assert_eq!(
        actions_of(TurnPoint::Whole, LENGTH, &events),
        ["", "forward \"{\\\"a\\\":\"", "", "", "join", "forward \"1} \"", ""]
    );
    // A device that sends FIN after a pipelined request still waits.
    let events = [Forwarded, Device("{\"a\":1} next"), DeviceEnded, Granted];
    assert_eq!(
        actions_of(TurnPoint::Whole, LENGTH, &events),
        ["", "join", "", "forward \"{\\\"a\\\":1} \""]
    );
}

#[test]
fn nothing_after_a_malformed_chunk_is_forwarded() {
    let events = [Forwarded, Device("3\r\nabc\r\n+3\r\nabc\r\n")];
    assert_eq!(actions_of(TurnPoint::None, BodyLength::Chunked, &events), ["", "tell 400"]);
}

#[test]
fn an_answer_that_comes_before_its_turn_ends_the_wait() {
    let events =
        [Forwarded, Device("0123456789"), Service(BEGUN), Delivered, Service(REST), Delivered];
    assert_eq!(
        actions_of(TurnPoint::Whole, TEN, &events)[4..],
        ["release, deliver from 0", "leave, forward \"0123456789\""]
    );
}

#[test]
fn an_answer_says_how_its_request_has_waited_in_its_final_head_only() {
    let told = |tells_queue: bool, events: &[Step]| -> String {
        let (mut incoming, mut answer) = (Incoming::new(true), Tracker::new(false, true));
        let mut ahead = ReadAhead::default();
        let request = ForwardedRequest {
            begun: vec![Bytes::from_static(b"HEAD")],
            body: Body::new(NONE),
            most_body: None,
            turn: TurnPoint::First,
            added: tells_queue.then(AddedFields::default),
            ends_with_device: true,
            may_repeat: false,
        };
        let (mut exchange, _) = Exchange::start(request, &mut incoming, &mut answer, &mut ahead);
        events.iter().map(|event| step(&mut exchange, *event) + "; ").collect()
    };
    const EARLY: &[u8] = b"HTTP/1.1 103 Early Hints\r\n\r\n";
    const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na";
    let events = [Granted, Forwarded, Service(EARLY), Delivered, Service(OK), Delivered];
    assert_eq!(
        told(true, &events),
        "forward \"HEAD\"; ; deliver \"HTTP/1.1 103 Early Hints\\r\\n\\r\\n\" and from 28; ; \
         release, deliver \"HTTP/1.1 200 OK\\r\\nContent-Length: 1\\r\\n\
         X-Adit-Queue: position=2, waited=4.2\\r\\n\\r\\na\" and from 39; next: done; "
    );
    assert_eq!(
        told(false, &events),
        "forward \"HEAD\"; ; deliver from 0; ; release, deliver from 0; next: done; "
    );
    // An answer that came before its turn.
    let early = [Service(OK), Delivered];
    assert!(!told(true, &early).contains("X-Adit-Queue"), "{}", told(true, &early));
    // The answer breaks off in its head: each of its bytes is delivered.
    const BROKEN: &[u8] = b"HTTP/1.1 200 OK\r\n\r";
    let events =
        [Granted, Forwarded, Service(BROKEN), Delivered, ServiceEnded, Delivered, ServiceEnded];
    assert_eq!(
        told(true, &events),
        "forward \"HEAD\"; ; deliver \"HTTP/1.1 200 OK\\r\\n\" and from 18; ; \
         deliver \"\\r\" and from 0; ; release, end device; "
    );
}

/// The request that is sent again after these events on a connection that had answered another one,
/// and what the next connection gets of it at once.
fn sent_again(
    turn: TurnPoint,
    length: BodyLength,
    events: &[Step],
) -> Option<(String, TurnPoint, String)> {
    let (mut incoming, mut answer) = (Incoming::new(true), Tracker::new(false, true));
    let mut ahead = ReadAhead::default();
    let request = ForwardedRequest {
        begun: vec![Bytes::from_static(b"HEAD")],
        body: Body::new(length),
        most_body: None,
        turn,
        added: None,
        ends_with_device: true,
        may_repeat: true,
    };
    let (mut exchange, _) = Exchange::start(request, &mut incoming, &mut answer, &mut ahead);
    let said = events.iter().map(|event| step(&mut exchange, *event)).last();
    if said.as_deref() != Some("again") {
        return None;
    }
    let request = exchange.again();
    let (all, turn) = (request.begun.concat(), request.turn);
    assert!(!request.may_repeat);
    let (_, actions) = Exchange::start(request, &mut incoming, &mut answer, &mut ahead);
    let forwarded = actions.forward.concat();
    assert!(incoming.bytes == 0 || incoming.bytes == all.len() as u64, "{}", incoming.bytes);
    let text = |bytes| String::from_utf8(bytes).expect("text");
    Some((text(all), turn, text(forwarded)))
}

#[test]
fn a_request_on_a_kept_connection_that_ends_without_an_answer_is_sent_again_whole() {
    let (whole, half) = (Device("0123456789"), Device("01234"));
    for ended in [ServiceEnded, ServiceReset] {
        for (turn, length, events, all, then, forwarded) in [
            (TurnPoint::None, NONE, &[Forwarded][..], "HEAD", TurnPoint::None, "HEAD"),
            (TurnPoint::None, TEN, &[], "HEAD", TurnPoint::None, "HEAD"),
            (TurnPoint::None, TEN, &[Forwarded, half], "HEAD01234", TurnPoint::None, "HEAD01234"),
            (TurnPoint::First, TEN, &[], "HEAD", TurnPoint::First, ""),
            (TurnPoint::First, TEN, &[Granted], "HEAD", TurnPoint::None, "HEAD"),
            (TurnPoint::Whole, TEN, &[Forwarded, half], "HEAD01234", TurnPoint::Whole, "HEAD01234"),
            (TurnPoint::Whole, TEN, &[Forwarded, whole], "HEAD0123456789", TurnPoint::Whole, ""),
            (
                TurnPoint::Whole,
                TEN,
                &[Forwarded, whole, Granted],
                "HEAD0123456789",
                TurnPoint::None,
                "HEAD0123456789",
            ),
        ] {
            let events = [events, &[ended]].concat();
            let expected = Some((all.to_owned(), then, forwarded.to_owned()));
            assert_eq!(sent_again(turn, length, &events), expected, "{turn:?} {events:?}");
        }
    }
    assert!(sent_again(TurnPoint::None, NONE, &[ServiceRefused]).is_some());
}

#[test]
fn a_request_is_not_sent_again_after_a_byte_of_its_answer_or_when_nobody_waits_for_it() {
    for events in [
        &[Forwarded, Service(b"H"), Delivered, ServiceEnded][..],
        &[Forwarded, Service(b"HTTP/1.1 100 Continue\r\n\r\n"), Delivered, ServiceReset],
        &[Forwarded, DeviceEnded, ServiceEnded],
        &[AnswerRefused, ServiceEnded],
        &[AnswerLost, ServiceReset],
    ] {
        assert_eq!(sent_again(TurnPoint::None, NONE, events), None, "{events:?}");
    }
}
