//! `adit run` and `adit env`: programs with a port of their own into the tunnel.

use std::{os::unix::process::ExitStatusExt, process::Stdio};

use tests::{
    cli_assert::{FAILED, NOT_ALLOWED, assert_ok, assert_told},
    terminal::Terminal,
    world::{Device, SOON, World},
};
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::PROGRAM;

/// A bash script that asks Ollama for its version, at `OLLAMA_HOST`.
const ASK_VERSION: &str = r"at=${OLLAMA_HOST#http://}; exec 3<>/dev/tcp/${at%:*}/${at##*:}; printf 'GET /api/version HTTP/1.0\r\n\r\n' >&3; cat <&3";

async fn without_tunnel(device: &Device) {
    let wait = async { while device.adit(&["status"], "").await.code != Some(FAILED) {} };
    tokio::time::timeout(SOON, wait).await.expect("the tunnel ends with its last program");
}

#[tokio::test]
async fn a_program_gets_a_tunnel_of_its_own_that_ends_with_it() {
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let ran = device.run(&["--", "bash", "-c", ASK_VERSION]).await;
    assert_ok(&ran);
    assert!(ran.stdout.contains("{\"version\":"), "{ran:?}");
    assert_eq!(ran.stderr, "", "nothing but what the program says");
    without_tunnel(&device).await;
}

#[tokio::test]
async fn beside_a_running_tunnel_it_has_a_port_of_its_own_and_leaves_the_tunnel_running() {
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let up = device.up(&[]).await;
    let ran = device.run(&["bash", "-c", "echo $OLLAMA_HOST"]).await;
    assert_ok(&ran);
    assert_ne!(ran.stdout.trim(), format!("http://{}", up.address));
    assert!(ran.stdout.starts_with("http://127.0.0.1:"), "{ran:?}");
    let ran = device.run(&["bash", "-c", ASK_VERSION]).await;
    assert!(ran.stdout.contains("{\"version\":"), "{ran:?}");
    let wait = async { while device.status().await["programs"] != 0 {} };
    tokio::time::timeout(SOON, wait).await.expect("its port is given back");
    assert_eq!(device.status().await["tunnel"]["state"], "up");
}

#[tokio::test]
async fn other_commands_do_not_see_the_last_second_of_its_tunnel() {
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let run = async || assert_ok(&device.run(&["--", "true"]).await);
    run().await;
    assert_told(&device.adit(&["status"], "").await, FAILED, &["adit is not running"]);
    run().await;
    let listed = device.adit(&["list"], "").await;
    assert!(listed.stdout.contains("not running"), "{listed:?}");
    run().await;
    assert_ok(&device.adit(&["rename", "default", "home"], "").await);
    run().await;
    assert_ok(&device.enroll(&world.invite("again").await, &["--replace", "--name", "home"]).await);
    run().await;
    device.up(&["home"]).await.works().await;
}

#[tokio::test]
async fn a_tunnel_that_its_programs_hold_is_told_as_theirs() {
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let mut command =
        device.command(&["run", "--", "bash", "-c", "echo begun; read -r line; true"]);
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("it starts");
    let mut said = BufReader::new(child.stdout.take().expect("its output")).lines();
    tokio::time::timeout(SOON, said.next_line()).await.expect("in time").expect("a line");
    let told = device.adit(&["up", "--listen", "127.0.0.1:0"], "").await;
    assert_told(&told, FAILED, &["`adit run` holds the tunnel", "for 1 program", "`adit down`"]);
    drop(child.stdin.take());
    assert!(child.wait().await.expect("ended").success());
}

#[tokio::test]
async fn two_programs_share_a_tunnel_and_the_first_to_end_leaves_it_to_the_other() {
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let mut held = Vec::new();
    for _ in 0..2 {
        let script = "echo begun; read -r line; ".to_owned() + ASK_VERSION;
        let mut command = device.command(&["run", "--", "bash", "-c", &script]);
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("it starts");
        let mut said = BufReader::new(child.stdout.take().expect("its output")).lines();
        let first = tokio::time::timeout(SOON, said.next_line()).await.expect("in time");
        assert_eq!(first.expect("a line").as_deref(), Some("begun"));
        held.push((child, said));
    }
    assert_eq!(device.status().await["programs"], 2);
    for (mut child, mut said) in held {
        drop(child.stdin.take());
        let mut last = None;
        while let Ok(Some(line)) =
            tokio::time::timeout(SOON, said.next_line()).await.expect("in time")
        {
            last = Some(line);
        }
        assert!(last.as_deref().is_some_and(|line| line.contains("\"version\"")), "{last:?}");
        assert!(child.wait().await.expect("ended").success());
    }
    without_tunnel(&device).await;
}

