//! One command brings a bare box to the first token, whatever its login shell is.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use tests::{
    bare_box::{BareBox, Kind},
    terminal::Terminal,
    world::SOON,
};

use crate::PROGRAM;

/// Installs, uses, installs again and removes on a box of this kind.
async fn from_nothing_to_nothing(kind: Kind) {
    let Some(gpu) = BareBox::start(PROGRAM, kind).await else { return };
    let before = gpu.everything();
    let up = gpu.up(&gpu.up_args(&["--yes"])).await;
    gpu.has_tokens(&up).await;
    let log = up.adit.log();
    assert!(log.contains("will\n  1. upload aditd"), "the plan is told: {log}");
    assert!(log.contains("crontab"), "and what makes it last: {log}");
    up.end().await;
    // Nobody is logged in any more.
    let servers = gpu.servers();
    assert_eq!(servers.len(), 1, "{servers:?}");
    let installed = gpu.everything();
    // A second time it is only the tunnel: nobody is asked, and no program is needed.
    let up = gpu.up(&["up", &gpu.url, "--listen", "127.0.0.1:0", "-v"]).await;
    gpu.has_tokens(&up).await;
    up.end().await;
    assert_eq!(gpu.servers(), servers);
    let programs = |all: &BTreeMap<PathBuf, (u64, u64)>| {
        let mut all = all.clone();
        all.retain(|path, _| path.ends_with("aditd") && path.is_file());
        all
    };
    assert_eq!(programs(&gpu.everything()), programs(&installed));
    let removed = gpu.adit(&["remove", &gpu.url, "--yes"]).await;
    assert_eq!(removed.code, Some(0), "{}", removed.stderr);
    assert_eq!(gpu.servers(), Vec::<String>::new());
    let mut left = gpu.everything();
    left.retain(|path, _| !before.contains_key(path));
    left.retain(|path, _| !is_of_fish(path));
    assert_eq!(left.into_keys().collect::<Vec<_>>(), Vec::<PathBuf>::new());
    let again = gpu.adit(&["up", "--listen", "127.0.0.1:0"]).await;
    assert!(again.stderr.contains("this device is not enrolled"), "{}", again.stderr);
}

/// Whether fish has made this: it keeps files of its own below `~/.local/share`.
fn is_of_fish(path: &Path) -> bool {
    let is_above = |below: &str| path.join(below).exists();
    path.iter().any(|part| part == "fish") || is_above("share/fish") || is_above("fish")
}

#[tokio::test]
async fn one_command_brings_a_bare_box_to_the_first_token_and_one_takes_it_back() {
    from_nothing_to_nothing(Kind::default()).await;
}

#[tokio::test]
async fn a_bash_that_talks_at_each_login_does_no_harm() {
    let talk = "echo 'Welcome to the box!'\nprintf 'installed=no\\nfailed=run\\n'\necho oops >&2\n";
    let files: &[_] = Box::leak(Box::new([(".bashrc", talk), (".profile", talk)]));
    from_nothing_to_nothing(Kind { shell: "/bin/bash", files, ..Kind::default() }).await;
}

#[tokio::test]
async fn a_login_shell_may_be_fish() {
    let files =
        &[(".config/fish/config.fish", "echo Welcome to fish\nset -x OLLAMA_HOST 0.0.0.0\n")];
    from_nothing_to_nothing(Kind { shell: "/usr/bin/fish", files, ..Kind::default() }).await;
}

#[tokio::test]
async fn a_login_shell_may_be_csh() {
    let files = &[(".cshrc", "echo Welcome to csh\nset noclobber\nalias rm 'rm -i'\n")];
    from_nothing_to_nothing(Kind { shell: "/bin/tcsh", files, ..Kind::default() }).await;
}

