//! The keys in the memory of the programs: nobody else reads them, no core dump has them, and the
//! device's key is there once.

use std::{
    fs,
    io::{Read, Seek, SeekFrom},
    os::unix::process::ExitStatusExt,
    path::Path,
    process::Command,
};

use data_encoding::BASE64;
use tests::{
    process::Process,
    raw, skip,
    state_files::{identity_file, private_key, text},
    unprivileged::{Ordinary, as_user},
    world::World,
};

use crate::PROGRAM;

/// Makes a command run with an unlimited core dump allowed.
const WITH_CORES: &str = "ulimit -c unlimited; exec \"$@\"";

/// This command in a shell that has allowed core dumps.
fn with_cores(command: &Command) -> tokio::process::Command {
    let mut shell = tokio::process::Command::new("sh");
    shell.args(["-c", WITH_CORES, "sh"]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell.kill_on_drop(true);
    shell
}

/// Whether a process of the ordinary user can read this file.
fn can_read(ordinary: &Ordinary, file: &str) -> bool {
    let mut head = if ordinary.as_root {
        as_user(Ordinary::NOBODY, Path::new("head"))
    } else {
        Command::new("head")
    };
    head.args(["-c", "1", file]).output().expect("it runs").status.success()
}

#[tokio::test]
async fn another_process_of_the_same_user_reads_no_memory_and_a_crash_leaves_no_core() {
    if !Path::new("/proc/self/mem").exists() && skip::skip_test("there is no /proc here") {
        return;
    }
    let Some(ordinary) = Ordinary::new(PROGRAM) else { return };
    let world = World::start(PROGRAM).await;
    let device = ordinary.device(&identity_file(&world.device("laptop").await));
    let state = ordinary.home("state");
    let up = ["up", "--state-dir", text(&device), "--listen", "127.0.0.1:0"];
    let serve = ["serve", "--state-dir", text(&state), "--listen", "127.0.0.1:0"];
    // A program like any other, to which the opposite happens.
    let mut sleep = if ordinary.as_root {
        as_user(Ordinary::NOBODY, Path::new("sleep"))
    } else {
        Command::new("sleep")
    };
    sleep.arg("600");
    let mut plain = with_cores(&sleep).spawn().expect("it starts");
    let plain_pid = plain.id().expect("it runs");
    let environ = |pid: u32| format!("/proc/{pid}/environ");
    let readable = async {
        // It is still becoming the other user.
        while !can_read(&ordinary, &environ(plain_pid)) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(tests::world::SOON, readable).await.expect("the check can fail");
    let abort = |pid: u32| {
        let kill = format!("kill -ABRT {pid}");
        assert!(Command::new("sh").args(["-c", &kill]).status().expect("it runs").success());
    };
    abort(plain_pid);
    if !plain.wait().await.expect("it ends").core_dumped() {
        println!("this machine writes no core dumps at all");
    }
    for (program, args) in [("aditd", &serve), ("adit", &up)] {
        let command = with_cores(&ordinary.command(program, args));
        let mut process = Process::spawn(command, program).expect("it starts");
        process.ready().await.expect("it is ready");
        let pid = process.pid();
        for name in ["environ", "mem", "auxv"] {
            assert!(!can_read(&ordinary, &format!("/proc/{pid}/{name}")), "{program}: {name}");
        }
        abort(pid);
        let ended = process.ended().await.expect("it ends");
        assert_eq!((ended.signal(), ended.core_dumped()), (Some(6), false), "{program}");
    }
}

/// How often `wanted` is in the memory of a process.
fn count(pid: u32, wanted: &[u8]) -> usize {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("its maps");
    let mut memory = fs::File::open(format!("/proc/{pid}/mem")).expect("its memory");
    let mut found = 0;
    for line in maps
        .lines()
        .filter(|line| line.split_whitespace().nth(1).is_some_and(|m| m.starts_with("rw")))
    {
        let range = line.split_whitespace().next().and_then(|range| range.split_once('-'));
        let (from, to) = range.expect("a range");
        let number = |hex: &str| u64::from_str_radix(hex, 16).expect("hexadecimal");
        let mut bytes = Vec::new();
        let read = memory
            .seek(SeekFrom::Start(number(from)))
            .and_then(|_| (&mut memory).take(number(to) - number(from)).read_to_end(&mut bytes));
        // Some ranges can't be read, such as the kernel's own.
        if read.is_ok() || !bytes.is_empty() {
            found += memchr::memmem::find_iter(&bytes, wanted).count();
        }
    }
    found
}

#[tokio::test]
async fn the_devices_key_is_in_the_memory_of_adit_once() {
    let mut world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let up = device.up(&[]).await;
    if fs::File::open(format!("/proc/{}/mem", up.adit.pid())).is_err()
        && skip::skip_test("root's rights are needed to read another process's memory")
    {
        return;
    }
    // A second session, too.
    world.kill_server().await;
    world.restart_server().await;
    let answer = raw::exchange(up.address, "GET / HTTP/1.0\r\n\r\n").await;
    assert!(answer.ends_with("Ollama is running"), "{answer}");
    let pem = private_key(&device);
    let lines: Vec<&str> = pem.lines().filter(|line| !line.starts_with('-')).collect();
    let der = BASE64.decode(lines.concat().as_bytes()).expect("base64");
    // PKCS #8 of a P-256 key (RFC 5958, RFC 5915): the secret number is behind these bytes.
    let number = der.windows(5).position(|w| w == [2, 1, 1, 4, 32]).expect("a number") + 5;
    let pid = up.adit.pid();
    assert_eq!(count(pid, lines[1].as_bytes()), 1, "as text");
    assert!(count(pid, &der[number..number + 32]) <= 1, "as a number");
}
