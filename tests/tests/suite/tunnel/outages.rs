//! A network that is interrupted, and a server that comes back at another address.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use tests::{
    ollama::{Options, seeded_bytes},
    path::Path,
    process::Process,
    raw::{self, Ending, Upstream},
    skip,
    world::{Device, SOON, World},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::PROGRAM;

/// With the stand-in's 50 ms each, longer than the outage.
const TOKENS: i64 = 400;

/// A device that knows only these addresses of the server, the best first.
pub(super) async fn device_by(world: &World, addresses: &[String]) -> Device {
    let device = world.stranger("laptop");
    let args: Vec<&str> =
        addresses.iter().flat_map(|address| ["--advertise", address.as_str()]).collect();
    let invited =
        world.aditd(&[&["invite", "laptop", "--role", "admin"], args.as_slice()].concat()).await;
    assert_eq!(invited.code, Some(0), "{}", invited.stderr);
    let enrolled = device.enroll(&invited.stdout, &[]).await;
    assert_eq!(enrolled.code, Some(0), "{}", enrolled.stderr);
    let path = device.dir.join("servers/default/identity.json");
    let mut identity: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&path).expect("read")).expect("json");
    identity["addresses"] = addresses.to_vec().into();
    std::fs::write(&path, identity.to_string()).expect("written");
    device
}

/// A device whose only route to the server is a path that can be cut.
async fn world_behind_a_path() -> (World, Path, Device) {
    world_with_flags_behind_a_path(&[]).await
}

/// Likewise, with these flags of `aditd serve`.
async fn world_with_flags_behind_a_path(flags: &[&str]) -> (World, Path, Device) {
    let mut world = World::start_with(PROGRAM, Options::default(), flags).await;
    let path = Path::to(world.address().await).await;
    // The server's own address must not lead around the path.
    world.serve_flags.extend(["--advertise".to_owned(), path.address.to_string()]);
    world.kill_server().await;
    world.restart_server().await;
    let device = device_by(&world, &[path.address.to_string()]).await;
    (world, path, device)
}

#[tokio::test]
async fn an_outage_loses_no_token_and_the_next_one_comes_at_once() {
    let (world, path, device) = world_behind_a_path().await;
    let mut up = device.up(&[]).await;
    let ollama = world.ollama.addr();
    let direct =
        tokio::spawn(async move { raw::exchange(ollama, &raw::generate(TOKENS, 4)).await });
    let mut app = raw::connect(up.address).await;
    app.write_all(raw::generate(TOKENS, 4).as_bytes()).await.expect("sent");
    let mut answer = raw::read_exactly(&mut app, 1000).await;

    path.cut();
    let cut = Instant::now();
    up.adit.says("the server has been silent").await;
    assert_eq!(device.status().await["tunnel"]["state"], "silent");
    // Bytes that were under way have arrived.
    let mut block = vec![0; 65_536];
    while let Ok(read) = tokio::time::timeout(Duration::from_secs(1), app.read(&mut block)).await {
        answer.extend_from_slice(&block[..read.expect("still open")]);
    }
    let (outage, mended) = (cut.elapsed(), Instant::now());
    path.mend();
    answer.extend(raw::read_exactly(&mut app, 1).await);
    // Plain QUIC would take about as long as the outage lasted.
    assert!(mended.elapsed() < outage, "{:?}, after {outage:?}", mended.elapsed());
    let (rest, ending) = raw::read_to_end(&mut app).await;
    answer.extend(rest);
    assert_eq!(ending, Ending::Closed);
    let direct = direct.await.expect("no panic");
    let text = String::from_utf8(answer).expect("text");
    assert_eq!(raw::without_date(&text), raw::without_date(&direct));
    assert_eq!(up.adit.log().matches("connected to").count(), 1, "one session: {}", up.adit.log());
}

