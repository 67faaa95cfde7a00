//! What goes wrong on the way in: each is told once, with its cause and its cure, and nothing is lost or half done by it.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
};

use common::{
    door::DoorKey,
    frame,
    invitation::{Invitation, Secret, sha256},
    process::unix_now,
    tls::{self, Admit},
    wire::{EnrollAnswer, EnrollRequest, Enrolled},
};
use data_encoding::BASE64;
use serde_json::Value;
use server::ca::{Ca, DeviceKey};
use tests::{
    disk::SmallDisk,
    process::Ended,
    raw, skip,
    world::{Device, SOON, World},
};
use time::OffsetDateTime;

const PROGRAM: &str = env!("CARGO_BIN_EXE_adit-demo");
const ROOT: &str = "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
const FAILED: i32 = 1;
const USAGE: i32 = 2;

fn errors_in(stderr: &str) -> usize {
    stderr.lines().filter(|line| line.starts_with("error: ")).count()
}

/// That a command ended with one error that says these things, one cure, and this exit code, and gave no data.
#[track_caller]
fn assert_told(ended: &Ended, code: i32, says: &[&str]) {
    let Ended { stdout, stderr, .. } = ended;
    assert_eq!(ended.code, Some(code), "{ended:?}");
    assert_eq!(stdout, "", "{ended:?}");
    assert_eq!(errors_in(stderr), 1, "{stderr}");
    assert_eq!(stderr.matches("\n\nhint: ").count(), 1, "{stderr}");
    assert_no_defect(stderr);
    for words in says {
        assert!(stderr.contains(words), "no `{words}` in:\n{stderr}");
    }
}

/// The same of what the parser of the command line refuses, which points to `--help`.
#[track_caller]
fn assert_usage(ended: &Ended, says: &[&str]) {
    let Ended { stdout, stderr, .. } = ended;
    assert_eq!(ended.code, Some(USAGE), "{ended:?}");
    assert_eq!(stdout, "", "{ended:?}");
    assert_eq!(errors_in(stderr), 1, "{stderr}");
    assert!(stderr.contains("--help"), "{stderr}");
    assert_no_defect(stderr);
    for words in says {
        assert!(stderr.contains(words), "no `{words}` in:\n{stderr}");
    }
}

#[track_caller]
fn assert_no_defect(log: &str) {
    assert!(!log.contains("panicked") && !log.contains("defect"), "{log}");
}

#[track_caller]
fn assert_ok(ended: &Ended) {
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path")
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
}

fn identity_file(device: &Device) -> PathBuf {
    device.dir.join("servers/default/identity.json")
}

fn stored(device: &Device) -> Value {
    serde_json::from_slice(&fs::read(identity_file(device)).expect("an identity")).expect("JSON")
}

fn store(device: &Device, identity: &Value) {
    fs::write(identity_file(device), identity.to_string()).expect("written");
}

/// Runs `adit up` to its end, which has to come by itself.
async fn up(device: &Device) -> Ended {
    device.adit(&["up", "--listen", "127.0.0.1:0"], "").await
}

async fn device_names(world: &World) -> Vec<String> {
    let listed = world.aditd(&["device", "list", "--json"]).await;
    assert_ok(&listed);
    let listed: Value = serde_json::from_str(&listed.stdout).expect("JSON");
    let devices = listed["devices"].as_array().expect("devices");
    devices.iter().map(|d| d["name"].as_str().expect("a name").to_owned()).collect()
}

/// A UDP port where nobody listens.
fn closed_port() -> SocketAddr {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port");
    socket.local_addr().expect("an address")
}

#[tokio::test]
async fn a_code_that_is_none_is_told_before_anything_is_sent_or_stored() {
    let world = World::start(PROGRAM).await;
    let code = world.invite("laptop").await.trim().to_owned();
    let swapped = if code.ends_with('a') { "b" } else { "a" };
    let mut newer = vec![2];
    newer.extend_from_slice(&[0; 80]);
    let check = sha256(&newer);
    newer.extend_from_slice(&check[..4]);
    let newer = format!("adit{}", data_encoding::BASE32_NOPAD.encode(&newer));
    for (what, code, says) in [
        ("nothing", String::new(), "the code is empty"),
        ("white space", " \n\t\n".to_owned(), "the code is empty"),
        ("another word", "hello".to_owned(), "this is not an invitation code"),
        ("a URL", "https://example.com/adit".to_owned(), "this is not an invitation code"),
        ("an escape sequence", "adit\u{1b}[31mred".to_owned(), "this is not an invitation code"),
        ("bytes that a terminal wouldn't show", "adit\0\0\0".to_owned(), "this is not an invitation code"),
        ("the prefix alone", "adit".to_owned(), "incomplete or has a typing error"),
        ("the first half", code[..code.len() / 2].to_owned(), "incomplete or has a typing error"),
        ("all but the last letter", code[..code.len() - 1].to_owned(), "incomplete or has a typing error"),
        ("a wrong letter", format!("{}{swapped}", &code[..code.len() - 1]), "incomplete or has a typing error"),
        ("twice", format!("{code}{code}"), ""),
        ("a book", "adit".repeat(50_000), "this is not an invitation code"),
        ("a code of a newer server", newer, "a newer version of aditd (format 2)"),
    ] {
        let device = world.stranger("wrong");
        let told = device.enroll(&code, &[]).await;
        assert_told(&told, USAGE, &["error: that code is no good\n  Caused by: ", says]);
        assert!(!told.stderr.contains('\u{1b}'), "{what}: {:?}", told.stderr);
        assert!(!device.dir.exists(), "{what} has left something behind");
    }
    let file = world.scratch("code");
    fs::write(&file, [0xff, 0xfe, 0x00]).expect("written");
    let binary = world.stranger("wrong").enroll("", &["--code-file", text(&file)]).await;
    assert_told(&binary, USAGE, &["error: that code is no good\n  Caused by: ", "this is not an invitation code"]);
    assert_ok(&world.stranger("laptop").enroll(&code, &[]).await);
}

