//! State that is exposed, unreadable, damaged or lost: it is reported with its cure, not changed,
//! and never replaced.

use std::{fs, path::Path, process::Command, time::Duration};

use serde_json::Value;
use tests::{
    cli_assert::{FAILED, assert_ok, assert_told, up_to_its_end},
    state_files::{chmod, device_names, identity_file, store, stored, text},
    unprivileged::Ordinary,
    world::World,
};

use crate::PROGRAM;

#[tokio::test]
async fn a_server_state_that_others_can_read_is_refused_and_the_hint_works() {
    let mut world = World::start(PROGRAM).await;
    world.device("laptop").await;
    world.kill_server().await;
    let state = world.state();
    for name in
        ["ca.key", "ca.crt", "endpoint.json", "register.sqlite", "server.key", "server.crt", ""]
    {
        let path = if name.is_empty() { state.clone() } else { state.join(name) };
        let (open, closed) = if path.is_dir() { (0o755, "700") } else { (0o644, "600") };
        let before = (!path.is_dir()).then(|| fs::read(&path).expect("bytes"));
        chmod(&path, open);
        let mut commands: Vec<&[&str]> = vec![&["serve", "--listen", "127.0.0.1:0"], &["init"]];
        if !name.starts_with("server.") {
            commands.extend([
                &["invite", "desk"][..],
                &["device", "list"],
                &["device", "revoke", "laptop"],
            ]);
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
    assert_eq!(
        device_names(&world).await,
        ["laptop"],
        "nothing was done by a command that was refused"
    );
}

#[tokio::test]
async fn a_device_state_that_others_can_read_is_refused_and_the_hint_works() {
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let path = identity_file(&device);
    let says = |mode: &str, path: &Path| {
        format!("`{}` can be read by other users (mode {mode})", path.display())
    };
    for mode in [0o644, 0o640, 0o602] {
        chmod(&path, mode);
        for told in [up_to_its_end(&device).await, device.adit(&["status"], "").await] {
            assert_told(
                &told,
                FAILED,
                &[&says(&format!("{mode:o}"), &path), &format!("`chmod 600 '{}'`", path.display())],
            );
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
        assert_told(
            &told,
            FAILED,
            &[&says("755", open), &format!("`chmod 700 '{}'`", open.display())],
        );
        assert!(
            !desk.dir.join("servers/default/pending.json").exists(),
            "no key was made where others can read it"
        );
        chmod(open, 0o700);
    }
    assert_ok(&desk.enroll(&code, &[]).await);
}

#[tokio::test]
async fn an_unreadable_state_is_refused_with_its_owner_as_the_cure() {
    let Some(ordinary) = Ordinary::new(PROGRAM) else { return };
    let home = ordinary.home("home");
    let state = home.join("aditd");
    let args = |command: &[&'static str]| -> Vec<String> {
        let command = command.iter().map(ToString::to_string);
        command.chain(["--state-dir".to_owned(), text(&state).to_owned()]).collect()
    };
    let aditd = |command: &[&'static str]| {
        let args = args(command);
        ordinary
            .run("aditd", &args.iter().map(String::as_str).collect::<Vec<_>>())
            .expect("aditd runs")
    };
    assert_ok(&aditd(&["init"]));
    for name in ["ca.key", "endpoint.json", "register.sqlite", ""] {
        let path = if name.is_empty() { state.clone() } else { state.join(name) };
        chmod(&path, 0o000);
        for command in
            [&["serve", "--listen", "127.0.0.1:0"][..], &["invite", "laptop"], &["device", "list"]]
        {
            let told = aditd(command);
            assert_told(&told, FAILED, &["Caused by: ", "run this as the owner of", "--state-dir"]);
            assert!(told.stderr.to_lowercase().contains("permission denied"), "{}", told.stderr);
        }
        chmod(&path, if path.is_dir() { 0o700 } else { 0o600 });
    }
    assert_ok(&aditd(&["invite", "laptop"]));

    if ordinary.as_root {
        // A file of root's among this user's: the file is wrong, and not the user who runs this.
        std::os::unix::fs::chown(state.join("ca.key"), Some(0), Some(0)).expect("root may");
        let told = aditd(&["serve", "--listen", "127.0.0.1:0"]);
        let cure = format!("sudo chown --no-dereference {} '", Ordinary::NOBODY);
        assert_told(&told, FAILED, &["ca.key` belongs to another user (uid 0)", &cure]);
    }

    // The same for a state that can't be written.
    let place = home.join("closed");
    fs::create_dir(&place).expect("a directory");
    chmod(&place, 0o500);
    ordinary.give(&place);
    let told = ordinary
        .run("aditd", &["init", "--state-dir", text(&place.join("state"))])
        .expect("aditd runs");
    assert_told(&told, FAILED, &["Permission denied", "run this as the owner of"]);
}

#[tokio::test]
async fn a_damaged_register_is_reported_and_not_changed() {
    let mut world = World::start(PROGRAM).await;
    world.device("laptop").await;
    world.kill_server().await;
    assert_eq!(device_names(&world).await, ["laptop"]);
    let path = world.state().join("register.sqlite");
    let good = fs::read(&path).expect("a register");
    assert!(
        good.len() >= 8192 && !path.with_extension("sqlite-wal").exists(),
        "all of it is in the one file"
    );
    let mut scribbled = good.clone();
    scribbled[100..].fill(0xaa);
    let mut half = good.clone();
    half.truncate(good.len() / 2);
    let mut odd = good.clone();
    // The last page may be an empty one.
    odd.truncate(good.len() - 4096 - 100);
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
            let says =
                format!("error: the register `{}` is damaged\n  Caused by: ", path.display());
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
async fn a_register_that_becomes_unreadable_does_not_fill_the_log_and_stop_is_the_cure() {
    let mut world = World::start(PROGRAM).await;
    let up = world.up("laptop").await;
    world.device("desk").await;
    let path = world.state().join("register.sqlite");
    let change = |sql: &str| {
        rusqlite::Connection::open(&path).expect("opened").execute_batch(sql).expect("changed");
    };
    change("UPDATE device SET id = 'x-' || id WHERE name = 'desk'");
    world.aditd.says("register.sqlite` is damaged").await;
    let told = world.aditd(&["device", "revoke", "laptop"]).await;
    assert_told(&told, FAILED, &["is damaged", "`sudo systemctl stop aditd`"]);
    assert!(!told.stderr.contains("restart"), "{}", told.stderr);
    // The server reads the register four times a second: a log line per failure would show by then.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let log = world.aditd.log();
    let errors = log.lines().filter(|line| line.contains(" ERROR ")).count();
    assert!((1..=2).contains(&errors), "{errors} errors:\n{log}");

    change("UPDATE device SET id = substr(id, 3) WHERE name = 'desk'");
    world.aditd.says("the register can be read again").await;
    assert_eq!(device_names(&world).await, ["desk", "laptop"]);
    up.end().await;
}

#[tokio::test]
async fn an_emptied_register_is_reported_and_not_taken_for_a_new_one() {
    let mut world = World::start(PROGRAM).await;
    world.device("laptop").await;
    world.kill_server().await;
    let path = world.state().join("register.sqlite");
    for beside in ["register.sqlite-wal", "register.sqlite-shm"] {
        let _ = fs::remove_file(world.state().join(beside));
    }
    fs::write(&path, "").expect("emptied");
    for command in [&["device", "list"][..], &["serve", "--listen", "127.0.0.1:0"]] {
        assert_told(
            &world.aditd(command).await,
            FAILED,
            &["register.sqlite", "it is empty", "backup"],
        );
    }
    assert_eq!(
        fs::metadata(&path).expect("it is there").len(),
        0,
        "and nothing was written into it"
    );
}

#[tokio::test]
async fn damaged_keys_of_the_server_are_reported_and_never_replaced() {
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
                &[
                    &format!("error: `{}` is damaged: ", path.display()),
                    &format!("put `{}` back from a backup", path.display()),
                ],
            );
            assert_eq!(fs::read(&path).expect("bytes"), bad, "{name}");
        }
        fs::write(&path, good).expect("written");
    }
    // The server's certificate alone can be made again.
    fs::write(world.state().join("server.crt"), "garbage").expect("written");
    world.restart_server().await;
    device.up(&[]).await;
}

#[tokio::test]
async fn a_server_with_a_new_ca_makes_a_new_certificate() {
    let mut world = World::start(PROGRAM).await;
    world.kill_server().await;
    for name in ["ca.key", "ca.crt"] {
        fs::remove_file(world.state().join(name)).expect("removed");
    }
    world.restart_server().await;
    assert_ok(&world.stranger("laptop").enroll(&world.invite("laptop").await, &[]).await);
}

#[tokio::test]
async fn a_lost_ca_key_is_not_replaced_while_its_certificate_exists() {
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
async fn a_damaged_identity_is_reported_and_not_changed() {
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
        for told in [up_to_its_end(&device).await, device.adit(&["status"], "").await] {
            assert_told(
                &told,
                FAILED,
                &[&format!("error: `{}` is damaged: ", path.display()), "adit enroll --replace"],
            );
        }
        assert_eq!(fs::read(&path).expect("bytes"), bad, "{what}");
        let told = device.enroll("garbage", &[]).await;
        assert_told(&told, FAILED, &["enrolled already"]);
    }
    fs::write(&path, with("schema", 99.into())).expect("written");
    assert_told(
        &up_to_its_end(&device).await,
        FAILED,
        &["was written by a newer version of adit", "use the newer adit"],
    );
    fs::write(&path, "garbage").expect("written");
    assert_ok(&device.enroll(&world.invite("again").await, &["--replace"]).await);
    device.up(&[]).await;
}

#[tokio::test]
async fn an_identity_with_a_damaged_ca_is_reported_before_any_attempt() {
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let path = identity_file(&device);
    for bad in ["bm9uZQ==", "no base64", ""] {
        let mut identity = stored(&device);
        identity["ca"] = bad.into();
        store(&device, &identity);
        let told = device.adit(&["status"], "").await;
        assert_told(
            &told,
            FAILED,
            &[&format!("error: `{}` is damaged: ", path.display()), "adit enroll --replace"],
        );
    }
}

#[tokio::test]
async fn a_damaged_pending_key_is_replaced() {
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
    assert_told(
        &device.enroll(&code, &[]).await,
        FAILED,
        &["pending.json", "mode 644", "chmod 600"],
    );
    chmod(&pending, 0o600);
    assert_ok(&device.enroll(&code, &[]).await);
    assert!(!pending.exists());
}
