//! The cures in error messages work when they are typed as they stand, on the device that printed
//! them.

use std::time::Duration;

use proto::invitation::Invitation;
use tests::{
    cli_assert::{FAILED, USAGE, assert_ok, assert_told, without_places},
    laptop::Laptop,
    ollama::Options,
    process::{Ended, Process},
    sshd::user_name,
    state_files::device_names,
    world::{SOON, World},
};

use crate::PROGRAM;

#[tokio::test]
async fn a_port_where_nobody_listens_is_reported_at_once() {
    let world = World::start(PROGRAM).await;
    let mut invitation: Invitation = world.invite("laptop").await.parse().expect("a code");
    let closed = std::net::UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
    invitation.addresses = vec![closed.expect("a port").to_string()];
    let told = world.stranger("laptop").enroll(&invitation.code(), &[]).await;
    assert_told(&told, FAILED, &["cannot reach 127.0.0.1:", "nothing listens on that UDP port"]);
}

#[tokio::test]
async fn a_bad_place_of_the_enroll_socket_is_told_by_its_own_setting() {
    let world = World::start(PROGRAM).await;
    let (config, state) = (world.scratch("socket.toml"), world.scratch("state"));
    let (group, place) = (tests::cli_assert::own_group(), "/dev/null/enroll.sock");
    let settings = format!("enroll_group = '{group}'\nenroll_socket = '{place}'\n");
    std::fs::write(&config, settings).expect("written");
    let [config, state] = [&config, &state].map(|path| path.to_str().expect("a path"));
    let flags = ["serve", "--listen", "127.0.0.1:0", "--config", config, "--state-dir", state];
    let told = world.programs.run("aditd", &flags, "").await.expect("aditd runs");
    assert_told(&told, FAILED, &["/dev/null", "`enroll_socket` in the configuration"]);
}

#[tokio::test]
async fn a_server_that_does_not_run_is_started_again_as_it_was_by_the_hint() {
    let mut world = World::start_with(PROGRAM, Options::default(), &["--device-life", "36h"]).await;
    // From the second start on it has a port of its own.
    world.kill_server().await;
    world.restart_server().await;
    let before = world.status().await;
    world.kill_server().await;
    let hinted = |told: &Ended| {
        let command = told.stderr.split('`').find(|part| part.starts_with("aditd serve"));
        command.unwrap_or_else(|| panic!("no command: {told:?}")).to_owned()
    };
    let [status, reload, replace, invited] = [
        world.aditd(&["status"]).await,
        world.aditd(&["reload"]).await,
        world.aditd(&["replace"]).await,
        world.aditd(&["invite", "desk", "--advertise", "gpu.lan:11435"]).await,
    ];
    assert_ok(&invited);
    let command = hinted(&status);
    assert_eq!([&reload, &replace, &invited].map(hinted), [(); 3].map(|()| command.clone()));
    let doctor = world.aditd(&["doctor"]).await;
    assert!(doctor.stdout.contains(&command), "{command}\n{}", doctor.stdout);
    assert!(command.contains("--device-life '1d 12h'"), "{command}");
    // As a shell takes it.
    let typed = world.programs.command("aditd", &[]);
    let aditd = world.scratch("aditd");
    let mut shell = tokio::process::Command::new("sh");
    for (name, value) in typed.as_std().get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    let line = command.replacen("aditd", aditd.to_str().expect("a path"), 1);
    shell.args(["-c", &format!("exec {line}")]).kill_on_drop(true);
    let mut again = Process::spawn(shell, "aditd").expect("it starts");
    again.ready().await.expect("it is ready");
    let after = world.status().await;
    for setting in ["listening", "upstream", "config"] {
        assert_eq!(before[setting], after[setting], "{setting}");
    }
}

/// What the kernel says counts, and nobody waits for an answer that cannot come.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn enrolling_without_a_route_reports_what_the_kernel_says() {
    if tests::lab::Lab::is_missing() {
        return;
    }
    let world = World::start(PROGRAM).await;
    let mut invitation: Invitation = world.invite("laptop").await.parse().expect("a code");
    invitation.addresses = vec!["198.51.100.1:11435".to_owned()];
    let nowhere = tests::lab::Namespace::new().expect("a namespace");
    let told = nowhere.within(world.stranger("laptop").enroll(&invitation.code(), &[])).await;
    assert_told(&told, FAILED, &["cannot reach 198.51.100.1:11435: Network is unreachable"]);
    assert!(!told.stderr.contains("--allow-from"), "{}", told.stderr);
}

