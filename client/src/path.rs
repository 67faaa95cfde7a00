//! Watches the path under a session, and brings its datagrams back on their way when they have lost it.

use std::{
    net::{IpAddr, UdpSocket},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use common::{
    carrier::UdpCarrier,
    transport::{self, KEEP_ALIVE},
};
use tokio::sync::watch;
use tracing::{debug, info, warn};

use crate::tunnel::{Link, Up};

/// Two keep-alives and a bit without an answer: the path is believed dead, and new connections wait.
pub(crate) const SILENT_AFTER: Duration = Duration::from_millis(KEEP_ALIVE.as_millis() as u64 * 5 / 2);
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// After a change, the first attempt may come too early for the new network.
const REBIND_AT: [u64; 4] = [0, 1, 3, 5];
/// While it is silent.
const REBIND_EVERY: u64 = 5;
/// The wall clock went further than ours: the machine has slept.
const SLEPT: Duration = Duration::from_secs(5);

/// Watches for ever: silence is published, and a sleep, a new network and silence are answered with a new socket.
pub(crate) async fn watch(up: &Arc<Up>, publish: &watch::Sender<Link>) {
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut heard, mut heard_at) = (0, Instant::now());
    let mut source = source_address(up);
    let mut looked = (Instant::now(), SystemTime::now());
    let mut changed_at = None;
    loop {
        ticks.tick().await;
        let slept = has_slept(looked);
        looked = (Instant::now(), SystemTime::now());
        let now = up.heard();
        if now != heard {
            (heard, heard_at) = (now, Instant::now());
            if is_silent(publish) {
                info!("the server answers again");
                publish.send_replace(Link::Up(up.clone()));
            }
        } else if heard_at.elapsed() > SILENT_AFTER && is_up(publish) {
            warn!(
                "the server has been silent for {} s: running answers are kept, new connections wait",
                heard_at.elapsed().as_secs()
            );
            publish.send_replace(Link::Silent(up.clone()));
        }
        let source_now = source_address(up);
        if slept || source_now != source {
            info!("{}", if slept { "this computer has slept" } else { "this computer's network has changed" });
            source = source_now;
            changed_at = Some(Instant::now());
        }
        let silent_s = heard_at.elapsed().saturating_sub(SILENT_AFTER).as_secs();
        let since_change = changed_at.map(|at: Instant| at.elapsed().as_secs());
        let after_change = since_change.is_some_and(|s| REBIND_AT.contains(&s));
        let in_silence =
            heard_at.elapsed() > SILENT_AFTER && (REBIND_AT.contains(&silent_s) || silent_s.is_multiple_of(REBIND_EVERY));
        if after_change || in_silence {
            rebind(up);
        }
    }
}

/// Gives the session a new socket: to the server it then comes from a new address, with nothing held against it (RFC 9000 section 9.4).
pub(crate) fn rebind(up: &Up) {
    let carrier = transport::any_socket(up.remote).and_then(|socket| UdpCarrier::new(socket, up.remote));
    match carrier.and_then(|carrier| up.endpoint.rebind_abstract(carrier)) {
        Ok(()) => debug!("rebound"),
        Err(e) => debug!("cannot rebind yet: {e}"),
    }
}

fn is_up(publish: &watch::Sender<Link>) -> bool {
    matches!(&*publish.borrow(), Link::Up(_))
}

fn is_silent(publish: &watch::Sender<Link>) -> bool {
    matches!(&*publish.borrow(), Link::Silent(_))
}

/// The address that the kernel would send from. Nothing is sent.
fn source_address(up: &Up) -> Option<IpAddr> {
    let any = transport::any_address(up.remote);
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(up.remote).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

fn has_slept((monotonic, wall): (Instant, SystemTime)) -> bool {
    wall.elapsed().is_ok_and(|wall| wall > monotonic.elapsed() + SLEPT)
}
