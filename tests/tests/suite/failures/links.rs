//! Root's commands on a directory of another user: whatever that user has put there, no file of
//! root's is read, changed, created or given away.

use std::{
    fs,
    os::unix::fs::{MetadataExt, symlink},
    path::{Path, PathBuf},
};

use tests::{
    cli_assert::{FAILED, assert_no_defect, assert_ok, assert_told},
    process::{Ended, Programs},
    state_files::{chmod, text},
    unprivileged::Ordinary,
    world::World,
};

use crate::PROGRAM;

const NOBODY: u32 = Ordinary::NOBODY;

/// A file of root's, and a path where there is none.
struct Canary {
    dir: tempfile::TempDir,
}

impl Canary {
    const BYTES: &str = "{\"time\":\"2026-01-01T00:00:00.000Z\",\"canary\":true}\n";

    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("canary"), Self::BYTES).expect("written");
        chmod(&dir.path().join("canary"), 0o600);
        // The other user may reach it: only its owner and mode protect it.
        chmod(dir.path(), 0o755);
        Self { dir }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("canary")
    }

    /// Puts something at `path` that leads to root's files, in one of three ways.
    fn plant(&self, path: &Path, way: usize) {
        match way {
            0 => symlink(self.path(), path).expect("a link"),
            1 => symlink(self.dir.path().join("made"), path).expect("a link"),
            _ => fs::hard_link(self.path(), path).expect("a link"),
        }
    }

    #[track_caller]
    fn assert_untouched(&self, what: &str) {
        let metadata = fs::metadata(self.path()).expect("the canary");
        assert_eq!(
            (metadata.uid(), metadata.gid(), metadata.mode() & 0o777),
            (0, 0, 0o600),
            "{what}"
        );
        assert_eq!(fs::read_to_string(self.path()).expect("read"), Self::BYTES, "{what}");
        let files = fs::read_dir(self.dir.path()).expect("listed").count();
        assert_eq!(files, 1, "{what}: something was made");
    }
}

/// Root, and a user without root's rights, if the test can be both.
fn both() -> Option<(Ordinary, Programs, tempfile::TempDir)> {
    let ordinary = Ordinary::new(PROGRAM).filter(|ordinary| ordinary.as_root)?;
    let dir = tempfile::tempdir().expect("a directory");
    let programs = Programs::link(Path::new(PROGRAM), dir.path()).expect("links");
    Some((ordinary, programs, dir))
}

async fn run(programs: &Programs, program: &str, args: &[&str], state: &Path) -> Ended {
    let args = [args, &["--state-dir", text(state)]].concat();
    let ended = programs.run(program, &args, "").await.expect("it runs");
    assert_no_defect(&ended.stderr);
    ended
}

#[tokio::test]
async fn roots_commands_on_a_services_state_follow_no_link_out_of_it() {
    let Some((ordinary, programs, _dir)) = both() else { return };
    let state = ordinary.home("state");
    let aditd = |args: &'static [&'static str]| run(&programs, "aditd", args, &state);
    assert_ok(&aditd(&["init"]).await);
    assert_ok(&aditd(&["invite", "first"]).await);
    let canary = Canary::new();
    for name in [
        "audit.jsonl",
        "audit-2026-01-01T000000.000Z.jsonl",
        "ca.crt",
        "ca.key",
        "control.sock",
        "endpoint.json",
        "register.sqlite",
        "register.sqlite-journal",
        "register.sqlite-shm",
        "register.sqlite-wal",
        "server.crt",
        "server.key",
    ] {
        let (path, aside) = (state.join(name), state.join("aside"));
        let was_there = fs::rename(&path, &aside).is_ok();
        for way in 0..3 {
            for command in [
                &["init"][..],
                &["invite", "desk"],
                &["device", "list"],
                &["audit", "--json"],
                &["status"],
            ] {
                canary.plant(&path, way);
                let ended = aditd(command).await;
                let what = format!("{name}, way {way}, {command:?}: {ended:?}");
                canary.assert_untouched(&what);
                assert!(!ended.stdout.contains("canary"), "{what}");
                let _ = fs::remove_file(&path);
            }
        }
        if was_there {
            fs::rename(&aside, &path).expect("back");
        }
    }
    assert_ok(&aditd(&["device", "list"]).await);
}

