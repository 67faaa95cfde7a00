//! `adit list`, `adit rename` and `adit forget`.

use serde_json::Value;
use tests::{
    cli_assert::{FAILED, USAGE, assert_ok, assert_told},
    ollama::Options,
    raw,
    state_files::{identity_file, profile},
    terminal::Terminal,
    world::{Device, World},
};

use crate::PROGRAM;

/// The answer to this lists the models.
pub(super) const TAGS: &str =
    "GET /api/tags HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

/// Two boxes with a model each, `home:1` and `lab:1`, and a device that is enrolled at both: as
/// `default` and as `lab`.
pub(super) async fn two_boxes() -> (World, World, Device) {
    let with_model = |model: &str| Options { model: model.to_owned(), ..Options::default() };
    let home = World::start_with(PROGRAM, with_model("home:1"), &[]).await;
    let lab = World::start_with(PROGRAM, with_model("lab:1"), &[]).await;
    let device = home.device("laptop").await;
    assert_ok(&device.enroll(&lab.invite("thinkpad").await, &["--name", "lab"]).await);
    (home, lab, device)
}

/// The servers that `adit list --json` prints.
pub(super) async fn list(device: &Device) -> Vec<Value> {
    let listed = device.adit(&["list", "--json"], "").await;
    assert_ok(&listed);
    let list: Value = serde_json::from_str(&listed.stdout).expect("JSON");
    assert_eq!(list["schema"], 1);
    list["servers"].as_array().expect("servers").clone()
}

#[tokio::test]
async fn the_list_shows_each_server_whatever_its_state() {
    let (_home, lab, device) = two_boxes().await;
    let up = device.up(&["lab"]).await;
    let listed = list(&device).await;
    assert_eq!(listed.len(), 2, "{listed:?}");
    let (default, running) = (&listed[0], &listed[1]);
    assert_eq!((&default["name"], &default["state"]), (&"default".into(), &"not_running".into()));
    assert_eq!((&running["name"], &running["state"]), (&"lab".into(), &"up".into()));
    assert_eq!((&default["device"], &running["device"]), (&"laptop".into(), &"thinkpad".into()));
    assert_eq!(running["listening"][0], up.address.to_string());
    assert_eq!(running["carrier"], "udp");
    assert_eq!(default["listening"], Value::Array(Vec::new()));
    assert_eq!(running["addresses"][0], lab.address().await.to_string());
    let until = profile(&device).certificate().expect("a certificate").not_after;
    assert_eq!(default["certificate_until"], until);
    let text = device.adit(&["list"], "").await;
    assert_ok(&text);
    let line = text.stdout.lines().find(|line| line.starts_with("lab")).expect("a line");
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(words[1..3], ["up", &up.address.to_string()], "{line}");
    assert!(words.contains(&"thinkpad"), "{line}");
    std::fs::write(identity_file(&device), "{").expect("written");
    assert_eq!(list(&device).await[0]["state"], "damaged");
}

#[tokio::test]
async fn a_device_that_is_enrolled_nowhere_has_an_empty_list_and_the_way_in() {
    let world = World::start(PROGRAM).await;
    let stranger = world.stranger("laptop");
    assert_eq!(list(&stranger).await, Vec::<Value>::new());
    let text = stranger.adit(&["list"], "").await;
    assert_ok(&text);
    assert!(text.stderr.contains("`aditd invite NAME`"), "{}", text.stderr);
}

#[tokio::test]
async fn a_server_is_forgotten_only_if_somebody_says_so_and_nothing_uses_it() {
    let (_home, _lab, device) = two_boxes().await;
    let unasked = device.adit(&["forget", "lab"], "").await;
    assert_told(&unasked, USAGE, &["`lab` is not forgotten", "`adit forget lab --yes`"]);
    let up = device.up(&["lab"]).await;
    let running = device.adit(&["forget", "lab", "--yes"], "").await;
    let pid = format!("running already (pid {})", up.adit.pid());
    assert_told(&running, FAILED, &["cannot forget the server `lab` now", &pid, "`adit down lab`"]);
    up.end().await;
    let forgotten = device.adit(&["forget", "lab", "--yes"], "").await;
    assert_ok(&forgotten);
    let says = "`aditd device revoke thinkpad`";
    assert!(forgotten.stderr.contains(says), "{}", forgotten.stderr);
    assert!(!device.dir.join("servers/lab").exists());
    let again = device.adit(&["forget", "lab", "--yes"], "").await;
    assert_told(&again, FAILED, &["not enrolled at a server `lab`: it knows `default`"]);
    assert_eq!(list(&device).await.len(), 1);
}

