//! A seeded random number generator: all randomness of a test comes from one seed, which is printed if the test fails.
//!
//! `CHATCHAIN_TEST_SEED=<number>` repeats the choices of a run, but not how the machine interleaves its processes.

use std::ops::Range;
use std::time::Duration;

const SEED_VARIABLE: &str = "CHATCHAIN_TEST_SEED";

/// Random numbers from a seed. Not for secrets.
pub struct SeededRng {
    seed: u64,
    state: u64,
}

impl SeededRng {
    /// Takes the seed from `CHATCHAIN_TEST_SEED` if that is set, else a random one.
    pub fn new() -> Self {
        let configured = std::env::var(SEED_VARIABLE).ok();
        let seed = match configured {
            Some(seed) => seed.parse().unwrap_or_else(|e| panic!("{SEED_VARIABLE}={seed}: {e}")),
            None => uuid::Uuid::new_v4().as_u64_pair().0,
        };
        Self::of(seed)
    }

    pub fn of(seed: u64) -> Self {
        SeededRng { seed, state: seed }
    }

    /// SplitMix64, after Steele, Lea and Flood 2014.
    pub fn number(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    pub fn within(&mut self, range: Range<u64>) -> u64 {
        range.start + self.number() % (range.end - range.start)
    }

    /// A duration below `most`, to the microsecond.
    pub fn duration(&mut self, most: Duration) -> Duration {
        let micros = u64::try_from(most.as_micros()).expect("a short time");
        Duration::from_micros(self.within(0..micros))
    }
}

impl Drop for SeededRng {
    #[expect(clippy::print_stderr, reason = "the test runner shows it with the failure")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- repeat the same choices with: {SEED_VARIABLE}={}", self.seed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_choices() {
        let (mut one, mut other) = (SeededRng::of(7), SeededRng::of(7));
        let choices: Vec<_> = (0..100).map(|_| one.within(10..20)).collect();
        assert_eq!(choices, (0..100).map(|_| other.within(10..20)).collect::<Vec<_>>());
        assert!((10..20).all(|value| choices.contains(&value)), "{choices:?}");
    }
}