#[tokio::test]
async fn a_server_that_is_not_there_is_told_and_the_code_stays_good() {
    let mut world = World::start(PROGRAM).await;
    let code = world.invite("laptop").await;
    world.kill_server().await;
    let device = world.stranger("laptop");
    let address = code.parse::<Invitation>().expect("a code").addresses[0].clone();
    let told = device.enroll(&code, &[]).await;
    assert_told(
        &told,
        FAILED,
        &[&format!("error: cannot enroll\n  Caused by: no answer from {address}"), "is aditd running there"],
    );
    assert!(!identity_file(&device).exists());
    world.restart_server().await;
    assert_ok(&device.enroll(&code, &[]).await);
}

#[tokio::test]
async fn an_address_that_cannot_be_looked_up_is_told_by_its_name() {
    let world = World::start(PROGRAM).await;
    let invited = world.aditd(&["invite", "laptop", "--advertise", "no-such-host.invalid:7"]).await;
    assert_ok(&invited);
    let told = world.stranger("laptop").enroll(&invited.stdout, &[]).await;
    assert_told(&told, FAILED, &["error: cannot enroll\n  Caused by: cannot look up `no-such-host.invalid:7`", "check the name"]);
    // One bad address among good ones is no error.
    let address = world.address().await.to_string();
    let both = format!("no-such-host.invalid:7,{},{address}", closed_port());
    let invited = world.aditd(&["invite", "laptop", "--advertise", &both]).await;
    assert_ok(&world.stranger("laptop").enroll(&invited.stdout, &[]).await);
}

#[tokio::test]
async fn a_server_of_another_authority_is_not_believed() {
    let world = World::start(PROGRAM).await;
    let mut invitation: Invitation = world.invite("laptop").await.parse().expect("a code");
    invitation.ca[0] ^= 1;
    let device = world.stranger("laptop");
    let told = device.enroll(&invitation.code(), &[]).await;
    let says = [
        "error: cannot enroll\n  Caused by: whoever answers at that address is not the server",
        "get a new code on the server itself",
    ];
    assert_told(&told, FAILED, &says);
    assert!(!identity_file(&device).exists());
    assert!(device_names(&world).await.is_empty(), "it has been told nothing");

    // An enrolled device does not believe it either, and says so for as long as it tries.
    let device = world.device("desk").await;
    let mut identity = stored(&device);
    let other = Authority::new(&world.scratch("other"));
    identity["ca"] = BASE64.encode(other.ca.certificate()).into();
    store(&device, &identity);
    let mut up = device.start(&["--hold", "0s"]).await;
    up.adit.says("is not the one that this device enrolled with: its certificate comes from another CA").await;
    let answer = raw::exchange(up.address, ROOT).await;
    assert!(
        answer.starts_with("HTTP/1.1 503 ") && answer.contains("comes from another CA") && answer.contains("--replace"),
        "{answer}"
    );
}

#[tokio::test]
async fn a_server_that_was_set_up_anew_is_silent_to_the_codes_and_devices_of_the_old_one() {
    let mut world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let code = world.invite("desk").await;
    world.kill_server().await;
    fs::rename(world.state(), world.scratch("old")).expect("moved");
    world.restart_server().await;
    let told = world.stranger("desk").enroll(&code, &[]).await;
    assert_told(&told, FAILED, &["error: cannot enroll\n  Caused by: no answer from", "get another with `aditd invite NAME`"]);
    // The cure that the error of an enrolled device names works.
    assert_ok(&device.enroll(&world.invite("laptop").await, &["--replace"]).await);
    device.up(&[]).await;
}

#[tokio::test]
async fn a_server_state_that_others_can_read_is_refused_until_the_hint_is_followed() {
    let mut world = World::start(PROGRAM).await;
    world.device("laptop").await;
    world.kill_server().await;
    let state = world.state();
    for name in ["ca.key", "ca.crt", "endpoint.json", "register.sqlite", "server.key", "server.crt", ""] {
        let path = if name.is_empty() { state.clone() } else { state.join(name) };
        let (open, closed) = if path.is_dir() { (0o755, "700") } else { (0o644, "600") };
        let before = (!path.is_dir()).then(|| fs::read(&path).expect("bytes"));
        chmod(&path, open);
        let mut commands: Vec<&[&str]> = vec![&["serve", "--listen", "127.0.0.1:0"], &["init"]];
        if !name.starts_with("server.") {
            commands.extend([&["invite", "desk"][..], &["device", "list"], &["device", "revoke", "laptop"]]);
        }
        for command in commands {
            let told = world.aditd(command).await;
            let says = [
                &format!("`{}` can be read by other users (mode {open:o})", path.display()),
                &format!("`chmod {closed} '{}'`", path.display()),
            ];
            assert_told(&told, FAILED, &says.map(String::as_str));
        }
        assert_eq!((!path.is_dir()).then(|| fs::read(&path).expect("bytes")), before, "{name}");
        let hint = format!("chmod {closed} '{}'", path.display());
        assert!(Command::new("sh").args(["-c", &hint]).status().is_ok_and(|s| s.success()));
    }
    world.restart_server().await;
    assert_eq!(device_names(&world).await, ["laptop"], "nothing was done by a command that was refused");
}

