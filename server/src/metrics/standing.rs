//! The state of the server at the moment of a scrape.

use std::fmt;

use common::transport::carrier::Repeated;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};

#[derive(Debug, Clone, Default)]
pub(crate) struct Standing {
    /// Requests that wait for their turn.
    pub queue_waiting: u64,
    /// Requests that have a turn.
    pub queue_running: u64,
    /// Devices by state: `up`, `away`, `revoked`.
    pub devices: Vec<(&'static str, u64)>,
    /// Keys by state: `valid`, `revoked`.
    pub keys: Vec<(&'static str, u64)>,
    /// Open connections of the HTTPS listener.
    pub https_connections: u64,
    /// Connections and requests over HTTPS that did not reach the gate, by reason, since the start.
    pub https_turned_away: Vec<(&'static str, u64)>,
    /// Sessions by carrier.
    pub sessions: Vec<(&'static str, u64)>,
    /// Open streams.
    pub streams: u64,
    /// Sessions on links that lose, whose small packets are sent twice.
    pub protected: u64,
    /// What has been sent twice, since the start.
    pub repeated: Repeated,
    /// Handshakes by their outcome, since the start.
    pub handshakes: Vec<(&'static str, u64)>,
    /// Connection attempts and packets that were not answered, by reason, since the start.
    pub ignored: Vec<(&'static str, u64)>,
    /// When certificates expire, in Unix time: the server's own, that of HTTPS, and the first of the
    /// enrolled devices'.
    pub certificates: Vec<(&'static str, i64)>,
    /// Enrolled devices whose certificate has expired.
    pub expired: u64,
    /// Lost lines of the audit log, since the start.
    pub audit_lost: u64,
    /// Whether the audit log can't be written.
    pub audit_failing: bool,
}

impl Collector for Standing {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let now = self;
        let mut gauge = |name,
                         help,
                         label: Option<&'static str>,
                         values: &[(&'static str, i64)]|
         -> fmt::Result {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (value, number) in values {
                match label {
                    Some(label) => ConstGauge::new(*number)
                        .encode(family.encode_family(&[(label, *value)])?)?,
                    None => family.encode_gauge(number)?,
                }
            }
            Ok(())
        };
        let one = |number: u64| [("", i64::try_from(number).unwrap_or(i64::MAX))];
        let many = |numbers: &[(&'static str, u64)]| -> Vec<_> {
            numbers
                .iter()
                .map(|(label, number)| (*label, i64::try_from(*number).unwrap_or(i64::MAX)))
                .collect()
        };
        gauge("queue_waiting", "Requests that wait for their turn", None, &one(now.queue_waiting))?;
        gauge("queue_running", "Requests that have a turn", None, &one(now.queue_running))?;
        gauge("devices", "Devices by state", Some("state"), &many(&now.devices))?;
        gauge("keys", "Keys by state", Some("state"), &many(&now.keys))?;
        gauge(
            "https_connections",
            "Open connections of the HTTPS listener",
            None,
            &one(now.https_connections),
        )?;
        gauge("sessions", "Sessions by carrier", Some("carrier"), &many(&now.sessions))?;
        gauge("streams", "Open streams", None, &one(now.streams))?;
        gauge(
            "sessions_with_redundancy",
            "Sessions on links that lose packets, whose small packets are sent twice",
            None,
            &one(now.protected),
        )?;
        let ends = "When the server's certificate and the first certificate of an enrolled device expire, in Unix time";
        gauge("certificate_end_timestamp_seconds", ends, Some("of"), &now.certificates)?;
        gauge(
            "devices_expired",
            "Enrolled devices whose certificate has expired",
            None,
            &one(now.expired),
        )?;
        gauge(
            "audit_failing",
            "Whether the audit log can't be written",
            None,
            &one(u64::from(now.audit_failing)),
        )?;
        let mut counter = |name,
                           help,
                           label: Option<&'static str>,
                           values: &[(&'static str, u64)]|
         -> fmt::Result {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            let Some(label) = label else {
                return ConstCounter::new(values.iter().map(|(_, number)| number).sum::<u64>())
                    .encode(family);
            };
            for (value, number) in values {
                ConstCounter::new(*number).encode(family.encode_family(&[(label, *value)])?)?;
            }
            Ok(())
        };
        counter("handshakes", "Handshakes by their outcome", Some("outcome"), &now.handshakes)?;
        counter(
            "door_ignored",
            "Connection attempts and packets that were not answered, by reason",
            Some("reason"),
            &now.ignored,
        )?;
        counter(
            "https_turned_away",
            "Connections and requests over HTTPS that did not reach the gate, by reason",
            Some("reason"),
            &now.https_turned_away,
        )?;
        counter(
            "repeated_packets",
            "Small packets that were sent a second time",
            None,
            &[("", now.repeated.datagrams)],
        )?;
        counter(
            "repeated_bytes",
            "Bytes of the small packets that were sent a second time",
            None,
            &[("", now.repeated.bytes)],
        )?;
        counter(
            "audit_lost_lines",
            "Lines of the audit log that could not be written",
            None,
            &[("", now.audit_lost)],
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    #[test]
    fn the_state_has_one_line_for_each_value() {
        let standing = Standing {
            queue_waiting: 1,
            devices: vec![("up", 2), ("away", 1)],
            ignored: vec![("stranger", 9)],
            certificates: vec![("server", 1_800_000_000)],
            audit_lost: 3,
            protected: 2,
            repeated: Repeated { datagrams: 7, bytes: 700 },
            ..Standing::default()
        };
        let text = Metrics::new().text(standing);
        for line in [
            "adit_queue_waiting 1",
            r#"adit_devices{state="up"} 2"#,
            r#"adit_door_ignored_total{reason="stranger"} 9"#,
            r#"adit_certificate_end_timestamp_seconds{of="server"} 1800000000"#,
            "adit_audit_lost_lines_total 3",
            "adit_sessions_with_redundancy 2",
            "adit_repeated_packets_total 7",
            "adit_repeated_bytes_total 700",
        ] {
            assert!(text.lines().any(|l| l == line), "no `{line}` in:\n{text}");
        }
        assert!(text.ends_with("# EOF\n") && text.matches("# EOF").count() == 1);
    }
}
