//! Who may use the local listener: the user who runs `adit`, and root.

use std::{net::SocketAddr, path::Path, process::Command};

use tests::{
    process::{Ended, Process},
    skip,
    state_files::{identity_file, text},
    unprivileged::{Ordinary, as_user},
    world::{Up, World},
};

use crate::PROGRAM;

/// A user who is neither root nor `nobody`, and has no name.
const STRANGER: u32 = 54_321;

/// The answer to a request of this user, with its status line.
fn asked_by(uid: u32, address: SocketAddr, path: &str) -> String {
    let out = as_user(uid, Path::new("curl"))
        .args(["--silent", "--include", "--max-time", "30", &format!("http://{address}{path}")])
        .output();
    let ended = Ended::from(out.expect("curl runs"));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    ended.stdout
}

/// Whether this test can run programs as other users.
fn can_be_others() -> Option<Ordinary> {
    let ordinary = Ordinary::new(PROGRAM).filter(|ordinary| ordinary.as_root);
    let curl = Command::new("curl").arg("--version").output();
    let can = ordinary.is_some() && curl.is_ok_and(|out| out.status.success());
    if !can && skip::skip_test("only root can be other users, and they need `curl`") {
        return None;
    }
    ordinary
}

/// An `adit up` that is ready. A process of `nobody` can't notify the test.
async fn started(mut command: tokio::process::Command) -> Up {
    command.kill_on_drop(true);
    let mut adit = Process::spawn(command, "adit").expect("it starts");
    adit.says("ready: Ollama on http://").await;
    let log = adit.log();
    let address = log.split("ready: Ollama on http://").nth(1).and_then(|l| l.lines().next());
    let address = address.and_then(|a| a.trim().parse().ok()).expect("an address");
    Up { adit, address }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_user_gets_an_error_unless_every_user_is_allowed() {
    let Some(_) = can_be_others() else { return };
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let up = device.up(&[]).await;
    let refused = asked_by(Ordinary::NOBODY, up.address, "/api/tags");
    assert!(refused.starts_with("HTTP/1.1 403 Forbidden\r\n"), "{refused}");
    let body = refused.split_once("\r\n\r\n").expect("a body").1;
    let json: serde_json::Value = serde_json::from_str(body).expect("JSON");
    let error = json["error"].as_str().expect("Ollama's shape");
    assert!(error.contains("`nobody` (uid 65534)") && error.contains("`root` (uid 0)"), "{error}");
    assert!(error.contains("`adit up --any-user --state-dir "), "{error}");
    let refused = asked_by(STRANGER, up.address, "/v1/models");
    assert!(
        refused.contains(r#"{"error":{"message":"adit: the user with uid 54321 may not"#),
        "{refused}"
    );
    assert!(asked_by(0, up.address, "/").ends_with("Ollama is running"));
    assert_eq!(world.ollama.counters().running, 0);
    up.end().await;

    let up = device.up(&["--any-user"]).await;
    for uid in [0, Ordinary::NOBODY, STRANGER] {
        assert!(asked_by(uid, up.address, "/").ends_with("Ollama is running"), "{uid}");
    }
    up.end().await;
    for (value, is_refused) in [("1", false), ("0", true), ("", true)] {
        let mut adit = world.programs.command("adit", &["up", "--listen", "127.0.0.1:0"]);
        adit.args(["--state-dir", text(&device.dir)]).env("ADIT_ANY_USER", value);
        let up = started(adit).await;
        let answer = asked_by(STRANGER, up.address, "/");
        assert_eq!(answer.starts_with("HTTP/1.1 403"), is_refused, "{value:?}: {answer}");
        up.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_user_who_runs_adit_and_root_are_allowed() {
    let Some(ordinary) = can_be_others() else { return };
    let world = World::start(PROGRAM).await;
    let home = ordinary.device(&identity_file(&world.device("laptop").await));
    let args = ["up", "--listen", "127.0.0.1:0", "--state-dir", text(&home)];
    let up = started(ordinary.command("adit", &args).into()).await;
    for uid in [0, Ordinary::NOBODY] {
        assert!(asked_by(uid, up.address, "/").ends_with("Ollama is running"), "{uid}");
    }
    assert!(asked_by(STRANGER, up.address, "/").starts_with("HTTP/1.1 403"));
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_container_a_user_from_outside_is_refused() {
    let Some(_) = can_be_others() else { return };
    let namespace = Command::new("unshare").args(["--user", "--map-root-user", "true"]).output();
    if !namespace.is_ok_and(|out| out.status.success())
        && skip::skip_test("there are no user namespaces here")
    {
        return;
    }
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let args = ["up", "--listen", "127.0.0.1:0", "--state-dir", text(&device.dir)];
    let adit = world.programs.command("adit", &args);
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--"]).arg(adit.as_std().get_program()).args(args);
    let up = started(command.into()).await;
    for uid in [Ordinary::NOBODY, STRANGER] {
        let refused = asked_by(uid, up.address, "/");
        assert!(
            refused.starts_with("HTTP/1.1 403") && refused.contains("container"),
            "{uid}: {refused}"
        );
    }
    assert!(asked_by(0, up.address, "/").ends_with("Ollama is running"));
}