#[tokio::test]
async fn a_device_state_that_others_can_read_is_refused_until_the_hint_is_followed() {
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let path = identity_file(&device);
    let says = |mode: &str, path: &Path| format!("`{}` can be read by other users (mode {mode})", path.display());
    for mode in [0o644, 0o640, 0o602] {
        chmod(&path, mode);
        for told in [up(&device).await, device.adit(&["status"], "").await] {
            assert_told(&told, FAILED, &[&says(&format!("{mode:o}"), &path), &format!("`chmod 600 '{}'`", path.display())]);
        }
    }
    chmod(&path, 0o600);
    device.up(&[]).await;

    let code = world.invite("desk").await;
    let desk = world.stranger("desk");
    let places = [desk.dir.clone(), desk.dir.join("servers"), desk.dir.join("servers/default")];
    fs::create_dir_all(&places[2]).expect("a directory");
    for place in &places {
        chmod(place, 0o700);
    }
    for open in &places {
        chmod(open, 0o755);
        let told = desk.enroll(&code, &[]).await;
        assert_told(&told, FAILED, &[&says("755", open), &format!("`chmod 700 '{}'`", open.display())]);
        assert!(!desk.dir.join("servers/default/pending.json").exists(), "no key was made where others can read it");
        chmod(open, 0o700);
    }
    assert_ok(&desk.enroll(&code, &[]).await);
}

/// Somebody without root's rights: ourselves, or `nobody` if we have them.
struct Ordinary {
    as_root: bool,
    dir: tempfile::TempDir,
}

impl Ordinary {
    fn new() -> Option<Self> {
        let as_root = fs::read_to_string("/proc/self/status")
            .ok()?
            .lines()
            .any(|line| line.strip_prefix("Uid:").is_some_and(|ids| ids.split_whitespace().nth(1) == Some("0")));
        let dir = tempfile::tempdir().expect("a directory");
        chmod(dir.path(), 0o711);
        for name in ["adit", "aditd"] {
            std::os::unix::fs::symlink(PROGRAM, dir.path().join(name)).expect("a link");
        }
        let ordinary = Self { as_root, dir };
        let runs = ordinary.run("aditd", &["--version"]);
        if runs.is_none_or(|ended| ended.code != Some(0)) {
            skip::because("root can't give up its rights here with `setpriv`");
            return None;
        }
        Some(ordinary)
    }

    /// A directory of their own.
    fn home(&self, name: &str) -> PathBuf {
        let home = self.dir.path().join(name);
        fs::create_dir(&home).expect("a directory");
        chmod(&home, 0o700);
        if self.as_root {
            std::os::unix::fs::chown(&home, Some(65534), Some(65534)).expect("chown");
        }
        home
    }

    fn run(&self, program: &str, args: &[&str]) -> Option<Ended> {
        let program = self.dir.path().join(program);
        let mut command = if self.as_root {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]).arg(&program);
            command
        } else {
            Command::new(&program)
        };
        let out = command.args(args).env("NO_COLOR", "1").env_remove("JOURNAL_STREAM").stdin(Stdio::null()).output();
        out.ok().map(Ended::from)
    }
}

#[tokio::test]
async fn a_state_that_may_not_be_read_is_told_with_its_owner_as_the_cure() {
    let Some(ordinary) = Ordinary::new() else { return };
    let home = ordinary.home("home");
    let state = home.join("aditd");
    let args = |command: &[&'static str]| -> Vec<String> {
        let command = command.iter().map(ToString::to_string);
        command.chain(["--state-dir".to_owned(), text(&state).to_owned()]).collect()
    };
    let aditd = |command: &[&'static str]| {
        let args = args(command);
        ordinary.run("aditd", &args.iter().map(String::as_str).collect::<Vec<_>>()).expect("aditd runs")
    };
    assert_ok(&aditd(&["init"]));
    for name in ["ca.key", "endpoint.json", "register.sqlite", ""] {
        let path = if name.is_empty() { state.clone() } else { state.join(name) };
        chmod(&path, 0o000);
        for command in [&["serve", "--listen", "127.0.0.1:0"][..], &["invite", "laptop"], &["device", "list"]] {
            let told = aditd(command);
            assert_told(&told, FAILED, &["Caused by: ", "run this as the owner of", "--state-dir"]);
            assert!(told.stderr.to_lowercase().contains("permission denied"), "{}", told.stderr);
        }
        chmod(&path, if path.is_dir() { 0o700 } else { 0o600 });
    }
    assert_ok(&aditd(&["invite", "laptop"]));

    // And one that may not be written.
    let place = home.join("closed");
    fs::create_dir(&place).expect("a directory");
    chmod(&place, 0o500);
    if ordinary.as_root {
        std::os::unix::fs::chown(&place, Some(65534), Some(65534)).expect("chown");
    }
    let told = ordinary.run("aditd", &["init", "--state-dir", text(&place.join("state"))]).expect("aditd runs");
    assert_told(&told, FAILED, &["Permission denied", "run this as the owner of"]);
}

#[tokio::test]
async fn a_port_below_1024_is_refused_to_an_ordinary_user_with_the_way_out() {
    let first = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap_or_default();
    if first.trim().parse::<u16>().is_ok_and(|first| first < 2) && skip::because("every port is free to everybody here") {
        return;
    }
    let Some(ordinary) = Ordinary::new() else { return };
    let state = ordinary.home("server");
    let told = ordinary.run("aditd", &["serve", "--listen", "127.0.0.1:1", "--state-dir", text(&state)]).expect("aditd runs");
    assert_told(
        &told,
        FAILED,
        &["error: cannot listen on 127.0.0.1:1 (UDP)\n  Caused by: Permission denied", "above 1023 with --listen"],
    );

    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let home = ordinary.home("device");
    let place = home.join("servers/default");
    fs::create_dir_all(&place).expect("a directory");
    fs::copy(identity_file(&device), place.join("identity.json")).expect("copied");
    if ordinary.as_root {
        for path in [home.join("servers"), place.clone(), place.join("identity.json")] {
            chmod(&path, if path.is_dir() { 0o700 } else { 0o600 });
            std::os::unix::fs::chown(&path, Some(65534), Some(65534)).expect("chown");
        }
    }
    let told = ordinary.run("adit", &["up", "--listen", "127.0.0.1:1", "--state-dir", text(&home)]).expect("adit runs");
    assert_told(
        &told,
        FAILED,
        &["error: cannot listen on 127.0.0.1:1\n  Caused by: Permission denied", "choose another with --listen"],
    );
}

