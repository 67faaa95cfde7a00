//! What `adit remove` takes from a box, and what it leaves because it is somebody else's.

use std::time::Duration;

use serde_json::json;
use tests::{
    bare_box::{BareBox, Kind, UID},
    cli_assert::document,
    world::SOON,
};

use crate::PROGRAM;

/// Removes what adit has installed, and asserts that the server was not, and that this device still
/// knows it. Returns what was told.
async fn removed_in_part(gpu: &BareBox) -> serde_json::Value {
    let removed = gpu.adit(&["remove", "--yes", "--json"]).await;
    assert_eq!(removed.code, Some(0), "{}", removed.stderr);
    assert!(removed.stderr.contains("`adit forget default"), "{}", removed.stderr);
    assert!(!removed.stderr.contains("its state are removed"), "{}", removed.stderr);
    let told: serde_json::Value = serde_json::from_str(&removed.stdout).expect("JSON");
    assert!(told["removed"] == false && told["forgotten"].is_null(), "{told}");
    let known = gpu.adit(&["list", "--json"]).await.stdout;
    assert!(known.contains("default"), "{known}");
    told
}

#[tokio::test]
async fn an_aditd_that_another_program_serves_is_left_with_its_state() {
    let Some(gpu) = BareBox::start(PROGRAM, Kind::default()).await else { return };
    gpu.up(&gpu.up_args(&["--yes"])).await.end().await;
    let first = gpu.servers();
    let state = gpu.on_the_box("sed -n 's/^state=//p' ~/.local/share/adit/installed");
    let state = state.trim();
    // Somebody has started a program of their own for this state.
    gpu.on_the_box(&format!(
        "mkdir ~/own && cp -L ~/.local/share/adit/aditd ~/own/aditd
         tr '\\0' '\\n' </proc/{0}/cmdline | sed 1d >~/own/args
         kill -9 {0}
         tries=0
         while grep -qsx aditd /proc/[0-9]*/comm && [ $tries -lt 500 ]; do sleep 0.02; tries=$((tries + 1)); done
         set --; while read -r arg; do set -- \"$@\" \"$arg\"; done <~/own/args
         setsid ~/own/aditd \"$@\" >~/own/log 2>&1 </dev/null &",
        first[0]
    ));
    let serves = async {
        loop {
            let pid = gpu.on_the_box(&format!("cat '{state}/lock'"));
            let servers = gpu.servers();
            if servers != first && servers.len() == 1 && servers[0] == pid.trim() {
                return servers;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let own = tokio::time::timeout(SOON, serves).await.expect("it serves the state");
    let told = removed_in_part(&gpu).await;
    let left = told["left"].to_string();
    assert!(left.contains("which adit did not install") && left.contains(state), "{left}");
    assert_eq!(gpu.servers(), own);
    gpu.on_the_box(&format!("test -f '{state}/register.sqlite'"));
    // Nothing is left there that adit could remove.
    let told = removed_in_part(&gpu).await;
    assert_eq!(told["paths"], json!([]), "{told}");
    assert!(told["left"].to_string().contains(&own[0]), "{told}");
}

#[tokio::test]
async fn a_unit_of_others_that_does_not_run_is_left_with_the_state() {
    let Some(gpu) = BareBox::start(PROGRAM, Kind::default()).await else { return };
    // The machine's own units are out of sight, as root may write some.
    gpu.as_root("mount -t tmpfs tmpfs /usr/local/lib && mkdir -p /usr/local/lib/systemd/system");
    let user = "~/.config/systemd/user/aditd.service";
    let system = "/usr/local/lib/systemd/system/aditd.service";
    for (unit, text, is_theirs) in [
        (user, "ExecStart=/opt/aditd serve", true),
        (user, "ExecStart=/opt/aditd serve --state-dir %h/.local/share/aditd", true),
        (user, "# Not ADITD_STATE_DIR=/srv/other.\nExecStart=/opt/aditd serve", true),
        (user, "ExecStart=/opt/aditd serve --state-dir /srv/other", false),
        (system, "User=boxer\nExecStart=/opt/aditd serve", true),
        (system, "Environment=ADITD_STATE_DIR=$state\nExecStart=/opt/aditd serve", true),
        (system, "ExecStart=/opt/aditd serve", false),
    ] {
        gpu.up(&gpu.up_args(&["--yes"])).await.end().await;
        let state = gpu.on_the_box("sed -n 's/^state=//p' ~/.local/share/adit/installed");
        let state = state.trim();
        gpu.as_root(&format!(
            "state='{state}'; mkdir -p ~/.config \"$(dirname {unit})\"
             cat >{unit} <<END\n[Service]\n{text}\nEND
             chmod 644 {unit}; chown -R {UID}:{UID} ~/.config"
        ));
        let name = unit.trim_start_matches('~');
        if is_theirs {
            let left = removed_in_part(&gpu).await["left"].to_string();
            assert!(left.contains(name) && left.contains(state), "{text}: {left}");
            gpu.on_the_box(&format!("test -f {unit} && test -f '{state}/register.sqlite'"));
        } else {
            let told = document(&gpu.adit(&["remove", "--yes", "--json"]).await);
            assert!(told["removed"] == true && told["left"] == json!([]), "{text}: {told}");
            gpu.on_the_box(&format!("test -f {unit} && ! test -e '{state}'"));
        }
        assert_eq!(gpu.servers(), Vec::<String>::new());
        gpu.as_root(&format!("test ! -e ~/.local/share/adit && rm -rf '{state}' {unit}"));
        let _ = std::fs::remove_dir_all(gpu.scratch("state"));
    }
}

#[tokio::test]
async fn a_state_that_was_there_before_is_left() {
    let Some(gpu) = BareBox::start(PROGRAM, Kind::default()).await else { return };
    gpu.up(&gpu.up_args(&["--yes"])).await.end().await;
    // As if somebody had made the state by hand: nothing else is known of adit there.
    let state = gpu.on_the_box("sed -n 's/^state=//p' ~/.local/share/adit/installed");
    let state = state.trim();
    let pid = &gpu.servers()[0];
    gpu.on_the_box(&format!(
        "kill -9 {pid}; while kill -0 {pid} 2>/dev/null; do sleep 0.02; done; rm -r ~/.local/share/adit"
    ));
    std::fs::rename(gpu.scratch("state"), gpu.scratch("first")).expect("renamed");
    gpu.up(&gpu.up_args(&["--yes", "--device", "second"])).await.end().await;
    let left = removed_in_part(&gpu).await["left"].to_string();
    assert!(left.contains("was there before") && left.contains(state), "{left}");
    gpu.on_the_box(&format!("test -f '{state}/register.sqlite' && ! test -e ~/.local/share/adit"));
}

/// Makes the directory of the state before adit is there.
const STATE: &str = "mkdir -p -m 700 ~/.local ~/.local/share ~/.local/share/aditd";

#[tokio::test]
async fn a_state_on_a_disk_of_its_own_is_removed_but_for_its_directory() {
    let Some(gpu) = BareBox::start(PROGRAM, Kind::default()).await else { return };
    gpu.on_the_box(STATE);
    gpu.as_root(&format!(
        "mount -t tmpfs -o size=64m,uid={UID},gid={UID},mode=700 tmpfs ~/.local/share/aditd"
    ));
    gpu.up(&gpu.up_args(&["--yes"])).await.end().await;
    gpu.on_the_box("test -f ~/.local/share/aditd/register.sqlite");
    let told = document(&gpu.adit(&["remove", "--yes", "--json"]).await);
    assert!(told["removed"] == true && told["forgotten"] == "default", "{told}");
    assert!(told["left"].to_string().contains("the empty directory"), "{told}");
    let left =
        gpu.on_the_box("ls -A ~/.local/share ~/.local/share/aditd; ! test -e ~/.local/share/adit");
    assert!(!left.contains("register") && !left.contains("key"), "{left}");
}

#[tokio::test]
async fn a_state_that_cannot_be_removed_is_removed_by_the_next_try() {
    let Some(gpu) = BareBox::start(PROGRAM, Kind::default()).await else { return };
    gpu.up(&gpu.up_args(&["--yes"])).await.end().await;
    // A file that something is mounted on cannot be deleted.
    gpu.as_root("cd ~/.local/share/aditd && mount --bind register.sqlite register.sqlite");
    let told = removed_in_part(&gpu).await;
    assert!(told["left"].to_string().contains("register.sqlite"), "{told}");
    gpu.as_root("umount ~/.local/share/aditd/register.sqlite");
    let told = document(&gpu.adit(&["remove", "--yes", "--json"]).await);
    assert!(told["removed"] == true && told["left"] == json!([]), "{told}");
    gpu.on_the_box("! test -e ~/.local");
}

#[tokio::test]
async fn a_state_behind_a_link_is_removed_with_the_link() {
    let Some(gpu) = BareBox::start(PROGRAM, Kind::default()).await else { return };
    gpu.on_the_box(
        "mkdir -m 700 ~/.local ~/.local/share ~/disk && ln -s ~/disk ~/.local/share/aditd",
    );
    gpu.up(&gpu.up_args(&["--yes"])).await.end().await;
    gpu.on_the_box("test -f ~/disk/register.sqlite");
    let told = document(&gpu.adit(&["remove", "--yes", "--json"]).await);
    assert!(told["removed"] == true && told["left"] == json!([]), "{told}");
    gpu.on_the_box("! test -e ~/disk && ! test -L ~/.local/share/aditd");
}

#[tokio::test]
async fn what_was_removed_is_named_and_nothing_else() {
    let crontab = "#!/bin/sh\ncase $1 in -l) cat ~/cron ;; *) cat >~/cron.new && mv ~/cron.new ~/cron ;; esac\n";
    let files: &[_] = Box::leak(Box::new([
        (".bashrc", "PATH=$HOME/fake:$PATH\n"),
        ("fake/crontab", crontab),
        ("cron", "@daily true\n"),
    ]));
    let kind = Kind { shell: "/bin/bash", files, ..Kind::default() };
    let Some(gpu) = BareBox::start(PROGRAM, kind).await else { return };
    gpu.up(&gpu.up_args(&["--yes"])).await.end().await;
    gpu.on_the_box(
        "chmod 700 ~/fake/crontab && echo \"@reboot $HOME/.local/share/adit/start\" >>~/cron
         echo mine >~/.local/share/adit/notes",
    );
    let told = document(&gpu.adit(&["remove", "--yes", "--json"]).await);
    let share = format!("{}/.local/share", gpu.home_there());
    let paths: Vec<&str> =
        told["paths"].as_array().expect("paths").iter().filter_map(|path| path.as_str()).collect();
    assert!(!paths.contains(&&*format!("{share}/adit")), "it is there: {paths:?}");
    let line = format!("the crontab's line `@reboot {share}/adit/start`");
    for path in ["adit/bin", "adit/start", "adit/aditd", "aditd"].map(|at| format!("{share}/{at}"))
    {
        assert!(paths.contains(&&*path), "{path}: {paths:?}");
    }
    assert!(paths.contains(&&*line), "{paths:?}");
    assert_eq!(gpu.on_the_box("cat ~/cron; ls -A ~/.local/share/adit"), "@daily true\nnotes\n");
}

#[tokio::test]
async fn on_a_box_without_aditd_nothing_is_left() {
    let Some(gpu) = BareBox::start(PROGRAM, Kind::default()).await else { return };
    let removed = gpu.adit(&["remove", &gpu.url, "--yes", "--json"]).await;
    let told = document(&removed);
    assert!(removed.stderr.contains("adit has installed nothing on"), "{}", removed.stderr);
    assert!(told["removed"] == false && told["left"] == json!([]), "{told}");
}
