//! Metrics for Prometheus: requests as they end, and the state of the server when it is scraped.
//!
//! Labels have few values, whatever clients send: services and roles of the configuration, routes by
//! their class, statuses by their hundred, a bounded number of users. Devices and paths are not labels.

pub(crate) mod serve;
pub(crate) mod standing;
mod users;

use std::{fmt, time::Duration};

use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::Registry,
};
use proto::ollama::route::RouteClass;

use self::{standing::Standing, users::UserMetrics};
use crate::record::{End, RequestRecord, charge::Charge};

/// The prefix of every name.
const PREFIX: &str = "adit";
/// Buckets for the first byte: from a few milliseconds of a small model to the minutes in which a
/// large one is loaded.
const FIRST_BYTE: [f64; 13] =
    [0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 180.0, 600.0];
/// Buckets for the time from one token to the next.
const BETWEEN: [f64; 13] =
    [0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 1.0, 5.0, 30.0, 120.0];
/// Buckets for the wait in the queue.
const WAIT: [f64; 11] = [0.001, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 180.0, 600.0];

pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    ended: Family<EndLabels, Counter>,
    refused: Family<ReasonLabels, Counter>,
    tokens: Family<TokenLabels, Counter>,
    bytes: Family<DirectionLabels, Counter>,
    first_byte: Family<ServiceLabels, Histogram>,
    between: Family<RouteLabels, Histogram>,
    waited: Family<RouteLabels, Histogram>,
    users: UserMetrics,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    service: String,
    role: String,
    route: &'static str,
    status: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndLabels {
    service: String,
    route: &'static str,
    end: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TokenLabels {
    service: String,
    role: String,
    direction: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DirectionLabels {
    direction: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ServiceLabels {
    service: String,
    route: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabels {
    route: &'static str,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    /// All counters start at zero.
    pub(crate) fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix(PREFIX),
            requests: Family::default(),
            ended: Family::default(),
            refused: Family::default(),
            tokens: Family::default(),
            bytes: Family::default(),
            first_byte: Family::new_with_constructor(|| Histogram::new(FIRST_BYTE)),
            between: Family::new_with_constructor(|| Histogram::new(BETWEEN)),
            waited: Family::new_with_constructor(|| Histogram::new(WAIT)),
            users: UserMetrics::default(),
        };
        let Self {
            registry,
            requests,
            ended,
            refused,
            tokens,
            bytes,
            first_byte,
            between,
            waited,
            users,
        } = &mut metrics;
        registry.register("requests", "Requests that have ended", requests.clone());
        registry.register("requests_ended", "Requests by how they ended", ended.clone());
        registry.register(
            "requests_refused",
            "Requests that were refused, by reason",
            refused.clone(),
        );
        registry.register(
            "tokens",
            "Tokens that were read and written, estimated where answers do not say it",
            tokens.clone(),
        );
        registry.register("bytes", "Bytes of requests (in) and answers (out)", bytes.clone());
        registry.register(
            "first_byte_seconds",
            "From a request's head to the first byte of its answer",
            first_byte.clone(),
        );
        registry.register(
            "between_pieces_seconds",
            "From one piece of an answer to the next",
            between.clone(),
        );
        registry.register(
            "queue_wait_seconds",
            "How long requests waited for their turn",
            waited.clone(),
        );
        users.register(registry);
        metrics
    }

    /// Counts a piece of an answer, which came `after` the piece before it.
    pub(crate) fn piece(&self, route: RouteClass, after: Duration) {
        self.between
            .get_or_create(&RouteLabels { route: route.as_str() })
            .observe(after.as_secs_f64());
    }

    /// Counts a request that has ended.
    pub(crate) fn ended(&self, record: &RequestRecord, charge: &Charge) {
        let (role, route) = (record.role.as_str(), record.route.as_str());
        let service = || record.service.as_str().to_owned();
        self.requests
            .get_or_create(&RequestLabels {
                service: service(),
                role: role.to_owned(),
                route,
                status: class(record.status),
            })
            .inc();
        self.ended
            .get_or_create(&EndLabels { service: service(), route, end: record.end.as_str() })
            .inc();
        if let End::Refused(why) = record.end {
            self.refused.get_or_create(&ReasonLabels { reason: why.as_str() }).inc();
        }
        for (direction, bytes, tokens) in
            [("in", record.bytes_in, charge.read), ("out", record.bytes_out, charge.written)]
        {
            self.bytes.get_or_create(&DirectionLabels { direction }).inc_by(bytes);
            if let Some(tokens) = tokens {
                self.tokens
                    .get_or_create(&TokenLabels {
                        service: service(),
                        role: role.to_owned(),
                        direction,
                    })
                    .inc_by(tokens);
            }
        }
        if let (Some(time), false) = (record.first_byte, matches!(record.end, End::Refused(_))) {
            self.first_byte
                .get_or_create(&ServiceLabels { service: service(), route })
                .observe(time.as_secs_f64());
        }
        self.users.ended(record, charge);
        if matches!(record.route, RouteClass::Generate | RouteClass::Embed) {
            self.waited.get_or_create(&RouteLabels { route }).observe(record.queued.as_secs_f64());
        }
    }

    /// All metrics, in the text format of OpenMetrics.
    pub(crate) fn text(&self, standing: Standing) -> String {
        let mut out = String::new();
        let mut now = Registry::with_prefix(PREFIX);
        now.register_collector(Box::new(standing));
        // Writing to a string does not fail.
        let _ = text::encode_registry(&mut out, &self.registry)
            .and_then(|()| text::encode_registry(&mut out, &now))
            .and_then(|()| text::encode_eof(&mut out));
        out
    }
}

/// The class of a status: its hundred.
fn class(status: Option<u16>) -> &'static str {
    match status {
        None => "none",
        Some(100..=199) => "1xx",
        Some(200..=299) => "2xx",
        Some(300..=399) => "3xx",
        Some(400..=499) => "4xx",
        Some(500..=599) => "5xx",
        Some(_) => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{audit::entry::tests::record, record::Refusal};

    fn ended(metrics: &Metrics, record: &RequestRecord) {
        metrics.ended(record, &Charge::of(record, 0.0));
    }

    #[track_caller]
    fn assert_says(text: &str, line: &str) {
        assert!(text.lines().any(|l| l == line), "no `{line}` in:\n{text}");
    }

    #[test]
    fn a_request_is_counted_in_all_its_aspects() {
        let metrics = Metrics::new();
        ended(&metrics, &record(End::Done));
        ended(&metrics, &record(End::Refused(Refusal::Limit("at_once"))));
        metrics.piece(RouteClass::Generate, Duration::from_millis(30));
        let text = metrics.text(Standing::default());
        for line in [
            r#"adit_requests_total{service="ollama",role="infer",route="generate",status="2xx"} 2"#,
            r#"adit_requests_ended_total{service="ollama",route="generate",end="done"} 1"#,
            r#"adit_requests_refused_total{reason="at_once"} 1"#,
            r#"adit_tokens_total{service="ollama",role="infer",direction="out"} 84"#,
            r#"adit_bytes_total{direction="in"} 240"#,
            r#"adit_first_byte_seconds_count{service="ollama",route="generate"} 1"#,
            r#"adit_between_pieces_seconds_bucket{le="0.04",route="generate"} 1"#,
            r#"adit_queue_wait_seconds_count{route="generate"} 2"#,
            "# EOF",
        ] {
            assert_says(&text, line);
        }
    }

    #[test]
    fn no_request_adds_a_label_value() {
        let metrics = Metrics::new();
        let mut sent = record(End::Done);
        ended(&metrics, &sent);
        let before = metrics.text(Standing::default()).lines().count();
        for i in 0..1000 {
            sent.path = format!("/{i}").into();
            sent.method = format!("M{i}").into();
            sent.model = Some(format!("model{i}").into());
            sent.asker.name = format!("device{i}").parse().expect("a name");
            sent.asker.id = proto::identity::DeviceId::generate();
            ended(&metrics, &sent);
        }
        assert_eq!(metrics.text(Standing::default()).lines().count(), before);
    }

    #[test]
    fn users_are_counted_by_name_up_to_a_bound_and_then_together() {
        let metrics = Metrics::new();
        let mut sent = record(End::Refused(Refusal::Role));
        for i in 0..users::MOST_USERS + 3 {
            sent.asker.user = format!("user{i}").parse().ok();
            ended(&metrics, &sent);
        }
        sent.asker.user = "user0".parse().ok();
        ended(&metrics, &sent);
        let text = metrics.text(Standing::default());
        for line in [
            r#"adit_user_requests_total{user="user0"} 2"#,
            r#"adit_user_requests_total{user="user199"} 1"#,
            r#"adit_user_requests_total{user="(others)"} 3"#,
            r#"adit_user_requests_refused_total{user="(others)"} 3"#,
            r#"adit_user_tokens_total{user="user0",direction="out"} 84"#,
        ] {
            assert_says(&text, line);
        }
        let all = text.lines().filter(|l| l.starts_with("adit_user_requests_total{"));
        assert_eq!(all.count(), users::MOST_USERS + 1);
    }

    #[test]
    fn any_status_has_a_class() {
        for (status, expected) in [
            (None, "none"),
            (Some(0), "other"),
            (Some(200), "2xx"),
            (Some(429), "4xx"),
            (Some(999), "other"),
        ] {
            assert_eq!(class(status), expected);
        }
    }
}
