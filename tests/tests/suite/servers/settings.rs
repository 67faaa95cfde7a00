//! The settings of `adit`: flag, environment, file and default, and what `adit config` says of them.

use std::{net::SocketAddr, path::PathBuf};

use serde_json::Value;
use tests::{
    cli_assert::{USAGE, assert_ok, assert_told},
    process::Ended,
    raw,
    state_files::text,
    world::{Device, World},
};

use crate::PROGRAM;

/// Each setting: its name, two values, and the default, as `adit config` writes it.
const ALL: [(&str, [&str; 2], &str); 7] = [
    ("listen", ["localhost:11501", "127.0.0.1:11502"], "localhost:11434"),
    ("any_user", ["true", "false"], "false"),
    ("hold", ["1s", "1m 30s"], "30s"),
    ("drain", ["2s", "500ms"], "30s"),
    ("carrier", ["ssh", "udp"], "auto"),
    ("idle_timeout", ["1h", "20s"], "30m"),
    ("ssh_client", ["system", "builtin"], "the one used for enrolling"),
];

/// Writes a file of settings, and returns its path.
fn file(world: &World, content: &str) -> PathBuf {
    let path = world.scratch("adit.toml");
    std::fs::write(&path, content).expect("written");
    path
}

/// A setting as it is written in the file.
fn written(key: &str, value: &str) -> String {
    match key {
        "listen" => format!("{key} = ['{value}']\n"),
        "any_user" => format!("{key} = {value}\n"),
        _ => format!("{key} = '{value}'\n"),
    }
}

/// Runs `adit` on a device with these variables.
async fn with(
    world: &World,
    device: &Device,
    variables: &[(String, &str)],
    args: &[&str],
) -> Ended {
    let args = [args, &["--state-dir", text(&device.dir)]].concat();
    let mut command = world.programs.command("adit", &args);
    command.envs(variables.iter().map(|(name, value)| (name, value)));
    command.output().await.expect("it runs").into()
}

/// The settings of the only server, as `adit config --json` prints them.
async fn shown(
    world: &World,
    device: &Device,
    variables: &[(String, &str)],
    args: &[&str],
) -> Value {
    let shown = with(world, device, variables, &[&["config", "--json"], args].concat()).await;
    assert_ok(&shown);
    let shown: Value = serde_json::from_str(&shown.stdout).expect("JSON");
    assert_eq!(shown["schema"], 1);
    shown["servers"][0]["settings"].clone()
}

#[track_caller]
fn assert_set(settings: &Value, key: &str, value: &str, source: &str) {
    let is = &settings[key];
    assert_eq!((&is["value"], &is["source"]), (&value.into(), &source.into()), "{key}");
}

#[tokio::test]
async fn each_setting_is_taken_from_the_flag_the_environment_the_file_and_the_default_in_this_order()
 {
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let defaults = shown(&world, &device, &[], &[]).await;
    let of_all = ALL.map(|(key, [value, _], _)| written(key, value)).concat();
    let of_all = file(&world, &of_all);
    let own = world.scratch("own.toml");
    let top = ALL.map(|(key, [_, other], _)| written(key, other)).concat();
    let table = ALL.map(|(key, [value, _], _)| written(key, value)).concat();
    std::fs::write(&own, format!("{top}[servers.default]\n{table}")).expect("written");
    let variables = ALL.map(|(key, [_, other], _)| (format!("ADIT_{}", key.to_uppercase()), other));
    let from_file = shown(&world, &device, &[], &["--config", text(&of_all)]).await;
    let from_table = shown(&world, &device, &[], &["--config", text(&own)]).await;
    let from_environment = shown(&world, &device, &variables, &["--config", text(&own)]).await;
    for (key, [value, other], default) in ALL {
        assert_set(&defaults, key, default, "default");
        assert_set(&from_file, key, value, "file");
        assert_set(&from_table, key, value, "server_table");
        assert_set(&from_environment, key, other, "environment");
        let flag = match key {
            "any_user" => "--any-user".to_owned(),
            _ => format!("--{}={value}", key.replace('_', "-")),
        };
        let args = ["--config", text(&own), &flag];
        let from_flag = shown(&world, &device, &variables, &args).await;
        assert_set(&from_flag, key, value, "flag");
    }
}

#[tokio::test]
async fn the_table_for_people_says_where_each_value_comes_from() {
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let path = file(&world, "drain = '4s'\n[servers.default]\nhold = '5s'\n[servers.defualt]\n");
    let variables = [("ADIT_CARRIER".to_owned(), "udp")];
    let args = ["config", "--config", text(&path), "--any-user"];
    let shown = with(&world, &device, &variables, &args).await;
    assert_ok(&shown);
    for (key, words) in [
        ("state_dir", format!("{} flag --state-dir", device.dir.display())),
        ("listen", "localhost:11434 default".to_owned()),
        ("any_user", "true flag --any-user".to_owned()),
        ("hold", "5s file, [servers.default]".to_owned()),
        ("drain", "4s file".to_owned()),
        ("carrier", "udp environment, ADIT_CARRIER".to_owned()),
    ] {
        let line = shown.stdout.lines().find(|line| line.starts_with(key)).unwrap_or_default();
        let line = line.split_whitespace().skip(1).collect::<Vec<_>>().join(" ");
        assert_eq!(line, words, "{}", shown.stdout);
    }
    assert!(shown.stdout.contains(text(&path)), "{}", shown.stdout);
    let unknown = "[servers.defualt]: there is no such server; did you mean `default`?";
    assert!(shown.stdout.contains(unknown), "{}", shown.stdout);
}