#[tokio::test]
async fn a_device_that_was_revoked_while_connected_can_enroll_again_by_the_hints() {
    let world = World::start(PROGRAM).await;
    let device = world.stranger("laptop");
    assert_ok(&device.enroll(&world.invite("laptop").await, &["--name", "lab"]).await);
    let idle = device.adit(&["status", "lab"], "").await;
    assert_told(&idle, FAILED, &["start it with `adit up lab`"]);
    let up = device.up(&["lab"]).await;
    let twice = device.adit(&["up", "lab", "--listen", "127.0.0.1:0"], "").await;
    assert_told(&twice, FAILED, &["`adit status lab`"]);
    assert_ok(&world.aditd(&["device", "revoke", "laptop"]).await);
    let hint = async {
        loop {
            if let Some(hint) = device.status().await["tunnel"]["hint"].as_str() {
                return hint.to_owned();
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let hint = tokio::time::timeout(SOON, hint).await.expect("it is told");
    let hint = without_places(&hint);
    let commands: Vec<&str> = hint.split('`').skip(1).step_by(2).collect();
    let steps = [
        // Then the running `adit up` connects by itself.
        "aditd device restore laptop",
        "aditd device forget laptop",
        "aditd invite laptop",
        "adit down lab",
        "adit enroll --replace --name lab",
    ];
    assert_eq!(commands, steps, "{hint}");
    assert_ok(&world.aditd(&["device", "forget", "laptop"]).await);
    let code = world.invite("laptop").await;
    up.end().await;
    assert_ok(&device.enroll(&code, &["--replace", "--name", "lab"]).await);
    device.up(&["lab"]).await;
}

/// Runs the first command that is told as a cure, as it stands there.
async fn typed(world: &World, told: &str) -> Ended {
    let command = told.split("hint: ").nth(1).and_then(|hint| hint.split('`').nth(1));
    let command = command.unwrap_or_else(|| panic!("no command in {told}"));
    let path = format!("{}:/usr/bin:/bin", world.programs.dir().display());
    let mut shell = tokio::process::Command::new("sh");
    let run = shell.args(["-c", command]).env("PATH", path).env("HOME", "/nonexistent").output();
    tokio::time::timeout(SOON, run).await.expect("in time").expect("it runs").into()
}

#[tokio::test]
async fn a_cure_names_the_places_that_the_program_was_told_and_works_as_it_stands() {
    let world = World::start(PROGRAM).await;
    let mut device = world.stranger("it's my laptop");
    device.dir.set_file_name("it's my laptop");
    assert_ok(&device.enroll(&world.invite("laptop").await, &["--name", "lab"]).await);
    let up = device.up(&["lab"]).await;
    let twice = device.adit(&["up", "lab", "--listen", "127.0.0.1:0"], "").await;
    let status = typed(&world, &twice.stderr).await;
    assert_ok(&status);
    assert!(status.stdout.contains(&up.address.to_string()), "{status:?}");
    // On the server: what has to come first, and then the command that was refused.
    let forget = world.aditd(&["device", "forget", "laptop"]).await;
    assert_eq!(forget.code, Some(FAILED), "{forget:?}");
    assert_ok(&typed(&world, &forget.stderr).await);
    assert_ok(&world.aditd(&["device", "forget", "laptop"]).await);
}

#[tokio::test]
async fn a_device_replaces_its_own_enrollment_over_ssh_under_its_own_name() {
    let Some((world, laptop)) = Laptop::in_a_world(PROGRAM).await else { return };
    let enroll = ["enroll", &laptop.sshd.url, "--device", "laptop"];
    assert_eq!(laptop.adit(&world, &enroll).await.code, Some(0));
    let again = laptop.adit(&world, &[&enroll[..], &["--replace"]].concat()).await;
    assert_eq!(again.code, Some(0), "{}", again.stderr);
    assert_eq!(device_names(&world).await, ["laptop"]);
    laptop.up(&world, &[]).await.end().await;
}

#[tokio::test]
async fn a_host_alias_of_the_ssh_configuration_can_be_used_to_enroll() {
    let Some((world, laptop)) = Laptop::in_a_world(PROGRAM).await else { return };
    let unknown = laptop.adit(&world, &["enroll", "gpubox", "--device", "laptop"]).await;
    assert_told(&unknown, USAGE, &["neither the SSH configuration", "`Host` in ~/.ssh/config"]);
    laptop.sshd.client(&format!(
        "Host gpubox\nHostName 127.0.0.1\nPort {}\nUser {}\nHost *\n",
        laptop.sshd.address.port(),
        user_name()
    ));
    let enrolled = laptop.adit(&world, &["enroll", "gpubox", "--device", "laptop"]).await;
    assert_eq!(enrolled.code, Some(0), "{}", enrolled.stderr);
    laptop.up(&world, &[]).await.end().await;
    // A common way to write it.
    let (user, address) = (user_name(), laptop.sshd.address);
    let short = format!("{user}@{address}");
    let enrolled = laptop.adit(&world, &["enroll", &short, "--name", "short"]).await;
    let told = enrolled.code == Some(0) || enrolled.stderr.contains("there is a device");
    assert!(told, "it got in: {}", enrolled.stderr);
}

#[tokio::test]
async fn the_log_on_a_terminal_has_the_local_time_without_fractions() {
    use tests::terminal::Terminal;
    if Terminal::is_missing() {
        return;
    }
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let args = ["up", "--listen", "127.0.0.1:0", "--state-dir", device.dir.to_str().expect("path")];
    let mut command = world.programs.command("adit", &args);
    command.env("TZ", "XXX-5:30").env("JOURNAL_STREAM", "8:1");
    let mut terminal = Terminal::run(&command);
    terminal.shows("ready: Ollama").await;
    let screen = terminal.screen();
    let first = screen.lines().find(|line| line.contains("listening on")).expect("a line");
    let time = first.split_whitespace().next().expect("a time");
    let parts: Vec<u64> = time.split(':').filter_map(|part| part.parse().ok()).collect();
    assert_eq!((time.len(), parts.len()), (8, 3), "{first}");
    let now = common::machine::process::unix_now() as u64 + 5 * 3600 + 30 * 60;
    let minutes = now / 60 % 1440;
    let told = parts[0] * 60 + parts[1];
    assert!((minutes + 1440 - told) % 1440 < 3, "{first}: it is {minutes} minutes after midnight");
    let mut piped = Process::spawn(world.programs.command("adit", &args), "adit").expect("starts");
    piped.ended().await.expect("it is taken");
}
