//! The checks of the way: names, UDP, SSH, and the tunnel over one of them.

mod found;

use std::time::Duration;

pub use self::found::{
    LoginFound, ProbeFound, RequestFound, SessionFound, Ssh, SshCommand, Udp, WayFound,
};
use super::{Check, Judgement, bad, failed, gpu_box, not_checked, ok, warn};
use crate::{
    clock::{self, WrongClock},
    failure::Exit,
    human,
};

/// The longest datagram that QUIC tries between two machines, in bytes of UDP payload.
const MOST_MTU: u16 = 1452;
/// The length with which QUIC begins, in bytes: every path must carry it (RFC 9000 section 14).
const LEAST_MTU: u16 = 1200;
/// How long the search for the longest datagram may take, in seconds.
const SEARCHED: u64 = 30;
/// Even if no request runs, something arrives from the server more often, in seconds.
const QUIET: u64 = 6;
/// People notice it when more than so many of a hundred packets are lost. Fewer packets than `FEW`
/// say nothing.
const MUCH_LOSS: f64 = 3.0;
const FEW: u64 = 20;
/// People notice a queue of this length with each token, in milliseconds.
const LONG_QUEUE: f64 = 150.0;

/// All checks of the way, in the order in which they are shown.
pub const CHECKS: [Check<WayFound>; 10] = [
    Check { id: "names", title: "names", needs: &["identity"], judge: names },
    Check { id: "udp", title: "UDP", needs: &["identity"], judge: udp },
    Check { id: "ssh", title: "SSH", needs: &["identity"], judge: ssh },
    Check { id: "session", title: "tunnel", needs: &["identity"], judge: session },
    Check { id: "carrier", title: "carrier", needs: &["identity", "session"], judge: carrier },
    Check { id: "version", title: "version", needs: &["identity", "session"], judge: version },
    Check { id: "probe", title: "round trip", needs: &["identity", "session"], judge: probe },
    Check { id: "skew", title: "clocks", needs: &["identity", "session"], judge: skew },
    Check { id: "mtu", title: "packets", needs: &["identity", "session"], judge: mtu },
    Check { id: "request", title: "a request", needs: &["identity", "session"], judge: request },
];

impl WayFound {
    fn udp_works(&self) -> bool {
        matches!(self.udp, Some(Udp::Answers { .. }))
    }

    fn ssh_works(&self) -> bool {
        let is_usable = |login: &LoginFound| match login.command {
            SshCommand::Any | SshCommand::Relay | SshCommand::Older => true,
            SshCommand::Nothing(_) => matches!(login.forwards, Some(Ok(()))),
        };
        self.ssh.as_ref().and_then(|ssh| ssh.login.as_ref().ok()).is_some_and(is_usable)
    }
}

/// Softens the judgement about a carrier if the other carrier works.
fn less_bad(judged: Judgement, other_works: bool) -> Judgement {
    if other_works { judged.softened() } else { judged }
}

fn names(found: &WayFound) -> Option<Judgement> {
    if found.names.is_empty() {
        return Some(ok("the server's addresses are numbers: there is nothing to look up"));
    }
    let failed: Vec<_> = found.names.iter().filter(|(_, looked_up)| looked_up.is_err()).collect();
    let Some((name, Err(why))) = failed.first() else {
        let all = found.names.iter().map(|(name, addresses)| {
            let addresses = addresses.iter().flatten().map(ToString::to_string).collect::<Vec<_>>();
            format!("{name} is {}", addresses.join(", "))
        });
        return Some(ok(all.collect::<Vec<_>>().join("; ")));
    };
    let judged = bad(format!("`{name}` can't be looked up: {why}"));
    let judged =
        judged.cure_by("what this computer's resolver says", format!("getent hosts {name}"));
    Some(less_bad(judged, found.udp_works() || found.ssh_works()))
}

fn udp(found: &WayFound) -> Option<Judgement> {
    Some(match &found.udp {
        None => ok("not used: the server advertises no address but its own loopback"),
        Some(Udp::Answers { remote, rtt }) => {
            ok(format!("{remote} answers in {}", milliseconds(rtt.as_secs_f64() * 1e3)))
        }
        Some(Udp::Failed(failure)) => less_bad(failed(failure), found.ssh_works()),
        Some(Udp::Silent(addresses)) => {
            let port = addresses.first().and_then(|a| a.rsplit(':').next()).unwrap_or("11435");
            let judged = bad(format!("no answer from {}", addresses.join(" or ")))
                .cure_by(
                    "on the box: does it listen there, and is this network in `Allow from`?",
                    "aditd status",
                )
                .cure_by(
                    "on the box: open its firewall, if it has one",
                    format!("sudo ufw allow {port}/udp"),
                )
                .cure_by(
                    "on the box: is this device still enrolled? A revoked one gets no answer",
                    "aditd device list",
                );
            less_bad(judged, found.ssh_works())
        }
    })
}

