//! Chance that is the same each time for the same seed.

use std::time::Duration;

use crate::ollama::{SeededBytes, seeded_bytes};

/// A run of pseudo-random numbers.
#[derive(Debug, Clone)]
pub struct Chance(SeededBytes);

impl Chance {
    /// Depends on `seed` alone.
    pub fn new(seed: u64) -> Self {
        Self(seeded_bytes(seed))
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// From 0 up to 1.
    pub fn share(&mut self) -> f64 {
        (self.number() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Whether something of this likelihood happens.
    pub fn happens(&mut self, likelihood: f64) -> bool {
        likelihood > 0.0 && self.share() < likelihood
    }

    /// A time between these.
    pub fn between(&mut self, least: Duration, most: Duration) -> Duration {
        least + (most - least).mul_f64(self.share())
    }
}

/// The seed of everything in the lab: `ADIT_LAB_SEED`, or `otherwise`.
///
/// # Panics
/// If that is no number.
pub fn seed(otherwise: u64) -> u64 {
    std::env::var("ADIT_LAB_SEED")
        .map_or(otherwise, |seed| seed.parse().expect("ADIT_LAB_SEED is a number"))
}
