//! The SSH login works, but no aditd runs there: `adit enroll` and `adit up` say so.

use serde_json::Value;
use tests::{
    cli_assert::{FAILED, assert_told},
    laptop::Laptop,
    process::Process,
    raw,
    world::{SOON, World},
};

use crate::PROGRAM;

const START: &str = "start it there: `aditd serve";

/// Why `adit up` has no tunnel, and the cure, once `adit status --json` shows them.
async fn why_down(laptop: &Laptop, world: &World) -> (String, String) {
    let known = async {
        loop {
            let status = laptop.adit(world, &["status", "--json"]).await.stdout;
            let status: Value = serde_json::from_str(&status).unwrap_or_default();
            let (why, hint) = (&status["tunnel"]["why"], &status["tunnel"]["hint"]);
            if let (Some(why), Some(hint)) = (why.as_str(), hint.as_str())
                && !why.contains("no answer yet")
            {
                return (why.to_owned(), hint.to_owned());
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(SOON, known).await.expect("it knows why")
}

#[tokio::test]
async fn a_tunnel_over_ssh_reports_that_no_aditd_runs_and_comes_up_when_it_does() {
    let Some((mut world, laptop)) = Laptop::enrolled_in_a_world(PROGRAM).await else { return };
    let relay = world.status().await["relay"].as_u64();
    world.kill_server().await;
    // Another process may have the TCP port of the same number: then there is no relay on it.
    let only_forwards = match relay {
        Some(port) => format!(
            "restrict,port-forwarding,permitopen=\"127.0.0.1:{port}\",command=\"/bin/false\""
        ),
        None => "restrict".to_owned(),
    };
    for (client, options) in [("builtin", ""), ("system", ""), ("builtin", &only_forwards)] {
        laptop.sshd.authorize("user", options);
        let args = ["up", "-v", "--listen", "127.0.0.1:0", "--ssh-client", client];
        let mut adit = Process::spawn(laptop.command(&world, &args), "adit").expect("it starts");
        adit.says("listening on").await;
        let (why, hint) = why_down(&laptop, &world).await;
        assert!(why.contains("aditd is not running on "), "{client} {options}: {why}");
        assert!(hint.contains(START), "{client} {options}: {hint}");
        if options == only_forwards {
            world.restart_server().await;
            adit.ready().await.expect("it comes up");
        }
        adit.kill().await;
    }
}

#[tokio::test]
async fn enrolling_without_a_running_aditd_is_refused_and_stores_nothing() {
    let Some((mut world, laptop)) = Laptop::in_a_world(PROGRAM).await else { return };
    world.kill_server().await;
    for client in ["builtin", "system"] {
        let refused = laptop.enroll(&world, &["--ssh-client", client]).await;
        assert_told(&refused, FAILED, &["aditd is not running on ", START]);
    }
    world.restart_server().await;
    assert_eq!(
        world.aditd(&["device", "list", "--json"]).await.stdout.matches("laptop").count(),
        0
    );
    laptop.enrolled(&world, &[]).await;
}

#[tokio::test]
async fn enrolling_at_another_state_than_the_running_servers_is_refused() {
    let Some((world, laptop)) = Laptop::in_a_world(PROGRAM).await else { return };
    let (other, config) = (world.scratch("other"), world.scratch("other.toml"));
    let socket = world.scratch("nothing.sock");
    let listens =
        format!("listen = ['{}']\nenroll_socket = '{}'", world.address().await, socket.display());
    std::fs::write(&config, listens).expect("written");
    let script = format!(
        "#!/bin/sh\nexport ADITD_STATE_DIR={} ADITD_CONFIG={}\nexec {} \"$@\"\n",
        other.display(),
        config.display(),
        world.scratch("aditd").display()
    );
    std::fs::write(world.scratch("remote-bin").join("aditd"), script).expect("written");
    let state = other.to_str().expect("a path");
    let made = world.programs.run("aditd", &["init", "--state-dir", state], "").await;
    assert_eq!(made.expect("it runs").code, Some(0));
    let refused = laptop.enroll(&world, &[]).await;
    assert_told(&refused, FAILED, &["has another state than", "--enroll-group"]);
}

#[tokio::test]
async fn without_access_to_the_state_the_relay_uses_the_port_that_the_device_knows() {
    let Some((world, laptop)) = Laptop::enrolled_in_a_world(PROGRAM).await else { return };
    // From now on the server's port can't be found out there.
    let script = format!(
        "#!/bin/sh\nexport ADITD_STATE_DIR={} ADITD_CONFIG=/dev/null\nexec {} \"$@\"\n",
        world.scratch("nobodys").display(),
        world.scratch("aditd").display()
    );
    std::fs::write(world.scratch("remote-bin").join("aditd"), script).expect("written");
    // Forwarding is not allowed: the command has to find the port.
    laptop.sshd.authorize("user", "restrict");
    for client in ["builtin", "system"] {
        let up = laptop.up(&world, &["--ssh-client", client]).await;
        let answer = raw::exchange(up.address, "GET / HTTP/1.0\r\n\r\n").await;
        assert!(answer.ends_with("Ollama is running"), "{answer}");
        up.end().await;
    }
}
