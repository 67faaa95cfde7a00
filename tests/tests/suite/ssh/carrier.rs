//! Through a real sshd: enrolling with one command, and a tunnel if no UDP port can be reached,
//! with both SSH clients.

use std::time::Instant;

use tests::{
    cli_assert::{FAILED, assert_told},
    laptop::Laptop,
    ollama::Options,
    process::Process,
    raw::{self, Ending},
    skip,
    sshd::Sshd,
    state_files::device_names,
    world::{SOON, Up, World},
};
use tokio::{io::AsyncWriteExt, task::JoinSet};

use crate::PROGRAM;

fn there_is_no_sshd() -> bool {
    !Sshd::is_there() && skip::skip_test("there is no OpenSSH server and client")
}

async fn works(up: Up) {
    let answer = raw::exchange(up.address, "GET / HTTP/1.0\r\n\r\n").await;
    assert!(answer.ends_with("Ollama is running"), "{answer}");
    up.end().await;
}

#[tokio::test]
async fn one_command_enrolls_over_ssh_and_the_tunnel_uses_ssh() {
    if there_is_no_sshd() {
        return;
    }
    let world = World::start(PROGRAM).await;
    let laptop = Laptop::new(&world).await;
    laptop.enrolled(&world, &[]).await;
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
    works(up).await;
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
    if there_is_no_sshd() {
        return;
    }
    let world = World::start(PROGRAM).await;
    let laptop = Laptop::new(&world).await;
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
    works(laptop.up(&world, &[]).await).await;
    works(laptop.up(&world, &["--ssh-client", "builtin"]).await).await;
}

#[tokio::test]
async fn a_tunnel_over_ssh_to_its_own_listener_is_refused() {
    if there_is_no_sshd() {
        return;
    }
    // Ollama would listen here if it ran.
    let reserved = tokio::net::TcpSocket::new_v4().expect("socket");
    reserved.set_reuseaddr(true).expect("reuse");
    reserved.bind("127.0.0.1:0".parse().expect("address")).expect("bound");
    let address = reserved.local_addr().expect("address").to_string();
    let world = World::start_with(PROGRAM, Options::default(), &["--upstream", &address]).await;
    let laptop = Laptop::new(&world).await;
    laptop.enrolled(&world, &[]).await;
    let refused = laptop.adit(&world, &["up", "--carrier", "ssh", "--listen", &address]).await;
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    assert!(refused.stderr.contains("this same computer"), "{}", refused.stderr);
}

#[tokio::test]
async fn an_answer_survives_the_death_of_its_ssh_connection_byte_for_byte() {
    if there_is_no_sshd() {
        return;
    }
    let world = World::start(PROGRAM).await;
    let mut laptop = Laptop::new(&world).await;
    laptop.enrolled(&world, &[]).await;
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
    if there_is_no_sshd() {
        return;
    }
    let world = World::start(PROGRAM).await;
    let mut laptop = Laptop::new(&world).await;
    laptop.enrolled(&world, &[]).await;
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
    if there_is_no_sshd() {
        return;
    }
    let world = World::start(PROGRAM).await;
    let laptop = Laptop::new(&world).await;
    laptop.enrolled(&world, &[]).await;
    laptop.sshd.authorize("user", "restrict,command=\"aditd relay\"");
    for client in ["builtin", "system"] {
        works(laptop.up(&world, &["--ssh-client", client]).await).await;
    }
}

#[tokio::test]
async fn a_key_that_may_only_forward_to_the_relays_port_carries_the_tunnel() {
    if there_is_no_sshd() {
        return;
    }
    let world = World::start(PROGRAM).await;
    let laptop = Laptop::new(&world).await;
    laptop.enrolled(&world, &[]).await;
    let port = world.status().await["relay"].as_u64().expect("a relay");
    let only =
        format!("restrict,port-forwarding,permitopen=\"127.0.0.1:{port}\",command=\"/bin/false\"");
    laptop.sshd.authorize("user", &only);
    works(laptop.up(&world, &[]).await).await;
}

#[tokio::test]
async fn a_failure_over_ssh_says_whether_ssh_or_aditd_failed_and_stores_nothing() {
    if there_is_no_sshd() {
        return;
    }
    let world = World::start(PROGRAM).await;
    let mut laptop = Laptop::new(&world).await;
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
    if there_is_no_sshd() {
        return;
    }
    let world = World::start(PROGRAM).await;
    let mut laptop = Laptop::new(&world).await;
    laptop.enrolled(&world, &[]).await;
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
    if there_is_no_sshd() {
        return;
    }
    let mut world = World::start(PROGRAM).await;
    let laptop = Laptop::new(&world).await;
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

#[tokio::test]
async fn a_host_that_accepts_and_then_sends_nothing_is_given_up() {
    if there_is_no_sshd() {
        return;
    }
    let world = World::start(PROGRAM).await;
    let laptop = Laptop::new(&world).await;
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("ssh://somebody@{}", silent.local_addr().expect("an address"));
    let begun = Instant::now();
    let ended = laptop.adit(&world, &["enroll", &url, "--device", "laptop"]).await;
    assert!(ended.code == Some(1) && ended.stderr.contains("no SSH connection to"), "{ended:?}");
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
}
