//! `adit ls`, `adit warm` and `adit status --watch`.

use std::process::Stdio;

use serde_json::Value;
use tests::{
    cli_assert::{FAILED, assert_ok, assert_told},
    terminal::Terminal,
    world::{SOON, World},
};
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::PROGRAM;

#[tokio::test]
async fn servers_are_listed_with_their_models_or_with_what_is_missing() {
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let listed = device.adit(&["ls"], "").await;
    assert_ok(&listed);
    assert!(
        listed.stdout.starts_with("default: not running: start it with `adit up"),
        "{listed:?}"
    );

    let up = device.up(&[]).await;
    let listed = device.adit(&["ls", "--json"], "").await;
    assert_ok(&listed);
    let listed: Value = serde_json::from_str(&listed.stdout).expect("JSON");
    assert_eq!(listed["servers"][0]["url"], up.url(""), "{listed}");
    let tags = json_at(&up.url("/api/tags")).await;
    let names = |list: &Value, key: &str| -> Vec<String> {
        let list = list[key].as_array().cloned().unwrap_or_default();
        list.iter().map(|model| model["name"].as_str().expect("a name").to_owned()).collect()
    };
    assert_eq!(names(&listed["servers"][0], "models"), names(&tags, "models"));
    assert!(!names(&tags, "models").is_empty());

    let told = device.adit(&["ls", "elsewhere"], "").await;
    assert_eq!(told.code, Some(FAILED), "{told:?}");
    assert_told(&world.stranger("x").adit(&["ls"], "").await, FAILED, &["is not enrolled"]);
}

/// The JSON at a URL.
async fn json_at(url: &str) -> Value {
    let (_, rest) = url.split_once("http://").expect("a URL");
    let (address, path) = rest.split_once('/').expect("a path");
    let request = format!("GET /{path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
    let answer = tests::raw::exchange(address.parse().expect("an address"), &request).await;
    let (_, body) = answer.split_once("\r\n\r\n").expect("a body");
    serde_json::from_str(body).expect("JSON")
}

#[tokio::test]
async fn a_model_is_loaded_before_it_is_needed_with_a_tunnel_or_without() {
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    for beside in [false, true] {
        let _up = match beside {
            true => Some(device.up(&[]).await),
            false => None,
        };
        let warm = device.adit(&["warm", "stand-in", "--keep", "10m"], "").await;
        assert_ok(&warm);
        assert!(warm.stdout.starts_with("stand-in is loaded, after "), "{warm:?}");
        if !beside {
            let wait = async { while device.adit(&["status"], "").await.code == Some(0) {} };
            tokio::time::timeout(SOON, wait).await.expect("its tunnel ends");
        }
    }
}

#[tokio::test]
async fn who_watches_sees_the_status_again_and_again() {
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let _up = device.up(&[]).await;
    let mut command = device.command(&["status", "--watch", "--json"]);
    let mut watch = command.stdout(Stdio::piped()).spawn().expect("it starts");
    let mut lines = BufReader::new(watch.stdout.take().expect("its output")).lines();
    for _ in 0..2 {
        let line = tokio::time::timeout(SOON, lines.next_line()).await.expect("in time");
        let status: Value =
            serde_json::from_str(&line.expect("a line").expect("a line")).expect("JSON");
        assert_eq!(status["tunnel"]["state"], "up");
    }
    let pid = watch.id().expect("it runs").to_string();
    let interrupted = std::process::Command::new("kill").args(["-INT", &pid]).status();
    assert!(interrupted.expect("kill").success());
    assert_eq!(watch.wait().await.expect("it ends").code(), Some(0));
}

#[tokio::test]
async fn on_a_terminal_the_last_minute_is_drawn() {
    if Terminal::is_missing() {
        return;
    }
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let _up = device.up(&[]).await;
    let mut terminal = Terminal::run(&device.command(&["status", "--watch"]));
    terminal.shows_times("Round trip", 3).await;
    assert!(terminal.screen().contains("\u{1b}[H\u{1b}[J"), "it draws in place");
    assert!(terminal.screen().contains('▁'), "{}", terminal.screen());
}
