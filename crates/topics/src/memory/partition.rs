//! One partition of a log in memory: what is in it, and what each appender has on its way to it.
//!
//! Invariant: of what one appender puts into the partition, what is there is a prefix, up to the moment at which every
//! failure has been seen. Deliberately absent: topics, limits and waiting readers.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use tokio::sync::Notify;

use super::fault::Fault;
use crate::outstanding::Pending;
use crate::{Message, NewMessage, Span, TopicError};

pub(super) struct Partition {
    pub(super) start: u64,
    pub(super) messages: VecDeque<Message>,
    pub(super) growth: Arc<Growth>,
    /// By the number of the appender.
    lanes: BTreeMap<u64, Lane>,
}

/// How far a partition goes, for readers that wait. Not a `watch` channel: that one wakes its waiters in an order of
/// its own, and a run must be able to come again.
#[derive(Debug, Default)]
pub(super) struct Growth {
    end: AtomicU64,
    gone: AtomicBool,
    told: Notify,
}

impl Growth {
    /// Waits until the partition goes beyond `offset`; false when it is gone. Cancel safe.
    pub(super) async fn beyond(&self, offset: u64) -> bool {
        loop {
            let told = self.told.notified();
            if self.gone.load(Ordering::Acquire) {
                return false;
            }
            if self.end.load(Ordering::Acquire) > offset {
                return true;
            }
            told.await;
        }
    }
}

impl Drop for Partition {
    fn drop(&mut self) {
        self.growth.gone.store(true, Ordering::Release);
        self.growth.told.notify_waiters();
    }
}

/// What one appender has on its way to one partition.
#[derive(Default)]
struct Lane {
    held: VecDeque<Queued>,
    /// Failures nobody has seen yet: each lives as long as its receipt is neither asked nor dropped.
    unseen: Vec<Weak<()>>,
}

/// A message that was taken and waits to take effect.
pub(super) struct Queued {
    pub(super) message: NewMessage,
    pub(super) fault: Fault,
    pub(super) pending: Pending,
    /// Lives until the receipt was asked or dropped.
    pub(super) unseen: Weak<()>,
}

impl Lane {
    fn is_broken(&mut self) -> bool {
        self.unseen.retain(|unseen| unseen.strong_count() > 0);
        !self.unseen.is_empty()
    }
}

impl Partition {
    pub(super) fn new() -> Self {
        Self { start: 0, messages: VecDeque::new(), growth: Arc::default(), lanes: BTreeMap::new() }
    }

    pub(super) fn span(&self) -> Span {
        Span { start: self.start, end: self.start + self.messages.len() as u64 }
    }

    /// Whether an append of this appender failed, and somebody has not seen it.
    pub(super) fn is_broken_for(&mut self, appender: u64) -> bool {
        self.lanes.get_mut(&appender).is_some_and(Lane::is_broken)
    }

    /// Lets a message take effect, or holds it behind those that wait.
    pub(super) fn take(&mut self, appender: u64, queued: Queued, now_ms: i64, failed: &TopicError) {
        let lane = self.lanes.entry(appender).or_default();
        if queued.fault.waits() || !lane.held.is_empty() {
            lane.held.push_back(queued);
        } else {
            self.take_effect(appender, queued, now_ms, failed);
        }
    }

    /// Lets everything that waits take effect, each appender's messages in order, up to the first failure.
    pub(super) fn release(&mut self, now_ms: i64, failed: &TopicError) -> usize {
        let mut released = 0;
        let appenders: Vec<u64> = self.lanes.keys().copied().collect();
        for appender in appenders {
            let held = self.lanes.get_mut(&appender).map(|lane| std::mem::take(&mut lane.held)).unwrap_or_default();
            released += held.len();
            let mut behind_a_failure = false;
            for queued in held {
                // Also where the failure has been seen by now: these were queued behind it.
                let fault = if behind_a_failure { Fault::FailBefore } else { queued.fault.after_the_wait() };
                behind_a_failure |= matches!(fault, Fault::FailBefore | Fault::FailAfter);
                self.take_effect(appender, Queued { fault, ..queued }, now_ms, failed);
            }
        }
        released
    }

    fn take_effect(&mut self, appender: u64, queued: Queued, now_ms: i64, failed: &TopicError) {
        let Queued { message, fault, pending, unseen } = queued;
        let outcome = match fault {
            Fault::None | Fault::Delay => Ok(self.push(message, now_ms)),
            Fault::FailBefore | Fault::DelayThenFail => Err(failed.clone()),
            Fault::FailAfter => {
                self.push(message, now_ms);
                Err(failed.clone())
            }
            Fault::Duplicate => {
                let first = self.push(message.clone(), now_ms);
                self.push(message, now_ms);
                Ok(first)
            }
            Fault::Lose => Ok(self.span().end),
        };
        if outcome.is_err() {
            self.lanes.entry(appender).or_default().unseen.push(unseen);
        }
        self.growth.end.store(self.span().end, Ordering::Release);
        self.growth.told.notify_waiters();
        pending.settle(outcome);
    }

    fn push(&mut self, message: NewMessage, now_ms: i64) -> u64 {
        let offset = self.span().end;
        self.messages.push_back(Message {
            offset,
            timestamp_ms: message.timestamp_ms.unwrap_or(now_ms),
            key: message.key,
            payload: message.payload,
            headers: message.headers,
        });
        offset
    }

    pub(super) fn read(&self, from: u64, max_bytes: usize) -> Vec<Message> {
        let skip = usize::try_from(from - self.start).unwrap_or(usize::MAX);
        let mut budget = max_bytes;
        let mut batch = Vec::new();
        for message in self.messages.iter().skip(skip) {
            let bytes = message.payload.len();
            if !batch.is_empty() && bytes > budget {
                break;
            }
            budget = budget.saturating_sub(bytes);
            batch.push(message.clone());
        }
        batch
    }
}
