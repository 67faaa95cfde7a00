//! What stands in the way on a box is told with the step, what was tried, and a cure.

use tests::{
    bare_box::{BareBox, Kind},
    cli_assert::document,
    process::Ended,
};

use crate::PROGRAM;

/// Asserts that the command failed with these words, and left nothing on the box.
#[track_caller]
fn assert_obstacle(gpu: &BareBox, ended: &Ended, words: &[&str]) {
    assert!(matches!(ended.code, Some(1 | 2)), "{ended:?}");
    for words in words {
        assert!(ended.stderr.contains(words), "no `{words}` in {}", ended.stderr);
    }
    assert!(gpu.servers().is_empty());
    assert!(!gpu.home().join(".local/share/adit").exists(), "{:?}", gpu.everything());
}

async fn tried(kind: Kind, more: &[&str], words: &[&str]) -> Option<(BareBox, Ended)> {
    let gpu = BareBox::start(PROGRAM, kind).await?;
    let ended = gpu.adit(&gpu.up_args(&[&["--yes"], more].concat())).await;
    assert_obstacle(&gpu, &ended, words);
    Some((gpu, ended))
}

#[tokio::test]
async fn a_full_disk_is_told_before_anything_is_uploaded() {
    let kind = Kind { home: Some("size=4m"), ..Kind::default() };
    tried(kind, &[], &["cannot install aditd on", "has 4 MiB left", "--remote-dir DIR"]).await;
}

#[tokio::test]
async fn a_disk_that_becomes_full_is_told_in_the_words_of_the_box() {
    // `df` is not there to tell it before.
    let kind = Kind { home: Some("size=4m"), without: &["df"], ..Kind::default() };
    tried(kind, &[], &["cannot upload aditd to", "No space left on device"]).await;
}

#[tokio::test]
async fn a_home_where_no_program_runs_is_told_and_another_directory_works() {
    let kind = Kind { home: Some("size=200m,noexec"), ..Kind::default() };
    let words =
        ["cannot install aditd on", "`noexec`", "Permission denied", "--remote-dir /var/tmp/adit"];
    let Some((gpu, _)) = tried(kind, &[], &words).await else { return };
    let elsewhere = tempfile::tempdir().expect("a directory");
    std::os::unix::fs::chown(elsewhere.path(), Some(54321), Some(54321)).expect("chown");
    let dir = elsewhere.path().join("adit");
    let dir = dir.to_str().expect("a path");
    let up = gpu.up(&gpu.up_args(&["--yes", "--remote-dir", dir])).await;
    gpu.has_tokens(&up).await;
    up.end().await;
    let removed = gpu.adit(&["remove", "--yes"]).await;
    assert_eq!(removed.code, Some(0), "{}", removed.stderr);
    assert!(!std::path::Path::new(dir).exists() && gpu.servers().is_empty());
}

#[tokio::test]
async fn a_program_for_another_machine_is_not_uploaded() {
    let Some(gpu) = BareBox::start(PROGRAM, Kind::default()).await else { return };
    let mut program = std::fs::read(&gpu.binary).expect("read");
    // The processor that the ELF header names.
    program[18] = if program[18] == 183 { 62 } else { 183 };
    let file = gpu.scratch("foreign");
    std::fs::write(&file, program).expect("written");
    let file = file.to_str().expect("a path");
    let args = ["up", &gpu.url, "--yes", "--server-binary", file];
    let ended = gpu.adit(&args).await;
    assert_obstacle(&gpu, &ended, &["of the kind", "is a program for", "--server-binary FILE"]);
}

#[tokio::test]
async fn a_program_that_cannot_run_there_is_told_in_the_words_of_the_box() {
    let Some(gpu) = BareBox::start(PROGRAM, Kind::default()).await else { return };
    // Its loader is named as one that the box has not got, as with another libc.
    let mut program = std::fs::read(&gpu.binary).expect("read");
    let loader = b"/ld-linux";
    let Some(at) = program.windows(loader.len()).position(|bytes| bytes == loader) else { return };
    program[at + 1] = b'X';
    let file = gpu.scratch("foreign");
    std::fs::write(&file, program).expect("written");
    let file = file.to_str().expect("a path");
    let ended = gpu.adit(&["up", &gpu.url, "--yes", "--server-binary", file]).await;
    assert_obstacle(
        &gpu,
        &ended,
        &[
            "the uploaded aditd cannot be run on",
            "not found",
            "a static one: `--server-binary FILE`",
        ],
    );
}

#[tokio::test]
async fn a_box_without_ollama_is_told_and_a_named_service_is_taken() {
    let kind = Kind { ollama: false, ..Kind::default() };
    let words = [
        "no Ollama runs there",
        "127.0.0.1:11434",
        "`ollama serve`",
        "--upstream http://127.0.0.1:PORT",
    ];
    let Some((gpu, _)) = tried(kind, &[], &words).await else { return };
    let dry = gpu.adit(&gpu.up_args(&["--dry-run", "--upstream", "http://127.0.0.1:7"])).await;
    assert!(dry.stdout.contains("forwards to Ollama at http://127.0.0.1:7"), "{dry:?}");
}

#[tokio::test]
async fn a_login_without_a_shell_is_told() {
    let kind = Kind { shell: "/bin/false", ..Kind::default() };
    tried(kind, &[], &["cannot look at", "runs no shell", "adit enroll"]).await;
}

#[tokio::test]
async fn a_host_that_lets_nobody_in_is_told() {
    let Some(gpu) = BareBox::start(PROGRAM, Kind::default()).await else { return };
    let url = gpu.url.replace("boxer@", "nobody-of-that-name@");
    let ended = gpu.adit(&["up", &url, "--yes"]).await;
    assert_obstacle(&gpu, &ended, &["cannot log in at", "hint: "]);
}

#[tokio::test]
async fn flags_for_a_box_need_a_login() {
    let Some(gpu) = BareBox::start(PROGRAM, Kind::default()).await else { return };
    let ended = gpu.adit(&["up", "--dry-run"]).await;
    assert!(
        ended.code == Some(2) && ended.stderr.contains("`adit up USER@HOST --dry-run"),
        "{ended:?}"
    );
}

#[tokio::test]
async fn a_unit_of_the_system_is_no_obstacle_where_no_systemd_runs() {
    let Some(gpu) = BareBox::start(PROGRAM, Kind::default()).await else { return };
    // A container with the package: its unit is there and nothing starts it. What root writes is seen
    // on the box only.
    gpu.as_root(
        "for at in /root /usr/local/lib /var/lib; do mount -t tmpfs tmpfs $at; done
         ! test -e /run/systemd || mount -t tmpfs tmpfs /run/systemd
         mkdir -p /usr/local/lib/systemd/system
         printf '[Service]\\nExecStart=/opt/aditd serve\\n' >/usr/local/lib/systemd/system/aditd.service",
    );
    let root = gpu.url.replace("boxer@", "root@");
    let binary = gpu.binary.to_str().expect("a path");
    let args = ["up", &root, "--yes", "--listen", "127.0.0.1:0", "-v", "--server-binary", binary];
    let up = gpu.up(&args).await;
    gpu.has_tokens(&up).await;
    up.end().await;
    gpu.as_root("test -f /var/lib/adit/register.sqlite");
    let told = document(&gpu.adit(&["remove", "--yes", "--json"]).await);
    assert!(told["removed"] == true && told["left"] == serde_json::json!([]), "{told}");
    gpu.as_root("! test -e /var/lib/adit && test -e /usr/local/lib/systemd/system/aditd.service");
}
