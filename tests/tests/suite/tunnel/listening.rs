//! The addresses that are listened on: which are refused, which are in use, and who is answered
//! there.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    path::Path,
};

use common::machine::network::own_network_or_example;
use proto::{invitation::Invitation, knock::SharedKey, wire::ALPN_TUNNEL};
use tests::{
    cli_assert::{FAILED, assert_ok, assert_told},
    ollama::Options,
    process::Ended,
    skip,
    state_files::{chmod, identity_file, profile, text},
    stranger::{Gate, Service, Stranger, assert_served, crypto, first_flight},
    unprivileged::Ordinary,
    world::{SOON, World},
};

use crate::PROGRAM;

/// Asks until this process is named as the holder of its own socket, at most ten times. A child that
/// another test is just starting has all sockets of this process for a moment, and may be named.
async fn naming_this_process(ask: impl AsyncFn() -> Ended) -> Ended {
    let pid = format!("(pid {})", std::process::id());
    for _ in 0..9 {
        let told = ask().await;
        if told.stderr.contains(&pid) {
            return told;
        }
    }
    ask().await
}

#[tokio::test]
async fn a_port_in_use_is_reported_with_its_holder() {
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let holder = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = holder.local_addr().expect("an address").to_string();
    let told =
        naming_this_process(async || device.adit(&["up", "--listen", &taken], "").await).await;
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
    let told =
        naming_this_process(async || device.adit(&["up", "--listen", &localhost], "").await).await;
    assert_told(&told, FAILED, &[&format!("error: cannot listen on {localhost}\n"), &pid]);

    let holder = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port");
    let taken = holder.local_addr().expect("an address");
    let state = world.scratch("second");
    let args = ["serve", "--listen", &taken.to_string(), "--state-dir", text(&state)];
    let serve = async || world.programs.run("aditd", &args, "").await.expect("aditd runs");
    let told = naming_this_process(serve).await;
    assert_told(
        &told,
        FAILED,
        &[
            &format!("error: cannot listen on {taken} (UDP)\n  Caused by: "),
            "ddress already in use",
            "another with --listen",
        ],
    );
    assert!(told.stderr.contains(&pid), "it doesn't say who has it:\n{}", told.stderr);
}

#[tokio::test]
async fn a_first_start_that_fails_leaves_no_state_to_enroll_into() {
    let world = World::start(PROGRAM).await;
    let holders = (
        std::net::UdpSocket::bind("127.0.0.1:0").expect("a port"),
        std::net::TcpListener::bind("127.0.0.1:0").expect("a port"),
    );
    let udp = holders.0.local_addr().expect("an address").to_string();
    let metrics = world.scratch("metrics.toml");
    let tcp = holders.1.local_addr().expect("an address");
    fs::write(&metrics, format!("metrics = '{tcp}'")).expect("written");
    for (i, (flags, says)) in [
        (&["--listen", &udp][..], "ddress already in use"),
        (&["--listen", "127.0.0.1:0", "--listen", &udp], "ddress already in use"),
        (&["--listen", "127.0.0.1:0", "--config", text(&metrics)], "ddress already in use"),
        (&["--listen", "127.0.0.1:0", "--enroll-group", "no-such-group"], "no-such-group"),
    ]
    .into_iter()
    .enumerate()
    {
        let absent = world.scratch(&format!("absent-{i}"));
        let empty = world.scratch(&format!("empty-{i}"));
        fs::create_dir(&empty).expect("made");
        chmod(&empty, 0o700);
        for state in [&absent, &empty] {
            let aditd = async |args: &[&str]| {
                let args = [args, &["--state-dir", text(state)]].concat();
                world.programs.run("aditd", &args, "").await.expect("aditd runs")
            };
            let failed = aditd(&[&["serve"], flags].concat()).await;
            assert!(failed.code != Some(0) && failed.stderr.contains(says), "{failed:?}");
            assert_told(&aditd(&["invite", "laptop"]).await, FAILED, &["there is no server state"]);
        }
        assert!(!absent.exists(), "{flags:?} has made `{}`", absent.display());
    }
}

#[tokio::test]
async fn a_port_in_use_only_on_ipv6_is_reported_with_its_holder() {
    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let Ok(holder) = std::net::TcpListener::bind("[::1]:0") else {
        skip::skip_test("there is no IPv6 here");
        return;
    };
    let localhost = format!("localhost:{}", holder.local_addr().expect("an address").port());
    let told =
        naming_this_process(async || device.adit(&["up", "--listen", &localhost], "").await).await;
    let pid = format!("(pid {})", std::process::id());
    assert_told(&told, FAILED, &[&format!("error: cannot listen on {localhost}\n"), &pid]);
}

