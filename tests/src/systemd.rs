//! A systemd of a test's own: process 1 of its own namespaces, on a root directory whose changes are in
//! memory. It starts real units with all their restrictions, and the managers of users.

use std::{
    fs,
    io::Read,
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::skip;

/// A loaded machine boots slowly.
const WITHIN: Duration = Duration::from_secs(120);
const BOOT: &str = include_str!("systemd/boot.sh");
/// One at a time: all have the same root of control groups, and each believes that it is its own.
static ONE: Mutex<()> = Mutex::new(());

/// Boots a systemd and runs `script` there with `sh -eu`, as root. In there `adit` and `aditd` are the
/// programs in the file `program`, and `/given` has `files` (name and text). Returns what the script has
/// printed, and whether it came to its end. Skips the test if no systemd can be had: that takes root.
///
/// # Panics
/// If it does not power off in time.
pub fn run(program: &str, files: &[(&str, &str)], script: &str) -> Option<(String, bool)> {
    const END: &str = "the script came to its end";
    let dir = tempfile::tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name);
    fs::create_dir(path("files")).expect("a directory");
    for (name, text) in files {
        fs::write(path("files").join(name), text).expect("written");
    }
    fs::write(path("script"), format!("{script}\necho '{END}'\n")).expect("written");
    let is_there = std::path::Path::new("/lib/systemd/systemd").exists()
        && rustix::process::geteuid().is_root();
    if !is_there {
        skip::skip_test("a systemd in namespaces needs root and the package systemd");
        return None;
    }
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut child = Command::new("unshare")
        .args(["--mount", "--pid", "--fork", "--kill-child", "--uts", "--ipc", "--net", "--cgroup"])
        .args(["--propagation", "private", "sh", "-c", BOOT, "boot"])
        .args([path("script").as_os_str(), program.as_ref()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("unshare runs");
    let began = Instant::now();
    while child.try_wait().expect("waited for").is_none() {
        if began.elapsed() > WITHIN {
            let _ = child.kill();
            let _ = child.wait();
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let mut said = String::new();
    let _ = child.stderr.take().map(|mut stderr| stderr.read_to_string(&mut said));
    let out = fs::read_to_string(path("script.out"));
    let out = out.unwrap_or_else(|e| panic!("systemd did not start ({e}): {said}"));
    assert!(began.elapsed() < WITHIN, "it did not power off:\n{out}");
    match out.split_once(END) {
        Some((out, _)) => Some((out.to_owned(), true)),
        None => Some((out, false)),
    }
}
