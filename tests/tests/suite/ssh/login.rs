//! Logging in through a real sshd: agents, all types of keys, passphrases at a terminal, and jump
//! hosts.

use tests::{
    laptop::{Laptop, address_in},
    raw, skip,
    sshd::{Agent, Sshd, user_name},
    terminal::Terminal,
    world::World,
};

use crate::PROGRAM;

#[tokio::test]
async fn keys_of_all_kinds_log_in() {
    let Some((world, laptop)) = Laptop::in_a_world(PROGRAM).await else { return };
    for (name, arguments) in [
        ("rsa", &["-t", "rsa", "-b", "2048", "-N", ""][..]),
        ("ecdsa", &["-t", "ecdsa", "-b", "256", "-N", ""]),
        ("ecdsa521", &["-t", "ecdsa", "-b", "521", "-N", ""]),
        ("pem", &["-t", "rsa", "-b", "2048", "-m", "PEM", "-N", ""]),
    ] {
        let key = laptop.sshd.key(name, arguments);
        laptop.sshd.authorize(name, "");
        // Keys that sshd refuses are skipped.
        laptop.sshd.client(&format!(
            "IdentityFile {}/missing\nIdentityFile {}\n",
            laptop.sshd.dir.display(),
            key.display()
        ));
        laptop.enrolled(&world, &[]).await;
    }
}

#[tokio::test]
async fn keys_of_the_agent_are_used_and_identities_only_is_respected() {
    let Some((world, mut laptop)) = Laptop::in_a_world(PROGRAM).await else { return };
    let keys = ["held", "held_rsa"].map(|name| {
        let kind = if name == "held" { "ed25519" } else { "rsa" };
        laptop.sshd.key(name, &["-t", kind, "-N", ""])
    });
    let agent = Agent::start(&laptop.sshd.dir, &[&keys[0], &keys[1]]).await;
    for (name, key) in ["held", "held_rsa"].iter().zip(&keys) {
        // Only the agent has the key.
        std::fs::remove_file(key).expect("removed");
        laptop.sshd.authorize(name, "");
        laptop
            .sshd
            .client(&format!("IdentityAgent {}\nIdentitiesOnly no\n", agent.socket.display()));
        laptop.enrolled(&world, &[]).await;
    }
    laptop.sshd.client(&format!("IdentityAgent {}\n", agent.socket.display()));
    let refused = laptop.enroll(&world, &[]).await;
    assert!(
        refused.code == Some(1)
            && refused.stderr.contains("does not accept the login of this computer"),
        "{}",
        refused.stderr
    );
    // Selected by its public key; the agent is found by the environment.
    laptop.environment.push(("SSH_AUTH_SOCK".to_owned(), agent.socket.display().to_string()));
    laptop
        .sshd
        .client(&format!("IdentityAgent SSH_AUTH_SOCK\nIdentityFile {}\n", keys[1].display()));
    laptop.enrolled(&world, &[]).await;
}

#[tokio::test]
async fn a_passphrase_is_asked_for_at_a_terminal_and_not_shown() {
    if Terminal::is_missing() {
        return;
    }
    let Some((world, laptop)) = Laptop::in_a_world(PROGRAM).await else { return };
    let key = laptop.sshd.key("locked", &["-t", "ed25519", "-N", "open sesame"]);
    laptop.sshd.authorize("locked", "");
    laptop.sshd.client(&format!("IdentityFile {}\n", key.display()));
    let nobody = laptop.enroll(&world, &[]).await;
    assert_eq!(nobody.code, Some(1));
    assert!(
        nobody.stderr.contains("locked with a passphrase") && nobody.stderr.contains("ssh-add"),
        "{}",
        nobody.stderr
    );
    let mut terminal =
        laptop.at_a_terminal(&world, &["enroll", &laptop.sshd.url, "--device", "laptop"]);
    terminal.shows("Enter passphrase for key").await;
    terminal.types("a wrong one").await;
    terminal.shows("wrong passphrase").await;
    terminal.shows_times("Enter passphrase for key", 2).await;
    terminal.types("open sesame").await;
    assert_eq!(terminal.ended().await, Some(0), "{}", terminal.screen());
    assert!(
        !terminal.screen().contains("sesame") && !terminal.screen().contains("wrong one"),
        "{}",
        terminal.screen()
    );
}

#[tokio::test]
async fn the_tunnel_asks_for_a_passphrase_once_and_reconnects_by_itself() {
    if Terminal::is_missing() {
        return;
    }
    let Some((world, mut laptop)) = Laptop::enrolled_in_a_world(PROGRAM).await else { return };
    let key = laptop.sshd.key("locked", &["-t", "ed25519", "-N", "open sesame"]);
    laptop.sshd.authorize("locked", "");
    laptop.sshd.client(&format!("IdentityFile {}\n", key.display()));
    let mut terminal = laptop.at_a_terminal(&world, &["up", "-v", "--listen", "127.0.0.1:0"]);
    terminal.shows("Enter passphrase for key").await;
    terminal.types("open sesame").await;
    terminal.shows("ready: Ollama").await;
    let address = address_in(&terminal.screen()).expect("an address");
    laptop.sshd.kill();
    terminal.shows("ssh has ended").await;
    laptop.sshd.restart().await;
    let answer = raw::exchange(address, "GET / HTTP/1.0\r\n\r\n").await;
    assert!(answer.ends_with("Ollama is running"), "{answer}");
    assert_eq!(terminal.screen().matches("Enter passphrase").count(), 1, "{}", terminal.screen());
}

