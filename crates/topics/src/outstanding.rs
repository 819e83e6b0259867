//! Which messages are queued and not yet settled, so that a flush knows what to wait for.
//!
//! Invariant: [`Outstanding::drained`] returns only when everything begun before it was called has
//! ended, and a failure is handed to exactly one flush.

use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};

use crate::{BytePermit, Receipt, TopicError};

/// The messages under way of one appender.
#[derive(Debug)]
pub(crate) struct Outstanding {
    state: Mutex<State>,
    /// The lowest ticket still under way; all below have ended.
    low: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    under_way: BTreeSet<u64>,
    failure: Option<TopicError>,
}

impl State {
    fn low(&self) -> u64 {
        self.under_way.first().copied().unwrap_or(self.next)
    }
}

impl Outstanding {
    pub(crate) fn new() -> Self {
        Self { state: Mutex::default(), low: watch::Sender::new(0) }
    }

    fn begin(&self) -> u64 {
        let mut state = self.state.lock();
        let ticket = state.next;
        state.next += 1;
        state.under_way.insert(ticket);
        ticket
    }

    fn end(&self, ticket: u64, outcome: Result<(), &TopicError>) {
        let mut state = self.state.lock();
        state.under_way.remove(&ticket);
        if let (Err(error), None) = (outcome, &state.failure) {
            state.failure = Some(error.clone());
        }
        let low = state.low();
        drop(state);
        self.low.send_if_modified(|known| low > std::mem::replace(known, low.max(*known)));
    }

    /// Waits for everything begun so far; yields the first failure since the last call.
    pub(crate) async fn drained(&self) -> Result<(), TopicError> {
        let until = self.state.lock().next;
        let mut low = self.low.subscribe();
        // The sender lives in `self`, so the only way out is the condition.
        drop(low.wait_for(|low| *low >= until).await);
        match self.state.lock().failure.take() {
            None => Ok(()),
            Some(error) => Err(error),
        }
    }
}

/// One message under way: holds its bytes, its receipt, and its place in the order of flushes.
///
/// Dropping it without settling it counts as [`TopicError::Closed`], so that nobody waits for ever.
#[derive(Debug)]
pub(crate) struct Pending {
    outstanding: Arc<Outstanding>,
    ticket: u64,
    reply: Option<oneshot::Sender<Result<u64, TopicError>>>,
    _permit: BytePermit,
}

impl Pending {
    /// Notes a message that is about to be queued.
    pub(crate) fn begin(outstanding: &Arc<Outstanding>, permit: BytePermit) -> (Self, Receipt) {
        let (reply, receipt) = Receipt::pair();
        let pending = Self {
            outstanding: Arc::clone(outstanding),
            ticket: outstanding.begin(),
            reply: Some(reply),
            _permit: permit,
        };
        (pending, receipt)
    }

    /// Ends it with an offset that is durable, or with the reason why it may not be.
    pub(crate) fn settle(mut self, outcome: Result<u64, TopicError>) {
        self.end(outcome);
    }

    fn end(&mut self, outcome: Result<u64, TopicError>) {
        let Some(reply) = self.reply.take() else {
            return;
        };
        self.outstanding.end(self.ticket, outcome.as_ref().map(|_| ()));
        // Nobody has to be waiting for the receipt.
        drop(reply.send(outcome));
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.end(Err(TopicError::Closed));
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_flush_waits_for_what_came_before_and_not_for_what_comes_after() {
        let outstanding = Outstanding::new();
        let first = outstanding.begin();
        let second = outstanding.begin();
        let mut flush = Box::pin(outstanding.drained());
        assert!(flush.as_mut().now_or_never().is_none());
        let third = outstanding.begin();
        outstanding.end(second, Ok(()));
        assert!(flush.as_mut().now_or_never().is_none());
        outstanding.end(first, Ok(()));
        assert!(flush.as_mut().now_or_never().is_some());
        assert_eq!(outstanding.state.lock().under_way.len(), 1);
        outstanding.end(third, Ok(()));
    }

    #[tokio::test]
    async fn a_failure_is_reported_by_one_flush() {
        let outstanding = Outstanding::new();
        let ticket = outstanding.begin();
        outstanding.end(ticket, Err(&TopicError::Closed));
        assert!(outstanding.drained().await.is_err());
        assert!(outstanding.drained().await.is_ok());
    }

    #[tokio::test]
    async fn a_flush_of_nothing_returns_at_once() {
        assert!(Outstanding::new().drained().now_or_never().is_some());
    }
}
