//! What `aditd` gives up after its start: it does all of its work, and can do nothing else.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::net::UnixListener,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open},
};
use serde_json::{Value, json};
use tests::{
    cli_assert::{FAILED, assert_ok, assert_told},
    ollama::Options,
    raw::{self, ROOT},
    skip::{landlock_limits_signals, skip_without_landlock},
    state_files::text,
    world::World,
};

use crate::PROGRAM;

/// The fields of `/proc/PID/status`.
fn process_status(pid: u64) -> BTreeMap<String, String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let pair = |line: &str| line.split_once(':').map(|(k, v)| (k.to_owned(), v.trim().to_owned()));
    text.lines().filter_map(pair).collect()
}

/// The only child of a server.
fn broker_of(server: u64) -> u64 {
    let children = fs::read_to_string(format!("/proc/{server}/task/{server}/children"));
    children.expect("it runs").trim().parse().expect("one child")
}

fn open_as(pid: u64, number: u32) -> Option<String> {
    let file = fs::read_link(format!("/proc/{pid}/fd/{number}")).ok()?;
    Some(file.display().to_string())
}

/// What a report of `aditd doctor --json` says of the sandbox.
#[track_caller]
fn sandbox_line(report: &str) -> Value {
    let report: Value = serde_json::from_str(report).expect("JSON");
    let lines = report["lines"].as_array().expect("lines");
    lines.iter().find(|line| line["id"] == "sandbox").expect("a line").clone()
}

async fn pid(world: &World) -> u64 {
    world.status().await["pid"].as_u64().expect("a number")
}

#[tokio::test]
async fn a_server_in_its_sandbox_does_all_of_its_work() {
    let config = "audit_size = '1KiB'\n";
    let world = World::start_configured(PROGRAM, Options::default(), &[], config).await;
    let status = world.status().await;
    assert_eq!(status["sandbox"]["on"], true);
    assert_eq!(status["sandbox"]["system_calls"], true);
    let first = process_status(pid(&world).await);
    assert_eq!((&*first["NoNewPrivs"], &*first["Seccomp"]), ("1", "2"));
    if !skip_without_landlock() {
        assert_eq!(status["sandbox"]["files"], true);
        assert_eq!(status["sandbox"]["tcp_ports"], true);
    }
    // It enrolls and serves.
    let up = world.up("laptop").await;
    for _ in 0..40 {
        assert!(raw::exchange(up.address, ROOT).await.ends_with("Ollama is running"));
    }
    // It writes more than one file of its log.
    world.audit_has(40, |line| line["event"] == "request").await;
    let logs = fs::read_dir(world.state()).expect("a directory").filter(|entry| {
        let name = entry.as_ref().expect("an entry").file_name();
        name.to_string_lossy().starts_with("audit") && name.to_string_lossy().contains("jsonl")
    });
    assert!(logs.count() > 1, "the log was not rotated");
    assert_eq!(world.status().await["audit"]["failing"], Value::Null);
    // It reads a new file of its configuration, also when an editor has put it in place of the old.
    let new = world.scratch("world.toml.new");
    fs::write(&new, "audit_size = '1KiB'\n[limits]\nrequests_per_minute = 100\n").expect("written");
    fs::rename(&new, world.config()).expect("renamed");
    assert_ok(&world.aditd(&["reload"]).await);
    let backup = world.scratch("backup");
    assert_ok(&world.aditd(&["backup", text(&backup)]).await);
    // Doctor sees through the broker what the server may not look at.
    let doctor = world.aditd(&["doctor", "--json"]).await;
    assert_eq!(sandbox_line(&doctor.stdout)["verdict"], "ok");
    // The one that replaces it is in a sandbox of its own, and serves.
    let before = pid(&world).await;
    let successor = world.replace_server().await;
    let after = process_status(u64::try_from(successor.pid).expect("positive"));
    assert_ne!(u64::try_from(successor.pid).expect("positive"), before);
    // Filters of the older process would add up.
    for field in ["NoNewPrivs", "Seccomp", "Seccomp_filters"] {
        assert_eq!(first[field], after[field], "{field}");
    }
    assert!(raw::exchange(up.address, ROOT).await.ends_with("Ollama is running"));
}

