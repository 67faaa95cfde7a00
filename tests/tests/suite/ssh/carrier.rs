//! Through a real sshd: enrolling with one command, and a tunnel if no UDP port can be reached,
//! with both SSH clients.

use tests::{
    cli_assert::{FAILED, assert_told},
    laptop::Laptop,
    process::Process,
    raw::{self, Ending},
    sshd::Sshd,
    state_files::device_names,
    world::{SOON, World},
};
use tokio::{io::AsyncWriteExt, task::JoinSet};

use crate::PROGRAM;

#[tokio::test]
async fn one_command_enrolls_over_ssh_and_the_tunnel_uses_ssh() {
    let Some((world, laptop)) = Laptop::enrolled_in_a_world(PROGRAM).await else { return };
    let up = laptop.up(&world, &[]).await;
    let status = laptop.device.status().await;
    assert_eq!(
        status["tunnel"]["carrier"], "ssh",
        "the server advertises loopback alone: {status}"
    );
    if cfg!(target_os = "linux") {
        let shown = world.aditd(&["device", "show", &device_names(&world).await[0]]).await.stdout;
        assert!(shown.contains("\nSession      from SSH, relayed at 127.0.0.2:"), "{shown}");
    }
    up.works().await;
    if cfg!(target_os = "linux") {
        let noted = async {
            while !world.aditd(&["audit", "--json"]).await.stdout.contains(r#""carrier":"ssh""#) {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(SOON, noted).await.expect("the server knows what came by SSH");
    }
}

#[tokio::test]
async fn the_systems_ssh_can_be_chosen_and_the_choice_is_stored() {
    let Some((world, laptop)) = Laptop::in_a_world(PROGRAM).await else { return };
    // An option that only the system's ssh supports.
    laptop.sshd.client("ProxyCommand nc 127.0.0.1 %p\nStrictHostKeyChecking yes\n");
    let builtin = laptop.enroll(&world, &[]).await;
    assert_eq!(builtin.code, Some(1));
    assert!(
        builtin.stderr.contains("ProxyCommand") && builtin.stderr.contains("--ssh-client system"),
        "{}",
        builtin.stderr
    );
    laptop.sshd.client("StrictHostKeyChecking yes\nBatchMode yes\n");
    laptop.enrolled(&world, &["--ssh-client", "system"]).await;
    let kept = std::fs::read_to_string(laptop.device.dir.join("servers/default/identity.json"))
        .expect("a profile");
    assert!(kept.contains(r#""ssh_client": "system""#), "{kept}");
    laptop.up(&world, &[]).await.works().await;
    laptop.up(&world, &["--ssh-client", "builtin"]).await.works().await;
}

#[tokio::test]
async fn a_tunnel_over_ssh_to_its_own_listener_is_refused() {
    if Sshd::is_missing() {
        return;
    }
    // Ollama would listen here if it ran.
    let reserved = tokio::net::TcpSocket::new_v4().expect("socket");
    reserved.set_reuseaddr(true).expect("reuse");
    reserved.bind("127.0.0.1:0".parse().expect("address")).expect("bound");
    let address = reserved.local_addr().expect("address").to_string();
    let world = World::in_front_of(PROGRAM, &address).await;
    let laptop = Laptop::new(&world).await;
    laptop.enrolled(&world, &[]).await;
    let refused = laptop.adit(&world, &["up", "--carrier", "ssh", "--listen", &address]).await;
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    assert!(refused.stderr.contains("this same computer"), "{}", refused.stderr);
}

#[tokio::test]
async fn an_answer_survives_the_death_of_its_ssh_connection_byte_for_byte() {
    let Some((world, mut laptop)) = Laptop::enrolled_in_a_world(PROGRAM).await else { return };
    for client in ["builtin", "system"] {
        let mut up = laptop.up(&world, &["--ssh-client", client]).await;
        let mut app = raw::connect(up.address).await;
        app.write_all(raw::generate(150, 8).as_bytes()).await.expect("sent");
        let mut answer = raw::read_exactly(&mut app, 800).await;
        laptop.sshd.kill();
        up.adit.says("ssh has ended").await;
        laptop.sshd.restart().await;
        let (rest, ending) = raw::read_to_end(&mut app).await;
        answer.extend(rest);
        assert_eq!(ending, Ending::Closed);
        let direct = raw::exchange(world.ollama.addr(), &raw::generate(150, 8)).await;
        assert_eq!(
            raw::without_date(&String::from_utf8_lossy(&answer)),
            raw::without_date(&direct)
        );
        assert_eq!(
            up.adit.log().matches("connected to").count(),
            1,
            "one session: {}",
            up.adit.log()
        );
        up.end().await;
    }
}

#[tokio::test]
async fn sixty_four_running_answers_survive_it_too() {
    let Some((world, mut laptop)) = Laptop::enrolled_in_a_world(PROGRAM).await else { return };
    let up = laptop.up(&world, &[]).await;
    let mut running = Vec::new();
    for seed in 0..64 {
        let mut app = raw::connect(up.address).await;
        app.write_all(raw::generate(100, seed).as_bytes()).await.expect("sent");
        running.push((seed, app));
    }
    let mut begun = Vec::new();
    for (seed, mut app) in running {
        let beginning = raw::read_exactly(&mut app, 400).await;
        begun.push((seed, app, beginning));
    }
    laptop.sshd.kill();
    laptop.sshd.restart().await;
    let mut ends = JoinSet::new();
    for (seed, mut app, mut answer) in begun {
        let ollama = world.ollama.addr();
        ends.spawn(async move {
            let request = raw::generate(100, seed);
            let ((rest, ending), direct) =
                tokio::join!(raw::read_to_end(&mut app), raw::exchange(ollama, &request));
            answer.extend(rest);
            assert_eq!(ending, Ending::Closed, "answer {seed}");
            assert_eq!(
                raw::without_date(&String::from_utf8_lossy(&answer)),
                raw::without_date(&direct),
                "answer {seed}"
            );
        });
    }
    while let Some(ended) = ends.join_next().await {
        ended.expect("byte for byte");
    }
}

#[tokio::test]
async fn a_key_that_may_only_relay_carries_the_tunnel() {
    let Some((world, laptop)) = Laptop::enrolled_in_a_world(PROGRAM).await else { return };
    laptop.sshd.authorize("user", "restrict,command=\"aditd relay\"");
    for client in ["builtin", "system"] {
        laptop.up(&world, &["--ssh-client", client]).await.works().await;
    }
}

#[tokio::test]
async fn a_key_that_may_only_forward_to_the_relays_port_carries_the_tunnel() {
    let Some((world, laptop)) = Laptop::enrolled_in_a_world(PROGRAM).await else { return };
    let port = world.status().await["relay"].as_u64().expect("a relay");
    let only =
        format!("restrict,port-forwarding,permitopen=\"127.0.0.1:{port}\",command=\"/bin/false\"");
    laptop.sshd.authorize("user", &only);
    laptop.up(&world, &[]).await.works().await;
}

#[tokio::test]
async fn a_failure_over_ssh_says_whether_ssh_or_aditd_failed_and_stores_nothing() {
    let Some((world, mut laptop)) = Laptop::in_a_world(PROGRAM).await else { return };
    world.device("taken").await;
    for client in ["builtin", "system"] {
        let absent = laptop
            .enroll(&world, &["--ssh-client", client, "--remote-command", "/nowhere/aditd"])
            .await;
        assert_eq!(absent.code, Some(1));
        assert!(
            absent.stderr.contains("there is no aditd on")
                && absent.stderr.contains("--remote-command"),
            "{absent:?}"
        );
        let args = ["enroll", &laptop.sshd.url, "--device", "taken", "--ssh-client", client];
        let taken = laptop.adit(&world, &args).await;
        assert_told(
            &taken,
            FAILED,
            &["there is a device `taken` already", "--device NAME", "`aditd device forget taken`"],
        );
        assert!(!taken.stderr.contains("by hand"), "SSH has worked: {}", taken.stderr);
    }
    laptop.sshd.kill();
    let by_hand = format!("run the same connection by hand: `{}`", laptop.sshd.by_hand());
    for client in ["builtin", "system"] {
        let dead = laptop.enroll(&world, &["--ssh-client", client]).await;
        assert!(
            dead.stderr.contains("Connection refused") && dead.stderr.contains(&by_hand),
            "{dead:?}"
        );
    }
    assert!(!laptop.device.dir.join("servers/default/identity.json").exists());
}

#[tokio::test]
async fn each_reason_for_no_tunnel_over_ssh_is_reported_with_its_cure() {
    let Some((world, mut laptop)) = Laptop::enrolled_in_a_world(PROGRAM).await else { return };
    let down = async |laptop: &Laptop, says: &str, cure: &str| {
        let command = laptop.command(&world, &["up", "--listen", "127.0.0.1:0"]);
        let mut adit = Process::spawn(command, "adit").expect("it starts");
        adit.says(cure).await;
        let said = adit.log();
        let status = laptop.adit(&world, &["status", "--json"]).await.stdout;
        let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
        let tunnel = |key: &str| status["tunnel"][key].as_str().unwrap_or_default().to_owned();
        let status = format!("{} ({})", tunnel("why"), tunnel("hint"));
        for told in [&said, &status] {
            assert!(told.contains(says) && told.contains(cure), "{told}");
            let hints = ["by hand", "ssh-add", "ssh-keygen -f"]
                .iter()
                .filter(|hint| told.contains(**hint))
                .count();
            assert_eq!(hints, 1, "one cure: {told}");
        }
        adit.kill().await;
    };
    laptop.sshd.key("other", &["-t", "ed25519", "-N", ""]);
    laptop.sshd.know(&format!("{} {}", laptop.sshd.name(), laptop.sshd.public("other")));
    down(&laptop, "HAS CHANGED", "ssh-keygen -f").await;
    laptop.sshd.know(&laptop.sshd.line());
    laptop.sshd.kill();
    let by_hand = laptop.sshd.by_hand();
    down(&laptop, "Connection refused", &format!("run the same connection by hand: `{by_hand}`"))
        .await;
}

#[tokio::test]
async fn enrolling_at_a_server_that_was_never_started_says_how_to_start_it() {
    let Some((mut world, laptop)) = Laptop::in_a_world(PROGRAM).await else { return };
    world.kill_server().await;
    std::fs::remove_dir_all(world.state()).expect("removed");
    let enrolled = laptop.enroll(&world, &[]).await;
    assert_eq!(enrolled.code, Some(1));
    assert!(
        enrolled.stderr.contains("there is no server state")
            && enrolled.stderr.contains("aditd serve"),
        "{enrolled:?}"
    );
}
