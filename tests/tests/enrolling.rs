//! How a device gets in by an invitation, what it keeps of it, and how its access ends.

use std::{
    collections::HashSet,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use client::{
    dial,
    profile::{Place, Profile, SecretPem},
};
use common::{
    frame,
    identity::{Certificate, DeviceId},
    invitation::{Invitation, sha256},
    process::unix_now,
    tls,
    wire::{EnrollAnswer, EnrollRefusal, EnrollRequest, Enrolled},
};
use data_encoding::{BASE64, HEXLOWER};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use serde_json::Value;
use tests::{
    process::Ended,
    raw, skip,
    world::{Device, SOON, World},
};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

const PROGRAM: &str = env!("CARGO_BIN_EXE_adit-demo");
const ROOT: &str = "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

/// That a command failed as people and scripts are promised: one error with these words in it, a cure, this exit code, no data.
#[track_caller]
fn assert_failed(ended: &Ended, code: i32, words: &[&str]) {
    let Ended { stdout, stderr, .. } = ended;
    assert_eq!(ended.code, Some(code), "{ended:?}");
    assert_eq!(stdout, "", "{ended:?}");
    assert_eq!(stderr.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{stderr}");
    assert_eq!(stderr.matches("\nhint: ").count(), 1, "{stderr}");
    assert!(!stderr.contains("panicked") && !stderr.contains("defect"), "{stderr}");
    for word in words {
        assert!(stderr.contains(word), "no `{word}` in:\n{stderr}");
    }
}

#[track_caller]
fn assert_ok(ended: &Ended) {
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
}

fn profile(device: &Device, server: &str) -> Profile {
    Place::new(&device.dir, server.parse().expect("a name")).read().expect("a profile")
}

fn identity_file(device: &Device) -> PathBuf {
    device.dir.join("servers/default/identity.json")
}

fn private_key(device: &Device) -> String {
    let stored: Value = serde_json::from_slice(&fs::read(identity_file(device)).expect("an identity")).expect("JSON");
    stored["private_key"].as_str().expect("a key").to_owned()
}

fn parse(code: &str) -> Invitation {
    code.parse().unwrap_or_else(|e| panic!("{e}: {code}"))
}

fn csr(key: &KeyPair) -> Vec<u8> {
    CertificateParams::default().serialize_request(key).expect("a CSR").der().to_vec()
}

/// Redeems an invitation as `adit enroll` does, without keeping anything.
async fn redeem(invitation: &Invitation, key: &KeyPair) -> EnrollAnswer {
    let crypto = tls::enroll_client(invitation.ca).expect("TLS");
    let config = dial::config(crypto, &invitation.secret.door_key(), common::transport::IDLE_TIMEOUT);
    let dialed = dial::dial(&config, &invitation.addresses, None).await.expect("an answer");
    let (mut send, mut recv) = dialed.connection.open_bi().await.expect("a stream");
    let request = EnrollRequest { token: BASE64.encode(&invitation.secret.token()), csr: BASE64.encode(&csr(key)) };
    frame::write(&mut send, &request).await.expect("sent");
    let answer = tokio::time::timeout(SOON, frame::read(&mut recv)).await.expect("in time").expect("an answer");
    dialed.connection.close(0u32.into(), b"");
    answer
}

async fn devices(world: &World) -> Vec<Value> {
    let listed = world.aditd(&["device", "list", "--json"]).await;
    assert_ok(&listed);
    let listed: Value = serde_json::from_str(&listed.stdout).expect("JSON");
    listed["devices"].as_array().expect("devices").clone()
}

fn shell_quoted(path: &Path) -> String {
    format!("'{}'", path.display())
}

#[tokio::test]
async fn the_code_stands_alone_on_standard_output_and_everything_else_on_standard_error() {
    let world = World::start(PROGRAM).await;
    for flags in [&[][..], &["--qr"], &["-vv"], &["--qr", "--ttl", "7d"]] {
        let invited = world.aditd(&[&["invite", "laptop"], flags].concat()).await;
        assert_ok(&invited);
        let code = invited.stdout.strip_suffix('\n').expect("a line");
        assert!(!code.contains(char::is_whitespace), "{code:?}");
        assert_eq!(parse(code).addresses, [world.address().await.to_string()]);
        assert!(!invited.stderr.contains(code), "{}", invited.stderr);
        assert!(invited.stderr.contains("run `adit enroll` and paste the code"), "{}", invited.stderr);
        let drawn = invited.stderr.contains('█') && invited.stderr.contains('▀');
        assert_eq!(drawn, flags.contains(&"--qr"), "{}", invited.stderr);
    }
}

#[tokio::test]
async fn a_code_is_read_from_standard_input_however_it_was_broken_into_lines() {
    let world = World::start(PROGRAM).await;
    let pid = world.aditd.pid();
    let code = world.invite("laptop").await;
    let (head, tail) = code.trim().split_at(40);
    let device = world.stranger("laptop");
    let enrolled = device.enroll(&format!("  {}\r\n   {tail}\n\n", head.to_uppercase()), &[]).await;
    assert_ok(&enrolled);
    assert_eq!(enrolled.stdout, "", "there is no data to pipe");
    let id = profile(&device, "default").enrolled.device_id.to_string();
    assert!(enrolled.stderr.contains(&format!("Enrolled as laptop {id} at")), "{}", enrolled.stderr);
    assert!(enrolled.stderr.contains("`adit up`"), "{}", enrolled.stderr);
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
    assert_eq!(profile(&device, "default").enrolled.device.as_str(), "laptop");

    let other = world.stranger("other");
    let missing = other.enroll("", &["--code-file", "/no/such/file"]).await;
    assert_failed(&missing, 2, &["`/no/such/file`\n  Caused by: No such file"]);
}

#[tokio::test]
async fn a_code_is_asked_for_on_a_terminal() {
    let util_linux = std::process::Command::new("script")
        .arg("--version")
        .output()
        .is_ok_and(|out| String::from_utf8_lossy(&out.stdout).contains("util-linux"));
    if !util_linux && skip::because("there is no `script` of util-linux to make a terminal with") {
        return;
    }
    let world = World::start(PROGRAM).await;
    let device = world.stranger("laptop");
    let command = format!("{} enroll --state-dir {}", shell_quoted(&world.scratch("adit")), shell_quoted(&device.dir));
    let mut script = tokio::process::Command::new("script")
        .args(["--quiet", "--return", "--command", &command, "/dev/null"])
        .env_remove("ADIT_STATE_DIR")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("script starts");
    let mut stdin = script.stdin.take().expect("a pipe");
    let code = world.invite("laptop").await;
    tokio::io::AsyncWriteExt::write_all(&mut stdin, code.as_bytes()).await.expect("typed");
    // Standard input stays open: one line is enough on a terminal.
    let out = tokio::time::timeout(SOON, script.wait_with_output()).await.expect("it ends").expect("output");
    drop(stdin);
    let seen = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "{seen}");
    assert!(seen.contains("Code from `aditd invite`: "), "{seen}");
    assert!(seen.contains("Enrolled as laptop"), "{seen}");
    assert_eq!(profile(&device, "default").enrolled.device.as_str(), "laptop");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_hundred_that_redeem_one_code_at_once_exactly_one_gets_in() {
    let world = World::start(PROGRAM).await;
    let code = world.invite("laptop").await;
    let mut redeemers = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let invitation = parse(&code);
        redeemers.spawn(async move {
            let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key");
            redeem(&invitation, &key).await
        });
    }
    let (mut admitted, mut refused) = (Vec::new(), 0);
    while let Some(answer) = redeemers.join_next().await {
        match answer.expect("no panic") {
            EnrollAnswer::Enrolled(enrolled) => admitted.push(enrolled.device_id),
            EnrollAnswer::Refused(EnrollRefusal::Used) => refused += 1,
            EnrollAnswer::Refused(other) => panic!("{other}"),
        }
    }
    assert_eq!((admitted.len(), refused), (1, 99));
    let listed = devices(&world).await;
    assert_eq!(listed.len(), 1, "{listed:?}");
    assert_eq!(listed[0]["id"], admitted[0].to_string());
}

#[tokio::test]
async fn a_code_that_was_used_is_refused_and_the_device_that_used_it_stays() {
    let world = World::start(PROGRAM).await;
    let code = world.invite("laptop").await;
    let first = world.stranger("first");
    assert_ok(&first.enroll(&code, &[]).await);
    let second = world.stranger("second");
    let refused = second.enroll(&code, &[]).await;
    assert_failed(&refused, 4, &["the invitation has been used already", "aditd invite NAME"]);
    assert!(!identity_file(&second).exists());
    assert_eq!(devices(&world).await.len(), 1);
    first.up(&[]).await;
}

#[tokio::test]
async fn a_code_that_has_expired_says_since_when_and_by_which_clock() {
    let world = World::start(PROGRAM).await;
    let invited = world.aditd(&["invite", "laptop", "--ttl", "1s"]).await;
    assert_ok(&invited);
    let expires = parse(&invited.stdout).expires;
    let give_up = Instant::now() + SOON;
    while unix_now() < expires {
        assert!(Instant::now() < give_up, "the clock stands still");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let refused = world.stranger("laptop").enroll(&invited.stdout, &[]).await;
    assert_failed(&refused, 1, &["the invitation has expired", "it was good until 20", "clock says 20", "aditd invite NAME"]);

    // Whoever's clock is wrong, or who rewrites the code, meets a server that does not answer.
    let mut forged = parse(&invited.stdout);
    forged.expires += 3600;
    let ignored = world.stranger("forger").enroll(&forged.code(), &[]).await;
    assert_failed(&ignored, 1, &["no answer from", "aditd invite NAME"]);
    assert_eq!(devices(&world).await.len(), 0);
}

#[tokio::test]
async fn a_newer_invitation_for_a_name_withdraws_the_older_one() {
    let world = World::start(PROGRAM).await;
    let older = world.invite("laptop").await;
    let other = world.invite("desk").await;
    let newer = world.aditd(&["invite", "laptop"]).await;
    assert!(newer.stderr.contains("An older invitation for `laptop` has been withdrawn"), "{}", newer.stderr);
    let withdrawn = world.stranger("older").enroll(&older, &[]).await;
    assert_failed(&withdrawn, 1, &["no answer from", "replaced by a newer one", "aditd invite NAME"]);
    assert_ok(&world.stranger("newer").enroll(&newer.stdout, &[]).await);
    assert_ok(&world.stranger("desk").enroll(&other, &[]).await);
}

#[tokio::test]
async fn an_invitation_from_before_the_server_starts_is_good_when_it_does() {
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
async fn a_server_that_has_never_run_is_prepared_and_invites_to_where_it_will_listen() {
    let world = World::start(PROGRAM).await;
    let state = world.scratch("fresh");
    let state = state.to_str().expect("a path");
    let run = async |args: &[&str]| {
        let args = [args, &["--state-dir", state]].concat();
        world.programs.run("aditd", &args, "").await.expect("aditd runs")
    };
    let too_early = run(&["invite", "laptop"]).await;
    assert_failed(&too_early, 1, &["there is no server state in", "aditd init"]);
    assert!(!Path::new(state).exists(), "a failed command makes nothing");
    let prepared = run(&["init"]).await;
    assert_ok(&prepared);
    assert_eq!(prepared.stdout, "");
    let ca = fs::read(Path::new(state).join("ca.key")).expect("a key");
    assert_ok(&run(&["init"]).await);
    assert_eq!(fs::read(Path::new(state).join("ca.key")).expect("a key"), ca, "a second time changes nothing");
    let invited = run(&["invite", "laptop"]).await;
    assert_ok(&invited);
    assert_eq!(parse(&invited.stdout).addresses, ["127.0.0.1:11435", "[::1]:11435"]);
    let advertised = run(&["invite", "laptop", "--advertise", "gpu.lan:7,10.0.0.7:8"]).await;
    assert_eq!(parse(&advertised.stdout).addresses, ["gpu.lan:7", "10.0.0.7:8"]);
}

#[tokio::test]
async fn an_answer_that_was_lost_is_had_again_with_the_same_code_and_by_the_same_key_alone() {
    let world = World::start(PROGRAM).await;
    let code = world.invite("laptop").await;
    let invitation = parse(&code);
    let device = world.stranger("laptop");
    // As far as `adit enroll` came when its network was cut: the key stored, the request sent, no answer.
    let place = Place::new(&device.dir, "default".parse().expect("a name"));
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key");
    place.prepare().expect("a directory");
    let kept = place.pending_key(&invitation.secret.token(), || Ok(SecretPem(key.serialize_pem())));
    assert_eq!(kept.expect("stored").0, key.serialize_pem());
    let EnrollAnswer::Enrolled(lost) = redeem(&invitation, &key).await else { panic!("refused") };

    let thief = world.stranger("thief").enroll(&code, &[]).await;
    assert_failed(&thief, 4, &["used already"]);
    assert_ok(&device.enroll(&code, &[]).await);
    let Enrolled { device_id, certificate, .. } = profile(&device, "default").enrolled;
    assert_eq!(device_id, lost.device_id);
    let read = |base64: &str| Certificate::from_der(&BASE64.decode(base64.as_bytes()).expect("base64")).expect("a certificate");
    assert_eq!(read(&certificate).key, read(&lost.certificate).key);
    assert_eq!(private_key(&device), key.serialize_pem());
    assert!(!place.dir.join("pending.json").exists(), "nothing is pending any more");
    assert_eq!(devices(&world).await.len(), 1);
    device.up(&[]).await;

    // A revoked device gets nothing by trying its old code again.
    assert_ok(&world.aditd(&["device", "revoke", "laptop"]).await);
    assert!(matches!(redeem(&invitation, &key).await, EnrollAnswer::Refused(EnrollRefusal::Used)));
}

#[tokio::test]
async fn whatever_is_kept_is_for_its_owner_alone_even_under_a_careless_umask() {
    let world = World::start(PROGRAM).await;
    let careless = async |program: &str, args: &str, state: &Path, input: &str| {
        let command =
            format!("umask 0; exec {} {args} --state-dir {}", shell_quoted(&world.scratch(program)), shell_quoted(state));
        let mut child = tokio::process::Command::new("sh")
            .args(["-c", &command])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("sh starts");
        tokio::io::AsyncWriteExt::write_all(&mut child.stdin.take().expect("a pipe"), input.as_bytes()).await.expect("written");
        let ended = tokio::time::timeout(SOON, child.wait()).await.expect("it ends").expect("a status");
        assert!(ended.success(), "{command}");
    };
    let (server, device) = (world.scratch("careless-server"), world.scratch("careless-device"));
    careless("aditd", "init", &server, "").await;
    careless("aditd", "invite laptop", &server, "").await;
    let code = world.invite("laptop").await;
    careless("adit", "enroll", &device, &code).await;

    let mut up = tests::process::Process::spawn(
        {
            let mut command = tokio::process::Command::new("sh");
            let adit = shell_quoted(&world.scratch("adit"));
            let state = shell_quoted(&device);
            command.args(["-c", &format!("umask 0; exec {adit} up --listen 127.0.0.1:0 --state-dir {state}")]).kill_on_drop(true);
            command
        },
        "adit",
    )
    .expect("adit starts");
    up.ready().await.expect("adit is ready");

    let mut seen = HashSet::new();
    for root in [&server, &device, &world.state()] {
        each_below(root, &mut |path, metadata| {
            let mode = metadata.permissions().mode() & 0o777;
            if metadata.is_dir() {
                assert_eq!(mode, 0o700, "{}", path.display());
            } else if metadata.is_file() {
                assert_eq!(mode, 0o600, "{}", path.display());
            }
            seen.extend(path.file_name().map(|name| name.to_string_lossy().into_owned()));
        });
    }
    for name in [
        "ca.key",
        "server.key",
        "endpoint.json",
        "register.sqlite",
        "register.sqlite-wal",
        "identity.json",
        "lock",
        "control.sock",
    ] {
        assert!(seen.contains(name), "no {name} among {seen:?}");
    }
}

/// Looks at `path` and at all below it.
fn each_below(path: &Path, look: &mut impl FnMut(&Path, &fs::Metadata)) {
    let metadata = fs::symlink_metadata(path).expect("it is there");
    look(path, &metadata);
    if metadata.is_dir() {
        for entry in fs::read_dir(path).expect("a directory") {
            each_below(&entry.expect("an entry").path(), look);
        }
    }
}

/// The ways in which these bytes could show in a log.
fn spellings(bytes: &[u8]) -> Vec<String> {
    let debug = format!("{:?}", &bytes[..bytes.len().min(16)]);
    vec![
        BASE64.encode(bytes),
        HEXLOWER.encode(bytes),
        HEXLOWER.encode(bytes).to_uppercase(),
        debug.trim_end_matches(']').to_owned(),
    ]
}

/// The lines of a PEM file that are the secret, and its bytes in other spellings.
fn spellings_of_pem(pem: &str) -> Vec<String> {
    let key = KeyPair::from_pem(pem).expect("a key");
    let lines = pem.lines().filter(|line| !line.starts_with("-----") && line.len() > 16);
    let mut all: Vec<String> = lines.map(str::to_owned).collect();
    let der = key.serialize_der();
    // PKCS #8 of P-256 (RFC 5915): the 32 bytes of the private value follow the tag and length of its octet string.
    let at = der.windows(2).rposition(|w| w == [0x04, 0x20]).expect("the private value") + 2;
    all.extend(spellings(&der[at..at + 32]));
    all.extend(spellings(&der));
    all
}

#[tokio::test]
async fn no_secret_is_ever_said_not_even_in_the_most_talkative_log() {
    let world = World::start_with(PROGRAM, tests::ollama::Options::default(), &["-v"]).await;
    let invited = world.aditd(&["invite", "laptop", "-vv"]).await;
    let code = invited.stdout.trim().to_owned();
    let device = world.stranger("laptop");
    let enrolled = device.enroll(&code, &["-vv"]).await;
    assert_ok(&enrolled);
    let again = world.stranger("again").enroll(&code, &["-vv"]).await;
    let damaged = world.stranger("damaged").enroll(&code[..code.len() - 1], &["-vv"]).await;
    let key = private_key(&device);
    let mut up = device.up(&["-v"]).await;
    assert!(raw::exchange(up.address, ROOT).await.ends_with("Ollama is running"));
    let status = device.adit(&["status", "--json", "-vv"], "").await;
    let shown = world.aditd(&["device", "show", "laptop", "--json", "-vv"]).await;
    let revoked = world.aditd(&["device", "revoke", "laptop", "-vv"]).await;
    up.adit.says("this device was revoked").await;
    let log = up.adit.log();
    up.adit.kill().await;
    let refused = device.adit(&["up", "--listen", "127.0.0.1:0", "-vv"], "").await;
    assert_eq!(refused.code, Some(4), "{refused:?}");

    let invitation = parse(&code);
    let mut secrets = vec![code.clone(), code[4..].to_owned(), code[4..].to_uppercase()];
    secrets.extend(spellings(&invitation.secret.token()));
    secrets.extend(spellings(invitation.secret.door_key().as_bytes()));
    secrets.extend(spellings_of_pem(&key));
    for name in ["ca.key", "server.key"] {
        secrets.extend(spellings_of_pem(&fs::read_to_string(world.state().join(name)).expect("a key")));
    }
    let endpoint: Value = serde_json::from_slice(&fs::read(world.state().join("endpoint.json")).expect("keys")).expect("JSON");
    for name in ["door", "reset"] {
        let bytes = BASE64.decode(endpoint[name].as_str().expect("base64").as_bytes()).expect("base64");
        secrets.extend(spellings(&bytes));
    }
    secrets.push(endpoint["connection_ids"].to_string());

    let commands = [&enrolled, &again, &damaged, &status, &shown, &revoked, &refused];
    let mut said: Vec<(&str, String)> = commands.map(|e| ("a command", format!("{}{}", e.stdout, e.stderr))).into();
    said.push(("invite's talk", invited.stderr));
    said.push(("aditd's log", world.aditd.log()));
    said.push(("adit's log", log));
    for (who, text) in &said {
        for secret in &secrets {
            assert!(!text.contains(secret.as_str()), "{who} says {secret}:\n{text}");
        }
    }
    // Otherwise there would be little to be silent about.
    for (who, text) in &said[commands.len() + 1..] {
        assert!(text.contains("DEBUG"), "{who} is not talkative:\n{text}");
    }
}

#[tokio::test]
async fn a_second_server_is_enrolled_under_its_own_name_and_used_by_it() {
    let of = |model: &str| tests::ollama::Options { model: model.to_owned(), ..Default::default() };
    let home = World::start_with(PROGRAM, of("home:1"), &[]).await;
    let work = World::start_with(PROGRAM, of("work:1"), &[]).await;
    let device = home.device("laptop").await;
    let enrolled = device.enroll(&work.invite("laptop").await, &["--name", "work"]).await;
    assert_ok(&enrolled);
    assert!(enrolled.stderr.contains("`adit up work`"), "{}", enrolled.stderr);
    assert_ne!(private_key(&device), profile_key(&device, "work"), "each server gets a key of its own");

    // Both at once, from one state directory.
    let (at_home, at_work) = (device.up(&[]).await, device.up(&["work"]).await);
    let tags = "GET /api/tags HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    for (up, model, other) in [(&at_home, "home:1", "work:1"), (&at_work, "work:1", "home:1")] {
        let answer = raw::exchange(up.address, tags).await;
        assert!(answer.contains(model) && !answer.contains(other), "{answer}");
    }
    let status = device.adit(&["status", "work", "--json"], "").await;
    let status: Value = serde_json::from_str(&status.stdout).expect("JSON");
    assert_eq!((&status["schema"], &status["server"]), (&1.into(), &"work".into()));

    let unknown = device.adit(&["up", "elsewhere", "--listen", "127.0.0.1:0"], "").await;
    assert_failed(&unknown, 1, &["this device is not enrolled", "aditd invite NAME"]);

    // Of several servers none of which is the default, one has to be named; the only one has not.
    let nomad = home.stranger("nomad");
    assert_ok(&nomad.enroll(&home.invite("nomad").await, &["--name", "one"]).await);
    drop(nomad.up(&[]).await);
    assert_ok(&nomad.enroll(&work.invite("nomad").await, &["--name", "two"]).await);
    let unsaid = nomad.adit(&["up", "--listen", "127.0.0.1:0"], "").await;
    assert_failed(&unsaid, 2, &["this device knows several servers: one, two", "`adit up one`"]);
}

fn profile_key(device: &Device, server: &str) -> String {
    let path = device.dir.join("servers").join(server).join("identity.json");
    let stored: Value = serde_json::from_slice(&fs::read(path).expect("an identity")).expect("JSON");
    stored["private_key"].as_str().expect("a key").to_owned()
}

#[tokio::test]
async fn enrolling_twice_is_refused_and_costs_neither_the_identity_nor_the_code() {
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let before = fs::read(identity_file(&device)).expect("an identity");
    let code = world.invite("second").await;
    let refused = device.enroll(&code, &[]).await;
    assert_failed(&refused, 1, &["enrolled already as `default`", "adit enroll --replace", "--name NAME"]);
    assert_eq!(fs::read(identity_file(&device)).expect("an identity"), before);
    // Asked before the code is: a person has pasted nothing in vain.
    assert_failed(&device.enroll("garbage", &[]).await, 1, &["enrolled already"]);
    assert_ok(&world.stranger("second").enroll(&code, &[]).await);
    device.up(&[]).await;
}

#[tokio::test]
async fn a_revoked_device_comes_back_with_replace_as_another_device() {
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let first = profile(&device, "default").enrolled.device_id;
    assert_ok(&world.aditd(&["device", "revoke", "laptop"]).await);
    let shut_out = device.adit(&["up", "--listen", "127.0.0.1:0"], "").await;
    assert_eq!(shut_out.code, Some(4), "{shut_out:?}");
    assert!(shut_out.stderr.contains("adit enroll --replace"), "{}", shut_out.stderr);

    let before = fs::read(identity_file(&device)).expect("an identity");
    let failed = device.enroll("adit-nonsense", &["--replace"]).await;
    assert_failed(&failed, 2, &["that code is no good"]);
    assert_eq!(fs::read(identity_file(&device)).expect("an identity"), before, "a failed replacement loses nothing");

    let taken = world.aditd(&["invite", "laptop"]).await;
    assert_failed(&taken, 1, &["belongs to a revoked device", "aditd device forget laptop"]);
    assert_ok(&world.aditd(&["device", "forget", "laptop"]).await);
    let enrolled = device.enroll(&world.invite("laptop").await, &["--replace"]).await;
    assert_ok(&enrolled);
    assert_ne!(profile(&device, "default").enrolled.device_id, first);
    let up = device.up(&[]).await;
    assert!(raw::exchange(up.address, ROOT).await.ends_with("Ollama is running"));
}

#[tokio::test]
async fn replace_makes_a_new_key_and_the_old_certificate_still_ends_only_by_revocation() {
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let (old_key, old_id) = (private_key(&device), profile(&device, "default").enrolled.device_id);
    assert_ok(&device.enroll(&world.invite("laptop2").await, &["--replace"]).await);
    assert_ne!(private_key(&device), old_key);
    let listed = devices(&world).await;
    let ids: HashSet<_> = listed.iter().filter_map(|d| d["id"].as_str()).collect();
    let new_id = profile(&device, "default").enrolled.device_id;
    assert_eq!(ids, HashSet::from([old_id.to_string().as_str(), new_id.to_string().as_str()]));
}

#[tokio::test]
async fn devices_are_listed_and_shown_to_people_and_to_programs() {
    let world = World::start(PROGRAM).await;
    let empty = world.aditd(&["device", "list"]).await;
    assert_ok(&empty);
    assert_eq!(empty.stdout, "");
    assert!(empty.stderr.contains("aditd invite NAME"), "{}", empty.stderr);
    let none = world.aditd(&["device", "list", "--json"]).await;
    let none: Value = serde_json::from_str(&none.stdout).expect("JSON");
    assert_eq!(none, serde_json::json!({"schema": 1, "devices": []}));

    let before = unix_now();
    let laptop = world.device("laptop").await;
    world.device("desk").await;
    let id = profile(&laptop, "default").enrolled.device_id.to_string();
    let up = laptop.up(&[]).await;
    assert_ok(&world.aditd(&["device", "revoke", "desk"]).await);

    let list = world.aditd(&["device", "list"]).await;
    assert_ok(&list);
    let lines: Vec<Vec<&str>> = list.stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["NAME", "ID", "ROLE", "SEEN", "CERTIFICATE"]);
    assert_eq!((lines[1][0], &lines[1][2..5]), ("desk", &["admin", "never", "revoked"][..]));
    assert_eq!((lines[2][0], lines[2][1], &lines[2][2..5]), ("laptop", id.as_str(), &["admin", "now", "until"][..]));
    assert_eq!(lines.len(), 3);
    assert!(list.stdout.lines().all(|line| line == line.trim()), "{:?}", list.stdout);

    for name_or_id in ["laptop", &id] {
        let shown = world.aditd(&["device", "show", name_or_id]).await;
        assert_ok(&shown);
        assert!(shown.stdout.starts_with(&format!("Device       laptop {id}\n")), "{}", shown.stdout);
        assert!(shown.stdout.contains("\nSession      from 127.0.0.1:"), "{}", shown.stdout);
        let json = world.aditd(&["device", "show", name_or_id, "--json"]).await;
        let json: Value = serde_json::from_str(&json.stdout).expect("JSON");
        assert_eq!((&json["schema"], &json["name"], &json["id"]), (&1.into(), &"laptop".into(), &id.as_str().into()));
        assert!(json["enrolled"].as_i64().is_some_and(|at| (before..=unix_now()).contains(&at)), "{json}");
        assert_eq!(json["revoked"], Value::Null);
        assert_eq!(json["session"]["device_id"], id.as_str());
        let until = profile(&laptop, "default").certificate().expect("a certificate").not_after;
        assert_eq!(json["certificate_until"], until);
    }

    drop(up);
    for command in ["show", "revoke", "forget"] {
        for unknown in ["nobody", "0000-0000", "LAPTOP", ""] {
            let failed = world.aditd(&["device", command, unknown]).await;
            assert_failed(&failed, 1, &[&format!("there is no device `{unknown}`"), "aditd device list"]);
        }
    }
    let failed = world.aditd(&["device", "show", "nobody", "--json"]).await;
    assert_failed(&failed, 1, &["there is no device `nobody`"]);
}

#[tokio::test]
async fn access_ends_with_a_revocation_and_the_name_comes_back_when_the_device_is_forgotten() {
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let id = profile(&device, "default").enrolled.device_id.to_string();
    let mut up = device.up(&[]).await;

    assert_failed(
        &world.aditd(&["invite", "laptop"]).await,
        1,
        &["there is a device `laptop` already", "aditd device revoke laptop"],
    );
    let enrolled = world.aditd(&["device", "forget", "laptop"]).await;
    assert_failed(&enrolled, 1, &["device `laptop` is still enrolled", "aditd device revoke laptop"]);

    let revoked = world.aditd(&["device", "revoke", &id]).await;
    assert_ok(&revoked);
    assert!(revoked.stderr.contains(&format!("Revoked laptop {id}; it was connected and has been cut.")), "{}", revoked.stderr);
    up.adit.says("this device was revoked").await;
    let answer = raw::exchange(up.address, ROOT).await;
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("revoked"), "{answer}");
    assert_failed(
        &world.aditd(&["device", "revoke", "laptop"]).await,
        1,
        &["`laptop` is revoked already", "aditd device forget laptop"],
    );
    assert_failed(&world.aditd(&["invite", "laptop"]).await, 1, &["belongs to a revoked device", "aditd device forget laptop"]);

    let forgotten = world.aditd(&["device", "forget", "laptop"]).await;
    assert_ok(&forgotten);
    assert!(forgotten.stderr.contains(&format!("Forgot laptop {id}.")), "{}", forgotten.stderr);
    assert_failed(&world.aditd(&["device", "show", "laptop"]).await, 1, &["there is no device `laptop`"]);
    up.adit.kill().await;
    let shut_out = device.adit(&["up", "--listen", "127.0.0.1:0"], "").await;
    assert_failed(&shut_out, 4, &["this device was revoked"]);
    assert_eq!(world.ollama.counters().started, 0);
    world.device("laptop-again").await;
}

