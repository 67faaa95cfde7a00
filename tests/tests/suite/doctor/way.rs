//! What `adit doctor` says of the way to the box.

use tests::{
    doctor::Diagnosis,
    laptop::Laptop,
    process::Ended,
    raw, skip,
    sshd::Sshd,
    state_files::{store, stored},
    udp_or_ssh::Crossroads,
    world::{Device, World},
};

use crate::PROGRAM;

fn there_is_no_sshd() -> bool {
    !Sshd::is_there() && skip::skip_test("there is no OpenSSH server and client")
}

async fn doctor(device: &Device) -> Diagnosis {
    Diagnosis::of(device.adit(&["doctor", "--json"], "").await)
}

/// The device looks for its server here from now on.
fn send_to(device: &Device, addresses: &[&str]) {
    let mut identity = stored(device);
    identity["addresses"] = addresses.to_vec().into();
    store(device, &identity);
}

#[tokio::test]
async fn a_closed_port_a_name_that_is_none_and_a_missing_ollama_are_told_apart() {
    let mut world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let address = world.address().await.to_string();
    send_to(&device, &["nowhere.invalid:11435", &address]);
    let said = doctor(&device).await;
    said.names(
        "names",
        "warn",
        "`nowhere.invalid` can't be looked up",
        "getent hosts nowhere.invalid",
    );
    assert_eq!([said.verdict("udp"), said.verdict("session")], ["ok", "ok"], "{said:#?}");

    world.kill_server().await;
    let said = doctor(&device).await;
    said.names("udp", "bad", "Connection refused", "aditd status");
    said.names("names", "bad", "`nowhere.invalid`", "getent hosts");
    assert_eq!(said.found("session"), "not checked: needs UDP or SSH");
    assert_eq!(said.verdict("aditd"), "not_checked");
    assert_eq!(said.ended.code, Some(1));
}

#[tokio::test]
async fn an_ollama_that_is_gone_is_told_on_the_way_and_on_the_box() {
    let (_gone, gone) = raw::closed_port();
    let upstream = format!("http://{gone}");
    let world = World::start_with(PROGRAM, Default::default(), &["--upstream", &upstream]).await;
    let device = world.device_as("laptop", "infer").await;
    let _up = device.up(&[]).await;
    let said = doctor(&device).await;
    said.names(
        "request",
        "bad",
        "502: adit: Ollama is not running on the server",
        "curl -i http://",
    );
    said.names("ollama", "bad", "nothing listens at", "ollama");
    assert_eq!(said.found("exposed"), "not checked: needs `Ollama`");
    assert_eq!(said.ended.code, Some(1));
}

#[tokio::test]
async fn where_udp_is_lost_ssh_is_used_and_both_are_told() {
    if there_is_no_sshd() {
        return;
    }
    let device = Crossroads::new(PROGRAM, &[]).await;
    device.path.cut();
    let out = device.command(&["doctor", "--json"]).output().await.expect("it runs");
    let said = Diagnosis::of(Ended::from(out));
    let silent = format!("no answer from {}", device.path.address);
    said.names(
        "udp",
        "warn",
        &silent,
        &format!("sudo ufw allow {}/udp", device.path.address.port()),
    );
    said.names("udp", "warn", "", "aditd device list");
    assert!(
        said.found("ssh").contains("by the key `")
            && said.found("ssh").contains("/user`, which may run aditd"),
        "{said:#?}"
    );
    assert_eq!([said.verdict("session"), said.verdict("aditd")], ["ok", "ok"], "{said:#?}");
    assert!(said.found("carrier").starts_with("SSH, not UDP"), "{said:#?}");
    assert!(said.with("way", "bad").is_empty(), "{said:#?}");
}

#[tokio::test]
async fn what_a_key_may_do_is_told_by_its_own_line() {
    if there_is_no_sshd() {
        return;
    }
    let world = World::start_with_relay(PROGRAM).await;
    let laptop = Laptop::new(&world).await;
    laptop.enrolled(&world, &[]).await;
    let port = world.status().await["relay"].to_string();
    let relay =
        format!("restrict,command=\"{}/aditd relay\"", world.scratch("remote-bin").display());
    let forward =
        format!("restrict,port-forwarding,permitopen=\"127.0.0.1:{port}\",command=\"/bin/false\"");
    let said = async |options: &str| {
        laptop.sshd.authorize("user", options);
        Diagnosis::of(laptop.adit(&world, &["doctor", "--json"]).await)
    };
    for (options, says) in [
        (relay.as_str(), "which is limited to the relay (a forced command)"),
        (forward.as_str(), "which may only forward"),
    ] {
        let said = said(options).await;
        assert!(said.found("ssh").contains(says), "{:#}", said.line("ssh").expect("a line"));
        // What the key may not ask, the tunnel may.
        let told = ["ssh", "session", "device"].map(|id| said.verdict(id));
        assert_eq!(told, ["ok"; 3], "{said:#?}");
    }
    let nothing = said("restrict,command=\"/bin/false\"").await;
    nothing.names("ssh", "bad", "aditd doctor", "authorized_keys");
    assert_eq!(nothing.verdict("session"), "not_checked");
}

#[tokio::test]
async fn a_key_that_is_locked_or_unknown_is_told_with_the_command_that_lets_it_in() {
    if there_is_no_sshd() {
        return;
    }
    let mut world = World::start(PROGRAM).await;
    let laptop = Laptop::new(&world).await;
    laptop.enrolled(&world, &[]).await;
    let doctor =
        async |world: &World| Diagnosis::of(laptop.adit(world, &["doctor", "--json"]).await);
    laptop.sshd.key("stranger", &["-t", "ed25519", "-N", ""]);
    laptop.sshd.authorize("stranger", "");
    let said = doctor(&world).await;
    said.names("ssh", "bad", "does not accept the login of this computer", "ssh-copy-id");
    assert!(said.found("aditd").contains("needs a tunnel, or a login by SSH"), "{said:#?}");
    // A key is there, and nobody unlocks it: adit asks for its passphrase at its start alone.
    laptop.sshd.key("locked", &["-t", "ed25519", "-N", "words"]);
    laptop.sshd.authorize("locked", "");
    let d = laptop.sshd.dir.display();
    laptop
        .sshd
        .client(&format!("IdentityFile {d}/locked\nStrictHostKeyChecking yes\nBatchMode yes\n"));
    let said = doctor(&world).await;
    said.names("ssh", "bad", "locked with a passphrase", "ssh-add '");
    // Logged in, and no aditd runs there.
    laptop.sshd.authorize("user", "");
    laptop.sshd.client("StrictHostKeyChecking yes\nBatchMode yes\n");
    world.kill_server().await;
    let said = doctor(&world).await;
    said.names("aditd", "bad", "it does not run on the state in", "aditd serve");
    assert_eq!(said.ended.code, Some(1));
}
