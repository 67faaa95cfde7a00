//! Enrolling by an invitation's code: where the code is read from, how often it can be used, and
//! for how long.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use client::profile::{ProfileDir, SecretPem};
use common::machine::{network::own_network_or_example, process::unix_now};
use data_encoding::BASE64;
use proto::{
    identity::Certificate,
    wire::{ALPN_ENROLL, EnrollAnswer, Enrolled},
};
use serde_json::Value;
use tests::{
    cli_assert::{FAILED, NOT_ALLOWED, USAGE, assert_ok, assert_told, without_places},
    credentials::{has_ended, new_key, parse, redeem},
    endurance::redeemers,
    raw::{self, ROOT},
    skip,
    state_files::{device_names, devices, identity_file, private_key, profile, shell_quoted},
    stranger::{Stranger, crypto, first_flight},
    world::{SOON, World},
};

use crate::PROGRAM;

#[tokio::test]
async fn only_the_code_is_on_standard_output_and_everything_else_on_standard_error() {
    let world = World::start(PROGRAM).await;
    for flags in [&[][..], &["--qr"], &["-vv"], &["--qr", "--ttl", "7d"]] {
        let invited = world.aditd(&[&["invite", "laptop"], flags].concat()).await;
        assert_ok(&invited);
        let code = invited.stdout.strip_suffix('\n').expect("a line");
        assert!(!code.contains(char::is_whitespace), "{code:?}");
        assert_eq!(parse(code).addresses, [world.address().await.to_string()]);
        assert!(!invited.stderr.contains(code), "{}", invited.stderr);
        assert!(
            invited.stderr.contains("run `adit enroll` and paste the code"),
            "{}",
            invited.stderr
        );
        let drawn = invited.stderr.contains('█') && invited.stderr.contains('▀');
        assert_eq!(drawn, flags.contains(&"--qr"), "{}", invited.stderr);
    }
}

#[tokio::test]
async fn a_code_on_standard_input_may_be_broken_into_lines() {
    let world = World::start(PROGRAM).await;
    let pid = world.aditd.pid();
    let code = world.invite("laptop").await;
    let (head, tail) = code.trim().split_at(40);
    let device = world.stranger("laptop");
    let enrolled = device.enroll(&format!("  {}\r\n   {tail}\n\n", head.to_uppercase()), &[]).await;
    assert_ok(&enrolled);
    assert_eq!(enrolled.stdout, "", "there is no data to pipe");
    let id = profile(&device).enrolled.device_id.to_string();
    assert!(
        enrolled.stderr.contains(&format!("Enrolled as laptop {id} at")),
        "{}",
        enrolled.stderr
    );
    let said = without_places(&enrolled.stderr);
    assert!(said.contains("`adit up`"), "{said}");
    let up = device.up(&[]).await;
    assert!(raw::exchange(up.address, ROOT).await.ends_with("Ollama is running"));
    assert_eq!(world.status().await["pid"], pid, "the server was never restarted");
}

#[tokio::test]
async fn a_code_is_read_from_a_file() {
    let world = World::start(PROGRAM).await;
    let file = world.scratch("code.txt");
    fs::write(&file, world.invite("laptop").await).expect("written");
    let device = world.stranger("laptop");
    let file = file.to_str().expect("a path");
    assert_ok(&device.enroll("this is not read", &["--code-file", file]).await);
    assert_eq!(profile(&device).enrolled.device.as_str(), "laptop");

    let other = world.stranger("other");
    let missing = other.enroll("", &["--code-file", "/no/such/file"]).await;
    assert_told(&missing, USAGE, &["`/no/such/file`\n  Caused by: No such file"]);
}