#[tokio::test]
async fn exit_codes_and_signals_are_the_programs() {
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let _up = device.up(&[]).await;
    assert_eq!(device.run(&["bash", "-c", "exit 77"]).await.code, Some(77));
    let mut command = device.command(&["run", "bash", "-c", "kill -TERM $$"]);
    assert_eq!(command.status().await.expect("ended").signal(), Some(15));
    let mut command = device.command(&["run", "bash", "-c", "ulimit -c; ulimit -n"]);
    let limits = command.output().await.expect("ended").stdout;
    let own = std::process::Command::new("bash").args(["-c", "ulimit -c; ulimit -n"]).output();
    assert_eq!(limits, own.expect("ended").stdout, "the limits are the caller's");
    let lost = device.run(&["no-such-program"]).await;
    assert_eq!(lost.code, Some(127), "{lost:?}");
    assert!(lost.stderr.contains("cannot run `no-such-program`"), "{lost:?}");
    let server = device.run(&["default", "--", "ollama", "list"]).await;
    let cure =
        format!("`adit run --server default --state-dir {} -- ollama list`", device.dir.display());
    assert!(server.stderr.contains(&cure), "{cure}: {server:?}");
    assert_eq!(device.run(&["/etc/passwd"]).await.code, Some(126));
}

#[tokio::test]
async fn the_clients_of_openai_and_anthropic_are_told_too() {
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let up = device.up(&[]).await;
    let print = "echo $OLLAMA_HOST; echo $OLLAMA_API_BASE; echo $OPENAI_BASE_URL $OPENAI_API_KEY; echo $ANTHROPIC_BASE_URL $ANTHROPIC_API_KEY";
    let ran = device.run(&["--openai", "--anthropic", "--", "bash", "-c", print]).await;
    let lines: Vec<&str> = ran.stdout.lines().collect();
    assert_eq!(lines[1], lines[0]);
    assert_eq!(lines[2], format!("{}/v1 ollama", lines[0]));
    assert_eq!(lines[3], format!("{} ollama", lines[0]));

    let told = device.adit(&["env", "--openai", "--shell", "sh"], "").await;
    assert_ok(&told);
    let script = format!("{}\necho $OLLAMA_HOST $OPENAI_BASE_URL", told.stdout);
    let out = std::process::Command::new("sh").args(["-c", &script]).output().expect("it runs");
    let says = String::from_utf8_lossy(&out.stdout).into_owned();
    assert_eq!(says.trim(), format!("{0} {0}/v1", up.url("")));
}

#[tokio::test]
async fn whoever_has_no_tunnel_is_told_why_before_the_program_starts() {
    let world = World::start(PROGRAM).await;
    let stranger = world.stranger("stranger");
    let ran = stranger.run(&["touch", "/nonexistent/it-ran"]).await;
    assert_told(&ran, FAILED, &["this device is not enrolled", "aditd invite NAME"]);
    let told = stranger.adit(&["env"], "").await;
    assert_eq!(told.code, Some(FAILED), "{told:?}");

    let device = world.device("laptop").await;
    let _up = device.up(&[]).await;
    assert_ok(&world.aditd(&["device", "revoke", "laptop"]).await);
    let refused = async { while device.status().await["tunnel"]["state"] != "refused" {} };
    tokio::time::timeout(SOON, refused).await.expect("it is told");
    let ran = device.run(&["touch", "/nonexistent/it-ran"]).await;
    assert_eq!(ran.code, Some(NOT_ALLOWED), "{ran:?}");
    assert!(ran.stderr.contains("error: the server does not let this device in"), "{ran:?}");
}

#[tokio::test]
async fn a_program_that_closes_what_it_was_given_keeps_its_tunnel() {
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let script = "for fd in /proc/self/fd/*; do fd=${fd##*/}; [ \"$fd\" -gt 2 ] && eval \"exec $fd>&-\"; done; ".to_owned()
        + ASK_VERSION;
    let ran = device.run(&["bash", "-c", &script]).await;
    assert!(ran.stdout.contains("{\"version\":"), "{ran:?}");
    without_tunnel(&device).await;
}

/// The real program, on a real terminal, where Ctrl-C is for the program alone.
#[tokio::test]
async fn ctrl_c_at_a_terminal_reaches_the_program_and_not_its_tunnel() {
    if Terminal::is_missing() {
        return;
    }
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let script = "trap 'echo caught' INT; echo begun; read -r line; ".to_owned() + ASK_VERSION;
    let mut terminal = Terminal::run(&device.command(&[
        // Whoever runs these tests in the background may ignore SIGINT.
        "run",
        "env",
        "--default-signal=INT",
        "bash",
        "-c",
        &script,
    ]));
    terminal.shows("begun").await;
    terminal.interrupts().await;
    terminal.shows("caught").await;
    // The shell goes on reading the line after that.
    terminal.types("").await;
    terminal.shows("\"version\"").await;
}
