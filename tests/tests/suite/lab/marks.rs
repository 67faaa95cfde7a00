//! Networks that drop packets with ECN marks, and a computer that can't send at all.

use std::time::Duration;

use tests::{
    lab::{Far, LOOPBACK, Lab, Setting, rung, seed},
    world::SOON,
};

use crate::PROGRAM;

const WITHIN: Duration = Duration::from_secs(180);

/// Whether the session marks its packets, and whether the network drops marked ones, by the
/// client's status.
async fn marks(far: &Far) -> (Option<bool>, Option<bool>) {
    let status = far.device.status().await;
    let says = |what: &str| status["tunnel"][what].as_bool();
    (says("ecn_marks"), says("drops_ecn_marks"))
}

/// How often an event has happened, by the client's status.
async fn happened(far: &Far, what: &str) -> usize {
    let status = far.device.status().await;
    let events = status["events"].as_array().expect("events").iter();
    events.filter(|event| event["what"].as_str().is_some_and(|text| text.contains(what))).count()
}

#[tokio::test]
async fn a_network_that_drops_ecn_marked_packets_is_remembered_and_another_is_tried() {
    if Lab::is_missing() {
        return;
    }
    let lab = Lab::new(LOOPBACK, seed(503));
    lab.lose_marked(true);
    let setting = Setting { link: rung("dsl"), ..Setting::default() };
    let mut far = Far::start_in(lab, PROGRAM, setting, &[]).await;
    far.ask_both(20, 1).await.are_equal(WITHIN).await;
    // It was found out before the session began. Marks are not blamed yet: one lost packet looks the
    // same.
    assert_eq!(marks(&far).await, (Some(false), Some(false)));
    assert_eq!(happened(&far, "ECN").await, 0);
    far.is_one_session();
    // Three dials are certain of it.
    far.restart_adit().await;
    far.ask_both(20, 1).await.are_equal(WITHIN).await;
    assert_eq!(marks(&far).await, (Some(false), Some(false)));
    far.restart_adit().await;
    far.ask_both(20, 1).await.are_equal(WITHIN).await;
    assert_eq!(marks(&far).await, (Some(false), Some(true)));
    let tried = far.lab.marked_by_laptop();
    assert!(tried > 0, "that is how it was found out");
    // The next session begins without marks, and says nothing new.
    far.world.kill_server().await;
    far.restart_server().await;
    far.ask_both(20, 2).await.are_equal(WITHIN).await;
    assert_eq!(far.up.adit.log().matches("connected to").count(), 2, "another session");
    assert_eq!(marks(&far).await, (Some(false), Some(true)));
    assert_eq!(happened(&far, "ECN").await, 1);
    // So does the first session of another `adit up`.
    far.restart_adit().await;
    far.ask_both(20, 3).await.are_equal(WITHIN).await;
    assert_eq!(marks(&far).await, (Some(false), Some(true)));
    assert_eq!(happened(&far, "ECN").await, 0);
    assert_eq!(far.lab.marked_by_laptop(), tried, "no packet of these sessions had a mark");
    // On another network marks are tried.
    far.lab.lose_marked(false);
    far.lab.change_address();
    far.restart_adit().await;
    far.ask_both(20, 4).await.are_equal(WITHIN).await;
    assert_eq!(marks(&far).await, (Some(true), Some(false)));
    assert!(far.lab.marked_by_laptop() > tried);
}

#[tokio::test]
async fn a_path_that_begins_to_drop_ecn_marked_packets_loses_no_token() {
    if Lab::is_missing() {
        return;
    }
    let setting = Setting { link: rung("dsl"), seed: seed(501), ..Setting::default() };
    let far = Far::start(PROGRAM, setting).await;
    let mut answer = far.ask_both(300, 1).await;
    answer.tunnelled.has(2_000, WITHIN).await;
    assert_eq!(marks(&far).await, (Some(true), Some(false)));
    far.lab.lose_marked(true);
    answer.are_equal(WITHIN).await;
    far.is_one_session();
    assert_eq!(marks(&far).await, (Some(false), Some(false)));
}

#[tokio::test]
async fn a_computer_that_cannot_send_reports_it_once() {
    if Lab::is_missing() {
        return;
    }
    let setting = Setting { link: rung("dsl"), seed: seed(502), ..Setting::default() };
    let far = Far::start(PROGRAM, setting).await;
    let mut answer = far.ask_both(200, 1).await;
    answer.tunnelled.has(2_000, WITHIN).await;
    far.lab.unplug();
    let said = async { while happened(&far, "cannot send").await == 0 {} };
    tokio::time::timeout(SOON, said).await.expect("it says so");
    // Meanwhile new sockets are opened, and each fails again.
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(happened(&far, "network is unreachable").await, 1);
    far.lab.plug_in();
    answer.are_equal(WITHIN).await;
    let log = far.up.adit.log();
    assert!(!log.contains("Os {"), "a library's own words: {log}");
}
