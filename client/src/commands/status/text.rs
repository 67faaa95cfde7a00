//! The status of a tunnel as text for people.

use std::time::Duration;

use common::machine::process::{day, unix_now};
use proto::{clock, human, wire::QueueAnswer};

use super::{ServiceStatus, Status, TunnelStatus, UpStatus};

const EVENTS_SHOWN: usize = 6;
/// The column where values begin.
pub(super) const INDENT: usize = 13;

impl Status {
    /// The status as text for people, in lines of at most `width` characters unless one word is
    /// longer.
    pub(super) fn to_text(&self, width: usize) -> String {
        let mut lines = vec![("Tunnel", self.tunnel.to_text())];
        if let TunnelStatus::Up(up) | TunnelStatus::Silent(up) = &self.tunnel {
            lines.extend([
                ("Carrier", up.carrier_text()),
                ("Redundancy", up.redundancy_text()),
                ("Time-out", up.time_out_text()),
            ]);
            lines.extend(up.clock_text().map(|text| ("Clock", text)));
        }
        lines.extend(self.ollama.as_ref().map(|said| ("Ollama", said.text(self.host()))));
        lines.push(("Listening", self.listening_text()));
        lines.extend(
            self.services
                .iter()
                .enumerate()
                .map(|(i, service)| (if i == 0 { "Services" } else { "" }, service.text())),
        );
        lines.extend([(
            "Streams",
            format!(
                "{} open, {} received, {} sent",
                self.connections,
                human::size(self.received),
                human::size(self.sent)
            ),
        )]);
        lines.extend(self.queue_text().map(|text| ("Queue", text)));
        lines.extend([("Device", format!("{} {}", self.device, self.device_id))]);
        lines.extend(self.key.clone().map(|place| ("Key", place)));
        lines.extend([("Certificate", format!("valid until {}", day(self.certificate_until)))]);
        let latest = self.events.iter().rev().take(EVENTS_SHOWN).rev();
        let events = latest.enumerate().map(|(i, event)| {
            (if i == 0 { "Events" } else { "" }, format!("{} ago: {}", since(event.at), event.what))
        });
        let lines = lines.into_iter().chain(events);
        let row = |(name, value): (&str, String)| {
            format!("{name:<INDENT$}{}", human::wrapped(&value, INDENT, width))
        };
        lines.map(row).collect::<Vec<_>>().join("\n")
    }

    /// Where the requests of this device are in the queue, if any waits.
    fn queue_text(&self) -> Option<String> {
        const SHOWN: usize = 4;
        let QueueAnswer { waiting, places } = &self.queue;
        let first = places.first()?;
        let longest = human::time(Duration::from_millis(first.waited_ms));
        let positions: Vec<_> =
            places.iter().take(SHOWN).map(|place| place.position.to_string()).collect();
        Some(match waiting {
            1 => format!("1 request waits, position {}, for {longest}", first.position),
            _ => format!(
                "{waiting} requests wait, positions {}{}, the first for {longest}",
                positions.join(", "),
                if positions.len() as u64 == *waiting { "" } else { " …" }
            ),
        })
    }

    fn listening_text(&self) -> String {
        if self.stopping {
            let left = self.stopping_seconds_left.map(Duration::from_secs);
            return format!("no longer: adit is {}", stopping(self.connections, left));
        }
        let mut at: Vec<String> = self.listening.iter().map(|a| format!("http://{a}")).collect();
        at.extend(self.sockets.iter().cloned());
        if self.programs > 0 {
            at.push(format!(
                "a port of its own for each of {}",
                human::count(self.programs as u64, "program")
            ));
        }
        at.join(", ")
    }
}

impl ServiceStatus {
    fn text(&self) -> String {
        let Self { name, kind, .. } = self;
        match (kind, self.url()) {
            (Some(kind), Some(url)) => format!("{name} ({kind}) at {url}"),
            (Some(kind), None) => {
                format!("{name} ({kind}), not served here: `--service {name}=localhost:PORT`")
            }
            (None, _) => format!("{name}: the server does not have it for this device"),
        }
    }
}

