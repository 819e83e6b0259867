//! What happened in a run, in simulated time: the story of a failure, and what two runs of one seed are compared by.

use std::{hash::Hasher, sync::Arc};

use parking_lot::Mutex;
use tokio::time::Instant;

/// The events of one run. Clones share them.
#[derive(Clone)]
pub(crate) struct Trace {
    began: Instant,
    events: Arc<Mutex<Vec<String>>>,
}

impl Trace {
    pub(crate) fn begin() -> Self {
        Self { began: Instant::now(), events: Arc::default() }
    }

    pub(crate) fn note(&self, event: impl AsRef<str>) {
        let seconds = self.began.elapsed().as_secs_f64();
        self.events.lock().push(format!("{seconds:>9.3}s  {}", event.as_ref()));
    }

    pub(crate) fn events(&self) -> Vec<String> {
        self.events.lock().clone()
    }
}

/// A fingerprint of bytes that is the same on every machine (FNV-1a).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fingerprint(u64);

impl Default for Fingerprint {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for Fingerprint {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}
