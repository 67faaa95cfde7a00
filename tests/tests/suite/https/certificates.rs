//! The certificate of the listener, and those of devices.

use std::{path::Path, process::Command, time::Duration};

use tests::{
    cli_assert::assert_ok,
    ollama::Options,
    state_files::{self, chmod},
    world::{SOON, World},
};

use super::{Got, Https, address};
use crate::PROGRAM;

/// Makes a certificate for localhost and its key, as an owner would.
fn make(dir: &Path, name: &str) {
    let out = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"])
        .args([
            "-days",
            "10",
            "-subj",
            &format!("/CN={name}"),
            "-addext",
            "subjectAltName=DNS:localhost",
        ])
        .arg("-keyout")
        .arg(dir.join(format!("{name}.key")))
        .arg("-out")
        .arg(dir.join(format!("{name}.crt")))
        .output()
        .expect("openssl runs");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    chmod(&dir.join(format!("{name}.key")), 0o600);
}

#[tokio::test]
async fn changed_files_are_in_use_soon_and_bad_ones_change_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    for name in ["first", "second"] {
        make(dir.path(), name);
    }
    let (cert, key) = (dir.path().join("tls.crt"), dir.path().join("tls.key"));
    let put = |name: &str| {
        for (from, to) in [(format!("{name}.key"), &key), (format!("{name}.crt"), &cert)] {
            let new = dir.path().join("new");
            std::fs::copy(dir.path().join(from), &new).expect("copied");
            std::fs::rename(&new, to).expect("replaced");
        }
    };
    put("first");
    let flags = [
        "--https",
        "127.0.0.1:0",
        "--tls-cert",
        cert.to_str().expect("a path"),
        "--tls-key",
        key.to_str().expect("a path"),
    ];
    let world = World::start_with(PROGRAM, Options::default(), &flags).await;
    let listener = address(&world).await;
    let mut https = Https { address: listener, world, ca: dir.path().join("first.crt") };
    let token = https.key("ci", &[]).await;
    assert_eq!(https.with_key(&token, "/api/tags", &[]).await.status, 200);
    std::fs::write(&cert, "no certificate").expect("written");
    let told = async {
        while https.world.status().await["https"]["certificate"]["failing"].is_null() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(2 * SOON, told).await.expect("the bad file is told");
    assert_eq!(https.with_key(&token, "/api/tags", &[]).await.status, 200, "the old one stays");
    put("second");
    https.ca = dir.path().join("second.crt");
    let renewed = async {
        while https.with_key(&token, "/api/tags", &[]).await.status != 200 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(2 * SOON, renewed).await.expect("the new one is in use");
    assert!(https.world.status().await["https"]["certificate"]["failing"].is_null());
}

#[tokio::test]
async fn files_that_cannot_be_used_are_refused_at_the_start() {
    let world = World::start(PROGRAM).await;
    let dir = tempfile::tempdir().expect("a directory");
    for name in ["one", "other"] {
        make(dir.path(), name);
    }
    let path = |name: &str| dir.path().join(name).to_str().expect("a path").to_owned();
    chmod(&dir.path().join("other.key"), 0o604);
    std::fs::write(path("empty"), "").expect("written");
    for (cert, key, says) in [
        ("one.crt", "nowhere", "cannot read"),
        ("empty", "one.key", "has no certificate"),
        ("one.crt", "other.key", "chmod o-rwx"),
        ("one.crt", "empty", "every user of this machine"),
        ("other.crt", "one.key", "do not belong together"),
    ] {
        let (cert, key) = (path(cert), path(key));
        let state = world.scratch("other");
        let args = [
            "serve",
            "--state-dir",
            state.to_str().expect("a path"),
            "--listen",
            "127.0.0.1:0",
            "--https",
            "127.0.0.1:0",
            "--tls-cert",
            &cert,
            "--tls-key",
            &key,
        ];
        let ended = world.programs.run("aditd", &args, "").await.expect("it runs");
        assert!(ended.code == Some(2) && ended.stderr.contains(says), "{says}: {}", ended.stderr);
    }
}

#[tokio::test]
async fn an_enrolled_device_shows_its_certificate_in_place_of_a_key_until_it_is_revoked() {
    let https = Https::start(Options::default(), "").await;
    let device = https.world.device_as("laptop", "infer").await;
    let stored = state_files::stored(&device)["certificate"].as_str().expect("one").to_owned();
    let lines: Vec<_> = stored.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
    let certificate =
        format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"));
    let (cert, key) = (https.world.scratch("device.crt"), https.world.scratch("device.key"));
    std::fs::write(&cert, certificate).expect("written");
    std::fs::write(&key, state_files::private_key(&device)).expect("written");
    let args = ["--cert", cert.to_str().expect("a path"), "--key", key.to_str().expect("a path")];
    let shown = async || -> Got { https.curl("/api/tags", &args).await };
    assert_eq!(shown().await.status, 200);
    let lines = https.world.audit_has(1, |line| line["event"] == "request").await;
    assert_eq!((&lines[0]["device"], &lines[0]["carrier"]), (&"laptop".into(), &"https".into()));
    assert!(lines[0]["key"].is_null(), "{}", lines[0]);
    assert_ok(&https.world.aditd(&["device", "revoke", "laptop"]).await);
    assert_eq!(shown().await.status, 0, "the handshake fails");
}