#[tokio::test]
async fn a_hidden_holder_of_a_port_is_recognized_by_its_answer() {
    let Some(ordinary) = Ordinary::new(PROGRAM).filter(|ordinary| ordinary.as_root) else { return };
    let world = World::start(PROGRAM).await;
    let home = ordinary.device(&identity_file(&world.device("laptop").await));
    let other = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let other = other.local_addr().expect("an address");
    for (taken, by) in
        [(world.ollama.addr(), "a program that answers like Ollama"), (other, "another program")]
    {
        let args = ["up", "--listen", &taken.to_string(), "--state-dir", text(&home)];
        let mut adit = tokio::process::Command::from(ordinary.command("adit", &args));
        let told = adit.output().await.expect("adit runs").into();
        assert_told(&told, FAILED, &[&format!("already in use by {by}"), "`sudo ss -ltnp "]);
    }
}

#[tokio::test]
async fn an_address_named_twice_is_bound_once_and_an_overlap_is_reported() {
    let mut world = World::start(PROGRAM).await;
    let address = world.address().await;
    world.serve_flags.extend(["--listen".to_owned(), address.to_string()]);
    world.kill_server().await;
    world.restart_server().await;
    assert_eq!(world.status().await["listening"], serde_json::json!([address.to_string()]));
    world.kill_server().await;
    let (open, inside) = (format!("0.0.0.0:{}", address.port()), address.to_string());
    let told = try_to_serve(
        &world,
        &["--listen", &open, "--listen", &inside, "--allow-from", "203.0.113.0/24"],
    )
    .await;
    let says = format!(
        "error: cannot listen on {inside} (UDP)\n  Caused by: aditd itself listens on {open} already"
    );
    assert_told(&told, FAILED, &[&says, "name only one of the two"]);
}

#[tokio::test]
async fn an_unusable_metrics_address_is_reported_like_any_other() {
    let world = World::start(PROGRAM).await;
    let holder = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = holder.local_addr().expect("an address").to_string();
    let (file, missing) = (world.scratch("metrics.toml"), world.scratch("missing"));
    let serve = async |place: &str| {
        fs::write(&file, format!("metrics = '{place}'")).expect("written");
        try_to_serve(&world, &["--listen", "127.0.0.1:0", "--config", text(&file)]).await
    };
    let told = naming_this_process(async || serve(&taken).await).await;
    let pid = format!("(pid {})", std::process::id());
    let says = format!("error: cannot serve metrics at {taken}\n  Caused by: ");
    assert_told(&told, FAILED, &[&says, "address already in use by `", &pid, "with `metrics`"]);
    let told = serve(&format!("unix:{}/metrics.sock", missing.display())).await;
    let why = format!("Caused by: there is no directory `{}`", missing.display());
    assert_told(&told, FAILED, &[&why, &format!("`mkdir -p '{}'`", missing.display())]);
}

#[tokio::test]
async fn a_privileged_port_is_refused_to_an_ordinary_user_with_a_cure() {
    let first =
        fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap_or_default();
    if first.trim().parse::<u16>().is_ok_and(|first| first < 2)
        && skip::skip_test("every port is free to everybody here")
    {
        return;
    }
    let Some(ordinary) = Ordinary::new(PROGRAM) else { return };
    let state = ordinary.home("server");
    let told = ordinary
        .run("aditd", &["serve", "--listen", "127.0.0.1:1", "--state-dir", text(&state)])
        .expect("aditd runs");
    assert_told(
        &told,
        FAILED,
        &[
            "error: cannot listen on 127.0.0.1:1 (UDP)\n  Caused by: Permission denied",
            "above 1023 with --listen",
        ],
    );

    let world = World::start(PROGRAM).await;
    let device = world.device("laptop").await;
    let home = ordinary.device(&identity_file(&device));
    let told = ordinary
        .run("adit", &["up", "--listen", "127.0.0.1:1", "--state-dir", text(&home)])
        .expect("adit runs");
    assert_told(
        &told,
        FAILED,
        &[
            "error: cannot listen on 127.0.0.1:1\n  Caused by: Permission denied",
            "choose another with --listen",
        ],
    );
}

#[tokio::test]
async fn a_server_without_a_reachable_address_makes_no_code() {
    let mut world = World::start(PROGRAM).await;
    let port = world.address().await.port();
    // As behind a router: none of this machine's addresses is in the allowed network.
    restart_on(&format!("0.0.0.0:{port}"), &mut world, &["--allow-from", "203.0.113.0/24"]).await;
    let invited = world.aditd(&["invite", "laptop"]).await;
    if invited.code == Some(0) {
        let invitation: Invitation = invited.stdout.parse().expect("a code");
        assert!(!invitation.addresses.is_empty());
        let leads_here = |address: &String| address.ends_with(&format!(":{port}"));
        assert!(
            invitation.addresses.iter().all(leads_here),
            "{:?} but the server is on port {port}",
            invitation.addresses
        );
    } else {
        assert_told(&invited, FAILED, &["--advertise"]);
    }
}

/// Restarts the server with another address instead of its own, and these flags.
async fn restart_on(address: &str, world: &mut World, flags: &[&str]) {
    let former = world.address().await.to_string();
    for flag in world.serve_flags.iter_mut().filter(|flag| **flag == former) {
        address.clone_into(flag);
    }
    world.serve_flags.extend(flags.iter().map(ToString::to_string));
    world.kill_server().await;
    world.restart_server().await;
}

