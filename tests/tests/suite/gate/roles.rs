//! Who may do what: roles, models and the Host check, and that a change is in force at once.

use std::path::PathBuf;

use serde_json::Value;
use tests::{
    ollama::Options,
    raw::{self, Ending, Upstream},
    world::{Device, SOON, Up, World},
};
use tokio::io::AsyncWriteExt;

use crate::PROGRAM;

/// A world whose server reads this configuration, and the path of the file, to change it.
async fn configured(config: &str) -> (World, PathBuf, tempfile::TempDir) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("aditd.toml");
    std::fs::write(&path, config).expect("written");
    let world = World::start_with(
        PROGRAM,
        Options::default(),
        &["--config", path.to_str().expect("a path")],
    )
    .await;
    (world, path, dir)
}

async fn device(world: &World, path: &std::path::Path, name: &str, role: &str) -> (Device, Up) {
    let invited = world
        .aditd(&["invite", name, "--role", role, "--config", path.to_str().expect("a path")])
        .await;
    assert_eq!(invited.code, Some(0), "{}", invited.stderr);
    let device = world.stranger(name);
    let enrolled = device.enroll(&invited.stdout, &[]).await;
    assert_eq!(enrolled.code, Some(0), "{}", enrolled.stderr);
    let up = device.up(&[]).await;
    (device, up)
}

fn line(method: &str, path: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
}

/// The status, and the message of `error`.
async fn ask(up: &Up, request: &str) -> (u16, String) {
    let answer = raw::exchange(up.address, request).await;
    let status =
        answer.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or_else(|| panic!("{answer}"));
    let json: Value = answer
        .split("\r\n\r\n")
        .nth(1)
        .and_then(|body| serde_json::from_str(body).ok())
        .unwrap_or_default();
    let error = &json["error"];
    (status, error.as_str().or(error["message"].as_str()).unwrap_or_default().to_owned())
}

fn endless() -> String {
    raw::generate(-1, 1)
}