#[tokio::test]
async fn an_outage_is_told_at_once_and_is_neither_a_loss_of_the_link_nor_a_move() {
    let (_world, path, device) = world_behind_a_path().await;
    let up = device.up(&[]).await;
    let mut app = raw::connect(up.address).await;
    app.write_all(raw::generate(TOKENS, 4).as_bytes()).await.expect("sent");
    raw::read_exactly(&mut app, 1000).await;
    path.cut();
    let told = async {
        loop {
            let status = device.adit(&["status"], "").await;
            if status.stdout.contains("no answer for ") {
                return status.stdout;
            }
        }
    };
    let told = tokio::time::timeout(SOON, told).await.expect("it is told");
    assert!(!told.contains("lost in the last minute"), "nothing old: {told}");
    let state = |wanted: &'static str, lasts: u64| {
        let device = &device;
        let reached = async move {
            loop {
                let status = device.status().await;
                let tunnel = &status["tunnel"];
                if tunnel["state"] == wanted && tunnel["quiet_seconds"].as_u64() >= Some(lasts) {
                    return status;
                }
            }
        };
        tokio::time::timeout(2 * SOON, reached)
    };
    // Long enough for more lost packets than a link could lose by chance.
    state("silent", 6).await.expect("it is silent");
    path.mend();
    let mut status = state("up", 0).await.expect("it is back");
    // Half of the answer after it: a while for losses to be found.
    raw::read_exactly(&mut app, 2000).await;
    for _ in 0..20 {
        status = device.status().await;
        let tunnel = &status["tunnel"];
        assert_eq!(tunnel["redundancy_for_loss"], serde_json::Value::Null, "{tunnel}");
    }
    let lost = |field: &str| status["tunnel"][field].as_u64().expect("a number");
    assert!(lost("lost_packets") > 10, "{status}");
    assert!(lost("recently_lost_packets") <= lost("lost_packets") / 5, "{status}");
    assert!(!status["events"].to_string().contains("the session goes over"), "{status}");
}

#[tokio::test]
async fn a_request_lost_on_a_dead_path_gets_an_error() {
    let (_world, path, device) = world_behind_a_path().await;
    let up = device.up(&["--hold", "1s"]).await;
    path.cut();
    let answer =
        raw::exchange(up.address, "GET /api/tags HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    assert!(
        answer.starts_with("HTTP/1.1 503 ") && answer.contains("before it got this request"),
        "{answer}"
    );
}

#[tokio::test]
async fn a_server_that_comes_back_at_another_of_its_addresses_is_found() {
    let mut world = World::start_with(PROGRAM, Options::default(), &[]).await;
    let first = world.address().await.to_string();
    // An address that no other process gets meanwhile.
    let other = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port");
    let second = other.local_addr().expect("an address").to_string();
    let device = device_by(&world, &[first.clone(), second.clone()]).await;
    let up = device.up(&["--hold", "10m"]).await;
    world.kill_server().await;
    drop(other);
    for flag in world.serve_flags.iter_mut().filter(|flag| **flag == first) {
        flag.clone_from(&second);
    }
    world.restart_server().await;
    let answer = tokio::time::timeout(SOON * 4, async {
        // It may be sent into the old session: then it is sent again.
        raw::exchange(up.address, "GET / HTTP/1.0\r\n\r\n").await
    });
    let answer = answer.await.expect("in time");
    assert!(answer.ends_with("Ollama is running"), "{answer}");
}

#[tokio::test]
async fn a_changed_dns_address_of_the_server_is_followed_in_one_session() {
    // A hosts file of the test replaces a name server.
    let private = std::process::Command::new("unshare").args(["--mount", "true"]).output();
    if !private.is_ok_and(|out| out.status.success())
        && skip::skip_test("only root may have a hosts file of its own")
    {
        return;
    }
    let (world, path, device) = world_behind_a_path().await;
    let (old, port) = (path.address.ip(), path.address.port());
    let second = Path::from(SocketAddr::from(([127, 0, 0, 2], port)), world.address().await).await;
    let hosts = world.scratch("hosts");
    std::fs::write(&hosts, format!("{old} gpu.adit.test\n")).expect("written");
    let identity = device.dir.join("servers/default/identity.json");
    let text = std::fs::read_to_string(&identity)
        .expect("read")
        .replace(&format!("{old}:{port}"), &format!("gpu.adit.test:{port}"));
    std::fs::write(&identity, text).expect("written");
    let adit =
        world.programs.command("adit", &["up", "-v", "--listen", "127.0.0.1:0", "--state-dir"]);
    let adit = adit.as_std();
    let mut command = tokio::process::Command::new("unshare");
    command
        .args(["--mount", "sh", "-c", "mount --bind \"$0\" /etc/hosts && exec \"$@\""])
        .arg(&hosts);
    command
        .arg(adit.get_program())
        .args(adit.get_args())
        .arg(&device.dir)
        .env("NO_COLOR", "1")
        .kill_on_drop(true);
    let mut adit = Process::spawn(command, "adit").expect("it starts");
    adit.ready().await.expect("ready");
    let log = adit.log();
    assert!(log.contains(&format!("connected to {old}:{port}")), "{log}");
    let address =
        log.split("listening on http://").nth(1).and_then(|l| l.split_whitespace().next());
    let mut app = raw::connect(address.and_then(|a| a.parse().ok()).expect("an address")).await;
    app.write_all(raw::generate(100_000, 4).as_bytes()).await.expect("sent");
    raw::read_exactly(&mut app, 1000).await;

    path.cut();
    std::fs::write(&hosts, "127.0.0.2 gpu.adit.test\n").expect("written");
    adit.says(&format!("the session goes over UDP now: {}", second.address)).await;
    raw::read_exactly(&mut app, 4000).await;

    // The same for the other address family.
    let v6 = std::net::UdpSocket::bind((std::net::Ipv6Addr::LOCALHOST, 0));
    if v6.is_err() && skip::skip_test("there is no IPv6 here") {
        return;
    }
    let third =
        Path::from(SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, port)), world.address().await)
            .await;
    second.cut();
    std::fs::write(&hosts, "::1 gpu.adit.test\n").expect("written");
    adit.says(&format!("the session goes over UDP now: {}", third.address)).await;
    raw::read_exactly(&mut app, 4000).await;
    assert_eq!(adit.log().matches("connected to").count(), 1, "one session: {}", adit.log());
}

