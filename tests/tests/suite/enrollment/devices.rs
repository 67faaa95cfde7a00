//! Enrolled devices: how they are listed and shown, which servers they know, and how their access
//! is ended or replaced.

use std::{collections::HashSet, fs};

use common::machine::process::unix_now;
use data_encoding::BASE64;
use proto::{crypto::sha256, identity::DeviceId};
use serde_json::Value;
use tests::{
    cli_assert::{
        FAILED, NOT_ALLOWED, USAGE, assert_ok, assert_told, up_to_its_end, without_places,
    },
    credentials::{key_pair, parse},
    disk::SmallDisk,
    ollama::Options,
    raw::{self, ROOT},
    state_files::{devices, identity_file, private_key, private_key_for, profile, text},
    world::{SOON, World},
};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::PROGRAM;

#[tokio::test]
async fn devices_are_listed_and_shown_for_people_and_programs() {
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
    let id = profile(&laptop).enrolled.device_id.to_string();
    let up = laptop.up(&[]).await;
    assert_ok(&world.aditd(&["device", "revoke", "desk"]).await);

    let list = world.aditd(&["device", "list"]).await;
    assert_ok(&list);
    let lines: Vec<Vec<&str>> =
        list.stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["NAME", "ID", "ROLE", "USER", "KEY", "SEEN", "CERTIFICATE"]);
    let desk = ["admin", "-", "file", "never", "revoked"];
    assert_eq!((lines[1][0], &lines[1][2..7]), ("desk", &desk[..]));
    assert_eq!(
        (lines[2][0], lines[2][1], &lines[2][2..7]),
        ("laptop", id.as_str(), &["admin", "-", "file", "now", "until"][..])
    );
    assert_eq!(lines.len(), 3);
    assert!(list.stdout.lines().all(|line| line == line.trim()), "{:?}", list.stdout);

    for name_or_id in ["laptop", &id] {
        let shown = world.aditd(&["device", "show", name_or_id]).await;
        assert_ok(&shown);
        assert!(
            shown.stdout.starts_with(&format!("Device       laptop {id}\n")),
            "{}",
            shown.stdout
        );
        assert!(shown.stdout.contains("\nSession      from 127.0.0.1:"), "{}", shown.stdout);
        let json = world.aditd(&["device", "show", name_or_id, "--json"]).await;
        let json: Value = serde_json::from_str(&json.stdout).expect("JSON");
        assert_eq!(
            (&json["schema"], &json["device"]["name"], &json["device"]["id"]),
            (&1.into(), &"laptop".into(), &id.as_str().into())
        );
        assert!(
            json["device"]["enrolled"]
                .as_i64()
                .is_some_and(|at| (before..=unix_now()).contains(&at)),
            "{json}"
        );
        assert_eq!(json["device"]["revoked"], Value::Null);
        assert_eq!(json["device"]["session"]["device_id"], id.as_str());
        assert_eq!(json["tokens_today"], Value::Null);
        let until = profile(&laptop).certificate().expect("a certificate").not_after;
        assert_eq!(json["device"]["certificate_until"], until);
    }

    drop(up);
    for command in ["show", "revoke", "forget"] {
        for unknown in ["nobody", "0000-0000", "LAPTOP", ""] {
            let failed = world.aditd(&["device", command, unknown]).await;
            assert_told(
                &failed,
                FAILED,
                &[&format!("there is no device `{unknown}`"), "the devices are `desk`, `laptop`"],
            );
        }
    }
    for command in [&["device", "role"][..], &["device", "models"], &["audit", "--device"]] {
        let args = [command, &["latop"], if command[0] == "device" { &["infer"][..] } else { &[] }];
        let failed = world.aditd(&args.concat()).await;
        assert_told(
            &failed,
            FAILED,
            &["there is no device `latop`", "the devices are `desk`, `laptop`"],
        );
    }
    let failed = world.aditd(&["device", "show", "nobody", "--json"]).await;
    assert_told(&failed, FAILED, &["there is no device `nobody`"]);
}

