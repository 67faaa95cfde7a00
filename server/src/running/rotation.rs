//! The certificate authorities of a running server: those that others have changed, and those that no
//! device needs any more.

use std::sync::Arc;

use common::machine::{
    process::{uid, unix_now},
    report::Failure,
};
use proto::rotation::CaRecords;
use time::OffsetDateTime;
use tracing::{error, info};

use super::Server;
use crate::{audit::Event, state::authorities::Authorities};

impl Server {
    /// Puts the CAs in force that the register has now. A failure is logged, and nothing changes.
    pub(super) async fn follow_cas(&self, records: &CaRecords) {
        if self.state.authorities.get().records() == records {
            return;
        }
        let (dir, keys) = (self.state.dir.clone(), self.state.keys.clone());
        let records = records.clone();
        let number = records.current().number;
        let opened = tokio::task::spawn_blocking(move || {
            Authorities::open(&dir, records, &keys, OffsetDateTime::now_utc())
        });
        match opened.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic())) {
            Ok(authorities) => {
                if self.state.authorities.set(authorities) {
                    info!("CA {number} signs: devices that are connected get it now");
                }
            }
            Err(e) => error!("the certificate authorities stay as they were: {e}"),
        }
    }

    /// Ends the CAs that no device needs any more, if they were replaced long enough ago. A
    /// certificate for HTTPS is trusted by programs that cannot be counted: while there is one of our
    /// own, only the owner ends a CA.
    pub(crate) async fn retire_unneeded(self: &Arc<Self>) {
        let now = unix_now();
        let of_own = |https: &Arc<crate::https::Https>| https.status().certificate.is_of_own_ca();
        let authorities = self.state.authorities.get();
        if authorities.records().old().next().is_none()
            || authorities.check_clock(now).is_err()
            || self.open.https.as_ref().is_some_and(of_own)
            || self.replaced.is_cancelled()
        {
            return;
        }
        let at = self.clone();
        let retired = tokio::task::spawn_blocking(move || at.state.retire_unneeded(now)).await;
        match retired.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic())) {
            Ok(numbers) => {
                for ca in numbers {
                    info!("CA {ca} has retired: every device has a newer one");
                    self.accounting.audit.note(Event::CaRetire { ca, without: 0, uid: uid() });
                }
                let _ = self.refresh().await;
            }
            Err(e) => error!("{}", Failure::from(e)),
        }
    }
}
