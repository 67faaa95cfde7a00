//! Slow hosts: a slow login, a slow login shell, a command that never answers.

use tests::{
    cli_assert::{FAILED, assert_told},
    laptop::Laptop,
    process::Process,
    skip,
    sshd::{Sshd, user_name},
    terminal::Terminal,
    world::World,
};

use crate::PROGRAM;

/// Makes sshd ask a command for the keys, which sleeps for this long the first time.
async fn ask_slowly(laptop: &mut Laptop, seconds: u32) {
    let dir = laptop.sshd.dir.clone();
    let (script, d) = (dir.join("keys"), dir.display());
    std::fs::write(
        &script,
        format!("mkdir {d}/slept 2>/dev/null && sleep {seconds}\ncat {d}/authorized_keys\n"),
    )
    .expect("written");
    laptop
        .sshd
        .configure(&format!(
            "AuthorizedKeysFile none\nAuthorizedKeysCommand /bin/sh {}\n\
             AuthorizedKeysCommandUser {}\n",
            script.display(),
            user_name()
        ))
        .await;
}

#[tokio::test]
async fn a_slow_login_is_waited_for_and_reported() {
    if Sshd::is_missing() {
        return;
    }
    let alone = Terminal::is_missing();
    if alone || (user_name() != "root" && skip::skip_test("only root's sshd asks a command")) {
        return;
    }
    let world = World::start(PROGRAM).await;
    let mut laptop = Laptop::new(&world).await;
    ask_slowly(&mut laptop, 17).await;
    let args = ["enroll", &laptop.sshd.url, "--device", "laptop"];
    let mut terminal = laptop.at_a_terminal(&world, &args);
    terminal.shows("has not answered the login yet").await;
    assert_eq!(terminal.ended().await, Some(0), "{}", terminal.screen());
    laptop.up(&world, &[]).await.works().await;
}

#[tokio::test]
async fn a_slow_login_shell_is_waited_for() {
    let Some((world, laptop)) = Laptop::enrolled_in_a_world(PROGRAM).await else { return };
    // Forwarding is not allowed: there is no other way to the relay.
    let seconds = 12;
    let slow = format!(r#"restrict,command="sleep {seconds}; eval \"$SSH_ORIGINAL_COMMAND\"""#);
    laptop.sshd.authorize("user", &slow);
    laptop.up(&world, &[]).await.works().await;
}

#[tokio::test]
async fn a_silent_command_does_not_delay_the_relays_port() {
    let Some((world, laptop)) = Laptop::enrolled_in_a_world(PROGRAM).await else { return };
    laptop.sshd.authorize("user", r#"restrict,port-forwarding,command="sleep 600""#);
    let command = laptop.command(&world, &["up", "-v", "--listen", "127.0.0.1:0"]);
    let begun = std::time::Instant::now();
    Process::spawn(command, "adit").expect("it starts").ready().await.expect("ready");
    // Without the port, the command would be waited for longer.
    assert!(begun.elapsed() < std::time::Duration::from_secs(45), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn connect_timeout_limits_the_wait_for_a_hosts_greeting() {
    let Some((world, laptop)) = Laptop::in_a_world(PROGRAM).await else { return };
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("ssh://somebody@{}", silent.local_addr().expect("an address"));
    laptop.sshd.client("ConnectTimeout 1\n");
    let ended = laptop.adit(&world, &["enroll", &url, "--device", "laptop"]).await;
    assert_told(&ended, FAILED, &["no SSH connection to", "has not answered for 1 s"]);
}