#[tokio::test]
async fn on_a_terminal_the_code_is_asked_for() {
    let util_linux = Command::new("script")
        .arg("--version")
        .output()
        .is_ok_and(|out| String::from_utf8_lossy(&out.stdout).contains("util-linux"));
    if !util_linux && skip::skip_test("there is no `script` of util-linux to make a terminal with")
    {
        return;
    }
    let world = World::start(PROGRAM).await;
    let device = world.stranger("laptop");
    let command = format!(
        "{} enroll --state-dir {}",
        shell_quoted(&world.scratch("adit")),
        shell_quoted(&device.dir)
    );
    let mut script = tokio::process::Command::new("script")
        .args(["--quiet", "--return", "--command", &command, "/dev/null"])
        .env_remove("ADIT_STATE_DIR")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("script starts");
    let mut stdin = script.stdin.take().expect("a pipe");
    let code = world.invite("laptop").await;
    tokio::io::AsyncWriteExt::write_all(&mut stdin, code.as_bytes()).await.expect("typed");
    // Standard input stays open: on a terminal one line is enough.
    let out = tokio::time::timeout(SOON, script.wait_with_output())
        .await
        .expect("it ends")
        .expect("output");
    drop(stdin);
    let seen = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "{seen}");
    assert!(seen.contains("Code from `aditd invite`: "), "{seen}");
    assert!(seen.contains("Enrolled as laptop"), "{seen}");
    assert_eq!(profile(&device).enrolled.device.as_str(), "laptop");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exactly_one_of_a_hundred_devices_that_use_one_code_at_once_is_enrolled() {
    let world = World::start(PROGRAM).await;
    redeemers::all(&world, 100, 100).await;
}

#[tokio::test]
async fn a_used_code_is_refused_and_the_device_that_used_it_stays_enrolled() {
    let world = World::start(PROGRAM).await;
    let code = world.invite("laptop").await;
    let first = world.stranger("first");
    assert_ok(&first.enroll(&code, &[]).await);
    let second = world.stranger("second");
    let refused = second.enroll(&code, &[]).await;
    assert_told(
        &refused,
        NOT_ALLOWED,
        &["the invitation has been used already", "aditd invite NAME"],
    );
    assert!(!identity_file(&second).exists());
    assert_eq!(devices(&world).await.len(), 1);
    first.up(&[]).await;
}

#[tokio::test]
async fn a_code_with_loopback_addresses_only_says_that_no_other_machine_reaches_them() {
    let mut world = World::start(PROGRAM).await;
    let invited = world.aditd(&["invite", "laptop"]).await;
    let listen = format!("--listen 0.0.0.0:11435 --allow-from {}", own_network_or_example());
    for says in ["no address that other machines reach", &listen] {
        assert!(invited.stderr.contains(says), "{}", invited.stderr);
    }
    // To another machine, that address is its own.
    world.kill_server().await;
    let told = world.stranger("laptop").enroll(&invited.stdout, &[]).await;
    let says = "names no address that other machines reach";
    assert_told(&told, FAILED, &[says, &listen, "`aditd invite NAME`"]);
}

#[tokio::test]
async fn an_expired_code_is_refused_with_the_time_and_the_clock() {
    let world = World::start(PROGRAM).await;
    let invited = world.aditd(&["invite", "laptop", "--ttl", "1s"]).await;
    assert_ok(&invited);
    has_ended(&parse(&invited.stdout)).await;
    let refused = world.stranger("laptop").enroll(&invited.stdout, &[]).await;
    assert_told(
        &refused,
        FAILED,
        &[
            "the invitation has expired",
            "it was valid until 20",
            "clock shows 20",
            "aditd invite NAME",
        ],
    );

    // If a clock is wrong, or the code was changed, the server does not answer.
    let mut forged = parse(&invited.stdout);
    forged.expires += 3600;
    let ignored = world.stranger("forger").enroll(&forged.code(), &[]).await;
    assert_told(&ignored, FAILED, &["no answer from", "aditd invite NAME"]);
    assert_eq!(devices(&world).await.len(), 0);
}

