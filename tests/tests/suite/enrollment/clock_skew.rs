//! A laptop and a box whose clocks differ: what still works, and what `adit status` says.

use tests::{
    fake_clock::FakeClock,
    raw::{self, ROOT},
    state_files::profile,
    world::World,
};

use crate::PROGRAM;

const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;

#[tokio::test]
async fn clocks_that_are_hours_apart_let_requests_through_and_status_says_so() {
    let mut world = World::start(PROGRAM).await;
    let Some(clock) = FakeClock::new(&world.scratch("")) else { return };
    let device = world.device("laptop").await;
    let up = device.up(&[]).await;
    let status = device.status().await;
    let ahead = status["tunnel"]["server_clock_ahead_ms"].as_i64().expect("it is measured");
    assert!(ahead.abs() < 30_000, "{status:#}");
    up.end().await;

    for hours in [7, -7] {
        world.kill_server().await;
        clock.set_ahead(hours * HOUR);
        world.restart_server_by(&clock).await;
        let up = device.up(&[]).await;
        assert!(raw::exchange(up.address, ROOT).await.ends_with("Ollama is running"));
        let status = device.status().await;
        let ahead = status["tunnel"]["server_clock_ahead_ms"].as_i64().expect("it is measured");
        assert!((ahead - hours * HOUR * 1000).abs() < 30_000, "{status:#}");
        let text = device.adit(&["status"], "").await.stdout;
        let says = if hours > 0 { "ahead of this computer's" } else { "behind this computer's" };
        let line = text.lines().find(|line| line.starts_with("Clock ")).expect("a line");
        assert!(line.contains(says), "{text}");
        up.end().await;
    }
}

#[tokio::test]
async fn a_certificate_is_renewed_by_the_servers_clock_however_wrong_the_laptops_is() {
    let mut world = World::start(PROGRAM).await;
    let Some(clock) = FakeClock::new(&world.scratch("")) else { return };
    let device = world.device("laptop").await;
    let first = profile(&device).certificate().expect("a certificate");
    // By the server's clock the certificate has ended; by the laptop's the new one begins later.
    world.kill_server().await;
    clock.set_ahead(40 * DAY);
    world.restart_server_by(&clock).await;
    device.up(&[]).await.works().await;
    let renewed = profile(&device).certificate().expect("a certificate");
    assert!(renewed.not_before > first.not_after, "{renewed:?}");

    // A year of sleep is too long: both times are told.
    world.kill_server().await;
    clock.set_ahead(400 * DAY);
    world.restart_server_by(&clock).await;
    let up = device.start(&["--hold", "0s"]).await;
    let answer = async {
        loop {
            let answer = raw::exchange(up.address, ROOT).await;
            if answer.contains("is not valid by the server's clock") {
                return answer;
            }
        }
    };
    let answer = tokio::time::timeout(tests::world::SOON, answer).await.expect("it is told");
    for part in ["this computer's clock shows 20", ", the server's 20", "adit enroll --replace"] {
        assert!(answer.contains(part), "{answer}");
    }
}
