//! Collects the state of the running server when metrics are scraped.

use std::sync::Arc;

use common::{machine::process::unix_now, transport::carrier::PacketRepeats};

use crate::{
    ingress::admission::{Admission, Handshake, Reason},
    metrics::standing::Standing,
    record::CarrierKind,
    running::Server,
    serve::entrances::Entrances,
};

/// The parts of the server that metrics need.
#[derive(Clone)]
pub(crate) struct Look {
    pub server: Arc<Server>,
    pub admission: Arc<Admission>,
    pub entrances: Arc<Entrances>,
    /// What is sent twice.
    pub repeats: Arc<PacketRepeats>,
}

impl Look {
    /// All metrics, as text.
    pub(crate) fn text(&self) -> String {
        self.server.accounting.metrics.text(self.standing())
    }

    /// The state of the server now.
    pub(crate) fn standing(&self) -> Standing {
        let Server { live, policy, accounting, .. } = &*self.server;
        let sessions = live.status();
        let of = |carrier: CarrierKind| {
            let remotes = sessions.iter().filter_map(|session| session.remote.parse().ok());
            (
                carrier.as_str(),
                remotes.filter(|remote| CarrierKind::of(*remote) == carrier).count() as u64,
            )
        };
        let (now, snapshot) = (unix_now(), policy.snapshot());
        let enrolled = || snapshot.devices().filter(|device| device.revoked.is_none());
        let up = enrolled()
            .filter(|device| {
                sessions
                    .iter()
                    .any(|session| session.device_id == device.id && session.away_since.is_none())
            })
            .count();
        let https = self.server.open.https.as_deref();
        let ends = [
            ("https", https.and_then(|https| https.status().certificate.until)),
            ("server", self.entrances.end()),
            ("first_device", enrolled().map(|device| device.not_after).min()),
        ];
        let audit = accounting.audit.status();
        Standing {
            queue_waiting: accounting.queue.waiting() as u64,
            queue_running: accounting.queue.running() as u64,
            devices: vec![
                ("up", up as u64),
                ("away", (enrolled().count() - up) as u64),
                ("revoked", (snapshot.devices().count() - enrolled().count()) as u64),
            ],
            sessions: vec![of(CarrierKind::Udp), of(CarrierKind::Ssh), of(CarrierKind::Local)],
            streams: sessions.iter().map(|session| session.streams as u64).sum(),
            handshakes: Handshake::ALL
                .map(|how| (how.as_str(), self.admission.handshakes(how)))
                .into(),
            ignored: Reason::ALL
                .map(|reason| (reason.as_str(), self.admission.ignored(reason)))
                .into(),
            certificates: ends.into_iter().filter_map(|(of, end)| Some((of, end?))).collect(),
            keys: vec![
                ("valid", snapshot.keys().filter(|key| key.revoked.is_none()).count() as u64),
                ("revoked", snapshot.keys().filter(|key| key.revoked.is_some()).count() as u64),
            ],
            https_connections: https.map_or(0, |https| https.status().connections as u64),
            https_turned_away: https.map(|https| https.turned()).unwrap_or_default(),
            expired: enrolled().filter(|device| device.not_after < now).count() as u64,
            protected: self.repeats.protected() as u64,
            repeated: self.repeats.repeated(),
            audit_lost: audit.lost,
            audit_failing: audit.failing.is_some(),
        }
    }
}
