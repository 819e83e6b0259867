//! The file under the embedded log, and what happens when the disk is full.
//!
//! Invariant: the store above never sees a full disk. It treats every failed write as the end of
//! everything until it is opened again, so a full disk is waited out *below* it: the write is tried
//! again with back-off until there is room, or the log is closed. Meanwhile appends wait, because
//! their bytes are not given back. Other failures pass through and stop the log.

use std::io::{Error, ErrorKind, Result};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use redb::StorageBackend;

use crate::metrics;
use crate::throttle::Throttle;

const FIRST_WAIT: Duration = Duration::from_millis(20);
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// How a full disk is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    /// While opening: say so at once.
    Hasty,
    /// While running: wait.
    Patient,
    /// While closing: give up, the file recovers to the last commit.
    Leaving,
}

/// Shared by the file and those who open and close the log.
#[derive(Debug)]
pub(crate) struct Patience {
    mood: Mutex<Mood>,
    changed: Condvar,
    report: Throttle,
}

impl Patience {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { mood: Mutex::new(Mood::Hasty), changed: Condvar::new(), report: Throttle::once_a_second() })
    }

    /// From now on a full disk is waited out.
    pub(crate) fn opened(&self) {
        *self.mood.lock() = Mood::Patient;
    }

    /// From now on a full disk is a failure; who waits is woken.
    pub(crate) fn closing(&self) {
        *self.mood.lock() = Mood::Leaving;
        self.changed.notify_all();
    }

    fn retry(&self, mut act: impl FnMut() -> Result<()>) -> Result<()> {
        let mut wait = FIRST_WAIT;
        loop {
            match act() {
                Err(error) if is_full(&error) && self.waited(wait, &error) => {}
                outcome => return outcome,
            }
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }

    /// Waits before another try; `false` where there is to be none.
    fn waited(&self, wait: Duration, error: &Error) -> bool {
        let mut mood = self.mood.lock();
        if *mood != Mood::Patient {
            return false;
        }
        metrics::full_disk_wait();
        if let Some(held_back) = self.report.pass() {
            tracing::warn!(%error, held_back, "disk of the embedded log is full; appends wait until there is room");
        }
        self.changed.wait_for(&mut mood, wait);
        *mood == Mood::Patient
    }
}

fn is_full(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

/// A storage backend that waits for room.
#[derive(Debug)]
pub(crate) struct PatientFile<B> {
    inner: B,
    patience: Arc<Patience>,
}

impl<B> PatientFile<B> {
    pub(crate) fn new(inner: B, patience: Arc<Patience>) -> Self {
        Self { inner, patience }
    }
}

// Locks are left out: the folder is locked already, for longer than the file is open.
impl<B: StorageBackend> StorageBackend for PatientFile<B> {
    fn len(&self) -> Result<u64> {
        self.inner.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        self.inner.read(offset, out)
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.patience.retry(|| self.inner.set_len(len))
    }

    // Not tried again: after a failed sync nobody knows which pages are on the disk.
    fn sync_data(&self) -> Result<()> {
        self.inner.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.patience.retry(|| self.inner.write(offset, data))
    }

    fn close(&self) -> Result<()> {
        self.inner.close()
    }
}
