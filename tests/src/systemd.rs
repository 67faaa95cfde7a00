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

/// A boot that has not come to the script by then hangs, as has one that has not powered off by then:
/// it is given up, and tried again. On a loaded machine that happens in one of some ten boots.
const BEGINS_WITHIN: Duration = Duration::from_secs(30);
const WITHIN: Duration = Duration::from_secs(60);
const BOOTS: usize = 5;
const BOOT: &str = include_str!("systemd/boot.sh");
/// One at a time: all have the same root of control groups, and each believes that it is its own.
static ONE: Mutex<()> = Mutex::new(());

/// Boots a systemd and runs `script` there with `sh -eu`, as root. In there `adit` and `aditd` are the
/// programs in the file `program`, and `/given` has `files` (name and text). Returns what the script has
/// printed, and whether it came to its end. Skips the test if no systemd can be had: that takes root.
///
/// # Panics
/// If each boot hangs.
pub fn run(program: &str, files: &[(&str, &str)], script: &str) -> Option<(String, bool)> {
    let is_there = std::path::Path::new("/lib/systemd/systemd").exists()
        && rustix::process::geteuid().is_root();
    if !is_there {
        skip::skip_test("a systemd in namespaces needs root and the package systemd");
        return None;
    }
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let ended = (0..BOOTS).find_map(|_| boot(program, files, script));
    Some(ended.expect("a systemd that boots"))
}

/// Boots once. `None` if it hangs.
fn boot(program: &str, files: &[(&str, &str)], script: &str) -> Option<(String, bool)> {
    const BEGIN: &str = "the script begins\n";
    const END: &str = "the script came to its end";
    let dir = tempfile::tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name);
    fs::create_dir(path("files")).expect("a directory");
    for (name, text) in files {
        fs::write(path("files").join(name), text).expect("written");
    }
    fs::write(path("script"), format!("echo '{}'\n{script}\necho '{END}'\n", BEGIN.trim()))
        .expect("written");
    let mut child = Command::new("unshare")
        .args(["--mount", "--pid", "--fork", "--kill-child", "--uts", "--ipc", "--net", "--cgroup"])
        .args(["--propagation", "private", "sh", "-c", BOOT, "boot"])
        .args([path("script").as_os_str(), program.as_ref()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("unshare runs");
    let out = || fs::read_to_string(path("script.out"));
    let began = Instant::now();
    while child.try_wait().expect("waited for").is_none() {
        let hangs =
            began.elapsed() > BEGINS_WITHIN && !out().is_ok_and(|out| out.starts_with(BEGIN));
        if began.elapsed() > WITHIN || hangs {
            let _ = child.kill();
            let _ = child.wait();
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let mut said = String::new();
    let _ = child.stderr.take().map(|mut stderr| stderr.read_to_string(&mut said));
    let out = out().unwrap_or_else(|e| panic!("systemd did not start ({e}): {said}"));
    let out = out.strip_prefix(BEGIN).filter(|_| began.elapsed() < WITHIN)?;
    match out.split_once(END) {
        Some((out, _)) => Some((out.to_owned(), true)),
        None => Some((out.to_owned(), false)),
    }
}