#[tokio::test]
async fn roots_commands_on_a_services_state_take_the_rights_of_the_service() {
    let Some((ordinary, programs, _dir)) = both() else { return };
    let state = ordinary.home("state");
    assert_ok(&run(&programs, "aditd", &["init"], &state).await);
    let canary = Canary::new();
    // A log that is a link to root's log can't be written; nothing else happens.
    canary.plant(&state.join("audit.jsonl"), 0);
    canary.plant(&state.join("usage.json"), 0);
    let args = ["serve", "--state-dir", text(&state), "--listen", "127.0.0.1:0"];
    let mut aditd = programs.start("aditd", &args).expect("it starts");
    aditd.ready().await.expect("it is ready");
    let status = fs::read_to_string(format!("/proc/{}/status", aditd.pid())).expect("its status");
    for (line, id) in [("Uid:", NOBODY), ("Gid:", NOBODY)] {
        let ids = status.lines().find_map(|l| l.strip_prefix(line)).expect("ids");
        assert!(ids.split_whitespace().all(|own| own == id.to_string()), "{line}{ids}");
    }
    // The kernel makes root the owner of these files if other processes of the same user may not
    // read them.
    for name in ["auxv", "environ", "mem"] {
        let file = format!("/proc/{}/{name}", aditd.pid());
        assert_eq!(fs::metadata(&file).expect("there").uid(), 0, "{file}");
    }
    let limits = fs::read_to_string(format!("/proc/{}/limits", aditd.pid())).expect("limits");
    let core = limits.lines().find(|line| line.starts_with("Max core file size"));
    let core: Vec<_> = core.expect("a limit").split_whitespace().collect();
    assert_eq!(core[4..6], ["0", "0"], "no core dump");
    assert!(status.lines().any(|l| l.starts_with("CapEff:") && l.ends_with("0000000000000000")));
    assert_ok(&run(&programs, "aditd", &["invite", "desk"], &state).await);
    aditd.kill().await;
    canary.assert_untouched("serve");
    // The first start has created `lock`.
    fs::remove_file(state.join("lock")).expect("removed");
    for way in 0..3 {
        canary.plant(&state.join("lock"), way);
        let told = run(&programs, "aditd", &["serve", "--listen", "127.0.0.1:0"], &state).await;
        assert_told(&told, FAILED, &["lock"]);
        canary.assert_untouched("lock");
        fs::remove_file(state.join("lock")).expect("removed");
    }
    // The audit log still names root.
    fs::remove_file(state.join("audit.jsonl")).expect("removed");
    assert_ok(&run(&programs, "aditd", &["invite", "table"], &state).await);
    let line = fs::read_to_string(state.join("audit.jsonl")).expect("a log");
    let line: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    assert_eq!((&line["event"], &line["uid"]), (&"invite".into(), &0.into()), "{line}");
    for file in fs::read_dir(&state).expect("listed") {
        let path = file.expect("a file").path();
        let owner = fs::symlink_metadata(&path).expect("its owner").uid();
        assert!(owner == NOBODY || path.is_symlink(), "{} is uid {owner}'s", path.display());
    }
}

#[tokio::test]
async fn files_and_directories_of_other_users_are_refused() {
    let Some((ordinary, programs, dir)) = both() else { return };
    let state = dir.path().join("state");
    assert_ok(&run(&programs, "aditd", &["init"], &state).await);
    // A file of another user in root's own state.
    for name in ["ca.key", "register.sqlite", "endpoint.json"] {
        ordinary.give(&state.join(name));
        let told = run(&programs, "aditd", &["device", "list"], &state).await;
        assert_told(&told, FAILED, &[name, "belongs to another user (uid 65534)", "sudo chown"]);
        std::os::unix::fs::chown(state.join(name), Some(0), Some(0)).expect("chown");
    }
    assert_ok(&run(&programs, "aditd", &["device", "list"], &state).await);
    // Root's state in a directory of another user, who could replace it.
    let home = ordinary.home("home");
    let theirs = home.join("aditd");
    fs::rename(&state, &theirs).expect("moved");
    for command in [&["device", "list"][..], &["init"], &["status"]] {
        let told = run(&programs, "aditd", command, &theirs).await;
        assert_told(&told, FAILED, &["another user (uid 65534) can replace", text(&home)]);
    }
    // A log in a directory of another user is not written, and the command says so.
    let logs = ordinary.home("logs");
    let config = dir.path().join("aditd.toml");
    fs::write(&config, format!("audit_dir = '{}'", logs.display())).expect("written");
    let state = dir.path().join("state");
    assert_ok(&run(&programs, "aditd", &["init"], &state).await);
    let args = ["invite", "desk", "--config", text(&config)];
    let ended = run(&programs, "aditd", &args, &state).await;
    assert_ok(&ended);
    assert!(
        ended.stderr.contains("this could not be written to the audit log"),
        "{}",
        ended.stderr
    );
    assert_eq!(fs::read_dir(&logs).expect("listed").count(), 0);
}

#[tokio::test]
async fn roots_commands_on_a_users_profile_follow_no_link_out_of_it() {
    let Some((ordinary, programs, _dir)) = both() else { return };
    let world = World::start(PROGRAM).await;
    let home = ordinary.home("home");
    let canary = Canary::new();
    let enroll = async |name: &str, flags: &[&str]| {
        let code = world.invite(name).await;
        let args = [&["enroll", "--state-dir", text(&home)], flags].concat();
        programs.run("adit", &args, &code).await.expect("it runs")
    };
    assert_ok(&enroll("laptop", &[]).await);
    let place = home.join("servers/default");
    for path in [&home.join("servers"), &place, &place.join("identity.json")] {
        assert_eq!(fs::metadata(path).expect("there").uid(), NOBODY, "{}", path.display());
    }
    let names = ["lock", "pending.json", "identity.json", "control.sock"];
    for (i, name) in names.into_iter().enumerate() {
        let (path, aside) = (place.join(name), place.join("aside"));
        let was_there = fs::rename(&path, &aside).is_ok();
        for way in 0..3 {
            canary.plant(&path, way);
            let ended = enroll(&format!("laptop-{i}-{way}"), &["--replace"]).await;
            canary.assert_untouched(&format!("{name}, way {way}: {ended:?}"));
            for command in [&["status"][..], &["up", "--carrier", "ssh"]] {
                let ended = run(&programs, "adit", command, &home).await;
                canary.assert_untouched(&format!("{name}, way {way}, {command:?}: {ended:?}"));
            }
            let _ = fs::remove_file(&path);
        }
        if was_there {
            fs::rename(&aside, &path).expect("back");
        }
    }
}