#[tokio::test]
async fn status_shows_the_settings_and_device_show_the_tokens_used_today() {
    let flags = ["--allow-from", "203.0.113.0/24"];
    let world = World::start_configured(
        PROGRAM,
        Options::default(),
        &flags,
        "devices.laptop.limits.tokens_per_day = 1000",
    )
    .await;
    let status = world.aditd(&["status"]).await.stdout;
    for line in [
        format!("Upstream     http://{}", world.ollama.addr()),
        format!("Config file  {}", world.config().display()),
        "Allow from   this machine, 203.0.113.0/24".to_owned(),
        "Metrics      none".to_owned(),
        format!("Audit log    {}", world.state().join("audit.jsonl").display()),
    ] {
        assert!(status.lines().any(|said| said == line), "no `{line}` in:\n{status}");
    }
    let (up, other) = (world.up("laptop").await, world.up("desk").await);
    let unused = world.aditd(&["device", "show", "laptop"]).await.stdout;
    assert!(unused.ends_with("\nTokens       0 used today (UTC) of 1000\n"), "{unused}");
    assert!(
        !world.aditd(&["device", "show", "desk"]).await.stdout.contains("Tokens"),
        "no limit, and none used"
    );
    for address in [up.address, other.address] {
        assert!(raw::exchange(address, &raw::generate(5, 1)).await.starts_with("HTTP/1.1 200 OK"));
    }
    let counted = async {
        for name in ["laptop", "desk"] {
            while !world
                .aditd(&["device", "show", name, "--json"])
                .await
                .stdout
                .contains("\"used\"")
                || world
                    .aditd(&["device", "show", name])
                    .await
                    .stdout
                    .contains("Tokens       0 used")
            {}
        }
    };
    tokio::time::timeout(SOON, counted).await.expect("a request counts when it has ended");
}

#[tokio::test]
async fn a_device_can_enroll_at_a_second_server_under_another_name() {
    let of = |model: &str| Options { model: model.to_owned(), ..Default::default() };
    let home = World::start_with(PROGRAM, of("home:1"), &[]).await;
    let work = World::start_with(PROGRAM, of("work:1"), &[]).await;
    let device = home.device("laptop").await;
    let enrolled = device.enroll(&work.invite("laptop").await, &["--name", "work"]).await;
    assert_ok(&enrolled);
    let said = without_places(&enrolled.stderr);
    assert!(said.contains("`adit up work`"), "{said}");
    assert_ne!(
        private_key(&device),
        private_key_for(&device, "work"),
        "each server gets a key of its own"
    );

    // Both at the same time, from one state directory.
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
    assert_told(&unknown, FAILED, &["this device is not enrolled", "aditd invite NAME"]);

    // Without a default server, one of several has to be named; a single server does not.
    let nomad = home.stranger("nomad");
    assert_ok(&nomad.enroll(&home.invite("nomad").await, &["--name", "one"]).await);
    drop(nomad.up(&[]).await);
    assert_ok(&nomad.enroll(&work.invite("nomad").await, &["--name", "two"]).await);
    let unsaid = up_to_its_end(&nomad).await;
    assert_told(
        &unsaid,
        USAGE,
        &["this device is enrolled at several servers: one, two", "`adit up one`"],
    );
}

#[tokio::test]
async fn enrolling_twice_is_refused_and_keeps_the_identity_and_the_code() {
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let before = fs::read(identity_file(&device)).expect("an identity");
    let code = world.invite("second").await;
    let refused = device.enroll(&code, &[]).await;
    assert_told(
        &refused,
        FAILED,
        &["enrolled already as `default`", "adit enroll --replace", "--name NAME"],
    );
    assert_eq!(fs::read(identity_file(&device)).expect("an identity"), before);
    // Refused before the code is asked for.
    assert_told(&device.enroll("garbage", &[]).await, FAILED, &["enrolled already"]);
    assert_ok(&world.stranger("second").enroll(&code, &[]).await);
    device.up(&[]).await;
}

