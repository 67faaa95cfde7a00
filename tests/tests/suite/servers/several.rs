//! Several servers in one `adit up`.

use std::{net::SocketAddr, path::Path};

use serde_json::{Value, json};
use tests::{
    cli_assert::{FAILED, NOT_ALLOWED, USAGE, assert_ok, assert_told, assert_usage},
    raw,
    state_files::{identity_file, text},
    world::{Device, SOON, World},
};
use tokio::io::AsyncWriteExt;

use super::profiles::{TAGS, list, two_boxes};
use crate::PROGRAM;

/// The file in which a device stores its enrollment at `lab`.
fn lab_file(device: &Device) -> std::path::PathBuf {
    device.dir.join("servers/lab/identity.json")
}

fn read(file: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(file).expect("an identity")).expect("JSON")
}

/// Changes one field of a stored enrollment.
fn change(file: &Path, key: &str, value: Value) {
    let mut identity = read(file);
    identity[key] = value;
    std::fs::write(file, identity.to_string()).expect("written");
}

/// Where a server is served, once its state is `state`.
async fn served(device: &Device, name: &str, state: &str) -> SocketAddr {
    let wait = async {
        loop {
            let listed = list(device).await;
            let server = listed.iter().find(|server| server["name"] == name).expect("listed");
            if server["state"] == state {
                return server["listening"][0].as_str().expect("an address").parse().expect("one");
            }
        }
    };
    tokio::time::timeout(SOON, wait).await.unwrap_or_else(|_| panic!("`{name}` is never {state}"))
}

/// A port of loopback that was free a moment ago.
fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}

#[tokio::test]
async fn a_port_that_ones_own_adit_holds_is_told_as_its() {
    let (_home, _lab, device) = two_boxes().await;
    let first = device.up(&[]).await;
    let taken = first.address.to_string();
    let told = device.adit(&["up", "lab", "--listen", &taken], "").await;
    let who = format!("in use by `adit up default` (pid {})", first.adit.pid());
    assert_told(
        &told,
        FAILED,
        &[&who, "`adit up lab --listen localhost:", "`adit down default && adit up default lab`"],
    );
}

#[tokio::test]
async fn each_server_has_a_port_of_its_own_and_status_shows_all() {
    let (_home, _lab, device) = two_boxes().await;
    let mut up = device.up(&["default", "lab"]).await;
    let (home, lab) = (served(&device, "default", "up").await, served(&device, "lab", "up").await);
    assert_eq!(home, up.address);
    let config = device.adit(&["config", "lab", "--json"], "").await;
    let config: Value = serde_json::from_str(&config.stdout).expect("JSON");
    let listen = &config["servers"][0]["settings"]["listen"];
    assert_eq!(listen["source"], "running", "{listen}");
    let shown = listen["value"].as_str().expect("a value");
    assert!(shown.ends_with(&format!(":{}", lab.port())), "{listen}");
    for (address, model) in [(home, "home:1"), (lab, "lab:1")] {
        let tags = raw::exchange(address, TAGS).await;
        assert!(tags.contains(model), "{tags}");
    }
    let both = device.adit(&["status"], "").await;
    assert_ok(&both);
    let servers: Vec<_> =
        both.stdout.lines().filter_map(|line| line.strip_prefix("Server       ")).collect();
    assert_eq!(servers, ["default", "lab"], "{}", both.stdout);
    assert_eq!(both.stdout.matches("\nTunnel       up for ").count(), 2, "{}", both.stdout);
    let status = device.status().await;
    assert_eq!(status["server"], "default");
    let others = status["others"].as_array().expect("the others");
    assert_eq!(others.len(), 1);
    assert_eq!((&others[0]["server"], &others[0]["pid"]), (&json!("lab"), &status["pid"]));
    let one = device.adit(&["status", "lab", "--json"], "").await;
    let one: Value = serde_json::from_str(&one.stdout).expect("JSON");
    assert_eq!((&one["server"], one.get("others")), (&json!("lab"), None));
    let watched = device.adit(&["status", "--watch"], "").await;
    assert_told(&watched, USAGE, &["several tunnels run", "`adit status default --watch`"]);
    // Only the one that is not the first has a port to remember.
    assert_eq!(read(&lab_file(&device))["port"], lab.port());
    assert_eq!(read(&identity_file(&device)).get("port"), None);
    assert_ok(&device.adit(&["down", "--now"], "").await);
    assert_ok(&device.adit(&["down", "lab"], "").await);
    assert_eq!(up.adit.ended().await.expect("it ends").code(), Some(0));
    let none = device.adit(&["status"], "").await;
    assert_told(&none, FAILED, &["adit is not running", "`adit up default`", "`adit up --all`"]);
}