#[tokio::test]
async fn a_device_may_only_infer_until_the_owner_changes_its_role() {
    let world = World::start(PROGRAM).await;
    let device = world.stranger("laptop");
    let invited = world.aditd(&["invite", "laptop"]).await;
    assert_eq!(device.enroll(&invited.stdout, &[]).await.code, Some(0));
    let up = device.up(&[]).await;
    let allowed = [
        line("HEAD", "/"),
        line("GET", "/api/version"),
        line("GET", "/api/tags"),
        line("GET", "/v1/models"),
        raw::post("/api/show", r#"{"model":"stand-in"}"#),
        raw::generate(2, 1),
    ];
    for request in &allowed {
        assert_eq!(ask(&up, request).await.0, 200, "{request}");
    }
    // For these routes the service's own answer passes, so that clients continue.
    let count = r#"{"model":"stand-in","messages":[]}"#;
    for request in [raw::post("/v1/messages/count_tokens", count), line("GET", "/v1/responses/x")] {
        assert_eq!(ask(&up, &request).await.0, 404, "{request}");
    }
    for (request, roles) in [
        (raw::post("/api/pull", r#"{"model":"x"}"#), "`models` or `admin`"),
        (line("DELETE", "/api/delete"), "`models` or `admin`"),
        (raw::post("/api/blobs/sha256:00", "x"), "`models` or `admin`"),
        (line("GET", "/debug/pprof/"), "`admin`"),
        (line("POST", "/api/me"), "`admin`"),
        (line("GET", "//"), "`admin`"),
        (raw::post("/api//chat", "{}"), "`admin`"),
        (raw::post("/api/./chat", "{}"), "`admin`"),
        (raw::post("/v1/../api/pull", "{}"), "`admin`"),
        (raw::post("/api/%63hat", "{}"), "`admin`"),
        (raw::post("/api%2Fchat", "{}"), "`admin`"),
        (raw::post("/api/chat/", "{}"), "`admin`"),
        (raw::post("/v1/images/generations", "{}"), "`admin`"),
    ] {
        let (status, error) = ask(&up, &request).await;
        assert_eq!(status, 403, "{request}");
        assert!(
            error.starts_with("adit: device `laptop` has the role `infer`, which may not "),
            "{error}"
        );
        assert!(
            error.contains(&format!("needs the role {roles}"))
                && error.contains("`aditd device role laptop "),
            "{error}"
        );
    }
    // A browser asks before its request (a CORS preflight).
    let preflight = |path: &str, method: &str| {
        let fields =
            format!("Origin: http://localhost:3000\r\nAccess-Control-Request-Method: {method}\r\n");
        line("OPTIONS", path).replace("Connection", &format!("{fields}Connection"))
    };
    assert_ne!(ask(&up, &preflight("/api/chat", "POST")).await.0, 403);
    assert_eq!(ask(&up, &preflight("/api/delete", "DELETE")).await.0, 403);

    let set = world.aditd(&["device", "role", "laptop", "models"]).await;
    assert_eq!(set.code, Some(0), "{}", set.stderr);
    assert_eq!(ask(&up, &raw::post("/api/pull", r#"{"model":"stand-in"}"#)).await.0, 200);
    assert_eq!(ask(&up, &line("GET", "/test/counters")).await.0, 403);
    assert_eq!(world.aditd(&["device", "role", "laptop", "admin"]).await.code, Some(0));
    assert_eq!(ask(&up, &line("GET", "/test/counters")).await.0, 200);

    let listed: Value =
        serde_json::from_str(&world.aditd(&["device", "list", "--json"]).await.stdout)
            .expect("json");
    assert_eq!(listed["devices"][0]["role"], "admin");
    assert!(world.aditd(&["device", "show", "laptop"]).await.stdout.contains("Role         admin"));
    let unknown = world.aditd(&["device", "role", "laptop", "nobody"]).await;
    assert_eq!(unknown.code, Some(2));
    assert!(unknown.stderr.contains("choose `admin`, `infer` or `models`"), "{}", unknown.stderr);
    assert_eq!(world.aditd(&["invite", "desk", "--role", "nobody"]).await.code, Some(2));
}

#[tokio::test]
async fn a_changed_role_cuts_only_the_requests_that_it_no_longer_allows() {
    let (world, path, _dir) = configured("roles.list.allow = ['GET /api/tags']").await;
    let (_device, up) = device(&world, &path, "laptop", "infer").await;
    let (_other, bystander) = device(&world, &path, "desktop", "infer").await;
    let mut running = raw::connect(up.address).await;
    running.write_all(endless().as_bytes()).await.expect("sent");
    raw::read_exactly(&mut running, 300).await;
    let mut other = raw::connect(bystander.address).await;
    other.write_all(endless().as_bytes()).await.expect("sent");
    raw::read_exactly(&mut other, 300).await;
    let set = world
        .aditd(&["device", "role", "laptop", "list", "--config", path.to_str().expect("a path")])
        .await;
    assert_eq!(set.code, Some(0), "{}", set.stderr);
    assert_eq!(
        raw::read_to_end(&mut running).await.1,
        Ending::Reset,
        "a cut never looks like an end"
    );
    world
        .ollama
        .wait_for(|c| c.cancelled == 1 && c.running == 1, SOON)
        .await
        .expect("it is cancelled");
    raw::read_exactly(&mut other, 500).await;
    assert_eq!(ask(&up, &line("GET", "/api/tags")).await.0, 200);
    let (status, error) = ask(&up, &raw::generate(1, 1)).await;
    assert!(
        status == 403 && error.contains("the role `list`, which may not POST /api/generate"),
        "{error}"
    );
}

#[tokio::test]
async fn a_role_that_changes_while_a_body_is_read_applies_to_that_request() {
    let service = Upstream::start().await;
    // With a list of models, a request is read whole before any of it is forwarded.
    let flags = ["--upstream", &service.flag("http")];
    let world =
        World::start_configured(PROGRAM, Options::default(), &flags, "roles.models.models = ['*']")
            .await;
    let up = world.device_as("laptop", "models").await.up(&[]).await;
    let json = r#"{"model":"stand-in"}"#;
    let (half, rest) = json.split_at(10);
    let head = format!(
        "DELETE /api/delete HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n",
        json.len()
    );
    let mut app = raw::connect(up.address).await;
    app.write_all(head.as_bytes()).await.expect("sent");
    let go_on = b"HTTP/1.1 100 Continue\r\n\r\n";
    assert_eq!(raw::read_exactly(&mut app, go_on.len()).await, go_on, "its head has been judged");
    app.write_all(half.as_bytes()).await.expect("sent");
    assert_eq!(world.aditd(&["device", "role", "laptop", "infer"]).await.code, Some(0));
    app.write_all(rest.as_bytes()).await.expect("sent");
    let (answer, _) = raw::read_to_end(&mut app).await;
    let answer = String::from_utf8(answer).expect("text");
    assert!(
        answer.starts_with("HTTP/1.1 403 ") && answer.contains("DELETE /api/delete"),
        "{answer}"
    );
    // Nothing of it was forwarded: the gate had not even connected to the service before the next
    // request.
    let mut app = raw::connect(up.address).await;
    app.write_all(raw::ROOT.as_bytes()).await.expect("sent");
    let mut at_service = service.accept().await;
    assert_eq!(raw::read_exactly(&mut at_service, raw::ROOT.len()).await, raw::ROOT.as_bytes());
}

#[tokio::test]
async fn a_restriction_to_some_models_holds_for_every_form_of_request() {
    let (world, path, _dir) = configured("devices.desk.models = ['other']").await;
    let (_device, up) = device(&world, &path, "laptop", "admin").await;
    let (_desk, desk) = device(&world, &path, "desk", "infer").await;
    assert_eq!(
        world.aditd(&["device", "models", "laptop"]).await.stdout,
        "all models that its role `admin` allows\n"
    );
    assert_eq!(
        world.aditd(&["device", "models", "laptop", "stand-in", "llama3*"]).await.code,
        Some(0)
    );
    let chat = |json: &str| raw::post("/api/chat", json);
    for good in [
        chat(r#"{"model":"stand-in"}"#),
        chat(r#"{"model":"stand-in:latest"}"#),
        raw::post("/api/show", r#"{"name":"stand-in"}"#),
        raw::post("/v1/chat/completions", r#"{"messages":[],"model":"stand-in","max_tokens":1}"#),
        line("GET", "/api/tags"),
        line("HEAD", "/"),
        "POST /api/chat HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n\
         6\r\n{\"mode\r\n11\r\nl\":\"stand-in\"}   \r\n0\r\n\r\n"
            .to_owned(),
    ] {
        let answer = raw::exchange(up.address, &good).await;
        let last = answer.rsplit("HTTP/1.1 ").next().expect("an answer");
        assert!(last.starts_with("200 ") && answer.matches("100 Continue").count() <= 1, "{good}: {answer}");
    }
    for bad in [
        chat(r#"{"model":"secret"}"#),
        chat(r#"{"model":"stand-in:8b"}"#),
        chat(r#"{"model":"evil.example/library/stand-in"}"#),
        chat(r#"{"model":""}"#),
        chat("{}"),
        raw::post("/api/show", r#"{"model":"secret","name":"stand-in"}"#),
        raw::post("/api/create", r#"{"model":"llama3x","from":"secret"}"#),
        raw::post("/api/copy", r#"{"source":"secret","destination":"llama3x"}"#),
        raw::post("/v1/audio/transcriptions", "x"),
        raw::post("//api/chat", r#"{"model":"stand-in"}"#),
        raw::post("/api/some/new/route", r#"{"model":"stand-in"}"#),
        line("GET", "/v1/models/secret"),
    ] {
        let (status, error) = ask(&up, &bad).await;
        assert!(
            status == 403 && error.starts_with("adit: device `laptop` (role `admin`) may "),
            "{bad}: {status} {error}"
        );
        assert!(
            error.contains("`stand-in` or `llama3*`")
                && error.contains("`aditd device models laptop "),
            "{error}"
        );
    }
    for unreadable in [
        // Different parsers could find different models in it.
        chat(r#"{"model":"stand-in","model":"secret"}"#),
        chat(r#"{"model":"stand-in","MODEL":"secret"}"#),
        chat(r#"{"model":"stand-in","mod\u0065l":"secret"}"#),
        chat(r#"{"model":"secret","MODEL":"stand-in"}"#),
        chat(""),
        chat("null"),
        chat(r#"{"model":1}"#),
        chat(r#"{"model":"stand-in"}{"model":"secret"}"#),
        chat("{\"model\":\"stand-in\""),
        raw::post("/api/chat", r#"{"model":"stand-in"}"#)
            .replace("Connection", "Content-Encoding: zstd\r\nConnection"),
    ] {
        assert_eq!(ask(&up, &unreadable).await.0, 400, "{unreadable}");
    }
    assert_eq!(
        ask(&desk, &chat(r#"{"model":"stand-in"}"#)).await.0,
        403,
        "the configuration limits a device too"
    );

    let mut running = raw::connect(up.address).await;
    running.write_all(endless().as_bytes()).await.expect("sent");
    raw::read_exactly(&mut running, 300).await;
    assert_eq!(world.aditd(&["device", "models", "laptop", "other"]).await.code, Some(0));
    assert_eq!(raw::read_to_end(&mut running).await.1, Ending::Reset);
    assert_eq!(world.aditd(&["device", "models", "laptop", "--all"]).await.code, Some(0));
    assert_eq!(
        ask(&up, &chat(r#"{"model":"secret"}"#)).await.0,
        404,
        "which is Ollama's own answer"
    );
}

#[tokio::test]
async fn a_request_with_a_foreign_host_is_refused() {
    let world = World::start(PROGRAM).await;
    let up = world.up("laptop").await;
    for (host, status) in [
        ("localhost:11434", 200),
        ("127.0.0.1:11434", 200),
        ("[::1]:1", 200),
        ("x.internal", 200),
        ("", 200),
        ("evil.example", 403),
        ("localhost.evil.example:11434", 403),
        ("100.64.1.1", 403),
    ] {
        let request = line("GET", "/api/tags").replace("localhost", host);
        let (answered, error) = ask(&up, &request).await;
        assert_eq!(answered, status, "{host}: {error}");
        assert!(status == 200 || error.contains(&format!("this is not `{host}`")), "{error}");
    }
    assert_eq!(ask(&up, "GET / HTTP/1.0\r\nHost: evil.example\r\n\r\n").await.0, 403);
}

#[tokio::test]
async fn a_reloaded_configuration_is_in_force_at_once_and_an_invalid_one_changes_nothing() {
    let (mut world, path, _dir) =
        configured("roles.mine.allow = ['GET /api/tags', 'POST /api/*']").await;
    let (_device, up) = device(&world, &path, "laptop", "mine").await;
    let mut running = raw::connect(up.address).await;
    running.write_all(endless().as_bytes()).await.expect("sent");
    raw::read_exactly(&mut running, 300).await;
    for (bad, says) in [
        ("roles.mine.allow = ['GET /api/tags']\nnonsense = 1", "line 2"),
        ("listen = ['127.0.0.1:1']\n\nroles.mine.allow = ['get /x']", "line 3"),
        ("\nroles.infer.allow = ['/*']", "line 2"),
        ("roles.mine.models = ['x']", "`mine` has no `allow`"),
        ("authorize = 'http://10.0.0.1/x'", "line 1"),
        ("roles.mine.allow = [", "line 1"),
    ] {
        std::fs::write(&path, bad).expect("written");
        // The command itself does not need the file.
        let reload = world.aditd(&["reload"]).await;
        assert_eq!(reload.code, Some(2), "{bad}: {}", reload.stderr);
        assert!(
            reload.stderr.contains("have not changed") && reload.stderr.contains(says),
            "{}",
            reload.stderr
        );
        assert!(reload.stderr.contains(path.to_str().expect("a path")), "{}", reload.stderr);
        world.aditd.says(says).await;
    }
    std::fs::write(&path, "in_a_hurry = true").expect("written");
    world.aditd.signal("HUP");
    world.aditd.says("in_a_hurry").await;
    raw::read_exactly(&mut running, 500).await;

    std::fs::write(
        &path,
        "roles.mine.allow = ['GET /api/tags']\ndevice_life = '7d'\naudit_keep = '9d'",
    )
    .expect("written");
    let reload = world.aditd(&["reload"]).await;
    assert_eq!(reload.code, Some(0), "{}", reload.stderr);
    assert!(
        reload
            .stderr
            .contains("restart aditd to put these settings in force: device_life, audit_keep."),
        "{}",
        reload.stderr
    );
    assert_eq!(raw::read_to_end(&mut running).await.1, Ending::Reset);
    assert_eq!(ask(&up, &raw::generate(1, 1)).await.0, 403);
    assert_eq!(ask(&up, &line("GET", "/api/tags")).await.0, 200);

    std::fs::write(&path, "roles.mine.allow = ['POST /api/generate']").expect("written");
    world.aditd.signal("HUP");
    let allowed = async { while ask(&up, &raw::generate(1, 1)).await.0 != 200 {} };
    tokio::time::timeout(SOON, allowed).await.expect("SIGHUP does the same");
    assert!(!world.aditd(&["device", "list"]).await.stdout.contains("not in the configuration"));
    std::fs::write(&path, "devices.ghost.limits.at_once = 1").expect("written");
    let reload = world.aditd(&["reload"]).await;
    assert_eq!(reload.code, Some(0), "{}", reload.stderr);
    let lost = "the role `mine` is not in the configuration, so these devices or keys may do nothing: `laptop`";
    let ghost = "`[devices.ghost]` is in the configuration, but there is no such device or key";
    assert!(reload.stderr.contains(lost) && reload.stderr.contains(ghost), "{}", reload.stderr);
    world.aditd.says(ghost).await;
    for command in [&["device", "list"][..], &["device", "show", "laptop"]] {
        let shown = world.aditd(command).await.stdout;
        assert!(shown.contains("mine (not in the configuration)"), "{shown}");
    }
    let (status, error) = ask(&up, &line("GET", "/api/tags")).await;
    assert!(
        status == 403 && error.contains("that role is not in the server's configuration"),
        "{error}"
    );
    world.kill_server().await;
    world.restart_server().await;
    world.aditd.says(lost).await;
    world.aditd.says(ghost).await;
    assert!(
        world.aditd(&["device", "list"]).await.stdout.contains("mine (not in the configuration)")
    );
}

#[tokio::test]
async fn the_newer_file_of_two_simultaneous_reloads_wins() {
    let (world, path, dir) = configured("roles.mine.allow = ['GET /api/tags']").await;
    let (_device, up) = device(&world, &path, "laptop", "mine").await;
    // A file that is read slowly: its text comes when the test writes it.
    let slow = dir.path().join("slow");
    let made = std::process::Command::new("mkfifo").arg(&slow).status().expect("mkfifo");
    assert!(made.success());
    std::fs::rename(&slow, &path).expect("moved");
    let reload = async || world.aditd(&["reload"]).await;
    let (first, second) = (reload(), reload());
    tokio::pin!(first, second);
    // The open succeeds when the first reload has begun to read.
    let fifo = path.clone();
    let opened = tokio::task::spawn_blocking(move || {
        std::fs::OpenOptions::new().write(true).open(fifo).expect("opened")
    });
    let mut older = tokio::select! {
        older = opened => older.expect("no panic"),
        ended = &mut first => panic!("{ended:?}"),
    };
    let newer = dir.path().join("newer");
    std::fs::write(&newer, "roles.mine.allow = ['GET /api/version']").expect("written");
    std::fs::rename(&newer, &path).expect("moved");
    // If reloads did not take turns, the second would have finished before the first one gets its
    // text.
    let at_once = tokio::time::timeout(std::time::Duration::from_millis(500), &mut second).await;
    std::io::Write::write_all(&mut older, b"roles.mine.allow = ['GET /api/tags']")
        .expect("written");
    drop(older);
    let second = match at_once {
        Ok(ended) => ended,
        Err(_) => second.await,
    };
    for ended in [first.await, second] {
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    }
    assert_eq!(ask(&up, &line("GET", "/api/tags")).await.0, 403, "the right was withdrawn");
    assert_eq!(ask(&up, &line("GET", "/api/version")).await.0, 200);
}
