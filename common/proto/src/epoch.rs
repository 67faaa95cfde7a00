//! The epoch of a register: how many revocations it has seen. The server and its devices remember
//! it, so that a register that was put back to an older state is noticed. No clock is asked.
//!
//! The rule: after a restore, and after a register was found to be older than somebody remembers,
//! **nobody is let in until the owner has confirmed the device**. A device cannot prove that it was
//! not revoked: a revoked one remembers exactly what an honest one that slept remembers. Only a
//! register that is there while another is restored over it knows all revocations ([`standing`]).

use std::{fmt, str::FromStr};

use aws_lc_rs::{constant_time::verify_slices_are_equal, hmac};
use data_encoding::BASE64;

use crate::{crypto::fill_random, identity::DeviceId, knock::SharedKey};

/// The epoch of a register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Epoch {
    /// Random; a new one begins with each restore, so that counts of before are not mistaken for
    /// counts of after.
    pub line: u64,
    /// How many revocations there were in this line.
    pub count: u64,
}

/// What a remembered epoch says about the register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// The register is as new as what is remembered, or newer.
    Agrees,
    /// So many revocations are not in the register any more.
    Lost(u64),
    /// It is of before a restore, or of another register.
    OtherLine,
}

impl Epoch {
    /// The first epoch of a new line.
    pub fn begin() -> Self {
        let mut line = [0; 8];
        fill_random(&mut line);
        Self { line: u64::from_be_bytes(line), count: 0 }
    }

    /// The epoch after one more revocation.
    pub fn next(self) -> Self {
        Self { count: self.count.saturating_add(1), ..self }
    }

    /// Compares the register's epoch with a remembered one.
    pub fn compare(self, remembered: Self) -> Memory {
        if self.line != remembered.line {
            Memory::OtherLine
        } else {
            match remembered.count.saturating_sub(self.count) {
                0 => Memory::Agrees,
                lost => Memory::Lost(lost),
            }
        }
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x} {}", self.line, self.count)
    }
}

impl FromStr for Epoch {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WHY: &str = "an epoch is 16 hexadecimal digits, a space and a number";
        let (line, count) = text.trim_end().split_once(' ').ok_or(WHY)?;
        Ok(Self {
            line: u64::from_str_radix(line, 16).map_err(|_| WHY)?,
            count: count.parse().map_err(|_| WHY)?,
        })
    }
}

/// Seals epochs for devices: a device keeps what it cannot make, so that none can claim that
/// revocations were lost. `Debug` shows no key.
pub struct EpochKey(hmac::Key);

impl EpochKey {
    const MAC_LEN: usize = 16;

    /// The key derived from a secret that never leaves the server.
    pub fn new(master: &SharedKey) -> Self {
        let key = master.derive(b"adit/1 epochs of the register");
        Self(hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes()))
    }

    /// The text that this device keeps.
    pub fn seal(&self, epoch: Epoch, id: DeviceId) -> String {
        let said = Self::said(epoch);
        let mac = hmac::sign(&self.0, &[&said[..], &u32::from(id).to_be_bytes()].concat());
        BASE64.encode(&[&said[..], &mac.as_ref()[..Self::MAC_LEN]].concat())
    }

    /// The epoch in a text that was sealed for this device; `None` for any other text.
    pub fn open(&self, text: &str, id: DeviceId) -> Option<Epoch> {
        let bytes = BASE64.decode(text.as_bytes()).ok()?;
        let (said, mac) = bytes.split_at_checked(16)?;
        let own = hmac::sign(&self.0, &[said, &u32::from(id).to_be_bytes()].concat());
        verify_slices_are_equal(&own.as_ref()[..Self::MAC_LEN], mac).ok()?;
        let (line, count) = said.split_at(8);
        Some(Epoch {
            line: u64::from_be_bytes(line.try_into().ok()?),
            count: u64::from_be_bytes(count.try_into().ok()?),
        })
    }

    fn said(epoch: Epoch) -> [u8; 16] {
        (u128::from(epoch.line) << 64 | u128::from(epoch.count)).to_be_bytes()
    }
}

