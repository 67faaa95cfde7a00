//! Devices whose owner changes his mind: revoked with a reason, let in again, renamed.

use serde_json::Value;
use tests::{
    cli_assert::{FAILED, NOT_ALLOWED, USAGE, assert_ok, assert_told, up_to_its_end},
    raw::{self, ROOT},
    state_files::{device_names, profile},
    world::World,
};

use crate::PROGRAM;

#[tokio::test]
async fn the_reason_of_a_revocation_reaches_every_tool_and_the_next_start() {
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let mut up = device.up(&[]).await;
    for (bad, why) in
        [(" ", "can't be empty"), ("two\nlines", "control characters"), (&"x".repeat(201), "200")]
    {
        let refused = world.aditd(&["device", "revoke", "laptop", "--reason", bad]).await;
        assert_eq!(refused.code, Some(USAGE));
        assert!(refused.stderr.contains(why), "{}", refused.stderr);
    }

    let reason = "verloren im Zug, 3. März";
    assert_ok(&world.aditd(&["device", "revoke", "laptop", "--reason", reason]).await);
    up.adit.says("no tunnel: this device was revoked").await;
    let answer = raw::exchange(up.address, ROOT).await;
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains(reason), "{answer}");
    assert!(answer.contains("aditd device restore laptop"), "{answer}");
    let status = device.status().await;
    assert_eq!(status["tunnel"]["state"], "refused");
    assert!(status["tunnel"]["why"].as_str().is_some_and(|why| why.contains(reason)), "{status}");
    let cure = status["tunnel"]["hint"].as_str().expect("a cure");
    assert!(cure.contains("connects by itself") && !cure.contains("`adit up"), "{cure}");
    assert!(answer.contains("connects by itself"), "{answer}");
    // A program that asks the running one for a port has ended, though it goes on.
    let program = device.run(&["true"]).await;
    assert_told(&program, NOT_ALLOWED, &["then run the same command again"]);
    up.adit.kill().await;

    let shut_out = up_to_its_end(&device).await;
    let cure = "aditd device restore laptop` on the server, then `adit up` here";
    assert_told(&shut_out, NOT_ALLOWED, &[reason, cure]);
    let doctor = device.adit(&["doctor", "--json"], "").await;
    assert!(doctor.stdout.contains(reason), "{}", doctor.stdout);
    let shown = world.aditd(&["device", "show", "laptop"]).await.stdout;
    assert!(shown.ends_with(&format!("\nReason       {reason}\n")), "{shown}");
    let shown: Value =
        serde_json::from_str(&world.aditd(&["device", "show", "laptop", "--json"]).await.stdout)
            .expect("JSON");
    assert_eq!(shown["device"]["reason"], reason);
    let audited = world.audit_has(1, |line| line["event"] == "revoke").await;
    assert_eq!(audited[0]["reason"], reason);
}

#[tokio::test]
async fn a_device_of_a_revoked_user_is_told_the_one_command_that_lets_it_in_again() {
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    assert_ok(&world.aditd(&["device", "user", "laptop", "alice"]).await);
    let mut up = device.up(&[]).await;
    assert_ok(&world.aditd(&["user", "revoke", "alice", "--reason", "left the team"]).await);
    up.adit.says("no tunnel: the user `alice`").await;
    let answer = raw::exchange(up.address, ROOT).await;
    up.adit.kill().await;
    let shut_out = up_to_its_end(&device).await;
    let cure = "aditd user restore alice";
    assert_told(&shut_out, NOT_ALLOWED, &["left the team", cure]);
    let doctor = device.adit(&["doctor", "--json"], "").await.stdout;
    for told in [&answer, &shut_out.stderr, &doctor] {
        assert!(told.contains("left the team") && told.contains(cure), "{told}");
        assert!(!told.contains("aditd device"), "{told}");
    }
    assert_ok(&world.aditd(&["user", "restore", "alice"]).await);
    device.up(&[]).await.works().await;
}

