//! The queue is visible: to the owner of the server, and to the device whose request waits.

use std::time::{Duration, Instant};

use serde_json::Value;
use tests::{raw, world::SOON};
use tokio::io::AsyncWriteExt;

use super::limits::{endless, line_has, start, up};

#[tokio::test]
async fn the_owner_sees_who_waits_at_which_place_and_for_how_long() {
    let world = start("max_in_flight = 1").await;
    let (script, person) = (up(&world, "script").await, up(&world, "person").await);
    let idle = world.aditd(&["status"]).await;
    assert!(idle.stdout.contains("\nQueue        0 of 1 running, none waiting"), "{idle:?}");
    let _running = endless(&world, script.address).await;
    let mut waiting = Vec::new();
    for (at, (of, device)) in
        [(&script, "script"), (&script, "script"), (&person, "person")].into_iter().enumerate()
    {
        let mut tcp = raw::connect(of.address).await;
        tcp.write_all(raw::generate(1, 1).as_bytes()).await.expect("sent");
        line_has(&world, at as u64 + 1).await;
        waiting.push((tcp, device));
    }
    let status = world.status().await;
    let mut page = crate::readme::json::Page::read();
    page.has("aditd status", &status);
    page.objects_are_printed(crate::readme::json::By::Queue);
    let queue = &status["queue"];
    assert_eq!(
        (&queue["running"], &queue["max_in_flight"], &queue["max_queue"]),
        (&1.into(), &1.into(), &512.into())
    );
    let shown: Vec<_> = queue["waiting"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|one| (one["position"].as_u64(), one["device"].as_str()))
        .collect();
    // The person has come last, and waits for one turn of the script only.
    assert_eq!(
        shown,
        [(Some(1), Some("script")), (Some(2), Some("person")), (Some(3), Some("script"))]
    );
    let text = world.aditd(&["status"]).await.stdout;
    for line in ["Queue        1 of 1 running, 3 waiting", "\n             2. person, for "] {
        assert!(text.contains(line), "no `{line}` in {text}");
    }
    let first = || async {
        let status = world.status().await;
        status["queue"]["waiting"][0]["seconds"].as_f64().expect("seconds")
    };
    let (began, before) = (Instant::now(), first().await);
    assert!((0.0..SOON.as_secs_f64()).contains(&before), "{before}");
    let later = tokio::time::timeout(SOON, async {
        loop {
            let now = first().await;
            if now > before + 0.05 {
                return now;
            }
        }
    });
    let later = later.await.expect("it waits longer");
    assert!(later - before <= began.elapsed().as_secs_f64(), "{before} and then {later}");
}