#[tokio::test]
async fn a_register_that_is_damaged_is_named_and_left_as_it_is() {
    let mut world = World::start(PROGRAM).await;
    world.device("laptop").await;
    world.kill_server().await;
    assert_eq!(device_names(&world).await, ["laptop"]);
    let path = world.state().join("register.sqlite");
    let good = fs::read(&path).expect("a register");
    assert!(good.len() >= 8192 && !path.with_extension("sqlite-wal").exists(), "all of it is in the one file");
    let mut scribbled = good.clone();
    scribbled[100..].fill(0xaa);
    let mut half = good.clone();
    half.truncate(good.len() / 2);
    let mut odd = good.clone();
    odd.truncate(good.len() - 100);
    for (what, bad) in [
        ("garbage", b"this is no register\n".repeat(500)),
        ("scribbled over behind its header", scribbled),
        ("cut in half", half),
        ("cut at its end", odd),
    ] {
        fs::write(&path, &bad).expect("written");
        for command in [
            &["serve", "--listen", "127.0.0.1:0"][..],
            &["invite", "desk"],
            &["device", "list"],
            &["device", "revoke", "laptop"],
            &["init"],
        ] {
            let told = world.aditd(command).await;
            let says = format!("error: the register `{}` is damaged\n  Caused by: ", path.display());
            assert_told(&told, FAILED, &[&says, "put it back from a backup"]);
            assert!(fs::read(&path).expect("bytes") == bad, "{what}: `{command:?}` has changed it");
        }
        for side in ["sqlite-wal", "sqlite-shm", "sqlite-journal"] {
            let _ = fs::remove_file(path.with_extension(side));
        }
    }
    fs::write(&path, good).expect("written");
    world.restart_server().await;
    assert_eq!(device_names(&world).await, ["laptop"], "the backup is as good as it was");
}

#[tokio::test]
async fn keys_of_the_server_that_are_damaged_are_named_and_never_replaced() {
    let mut world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    world.kill_server().await;
    for name in ["ca.key", "ca.crt", "endpoint.json", "server.key"] {
        let path = world.state().join(name);
        let good = fs::read(&path).expect("bytes");
        for bad in [&b""[..], b"garbage", &good[..good.len() / 2], &[0xff; 300]] {
            fs::write(&path, bad).expect("written");
            let told = world.aditd(&["serve", "--listen", "127.0.0.1:0"]).await;
            assert_told(
                &told,
                FAILED,
                &[&format!("error: `{}` is damaged: ", path.display()), &format!("put `{}` back from a backup", path.display())],
            );
            assert_eq!(fs::read(&path).expect("bytes"), bad, "{name}");
        }
        fs::write(&path, good).expect("written");
    }
    // The server's certificate alone is nothing that could be lost.
    fs::write(world.state().join("server.crt"), "garbage").expect("written");
    world.restart_server().await;
    device.up(&[]).await;
}

#[tokio::test]
async fn a_server_whose_authority_was_made_anew_makes_its_certificate_anew() {
    let mut world = World::start(PROGRAM).await;
    world.kill_server().await;
    for name in ["ca.key", "ca.crt"] {
        fs::remove_file(world.state().join(name)).expect("removed");
    }
    world.restart_server().await;
    assert_ok(&world.stranger("laptop").enroll(&world.invite("laptop").await, &[]).await);
}

#[tokio::test]
async fn an_authority_that_is_lost_is_not_made_anew_beside_its_certificate() {
    let mut world = World::start(PROGRAM).await;
    world.kill_server().await;
    let key = world.state().join("ca.key");
    let good = fs::read(&key).expect("a key");
    fs::remove_file(&key).expect("removed");
    let told = world.aditd(&["serve", "--listen", "127.0.0.1:0"]).await;
    assert_told(&told, FAILED, &["ca.key", "backup"]);
    assert!(!key.exists(), "a new key was made, which the backup would have to overwrite");
    fs::write(&key, good).expect("written");
    chmod(&key, 0o600);
    world.restart_server().await;
    world.device("laptop").await;
}

#[tokio::test]
async fn an_identity_that_is_damaged_is_named_and_left_as_it_is() {
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let other = stored(&world.device("other").await);
    let path = identity_file(&device);
    let good = fs::read(&path).expect("an identity");
    let whole = stored(&device);
    let with = |field: &str, value: Value| {
        let mut identity = whole.clone();
        identity[field] = value;
        identity.to_string().into_bytes()
    };
    for (what, bad) in [
        ("empty", Vec::new()),
        ("garbage", b"garbage".to_vec()),
        ("no text", vec![0xff; 100]),
        ("half", good[..good.len() / 2].to_vec()),
        ("another document", b"{}".to_vec()),
        ("no key", with("private_key", "nonsense".into())),
        ("the key of another device", with("private_key", other["private_key"].clone())),
        ("the certificate of another device", with("certificate", other["certificate"].clone())),
        ("a certificate that is none", with("certificate", "bm9uZQ==".into())),
        ("a door key that is none", with("door_key", "x".into())),
        ("an id that is none", with("device_id", "../../x".into())),
    ] {
        fs::write(&path, &bad).expect("written");
        for told in [up(&device).await, device.adit(&["status"], "").await] {
            assert_told(&told, FAILED, &[&format!("error: `{}` is damaged: ", path.display()), "adit enroll --replace"]);
        }
        assert_eq!(fs::read(&path).expect("bytes"), bad, "{what}");
        let told = device.enroll("garbage", &[]).await;
        assert_told(&told, FAILED, &["enrolled already"]);
    }
    fs::write(&path, with("schema", 99.into())).expect("written");
    assert_told(&up(&device).await, FAILED, &["was written by a newer version of adit", "use the newer adit"]);
    fs::write(&path, "garbage").expect("written");
    assert_ok(&device.enroll(&world.invite("again").await, &["--replace"]).await);
    device.up(&[]).await;
}