fn ssh(found: &WayFound) -> Option<Judgement> {
    let Some(Ssh { to, login }) = &found.ssh else {
        return Some(ok("not used: this device enrolled by a code"));
    };
    let LoginFound { by, command, forwards } = match login {
        Ok(login) => login,
        Err(failure) => return Some(less_bad(failed(failure), found.udp_works())),
    };
    let may = match (command, forwards) {
        (SshCommand::Any, None) => "which may run aditd".to_owned(),
        (SshCommand::Any, Some(Ok(()))) => "which may run aditd, and forward".to_owned(),
        (SshCommand::Any, Some(Err(why))) => {
            format!("which may run aditd, and not forward ({why})")
        }
        (SshCommand::Relay, _) => "which is limited to the relay (a forced command)".to_owned(),
        (SshCommand::Older, _) => "and the aditd there is older and has no `doctor`".to_owned(),
        (SshCommand::Nothing(_), Some(Ok(()))) => "which may only forward".to_owned(),
        (SshCommand::Nothing(why), _) => {
            let judged = failed(why);
            return Some(less_bad(judged, found.udp_works()));
        }
    };
    Some(ok(format!("{to} lets this laptop in by {by}, {may}")))
}

fn session(found: &WayFound) -> Option<Judgement> {
    Some(match &found.session {
        Err(failure) if failure.exit_code() == Exit::NotAllowed => failed(failure),
        Err(_) if found.expired => not_checked("a certificate that has not ended")
            .cure_by("this renews it", format!("adit up{}", found.argument)),
        Err(_) if !found.udp_works() && !found.ssh_works() => not_checked("UDP or SSH"),
        Err(failure) => failed(failure),
        Ok(session) if session.quiet_seconds > QUIET => bad(format!(
            "no answer for {}; the session of {} is kept, and goes on when the way is back",
            human::time(Duration::from_secs(session.quiet_seconds)),
            human::time(Duration::from_secs(session.seconds))
        ))
        .cure_by("to see when it is back", format!("adit status{} --watch", found.argument)),
        Ok(session) => {
            let up = human::time(Duration::from_secs(session.seconds));
            match found.request {
                Some(_) => ok(format!("up for {up}, to {}", session.remote)),
                None => ok(format!("can be opened, to {}", session.remote)),
            }
        }
    })
}

fn carrier(found: &WayFound) -> Option<Judgement> {
    let session = found.session.as_ref().ok()?;
    let (this, other) = if session.carrier == "udp" { ("UDP", "SSH") } else { ("SSH", "UDP") };
    let marks = if session.drops_ecn_marks {
        "; without ECN marks: packets with marks got no answer"
    } else {
        ""
    };
    Some(ok(format!("{this}, not {other}: {}{marks}", session.why_not_other)))
}

fn version(found: &WayFound) -> Option<Judgement> {
    let session = found.session.as_ref().ok()?;
    let both =
        format!("protocol adit/1; adit {} and aditd {}", found.version, session.server_version);
    if found.version == session.server_version {
        return Some(ok(both));
    }
    Some(
        warn(format!("{both}: both should be the same"))
            .cure_by(
                "in a clone of the newer version, here",
                "cargo install --locked --path client",
            )
            .cure_by("and on the box", "cargo install --locked --path server")
            .cure_by(
                "then there, so that the new one runs (with sudo if root runs it)",
                "aditd replace",
            ),
    )
}