#[tokio::test]
async fn a_reload_that_needs_more_changes_nothing_and_a_replacement_puts_it_in_force() {
    if skip_without_landlock() {
        return;
    }
    let world = World::start(PROGRAM).await;
    let before = fs::read_to_string(world.config()).expect("read");
    let roles = "[roles.guest]\nallow = ['GET /api/tags']\n";
    let authority = raw_listener();
    let port = authority.local_addr().expect("an address").port();
    fs::write(world.config(), format!("authorize = 'http://127.0.0.1:{port}/check'\n{roles}"))
        .expect("written");
    let refused = world.aditd(&["reload"]).await;
    assert_told(&refused, FAILED, &[&format!("TCP port {port}"), "`authorize`", "`aditd replace"]);
    // Not the half of it.
    let names = world.status().await["roles"].to_string();
    assert!(!names.contains("guest"), "{names}");
    let _successor = world.replace_server().await;
    let names = world.status().await["roles"].to_string();
    assert!(names.contains("guest"), "{names}");
    assert_ok(&world.aditd(&["reload"]).await);
    // Less than at its start is no question of rights.
    fs::write(world.config(), before).expect("written");
    assert_ok(&world.aditd(&["reload"]).await);
}

fn raw_listener() -> std::net::TcpListener {
    std::net::TcpListener::bind("127.0.0.1:0").expect("a port")
}

#[tokio::test]
async fn the_sandbox_can_be_switched_off_and_every_look_says_so() {
    let world = World::start_with(PROGRAM, Options::default(), &["--no-sandbox"]).await;
    assert_eq!(world.status().await["sandbox"]["on"], false);
    let status = process_status(pid(&world).await);
    assert_eq!(status["Seccomp"], "0");
    let doctor = world.aditd(&["doctor", "--json"]).await;
    assert!(doctor.stdout.contains("--no-sandbox"), "{}", doctor.stdout);
    let up = world.up("laptop").await;
    assert!(raw::exchange(up.address, ROOT).await.ends_with("Ollama is running"));
    // The flag outlives a replacement.
    let _successor = world.replace_server().await;
    assert_eq!(world.status().await["sandbox"]["on"], false);
}

#[tokio::test]
async fn a_server_whose_broker_has_ended_goes_on_and_names_the_cure() {
    let world = World::start(PROGRAM).await;
    let up = world.up("laptop").await;
    let server = pid(&world).await;
    let broker = i32::try_from(broker_of(server)).expect("a number");
    let broker = Pid::from_raw(broker).expect("a process id");
    kill_process(broker, Signal::KILL).expect("killed");
    assert_told(&world.aditd(&["replace"]).await, FAILED, &["broker", "restart aditd"]);
    assert!(raw::exchange(up.address, ROOT).await.ends_with("Ollama is running"));
    assert_eq!(pid(&world).await, server);
}

#[tokio::test]
async fn on_a_kernel_that_can_limit_nothing_the_server_goes_on_and_every_look_says_so() {
    let mut world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    world.kill_server().await;
    world.restart_server_on_an_old_kernel().await;
    let sandbox = world.status().await["sandbox"].clone();
    for limit in ["files", "tcp_ports", "signals", "system_calls"] {
        assert_eq!(sandbox[limit], false, "{limit}");
    }
    assert_eq!((&sandbox["on"], &sandbox["landlock_abi"]), (&json!(true), &json!(0)));
    assert!(sandbox["failed"][0].as_str().is_some_and(|why| why.starts_with("seccomp failed")));
    let shown = world.aditd(&["status"]).await.stdout;
    assert!(shown.contains("so nothing limits files, TCP ports, signals, system calls"), "{shown}");
    let doctor = world.aditd(&["doctor", "--json"]).await;
    assert_eq!(sandbox_line(&doctor.stdout)["verdict"], "warn");
    device.up(&[]).await.works().await;
    // The one that replaces it gives up what it can: it was started by a process with all rights.
    let _successor = world.replace_server().await;
    device.up(&[]).await.works().await;
}

/// The files that a process has open, as `/proc` names them.
fn open_files(pid: u64) -> BTreeSet<String> {
    let files = fs::read_dir(format!("/proc/{pid}/fd")).expect("root may see it");
    let name = |file: std::io::Result<fs::DirEntry>| fs::read_link(file.ok()?.path()).ok();
    files.filter_map(name).map(|name| name.display().to_string()).collect()
}

