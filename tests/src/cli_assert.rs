//! Assertions about the exit code and the error of a command.

use serde_json::Value;

use crate::{process::Ended, world::Device};

/// The exit code of a failure.
pub const FAILED: i32 = 1;
/// The exit code of a wrong command line or configuration.
pub const USAGE: i32 = 2;
/// The exit code of a device that is not allowed, or no longer.
pub const NOT_ALLOWED: i32 = 4;

/// Asserts that a command failed with this exit code, printed one error that contains `says`, with
/// at least one hint, and printed no data.
#[track_caller]
pub fn assert_told(ended: &Ended, code: i32, says: &[&str]) {
    assert_one_error(ended, code, says);
    let stderr = &ended.stderr;
    assert_eq!(stderr.matches("\nhint: ").count(), 1, "{stderr}");
    assert!(stderr.contains("\n\nhint: "), "{stderr}");
}

/// The same for an error of the command-line parser, which refers to `--help` instead of a hint.
#[track_caller]
pub fn assert_usage(ended: &Ended, says: &[&str]) {
    assert_one_error(ended, USAGE, says);
    assert!(ended.stderr.contains("--help"), "{}", ended.stderr);
}

/// The document that a command has printed with `--json`, and nothing else.
#[track_caller]
pub fn document(ended: &Ended) -> Value {
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let document: Value =
        serde_json::from_str(&ended.stdout).unwrap_or_else(|e| panic!("{e}: {ended:?}"));
    assert_eq!(document["schema"], 1, "{document}");
    document
}

#[track_caller]
fn assert_one_error(ended: &Ended, code: i32, says: &[&str]) {
    let Ended { stdout, stderr, .. } = ended;
    let stderr = &without_places(stderr);
    assert_eq!(ended.code, Some(code), "{ended:?}");
    if !stdout.is_empty() {
        assert_is_the_error(stdout, stderr, code);
    }
    assert_eq!(stderr.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{stderr}");
    assert_no_defect(stderr);
    for words in says {
        assert!(stderr.contains(words), "no `{words}` in:\n{stderr}");
    }
}

/// A text without the flags that its commands have only because a test keeps its files elsewhere.
pub fn without_places(text: &str) -> String {
    let mut rest = text;
    let mut plain = String::new();
    while let Some(at) = [" --state-dir ", " --config "].iter().filter_map(|f| rest.find(f)).min() {
        plain.push_str(&rest[..at]);
        let flag = &rest[at + 1..];
        let value = &flag[flag.find(' ').map_or(flag.len(), |end| end + 1)..];
        let end = value.find([' ', '`', '\n']).unwrap_or(value.len());
        // What stands for any of them is no place.
        if !value.starts_with('/') {
            plain.push_str(&rest[at..rest.len() - value.len() + end]);
        }
        rest = &value[end..];
    }
    plain + rest
}

/// Asserts that the command did not end with an internal error.
#[track_caller]
pub fn assert_no_defect(log: &str) {
    assert!(!log.contains("panicked") && !log.contains("defect"), "{log}");
}

/// Asserts that a command succeeded.
#[track_caller]
pub fn assert_ok(ended: &Ended) {
    assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
}

/// Runs `adit up` until it ends by itself.
pub async fn up_to_its_end(device: &Device) -> Ended {
    device.adit(&["up", "--listen", "127.0.0.1:0"], "").await
}

/// The name of this user's primary group.
pub fn own_group() -> String {
    let out = std::process::Command::new("id").arg("-gn").output().expect("id");
    String::from_utf8_lossy(&out.stdout).trim().to_owned()
}

/// With `--json` the error is on standard output, too, as JSON.
#[track_caller]
fn assert_is_the_error(stdout: &str, stderr: &str, code: i32) {
    let told: Value = serde_json::from_str(stdout).unwrap_or_else(|e| panic!("{e}: {stdout}"));
    let (error, only) = (&told["error"], told.as_object().map(|it| it.len()));
    assert_eq!((&told["schema"], only), (&1.into(), Some(2)), "{told}");
    assert_eq!(error["exit"], code, "{told}");
    let what = error["what"].as_str().expect("text").split_whitespace();
    let said = stderr.split_whitespace().collect::<Vec<_>>().join(" ");
    let what = what.collect::<Vec<_>>().join(" ");
    assert!(!what.is_empty() && said.contains(&format!("error: {what}")), "{said}\n{told}");
}