#[tokio::test]
async fn an_identity_whose_authority_is_damaged_is_named_before_anything_is_tried() {
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let path = identity_file(&device);
    for bad in ["bm9uZQ==", "no base64", ""] {
        let mut identity = stored(&device);
        identity["ca"] = bad.into();
        store(&device, &identity);
        let told = device.adit(&["status"], "").await;
        assert_told(&told, FAILED, &[&format!("error: `{}` is damaged: ", path.display()), "adit enroll --replace"]);
    }
}

#[tokio::test]
async fn a_key_that_waits_for_its_answer_and_is_damaged_is_made_anew() {
    let world = World::start(PROGRAM).await;
    let device = world.stranger("laptop");
    let place = device.dir.join("servers/default");
    fs::create_dir_all(&place).expect("a directory");
    for dir in [&device.dir, &device.dir.join("servers"), &place] {
        chmod(dir, 0o700);
    }
    let pending = place.join("pending.json");
    fs::write(&pending, "{\"code\": ").expect("written");
    chmod(&pending, 0o644);
    let code = world.invite("laptop").await;
    assert_told(&device.enroll(&code, &[]).await, FAILED, &["pending.json", "mode 644", "chmod 600"]);
    chmod(&pending, 0o600);
    assert_ok(&device.enroll(&code, &[]).await);
    assert!(!pending.exists());
}

#[tokio::test]
async fn a_port_that_is_taken_is_told_with_who_has_it() {
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let holder = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = holder.local_addr().expect("an address").to_string();
    let told = device.adit(&["up", "--listen", &taken], "").await;
    let pid = format!("(pid {})", std::process::id());
    assert_told(
        &told,
        FAILED,
        &[
            &format!("error: cannot listen on {taken}\n  Caused by: address already in use by `"),
            &pid,
            "adit up --listen localhost:11500",
        ],
    );
    let localhost = format!("localhost:{}", holder.local_addr().expect("an address").port());
    let told = device.adit(&["up", "--listen", &localhost], "").await;
    assert_told(&told, FAILED, &[&format!("error: cannot listen on {localhost}\n"), &pid]);

    let holder = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port");
    let taken = holder.local_addr().expect("an address");
    let state = world.scratch("second");
    let args = ["serve", "--listen", &taken.to_string(), "--state-dir", text(&state)];
    let told = world.programs.run("aditd", &args, "").await.expect("aditd runs");
    assert_told(
        &told,
        FAILED,
        &[&format!("error: cannot listen on {taken} (UDP)\n  Caused by: "), "ddress already in use", "another with --listen"],
    );
    assert!(told.stderr.contains(&pid), "it doesn't say who has it:\n{}", told.stderr);
}

#[tokio::test]
async fn a_second_process_for_one_state_is_refused_with_the_pid_of_the_first() {
    let world = World::start(PROGRAM).await;
    let told = world.aditd(&["serve", "--listen", "127.0.0.1:0"]).await;
    let pid = format!("it is running already (pid {})", world.aditd.pid());
    assert_told(&told, FAILED, &[&format!("cannot serve the state in `{}`", world.state().display()), &pid, "aditd status"]);
    let device = world.device("laptop").await;
    let first = device.up(&[]).await;
    let pid = format!("it is running already (pid {})", first.adit.pid());
    assert_told(&up(&device).await, FAILED, &["cannot start the tunnel `default`", &pid, "adit status"]);
    assert!(raw::exchange(first.address, ROOT).await.ends_with("Ollama is running"), "the first goes on");
}

#[tokio::test]
async fn what_is_not_running_or_not_enrolled_is_told_with_how_to_begin() {
    let mut world = World::start(PROGRAM).await;
    let stranger = world.stranger("laptop");
    for told in [up(&stranger).await, stranger.adit(&["status"], "").await, stranger.adit(&["status", "--json"], "").await] {
        assert_told(&told, FAILED, &["this device is not enrolled", "Caused by: there is no `", "aditd invite NAME"]);
    }
    assert!(!stranger.dir.exists());
    let device = world.device("desk").await;
    assert_told(&device.adit(&["status"], "").await, FAILED, &["adit is not running", "start it with `adit up`"]);
    world.kill_server().await;
    assert_told(&world.aditd(&["status"]).await, FAILED, &["aditd is not running on", "start it with `aditd serve`"]);
    fs::remove_dir_all(world.state()).expect("removed");
    for command in [&["invite", "x"][..], &["device", "list"], &["device", "revoke", "x"]] {
        assert_told(&world.aditd(command).await, FAILED, &["there is no server state in", "aditd init"]);
    }
    assert!(!world.state().exists());
}

