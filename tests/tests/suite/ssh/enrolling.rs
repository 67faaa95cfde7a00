//! Who may enroll devices over SSH, besides the owner of the server's state.

use tests::{
    cli_assert::{FAILED, assert_told, own_group},
    laptop::Laptop,
    ollama::Options,
    raw,
    sshd::Sshd,
    world::World,
};

use crate::PROGRAM;

/// Puts an `aditd` with this configuration on the server's path; it may not read the state.
fn without_the_state(world: &World, config: &std::path::Path) {
    let script = format!(
        "#!/bin/sh\nexport ADITD_STATE_DIR={} ADITD_CONFIG={}\nexec {} \"$@\"\n",
        world.scratch("nobodys").display(),
        config.display(),
        world.scratch("aditd").display()
    );
    std::fs::write(world.scratch("remote-bin").join("aditd"), script).expect("written");
}

#[tokio::test]
async fn members_of_the_group_that_the_server_names_enroll_without_its_state() {
    if Sshd::is_missing() {
        return;
    }
    let tmp = tempfile::tempdir().expect("a directory");
    let config = tmp.path().join("aditd.toml");
    std::fs::write(
        &config,
        format!("enroll_socket = '{}'", tmp.path().join("enroll.sock").display()),
    )
    .expect("written");
    let flags = ["--enroll-group", &own_group(), "--config", config.to_str().expect("a path")];
    let mut world = World::start_with(PROGRAM, Options::default(), &flags).await;
    let laptop = Laptop::new(&world).await;
    without_the_state(&world, &config);
    // The configuration says where the server listens.
    let told = std::fs::read_to_string(&config).expect("read");
    std::fs::write(&config, format!("{told}\nlisten = ['{}']", world.address().await))
        .expect("written");
    laptop.enrolled(&world, &[]).await;
    let up = laptop.up(&world, &[]).await;
    let answer = raw::exchange(up.address, "GET / HTTP/1.0\r\n\r\n").await;
    assert!(answer.ends_with("Ollama is running"), "{answer}");
    up.end().await;
    let again = laptop
        .adit(&world, &["enroll", &laptop.sshd.url, "--device", "laptop-1", "--name", "other"])
        .await;
    assert_told(&again, FAILED, &["there is a device `laptop-1` already", "--device NAME"]);
    world.kill_server().await;
    let alone = laptop.enroll(&world, &[]).await;
    assert!(alone.code == Some(1) && alone.stderr.contains("--enroll-group"), "{}", alone.stderr);
}

#[tokio::test]
async fn a_key_that_may_not_enroll_is_reported_at_once() {
    let Some((world, laptop)) = Laptop::in_a_world(PROGRAM).await else { return };
    let only_forwards = "restrict,port-forwarding,permitopen=\"127.0.0.1:11435\",command=";
    for client in ["builtin", "system"] {
        let enroll = async |options: &str, says: &[&str]| {
            laptop.sshd.authorize("user", options);
            let told = laptop.enroll(&world, &["--ssh-client", client]).await;
            assert_told(&told, FAILED, says);
        };
        enroll(
            "restrict,command=\"aditd relay\"",
            &["may only run `aditd relay`", "`aditd enroll-device`", "restrict the key afterwards"],
        )
        .await;
        let ended = [
            "`aditd enroll-device laptop-",
            "ended without an answer of aditd (exit code 1); it printed nothing",
            "`command=`",
        ];
        enroll(&format!("{only_forwards}\"/bin/false\""), &ended).await;
        let said = ["exit code 3", "on standard error: keep out", "`command=`"];
        enroll(&format!("{only_forwards}\"echo keep out >&2; exit 3\""), &said).await;
    }
}

#[tokio::test]
async fn a_user_who_may_not_enroll_is_told_who_may() {
    let Some((world, laptop)) = Laptop::in_a_world(PROGRAM).await else { return };
    let config = world.scratch("other.toml");
    std::fs::write(
        &config,
        format!("enroll_socket = '{}'", world.scratch("nothing.sock").display()),
    )
    .expect("written");
    without_the_state(&world, &config);
    let refused = laptop.enroll(&world, &[]).await;
    assert_eq!(refused.code, Some(1));
    for said in [
        "there is no server state",
        "root, the owner of the server's state, and the members of the group",
    ] {
        assert!(refused.stderr.contains(said), "{said}: {}", refused.stderr);
    }
}
