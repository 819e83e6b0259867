//! Seeds and the random numbers made from them.
//!
//! Invariant: the same seed gives the same numbers on every machine and in every later version, so a failing run is a
//! seed. That is why the generator stands here rather than in a crate that may change its stream.
//! Absent on purpose: anything fit for secrets.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

/// The seed of one test: `TAILWATER_SEED` if set, else a new one. If the test fails, it says how to run it again.
#[derive(Debug)]
pub struct Seed {
    value: u64,
    test: String,
}

impl Seed {
    /// The seed for the test called `test`. Keep it alive until the end of the test.
    ///
    /// # Panics
    /// If `TAILWATER_SEED` is set and is not a number.
    pub fn of(test: &str) -> Seed {
        let value = match std::env::var("TAILWATER_SEED") {
            Ok(text) => text.parse().expect("TAILWATER_SEED is a number from 0 to 2^64-1"),
            Err(_) => entropy(),
        };
        Seed { value, test: test.to_owned() }
    }

    /// The number itself.
    pub fn value(&self) -> u64 {
        self.value
    }

    /// A generator that starts from this seed.
    pub fn random(&self) -> Random {
        Random::new(self.value)
    }
}

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("`{}` failed; the same run again: TAILWATER_SEED={}", self.test, self.value);
        }
    }
}

/// A number nobody chose.
pub fn entropy() -> u64 {
    RandomState::new().hash_one("seed")
}

/// A small, fast generator of random numbers (SplitMix64).
///
/// **Source**: Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014.
#[derive(Clone, Debug)]
pub struct Random {
    state: u64,
}

impl Random {
    /// Starts from `seed`.
    pub fn new(seed: u64) -> Random {
        Random { state: seed }
    }

    /// Any 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number from 0 up to but not including `bound`; 0 for a bound of 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        // The high half of the product is evenly spread up to an error of bound / 2^64.
        let product = u128::from(self.bits()) * u128::from(bound);
        (product >> 64) as u64
    }

    /// True in `percent` of a hundred cases.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// One of `choices`.
    ///
    /// # Panics
    /// If there is none.
    pub fn pick<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.below(choices.len() as u64) as usize]
    }

    /// A number in [0, 1).
    pub fn fraction(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// A generator of its own for a part of the work, so that parts may change without moving the others.
    pub fn fork(&mut self) -> Random {
        Random::new(self.bits())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_of_a_seed_never_changes() {
        let mut random = Random::new(0);
        // The published reference values of SplitMix64 for seed 0.
        assert_eq!(random.bits(), 0xe220_a839_7b1d_cdaf);
        assert_eq!(random.bits(), 0x6e78_9e6a_a1b9_65f4);
        assert_eq!(random.bits(), 0x06c4_5d18_8009_454f);
    }

    #[test]
    fn numbers_below_a_bound_reach_every_value_and_never_the_bound() {
        let mut random = Random::new(7);
        let mut seen = [0_u32; 10];
        for _ in 0..10_000 {
            seen[random.below(10) as usize] += 1;
        }
        assert!(seen.iter().all(|&count| (800..1_200).contains(&count)), "{seen:?}");
    }
}