#[tokio::test]
async fn a_newer_invitation_for_a_name_withdraws_the_older_one() {
    let world = World::start(PROGRAM).await;
    let older = world.invite("laptop").await;
    let other = world.invite("desk").await;
    let newer = world.aditd(&["invite", "laptop"]).await;
    assert!(
        newer.stderr.contains("An older invitation for `laptop` has been withdrawn"),
        "{}",
        newer.stderr
    );
    let withdrawn = world.stranger("older").enroll(&older, &[]).await;
    assert_told(
        &withdrawn,
        FAILED,
        &["no answer from", "replaced by a newer one", "aditd invite NAME"],
    );
    let asked = format!("Asking {} …\n", world.address().await);
    assert!(
        withdrawn.stderr.starts_with(&asked),
        "nobody waits without knowing for whom: {}",
        withdrawn.stderr
    );
    let (here, code) = (
        withdrawn.stderr.find("check on the server that aditd runs"),
        withdrawn.stderr.find("replaced by"),
    );
    assert!(here.is_some() && here < code, "what is likelier comes first: {}", withdrawn.stderr);
    assert!(!withdrawn.stderr.contains("still enrolled"), "it never was: {}", withdrawn.stderr);
    assert_ok(&world.stranger("newer").enroll(&newer.stdout, &[]).await);
    assert_ok(&world.stranger("desk").enroll(&other, &[]).await);
}

#[tokio::test]
async fn an_invitation_made_before_the_server_starts_works_afterwards() {
    let mut world = World::start(PROGRAM).await;
    world.kill_server().await;
    let invited = world.aditd(&["invite", "laptop"]).await;
    assert_ok(&invited);
    assert!(invited.stderr.contains("aditd is not running here"), "{}", invited.stderr);
    world.restart_server().await;
    let device = world.stranger("laptop");
    assert_ok(&device.enroll(&invited.stdout, &[]).await);
    device.up(&[]).await;
}

#[tokio::test]
async fn before_its_first_start_a_server_can_be_initialized_and_can_invite() {
    let world = World::start(PROGRAM).await;
    let state = world.scratch("fresh");
    let state = state.to_str().expect("a path");
    let run = async |args: &[&str]| {
        let args = [args, &["--state-dir", state]].concat();
        world.programs.run("aditd", &args, "").await.expect("aditd runs")
    };
    let too_early = run(&["invite", "laptop"]).await;
    assert_told(&too_early, FAILED, &["there is no server state in", "aditd init"]);
    assert!(!Path::new(state).exists(), "a failed command makes nothing");
    let prepared = run(&["init"]).await;
    assert_ok(&prepared);
    assert_eq!(prepared.stdout, "");
    let ca = fs::read(Path::new(state).join("ca.key")).expect("a key");
    assert_ok(&run(&["init"]).await);
    assert_eq!(
        fs::read(Path::new(state).join("ca.key")).expect("a key"),
        ca,
        "a second time changes nothing"
    );
    let invited = run(&["invite", "laptop"]).await;
    assert_ok(&invited);
    assert_eq!(parse(&invited.stdout).addresses, ["127.0.0.1:11435", "[::1]:11435"]);
    let advertised = run(&["invite", "laptop", "--advertise", "gpu.lan:7,10.0.0.7:8"]).await;
    assert_eq!(parse(&advertised.stdout).addresses, ["gpu.lan:7", "10.0.0.7:8"]);
}

