//! Pseudo-random numbers that are the same for the same seed.

use std::time::Duration;

use crate::ollama::{SeededBytes, seeded_bytes};

/// A sequence of pseudo-random numbers.
#[derive(Debug, Clone)]
pub struct Chance(SeededBytes);

impl Chance {
    /// A sequence that depends only on `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seeded_bytes(seed))
    }

    pub fn number(&mut self) -> u64 {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// A number from 0 to 1.
    pub fn share(&mut self) -> f64 {
        (self.number() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Whether an event with this probability happens.
    pub fn happens(&mut self, likelihood: f64) -> bool {
        likelihood > 0.0 && self.share() < likelihood
    }

    /// A time between these.
    pub fn between(&mut self, least: Duration, most: Duration) -> Duration {
        least + (most - least).mul_f64(self.share())
    }
}

/// The seed of the lab: `ADIT_LAB_SEED`, or `otherwise`.
///
/// # Panics
/// If the variable is not a number.
pub fn seed(otherwise: u64) -> u64 {
    std::env::var("ADIT_LAB_SEED")
        .map_or(otherwise, |seed| seed.parse().expect("ADIT_LAB_SEED is a number"))
}