#[tokio::test]
async fn the_audit_log_has_the_time_in_the_queue_also_of_a_request_that_never_had_its_turn() {
    const LEAST: Duration = Duration::from_millis(50);
    let world = start("max_in_flight = 1").await;
    let up = up(&world, "laptop").await;
    let running = endless(&world, up.address).await;
    let mut gives_up = raw::connect(up.address).await;
    gives_up.write_all(raw::generate(1, 1).as_bytes()).await.expect("sent");
    let mut waits = raw::connect(up.address).await;
    waits.write_all(raw::generate(2, 2).as_bytes()).await.expect("sent");
    let both_for = async {
        while world.status().await["queue"]["waiting"][1]["seconds"].as_f64()
            < Some(LEAST.as_secs_f64())
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(SOON, both_for).await.expect("both wait");
    drop(gives_up);
    line_has(&world, 1).await;
    drop(running);
    let (answer, _) = raw::read_to_end(&mut waits).await;
    assert!(answer.starts_with(b"HTTP/1.1 200 OK"), "{}", String::from_utf8_lossy(&answer));

    let requests = world.audit_has(3, |line| line["event"] == "request").await;
    let queued = |line: &Value| line["queued_ms"].as_f64().expect("milliseconds");
    let waited: Vec<_> =
        requests.iter().filter(|line| queued(line) >= LEAST.as_secs_f64() * 1e3).collect();
    let mut ends: Vec<_> = waited.iter().map(|line| line["end"].as_str()).collect();
    ends.sort_unstable();
    assert_eq!(ends, [Some("cancelled"), Some("done")], "{requests:#?}");
    for line in &waited {
        assert!(queued(line) <= line["total_ms"].as_f64().expect("milliseconds"), "{line:#}");
    }
    let table = world.aditd(&["audit"]).await.stdout;
    let (header, rows) = table.split_once('\n').expect("a header");
    let column = header.find("  QUEUED").expect("a column")
        ..header.find("     TIME  WHAT").expect("another");
    for ending in ["-       cancelled", "200     done"] {
        let row = rows.lines().find(|row| row.contains(ending)).expect("a row");
        assert!(row[column.clone()].trim().ends_with('s'), "{table}");
    }
}

/// The values of the header that tells of the queue, in each head of an answer.
fn told(answer: &str) -> Vec<(u64, f64)> {
    let (head, _) = answer.split_once("\r\n\r\n").expect("a head");
    let values = head.lines().filter_map(|line| line.strip_prefix("X-Adit-Queue: "));
    let read = |value: &str| {
        let (position, waited) = value.split_once(", ")?;
        let position = position.strip_prefix("position=")?.parse().ok()?;
        Some((position, waited.strip_prefix("waited=")?.parse().ok()?))
    };
    values.map(|value| read(value).unwrap_or_else(|| panic!("{value}"))).collect()
}

#[tokio::test]
async fn an_answer_says_how_its_request_has_waited_where_the_owner_wants_that() {
    let world = start("max_in_flight = 1\nqueue_header = true").await;
    let up = up(&world, "laptop").await;
    let ask = async |seed| raw::exchange(up.address, &raw::generate(3, seed)).await;
    let first = ask(1).await;
    assert_eq!(told(&first), [(0, 0.0)], "{first}");
    let running = endless(&world, up.address).await;
    let mut waiting = Vec::new();
    for at in 1..=2 {
        let began = Instant::now();
        let mut tcp = raw::connect(up.address).await;
        tcp.write_all(raw::generate(3, at).as_bytes()).await.expect("sent");
        line_has(&world, at).await;
        waiting.push((at, tcp, began));
    }
    let longer = async {
        while world.status().await["queue"]["waiting"][1]["seconds"].as_f64() < Some(0.15) {}
    };
    tokio::time::timeout(SOON, longer).await.expect("both wait");
    drop(running);
    for (at, mut tcp, began) in waiting {
        let (answer, _) = raw::read_to_end(&mut tcp).await;
        let answer = String::from_utf8(answer).expect("text");
        let [(position, waited)] = told(&answer)[..] else { panic!("{answer}") };
        assert_eq!(position, at, "{answer}");
        let most = began.elapsed().as_secs_f64() + 0.2;
        assert!((0.1..most).contains(&waited), "{waited} of at most {most}: {answer}");
        assert!(answer.contains("\r\n0\r\n\r\n"), "it is whole: {answer}");
    }
    // What needs no turn has no place in the queue.
    let list = "GET /api/tags HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let list = raw::exchange(up.address, list).await;
    assert!(list.starts_with("HTTP/1.1 200 OK") && told(&list).is_empty(), "{list}");

    // Without the header, the same request has the same answer as at Ollama itself.
    std::fs::write(world.config(), "max_in_flight = 1").expect("written");
    let reloaded = world.aditd(&["reload"]).await;
    assert_eq!(reloaded.code, Some(0), "{reloaded:?}");
    assert!(!reloaded.stderr.contains("restart aditd"), "{reloaded:?}");
    let (through, direct) =
        (ask(1).await, raw::exchange(world.ollama.addr(), &raw::generate(3, 1)).await);
    assert_eq!(raw::without_date(&through), raw::without_date(&direct));
}

#[tokio::test]
async fn a_device_sees_where_its_own_requests_wait() {
    let world = start("max_in_flight = 1").await;
    let (laptop, other) = (world.device_as("laptop", "infer").await, up(&world, "other").await);
    let mine = laptop.up(&[]).await;
    let queue = async || laptop.status().await["queue"].clone();
    assert_eq!(queue().await, serde_json::json!({"waiting": 0, "places": []}));
    let running = endless(&world, other.address).await;
    let mut waiting = Vec::new();
    for (at, of) in [&other, &other, &mine].into_iter().enumerate() {
        let mut tcp = raw::connect(of.address).await;
        tcp.write_all(raw::generate(1, 1).as_bytes()).await.expect("sent");
        line_has(&world, at as u64 + 1).await;
        waiting.push(tcp);
    }
    let now = queue().await;
    // Of the two requests of the other device, one comes first.
    assert_eq!((&now["waiting"], &now["places"][0]["position"]), (&1.into(), &2.into()), "{now}");
    assert_eq!(now["places"].as_array().map(Vec::len), Some(1), "{now}");
    let longer = async { while queue().await["places"][0]["waited_ms"].as_u64() < Some(30) {} };
    tokio::time::timeout(SOON, longer).await.expect("it waits");
    let text = laptop.adit(&["status"], "").await.stdout;
    assert!(text.contains("\nQueue        1 request waits, position 2, for "), "{text}");
    drop(running);
    let (answer, _) = raw::read_to_end(&mut waiting[2]).await;
    assert!(answer.starts_with(b"HTTP/1.1 200 OK"), "{}", String::from_utf8_lossy(&answer));
    assert_eq!(queue().await["waiting"], 0);
    let text = laptop.adit(&["status"], "").await.stdout;
    assert!(!text.contains("\nQueue "), "{text}");
}
