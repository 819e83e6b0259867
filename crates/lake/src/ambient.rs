//! Time and chance, the only place where this crate meets either.
//!
//! Everything else takes them from a [`Lake`](crate::Lake), so a test can hand in its own clock and seed and a
//! failing run is a seed, not a story. Outside tests names are unguessable (version 4 UUIDs).

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};
use uuid::Uuid;

/// Yields the wall time in milliseconds since the Unix epoch.
pub type Clock = Arc<dyn Fn() -> i64 + Send + Sync>;

/// The clock and the dice of one lake; clones share both.
#[derive(Clone)]
pub(crate) struct Ambient {
    clock: Clock,
    seeded: Option<Arc<Mutex<StdRng>>>,
}

impl Default for Ambient {
    fn default() -> Self {
        Self { clock: Arc::new(system_now_ms), seeded: None }
    }
}

impl fmt::Debug for Ambient {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Ambient").field("seeded", &self.seeded.is_some()).finish_non_exhaustive()
    }
}

impl Ambient {
    pub(crate) fn with_clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    pub(crate) fn with_seed(mut self, seed: u64) -> Self {
        self.seeded = Some(Arc::new(Mutex::new(StdRng::seed_from_u64(seed))));
        self
    }

    pub(crate) fn now_ms(&self) -> i64 {
        (self.clock)()
    }

    pub(crate) fn uuid(&self) -> Uuid {
        match &self.seeded {
            None => Uuid::new_v4(),
            Some(dice) => {
                let mut bytes = [0; 16];
                dice.lock().unwrap_or_else(PoisonError::into_inner).fill_bytes(&mut bytes);
                uuid::Builder::from_random_bytes(bytes).into_uuid()
            }
        }
    }

    /// A number in `[0, 1)` for jitter.
    pub(crate) fn fraction(&self) -> f64 {
        match &self.seeded {
            None => rand::rng().random(),
            Some(dice) => dice.lock().unwrap_or_else(PoisonError::into_inner).random(),
        }
    }
}

// The default of a parameter: whoever wants another clock hands one to the lake.
#[allow(clippy::disallowed_methods)]
fn system_now_ms() -> i64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX)
}