#[tokio::test]
async fn a_wrong_configuration_is_refused_with_the_place_in_the_file() {
    let world = World::start(PROGRAM).await;
    let file = world.scratch("aditd.toml");
    let state = world.scratch("unmade");
    let serve = async || {
        let args = ["serve", "--config", text(&file), "--state-dir", text(&state)];
        world.programs.run("aditd", &args, "").await.expect("aditd runs")
    };
    let missing = serve().await;
    assert_told(&missing, USAGE, &["error: cannot read the configuration `", "Caused by: No such file", "--config"]);
    for (what, says) in [
        ("listen_on = '127.0.0.1:1'", "unknown field `listen_on`"),
        ("listen = '127.0.0.1:1'", "line 1"),
        ("\n\nlisten = [", "line 3"),
        ("allow_from = ['10.0.0.0/99']", "line 1"),
        ("upstream = 'http://10.0.0.1:11434'", "`10.0.0.1:11434` is not a loopback address"),
        ("upstream = 'ftp://127.0.0.1:1'", "is no upstream"),
        ("upstream = 11434", "line 1"),
    ] {
        fs::write(&file, what).expect("written");
        let says_file = format!("error: the configuration `{}` is wrong\n  Caused by: ", file.display());
        assert_told(&serve().await, USAGE, &[&says_file, says, "it may say: state_dir, listen, allow_from, upstream, "]);
    }
    for (what, says) in [
        ("listen = ['nonsense']", "`nonsense` is no address to listen on"),
        ("listen = ['gpu.lan:1']", "`gpu.lan:1` is no address to listen on"),
        ("listen = ['0.0.0.0:0']", "refusing to listen on 0.0.0.0:0"),
        ("advertise = ['nowhere']", "`nowhere` can't be advertised"),
        ("device_life = 'a while'", "`a while` is no life for a certificate"),
        ("device_life = '0s'", "is no life for a certificate"),
    ] {
        fs::write(&file, what).expect("written");
        assert_told(&serve().await, USAGE, &[says]);
    }
    fs::write(&file, format!("advertise = [{}]", "'a:1',".repeat(9))).expect("written");
    let many = serve().await;
    assert_eq!(many.code, Some(USAGE));
    assert!(many.stderr.contains("9 addresses are advertised, at most 8 fit"), "{}", many.stderr);
    fs::write(&file, [0xff, 0xfe]).expect("written");
    assert_told(&serve().await, USAGE, &["cannot read the configuration"]);
    assert!(!state.exists(), "refused before anything is made");
}

#[tokio::test]
async fn a_command_line_that_is_wrong_is_refused_with_what_would_be_right() {
    let world = World::start(PROGRAM).await;
    let state = world.scratch("unmade");
    let run = async |program: &str, args: &[&str]| {
        let args = [args, &["--state-dir", text(&state)]].concat();
        world.programs.run(program, &args, "").await.expect("it runs")
    };
    for (args, says) in [
        (&["serve", "--upstream", "http://10.0.0.1:11434"][..], "not a loopback address"),
        (&["serve", "--upstream", "0.0.0.0:11434"], "not a loopback address"),
        (&["serve", "--upstream", "gpu.lan:11434"], "not a loopback address"),
        (&["serve", "--upstream", "https://127.0.0.1"], "is no upstream"),
        (&["serve", "--allow-from", "everybody"], "'everybody' for '--allow-from"),
        (&["serve", "--lisen", "127.0.0.1:0"], "'--lisen'"),
        (&["serve", "now"], "'now'"),
        (&["inivte", "laptop"], "'inivte'"),
        (&["invite"], "<DEVICE>"),
        (&["invite", "../laptop"], "a name has 1 to 63"),
        (&["invite", "lap top"], "a name has 1 to 63"),
        (&["invite", "laptop", "--ttl", "soon"], "'soon' for '--ttl"),
        (&["device", "delete", "laptop"], "'delete'"),
    ] {
        assert_usage(&run("aditd", args).await, &[says]);
    }
    for (args, says) in [
        (&["up", "--listen", "0.0.0.0:11434"][..], "only this machine's own loopback"),
        (&["up", "--listen", "192.168.1.7:1"], "only this machine's own loopback"),
        (&["up", "--listen", "nonsense"], "write it as localhost:PORT"),
        (&["up", "--hold", "long"], "'long' for '--hold"),
        (&["up", "../x"], "a name has 1 to 63"),
        (&["enroll", "--name", "a/b"], "a name has 1 to 63"),
        (&["enroll", "--force"], "'--force'"),
        (&["down"], "'down'"),
    ] {
        assert_usage(&run("adit", args).await, &[says]);
    }
    for ttl in ["0s", "8d"] {
        assert_told(
            &run("aditd", &["invite", "laptop", "--ttl", ttl]).await,
            USAGE,
            &["from one second to seven days", "`--ttl 1h`"],
        );
    }
    for wrong in ["localhost", "127.0.0.1:http", "1.2.3"] {
        let says = format!("`{wrong}` is no address to listen on");
        assert_told(&run("aditd", &["serve", "--listen", wrong]).await, USAGE, &[&says, "IP:PORT"]);
    }
    assert!(!state.exists(), "refused before anything is made");
}

#[tokio::test]
async fn a_server_that_knows_no_address_of_its_own_makes_no_code_that_leads_nowhere() {
    let mut world = World::start(PROGRAM).await;
    let port = world.address().await.port();
    let loopback = world.address().await.to_string();
    let open = format!("0.0.0.0:{port}");
    for flag in world.serve_flags.iter_mut().filter(|flag| **flag == loopback) {
        flag.clone_from(&open);
    }
    // As behind a router: nobody of the network that may come in is an interface of this machine.
    world.serve_flags.extend(["--allow-from", "203.0.113.0/24"].map(str::to_owned));
    world.kill_server().await;
    world.restart_server().await;
    let invited = world.aditd(&["invite", "laptop"]).await;
    if invited.code == Some(0) {
        let invitation: Invitation = invited.stdout.parse().expect("a code");
        assert!(!invitation.addresses.is_empty());
        let leads_here = |address: &String| address.ends_with(&format!(":{port}"));
        assert!(invitation.addresses.iter().all(leads_here), "{:?} but the server is on port {port}", invitation.addresses);
    } else {
        assert_told(&invited, FAILED, &["--advertise"]);
    }
}

/// An authority of the test's own, with a clock of its own.
struct Authority {
    dir: PathBuf,
    ca: Ca,
}

impl Authority {
    fn new(dir: &Path) -> Self {
        fs::create_dir(dir).expect("a directory");
        chmod(dir, 0o700);
        Self { dir: dir.to_owned(), ca: Ca::open(dir).expect("an authority") }
    }
}