impl fmt::Debug for EpochKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EpochKey(…)")
    }
}

/// How a device stands in a register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It may connect.
    Admitted,
    /// Whether it was revoked is not known: it may not connect until the owner confirms it.
    Held,
    /// It may not connect.
    Revoked,
}

/// How a device of a backup stands after the restore. `backed_up` is how it stood in the backup;
/// `replaced` is how it stands in the register that is replaced, if that one can be read, is of the
/// same line and is not older than the backup: the inner `None` if the device is not in it.
pub fn standing(backed_up: Standing, replaced: Option<Option<Standing>>) -> Standing {
    match (backed_up, replaced) {
        (Standing::Revoked, None) => Standing::Revoked,
        // Nobody knows what has been revoked since.
        (Standing::Admitted | Standing::Held, None) => Standing::Held,
        // It was forgotten, which only a revoked device is, or an earlier restore has dropped it.
        (Standing::Revoked, Some(None)) => Standing::Revoked,
        (_, Some(None)) => Standing::Held,
        (_, Some(Some(now))) => now,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_register_of_the_same_line_has_lost_revocations() {
        let at = |line, count| Epoch { line, count };
        for (register, remembered, memory) in [
            (at(1, 5), at(1, 5), Memory::Agrees),
            (at(1, 5), at(1, 0), Memory::Agrees),
            (at(1, 5), at(1, 7), Memory::Lost(2)),
            (at(1, 5), at(2, 5), Memory::OtherLine),
            (at(1, 0), at(1, u64::MAX), Memory::Lost(u64::MAX)),
        ] {
            assert_eq!(register.compare(remembered), memory, "{register} {remembered}");
        }
        assert_eq!(at(1, u64::MAX).next(), at(1, u64::MAX));
        for epoch in [at(0, 0), at(u64::MAX, 7), Epoch::begin()] {
            assert_eq!(format!("{epoch}\n").parse(), Ok(epoch));
        }
        for bad in ["", "12", "x 1", "1 -1", "1 1 1"] {
            assert!(bad.parse::<Epoch>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_device_keeps_an_epoch_that_it_can_neither_make_nor_lend() {
        let key = EpochKey::new(&SharedKey::generate());
        let (mine, other) = (DeviceId::from(7), DeviceId::from(8));
        let epoch = Epoch { line: 0x0123_4567_89ab_cdef, count: 42 };
        let sealed = key.seal(epoch, mine);
        assert_eq!(key.open(&sealed, mine), Some(epoch));
        assert_eq!(key.open(&sealed, other), None);
        assert_eq!(EpochKey::new(&SharedKey::generate()).open(&sealed, mine), None);
        let mut bytes = BASE64.decode(sealed.as_bytes()).expect("base64");
        bytes[15] += 1;
        assert_eq!(key.open(&BASE64.encode(&bytes), mine), None);
        for bad in ["", "AAAA", "no base64", &BASE64.encode(&bytes[..31])] {
            assert_eq!(key.open(bad, mine), None, "{bad}");
        }
    }

    #[test]
    fn only_a_register_that_is_there_can_vouch_for_a_restored_device() {
        use Standing::{Admitted, Held, Revoked};
        for (backed_up, replaced, after) in [
            (Admitted, None, Held),
            (Held, None, Held),
            (Revoked, None, Revoked),
            (Admitted, Some(Some(Admitted)), Admitted),
            (Admitted, Some(Some(Revoked)), Revoked),
            (Admitted, Some(Some(Held)), Held),
            (Admitted, Some(None), Held),
            (Revoked, Some(Some(Admitted)), Admitted),
            (Revoked, Some(None), Revoked),
            (Held, Some(Some(Admitted)), Admitted),
        ] {
            assert_eq!(standing(backed_up, replaced), after, "{backed_up:?} {replaced:?}");
        }
    }
}
