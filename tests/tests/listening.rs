//! The addresses that are listened on: which are refused or taken, and what is said of them.

use std::fs;

use common::invitation::Invitation;
use tests::{
    kept::{chmod, identity_file, text},
    ordinary::Ordinary,
    skip,
    told::{FAILED, assert_told},
    world::World,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_adit-demo");

#[tokio::test]
async fn a_port_that_is_taken_is_told_with_who_has_it() {
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let holder = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = holder.local_addr().expect("an address").to_string();
    let told = device.adit(&["up", "--listen", &taken], "").await;
    let pid = format!("(pid {})", std::process::id());
    assert_told(
        &told,
        FAILED,
        &[
            &format!("error: cannot listen on {taken}\n  Caused by: address already in use by `"),
            &pid,
            "adit up --listen localhost:11500",
        ],
    );
    let localhost = format!("localhost:{}", holder.local_addr().expect("an address").port());
    let told = device.adit(&["up", "--listen", &localhost], "").await;
    assert_told(&told, FAILED, &[&format!("error: cannot listen on {localhost}\n"), &pid]);

    let holder = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port");
    let taken = holder.local_addr().expect("an address");
    let state = world.scratch("second");
    let args = ["serve", "--listen", &taken.to_string(), "--state-dir", text(&state)];
    let told = world.programs.run("aditd", &args, "").await.expect("aditd runs");
    assert_told(
        &told,
        FAILED,
        &[&format!("error: cannot listen on {taken} (UDP)\n  Caused by: "), "ddress already in use", "another with --listen"],
    );
    assert!(told.stderr.contains(&pid), "it doesn't say who has it:\n{}", told.stderr);
}

#[tokio::test]
async fn a_port_below_1024_is_refused_to_an_ordinary_user_with_the_way_out() {
    let first = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap_or_default();
    if first.trim().parse::<u16>().is_ok_and(|first| first < 2) && skip::because("every port is free to everybody here") {
        return;
    }
    let Some(ordinary) = Ordinary::new(PROGRAM) else { return };
    let state = ordinary.home("server");
    let told = ordinary.run("aditd", &["serve", "--listen", "127.0.0.1:1", "--state-dir", text(&state)]).expect("aditd runs");
    assert_told(
        &told,
        FAILED,
        &["error: cannot listen on 127.0.0.1:1 (UDP)\n  Caused by: Permission denied", "above 1023 with --listen"],
    );

    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let home = ordinary.home("device");
    let place = home.join("servers/default");
    fs::create_dir_all(&place).expect("a directory");
    fs::copy(identity_file(&device), place.join("identity.json")).expect("copied");
    if ordinary.as_root {
        for path in [home.join("servers"), place.clone(), place.join("identity.json")] {
            chmod(&path, if path.is_dir() { 0o700 } else { 0o600 });
            ordinary.give(&path);
        }
    }
    let told = ordinary.run("adit", &["up", "--listen", "127.0.0.1:1", "--state-dir", text(&home)]).expect("adit runs");
    assert_told(
        &told,
        FAILED,
        &["error: cannot listen on 127.0.0.1:1\n  Caused by: Permission denied", "choose another with --listen"],
    );
}

#[tokio::test]
async fn a_server_that_knows_no_address_of_its_own_makes_no_code_that_leads_nowhere() {
    let mut world = World::start(PROGRAM).await;
    let port = world.address().await.port();
    let loopback = world.address().await.to_string();
    let open = format!("0.0.0.0:{port}");
    for flag in world.serve_flags.iter_mut().filter(|flag| **flag == loopback) {
        flag.clone_from(&open);
    }
    // As behind a router: nobody of the network that may come in is an interface of this machine.
    world.serve_flags.extend(["--allow-from", "203.0.113.0/24"].map(str::to_owned));
    world.kill_server().await;
    world.restart_server().await;
    let invited = world.aditd(&["invite", "laptop"]).await;
    if invited.code == Some(0) {
        let invitation: Invitation = invited.stdout.parse().expect("a code");
        assert!(!invitation.addresses.is_empty());
        let leads_here = |address: &String| address.ends_with(&format!(":{port}"));
        assert!(invitation.addresses.iter().all(leads_here), "{:?} but the server is on port {port}", invitation.addresses);
    } else {
        assert_told(&invited, FAILED, &["--advertise"]);
    }
}
