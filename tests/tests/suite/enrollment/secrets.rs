//! Secrets stay secret: files are only for their owner, and no log has a key or a code in it.

use std::{collections::HashSet, fs, os::unix::fs::PermissionsExt, path::Path, process::Stdio};

use data_encoding::{BASE64, HEXLOWER};
use rcgen::KeyPair;
use serde_json::Value;
use tests::{
    cli_assert::{NOT_ALLOWED, assert_ok},
    credentials::parse,
    ollama::Options,
    process::Process,
    raw::{self, ROOT},
    state_files::{private_key, shell_quoted},
    world::{SOON, World},
};

use crate::PROGRAM;

#[tokio::test]
async fn stored_files_are_private_even_with_a_permissive_umask() {
    let world = World::start(PROGRAM).await;
    let careless = async |program: &str, args: &str, state: &Path, input: &str| {
        let command = format!(
            "umask 0; exec {} {args} --state-dir {}",
            shell_quoted(&world.scratch(program)),
            shell_quoted(state)
        );
        let mut child = tokio::process::Command::new("sh")
            .args(["-c", &command])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("sh starts");
        tokio::io::AsyncWriteExt::write_all(
            &mut child.stdin.take().expect("a pipe"),
            input.as_bytes(),
        )
        .await
        .expect("written");
        let ended =
            tokio::time::timeout(SOON, child.wait()).await.expect("it ends").expect("a status");
        assert!(ended.success(), "{command}");
    };
    let (server, device) = (world.scratch("careless-server"), world.scratch("careless-device"));
    careless("aditd", "init", &server, "").await;
    careless("aditd", "invite laptop", &server, "").await;
    let code = world.invite("laptop").await;
    careless("adit", "enroll", &device, &code).await;

    let mut up = Process::spawn(
        {
            let mut command = tokio::process::Command::new("sh");
            let adit = shell_quoted(&world.scratch("adit"));
            let state = shell_quoted(&device);
            command
                .args([
                    "-c",
                    &format!("umask 0; exec {adit} up --listen 127.0.0.1:0 --state-dir {state}"),
                ])
                .kill_on_drop(true);
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

/// Calls `look` for `path` and everything below it.
fn each_below(path: &Path, look: &mut impl FnMut(&Path, &fs::Metadata)) {
    let metadata = fs::symlink_metadata(path).expect("it is there");
    look(path, &metadata);
    if metadata.is_dir() {
        for entry in fs::read_dir(path).expect("a directory") {
            each_below(&entry.expect("an entry").path(), look);
        }
    }
}

#[tokio::test]
async fn no_secret_is_logged_even_at_the_highest_log_level() {
    let world = World::start_with(PROGRAM, Options::default(), &["-v"]).await;
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
    up.adit.says("no tunnel: this device was revoked").await;
    let log = up.adit.log();
    up.adit.kill().await;
    let refused = device.adit(&["up", "--listen", "127.0.0.1:0", "-vv"], "").await;
    assert_eq!(refused.code, Some(NOT_ALLOWED), "{refused:?}");

    let invitation = parse(&code);
    let mut secrets = vec![code.clone(), code[4..].to_owned(), code[4..].to_uppercase()];
    secrets.extend(spellings(&*invitation.secret.token()));
    secrets.extend(spellings(invitation.secret.knock_key().as_bytes()));
    secrets.extend(spellings_of_pem(&key));
    for name in ["ca.key", "server.key"] {
        secrets.extend(spellings_of_pem(
            &fs::read_to_string(world.state().join(name)).expect("a key"),
        ));
    }
    let endpoint: Value =
        serde_json::from_slice(&fs::read(world.state().join("endpoint.json")).expect("keys"))
            .expect("JSON");
    for name in ["door", "reset"] {
        let bytes =
            BASE64.decode(endpoint[name].as_str().expect("base64").as_bytes()).expect("base64");
        secrets.extend(spellings(&bytes));
    }
    secrets.push(endpoint["connection_ids"].to_string());

    let commands = [&enrolled, &again, &damaged, &status, &shown, &revoked, &refused];
    let mut said: Vec<(&str, String)> =
        commands.map(|e| ("a command", format!("{}{}", e.stdout, e.stderr))).into();
    said.push(("invite's talk", invited.stderr));
    said.push(("aditd's log", world.aditd.log()));
    said.push(("adit's log", log));
    for (who, text) in &said {
        for secret in &secrets {
            assert!(!text.contains(secret.as_str()), "{who} says {secret}:\n{text}");
        }
    }
    // The logs must have content at debug level, or the test shows nothing.
    for (who, text) in &said[commands.len() + 1..] {
        assert!(text.contains("DEBUG"), "{who} is not talkative:\n{text}");
    }
}

/// The forms in which these bytes could appear in a log.
fn spellings(bytes: &[u8]) -> Vec<String> {
    let debug = format!("{:?}", &bytes[..bytes.len().min(16)]);
    vec![
        BASE64.encode(bytes),
        HEXLOWER.encode(bytes),
        HEXLOWER.encode(bytes).to_uppercase(),
        debug.trim_end_matches(']').to_owned(),
    ]
}

/// The secret lines of a PEM file, and its bytes in other forms.
fn spellings_of_pem(pem: &str) -> Vec<String> {
    let key = KeyPair::from_pem(pem).expect("a key");
    let lines = pem.lines().filter(|line| !line.starts_with("-----") && line.len() > 16);
    let mut all: Vec<String> = lines.map(str::to_owned).collect();
    let der = key.serialize_der();
    // PKCS #8 of P-256 (RFC 5915): the 32 bytes of the private value follow the tag and length of
    // its octet string.
    // The first: the public key, which follows, may have these two bytes as well.
    let at = der.windows(2).position(|w| w == [0x04, 0x20]).expect("the private value") + 2;
    all.extend(spellings(&der[at..at + 32]));
    all.extend(spellings(&der));
    all
}