/// A server that enrolls everybody, and whose clock is off by so much; with a code for it.
async fn server_with_clock(
    dir: &Path,
    certificate_off: time::Duration,
    devices_off: time::Duration,
) -> (quinn::Endpoint, String) {
    let authority = Authority::new(dir);
    let now = OffsetDateTime::now_utc();
    let identity = authority.ca.server_identity(&authority.dir, now + certificate_off).expect("an identity");
    let crypto = tls::server(Admit::Anybody, identity.chain, identity.key).expect("TLS");
    let config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    let endpoint = quinn::Endpoint::server(config, SocketAddr::from(([127, 0, 0, 1], 0))).expect("an endpoint");
    let address = endpoint.local_addr().expect("an address").to_string();
    let invitation = Invitation {
        addresses: vec![address.clone()],
        ca: authority.ca.key_hash(),
        expires: unix_now() + 600,
        secret: Secret::generate(),
    };
    let server = endpoint.clone();
    tokio::spawn(async move {
        while let Some(incoming) = server.accept().await {
            let Ok(connection) = incoming.await else { continue };
            let Ok((mut send, mut recv)) = connection.accept_bi().await else {
                continue;
            };
            let request: EnrollRequest = frame::read(&mut recv).await.expect("a request");
            let csr = BASE64.decode(request.csr.as_bytes()).expect("base64");
            let key = DeviceKey::from_csr(&csr).expect("a key");
            let device_id = common::identity::DeviceId::generate();
            let issued = authority
                .ca
                .issue_device(device_id, &key, now + devices_off, std::time::Duration::from_secs(30 * 86_400))
                .expect("a certificate");
            let enrolled = Enrolled {
                device: "laptop".parse().expect("a name"),
                device_id,
                certificate: BASE64.encode(&issued.certificate),
                ca: BASE64.encode(authority.ca.certificate()),
                door_key: DoorKey::generate(),
                addresses: vec![address.clone()],
                services: Vec::new(),
                relay_port: None,
            };
            frame::write(&mut send, &EnrollAnswer::Enrolled(Box::new(enrolled))).await.expect("sent");
            send.finish().expect("finished");
            connection.closed().await;
        }
    });
    (endpoint, invitation.code())
}

#[tokio::test]
async fn clocks_that_are_a_year_apart_are_told_when_enrolling_and_nothing_is_kept() {
    let world = World::start(PROGRAM).await;
    let year = time::Duration::days(365);
    let none = time::Duration::ZERO;
    let unmade = |device: &Device| assert!(!identity_file(device).exists());

    let (_server, code) = server_with_clock(&world.scratch("ahead"), year, year).await;
    let device = world.stranger("ahead");
    let told = device.enroll(&code, &[]).await;
    assert_told(
        &told,
        FAILED,
        &[
            "error: cannot enroll\n  Caused by: the server's certificate is not valid at this computer's time, 20",
            "set this computer's clock",
        ],
    );
    unmade(&device);

    for (name, off) in [("behind", -year), ("half-ahead", year)] {
        let (_server, code) = server_with_clock(&world.scratch(name), none, off).await;
        let device = world.stranger(name);
        let told = device.enroll(&code, &[]).await;
        assert_told(
            &told,
            FAILED,
            &["error: the new certificate is not valid at this computer's time\n  Caused by: the clocks", "timedatectl"],
        );
        unmade(&device);
    }

    // And where all is well nothing of this is said.
    let (_server, code) = server_with_clock(&world.scratch("right"), none, none).await;
    assert_ok(&world.stranger("right").enroll(&code, &[]).await);
}

#[tokio::test]
async fn a_certificate_that_the_server_finds_out_of_its_time_is_told_with_a_cure_that_works() {
    let world = World::start(PROGRAM).await;
    let authority = Ca::open(&world.state()).expect("the authority");
    for (name, days, cure) in [("ahead", 365, "clock"), ("long-over", -365, "adit enroll --replace")] {
        let device = world.device(name).await;
        let mut identity = stored(&device);
        let key = rcgen::KeyPair::from_pem(identity["private_key"].as_str().expect("a key")).expect("a key");
        let key = DeviceKey::from_spki(&rcgen::PublicKeyData::subject_public_key_info(&key)).expect("a key");
        let id = identity["device_id"].as_str().and_then(|id| id.parse().ok()).expect("an id");
        let at = OffsetDateTime::now_utc() + time::Duration::days(days);
        let issued = authority.issue_device(id, &key, at, std::time::Duration::from_secs(30 * 86_400)).expect("a certificate");
        identity["certificate"] = BASE64.encode(&issued.certificate).into();
        store(&device, &identity);
        let mut up = device.start(&["--hold", "0s"]).await;
        up.adit.says(cure).await;
        let answer = raw::exchange(up.address, ROOT).await;
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains(cure), "{name}: {answer}");
    }
}

/// That a command failed for want of room and said so; SQLite calls some of its ways to run out of it an I/O error.
#[track_caller]
fn assert_told_full(ended: &Ended) {
    assert_told(ended, FAILED, &["\n  Caused by: "]);
    let cure = ["free some disk space and run it again: nothing was changed", "look at the free space of its disk"];
    assert!(cure.iter().any(|words| ended.stderr.contains(words)), "{}", ended.stderr);
}