#[tokio::test]
async fn a_revoked_device_can_enroll_with_replace_as_another_device() {
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let first = profile(&device).enrolled.device_id;
    let mut up = device.up(&[]).await;
    assert_ok(&world.aditd(&["device", "revoke", "laptop"]).await);
    up.adit.says("no tunnel: this device was revoked").await;
    up.end().await;
    let shut_out = up_to_its_end(&device).await;
    assert_eq!(shut_out.code, Some(NOT_ALLOWED), "{shut_out:?}");
    assert!(shut_out.stderr.contains("adit enroll --replace"), "{}", shut_out.stderr);

    let before = fs::read(identity_file(&device)).expect("an identity");
    let failed = device.enroll("adit-nonsense", &["--replace"]).await;
    assert_told(&failed, USAGE, &["invalid code"]);
    assert_eq!(
        fs::read(identity_file(&device)).expect("an identity"),
        before,
        "a failed replacement loses nothing"
    );

    let taken = world.aditd(&["invite", "laptop"]).await;
    assert_told(&taken, FAILED, &["belongs to a revoked device", "aditd device forget laptop"]);
    assert_ok(&world.aditd(&["device", "forget", "laptop"]).await);
    let enrolled = device.enroll(&world.invite("laptop").await, &["--replace"]).await;
    assert_ok(&enrolled);
    assert_ne!(profile(&device).enrolled.device_id, first);
    let up = device.up(&[]).await;
    assert!(raw::exchange(up.address, ROOT).await.ends_with("Ollama is running"));
}

#[tokio::test]
async fn replace_makes_a_new_key_and_the_old_certificate_is_valid_until_its_revocation() {
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let (old_key, old_id) = (private_key(&device), profile(&device).enrolled.device_id);
    assert_ok(&device.enroll(&world.invite("laptop2").await, &["--replace"]).await);
    assert_ne!(private_key(&device), old_key);
    let listed = devices(&world).await;
    let ids: HashSet<_> = listed.iter().filter_map(|d| d["id"].as_str()).collect();
    let new_id = profile(&device).enrolled.device_id;
    assert_eq!(ids, HashSet::from([old_id.to_string().as_str(), new_id.to_string().as_str()]));
}

#[tokio::test]
async fn a_revocation_ends_access_and_forgetting_the_device_frees_its_name() {
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let id = profile(&device).enrolled.device_id.to_string();
    let mut up = device.up(&[]).await;

    assert_told(
        &world.aditd(&["invite", "laptop"]).await,
        FAILED,
        &["there is a device `laptop` already", "aditd device revoke laptop"],
    );
    let enrolled = world.aditd(&["device", "forget", "laptop"]).await;
    assert_told(
        &enrolled,
        FAILED,
        &["device `laptop` is still enrolled", "aditd device revoke laptop"],
    );

    let revoked = world.aditd(&["device", "revoke", &id]).await;
    assert_ok(&revoked);
    assert!(
        revoked
            .stderr
            .contains(&format!("Revoked laptop {id}; it was connected and has been cut.")),
        "{}",
        revoked.stderr
    );
    up.adit.says("no tunnel: this device was revoked").await;
    let answer = raw::exchange(up.address, ROOT).await;
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("revoked"), "{answer}");
    assert_told(
        &world.aditd(&["device", "revoke", "laptop"]).await,
        FAILED,
        &["`laptop` is revoked already", "aditd device forget laptop"],
    );
    assert_told(
        &world.aditd(&["invite", "laptop"]).await,
        FAILED,
        &["belongs to a revoked device", "aditd device forget laptop"],
    );

    let forgotten = world.aditd(&["device", "forget", "laptop"]).await;
    assert_ok(&forgotten);
    assert!(forgotten.stderr.contains(&format!("Forgot laptop {id}.")), "{}", forgotten.stderr);
    assert_told(
        &world.aditd(&["device", "show", "laptop"]).await,
        FAILED,
        &["there is no device `laptop`"],
    );
    up.adit.kill().await;
    let shut_out = up_to_its_end(&device).await;
    assert_told(&shut_out, NOT_ALLOWED, &["this device was revoked"]);
    assert_eq!(world.ollama.counters().started, 0);
    world.device("laptop-again").await;
}

