//! A device's key in a TPM 2.0: derived there, useless elsewhere.

use tests::{
    cli_assert::{assert_ok, assert_told, up_to_its_end},
    ollama::Options,
    raw,
    soft_tpm::{HangingTpm, SoftTpm},
    state_files::{identity_file, store, stored},
    world::World,
};

use crate::PROGRAM;

#[tokio::test]
async fn a_key_in_a_tpm_enrolls_renews_and_connects_and_is_useless_at_another_tpm() {
    let config = "[roles.admin]\nhardware_key = true\n";
    let flags = ["--device-life", "6s"];
    let mut world = World::start_configured(PROGRAM, Options::default(), &flags, config).await;
    let Some(tpm) = SoftTpm::start(world.scratch("tpm")).await else { return };
    let device = world.stranger("laptop");
    let code = world.invite("laptop").await;
    let enrolled = device.enroll(&code, &["--key", &tpm.uri()]).await;
    assert_ok(&enrolled);
    assert!(enrolled.stderr.contains("key is in the TPM at"), "{}", enrolled.stderr);
    let text = std::fs::read_to_string(identity_file(&device)).expect("a profile");
    assert!(!text.contains("PRIVATE KEY"), "{text}");

    let mut up = device.up(&[]).await;
    up.adit.says("certificate renewed").await;
    assert_eq!(device.status().await["key_storage"], "tpm");
    let shown = world.aditd(&["device", "show", "laptop"]).await;
    assert!(shown.stdout.contains("in a TPM, as the device says"), "{}", shown.stdout);
    world.kill_server().await;
    world.restart_server().await;
    raw::exchange(up.address, "GET / HTTP/1.0\r\n\r\n").await;
    up.works().await;
    // More uses than the TPM has room for keys: each is removed from its memory.
    for _ in 0..4 {
        device.up(&[]).await.works().await;
    }

    let other = SoftTpm::start(world.scratch("other")).await.expect("swtpm is there");
    let own = stored(&device);
    let mut moved = own.clone();
    moved["hardware_key"]["uri"] = other.uri().into();
    store(&device, &moved);
    let ended = up_to_its_end(&device).await;
    let says = ["not the key with which this device enrolled", "adit enroll --replace"];
    assert_told(&ended, 1, &says);
    let doctor = device.adit(&["doctor"], "").await;
    assert!(doctor.stdout.contains("the TPM has not the key"), "{}", doctor.stdout);
    store(&device, &own);
    device.up(&[]).await.works().await;
}

#[tokio::test]
async fn a_signature_that_hangs_is_told_and_the_tunnel_comes_when_it_goes_on() {
    let world = World::start(PROGRAM).await;
    let Some(tpm) = SoftTpm::start(world.scratch("tpm")).await else { return };
    let device = world.stranger("laptop");
    let code = world.invite("laptop").await;
    assert_ok(&device.enroll(&code, &["--key", &tpm.uri()]).await);
    let hanging = HangingTpm::before(&tpm, world.scratch("hanging"));
    let mut profile = stored(&device);
    profile["hardware_key"]["uri"] = hanging.uri().into();
    store(&device, &profile);

    let mut up = device.start(&[]).await;
    up.adit.says("gave no answer in time").await;
    let status = device.status().await;
    assert_eq!(status["tunnel"]["state"], "down");
    assert!(status["tunnel"]["hint"].as_str().expect("a hint").contains("sudo lsof"), "{status}");
    hanging.go_on();
    up.adit.ready().await.expect("it comes up by itself");
    up.works().await;
}

#[tokio::test]
async fn what_is_wrong_with_a_tpm_is_said_with_a_cure() {
    let world = World::start(PROGRAM).await;
    let device = world.stranger("laptop");
    let code = world.invite("laptop").await;
    let none = device.enroll(&code, &["--key", "tpm:/dev/adit-no-tpm"]).await;
    assert_told(&none, 1, &["no TPM 2.0 at `/dev/adit-no-tpm`", "ls /dev/tpm*"]);
    // Something else than a TPM.
    let null = device.enroll(&code, &["--key", "tpm:/dev/null"]).await;
    assert_told(&null, 1, &["does not answer"]);
    let file = world.scratch("file");
    std::fs::write(&file, "precious").expect("written");
    for path in [file.as_path(), std::path::Path::new("/tmp")] {
        let uri = format!("tpm:{}", path.display());
        let other = device.enroll(&code, &["--key", &uri]).await;
        assert_told(&other, 1, &["is not a TPM", "ls /dev/tpm*"]);
    }
    assert_eq!(std::fs::read_to_string(&file).expect("read"), "precious", "it was not written");
    assert_ok(&device.enroll(&code, &["--key", "file"]).await);
}
