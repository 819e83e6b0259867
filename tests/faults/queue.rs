//! Work that several threads take from: each takes the next piece when it is done with the last.

use std::{thread, vec::IntoIter};

use anyhow::{Result, anyhow};
use parking_lot::Mutex;

/// What is still to be done.
pub(crate) struct Queue<T>(Mutex<IntoIter<T>>);

impl<T: Send> Queue<T> {
    pub(crate) fn new(work: Vec<T>) -> Self {
        Self(Mutex::new(work.into_iter()))
    }

    /// The next piece, for whoever asks first.
    pub(crate) fn next(&self) -> Option<T> {
        self.0.lock().next()
    }

    /// So many threads that do the same: take from the queue until it is empty. One of their errors, if there are any.
    pub(crate) fn work_off(&self, threads: usize, work: impl Fn(&Self) -> Result<()> + Sync) -> Result<()> {
        thread::scope(|scope| {
            let running: Vec<_> = (0..threads).map(|_| scope.spawn(|| work(self))).collect();
            let ended = running.into_iter().map(|one| one.join().map_err(|_| anyhow!("a thread panicked"))?);
            ended.fold(Ok(()), |all, one| all.and(one))
        })
    }
}