#[tokio::test]
async fn an_interrupt_at_a_prompt_restores_the_terminal() {
    if Terminal::is_missing() {
        return;
    }
    let Some((world, laptop)) = Laptop::in_a_world(PROGRAM).await else { return };
    let key = laptop.sshd.key("locked", &["-t", "ed25519", "-N", "open sesame"]);
    laptop.sshd.authorize("locked", "");
    laptop.sshd.client(&format!("IdentityFile {}\n", key.display()));
    let adit = laptop.command(&world, &["enroll", &laptop.sshd.url, "--device", "laptop"]);
    let mut terminal = Terminal::run_and_show_settings(&adit);
    terminal.shows("Enter passphrase for key").await;
    terminal.interrupts().await;
    terminal.ended().await;
    let screen = terminal.screen();
    assert!(
        screen.contains("interrupted") && screen.contains(" echo ") && screen.contains(" icanon "),
        "{screen}"
    );
}

#[tokio::test]
async fn a_jump_host_is_used_with_its_own_key_and_its_own_host_key() {
    let Some((world, laptop)) = Laptop::in_a_world(PROGRAM).await else { return };
    let mut jump = Sshd::start(&world.scratch("jump"), &world.scratch("nothing")).await;
    let (user, d) = (user_name(), jump.dir.display().to_string());
    let configure = |known: &str| {
        laptop.sshd.client(&format!(
            "Host gpu\nHostName 127.0.0.1\nPort {}\nUser {user}\nProxyJump {user}@jump\nHost jump\nHostName 127.0.0.1\nPort {}\n\
             IdentityFile {d}/user\nUserKnownHostsFile {d}/{known}\nHost *\n",
            laptop.sshd.address.port(),
            jump.address.port()
        ));
    };
    let enroll = ["enroll", "ssh://gpu", "--device", "laptop"];
    configure("nobody_known");
    let unknown = laptop.adit(&world, &enroll).await;
    assert!(
        unknown.code == Some(1) && unknown.stderr.contains("is not known"),
        "{}",
        unknown.stderr
    );
    assert!(unknown.stderr.contains(&jump.name()), "the jump host's: {}", unknown.stderr);
    configure("known_hosts");
    let enrolled = laptop.adit(&world, &enroll).await;
    assert_eq!(enrolled.code, Some(0), "{}", enrolled.stderr);
    let up = laptop.up(&world, &[]).await;
    let answer = raw::exchange(up.address, "GET / HTTP/1.0\r\n\r\n").await;
    assert!(answer.ends_with("Ollama is running"), "{answer}");
    up.end().await;
    // There is no route around the jump host.
    jump.kill();
    let gone = laptop.adit(&world, &[&enroll[..], &["--replace"]].concat()).await;
    assert!(
        gone.code == Some(1) && gone.stderr.contains(&format!("port {}", jump.address.port())),
        "{}",
        gone.stderr
    );
}

/// `open sesame`, in crypt's SHA-512.
const HASH: &str = "$6$aditadit$kS43ewz49BYpu9dfN8aIeoYPg42PNCtrZPeSQ1o6Xr188m1pj4YojvhFcNTpgIfwPg7/pQqeuQVcZKT.c8.05/";

#[tokio::test]
async fn if_no_key_is_accepted_a_password_is_asked_for_only_at_a_terminal() {
    if Sshd::is_missing() || Terminal::is_missing() {
        return;
    }
    let private = std::process::Command::new("unshare").args(["--mount", "true"]).output();
    if !private.is_ok_and(|out| out.status.success())
        && skip::skip_test("only root may have passwords of its own")
    {
        return;
    }
    let world = World::start(PROGRAM).await;
    let mut laptop = Laptop::new(&world).await;
    let asked_by_pam = "UsePAM yes\nKbdInteractiveAuthentication yes\nPasswordAuthentication no\n";
    for (lines, prompt, device) in [
        ("PasswordAuthentication yes\n", "'s password: ", "one"),
        (asked_by_pam, "Password: ", "two"),
    ] {
        laptop.sshd.take_password(HASH, lines).await;
        laptop.sshd.client("");
        let nobody = laptop.enroll(&world, &[]).await;
        assert!(
            nobody.code == Some(1)
                && nobody.stderr.contains("does not accept the login of this computer"),
            "{}",
            nobody.stderr
        );
        let mut terminal = laptop
            .at_a_terminal(&world, &["enroll", &laptop.sshd.url, "--replace", "--device", device]);
        terminal.shows(prompt).await;
        terminal.types("open sesame").await;
        assert_eq!(terminal.ended().await, Some(0), "{}", terminal.screen());
        assert!(!terminal.screen().contains("sesame"), "{}", terminal.screen());
    }
}
