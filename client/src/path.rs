//! Watches the path under a session, and brings its datagrams back on their way when they have lost it.

use std::{
    net::{IpAddr, UdpSocket},
    sync::{Arc, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use common::transport::{self, KEEP_ALIVE};
use tokio::sync::watch;
use tracing::{debug, info, warn};

use crate::{
    dial::Way,
    link::{Link, Up},
};

/// Two keep-alives and a bit without an answer: the path is believed dead, and new connections wait.
pub(crate) const SILENT_AFTER: Duration = Duration::from_millis(KEEP_ALIVE.as_millis() as u64 * 5 / 2);
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// After a change, the first attempt may come too early for the new network.
const REBIND_AT: [u64; 4] = [0, 1, 3, 5];
/// While it is silent.
const REBIND_EVERY: u64 = 5;
/// What a login over SSH may take before another is tried.
const LOGIN: Duration = Duration::from_secs(20);
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
    let mut rebound_at = Instant::now();
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
        let dead = up.carrier_is_dead();
        if dead {
            info!("ssh has ended: starting it again");
        }
        // A login takes its time: it is not begun anew while it is under way.
        let at_work = matches!(up.way, Way::Ssh(_)) && !dead && rebound_at.elapsed() < LOGIN;
        if dead || ((after_change || in_silence) && !at_work) {
            rebind(up);
            rebound_at = Instant::now();
        }
    }
}

/// Gives the session a new carrier: to the server it then comes from a new address, with nothing held against it (RFC 9000 section 9.4).
pub(crate) fn rebind(up: &Up) {
    match up.way.open().and_then(|(carrier, carrying)| up.endpoint.rebind_abstract(carrier).map(|()| carrying)) {
        Ok(carrying) => {
            debug!("rebound to {}", up.way);
            *up.carrying.lock().unwrap_or_else(PoisonError::into_inner) = carrying;
        }
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
    // ssh has its own connection, and its own look at it.
    let Way::Udp(remote) = up.way else { return None };
    let socket = UdpSocket::bind(transport::any_address(remote)).ok()?;
    socket.connect(remote).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

fn has_slept((monotonic, wall): (Instant, SystemTime)) -> bool {
    wall.elapsed().is_ok_and(|wall| wall > monotonic.elapsed() + SLEPT)
}