#[tokio::test]
async fn a_box_without_a_tool_for_digests_checks_the_program_by_itself() {
    let without = &["sha256sum", "shasum", "openssl", "setsid"];
    let Some(gpu) = BareBox::start(PROGRAM, Kind { without, ..Kind::default() }).await else {
        return;
    };
    // Without `setsid` there is no session in which the test's aditd may outlive its parent, so this
    // only looks at what is said before the start.
    let up = gpu.adit(&gpu.up_args(&["--dry-run"])).await;
    assert_eq!(up.code, Some(0), "{}", up.stderr);
    let digest = gpu.on_the_box(&format!("{} digest", gpu.binary.display()));
    let program = std::fs::read(&gpu.binary).expect("read");
    let sha = proto::crypto::sha256(&program);
    assert_eq!(digest.trim(), data_encoding::HEXLOWER.encode(&sha));
}

#[tokio::test]
async fn a_dry_run_prints_the_plan_and_changes_nothing() {
    let Some(gpu) = BareBox::start(PROGRAM, Kind::default()).await else { return };
    let before = gpu.everything();
    let dry = gpu.adit(&gpu.up_args(&["--dry-run"])).await;
    assert_eq!(dry.code, Some(0), "{}", dry.stderr);
    assert!(
        dry.stdout.starts_with(&format!("On {}, adit will\n  1. upload aditd", gpu.url))
            && dry.stdout.contains("forwards to Ollama at http://127.0.0.1:11434"),
        "{}",
        dry.stdout
    );
    assert_eq!(gpu.everything(), before);
    assert!(gpu.servers().is_empty() && !gpu.scratch("state/servers").exists());
}

#[tokio::test]
async fn a_person_is_asked_once_and_a_no_changes_nothing() {
    if Terminal::is_missing() {
        return;
    }
    let Some(gpu) = BareBox::start(PROGRAM, Kind::default()).await else { return };
    let before = gpu.everything();
    let mut terminal = gpu.at_a_terminal(&gpu.up_args(&[]));
    terminal.shows("Do that? (yes/no):").await;
    terminal.types("no").await;
    assert_eq!(terminal.ended().await, Some(2));
    assert_eq!(gpu.everything(), before);
    let mut terminal = gpu.at_a_terminal(&gpu.up_args(&[]));
    terminal.shows("Do that? (yes/no):").await;
    terminal.types("yes").await;
    terminal.shows("ready: Ollama on http://").await;
    assert_eq!(terminal.screen().matches("(yes/no)").count(), 1);
    assert_eq!(gpu.servers().len(), 1);
}

#[tokio::test]
async fn without_a_person_it_does_nothing_unless_it_was_told_to() {
    let Some(gpu) = BareBox::start(PROGRAM, Kind::default()).await else { return };
    let before = gpu.everything();
    let refused = gpu.adit(&gpu.up_args(&[])).await;
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    assert_eq!(gpu.everything(), before);
    // The cure works as it stands.
    let cure = refused.stderr.split("without being asked: `adit ").nth(1).expect("a cure");
    let cure = cure.split('`').next().expect("its end");
    let words: Vec<&str> = cure.split(' ').collect();
    let at = words.iter().position(|word| *word == "--state-dir").expect("the state is named");
    let words = [&words[..at], &["--listen", "127.0.0.1:0", "-v"]].concat();
    let up = gpu.up(&words).await;
    gpu.has_tokens(&up).await;
}

#[tokio::test]
async fn an_aditd_that_runs_is_kept_for_the_next_laptop() {
    let Some(gpu) = BareBox::start(PROGRAM, Kind::default()).await else { return };
    gpu.up(&gpu.up_args(&["--yes"])).await.end().await;
    let (servers, before) = (gpu.servers(), gpu.everything());
    // Another laptop, which has no aditd for the box and need not ask.
    std::fs::rename(gpu.scratch("state"), gpu.scratch("first")).expect("renamed");
    // It has the name of the first one. The cure is about the command that was typed.
    let taken = gpu.adit(&["up", &gpu.url, "--listen", "127.0.0.1:0"]).await;
    let cure = "run the same command again with `--device NAME`";
    assert!(taken.code == Some(1) && taken.stderr.contains(cure), "{taken:?}");
    let args = ["up", &gpu.url, "--device", "second", "--listen", "127.0.0.1:0", "-v"];
    let up = gpu.up(&args).await;
    gpu.has_tokens(&up).await;
    assert_eq!(gpu.servers(), servers);
    assert!(before.into_keys().all(|path| path.exists()));
}