#[tokio::test]
async fn the_broker_has_none_of_the_servers_sockets_and_ends_with_it() {
    let mut world = World::start(PROGRAM).await;
    let server = pid(&world).await;
    let broker = broker_of(server);
    if rustix::process::geteuid().is_root() {
        let sockets = |pid| {
            let files = open_files(pid);
            files.into_iter().filter(|file| file.starts_with("socket:")).collect::<Vec<_>>()
        };
        let of_server = sockets(server);
        assert!(of_server.len() > 3, "{of_server:?}");
        let shared: Vec<_> =
            sockets(broker).into_iter().filter(|one| of_server.contains(one)).collect();
        // What both log to may be one.
        assert!(shared.iter().all(|one| open_as(broker, 2).as_ref() == Some(one)), "{shared:?}");
    }
    let broker = i32::try_from(broker).ok().and_then(Pid::from_raw).expect("a process id");
    let broker = pidfd_open(broker, PidfdFlags::empty()).expect("it runs");
    world.kill_server().await;
    // A pidfd is readable when its process has ended (pidfd_open(2)).
    let within = Timespec { tv_sec: 20, tv_nsec: 0 };
    let ended = poll(&mut [PollFd::new(&broker, PollFlags::IN)], Some(&within));
    assert_eq!(ended, Ok(1), "the broker has not ended");
}

/// A process with the rules of a real configuration tries what somebody would try who has taken
/// `aditd` over.
#[tokio::test]
async fn who_takes_it_over_can_open_no_other_file_and_connect_to_no_other_port() {
    if skip_without_landlock() {
        return;
    }
    let world = World::start(PROGRAM).await;
    let (own, strange) = (raw_listener(), raw_listener());
    let port = |listener: &std::net::TcpListener| listener.local_addr().expect("bound").port();
    let (state, conf) = (world.scratch("other-state"), world.scratch("conf"));
    fs::create_dir(&conf).expect("made");
    let config = conf.join("aditd.toml");
    let written = format!("upstream = 'http://127.0.0.1:{}'\n", port(&own));
    fs::write(&config, written).expect("written");
    let (secret, socket) = (world.scratch("secret"), world.scratch("socket"));
    fs::write(&secret, "secret").expect("written");
    let _listener = UnixListener::bind(&socket).expect("bound");
    let args = [
        "try-sandbox",
        text(&state),
        text(&config),
        text(&secret),
        text(&socket),
        &port(&own).to_string(),
        &port(&strange).to_string(),
    ];
    let tried = world.programs.run("aditd", &args, "").await.expect("it runs");
    let found: Value =
        serde_json::from_str(&tried.stdout).unwrap_or_else(|e| panic!("{e}: {tried:?}"));
    // Landlock limits files and ports in older kernels than signals.
    let signal = if landlock_limits_signals() { "EPERM" } else { "done" };
    assert_eq!(
        found,
        json!({
            "write its state": "done",
            "read its configuration": "done",
            "connect to its upstream": "done",
            "read /etc/passwd": "EACCES",
            "read /etc/resolv.conf": "EACCES",
            "write where temporary files are": "EACCES",
            "list the root": "EACCES",
            "read another file": "EACCES",
            "write another file": "EACCES",
            "write its configuration": "EACCES",
            "connect to a strange port": "EACCES",
            "connect to a strange address": "EACCES",
            "listen on a port": "EACCES",
            "connect to a Unix socket": "EPERM",
            "make a socket of MPTCP": "EPERM",
            "make a socket of SCTP": "EPERM",
            "make a socket of DCCP": "EPERM",
            "ask for its addresses": "done",
            "make a pair of Unix datagram sockets": "EPERM",
            "make a pair that sends only to itself": "done",
            "let others look at its memory": "EPERM",
            "write a program into its state": "done",
            "have that program run": "refused",
            "have a program run by its link in /proc": "refused",
            "run a program": "EPERM",
            "signal another process": signal,
            "make a namespace": "EPERM",
            "read /etc/passwd in another thread": "EACCES",
        })
    );
}
