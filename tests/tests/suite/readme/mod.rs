//! What the README tells people to copy works.

use std::{os::unix::fs::symlink, path::Path};

use server::{Config, Flags, ServeFlags};
use tests::{
    laptop::{Laptop, remote_aditd},
    ollama::Options,
    raw,
    world::World,
};

mod errors;
mod reference;

use crate::PROGRAM;

const README: &str = include_str!("../../../../README.md");

/// The README's code blocks in this language.
fn blocks(language: &str) -> Vec<&'static str> {
    let fence = format!("\n```{language}\n");
    let blocks: Vec<_> =
        README.split(&fence).skip(1).filter_map(|rest| rest.split("\n```").next()).collect();
    assert!(!blocks.is_empty(), "no {language}");
    blocks
}

/// The block with the whole configuration.
fn whole() -> &'static str {
    let mut blocks = blocks("toml").into_iter();
    blocks.find(|block| block.starts_with("# /etc/adit/aditd.toml")).expect("the whole file")
}

fn settled(file: &str) -> Config {
    let tmp = tempfile::tempdir().expect("a directory");
    let path = tmp.path().join("aditd.toml");
    std::fs::write(&path, file).expect("written");
    let flags = Flags { state_dir: Some(tmp.path().join("state")), config: Some(path) };
    Config::resolve(&flags, &ServeFlags::default()).unwrap_or_else(|e| panic!("{e}\n{file}"))
}

#[test]
fn each_configuration_in_the_readme_is_valid_with_and_without_its_comments() {
    for block in blocks("toml") {
        settled(block);
    }
    assert!(settled(whole()).authority().is_none(), "nobody runs there who could answer");
    let uncommented: Vec<_> = whole()
        .lines()
        .map(|line| line.strip_prefix('#').filter(|l| l.contains(" = ")).unwrap_or(line))
        .collect();
    let all = settled(&uncommented.join("\n"));
    assert!(all.authority().is_some() && all.advertise == ["gpu.lan:11435"]);
}

/// The pages of `docs/`, by name.
fn pages() -> Vec<(String, String)> {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let pages = std::fs::read_dir(docs).expect("the pages").map(|page| {
        let path = page.expect("a page").path();
        (path.display().to_string(), std::fs::read_to_string(&path).expect("text"))
    });
    pages.collect()
}

#[test]
fn each_configuration_and_each_key_of_the_pages_is_one_that_works() {
    let (mut configurations, mut keys) = (0, 0);
    for (page, text) in pages() {
        // A block may stand in a list.
        let text = text.lines().map(str::trim_start).collect::<Vec<_>>().join("\n");
        for block in text.split("\n```toml\n").skip(1) {
            let block = block.split("\n```").next().expect(&page);
            configurations += 1;
            if block.starts_with("# ~/.config/adit/adit.toml") {
                let (taken, says) = reference::adit_says(block);
                assert!(taken, "{page}: {says}");
                continue;
            }
            settled(block);
        }
        for line in text.lines().filter(|line| line.starts_with("restrict,")) {
            assert!(README.contains(line), "{page}: {line} is not one that is tried");
            keys += 1;
        }
    }
    assert!(configurations >= 3 && keys >= 2, "{configurations} configurations, {keys} keys");
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
async fn a_key_restricted_as_the_readme_says_carries_the_tunnel() {
    let Some((world, mut laptop)) = Laptop::in_a_world(PROGRAM).await else { return };
    // As after `cargo install`: sshd does not find it on its path.
    let home = world.scratch("home");
    std::fs::create_dir_all(home.join(".cargo/bin")).expect("a directory");
    symlink(remote_aditd(&world).join("aditd"), home.join(".cargo/bin/aditd")).expect("a link");
    laptop.sshd.configure(&format!("SetEnv PATH=/usr/bin:/bin HOME={}\n", home.display())).await;
    laptop.enrolled(&world, &[]).await;
    let port = world.status().await["relay"].to_string();
    let limited: Vec<_> = README
        .lines()
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