fn probe(found: &WayFound) -> Option<Judgement> {
    let session = found.session.as_ref().ok()?;
    let probe = match &session.probe {
        Ok(probe) => probe,
        Err(why) => return Some(not_checked(why)),
    };
    let queue = (probe.longest - probe.shortest).max(0.0);
    let trips = format!(
        "{} (shortest {}, queue at most {})",
        milliseconds(probe.middle),
        milliseconds(probe.shortest),
        milliseconds(queue),
    );
    // Packets that were sent before may be found lost in that time.
    let (lost, sent) = (probe.lost.min(probe.sent), human::count(probe.sent, "packet"));
    let text = format!("{trips}, {lost} of {sent} lost in two seconds");
    let host = session.remote.rsplit_once(':').map_or(&*session.remote, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let ping = match session.carrier.as_str() {
        "udp" => format!("ping -c 20 {host}"),
        _ => format!("adit status{}", found.argument),
    };
    if let Some(loss) = session.redundancy_for_loss.filter(|loss| loss * 100.0 > MUCH_LOSS) {
        // What was lost in two seconds would seem to contradict it: the copies hide losses.
        let judged = warn(format!(
            "{trips}; on average of about the last minute the link loses {:.1} % of the packets, so small ones are sent twice, and downloads are slow",
            loss * 100.0
        ));
        return Some(judged.cure_by("does the network lose them without adit, too?", ping));
    }
    if probe.sent >= FEW && probe.lost as f64 * 100.0 / probe.sent as f64 > MUCH_LOSS {
        let judged = warn(format!("{text}: tokens come late when packets are lost"));
        return Some(judged.cure_by("does the network lose them without adit, too?", ping));
    }
    if queue > LONG_QUEUE {
        let judged =
            warn(format!("{text}: up to {} of it is a queue on the way", milliseconds(queue)));
        return Some(
            judged
                .cure_by("does something else fill the line? Look while it runs, and after", ping),
        );
    }
    Some(ok(text))
}

fn skew(found: &WayFound) -> Option<Judgement> {
    let probe = found.session.as_ref().ok()?.probe.as_ref().ok()?;
    let there = probe.now.saturating_add(probe.ahead / 1000);
    let apart = human::time(Duration::from_millis(probe.ahead.unsigned_abs()));
    let ahead = if probe.ahead >= 0 { "ahead of" } else { "behind" };
    let text = format!("the box's is {apart} {ahead} this laptop's");
    const SET: &str = "sudo timedatectl set-ntp true";
    Some(match clock::compare(probe.now, there) {
        None if probe.ahead.abs() < 1000 => ok("both show the same time"),
        None => ok(text),
        Some(WrongClock::Here) => bad(format!("{text}, and this laptop's is wrong")).cure(SET),
        Some(WrongClock::There) => {
            bad(format!("{text}, and the box's is wrong")).cure_by("on the box", SET)
        }
        Some(WrongClock::One) => warn(format!("{text}: certificates are judged by both"))
            .cure_by("look at both", "timedatectl")
            .cure_by("where it is wrong", SET),
    })
}

fn mtu(found: &WayFound) -> Option<Judgement> {
    let session = found.session.as_ref().ok()?;
    let SessionFound { mtu, batches_refused, seconds, .. } = session;
    if *batches_refused > 0 {
        let host = session.remote.rsplit_once(':').map_or("", |(host, _)| host);
        return Some(gpu_box::batches(host.trim_start_matches('[').trim_end_matches(']'), "adit"));
    }
    let size = format!("up to {mtu} bytes arrive");
    if *mtu <= LEAST_MTU && *seconds > SEARCHED {
        let host = session.remote.rsplit_once(':').map_or("", |(host, _)| host);
        let judged = warn(format!(
            "{size}, and no longer ones (QUIC tries {MOST_MTU}): it works, with more of them"
        ));
        return Some(judged.cure_by(
            "does a tunnel or a VPN on the way make them shorter?",
            format!("tracepath {host}"),
        ));
    }
    let searched = if *mtu < MOST_MTU && *seconds <= SEARCHED { " so far" } else { "" };
    let batches =
        if session.carrier == "udp" { "; no batch of them (GSO) was refused" } else { "" };
    Some(ok(format!("{size}{searched}{batches}")))
}

fn request(found: &WayFound) -> Option<Judgement> {
    let by_hand = format!("curl -i http://{}/api/version", found.address);
    Some(match found.request.as_ref()? {
        RequestFound::Answered(version) => {
            ok(format!("Ollama answers through adit, version {version}"))
        }
        RequestFound::Failed(status, error) => {
            bad(format!("{status}: {error}")).cure_by("the same by hand", by_hand)
        }
        RequestFound::Unknown(Some(403)) => bad(
            "403 without a body: so Ollama refuses a `Host` or an `Origin` that it does not know",
        )
        .cure_by("on the box: what is between aditd and Ollama?", "aditd doctor"),
        RequestFound::Unknown(status) => {
            let status =
                status.map_or("something that is not HTTP".to_owned(), |status| status.to_string());
            bad(format!("{status}: what answers is not Ollama"))
                .cure_by("on the box", "aditd doctor")
        }
        RequestFound::Silent(why) => bad(why.clone()).cure_by("the same by hand", by_hand),
    })
}

fn milliseconds(ms: f64) -> String {
    if ms < 10.0 { format!("{ms:.1} ms") } else { format!("{ms:.0} ms") }
}

#[cfg(test)]
mod tests;
