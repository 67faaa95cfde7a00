//! A server process that another one replaces while an application has a running answer.

use std::{collections::HashSet, path::PathBuf, time::Duration};

use tests::{ollama::Options, skip, world::SOON};
use tokio::process::Child;

use super::Https;

/// An answer that runs for about 20 s, so that it does not end by itself too early.
const LONG: &str = r#"{"model":"stand-in:latest","prompt":"x","options":{"num_predict":400}}"#;

/// Starts curl with [`LONG`], and waits until the answer runs.
async fn starts_an_answer(https: &Https, key: &str) -> Child {
    let header = format!("Authorization: Bearer {key}");
    let args = ["--header", &header, "--data", LONG];
    let running = https.curl_command("/api/generate", &args).spawn().expect("curl starts");
    https.world.ollama.wait_for(|now| now.running == 1, SOON).await.expect("it runs");
    running
}

/// Asserts that the answer is whole, and that the old process then ends as one that was told to.
async fn assert_whole(mut https: Https, running: Child) {
    let out = tokio::time::timeout(4 * SOON, running.wait_with_output()).await;
    let out = out.expect("in time").expect("it ends");
    assert!(String::from_utf8_lossy(&out.stdout).contains("\"done\":true"), "{out:?}");
    let ended = https.world.aditd.ended().await.expect("the old process ends");
    assert_eq!(ended.code(), Some(0));
    assert_eq!(https.world.ollama.counters().cancelled, 0);
}

#[tokio::test]
async fn a_running_answer_goes_on_and_the_next_request_is_answered_by_the_new_process() {
    let https = Https::start(Options::default(), "").await;
    let key = https.key("app", &[]).await;
    let running = starts_an_answer(&https, &key).await;
    let old = https.world.aditd.pid();
    let _new = https.world.replace_server().await;
    let next = https.with_key(&key, "/api/tags", &[]).await;
    assert_eq!(next.status, 200, "{next:?}");
    assert_eq!(https.world.status().await["older"], serde_json::json!([old]));
    assert_whole(https, running).await;
}

#[tokio::test]
async fn a_running_answer_comes_to_its_end_when_the_new_process_ends_before_the_order_to_stop() {
    // The server keeps others of its user from looking into it.
    if !rustix::process::geteuid().is_root() && skip::skip_test("only root sees its sockets") {
        return;
    }
    let https = Https::start(Options::default(), "").await;
    let key = https.key("app", &[]).await;
    let running = starts_an_answer(&https, &key).await;
    let new = https.world.replace_server().await;
    // A unit of systemd ends the newest process, and then tells the others. This one has seen that end
    // when it has closed its socket to that process.
    let before = sockets(https.world.aditd.pid());
    drop(new);
    let seen = async {
        while sockets(https.world.aditd.pid()).is_superset(&before) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, seen).await.expect("the end is seen");
    https.world.aditd.signal("TERM");
    assert_eq!(https.world.ollama.counters().running, 1, "the answer still runs");
    assert_whole(https, running).await;
}

/// The sockets that this process has open.
fn sockets(pid: u32) -> HashSet<PathBuf> {
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs").flatten();
    let targets = open.filter_map(|file| std::fs::read_link(file.path()).ok());
    targets.filter(|target| target.to_string_lossy().starts_with("socket:")).collect()
}
