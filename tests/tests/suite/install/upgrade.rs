//! One command replaces the aditd on a box, and no running answer is lost.

use std::path::{Path, PathBuf};

use tests::{
    bare_box::{BareBox, Kind},
    cli_assert::document,
    raw,
    state_files::chmod,
    world::SOON,
};
use tokio::io::AsyncWriteExt;

use crate::PROGRAM;

/// An aditd that is another file than the one that was uploaded first.
fn newer(gpu: &BareBox) -> PathBuf {
    let newer = gpu.scratch("newer");
    std::fs::copy(&gpu.binary, &newer).expect("copied");
    let mut file = std::fs::OpenOptions::new().append(true).open(&newer).expect("opened");
    std::io::Write::write_all(&mut file, b"newer").expect("written");
    newer
}

fn path(path: &Path) -> &str {
    path.to_str().expect("text")
}

/// The directories of programs on the box.
fn programs(gpu: &BareBox) -> Vec<PathBuf> {
    let bin = gpu.home().join(".local/share/adit/bin");
    std::fs::read_dir(bin).expect("there").map(|entry| entry.expect("an entry").path()).collect()
}

#[tokio::test]
async fn an_upgrade_loses_no_running_answer_and_leaves_one_program() {
    let Some(gpu) = BareBox::start(PROGRAM, Kind::default()).await else { return };
    let up = gpu.up(&gpu.up_args(&["--yes"])).await;
    let newer = newer(&gpu);
    let mut app = gpu.net.within(raw::connect(up.address)).await;
    app.write_all(raw::generate(240, 1).as_bytes()).await.expect("sent");
    let begun = raw::read_exactly(&mut app, 300).await;
    let (servers, before) = (gpu.servers(), programs(&gpu));
    let args = ["upgrade", &gpu.url, "--server-binary", path(&newer)];

    let dry = gpu.adit(&[&args[..], &["--dry-run"]].concat()).await;
    assert_eq!(dry.code, Some(0), "{}", dry.stderr);
    assert!(
        dry.stdout.starts_with(&format!("On {}, adit will\n  1. upload aditd", gpu.url))
            && dry.stdout.contains("running answers go on to their end"),
        "{}",
        dry.stdout
    );
    let told = document(&gpu.adit(&[&args[..], &["--dry-run", "--json"]].concat()).await);
    crate::readme::json::Page::read().has("adit upgrade", &told);
    assert_eq!((&told["login"], &told["replaces"]), (&gpu.url.as_str().into(), &true.into()));
    assert_eq!(programs(&gpu), before);
    let asked = gpu.adit(&args).await;
    assert_eq!(asked.code, Some(2), "nobody is there to agree: {}", asked.stderr);
    assert_eq!(gpu.servers(), servers);

    let done = gpu.adit(&[&args[..], &["--yes"]].concat()).await;
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    gpu.has_tokens(&up).await;
    let both = gpu.servers();
    assert!(
        both.len() == 2 && both.contains(&servers[0]),
        "the answer runs in {servers:?}: {both:?}"
    );
    let after = programs(&gpu);
    assert!(after.len() == 1 && after != before, "{after:?}");
    let (rest, ending) = raw::read_to_end(&mut app).await;
    let whole = String::from_utf8([begun, rest].concat()).expect("text");
    assert_eq!(ending, raw::Ending::Closed);
    let ollama = gpu.ollama.as_ref().expect("it runs").addr();
    let direct = gpu.net.within(raw::exchange(ollama, &raw::generate(240, 1))).await;
    assert_eq!(raw::without_date(&whole), raw::without_date(&direct));
    let one = async { while gpu.servers().len() > 1 {} };
    tokio::time::timeout(SOON, one).await.expect("the old process ends");
    gpu.has_tokens(&up).await;

    let again = gpu.adit(&[&args[..], &["--yes", "--json"]].concat()).await;
    assert!(again.stderr.contains("nothing is done"), "{}", again.stderr);
    assert_eq!(document(&again)["replaces"], false);
    up.end().await;
    let removed = document(&gpu.adit(&["remove", &gpu.url, "--yes", "--json"]).await);
    crate::readme::json::Page::read().has("adit remove", &removed);
    assert_eq!((&removed["login"], &removed["removed"]), (&gpu.url.as_str().into(), &true.into()));
    assert!(removed["forgotten"].is_string(), "{removed}");
    assert_eq!(gpu.servers(), Vec::<String>::new());
}

#[tokio::test]
async fn an_upgrade_that_cannot_be_done_leaves_the_aditd_that_runs() {
    let Some(gpu) = BareBox::start(PROGRAM, Kind::default()).await else { return };
    let newer = newer(&gpu);
    let args = ["upgrade", &gpu.url, "--yes", "--server-binary", path(&newer)];
    let nothing = gpu.adit(&args).await;
    assert_eq!(nothing.code, Some(1));
    assert!(nothing.stderr.contains(&format!("adit up {}", gpu.url)), "{}", nothing.stderr);
    let up = gpu.up(&gpu.up_args(&["--yes"])).await;
    let (servers, before) = (gpu.servers(), programs(&gpu));
    // A program of another version, as far as it says.
    let other = gpu.scratch("other");
    std::fs::write(&other, b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x03\0\x3e\0").expect("written");
    chmod(&other, 0o755);
    let refused = gpu.adit(&["upgrade", &gpu.url, "--yes", "--server-binary", path(&other)]).await;
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains("cannot be run"), "{}", refused.stderr);
    // The new process finds a configuration that it cannot use.
    let state = gpu.home().join(".local/share/aditd/usage.json");
    let ca = gpu.home().join(".local/share/aditd/ca.key");
    assert!(ca.exists() && !state.exists());
    let key = std::fs::read(&ca).expect("read");
    std::fs::write(&ca, "no key").expect("written");
    let refused = gpu.adit(&args).await;
    assert_eq!(refused.code, Some(1));
    assert!(
        refused.stderr.contains("goes on as before") && refused.stderr.contains("ca.key"),
        "{}",
        refused.stderr
    );
    assert_eq!((gpu.servers(), programs(&gpu)), (servers, before));
    gpu.has_tokens(&up).await;
    std::fs::write(&ca, key).expect("written");
    let done = gpu.adit(&args).await;
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    gpu.has_tokens(&up).await;
    up.end().await;
}

#[tokio::test]
async fn an_aditd_that_is_gone_is_installed_again_and_its_devices_stay_enrolled() {
    let Some(gpu) = BareBox::start(PROGRAM, Kind::default()).await else { return };
    let up = gpu.up(&gpu.up_args(&["--yes"])).await;
    gpu.has_tokens(&up).await;
    up.end().await;
    let [server] = &gpu.servers()[..] else { panic!("one server") };
    gpu.on_the_box(&format!("kill -9 {server}; rm -rf ~/.local/share/adit/bin"));
    let one = async { while !gpu.servers().is_empty() {} };
    tokio::time::timeout(SOON, one).await.expect("it ends");
    let up = gpu.up(&gpu.up_args(&["--yes"])).await;
    let log = up.adit.log();
    assert!(log.contains("upload aditd") && !log.contains("Enrolled as"), "{log}");
    gpu.has_tokens(&up).await;
    assert_eq!((gpu.servers().len(), programs(&gpu).len()), (1, 1));
    up.end().await;
}