#[tokio::test]
async fn after_a_lost_answer_the_same_key_can_use_the_same_code_again() {
    let world = World::start(PROGRAM).await;
    let code = world.invite("laptop").await;
    let invitation = parse(&code);
    let device = world.stranger("laptop");
    // `adit enroll` had stored its key and sent the request when its network was cut.
    let place = ProfileDir::new(&device.dir, "default".parse().expect("a name"));
    let key = new_key();
    place.prepare().expect("a directory");
    let kept =
        place.pending_key(&*invitation.secret.token(), || Ok(SecretPem::new(key.serialize_pem())));
    assert_eq!(kept.expect("stored").as_str(), key.serialize_pem());
    let EnrollAnswer::Enrolled(lost) = redeem(&invitation, &key).await else { panic!("refused") };

    let thief = world.stranger("thief").enroll(&code, &[]).await;
    assert_told(&thief, NOT_ALLOWED, &["used already"]);
    assert_ok(&device.enroll(&code, &[]).await);
    let Enrolled { device_id, certificate, .. } = profile(&device).enrolled;
    assert_eq!(device_id, lost.device_id);
    let read = |base64: &str| {
        Certificate::from_der(&BASE64.decode(base64.as_bytes()).expect("base64"))
            .expect("a certificate")
    };
    assert_eq!(read(&certificate).key, read(&lost.certificate).key);
    assert_eq!(private_key(&device), key.serialize_pem());
    assert!(!place.dir.join("pending.json").exists(), "nothing is pending any more");
    assert_eq!(devices(&world).await.len(), 1);
    device.up(&[]).await;

    // Revoking the device also ends its invitation: the old code gets no answer.
    assert_ok(&world.aditd(&["device", "revoke", "laptop"]).await);
    let stranger = Stranger::facing(world.address().await).await;
    let crypto = crypto(&profile(&device), None, &[ALPN_ENROLL]);
    for datagram in first_flight(crypto, &invitation.secret.knock_key().knock()).await {
        stranger.send(&datagram).await;
    }
    world.status().await;
    stranger.assert_heard_nothing("the code of a revoked device").await;
}

#[tokio::test]
async fn an_invitation_is_listed_until_it_is_used_or_withdrawn_and_then_its_code_is_invalid() {
    let world = World::start(PROGRAM).await;
    let none = world.aditd(&["invite", "--list"]).await;
    assert_ok(&none);
    assert_eq!(none.stdout, "");
    let before = unix_now();
    let (code, _) = (world.invite("tmp").await, world.invite_as("laptop", "infer").await);
    let table = world.aditd(&["invite", "--list"]).await;
    assert_ok(&table);
    let rows: Vec<Vec<_>> =
        table.stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(
        (&rows[0][..2], &rows[1][..2], &rows[2][..2]),
        (&["NAME", "ROLE"][..], &["laptop", "infer"][..], &["tmp", "admin"][..])
    );
    let json: Value =
        serde_json::from_str(&world.aditd(&["invite", "--list", "--json"]).await.stdout)
            .expect("JSON");
    let (one, expires) =
        (&json["invitations"][1], json["invitations"][1]["expires"].as_i64().expect("a time"));
    assert_eq!(
        (&json["schema"], &one["name"], &one["role"]),
        (&1.into(), &"tmp".into(), &"admin".into())
    );
    assert!((before + 600..=unix_now() + 600).contains(&expires), "{json}");
    // Programs that read the list expect only devices in it.
    let list = world.aditd(&["device", "list"]).await;
    assert!(
        list.stdout.is_empty()
            && list.stderr.contains("Open invitations:")
            && list.stderr.contains("tmp"),
        "{list:?}"
    );
    assert!(device_names(&world).await.is_empty());

    let withdrawn = world.aditd(&["device", "revoke", "tmp"]).await;
    assert_ok(&withdrawn);
    assert!(
        withdrawn.stderr.contains("The invitation for `tmp` is withdrawn."),
        "{}",
        withdrawn.stderr
    );
    assert_told(&world.stranger("tmp").enroll(&code, &[]).await, FAILED, &["error: cannot enroll"]);
    assert_told(
        &world.aditd(&["device", "revoke", "tmp"]).await,
        FAILED,
        &["there is no device `tmp`"],
    );
    world.device("laptop").await;
    assert_eq!(world.aditd(&["invite", "--list"]).await.stdout, "");
}