#[tokio::test]
async fn a_mistake_in_the_file_stops_only_the_commands_that_need_a_setting_from_it() {
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let path = file(&world, &format!("state_dir = '{}'\nhold = 5\n", device.dir.display()));
    let up = device.up(&[]).await;
    let run = async |args: &[&str]| {
        let args = [args, &["--config", text(&path)]].concat();
        let ended: Ended =
            world.programs.command("adit", &args).output().await.expect("it runs").into();
        ended
    };
    for args in
        [&["status"][..], &["list"], &["ls"], &["env"], &["logs"], &["rename", "default", "gpu"]]
    {
        let ended = run(args).await;
        assert!(ended.stderr.contains("`adit doctor"), "{args:?}: {ended:?}");
        let is_refused = args[0] == "rename";
        assert_eq!(ended.code, Some(i32::from(is_refused)), "{args:?}: {ended:?}");
    }
    let doctor = run(&["doctor", "--json"]).await;
    let report: Value = serde_json::from_str(&doctor.stdout).expect("JSON");
    let line = &report["lines"][0];
    assert_eq!((&line["id"], &line["verdict"]), (&"settings".into(), &"bad".into()), "{line}");
    for says in [text(&path), "line 2", "hold = \\\"5s\\\"", "adit config"] {
        assert!(line.to_string().contains(says), "{says} is not in {line}");
    }
    let down = run(&["down"]).await;
    assert!(down.stderr.contains("The tunnel `default` is down"), "{down:?}");
    drop(up);
    for command in ["up", "config"] {
        assert_told(&run(&[command]).await, USAGE, &["write line 2 as `hold = \"5s\"`"]);
    }
    assert_ok(&run(&["rename", "default", "gpu"]).await);
}

#[tokio::test]
async fn adit_up_does_what_the_file_says() {
    let mut world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let path = file(&world, "[servers.default]\nhold = '1s'\nlisten = ['127.0.0.1:0']\n");
    let args = ["up", "-v", "--state-dir", text(&device.dir), "--config", text(&path)];
    let mut adit = world.programs.start("adit", &args).expect("it starts");
    adit.ready().await.expect("ready");
    let listening = device.status().await["listening"].clone();
    assert_eq!(listening.as_array().map(Vec::len), Some(1), "{listening}");
    let address: SocketAddr =
        listening[0].as_str().and_then(|address| address.parse().ok()).expect("an address");
    assert_ne!(address.port(), 11434);
    world.kill_server().await;
    let answer = raw::exchange(address, "GET / HTTP/1.0\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.0 503 "), "{answer}");
}

#[tokio::test]
async fn a_bad_file_is_refused_by_each_command_with_the_line_and_the_nearest_name() {
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let path = file(&world, "carrier = 'udp'\nidletimeout = '1h'\n");
    for command in [&["up", "--listen", "127.0.0.1:0"][..], &["config"], &["warm", "m"]] {
        let told = device.adit(&[command, &["--config", text(&path)]].concat(), "").await;
        let says = ["line 2", "unknown field `idletimeout`", "did you mean `idle_timeout`?"];
        assert_told(&told, USAGE, &says);
    }
    for (content, says) in [
        ("[servers.lab]\nstate_dir = '/'", "the settings here are `listen`, `allow_from`, "),
        ("hold = 'soon'", "`soon` is not a length of time: write a length of time: 30s"),
        ("idle_timeout = '1s'", "`1s` is not a valid idle time-out: choose between 20s and 7d"),
        ("listen = ['gpu.lan:1']", "`gpu.lan:1` is not an address to listen on"),
        ("[servers.'no name']", "line 1"),
        ("hold = ", "correct line 1"),
    ] {
        let path = file(&world, content);
        let told = device.adit(&["config", "--config", text(&path)], "").await;
        assert_told(&told, USAGE, &["the configuration `", "is wrong", says]);
    }
    let missing = device.adit(&["status", "--config", "/nowhere/adit.toml"], "").await;
    assert_told(
        &missing,
        USAGE,
        &["cannot read the configuration `/nowhere/adit.toml`", "--config"],
    );
}

#[tokio::test]
async fn the_usual_file_is_read_without_a_flag_and_may_name_the_state() {
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let home = world.scratch("config/adit");
    std::fs::create_dir_all(&home).expect("made");
    let without = world.programs.run("adit", &["config", "--json"], "").await.expect("it runs");
    let without: Value = serde_json::from_str(&without.stdout).expect("JSON");
    assert_eq!(without["file"]["exists"], false);
    let content = format!("state_dir = '{}'\nhold = '7s'\n", device.dir.display());
    std::fs::write(home.join("adit.toml"), content).expect("written");
    let with = world.programs.run("adit", &["config", "--json"], "").await.expect("it runs");
    let with: Value = serde_json::from_str(&with.stdout).expect("JSON");
    assert_eq!(with["state_dir"]["value"], text(&device.dir));
    assert_eq!(with["state_dir"]["source"], "file");
    assert_set(&with["servers"][0]["settings"], "hold", "7s", "file");
    // The tunnel of `adit run` finds the state and the settings too.
    let args = ["run", "--", "sh", "-c", "echo \"$OLLAMA_HOST\""];
    let ran = world.programs.run("adit", &args, "").await.expect("it runs");
    assert!(ran.stdout.starts_with("http://127.0.0.1:"), "{ran:?}");
}
