//! Private keys in the memory of the two programs: other users can't read them, and each key is
//! there once.

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
};

use rcgen::KeyPair;
use tests::{
    process::Process,
    skip,
    state_files::{identity_file, private_key, stored, text},
    unprivileged::{Ordinary, as_user},
    world::{SOON, World},
};

use crate::PROGRAM;

/// Whether a user without root's rights can read this file of the process in `/proc`.
fn can_read(uid: u32, pid: u32, name: &str) -> bool {
    let file = format!("/proc/{pid}/{name}");
    let read = as_user(uid, Path::new("head")).args(["-c", "1", &file]).output();
    read.is_ok_and(|read| read.status.success())
}

/// Starts a program as a user without root's rights; it can't notify the test that it is ready.
async fn started(ordinary: &Ordinary, program: &str, args: &[&str], says: &str) -> Process {
    let mut command = tokio::process::Command::from(ordinary.command(program, args));
    command.kill_on_drop(true);
    let mut process = Process::spawn(command, program).expect("it starts");
    process.says(says).await;
    process
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_of_the_same_user_cannot_read_the_memory_of_a_running_program() {
    let Some(ordinary) = Ordinary::new(PROGRAM) else { return };
    if !ordinary.as_root && skip::skip_test("only root can be another user") {
        return;
    }
    let world = World::start(PROGRAM).await;
    let home = ordinary.device(&identity_file(&world.device("laptop").await));
    let state = ordinary.home("state");
    let up = ["up", "--listen", "127.0.0.1:0", "--state-dir", text(&home)];
    let serve = ["serve", "--listen", "127.0.0.1:0", "--state-dir", text(&state)];
    let adit = started(&ordinary, "adit", &up, "ready: Ollama on http://").await;
    let aditd = started(&ordinary, "aditd", &serve, "listening").await;
    let mut sleep =
        as_user(ordinary.uid(), Path::new("sleep")).arg("600").spawn().expect("it starts");
    while fs::metadata(format!("/proc/{}", sleep.id())).expect("there").uid() != ordinary.uid() {
        tokio::task::yield_now().await;
    }
    // Without this, the kernel may forbid reading for other reasons. A new process can be read
    // from its `exec` on.
    let readable = async {
        while !can_read(ordinary.uid(), sleep.id(), "environ") {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, readable).await.expect("another process of that user can be read");
    sleep.kill().expect("killed");
    sleep.wait().expect("ended");
    for process in [&adit, &aditd] {
        for name in ["environ", "auxv", "maps", "mem"] {
            assert!(!can_read(ordinary.uid(), process.pid(), name), "{name} of {}", process.pid());
        }
    }
}

/// The writable memory of a process, region by region. `None` if it can't be read.
fn memory(pid: u32) -> Option<Vec<Vec<u8>>> {
    let (maps, memory) = (format!("/proc/{pid}/maps"), format!("/proc/{pid}/mem"));
    let (maps, memory) = (fs::read_to_string(maps).ok()?, File::open(memory).ok()?);
    let mut regions = Vec::new();
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let (range, rights) = (words.next()?, words.next()?);
        if !rights.starts_with("rw") {
            continue;
        }
        let (from, to) = range.split_once('-')?;
        let address = |text| u64::from_str_radix(text, 16).ok();
        let (from, to) = (address(from)?, address(to)?);
        let mut region = vec![0; usize::try_from(to - from).ok()?];
        // The kernel does not let some of its regions be read.
        if memory.read_exact_at(&mut region, from).is_ok() {
            regions.push(region);
        }
    }
    Some(regions)
}

/// The three forms of a key: as the crypto library keeps it (the private value as a number, lowest
/// byte first), in DER (RFC 5915), and in a line of PEM.
fn forms(pem: &str) -> [Vec<u8>; 3] {
    let der = KeyPair::from_pem(pem).expect("a key").serialize_der();
    // The first: the public key, which follows, may have these two bytes as well.
    let at = der.windows(2).position(|w| w == [0x04, 0x20]).expect("the private value") + 2;
    let value = der[at..at + 32].to_vec();
    let number = value.iter().rev().copied().collect();
    let line = pem.lines().nth(1).expect("a line").as_bytes()[20..60].to_vec();
    [number, value, line]
}

#[tokio::test(flavor = "multi_thread")]
async fn each_private_key_is_in_memory_once() {
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let up = device.up(&[]).await;
    let endpoint = fs::read(world.state().join("endpoint.json")).expect("secrets");
    let endpoint: serde_json::Value = serde_json::from_slice(&endpoint).expect("JSON");
    let texts = |all: &[&serde_json::Value]| -> Vec<String> {
        all.iter().map(|text| text.as_str().expect("text").to_owned()).collect()
    };
    let of_server = texts(&[&endpoint["reset"], &endpoint["door"]]);
    let of_device = texts(&[&stored(&device)["door_key"]]);
    let key_of = |name| fs::read_to_string(world.state().join(name)).expect("a key");
    for (process, pem, in_pem, texts) in [
        (&world.aditd, key_of("ca.key"), 0, &of_server),
        (&world.aditd, key_of("server.key"), 0, &of_server),
        // The profile is written again at every change.
        (&up.adit, private_key(&device), 1, &of_device),
    ] {
        let [number, value, line] = forms(&pem);
        let Some(regions) = memory(process.pid()) else {
            skip::skip_test("the memory of other processes can't be read here");
            return;
        };
        let count = |bytes: &[u8]| -> usize {
            regions.iter().map(|region| memchr::memmem::find_iter(region, bytes).count()).sum()
        };
        let copies = (count(&number), count(&value), count(&line));
        assert_eq!(copies, (1, 0, in_pem), "{}", process.pid());
        // Secrets for knocks are kept as bytes: their texts are wiped when they have been read.
        for text in texts {
            assert_eq!(count(text.as_bytes()), 0, "{}", process.pid());
        }
    }
}
