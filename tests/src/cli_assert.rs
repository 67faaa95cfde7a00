//! What a command says of itself at its end, as people and scripts are promised.

use crate::{process::Ended, world::Device};

/// The exit code of what failed.
pub const FAILED: i32 = 1;
/// The exit code of wrong usage or configuration.
pub const USAGE: i32 = 2;
/// The exit code of a device that is not allowed, or no longer.
pub const NOT_ALLOWED: i32 = 4;

/// That a command ended with one error that says these things, one cure, and this exit code, and
/// gave no data.
#[track_caller]
pub fn assert_told(ended: &Ended, code: i32, says: &[&str]) {
    assert_one_error(ended, code, says);
    let stderr = &ended.stderr;
    assert_eq!(stderr.matches("\nhint: ").count(), 1, "{stderr}");
    assert!(stderr.contains("\n\nhint: "), "{stderr}");
}

/// The same of what the parser of the command line refuses, which points to `--help`.
#[track_caller]
pub fn assert_usage(ended: &Ended, says: &[&str]) {
    assert_one_error(ended, USAGE, says);
    assert!(ended.stderr.contains("--help"), "{}", ended.stderr);
}

#[track_caller]
fn assert_one_error(ended: &Ended, code: i32, says: &[&str]) {
    let Ended { stdout, stderr, .. } = ended;
    assert_eq!(ended.code, Some(code), "{ended:?}");
    assert_eq!(stdout, "", "{ended:?}");
    assert_eq!(stderr.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{stderr}");
    assert_no_defect(stderr);
    for words in says {
        assert!(stderr.contains(words), "no `{words}` in:\n{stderr}");
    }
}

/// That nothing went wrong that nobody can cure but us.
#[track_caller]
pub fn assert_no_defect(log: &str) {
    assert!(!log.contains("panicked") && !log.contains("defect"), "{log}");
}

/// That a command did what it was asked.
#[track_caller]
pub fn assert_ok(ended: &Ended) {
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
}

/// Runs `adit up` to its end, which has to come by itself.
pub async fn up_to_its_end(device: &Device) -> Ended {
    device.adit(&["up", "--listen", "127.0.0.1:0"], "").await
}

/// The name of this user's own group.
pub fn own_group() -> String {
    let out = std::process::Command::new("id").arg("-gn").output().expect("id");
    String::from_utf8_lossy(&out.stdout).trim().to_owned()
}