#[tokio::test]
async fn a_restored_device_is_let_in_with_the_key_and_certificate_that_it_had() {
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let (id, certificate) =
        (profile(&device).enrolled.device_id, profile(&device).enrolled.certificate);
    let mut running = device.up(&[]).await;
    assert_ok(&world.aditd(&["device", "revoke", "laptop"]).await);
    running.adit.says("no tunnel: this device was revoked").await;
    assert!(profile(&device).revoked.is_some());

    assert_ok(&world.aditd(&["device", "restore", "laptop"]).await);
    // The request makes the running `adit up` try again.
    let asked = async {
        while !raw::exchange(running.address, ROOT).await.ends_with("Ollama is running") {}
    };
    tokio::time::timeout(tests::world::SOON, asked).await.expect("it comes back by itself");
    let now = profile(&device);
    assert!(now.revoked.is_none() && now.enrolled.device_id == id);
    assert_eq!(now.enrolled.certificate, certificate);

    // Without a request it tries again, too, after seconds.
    assert_ok(&world.aditd(&["device", "revoke", "laptop"]).await);
    running.adit.says("no tunnel: this device was revoked").await;
    assert_ok(&world.aditd(&["device", "restore", "laptop"]).await);
    let is_back = async { while device.status().await["tunnel"]["state"] != "up" {} };
    tokio::time::timeout(tests::world::SOON, is_back).await.expect("it comes back by itself");
    running.works().await;

    let again = world.aditd(&["device", "restore", "laptop"]).await;
    assert_told(&again, FAILED, &["`laptop` is not revoked"]);
    let unknown = world.aditd(&["device", "restore", "nobody"]).await;
    assert_told(&unknown, FAILED, &["there is no device `nobody`"]);
    world.audit_has(1, |line| line["event"] == "restore").await;
}

#[tokio::test]
async fn a_renamed_device_stays_connected_and_is_logged_by_its_new_name() {
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    world.device("desk").await;
    world.invite("phone").await;
    let up = device.up(&[]).await;

    for (new, why) in [
        ("desk", "there is a device `desk` already"),
        ("phone", "an invitation for `phone` is open"),
        ("d7c4-91ae", "looks like a device's id"),
    ] {
        let refused = world.aditd(&["device", "rename", "laptop", new]).await;
        assert_told(&refused, FAILED, &[why]);
    }
    assert_ok(&world.aditd(&["device", "rename", "laptop", "thinkpad"]).await);
    assert_eq!(device_names(&world).await, ["desk", "thinkpad"]);
    assert!(raw::exchange(up.address, ROOT).await.ends_with("Ollama is running"));
    let lines = world.audit_has(1, |line| line["event"] == "request").await;
    let last = lines.last().expect("a line");
    assert_eq!(last["device"], "thinkpad", "{last}");
    up.end().await;
    device.up(&[]).await.works().await;
    assert_eq!(profile(&device).enrolled.device.as_str(), "thinkpad");
    let renamed = world.audit_has(1, |line| line["event"] == "rename").await;
    assert_eq!(
        (&renamed[0]["before"], &renamed[0]["device"]),
        (&"laptop".into(), &"thinkpad".into())
    );
}

#[tokio::test]
async fn a_device_of_a_revoked_user_is_shown_as_such_and_its_cure_is_to_restore_the_user() {
    let world = World::start(PROGRAM).await;
    world.device("laptop").await;
    assert_ok(&world.aditd(&["device", "user", "laptop", "alice"]).await);
    assert_ok(&world.aditd(&["user", "revoke", "alice"]).await);
    let listed = world.aditd(&["device", "list"]).await;
    assert!(listed.stdout.contains("user revoked"), "{}", listed.stdout);
    let restore = ["device", "restore", "laptop"];
    assert_told(&world.aditd(&restore).await, FAILED, &["alice", "`aditd user restore alice"]);
    // It may be revoked by itself, too.
    assert_ok(&world.aditd(&["device", "revoke", "laptop"]).await);
    assert_told(&world.aditd(&restore).await, FAILED, &["`aditd user restore alice"]);
    assert_ok(&world.aditd(&["user", "restore", "alice"]).await);
    let listed = world.aditd(&["device", "list"]).await;
    assert!(!listed.stdout.contains("revoked"), "{}", listed.stdout);
}
