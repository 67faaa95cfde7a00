//! Each command of `adit` with `--json`, run as a script would: what it prints is one document.

use std::collections::BTreeSet;

use serde_json::Value;
use tests::{
    cli_assert::{NOT_ALLOWED, assert_told, document},
    world::{Device, World},
};

use crate::{
    PROGRAM,
    readme::json::{By, Page, commands},
};

/// Commands that have tests of their own with `--json`: at a box, and with a manager of services.
const ELSEWHERE: [&str; 6] = [
    "adit upgrade",
    "adit remove",
    "adit service install",
    "adit service uninstall",
    "adit service status",
    "adit service logs",
];

/// Runs a command of which `at` in the document is `is`.
async fn prints(
    (device, page): (&Device, &mut Page),
    args: &[&str],
    at: &str,
    is: impl Into<Value>,
) -> Value {
    let told = document(&device.adit(&[args, &["--json"]].concat(), "").await);
    // Another page has the status.
    if args != ["status"] {
        page.has(&format!("adit {}", args[0]), &told);
    }
    assert_eq!(told.pointer(at), Some(&is.into()), "{args:?}: {told:#}");
    told
}

#[tokio::test]
async fn each_command_prints_one_document() {
    let world = World::start(PROGRAM).await;
    let laptop = world.stranger("laptop");
    let page = &mut Page::read();
    let code = world.invite("laptop").await;
    let enrolled = laptop.adit(&["enroll", "--name", "box", "--json"], &code).await;
    let told = document(&enrolled);
    page.has("adit enroll", &told);
    assert_eq!(
        (&told["server"]["name"], &told["server"]["device"]),
        (&"box".into(), &"laptop".into())
    );
    assert_eq!(told["server"]["state"], "not_running");
    assert!(!enrolled.stdout.contains(code.trim()) && !enrolled.stdout.contains("PRIVATE"));
    prints((&laptop, page), &["down", "box"], "/was_up", false).await;
    let renamed = prints((&laptop, page), &["rename", "box", "lab"], "/server/name", "lab").await;
    assert_eq!(renamed["before"], "box");

    let up = laptop.up(&[]).await;
    prints((&laptop, page), &["list"], "/servers/0/state", "up").await;
    prints((&laptop, page), &["ls"], "/servers/0/server", "lab").await;
    prints((&laptop, page), &["status"], "/server", "lab").await;
    prints((&laptop, page), &["config"], "/servers/0/name", "lab").await;
    let url = format!("http://{}", up.address);
    let told = prints((&laptop, page), &["env"], "/variables/OLLAMA_HOST", url.clone()).await;
    assert_eq!(told["variables"]["OLLAMA_API_BASE"], url.clone());
    prints((&laptop, page), &["env", "--openai"], "/variables/OPENAI_BASE_URL", url + "/v1").await;
    let warm = prints((&laptop, page), &["warm", "stand-in"], "/model", "stand-in").await;
    assert!(warm["server"] == "lab" && warm["seconds"].is_f64(), "{warm}");
    let doctor = laptop.adit(&["doctor", "--json"], "").await;
    let doctor: Value = serde_json::from_str(&doctor.stdout).expect("JSON");
    page.has("adit doctor", &doctor);
    assert!(doctor["schema"] == 1 && doctor["lines"].is_array(), "{doctor}");
    let log = laptop.adit(&["logs", "--json"], "").await;
    let text = laptop.adit(&["logs"], "").await.stdout;
    let lines: Vec<Value> = log
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
        .collect();
    // The log may have become longer meanwhile.
    assert!(!lines.is_empty() && lines.len() <= text.lines().count(), "{text}");
    page.has("adit logs", &lines[0]);
    for (line, text) in lines.iter().zip(text.lines()) {
        assert!(text.ends_with(line["message"].as_str().expect("text")), "{line} {text}");
    }
    let is_ready = |line: &&Value| {
        let says = line["message"].as_str().is_some_and(|text| text.contains("ready: Ollama on"));
        says && line["level"] == "info" && line["time"].is_string()
    };
    assert_eq!(lines.iter().filter(is_ready).count(), 1, "{text}");
    let down = prints((&laptop, page), &["down"], "/was_up", true).await;
    assert_eq!(
        (&down["server"], &down["goes_on_with"]),
        (&"lab".into(), &Value::Array(Vec::new()))
    );
    drop(up);
    let forgotten = prints((&laptop, page), &["forget", "lab", "--yes"], "/forgotten", "lab").await;
    assert_eq!(forgotten["device"], "laptop");
    assert!(forgotten["key_left"].is_null());

    page.is_printed(|command| command.starts_with("adit ") && !ELSEWHERE.contains(&command));
    page.objects_are_printed(By::Adit);
    let tried: BTreeSet<_> = [
        "enroll", "down", "rename", "list", "ls", "status", "config", "env", "warm", "doctor",
        "logs", "forget",
    ]
    .map(|name| format!("adit {name}"))
    .into_iter()
    .chain(ELSEWHERE.map(str::to_owned))
    .collect();
    let all =
        commands().into_iter().filter(|(name, has_json)| *has_json && name.starts_with("adit "));
    assert_eq!(tried, all.map(|(name, _)| name).collect());
}

#[tokio::test]
async fn what_fails_is_one_document_too() {
    let world = World::start(PROGRAM).await;
    let laptop = world.device("laptop").await;
    for (command, says) in [
        (&["forget", "nowhere", "--yes", "--json"][..], "nowhere"),
        (&["rename", "nowhere", "lab", "--json"], "nowhere"),
        (&["env", "--json"], "no `adit up` is running"),
        (&["status", "--json"], "adit is not running"),
        (&["logs", "--json"], "there is no log yet"),
        (&["enroll", "--json"], "this device is enrolled already"),
        (&["env", "--json", "--shell", "fish"], "cannot be used with"),
    ] {
        let ended = laptop.adit(command, "").await;
        let told: Value =
            serde_json::from_str(&ended.stdout).unwrap_or_else(|e| panic!("{e}: {ended:?}"));
        assert_eq!(told["error"]["exit"].as_i64(), ended.code.map(i64::from), "{ended:?}");
        assert!(told["error"]["what"].as_str().expect("text").contains(says), "{told}");
    }
    // What follows belongs to the program that is run.
    let ended = laptop.run(&["--", "/nowhere/at/all", "--json"]).await;
    assert_eq!(ended.stdout, "", "{ended:?}");
    let up = laptop.up(&[]).await;
    world.aditd(&["device", "revoke", "laptop"]).await;
    let refused = async {
        while laptop.adit(&["warm", "stand-in", "--json"], "").await.code != Some(NOT_ALLOWED) {}
    };
    tokio::time::timeout(tests::world::SOON, refused).await.expect("it is refused");
    let refused = laptop.adit(&["warm", "stand-in", "--json"], "").await;
    assert_told(&refused, NOT_ALLOWED, &["revoked"]);
    drop(up);
}