#[tokio::test]
async fn a_device_is_shown_as_away_and_its_answers_stop_after_the_idle_timeout() {
    let (world, path, device) = world_behind_a_path().await;
    let up = device.up(&["--idle-timeout", "20s"]).await;
    let status = device.status().await;
    assert_eq!(
        (&status["tunnel"]["idle_timeout"], &status["tunnel"]["idle_timeout_by"]),
        (&20.into(), &"device".into())
    );
    assert!(status["tunnel"]["socket_buffers"][0].as_u64().is_some_and(|n| n > 0), "{status}");
    let mut app = raw::connect(up.address).await;
    app.write_all(raw::generate(100_000, 4).as_bytes()).await.expect("sent");
    raw::read_exactly(&mut app, 1000).await;
    path.cut();
    let away = async {
        loop {
            let listed = world.aditd(&["device", "list"]).await.stdout;
            if listed.contains("away since") {
                return;
            }
            assert_eq!(
                world.ollama.counters().cancelled,
                0,
                "it is kept while the device may come back: {listed}"
            );
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::time::timeout(SOON, away).await.expect("it is shown as away");
    world.ollama.wait_for(|c| c.cancelled == 1, SOON * 2).await.expect("and then its time is over");
    // Both ends have ended the session: the answer is cut.
    assert_eq!(raw::read_to_end(&mut app).await.1, Ending::Reset);
}

/// Sends `len` bytes both ways at the same time.
async fn both_ways(app: &mut TcpStream, service: &mut TcpStream, len: usize) {
    let [to_app, to_service] = [1, 2].map(|seed| {
        let mut bytes = vec![0; len];
        std::io::Read::read_exact(&mut seeded_bytes(seed), &mut bytes).expect("endless");
        bytes
    });
    let [mut at_app, mut at_service] = [vec![0; len], vec![0; len]];
    let (mut app_read, mut app_write) = app.split();
    let (mut service_read, mut service_write) = service.split();
    let done = tokio::try_join!(
        app_write.write_all(&to_service),
        service_write.write_all(&to_app),
        app_read.read_exact(&mut at_app),
        service_read.read_exact(&mut at_service),
    );
    done.expect("all is carried");
    assert!(at_app == to_app && at_service == to_service, "other bytes have come");
}

#[tokio::test]
async fn datagrams_grow_on_this_machine_and_shrink_again_if_the_path_stops_carrying_them() {
    const LONG: usize = 6000;
    let upstream = Upstream::start().await;
    let flags = ["--upstream", &upstream.flag("tcp")];
    let (_world, path, device) = world_with_flags_behind_a_path(&flags).await;
    let up = device.up(&[]).await;
    let (mut app, mut service) = tokio::join!(raw::connect(up.address), upstream.accept());
    let grown = async {
        while path.longest().into_iter().any(|longest| longest < LONG) {
            both_ways(&mut app, &mut service, 300_000).await;
        }
    };
    tokio::time::timeout(SOON, grown).await.expect("datagrams grow, both ways");
    path.limit(1400);
    let carried = both_ways(&mut app, &mut service, 1_000_000);
    tokio::time::timeout(SOON, carried).await.expect("it goes on with shorter ones");
}