#[tokio::test]
async fn down_ends_one_tunnel_after_its_answers_and_the_others_go_on() {
    let (_home, lab, device) = two_boxes().await;
    let mut up = device.up(&["default", "lab", "--drain", "1h"]).await;
    let mut app = raw::connect(served(&device, "lab", "up").await).await;
    let json = r#"{"model":"lab:1","prompt":"x","options":{"num_predict":40,"seed":9}}"#;
    app.write_all(raw::post("/api/generate", json).as_bytes()).await.expect("sent");
    raw::read_exactly(&mut app, 300).await;
    let down = device.adit(&["down", "lab"], "").await;
    assert_ok(&down);
    let says = "The tunnel `lab` is down; its `adit up` goes on with `default`.";
    assert!(format!("{}{}", down.stdout, down.stderr).contains(says), "{down:?}");
    let (rest, ending) = raw::read_to_end(&mut app).await;
    assert!(String::from_utf8_lossy(&rest).contains("\"done\":true"), "{ending:?}");
    assert_eq!(lab.ollama.counters().cancelled, 0);
    let tags = raw::exchange(up.address, TAGS).await;
    assert!(tags.contains("home:1"), "{tags}");
    let state = |servers: Vec<Value>| {
        let lab = servers.into_iter().find(|server| server["name"] == "lab").expect("listed");
        lab["state"].clone()
    };
    assert_eq!(state(list(&device).await), "not_running");
    // Nobody holds it: another process may serve it.
    let mut other = device.up(&["lab"]).await;
    let tags = raw::exchange(other.address, TAGS).await;
    assert!(tags.contains("lab:1"), "{tags}");
    assert_ok(&device.adit(&["down", "lab"], "").await);
    assert_eq!(other.adit.ended().await.expect("it ends").code(), Some(0));
    let down = device.adit(&["down"], "").await;
    assert_ok(&down);
    assert_eq!(up.adit.ended().await.expect("it ends").code(), Some(0));
}

#[tokio::test]
async fn a_port_is_the_same_the_next_time_and_comes_back_if_it_was_taken_once() {
    let (_home, lab, device) = two_boxes().await;
    let port = free_port();
    change(&lab_file(&device), "port", port.into());
    let up = device.up(&["default", "lab"]).await;
    assert_eq!(served(&device, "lab", "up").await.port(), port);
    up.end().await;
    let taken = std::net::TcpListener::bind(("127.0.0.1", port)).expect("the port");
    let up = device.up(&["default", "lab"]).await;
    assert_ne!(served(&device, "lab", "up").await.port(), port);
    up.end().await;
    drop(taken);
    // Also after another enrollment.
    let code = lab.invite("thinkpad-2").await;
    assert_ok(&device.enroll(&code, &["--name", "lab", "--replace"]).await);
    assert_eq!(read(&lab_file(&device))["port"], port);
    let _up = device.up(&["default", "lab"]).await;
    assert_eq!(served(&device, "lab", "up").await.port(), port);
}

#[tokio::test]
async fn a_server_that_is_down_takes_nothing_from_the_others_and_is_served_when_it_is_back() {
    let (_home, mut lab, device) = two_boxes().await;
    lab.kill_server().await;
    let _up = device.up(&["lab", "default"]).await;
    let home = served(&device, "default", "up").await;
    let tags = raw::exchange(home, TAGS).await;
    assert!(tags.contains("home:1"), "{tags}");
    let lab_address = served(&device, "lab", "down").await;
    lab.restart_server().await;
    assert_eq!(served(&device, "lab", "up").await, lab_address);
    let tags = raw::exchange(lab_address, TAGS).await;
    assert!(tags.contains("lab:1"), "{tags}");
}

#[tokio::test]
async fn one_order_to_stop_lets_the_answers_of_all_servers_end() {
    let (home, lab, device) = two_boxes().await;
    let mut up = device.up(&["default", "lab", "--drain", "1h"]).await;
    let mut answers = Vec::new();
    for (name, model) in [("default", "home:1"), ("lab", "lab:1")] {
        let mut app = raw::connect(served(&device, name, "up").await).await;
        let json = format!(
            r#"{{"model":"{model}","prompt":"x","options":{{"num_predict":40,"seed":9}}}}"#
        );
        app.write_all(raw::post("/api/generate", &json).as_bytes()).await.expect("sent");
        raw::read_exactly(&mut app, 300).await;
        answers.push(app);
    }
    up.adit.signal("INT");
    for app in &mut answers {
        let (rest, ending) = raw::read_to_end(app).await;
        assert!(String::from_utf8_lossy(&rest).contains("\"done\":true"), "{ending:?}");
    }
    assert_eq!(up.adit.ended().await.expect("it ends").code(), Some(0));
    assert_eq!((home.ollama.counters().cancelled, lab.ollama.counters().cancelled), (0, 0));
}

