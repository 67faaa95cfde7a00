//! Renews a device's certificate within its session.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use common::{
    machine::process::unix_now,
    transport::{frame, splice::Sending},
};
use proto::wire::{Code, NewCa, RenewAnswer};
use tracing::{info, warn};
use zeroize::Zeroizing;

use super::{Session, sign_in_renewal};
use crate::state::ca::DeviceKey;

/// The least time between two renewals in one session; or a tenth of a certificate's lifetime, if
/// that is less.
const RENEW_PAUSE: Duration = Duration::from_secs(60);

impl Session {
    /// Sends a new certificate for the key that the handshake has verified.
    pub(super) async fn renew(&self, send: &mut Sending) -> Result<(), Code> {
        let device = self.server.policy.admit(&self.peer)?;
        self.server.policy.must_keep_key(&self.peer)?;
        let authorities = self.server.state.authorities.get();
        authorities.check_clock(unix_now()).map_err(|_| Code::ServerClock)?;
        // Each renewal costs a signature and a write to the disk; none is needed in the first tenth
        // of a certificate's lifetime.
        let now = unix_now();
        let life = self.server.life_of(device.has_signed_in);
        let (next, _) = self.ca.next(&authorities).ok_or(Code::CaRetired)?;
        let is_new = self.ca.is_first_try(next.number);
        let pause = (life / 10).min(RENEW_PAUSE).as_secs() as i64;
        let is_due = |last| (is_new || last <= now - pause).then_some(now);
        if self.renewed.fetch_update(Relaxed, Relaxed, is_due).is_err() {
            return Err(Code::Busy);
        }
        if device.has_signed_in {
            sign_in_renewal::ask(&self.server, device.id).await?;
        }
        // A provider takes its time: a CA that has retired meanwhile signs nothing, and there may be a
        // newer one.
        let authorities = self.server.state.authorities.get();
        let (authority, ca) = self.ca.next(&authorities).ok_or(Code::CaRetired)?;
        self.ca.is_first_try(authority.number);
        let key = DeviceKey::from_spki(&self.spki).map_err(|_| Code::Protocol)?;
        let issued = ca
            .issue_device(device.id, &key, time::OffsetDateTime::now_utc(), life)
            .map_err(|e| {
                warn!("cannot renew a certificate: {e}");
                Code::Busy
            })?;
        let not_after = issued.not_after;
        self.server
            .in_register(move |register| register.renewed(device.id, not_after))
            .await
            .map_err(|_| Code::Busy)?;
        let answer = RenewAnswer {
            certificate: data_encoding::BASE64.encode(&issued.certificate),
            epoch: Some(self.sealed_epoch()),
            // Also if it was sent before: the device may not have stored it.
            new_ca: (authority.number != self.ca.began).then(|| NewCa {
                ca: data_encoding::BASE64.encode(authority.certificate()),
                knock_key: authority.knock_key(device.id, self.peer.key),
            }),
        };
        let mut framed = Zeroizing::new(Vec::new());
        frame::write(&mut *framed, &answer).await.map_err(|_| Code::Busy)?;
        send.write_all(&framed).await.map_err(|_| Code::Cut)?;
        send.finish();
        let is_new = authority.number > self.ca.sent();
        self.ca.set_sent(authority.number);
        self.not_after.store(not_after, Relaxed);
        // The policy in memory still has the old expiry. A failure was logged, and the new
        // certificate is valid all the same.
        let _ = self.server.refresh().await;
        match is_new {
            true => info!("certificate renewed, by CA {}", authority.number),
            false => info!("certificate renewed"),
        }
        Ok(())
    }
}