#[tokio::test]
async fn a_revocation_that_fails_on_a_full_disk_says_how_to_cut_every_device() {
    let Some(disk) = SmallDisk::mount("1m") else { return };
    let world = World::start(PROGRAM).await;
    let state = disk.path("state");
    let run = async |args: &[&str]| {
        let args = [args, &["--state-dir", text(&state)]].concat();
        world.programs.run("aditd", &args, "").await.expect("aditd runs")
    };
    let mut aditd = world
        .programs
        .start("aditd", &["serve", "--listen", "127.0.0.1:0", "--state-dir", text(&state)])
        .expect("aditd starts");
    aditd.ready().await.expect("aditd is ready");
    assert_ok(
        &world.stranger("laptop").enroll(&run(&["invite", "laptop"]).await.stdout, &[]).await,
    );
    assert_ok(&run(&["invite", "tmp"]).await);
    disk.fill_but(0);
    for name in ["laptop", "tmp"] {
        let says =
            ["nothing was changed", "to cut every device off now: `sudo systemctl stop aditd`"];
        assert_told(&run(&["device", "revoke", name]).await, FAILED, &says);
    }
    disk.free();
    for name in ["laptop", "tmp"] {
        assert_ok(&run(&["device", "revoke", name]).await);
    }
}

#[tokio::test]
async fn a_certificate_names_its_device_and_is_only_for_clients() {
    let world = World::start(PROGRAM).await;
    let mut serials = HashSet::new();
    for name in ["one", "two"] {
        let device = world.device(name).await;
        let profile = profile(&device);
        let id: DeviceId = profile.enrolled.device_id;
        let der = BASE64.decode(profile.enrolled.certificate.as_bytes()).expect("base64");
        let (_, parsed) = X509Certificate::from_der(&der).expect("a certificate");
        let names = parsed.subject_alternative_name().expect("extensions").expect("names");
        assert_eq!(names.value.general_names, [GeneralName::URI(&format!("urn:adit:device:{id}"))]);
        assert_eq!(parsed.subject().iter().count(), 0, "the name may change, so it stands nowhere");
        let usage = parsed.extended_key_usage().expect("extensions").expect("a usage").value;
        assert!(
            usage.client_auth && !usage.server_auth && !usage.any && usage.other.is_empty(),
            "{usage:?}"
        );
        let constraints = parsed.basic_constraints().expect("extensions").expect("constraints");
        assert!(!constraints.value.ca);
        let key_usage = parsed.key_usage().expect("extensions").expect("a usage").value;
        assert!(
            key_usage.digital_signature() && !key_usage.key_cert_sign() && !key_usage.crl_sign(),
            "{key_usage:?}"
        );
        assert_eq!(parsed.raw_serial().len(), 16);
        assert!(serials.insert(parsed.raw_serial().to_vec()));
        let (from, until) =
            (parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp());
        let (before, life) = (unix_now() - from, until - from);
        assert!((86_400..86_400 + 120).contains(&before), "a day of slack for clocks: {before}");
        assert_eq!(life, 31 * 86_400);
        let ca = BASE64.decode(profile.enrolled.ca.as_bytes()).expect("base64");
        let (_, ca) = X509Certificate::from_der(&ca).expect("a certificate");
        assert!(ca.is_ca());
        parsed.verify_signature(Some(ca.public_key())).expect("the CA's signature");
        assert_eq!(
            parse(&world.invite(&format!("{name}-pin")).await).ca,
            sha256(ca.public_key().raw)
        );
        let key = key_pair(&device);
        assert_eq!(rcgen::PublicKeyData::subject_public_key_info(&key), parsed.public_key().raw);
    }
}
