//! A bound in bytes on what is queued and not yet durable.
//!
//! Invariant: permits are taken *before* a message is queued and given back after it is durable, so
//! any queue behind them is bounded in bytes, however many messages that is.
//! Deliberately absent: dropping. Over the limit the caller waits.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What one queued message costs beyond its content: queue entries, receipts, index entries.
pub(crate) const MESSAGE_OVERHEAD_BYTES: usize = 256;

/// A limit in bytes, first come first served.
///
/// A request larger than the whole limit is taken as the whole limit: it waits until it is alone.
#[derive(Clone, Debug)]
pub struct ByteLimit {
    free: Arc<Semaphore>,
    limit: u32,
}

/// Bytes taken from a [`ByteLimit`]; dropping it gives them back.
#[derive(Debug)]
pub struct BytePermit {
    _taken: Option<OwnedSemaphorePermit>,
}

impl ByteLimit {
    /// A limit of at least one byte, and at most 4 GiB.
    pub fn new(limit_bytes: usize) -> Self {
        let limit = u32::try_from(limit_bytes).unwrap_or(u32::MAX).max(1);
        Self { free: Arc::new(Semaphore::new(limit as usize)), limit }
    }

    /// The limit in bytes.
    pub fn limit_bytes(&self) -> usize {
        self.limit as usize
    }

    /// Bytes taken at this moment.
    pub fn taken_bytes(&self) -> usize {
        self.limit_bytes().saturating_sub(self.free.available_permits())
    }

    /// Waits until `bytes` fit, in the order of the calls.
    ///
    /// **Cancel safety**: a call that is dropped gives up its place and has taken nothing.
    pub async fn take(&self, bytes: usize) -> BytePermit {
        let wanted = u32::try_from(bytes).unwrap_or(u32::MAX).min(self.limit);
        let taken = Arc::clone(&self.free).acquire_many_owned(wanted).await;
        // The semaphore is never closed, so there is always a permit.
        BytePermit { _taken: taken.ok() }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_full_limit_makes_the_next_one_wait() {
        let limit = ByteLimit::new(100);
        let first = limit.take(60).await;
        assert!(limit.take(41).now_or_never().is_none());
        assert_eq!(limit.taken_bytes(), 60);
        drop(first);
        assert!(limit.take(41).now_or_never().is_some());
        assert_eq!(limit.taken_bytes(), 0);
    }

    #[tokio::test]
    async fn a_message_larger_than_the_whole_limit_goes_through_alone() {
        let limit = ByteLimit::new(100);
        let small = limit.take(1).await;
        let mut large = Box::pin(limit.take(usize::MAX));
        assert!(large.as_mut().now_or_never().is_none());
        drop(small);
        let alone = large.await;
        assert!(limit.take(1).now_or_never().is_none());
        drop(alone);
        assert!(limit.take(1).now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_small_message_does_not_overtake_a_large_one_that_waits() {
        let limit = ByteLimit::new(100);
        let first = limit.take(90).await;
        let mut large = Box::pin(limit.take(100));
        assert!(large.as_mut().now_or_never().is_none());
        assert!(limit.take(5).now_or_never().is_none());
        drop(first);
        drop(large.await);
    }
}