#[tokio::test]
async fn what_an_upload_has_left_is_cleared_and_a_damaged_program_is_replaced() {
    let Some(gpu) = BareBox::start(PROGRAM, Kind::default()).await else { return };
    let sha = data_encoding::HEXLOWER
        .encode(&proto::crypto::sha256(&std::fs::read(&gpu.binary).expect("read")));
    gpu.on_the_box(&format!(
        "mkdir -p ~/.local/share/adit/bin/old.part ~/.local/share/adit/bin/new.part ~/.local/share/adit/bin/{sha}
         echo half >~/.local/share/adit/bin/old.part/aditd
         echo damaged >~/.local/share/adit/bin/{sha}/aditd
         touch -d '2 hours ago' ~/.local/share/adit/bin/old.part"
    ));
    let up = gpu.up(&gpu.up_args(&["--yes"])).await;
    gpu.has_tokens(&up).await;
    let left: Vec<_> = gpu
        .everything()
        .into_keys()
        .filter(|path| path.extension().is_some_and(|end| end == "part"))
        .collect();
    // The other one may be the upload of another laptop.
    assert!(left.len() == 1 && left[0].ends_with("new.part"), "{left:?}");
}

#[tokio::test]
async fn a_process_is_started_again_by_the_line_that_was_told() {
    let Some(gpu) = BareBox::start(PROGRAM, Kind::default()).await else { return };
    let mut up = gpu.up(&gpu.up_args(&["--yes"])).await;
    let first = gpu.servers();
    // As after a reboot: it is gone, and cron runs the line.
    gpu.on_the_box(&format!("kill -9 {}", first.join(" ")));
    let log = up.adit.log();
    let line =
        log.split("@reboot ").nth(1).and_then(|rest| rest.split('\'').next()).expect("a line");
    gpu.on_the_box(line);
    let again = async {
        loop {
            let servers = gpu.servers();
            if servers.len() == 1 && servers != first {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, again).await.expect("it runs again");
    gpu.has_tokens(&up).await;
    up.adit.stop().await;
}

#[tokio::test]
async fn the_systems_ssh_does_it_too() {
    let Some(gpu) = BareBox::start(PROGRAM, Kind::default()).await else { return };
    let up = gpu.up(&gpu.up_args(&["--yes", "--ssh-client", "system"])).await;
    gpu.has_tokens(&up).await;
    up.end().await;
    let removed = gpu.adit(&["remove", "--yes"]).await;
    assert_eq!(removed.code, Some(0), "{}", removed.stderr);
    assert!(gpu.servers().is_empty() && !gpu.home().join(".local").exists());
}

/// Starts an aditd whose state is in `~/theirs`.
const THEIRS: &str = "mkdir -p -m 700 ~/theirs
    setsid ~/.local/bin/aditd serve --state-dir ~/theirs --listen 127.0.0.1:0 >~/theirs.log 2>&1 </dev/null &
    tries=0
    until ~/.local/bin/aditd status --state-dir ~/theirs >/dev/null 2>&1; do
        tries=$((tries + 1)); [ $tries -lt 500 ] || { cat ~/theirs.log >&2; exit 1; }; sleep 0.02
    done";

/// A box on which the configuration of the machine names the state in `~/theirs`.
async fn configured() -> Option<BareBox> {
    let files: &[_] = &[
        (".bashrc", "export ADITD_CONFIG=$HOME/aditd.toml\n"),
        ("aditd.toml", "state_dir = 'theirs'\n"),
    ];
    let gpu =
        BareBox::start(PROGRAM, Kind { shell: "/bin/bash", files, ..Kind::default() }).await?;
    let binary = gpu.binary.display();
    gpu.on_the_box(&format!("mkdir -p ~/.local/bin && cp -L '{binary}' ~/.local/bin/aditd"));
    Some(gpu)
}

#[tokio::test]
async fn the_aditd_that_the_configuration_of_the_box_names_is_kept() {
    let Some(gpu) = configured().await else { return };
    gpu.on_the_box(THEIRS);
    let servers = gpu.servers();
    let up = gpu.up(&gpu.up_args(&["--yes"])).await;
    gpu.has_tokens(&up).await;
    let log = up.adit.log();
    assert!(log.contains("and is kept") && !log.contains("left alone"), "{log}");
    assert_eq!(gpu.servers(), servers);
    gpu.on_the_box("! test -e ~/.local/share/adit");
}

/// The devices in this state of the box, as JSON.
fn devices(gpu: &BareBox, state: &str) -> String {
    gpu.on_the_box(&format!("~/.local/bin/aditd device list --json --state-dir {state}"))
}

#[tokio::test]
async fn beside_another_aditd_the_device_enrolls_at_the_one_that_was_installed() {
    let Some(gpu) = configured().await else { return };
    let up = gpu.up(&gpu.up_args(&["--yes"])).await;
    gpu.has_tokens(&up).await;
    up.end().await;
    let own = gpu.servers();
    // That one runs now, and the commands of a login speak with it. The next laptop does not.
    gpu.on_the_box(THEIRS);
    std::fs::rename(gpu.scratch("state"), gpu.scratch("first")).expect("renamed");
    let up = gpu.up(&gpu.up_args(&["--yes", "--device", "second"])).await;
    gpu.has_tokens(&up).await;
    assert!(devices(&gpu, "~/.local/share/aditd").contains("second") && own.len() == 1);
    assert!(!devices(&gpu, "~/theirs").contains("second"));
    // It enrolls again at the same one, as cures say, which know the login alone.
    up.end().await;
    let again = gpu.adit(&["enroll", "--replace", "--device", "third", &gpu.url]).await;
    assert_eq!(again.code, Some(0), "{}", again.stderr);
    assert!(devices(&gpu, "~/.local/share/aditd").contains("third"));
    assert!(!devices(&gpu, "~/theirs").contains("third"));
}

/// Ends the aditd that adit has installed, as a reboot does.
const OWN_ENDS: &str = "pid=$(cat ~/.local/share/aditd/lock) && kill -9 $pid
    while kill -0 $pid 2>/dev/null; do sleep 0.02; done";

#[tokio::test]
async fn beside_another_aditd_the_one_that_was_installed_is_started_again() {
    let Some(gpu) = configured().await else { return };
    gpu.up(&gpu.up_args(&["--yes"])).await.end().await;
    gpu.on_the_box(OWN_ENDS);
    gpu.on_the_box(THEIRS);
    let theirs = gpu.servers();
    assert_eq!(theirs.len(), 1, "{theirs:?}");
    // Theirs is not the one to replace.
    let binary = gpu.binary.to_str().expect("a path");
    let upgrade = gpu.adit(&["upgrade", &gpu.url, "--yes", "--server-binary", binary]).await;
    let cure = format!("`adit up {}", gpu.url);
    assert!(upgrade.code == Some(1) && upgrade.stderr.contains(&cure), "{upgrade:?}");
    let up = gpu.up(&gpu.up_args(&["--yes"])).await;
    gpu.has_tokens(&up).await;
    let log = up.adit.log();
    assert!(!log.contains("Enrolled as"), "{log}");
    up.end().await;
    // Another laptop does the same.
    gpu.on_the_box(OWN_ENDS);
    std::fs::rename(gpu.scratch("state"), gpu.scratch("first")).expect("renamed");
    let up = gpu.up(&gpu.up_args(&["--yes", "--device", "second"])).await;
    gpu.has_tokens(&up).await;
    assert!(devices(&gpu, "~/.local/share/aditd").contains("second"));
    assert!(!devices(&gpu, "~/theirs").contains("second"));
    let servers = gpu.servers();
    assert!(servers.len() == 2 && servers.contains(&theirs[0]), "{servers:?}");
}