impl UpStatus {
    fn carrier_text(&self) -> String {
        let other = if self.carrier == "udp" { "SSH" } else { "UDP" };
        let kept = self.socket_buffers.map(|(receive, send)| {
            format!(
                "; socket buffers {} for receiving, {} for sending",
                human::size(receive as u64),
                human::size(send as u64)
            )
        });
        format!(
            "{} for {}; not {other}: {}{}{}",
            self.carrier.to_uppercase(),
            since(self.carrier_since),
            self.why_not_other,
            kept.unwrap_or_default(),
            if self.drops_ecn_marks {
                "; without ECN marks: packets with marks got no answer"
            } else {
                ""
            }
        )
    }

    fn redundancy_text(&self) -> String {
        let now = match self.redundancy_for_loss {
            Some(loss) => format!(
                "on: this link loses {:.1} % of the packets, so small ones are sent twice",
                loss * 100.0
            ),
            None if self.carrier == "ssh" => "off: SSH itself sends lost data again".to_owned(),
            None => "off: this link loses hardly any packets".to_owned(),
        };
        match self.repeated_packets {
            0 => now,
            packets => {
                let packets = human::count(packets, "packet");
                format!("{now}; {packets} so far ({})", human::size(self.repeated_bytes))
            }
        }
    }

    /// How the clocks differ, if that is worth telling.
    fn clock_text(&self) -> Option<String> {
        let skew = clock::skew_text(self.server_clock_ahead_ms?)?;
        Some(format!("{skew}, or was when the session began"))
    }

    fn time_out_text(&self) -> String {
        let time = human::time(Duration::from_secs(self.idle_timeout));
        let whose = if self.idle_timeout_by == "device" { "this device's" } else { "the server's" };
        format!("the session is kept through {time} of silence ({whose} limit)")
    }

    fn to_text(&self) -> String {
        let lost =
            self.recently_lost_packets as f64 * 100.0 / self.recently_sent_packets.max(1) as f64;
        // Packets that were sent before may be found lost within the minute.
        let lost = lost.min(100.0);
        format!(
            "up for {}, QUIC over {} to {}, {:.1} ms, {lost:.1} % lost in the last minute",
            since(self.since),
            self.carrier.to_uppercase(),
            self.remote,
            self.rtt_ms
        )
    }

    /// The state of a tunnel whose server is silent: what was measured before says nothing now.
    fn silent_text(&self) -> String {
        format!(
            "no answer for {} from {} (QUIC over {}); the session of {} is kept, and its running answers",
            human::time(Duration::from_secs(self.quiet_seconds)),
            self.remote,
            self.carrier.to_uppercase(),
            since(self.since),
        )
    }
}

impl TunnelStatus {
    pub(super) fn to_text(&self) -> String {
        match self {
            Self::Up(up) if self.carries() => up.to_text(),
            Self::Up(up) | Self::Silent(up) => up.silent_text(),
            Self::Down { seconds, why, hint } => {
                let time = human::time(Duration::from_secs(*seconds));
                format!("down for {time}: {why}{}", bracketed(hint))
            }
            Self::Refused { why, hint } => format!("refused: {why}{}", bracketed(hint)),
        }
    }
}

/// How far an `adit` that stops has come. `left` is the time that running answers still have.
pub(in crate::commands) fn stopping(answers: usize, left: Option<Duration>) -> String {
    let answers = human::count(answers as u64, "answer");
    match left {
        Some(left) => format!("stopping, {answers}, {} left", human::time(left)),
        None => format!("stopping, {answers}"),
    }
}

fn bracketed(hint: &Option<String>) -> String {
    hint.as_ref().map(|hint| format!(" ({hint})")).unwrap_or_default()
}

/// The time since a Unix time, for people.
fn since(at: i64) -> String {
    human::time(Duration::from_secs(unix_now().saturating_sub(at).max(0).unsigned_abs()))
}
