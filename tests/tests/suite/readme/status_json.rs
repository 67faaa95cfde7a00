//! `docs/status-json.md` has each field of `adit status --json`, and no other.

use std::collections::BTreeSet;

use serde_json::Value;
use tests::world::{SOON, World};

use crate::PROGRAM;

const PAGE: &str = include_str!("../../../../docs/status-json.md");

/// The fields that the table under a heading has.
fn documented(heading: &str) -> BTreeSet<&'static str> {
    let (_, section) = PAGE.split_once(heading).expect("a heading");
    let section = section.split("\n## ").next().unwrap_or_default();
    let cells = section.lines().filter_map(|row| row.strip_prefix("| `")?.split(" |").next());
    cells.flat_map(|cell| cell.split("`, `").map(|field| field.trim_end_matches('`'))).collect()
}

fn fields(value: &Value) -> BTreeSet<&str> {
    value.as_object().expect("an object").keys().map(String::as_str).collect()
}

#[tokio::test]
async fn the_page_has_each_field_of_the_status() {
    let mut world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let _up = device.up(&[]).await;
    let status = device.adit(&["status", "--json", "--ollama"], "").await;
    let status: Value = serde_json::from_str(&status.stdout).expect("JSON");
    assert_eq!(fields(&status), documented("# `adit status --json`"));
    assert_eq!(fields(&status["tunnel"]), documented("## `tunnel` while `state` is `up`"));
    assert_eq!(fields(&status["ollama"]), BTreeSet::from(["state", "version", "models"]));
    assert_eq!(fields(&status["queue"]), BTreeSet::from(["waiting", "places"]));
    world.aditd.signal("TERM");
    world.aditd.ended().await.expect("it ends");
    let down = async {
        loop {
            let status = device.status().await;
            if status["tunnel"]["state"] == "down" {
                return status;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    let status = tokio::time::timeout(2 * SOON, down).await.expect("it is down");
    assert_eq!(fields(&status["tunnel"]), documented("## `tunnel` while `state` is `down`"));
}
