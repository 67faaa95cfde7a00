//! What the README and the pages of `docs/` tell people to copy works.

use std::{collections::BTreeSet, os::unix::fs::symlink, path::Path};

use server::{Config, Flags, ServeFlags};
use tests::{
    laptop::{Laptop, remote_aditd},
    ollama::Options,
    raw,
    world::World,
};

mod errors;
pub(crate) mod json;
mod reference;
mod status_json;

use crate::PROGRAM;

/// The README and the pages of `docs/`, by name. The lines of lists are not indented in them.
fn pages() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let docs = std::fs::read_dir(root.join("docs")).expect("the pages");
    let docs = docs.map(|page| page.expect("a page").path());
    let pages = std::iter::once(root.join("README.md")).chain(docs).map(|path| {
        let text = std::fs::read_to_string(&path).expect("text");
        let lines = text.lines().map(str::trim_start).collect::<Vec<_>>();
        (path.display().to_string(), lines.join("\n"))
    });
    pages.collect()
}

/// The blocks of a page that hold a configuration.
fn configurations(text: &str) -> impl Iterator<Item = &str> {
    text.split("\n```toml\n").skip(1).filter_map(|rest| rest.split("\n```").next())
}

/// The block with the whole configuration.
fn whole() -> String {
    let pages = pages();
    let mut blocks = pages.iter().flat_map(|(_, text)| configurations(text));
    let whole = blocks.find(|block| block.starts_with("# /etc/adit/aditd.toml"));
    whole.expect("the whole file").to_owned()
}

fn settled(file: &str) -> Config {
    let tmp = tempfile::tempdir().expect("a directory");
    let path = tmp.path().join("aditd.toml");
    // A secret has to be there, and readable for its owner alone.
    let secret = tmp.path().join("oidc-secret");
    common::machine::files::create(&secret, b"secret").expect("written");
    let file = file.replace("/etc/adit/oidc-secret", secret.to_str().expect("a path"));
    std::fs::write(&path, &file).expect("written");
    let flags = Flags { state_dir: Some(tmp.path().join("state")), config: Some(path) };
    Config::resolve(&flags, &ServeFlags::default()).unwrap_or_else(|e| panic!("{e}\n{file}"))
}

#[test]
fn each_configuration_on_a_page_is_valid() {
    let mut tried = 0;
    for (page, text) in pages() {
        for block in configurations(&text) {
            tried += 1;
            if block.starts_with("# ~/.config/adit/adit.toml") {
                let (taken, says) = reference::adit_says(block);
                assert!(taken, "{page}: {says}");
            } else {
                settled(block);
            }
        }
    }
    assert!(tried >= 6, "{tried} configurations");
}

#[test]
fn the_whole_configuration_is_valid_with_and_without_its_comments() {
    let whole = whole();
    assert!(settled(&whole).authority().is_none(), "nobody runs there who could answer");
    let uncommented: Vec<_> = whole
        .lines()
        .map(|line| line.strip_prefix('#').filter(|l| l.contains(" = ")).unwrap_or(line))
        .collect();
    let all = settled(&uncommented.join("\n"));
    assert!(all.authority().is_some() && all.advertise == ["gpu.lan:11435"]);
}

#[tokio::test]
async fn a_server_with_the_whole_configuration_starts() {
    // The port may be in use on this machine.
    let config = whole().replace("127.0.0.1:9464", "unix:{dir}/metrics.sock");
    let world = World::start_configured(PROGRAM, Options::default(), &[], &config).await;
    let up = world.up("laptop").await;
    let answer = raw::exchange(up.address, "GET / HTTP/1.0\r\n\r\n").await;
    assert!(answer.ends_with("Ollama is running"), "{answer}");
}

#[tokio::test]
async fn a_key_restricted_as_a_page_says_carries_the_tunnel() {
    let Some((world, mut laptop)) = Laptop::in_a_world(PROGRAM).await else { return };
    // As after `cargo install`: sshd does not find it on its path.
    let home = world.scratch("home");
    std::fs::create_dir_all(home.join(".cargo/bin")).expect("a directory");
    symlink(remote_aditd(&world).join("aditd"), home.join(".cargo/bin/aditd")).expect("a link");
    laptop.sshd.configure(&format!("SetEnv PATH=/usr/bin:/bin HOME={}\n", home.display())).await;
    laptop.enrolled(&world, &[]).await;
    let port = world.status().await["relay"].to_string();
    let pages = pages();
    let lines = pages.iter().flat_map(|(_, text)| text.lines());
    let limited: BTreeSet<_> = lines
        .filter(|line| line.starts_with("restrict,"))
        .map(|line| line.split(" ssh-ed25519 ").next().expect("options").replace("11435", &port))
        .collect();
    assert_eq!(limited.len(), 2, "{limited:?}");
    for options in limited {
        laptop.sshd.authorize("user", &options);
        let up = laptop.up(&world, &[]).await;
        let answer = raw::exchange(up.address, "GET / HTTP/1.0\r\n\r\n").await;
        assert!(answer.ends_with("Ollama is running"), "{options}: {answer}");
        up.end().await;
    }
}