/// An address of this machine that is not loopback.
pub(super) fn own_address() -> Option<Ipv4Addr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    // Nothing is sent; the documentation's network (RFC 5737) stands for any network.
    socket.connect("203.0.113.1:9").ok()?;
    match socket.local_addr().ok()?.ip() {
        IpAddr::V4(ip) if !ip.is_loopback() && !ip.is_unspecified() => Some(ip),
        _ => None,
    }
}

async fn try_to_serve(world: &World, flags: &[&str]) -> Ended {
    let state = world.scratch("another");
    let args = [&["serve", "--state-dir", state.to_str().expect("a path")], flags].concat();
    world.programs.run("aditd", &args, "").await.expect("aditd runs")
}

#[tokio::test]
async fn listening_on_a_public_address_needs_allow_from() {
    let world = World::start(PROGRAM).await;
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0", "[::ffff:192.0.2.1]:0"] {
        let refused = try_to_serve(&world, &["--listen", "127.0.0.1:0", "--listen", address]).await;
        assert_eq!(refused.code, Some(2), "{refused:?}");
        let cure = format!("--allow-from {}", own_network_or_example());
        assert!(
            refused.stderr.contains(&format!("refusing to listen on {address}")),
            "{}",
            refused.stderr
        );
        assert!(
            refused.stderr.contains("hint: ") && refused.stderr.contains(&cure),
            "{}",
            refused.stderr
        );
    }
    assert!(!Path::new(&world.scratch("another")).exists(), "refused before anything is made");
}

#[tokio::test]
async fn on_a_public_address_only_allowed_networks_and_this_machine_are_heard() {
    let mut gate = Gate::start(PROGRAM).await;
    let port = gate.address.port();
    // Started on loopback, so that the port is known; now the same on all addresses.
    let open = format!("0.0.0.0:{port}");
    let loopback = gate.address.to_string();
    restart_on(
        &open,
        &mut gate.world,
        &["--allow-from", "203.0.113.0/24", "--advertise", &loopback],
    )
    .await;
    assert_eq!(gate.world.address().await.to_string(), open);
    let up = gate.device.up(&[]).await;
    assert_served(&up).await;

    let Some(own) = own_address() else {
        skip::skip_test("this machine has no address besides loopback");
        return;
    };
    let knocks =
        first_flight(crypto(&gate.profile, None, &[ALPN_TUNNEL]), &gate.knock_key().knock()).await;
    let outsider = Stranger::facing((own, port).into()).await;
    for datagram in &knocks {
        outsider.send(datagram).await;
    }
    assert_served(&up).await;
    outsider.assert_heard_nothing("a knock from a network that nobody named").await;
}

#[tokio::test]
async fn a_device_on_an_allowed_network_proves_its_address_and_connects() {
    let Some(own) = own_address() else {
        skip::skip_test("this machine has no address besides loopback");
        return;
    };
    let network = format!("{own}/32");
    let service = Service::start().await;
    let upstream = format!("tcp://{}", service.address);
    let flags = ["--listen", "0.0.0.0:0", "--allow-from", &network, "--upstream", &upstream];
    let world = World::start_with(PROGRAM, Options::default(), &flags).await;
    let port = world.address().await.port();
    let code = world.invite("laptop").await;
    let invitation: Invitation = code.parse().expect("a code");
    assert_eq!(
        invitation.addresses,
        [format!("{own}:{port}")],
        "only where somebody may come from"
    );
    let device = world.stranger("laptop");
    let enrolled = device.enroll(&code, &[]).await;
    assert_ok(&enrolled);
    let up = device.up(&[]).await;
    assert_served(&up).await;
    let status = device.status().await;
    assert_eq!(status["tunnel"]["remote"], format!("{own}:{port}"));

    // With a knock it is asked to prove its address first; without a knock it gets no answer.
    let profile = profile(&device);
    let knock_key = profile.enrolled.knock_key.clone();
    let stranger = Stranger::facing((own, port).into()).await;
    for datagram in
        first_flight(crypto(&profile, None, &[ALPN_TUNNEL]), &SharedKey::generate().knock()).await
    {
        stranger.send(&datagram).await;
    }
    assert_served(&up).await;
    stranger.assert_heard_nothing("a stranger on a named network").await;
    let knock = Stranger::facing((own, port).into()).await;
    for datagram in first_flight(crypto(&profile, None, &[ALPN_TUNNEL]), &knock_key.knock()).await {
        knock.send(&datagram).await;
    }
    let mut answer = [0; 2048];
    let n = tokio::time::timeout(SOON, knock.socket.recv(&mut answer))
        .await
        .expect("an answer")
        .expect("received");
    assert_eq!(answer[0] & 0xf0, 0xf0, "a Retry (RFC 9000 section 17.2.5)");
    assert!(n < 1200, "smaller than what asked for it: {n}");
}
