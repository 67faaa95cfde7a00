//! Changes of the certificate authorities.

use common::machine::process::unix_now;
use proto::rotation::CaNumber;
use time::OffsetDateTime;

use super::Changes;
use crate::{
    audit::Event,
    state::rotation::{CaError, Retired},
};

impl Changes<'_> {
    /// Makes a new CA. Returns its number.
    pub(crate) fn rotate_ca(&self) -> Result<CaNumber, CaError> {
        let ca = self.state.rotate_ca(OffsetDateTime::now_utc())?;
        self.note(Event::CaRotate { ca, uid: self.uid });
        Ok(ca)
    }

    /// Ends the old CAs; with `force` although devices do not have the newest one.
    pub(crate) fn retire_cas(&self, force: bool) -> Result<Retired, CaError> {
        let retired = self.state.retire_cas(force, unix_now())?;
        for ca in retired.numbers.iter().copied() {
            let without = retired.without.iter().filter(|device| device.ca <= ca).count();
            self.note(Event::CaRetire { ca, without, uid: self.uid });
        }
        Ok(retired)
    }
}