#[tokio::test]
async fn a_certificate_names_its_device_and_grants_nothing_but_to_be_a_client() {
    let world = World::start(PROGRAM).await;
    let mut serials = HashSet::new();
    for name in ["one", "two"] {
        let device = world.device(name).await;
        let profile = profile(&device, "default");
        let id: DeviceId = profile.enrolled.device_id;
        let der = BASE64.decode(profile.enrolled.certificate.as_bytes()).expect("base64");
        let (_, parsed) = X509Certificate::from_der(&der).expect("a certificate");
        let names = parsed.subject_alternative_name().expect("extensions").expect("names");
        assert_eq!(names.value.general_names, [GeneralName::URI(&format!("urn:adit:device:{id}"))]);
        assert_eq!(parsed.subject().iter().count(), 0, "the name may change, so it stands nowhere");
        let usage = parsed.extended_key_usage().expect("extensions").expect("a usage").value;
        assert!(usage.client_auth && !usage.server_auth && !usage.any && usage.other.is_empty(), "{usage:?}");
        let constraints = parsed.basic_constraints().expect("extensions").expect("constraints");
        assert!(!constraints.value.ca);
        let key_usage = parsed.key_usage().expect("extensions").expect("a usage").value;
        assert!(key_usage.digital_signature() && !key_usage.key_cert_sign() && !key_usage.crl_sign(), "{key_usage:?}");
        assert_eq!(parsed.raw_serial().len(), 16);
        assert!(serials.insert(parsed.raw_serial().to_vec()));
        let (from, until) = (parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp());
        let (before, life) = (unix_now() - from, until - from);
        assert!((86_400..86_400 + 120).contains(&before), "a day of slack for clocks: {before}");
        assert_eq!(life, 31 * 86_400);
        let ca = BASE64.decode(profile.enrolled.ca.as_bytes()).expect("base64");
        let (_, ca) = X509Certificate::from_der(&ca).expect("a certificate");
        assert!(ca.is_ca());
        parsed.verify_signature(Some(ca.public_key())).expect("the CA's signature");
        assert_eq!(parse(&world.invite(&format!("{name}-pin")).await).ca, sha256(ca.public_key().raw));
        let key = KeyPair::from_pem(&private_key(&device)).expect("a key");
        assert_eq!(rcgen::PublicKeyData::subject_public_key_info(&key), parsed.public_key().raw);
    }
}
