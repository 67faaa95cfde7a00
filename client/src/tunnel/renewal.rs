//! Renews the device's certificate in the tunnel, for the same key and without an interruption. With
//! the certificate may come a new CA of the server, which takes the place of the one that this device
//! trusts.

use std::time::{Duration, Instant};

use common::{
    machine::process::unix_now,
    transport::{frame, splice::Sending, tls},
};
use proto::{
    knock::random_fraction,
    repeats::Repeats,
    wire::{Code, NewCa, RenewAnswer, StreamHead},
};
use quinn::{Connection, ReadError};
use tokio::sync::Notify;
use tracing::{debug, info, warn};

use crate::{
    dial::{DialError, clocks::Clocks},
    profile::SharedProfile,
};

/// How often the wall clock is compared with the certificate's end. After a sleep, the renewal is
/// late by no more than this.
const CHECK: Duration = Duration::from_secs(60);
const WITHIN: Duration = Duration::from_secs(30);
/// How long the server may take to hear that its new CA is stored.
const TOLD_WITHIN: Duration = Duration::from_secs(5);
/// The pause between attempts when the certificate has expired: nothing works without a new one.
const ENDED: Duration = Duration::from_secs(10);
/// The same failure is logged again after this time.
const LOG_AGAIN: Duration = Duration::from_secs(3600);

/// The time by the server's clock, in Unix seconds: the server judges this device's certificate.
/// `ahead` is by how many milliseconds its clock is ahead of this computer's, if it said so.
pub(crate) fn server_now(ahead: Option<i64>) -> i64 {
    unix_now().saturating_add(ahead.unwrap_or(0) / 1000)
}

/// Renews each certificate in the last third of its lifetime, by the server's clock, and at once when
/// `asked` is woken: the server wants it. Never ends. `ahead` is as for [`server_now`].
pub(crate) async fn keep(
    profile: &SharedProfile,
    connection: &Connection,
    ahead: Option<i64>,
    asked: &Notify,
) {
    // Until it is done: an attempt may fail.
    let mut is_asked = false;
    let (jitter, began) = (random_fraction(), Instant::now());
    let mut in_vain = 0_u32;
    let mut failures = Repeats::new(LOG_AGAIN);
    let mut log = |failure: String| {
        if failures.is_news(&failure, began.elapsed()) {
            warn!("{failure}");
        }
    };
    loop {
        let Ok(certificate) = profile.get().certificate() else {
            return std::future::pending().await;
        };
        let left = u64::try_from(certificate.renew_at(jitter) - server_now(ahead)).unwrap_or(0);
        if left > 0 && !is_asked {
            // In short steps, because this clock stops while the machine sleeps, and the wall clock
            // does not.
            let step = CHECK.min(Duration::from_secs(left));
            is_asked = tokio::time::timeout(step, asked.notified()).await.is_ok();
            continue;
        }
        let renewed = renew(profile, connection, ahead).await;
        is_asked &= renewed.is_err();
        match renewed {
            Ok(())
                if profile
                    .get()
                    .certificate()
                    .is_ok_and(|new| new.renew_at(jitter) > server_now(ahead)) =>
            {
                in_vain = 0;
            }
            Ok(()) => {
                log("by this computer's clock the new certificate has already expired: check the clock".to_owned());
                tokio::time::sleep(CHECK).await;
            }
            Err(e) => {
                let pause = match certificate.not_after - server_now(ahead) {
                    ..0 => ENDED,
                    left => {
                        longer(in_vain).min(Duration::from_secs(left.unsigned_abs()).max(ENDED))
                    }
                };
                in_vain = in_vain.saturating_add(1);
                log(format!("{e}: trying again every {} s", pause.as_secs()));
                tokio::time::sleep(pause).await;
            }
        }
    }
}

/// The pause after so many others, while the certificate is valid.
fn longer(earlier: u32) -> Duration {
    CHECK.saturating_mul(1 << earlier.min(3))
}

/// The reason of the server, if it has reset the stream.
fn reason(error: &std::io::Error) -> String {
    let reset = match error.get_ref().and_then(|e| e.downcast_ref()) {
        Some(ReadError::Reset(code)) => Code::from_number(code.into_inner()),
        _ => None,
    };
    reset.map_or_else(|| error.to_string(), |code| code.sentence().to_owned())
}

/// Renews once, and stores the new certificate. `ahead` is as for [`server_now`].
pub(crate) async fn renew(
    profile: &SharedProfile,
    connection: &Connection,
    ahead: Option<i64>,
) -> Result<(), DialError> {
    let failed = |e: String| DialError::Other(format!("cannot renew the certificate: {e}"));
    let exchange = async {
        let (send, mut recv) = connection.open_bi().await?;
        let mut send = Sending::new(send);
        send.write_all(&StreamHead::Renew.encode()).await?;
        send.finish();
        frame::read::<RenewAnswer>(&mut recv).await
    };
    let answer = tokio::time::timeout(WITHIN, exchange).await;
    let answer = answer
        .map_err(|_| failed("the server does not answer".to_owned()))?
        .map_err(|e| failed(reason(&e)))?;
    let mut renewed = profile.get();
    renewed.enrolled.certificate = answer.certificate;
    if answer.epoch.is_some() {
        renewed.epoch = answer.epoch;
    }
    let is_new_ca = answer.new_ca.as_ref().is_some_and(|new| new.ca != renewed.enrolled.ca);
    if let Some(NewCa { ca, knock_key }) = answer.new_ca {
        (renewed.enrolled.ca, renewed.enrolled.knock_key) = (ca, knock_key);
        renewed.ca().and_then(tls::roots).map_err(|e| failed(e.to_string()))?;
    }
    // The new certificate is checked before it replaces the old one.
    renewed.certified_key().map_err(|e| failed(e.to_string()))?;
    let certificate = renewed.certificate().map_err(|e| failed(e.to_string()))?;
    if certificate.device != Some(renewed.enrolled.device_id) {
        return Err(failed("the server sent a certificate for another device".to_owned()));
    }
    if !(certificate.not_before..=certificate.not_after).contains(&server_now(ahead)) {
        return Err(DialError::Clock(Clocks::issued(certificate.not_before)));
    }
    if !is_new_ca {
        profile.store(renewed);
        info!("certificate renewed");
        return Ok(());
    }
    // The server ends the old CA when every device has the new one. It must not count this one before
    // it is on the disk.
    profile.store_first(renewed).map_err(|e| failed(e.to_string()))?;
    info!("certificate renewed, and the server's new certificate authority is stored");
    let told = async {
        let (mut send, mut recv) = connection.open_bi().await?;
        send.write_all(&StreamHead::Stored.encode()).await?;
        let _ = send.finish();
        recv.read_to_end(0).await.map_err(std::io::Error::other)
    };
    // If it is lost, the next connection tells it: its first packet is made with the new key.
    if !matches!(tokio::time::timeout(TOLD_WITHIN, told).await, Ok(Ok(_))) {
        debug!("the server may not know yet that the new certificate authority is stored");
    }
    Ok(())
}
