//! Tells the programs which commit they are built from, for `--version`. It runs no program: the commit
//! is read from git's own files. A debug build does not say: else each commit would build it anew.

use std::{env, fs, path::Path};

/// Overrides what the files say: for a build from sources without them.
const NAMED: &str = "ADIT_COMMIT";

fn main() {
    println!("cargo:rerun-if-env-changed={NAMED}");
    println!("cargo:rerun-if-changed=build.rs");
    let is_release = env::var("PROFILE").is_ok_and(|profile| profile == "release");
    let commit = match env::var(NAMED) {
        Ok(named) if !named.is_empty() => named,
        _ if is_release => commit(Path::new("../.git")).unwrap_or_else(|| "unknown".to_owned()),
        _ => "debug build".to_owned(),
    };
    println!("cargo:rustc-env=ADIT_BUILT_FROM={commit}");
}

/// The first seven digits of the commit that is checked out.
fn commit(git: &Path) -> Option<String> {
    let head = read(&git.join("HEAD"))?;
    let commit = match head.strip_prefix("ref: ") {
        None => head,
        Some(name) => match read(&git.join(name)) {
            Some(commit) => commit,
            // git has packed its references.
            None => read(&git.join("packed-refs"))?
                .lines()
                .find_map(|line| line.strip_suffix(name)?.strip_suffix(' ').map(str::to_owned))?,
        },
    };
    let is_hash = commit.len() >= 40 && commit.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_hash.then(|| commit[..7].to_owned())
}

/// A file of git's, read again when it changes.
fn read(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    println!("cargo:rerun-if-changed={}", path.display());
    Some(text.trim().to_owned())
}
