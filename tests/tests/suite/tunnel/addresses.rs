//! A server with several addresses: a session goes on over another than the one that it began on.

use std::net::SocketAddr;

use tests::{
    ollama::Options,
    path::Path,
    raw,
    world::{SOON, World},
};
use tokio::io::AsyncWriteExt;

use crate::{PROGRAM, tunnel::outages::device_by};

/// With the stand-in's 50 ms each, longer than the moves take.
const TOKENS: i64 = 20_000;

/// Addresses that are free now.
fn free<const COUNT: usize>() -> [SocketAddr; COUNT] {
    let bind = || std::net::UdpSocket::bind("127.0.0.1:0").expect("a port");
    // All are bound before one is free again.
    std::array::from_fn::<_, COUNT, _>(|_| bind())
        .map(|socket| socket.local_addr().expect("an address"))
}

/// Whether an answer, and its session, goes on when the path to the first address of the server is
/// cut, and when it comes back and the other one is cut.
async fn goes_on_between(addresses: [SocketAddr; 2], listen: &[&str]) {
    let paths = [Path::to(addresses[0]).await, Path::to(addresses[1]).await];
    let known = paths.each_ref().map(|path| path.address.to_string());
    let advertise = ["--advertise", &known[0], "--advertise", &known[1]];
    let world =
        World::start_with(PROGRAM, Options::default(), &[listen, &advertise].concat()).await;
    let device = device_by(&world, &known).await;
    let up = device.up(&[]).await;
    let mut app = raw::connect(up.address).await;
    app.write_all(raw::generate(TOKENS, 5).as_bytes()).await.expect("sent");
    let mut answer = raw::read_exactly(&mut app, 800).await;
    for (dead, works) in [(0, 1), (1, 0)] {
        paths[works].mend();
        paths[dead].cut();
        let more = tokio::time::timeout(SOON * 8, raw::read_exactly(&mut app, 2000)).await;
        answer.extend(more.expect("the answer goes on"));
    }
    let mut direct = raw::connect(world.ollama.addr()).await;
    direct.write_all(raw::generate(TOKENS, 5).as_bytes()).await.expect("sent");
    let direct = raw::read_exactly(&mut direct, answer.len());
    let direct = tokio::time::timeout(SOON * 10, direct).await.expect("in time");
    let text = |bytes: &[u8]| raw::without_date(&String::from_utf8_lossy(bytes));
    assert_eq!(text(&answer), text(&direct), "as far as it has come");
    let log = up.adit.log();
    assert_eq!(log.matches("connected to").count(), 1, "one session: {log}");
}

#[tokio::test]
async fn a_session_goes_on_over_another_address_that_is_listened_on() {
    let addresses = free::<2>();
    let [one, other] = addresses.map(|address| address.to_string());
    goes_on_between(addresses, &["--listen", &one, "--listen", &other]).await;
}

/// Elsewhere than on Linux 127.0.0.2 is no address of this machine.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_session_goes_on_over_another_address_of_a_machine_that_listens_on_all() {
    let [one] = free::<1>();
    let all = format!("0.0.0.0:{}", one.port());
    let other = SocketAddr::from(([127, 0, 0, 2], one.port()));
    goes_on_between([one, other], &["--listen", &all, "--allow-from", "203.0.113.0/24"]).await;
}
