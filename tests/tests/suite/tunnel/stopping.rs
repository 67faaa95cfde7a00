//! An `adit` that is stopped, also by a closed terminal, and what `status` says meanwhile.

use tests::{
    process::Process,
    raw,
    terminal::Terminal,
    world::{Device, SOON, Up, World},
};
use tokio::io::AsyncWriteExt;

use crate::PROGRAM;

/// A request for a long answer, a part of which has come.
async fn long_answer(up: &Up, tokens: i64) -> tokio::net::TcpStream {
    let mut app = raw::connect(up.address).await;
    app.write_all(raw::generate(tokens, 9).as_bytes()).await.expect("sent");
    raw::read_exactly(&mut app, 300).await;
    app
}

/// How many models the stand-in lists, in words.
async fn asked_models(up: &Up) -> String {
    let answer = raw::exchange(up.address, "GET /api/tags HTTP/1.0\r\n\r\n").await;
    let (_, body) = answer.split_once("\r\n\r\n").expect("a body");
    let body: serde_json::Value = serde_json::from_str(body).expect("JSON");
    proto::human::count(body["models"].as_array().expect("a list").len() as u64, "model")
}

async fn status_until(device: &Device, is_it: impl Fn(&serde_json::Value) -> bool) {
    let wait = async { while !is_it(&device.status().await) {} };
    tokio::time::timeout(SOON, wait).await.expect("in time");
}

#[tokio::test]
async fn while_draining_status_says_so_and_shows_no_listener() {
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let mut up = device.up(&["--drain", "1h"]).await;
    let status = device.status().await;
    assert_eq!(status["stopping"], false);
    assert_eq!(status["listening"], serde_json::json!([up.address.to_string()]));
    let text = device.adit(&["status"], "").await.stdout;
    let models = asked_models(&up).await;
    let line = text.lines().find_map(|line| line.strip_prefix("Ollama       ")).expect("a line");
    assert!(line.ends_with(&format!(" on 127.0.0.1, {models}")), "{text}");
    assert_eq!(status.get("ollama"), None, "programs ask often: it is not asked by itself");
    let asked = device.adit(&["status", "--json", "--ollama"], "").await;
    let asked: serde_json::Value = serde_json::from_str(&asked.stdout).expect("JSON");
    assert_eq!(asked["ollama"]["state"], "answers", "{asked}");
    assert!(asked["ollama"]["version"].is_string(), "{asked}");
    let app = long_answer(&up, -1).await;
    up.adit.signal("TERM");
    status_until(&device, |status| status["stopping"] == true).await;
    assert_eq!(device.status().await["listening"], serde_json::json!([]));
    let text = device.adit(&["status"], "").await.stdout;
    assert!(
        text.contains("adit is stopping, 1 answer, 59m ") && !text.contains("http://"),
        "{text}"
    );
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    let left = device.status().await["stopping_seconds_left"].as_u64();
    assert!((3000..3600).contains(&left.expect("seconds")), "{left:?}");
    drop(app);
    assert_eq!(up.adit.ended().await.expect("it ends").code(), Some(0));
}

#[tokio::test]
async fn a_second_adit_that_waits_for_the_first_one_is_stopped_without_an_error() {
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let mut up = device.up(&["--drain", "1h"]).await;
    let app = long_answer(&up, -1).await;
    up.adit.signal("TERM");
    status_until(&device, |status| status["stopping"] == true).await;
    let command = device.command(&["up", "--listen", "127.0.0.1:0"]);
    let mut second = Process::spawn(command, "adit").expect("it starts");
    second.says("waiting for the running adit").await;
    second.signal("TERM");
    let (status, log) = second.ended_saying().await.expect("it ends");
    assert_eq!(status.code(), Some(0), "{log}");
    drop(app);
    assert_eq!(up.adit.ended().await.expect("it ends").code(), Some(0));
}

#[tokio::test]
async fn any_number_of_hang_ups_lets_running_answers_end() {
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let mut up = device.up(&["--drain", "1h"]).await;
    let mut app = long_answer(&up, 40).await;
    up.adit.signal("HUP");
    status_until(&device, |status| status["stopping"] == true).await;
    up.adit.signal("HUP");
    let (rest, ending) = raw::read_to_end(&mut app).await;
    assert!(String::from_utf8_lossy(&rest).contains("\"done\":true"), "{ending:?}");
    assert_eq!(up.adit.ended().await.expect("it ends").code(), Some(0));
    assert_eq!(world.ollama.counters().cancelled, 0);
}

#[tokio::test]
async fn closing_the_terminal_ends_the_session_and_stops_ollama() {
    if Terminal::is_missing() {
        return;
    }
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let dir = device.dir.to_str().expect("a path");
    let args = ["up", "--state-dir", dir, "--listen", "127.0.0.1:0", "--drain", "1s"];
    let adit = world.programs.command("adit", &args);
    // A shell passes the signal on to its job like this. (A program of a test is killed when its
    // parent ends, so this parent waits for it.)
    const SHELL: &str = "\"$@\" & job=$!; trap 'kill -HUP $job' HUP; wait $job; wait $job";
    let mut command = tokio::process::Command::new("sh");
    command.args(["-c", SHELL, "sh"]).arg(adit.as_std().get_program());
    command.args(adit.as_std().get_args());
    let mut terminal = Terminal::run(&command);
    terminal.shows("ready").await;
    let status = device.status().await;
    let address = status["listening"][0].as_str().and_then(|a| a.parse().ok());
    let mut app = raw::connect(address.expect("an address")).await;
    app.write_all(raw::generate(-1, 9).as_bytes()).await.expect("sent");
    raw::read_exactly(&mut app, 300).await;
    drop(terminal);
    world.ollama.wait_for(|now| now.cancelled == 1, SOON).await.expect("the GPU is free");
    let gone = async { while world.status().await["sessions"] != serde_json::json!([]) {} };
    tokio::time::timeout(SOON, gone).await.expect("the server was told");
}

#[tokio::test]
async fn an_ignored_hang_up_changes_nothing() {
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let dir = device.dir.to_str().expect("a path");
    let adit =
        world.programs.command("adit", &["up", "--state-dir", dir, "--listen", "127.0.0.1:0"]);
    let mut command = tokio::process::Command::new("sh");
    command.args(["-c", "trap '' HUP; exec \"$@\"", "sh"]).arg(adit.as_std().get_program());
    command.args(adit.as_std().get_args()).kill_on_drop(true);
    let mut adit = tests::process::Process::spawn(command, "adit").expect("it starts");
    adit.ready().await.expect("ready");
    adit.signal("HUP");
    let status = device.status().await;
    assert_eq!((&status["stopping"], &status["tunnel"]["state"]), (&false.into(), &"up".into()));
    adit.signal("TERM");
    assert_eq!(adit.ended().await.expect("it ends").code(), Some(0));
}