#[tokio::test]
async fn a_disk_that_is_full_while_a_server_is_prepared_costs_nothing() {
    let Some(disk) = SmallDisk::mount("256k") else { return };
    let world = World::start(PROGRAM).await;
    let (mut failures, mut successes) = (0, 0);
    for pages in 0..=40 {
        let state = disk.path("state");
        let init = async || world.programs.run("aditd", &["init", "--state-dir", text(&state)], "").await.expect("aditd runs");
        disk.fill_but(pages);
        let first = init().await;
        if first.code == Some(0) {
            successes += 1;
        } else {
            failures += 1;
            assert_told_full(&first);
        }
        disk.free();
        assert_ok(&init().await);
        let left: Vec<_> = fs::read_dir(&state).expect("a directory").map(|e| e.expect("an entry").file_name()).collect();
        assert!(left.iter().all(|name| !name.to_string_lossy().starts_with(".tmp")), "half-written files stay: {left:?}");
        fs::remove_dir_all(&state).expect("removed");
    }
    assert!(failures >= 5 && successes >= 1, "{failures} failures, {successes} successes");
}

#[tokio::test]
async fn a_disk_that_is_full_when_somebody_is_invited_makes_no_code() {
    let Some(disk) = SmallDisk::mount("512k") else { return };
    let world = World::start(PROGRAM).await;
    let state = disk.path("state");
    let run = async |args: &[&str]| {
        let args = [args, &["--state-dir", text(&state)]].concat();
        world.programs.run("aditd", &args, "").await.expect("aditd runs")
    };
    assert_ok(&run(&["init"]).await);
    let mut failures = 0;
    for pages in 0..=16 {
        disk.fill_but(pages);
        let invited = run(&["invite", "laptop"]).await;
        if invited.code != Some(0) {
            failures += 1;
            assert_told_full(&invited);
        }
        disk.free();
        assert_ok(&run(&["invite", "laptop"]).await);
        assert_ok(&run(&["device", "list"]).await);
    }
    assert!(failures > 0, "the disk was never full");
}

#[tokio::test]
async fn a_disk_that_is_full_on_the_device_costs_neither_the_code_nor_the_device() {
    let Some(disk) = SmallDisk::mount("256k") else { return };
    let world = World::start(PROGRAM).await;
    let mut failures = 0;
    for pages in 0..=4 {
        let name = format!("laptop{pages}");
        let code = world.invite(&name).await;
        let state = disk.path(&name);
        let enroll =
            async || world.programs.run("adit", &["enroll", "--state-dir", text(&state)], &code).await.expect("adit runs");
        disk.fill_but(pages);
        let first = enroll().await;
        disk.free();
        if first.code != Some(0) {
            failures += 1;
            assert_told_full(&first);
            assert!(!state.join("servers/default/identity.json").exists());
            assert_ok(&enroll().await);
        }
        let place = fs::read_dir(state.join("servers/default")).expect("a directory");
        let left = place.map(|e| e.expect("an entry").file_name());
        let left: Vec<_> = left.filter(|name| name != "lock").collect();
        assert_eq!(left, ["identity.json"]);
        assert_eq!(device_names(&world).await.iter().filter(|n| **n == name).count(), 1);
    }
    assert!((2..=4).contains(&failures), "{failures}");
}

#[tokio::test]
async fn a_disk_that_is_full_on_the_server_refuses_a_device_and_keeps_its_invitation_good() {
    let Some(disk) = SmallDisk::mount("1m") else { return };
    let world = World::start(PROGRAM).await;
    let state = disk.path("state");
    let upstream = format!("http://{}", world.ollama.addr());
    let mut aditd = world
        .programs
        .start("aditd", &["serve", "--listen", "127.0.0.1:0", "--upstream", &upstream, "--state-dir", text(&state), "-v"])
        .expect("aditd starts");
    aditd.ready().await.expect("aditd is ready");
    let run = async |args: &[&str]| {
        let args = [args, &["--state-dir", text(&state)]].concat();
        world.programs.run("aditd", &args, "").await.expect("aditd runs")
    };
    let earlier = world.stranger("earlier");
    assert_ok(&earlier.enroll(&run(&["invite", "earlier"]).await.stdout, &[]).await);
    let invited = run(&["invite", "laptop"]).await;
    assert_ok(&invited);
    disk.fill_but(0);
    let device = world.stranger("laptop");
    let told = device.enroll(&invited.stdout, &[]).await;
    let says = [
        "error: the server refused to enroll this device\n  Caused by: the server could not store the new device",
        "with the same code again",
    ];
    assert_told(&told, FAILED, &says);
    assert!(!identity_file(&device).exists());
    aditd.says("full").await;
    assert_no_defect(&aditd.log());
    // Those that are enrolled work on a full disk as ever.
    let up = earlier.up(&[]).await;
    assert!(raw::exchange(up.address, ROOT).await.ends_with("Ollama is running"));
    disk.free();
    assert_ok(&device.enroll(&invited.stdout, &[]).await);
    let up = device.up(&[]).await;
    assert!(raw::exchange(up.address, ROOT).await.ends_with("Ollama is running"));
    let listed = run(&["device", "list", "--json"]).await;
    let listed: Value = serde_json::from_str(&listed.stdout).expect("JSON");
    assert_eq!(listed["devices"].as_array().expect("devices").len(), 2, "{listed}");
    aditd.signal("TERM");
    drop(up);
    tokio::time::timeout(SOON, aditd.ended()).await.expect("it ends").expect("a status");
}

#[tokio::test]
async fn a_register_that_lost_all_it_held_is_told_and_never_taken_for_a_new_one() {
    let mut world = World::start(PROGRAM).await;
    world.device("laptop").await;
    world.kill_server().await;
    let path = world.state().join("register.sqlite");
    for beside in ["register.sqlite-wal", "register.sqlite-shm"] {
        let _ = fs::remove_file(world.state().join(beside));
    }
    fs::write(&path, "").expect("emptied");
    for command in [&["device", "list"][..], &["serve", "--listen", "127.0.0.1:0"]] {
        assert_told(&world.aditd(command).await, FAILED, &["register.sqlite", "it is empty", "backup"]);
    }
    assert_eq!(fs::metadata(&path).expect("it is there").len(), 0, "and nothing was written into it");
}
