//! `adit ls`, `adit warm`, `adit status`, and what a person sees at a terminal.

use std::process::Stdio;

use serde_json::Value;
use tests::{
    cli_assert::{FAILED, assert_ok, assert_told},
    terminal::Terminal,
    world::{SOON, World},
};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

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
async fn a_model_that_may_not_be_used_or_is_not_there_is_told_with_the_cure() {
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let allowed = world.aditd(&["device", "models", "laptop", "other", "llama*"]).await;
    assert_ok(&allowed);
    let says = "Ollama here does not have `other`, `llama*`. It has stand-in:latest";
    assert!(allowed.stderr.contains(says), "{}", allowed.stderr);
    assert!(allowed.stderr.contains("`ollama pull other`"), "{}", allowed.stderr);
    let warm = device.adit(&["warm", "stand-in"], "").await;
    let cure = "`aditd device show laptop`";
    assert_told(&warm, FAILED, &["cannot load `stand-in`", cure, "`adit ls`"]);
    let known = world.aditd(&["device", "models", "laptop", "stand-in"]).await;
    assert!(!known.stderr.contains("Note"), "{}", known.stderr);
    assert_ok(&device.adit(&["warm", "stand-in"], "").await);
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

#[tokio::test]
async fn the_events_say_why_the_tunnel_was_down() {
    let mut world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let _up = device.up(&[]).await;
    let has_event = async |text: &str| {
        let wait = async {
            loop {
                let status = device.status().await;
                let events = status["events"].as_array().expect("a list").clone();
                let at = events.iter().position(|event| event["what"] == text);
                if status["tunnel"]["state"] == "up" && at.is_some_and(|at| at + 1 < events.len()) {
                    let next = events[at.expect("a place") + 1]["what"].clone();
                    return next.as_str().expect("text").to_owned();
                }
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(2 * SOON, wait).await.unwrap_or_else(|_| panic!("no `{text}`"))
    };
    world.kill_server().await;
    world.restart_server().await;
    let next = has_event("the tunnel is down: the server was restarted").await;
    assert!(next.starts_with("connected to ") && next.contains(", after "), "{next}");
    world.aditd.signal("TERM");
    assert_eq!(world.aditd.ended().await.expect("it ends").code(), Some(0));
    world.restart_server().await;
    has_event("the tunnel is down: the server stopped").await;
}

/// A command at a terminal with this many columns, without colours.
fn narrow(command: &tokio::process::Command, columns: usize) -> Terminal {
    let mut shell = tokio::process::Command::new("sh");
    shell.args(["-c", &format!("stty cols {columns} rows 24; exec \"$@\""), "sh"]);
    shell.arg(command.as_std().get_program()).args(command.as_std().get_args());
    Terminal::run(shell.env("NO_COLOR", "1").env("TERM", "xterm"))
}

/// The lines that stood on a screen, without what moves the cursor.
fn lines(screen: &str) -> Vec<String> {
    let mut text = String::new();
    let mut chars = screen.chars();
    while let Some(c) = chars.next() {
        match c {
            '\u{1b}' => {
                let end = chars.by_ref().skip(1).find(char::is_ascii_alphabetic);
                assert_ne!(end, Some('m'), "a colour: {screen:?}");
            }
            '\r' => text.push('\n'),
            c => text.push(c),
        }
    }
    text.lines().map(str::to_owned).collect()
}

/// Asserts that the terminal breaks no line: each fits, or is one long word.
fn assert_fits(screen: &str, columns: usize) {
    for line in lines(screen) {
        let fits = line.chars().count() <= columns || !line.trim().contains(' ');
        assert!(fits, "`{line}` at {columns} columns in {screen:?}");
    }
}

#[tokio::test]
async fn a_narrow_terminal_shows_whole_words_and_what_is_waited_for() {
    if Terminal::is_missing() {
        return;
    }
    let mut world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    world.kill_server().await;
    let command = device.command(&["up", "--listen", "127.0.0.1:0", "--drain", "100s"]);
    for columns in [40, 80] {
        let mut terminal = narrow(&command, columns);
        // Once in the log, and then again and again.
        terminal.shows_times("connecting to", 4).await;
        world.restart_server().await;
        terminal.shows("1 model").await;
        let status = device.status().await;
        let address = status["listening"][0].as_str().and_then(|a| a.parse().ok());
        let mut app = tests::raw::connect(address.expect("an address")).await;
        app.write_all(tests::raw::generate(-1, 9).as_bytes()).await.expect("sent");
        tests::raw::read_exactly(&mut app, 300).await;
        let mut said = narrow(&device.command(&["status"]), columns);
        assert_eq!(said.ended().await, Some(0));
        let shown = said.screen();
        assert!(shown.contains(" on 127.0.0.1, 1") && shown.contains("Events"), "{shown}");
        assert_fits(&shown, columns);
        let is_time = |word: &str| word.len() == 8 && word.matches(':').count() == 2;
        let screen = terminal.screen();
        let first = lines(&screen).into_iter().find(|line| line.contains("INFO")).expect("a line");
        assert!(first.split(' ').next().is_some_and(is_time), "{first}");
        terminal.interrupts().await;
        // A question of our own to Ollama may still be under way in the first second.
        terminal.shows("1m 40s left").await;
        terminal.shows("stopping, 1 answer, 1m 38s").await;
        drop(app);
        assert_eq!(terminal.ended().await, Some(0), "{}", terminal.screen());
        assert_fits(&terminal.screen(), columns);
        world.kill_server().await;
    }
}

#[tokio::test]
async fn without_a_terminal_nothing_is_drawn_and_ollama_is_not_asked() {
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let mut up = device.up(&["--drain", "100s"]).await;
    assert_eq!(world.audit(&[]).await.iter().filter(|line| line["event"] == "request").count(), 0);
    let mut app = tests::raw::connect(up.address).await;
    app.write_all(tests::raw::generate(-1, 9).as_bytes()).await.expect("sent");
    tests::raw::read_exactly(&mut app, 300).await;
    up.adit.signal("TERM");
    let stopping = async { while device.status().await["stopping_seconds_left"].is_null() {} };
    tokio::time::timeout(SOON, stopping).await.expect("it stops");
    drop(app);
    assert_eq!(up.adit.ended().await.expect("it ends").code(), Some(0));
    let log = up.adit.log();
    assert_eq!(log.matches("stopping, 1 answer, 1m 40s left").count(), 1, "{log}");
    assert!(!log.contains(['\r', '\u{1b}']), "{log}");
    // Elsewhere the time is in UTC.
    assert!(
        log.lines().all(|line| line.split(' ').next().is_some_and(|at| at.ends_with('Z'))),
        "{log}"
    );
}