#[tokio::test]
async fn adit_up_ends_when_all_servers_have_refused_the_device_and_not_before() {
    let (home_box, lab_box, device) = two_boxes().await;
    assert_ok(&lab_box.aditd(&["device", "revoke", "thinkpad"]).await);
    change(&lab_file(&device), "revoked", true.into());
    let up = device.up(&["lab", "default"]).await;
    let home = served(&device, "default", "up").await;
    assert!(raw::exchange(home, TAGS).await.contains("home:1"));
    served(&device, "lab", "refused").await;
    up.end().await;
    assert_ok(&home_box.aditd(&["device", "revoke", "laptop"]).await);
    change(&identity_file(&device), "revoked", true.into());
    let ended = device.adit(&["up", "lab", "default", "--listen", "127.0.0.1:0"], "").await;
    assert_eq!(ended.code, Some(NOT_ALLOWED), "{ended:?}");
}

#[tokio::test]
async fn a_named_server_has_to_exist_and_all_leaves_out_one_that_cannot_start() {
    let (_home, _lab, device) = two_boxes().await;
    let unknown = device.adit(&["up", "default", "nowhere"], "").await;
    assert_told(&unknown, FAILED, &["not enrolled at a server `nowhere`"]);
    assert_usage(&device.adit(&["up", "--all", "lab"], "").await, &["--all"]);
    let alone = device.up(&["lab"]).await;
    let running = device.adit(&["up", "default", "lab"], "").await;
    assert_told(&running, FAILED, &["cannot start the tunnel `lab`", "`adit status lab`"]);
    let all = device.up(&["--all"]).await;
    let home = served(&device, "default", "up").await;
    assert!(raw::exchange(home, TAGS).await.contains("home:1"));
    assert_eq!(served(&device, "lab", "up").await, alone.address);
    let none = device.adit(&["up", "--all"], "").await;
    assert_eq!(none.code, Some(FAILED), "{none:?}");
    assert!(none.stderr.contains("cannot start the tunnel `default`"), "{}", none.stderr);
    drop((alone, all));
}

#[tokio::test]
async fn a_server_is_served_where_its_own_table_says_whatever_the_flag_says_of_the_first() {
    let (_home, _lab, device) = two_boxes().await;
    let (port, path) = (free_port(), device.dir.join("adit.toml"));
    let config = ["--config", text(&path)];
    std::fs::write(&path, format!("[servers.lab]\nlisten = ['127.0.0.1:{port}']\n"))
        .expect("written");
    let up = device.up(&[&["default", "lab"][..], &config].concat()).await;
    assert_eq!(served(&device, "default", "up").await, up.address);
    assert_eq!(served(&device, "lab", "up").await.port(), port);
    assert_eq!(read(&lab_file(&device)).get("port"), None, "it needs none");
    up.end().await;
    let listen = format!("127.0.0.1:{port}");
    let args = [&["up", "default", "lab", "--listen", &listen][..], &config].concat();
    let same = device.adit(&args, "").await;
    assert_told(&same, USAGE, &["`default` and `lab` cannot listen on the same", "[servers.lab]"]);
}

#[tokio::test]
async fn a_taken_port_of_the_first_server_is_told_with_a_command_for_the_same_servers() {
    let (_home, _lab, device) = two_boxes().await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let listen = taken.local_addr().expect("an address").to_string();
    let told = device.adit(&["up", "lab", "default", "--listen", &listen], "").await;
    let cure = "`adit up lab default --listen localhost:11500`";
    assert_told(&told, FAILED, &["already in use", cure]);
}

#[tokio::test]
async fn without_a_name_and_a_default_the_way_to_all_servers_is_told() {
    let world = World::start(PROGRAM).await;
    let device = world.stranger("laptop");
    for (device_name, name) in [("one", "home"), ("two", "lab")] {
        let code = world.invite(device_name).await;
        assert_ok(&device.enroll(&code, &["--name", name]).await);
    }
    let told = device.adit(&["up"], "").await;
    assert_told(&told, USAGE, &["home, lab", "`adit up home`", "`adit up --all`"]);
}
