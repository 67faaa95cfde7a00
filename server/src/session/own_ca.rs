//! The CA that the device of a session has, and how it gets a newer one: it is told that there is one,
//! renews its certificate in the session, and says that it has stored what it got. Nothing is
//! interrupted.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering::Relaxed},
};

use proto::{
    rotation::{CaNumber, CaState},
    wire::Code,
};

use super::Session;
use crate::state::{
    authorities::{Authorities, Authority},
    ca::Ca,
};

/// The CA of one session's device.
pub(super) struct OwnCa {
    /// The one that the session began with: its knock and its certificate go with it.
    pub(super) began: CaNumber,
    /// Whether the device can take over a new one.
    pub(super) follows: bool,
    /// The newest one that was sent to the device.
    sent: AtomicU32,
    /// The newest one by which a certificate was asked for.
    tried: AtomicU32,
}

impl OwnCa {
    pub(super) fn new(began: CaNumber, follows: bool) -> Self {
        Self { began, follows, sent: AtomicU32::new(began), tried: AtomicU32::new(began) }
    }

    /// The newest one that was sent to the device.
    pub(super) fn sent(&self) -> CaNumber {
        self.sent.load(Relaxed)
    }

    pub(super) fn set_sent(&self, number: CaNumber) {
        self.sent.fetch_max(number, Relaxed);
    }

    /// Notes that a certificate by this CA was asked for. Returns whether that is the first time, if
    /// it is a newer one than the device began with: the device need not wait then. What it does with
    /// the answer changes nothing.
    pub(super) fn is_first_try(&self, number: CaNumber) -> bool {
        self.tried.fetch_max(number, Relaxed) < number
    }

    /// The authority that signs the device's next certificate; `None` if that of a device which can
    /// take over no other has retired.
    pub(super) fn next<'a>(
        &self,
        authorities: &'a Authorities,
    ) -> Option<(&'a Arc<Authority>, &'a Arc<Ca>)> {
        if self.follows {
            return Some((authorities.current(), authorities.signing()));
        }
        let own = authorities.get(self.began)?;
        Some((own, own.ca()?))
    }

    /// Whether a device with this CA can get a certificate at `now`, in Unix time.
    ///
    /// # Errors
    /// [`Code::CaRetired`]
    pub(super) fn check(&self, authorities: &Authorities, now: i64) -> Result<(), Code> {
        let records = authorities.records();
        let until = records.recovers_until(self.began).unwrap_or(i64::MAX);
        match records.state(self.began) {
            Some(CaState::Retired) if !self.follows || now > until => Err(Code::CaRetired),
            Some(_) => Ok(()),
            None => Err(Code::CaRetired),
        }
    }

    /// The last second at which the device's certificate is good for more than renewing itself, if
    /// its CA has retired.
    pub(super) fn ended(&self, authorities: &Authorities) -> Option<i64> {
        let (records, sent) = (authorities.records(), self.sent());
        let retired = records.get(sent)?.retired?;
        (records.state(sent) == Some(CaState::Retired)).then_some(retired - 1)
    }
}

impl Session {
    /// Follows the CAs for as long as it is polled: tells the device when there is a newer one than
    /// it has, and takes all but the renewal from a certificate whose CA has retired.
    pub(super) async fn follow_cas(&self) {
        let mut changes = self.server.state.authorities.changes();
        loop {
            let authorities = changes.borrow_and_update().clone();
            if let Some(ended) = self.ca.ended(&authorities) {
                self.not_after.fetch_min(ended, Relaxed);
            }
            if self.ca.follows && self.ca.sent() < authorities.current().number {
                self.renew.notify_one();
            }
            if changes.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Notes the newest CA that the device has, if that is news.
    pub(super) async fn note_ca(&self, number: CaNumber) {
        let id = self.device.id;
        if self.server.policy.snapshot().ca_of(id) == number {
            return;
        }
        let noted = self.server.in_register(move |register| register.has_ca(id, number)).await;
        if noted.is_ok() {
            let _ = self.server.refresh().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_waits_once_less_for_each_new_ca_even_if_it_reads_no_answer() {
        let ca = OwnCa::new(2, true);
        assert!(!ca.is_first_try(2), "it has this one");
        assert!(ca.is_first_try(3));
        // Nothing was sent.
        assert_eq!(ca.sent(), 2);
        assert!(!ca.is_first_try(3));
        assert!(ca.is_first_try(5));
        assert!(!ca.is_first_try(4), "an answer of before");
        // Answers end in any order.
        ca.set_sent(5);
        ca.set_sent(3);
        assert_eq!(ca.sent(), 5);
    }
}
