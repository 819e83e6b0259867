//! How many queries run at a time, and how long the others wait.
//!
//! The invariant: a [`Slot`] is held from before planning until the answer is complete or dropped, whichever way it
//! ends. Waiting is bounded in number and in time. Deliberately absent: priorities and shares between users.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};

use crate::{
    error::{ErrorKind, QueryError},
    metrics,
};

/// Waiting queries per running one before more are turned away.
const WAITING_PER_SLOT: usize = 4;
/// A query that has waited this long is turned away: whoever sent it can decide better than we can.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Debug)]
pub(crate) struct Admission {
    slots: Arc<Semaphore>,
    most: usize,
    waiting: AtomicUsize,
}

/// The right to run a query.
#[derive(Debug)]
pub(crate) struct Slot {
    _permit: OwnedSemaphorePermit,
}

impl Admission {
    pub(crate) fn new(most: usize) -> Self {
        Self { slots: Arc::new(Semaphore::new(most)), most, waiting: AtomicUsize::new(0) }
    }

    /// Queries that hold a slot.
    pub(crate) fn running(&self) -> usize {
        self.most.saturating_sub(self.slots.available_permits())
    }

    /// Waits for a slot, within bounds.
    ///
    /// **Cancel safety**: dropped, it leaves the queue.
    pub(crate) async fn enter(&self, deadline: Instant) -> Result<Slot, QueryError> {
        if let Ok(permit) = Arc::clone(&self.slots).try_acquire_owned() {
            return Ok(Slot { _permit: permit });
        }
        let _place = self.queue()?;
        let until = deadline.min(Instant::now() + LONGEST_WAIT);
        match timeout_at(until, Arc::clone(&self.slots).acquire_owned()).await {
            Ok(Ok(permit)) => Ok(Slot { _permit: permit }),
            Ok(Err(_)) | Err(_) => Err(self.turned_away("waited", ErrorKind::Unavailable, "none ended in time")),
        }
    }

    fn queue(&self) -> Result<Place<'_>, QueryError> {
        let most = self.most * WAITING_PER_SLOT;
        let place = Place(&self.waiting);
        if self.waiting.fetch_add(1, Ordering::SeqCst) >= most {
            let others = format!("{most} are waiting");
            return Err(self.turned_away("queue_full", ErrorKind::TooMany, &others));
        }
        Ok(place)
    }

    fn turned_away(&self, reason: &'static str, kind: ErrorKind, others: &str) -> QueryError {
        metrics::query_rejected(reason);
        QueryError::new(kind, format!("{} queries are running and {others}", self.most))
            .with_hint("try again in a moment, or raise `analysis.max_concurrent_queries`")
    }
}

/// A place in the queue, given up when dropped.
struct Place<'a>(&'a AtomicUsize);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_is_bounded_in_time_and_a_freed_slot_is_taken() {
        let admission = Admission::new(1);
        let first = admission.enter(soon()).await.unwrap();
        assert_eq!(admission.running(), 1);
        assert_eq!(admission.enter(soon()).await.unwrap_err().kind, ErrorKind::Unavailable);
        drop(first);
        admission.enter(soon()).await.unwrap();
        assert_eq!(admission.running(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_is_bounded_in_number() {
        let admission = Admission::new(1);
        let _first = admission.enter(soon()).await.unwrap();
        let waiting = futures::future::join_all((0..=WAITING_PER_SLOT).map(|_| admission.enter(soon())));
        let kinds: Vec<ErrorKind> = waiting.await.into_iter().map(|entered| entered.unwrap_err().kind).collect();
        assert_eq!(kinds.iter().filter(|kind| **kind == ErrorKind::TooMany).count(), 1);
        assert_eq!(kinds.iter().filter(|kind| **kind == ErrorKind::Unavailable).count(), WAITING_PER_SLOT);
        assert_eq!(admission.waiting.load(Ordering::SeqCst), 0);
    }
}
