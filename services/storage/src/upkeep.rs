//! Checkpoints of a table's log: beside its commits, one at a time, for a small part of the time.
//!
//! Writing one reads the log from the checkpoint before and lists every file of the table, so it takes longer the
//! larger the table is, while they fall due by the number of commits. The invariant: at most a twentieth of the time
//! goes into them. One that is not begun is not lost: the table asks for it again, or for a newer one.

use std::time::Duration;

use futures::{FutureExt as _, future::BoxFuture};
use lake::Table;
use tokio::time::Instant;

/// How long nothing is written after a checkpoint, in times of what it took.
const REST: u32 = 19;

/// The checkpoints of one table.
#[derive(Default)]
pub(crate) struct Upkeep {
    /// Being written, on a thread of its own. Yields what it took.
    running: Option<BoxFuture<'static, Duration>>,
    rests_until: Option<Instant>,
}

impl Upkeep {
    /// Begins the checkpoint that is due, unless one is being written or the last was just now.
    pub(crate) fn begin(&mut self, table: &mut Table) {
        if !self.is_free(Instant::now()) {
            return;
        }
        if let Some(job) = table.checkpoint_due() {
            self.running = Some(async move { job.run().await.took }.boxed());
        }
    }

    /// Ends when the checkpoint that is being written is done, and never where none is. Cancel safe.
    pub(crate) async fn done(&mut self) {
        let Some(running) = &mut self.running else { return std::future::pending().await };
        let took = running.await;
        self.running = None;
        self.rests_until = Some(Instant::now() + took * REST);
    }

    fn is_free(&self, now: Instant) -> bool {
        self.running.is_none() && self.rests_until.is_none_or(|until| until <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_twentieth_of_the_time_at_most_goes_into_checkpoints() {
        let (mut upkeep, begun) = (Upkeep::default(), Instant::now());
        assert!(upkeep.is_free(begun));
        upkeep.running = Some(std::future::ready(Duration::from_secs(2)).boxed());
        assert!(!upkeep.is_free(begun), "one at a time");
        upkeep.done().now_or_never().expect("it is done");
        assert!(!upkeep.is_free(begun + Duration::from_secs(37)));
        assert!(upkeep.is_free(Instant::now() + Duration::from_secs(38)));
        assert!(upkeep.done().now_or_never().is_none(), "none is being written");
    }
}