#[tokio::test]
async fn a_damaged_server_can_be_forgotten_and_the_command_it_tells_revokes_the_device() {
    let (home, lab, device) = two_boxes().await;
    std::fs::write(identity_file(&device), "{").expect("written");
    let damaged = device.adit(&["forget", "default", "-y"], "").await;
    assert_ok(&damaged);
    assert!(damaged.stderr.contains("`aditd device list`"), "{}", damaged.stderr);
    let forgotten = device.adit(&["forget", "lab", "-y"], "").await;
    let command = forgotten.stderr.split("`aditd ").nth(1).and_then(|rest| rest.split('`').next());
    let command: Vec<&str> = command.expect("a command").split(' ').collect();
    assert_ok(&lab.aditd(&command).await);
    let devices = lab.aditd(&["device", "list", "--json"]).await;
    let devices: Value = serde_json::from_str(&devices.stdout).expect("JSON");
    assert!(devices["devices"][0]["revoked"].is_i64(), "{devices}");
    drop(home);
}

#[tokio::test]
async fn a_person_is_asked_before_a_server_is_forgotten() {
    if Terminal::is_missing() {
        return;
    }
    let (_home, _lab, device) = two_boxes().await;
    for (answers, is_forgotten) in
        [(&["no"][..], false), (&["n"], false), (&["yep", "N"], false), (&["yep", "y"], true)]
    {
        let mut terminal = Terminal::run(&device.command(&["forget", "lab"]));
        terminal.shows("Forget the server `lab`?").await;
        for (i, answer) in answers.iter().enumerate() {
            if i > 0 {
                terminal.shows("Please type 'yes' or 'no':").await;
            }
            terminal.types(answer).await;
        }
        terminal.shows(if is_forgotten { "Forgot the server" } else { "is not forgotten" }).await;
        assert_eq!(device.dir.join("servers/lab").exists(), !is_forgotten);
    }
}

#[tokio::test]
async fn a_renamed_server_is_used_by_its_new_name_and_takes_the_name_of_no_other() {
    let (_home, _lab, device) = two_boxes().await;
    let taken = device.adit(&["rename", "lab", "default"], "").await;
    assert_told(&taken, USAGE, &["the name `default` is taken", "`adit list`"]);
    let same = device.adit(&["rename", "lab", "lab"], "").await;
    assert_told(&same, USAGE, &["the name `lab` is taken"]);
    let unknown = device.adit(&["rename", "nowhere", "gpu"], "").await;
    assert_told(&unknown, FAILED, &["not enrolled at a server `nowhere`"]);
    let begun = device.dir.join("servers/begun");
    std::fs::create_dir(&begun).expect("made");
    let left = device.adit(&["rename", "lab", "begun"], "").await;
    assert_told(&left, USAGE, &["the name `begun` is taken", "an enrollment", "rm -r "]);
    let up = device.up(&["lab"]).await;
    let running = device.adit(&["rename", "lab", "gpu"], "").await;
    assert_told(&running, FAILED, &["cannot rename the server `lab` now", "`adit down lab`"]);
    // Killed: its watcher must not push out the next one, which has another name.
    up.end().await;
    assert_ok(&device.adit(&["rename", "lab", "gpu"], "").await);
    let up = device.up(&["gpu"]).await;
    let tags = raw::exchange(up.address, TAGS).await;
    assert!(tags.contains("lab:1"), "{tags}");
}

#[tokio::test]
async fn the_settings_that_stay_behind_are_told() {
    let (_home, _lab, device) = two_boxes().await;
    let path = device.dir.join("adit.toml");
    std::fs::write(&path, "[servers.lab]\nhold = '1s'\n[servers.gpu]\n").expect("written");
    let config = ["--config", path.to_str().expect("a path")];
    let renamed = device.adit(&[&["rename", "lab", "gpu"][..], &config].concat(), "").await;
    assert_ok(&renamed);
    assert!(renamed.stderr.contains("[servers.lab] to [servers.gpu]"), "{}", renamed.stderr);
    let forgotten = device.adit(&[&["forget", "gpu", "--yes"][..], &config].concat(), "").await;
    assert_ok(&forgotten);
    assert!(forgotten.stderr.contains("a table [servers.gpu]"), "{}", forgotten.stderr);
}
