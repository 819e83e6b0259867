//! The memory of a process: one budget for runs of messages from read to written, and for request bodies beside them.
//!
//! Memory is accounted for before it is used. Nobody waits for memory while holding some: a request waits before its
//! first byte and takes more later only if there is some, a task writes the run it holds before it waits for another.
//! So nobody waits in a circle. Bodies may take three quarters at most: slow clients never stop the tasks, whose memory
//! comes back as fast as the log takes rows.
//!
//! Deliberately absent: what a log reads ahead of each partition (`log.fetch_bytes_per_partition`), which a task that
//! waits may have been handed already. There is room for a dozen; how many there will be, nobody knows at the start.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use topics::Message;

use crate::{config::LogConfig, units::ByteSize};

/// The budget is counted in these.
const UNIT_BYTES: usize = 1 << 10;
/// What a message takes beside its payload.
const MESSAGE_BYTES: usize = 256;
/// What a process takes that has nothing to do (50 to 75 MiB were seen), and what it reads ahead of a dozen partitions.
const PROGRAM_BYTES: usize = 96 << 20;

/// The budget. Cheap to clone; clones share it.
#[derive(Clone, Debug)]
pub struct Memory {
    all: Arc<Semaphore>,
    bodies: Arc<Semaphore>,
    units: usize,
    body_units: usize,
}

impl Memory {
    /// A budget of `bytes`.
    pub fn new(bytes: usize) -> Self {
        let units = (bytes / UNIT_BYTES).clamp(4, Semaphore::MAX_PERMITS.min(u32::MAX as usize));
        let body_units = units - units / 4;
        let semaphore = |units| Arc::new(Semaphore::new(units));
        Self { all: semaphore(units), bodies: semaphore(body_units), units, body_units }
    }

    /// What is left of the `whole` that a process may take, beside what it may have in flight to the `log` and the
    /// program itself; half of it at least.
    pub fn of_process(whole: ByteSize, log: &LogConfig) -> Self {
        let whole = whole.as_usize();
        Self::new(whole.saturating_sub(PROGRAM_BYTES + log.max_inflight_bytes.as_usize()).max(whole / 2))
    }

    /// Bytes taken at this moment.
    pub fn taken_bytes(&self) -> usize {
        (self.units - self.all.available_permits()) * UNIT_BYTES
    }

    /// The most that one request can ever have, in bytes.
    pub fn max_body_bytes(&self) -> usize {
        self.body_units * UNIT_BYTES
    }

    /// What bodies leave to runs, in units.
    fn quarter(&self) -> usize {
        (self.units / 4).max(1)
    }

    /// Waits for room for a body.
    ///
    /// **Cancel safety**: a dropped call has taken nothing.
    pub async fn body(&self, bytes: usize) -> BodyShare {
        let units = permits(bytes.div_ceil(UNIT_BYTES).clamp(1, self.body_units));
        // In this order: who waits for the second has room among bodies, and only tasks, which go on, stand before it.
        let among_bodies = Arc::clone(&self.bodies).acquire_many_owned(units).await.ok();
        let of_all = Arc::clone(&self.all).acquire_many_owned(units).await.ok();
        BodyShare { memory: self.clone(), units: units as usize, among_bodies, of_all }
    }

    /// Nothing yet, to grow. A run takes about `factor` times its payload while it is decoded and written.
    pub fn run(&self, factor: usize) -> RunShare {
        RunShare { memory: self.clone(), factor, units: 0, taken: None }
    }
}

fn permits(units: usize) -> u32 {
    u32::try_from(units).unwrap_or(u32::MAX)
}

/// Adds `more` to what is held, if there is any left.
fn try_add(held: &mut Option<OwnedSemaphorePermit>, room: &Arc<Semaphore>, more: usize) -> bool {
    let Ok(taken) = Arc::clone(room).try_acquire_many_owned(permits(more)) else { return false };
    match held {
        Some(held) => held.merge(taken),
        None => *held = Some(taken),
    }
    true
}

/// Memory held by one request, given back when dropped.
pub struct BodyShare {
    memory: Memory,
    units: usize,
    among_bodies: Option<OwnedSemaphorePermit>,
    of_all: Option<OwnedSemaphorePermit>,
}

impl BodyShare {
    /// The most that it can ever have.
    pub fn max_bytes(&self) -> usize {
        self.memory.max_body_bytes()
    }

    /// Whether there was room to have `bytes` in all. Never waits.
    pub fn try_grow_to(&mut self, bytes: usize) -> bool {
        let wanted = bytes.div_ceil(UNIT_BYTES);
        let Some(missing) = wanted.checked_sub(self.units).filter(|&missing| missing > 0) else { return true };
        let Ok(among_bodies) = Arc::clone(&self.memory.bodies).try_acquire_many_owned(permits(missing)) else {
            return false;
        };
        if !try_add(&mut self.of_all, &self.memory.all, missing) {
            return false;
        }
        match &mut self.among_bodies {
            Some(held) => held.merge(among_bodies),
            None => self.among_bodies = Some(among_bodies),
        }
        self.units = wanted;
        true
    }
}

/// Memory held by one run of messages, given back when dropped.
pub struct RunShare {
    memory: Memory,
    factor: usize,
    units: usize,
    taken: Option<OwnedSemaphorePermit>,
}

impl RunShare {
    /// The most payload that is counted in full: what is more in one run still gets through, and takes more than was
    /// accounted for.
    pub fn most_payload_bytes(&self) -> usize {
        self.memory.quarter() * UNIT_BYTES / self.factor
    }

    /// Whether there was room for these messages too. Never waits.
    ///
    /// A run that alone is larger than the tasks' quarter counts as that much: it must get through.
    pub fn try_grow(&mut self, messages: &[Message]) -> bool {
        let more = self.units_of(messages);
        let added = more == 0 || try_add(&mut self.taken, &self.memory.all, more);
        self.units += if added { more } else { 0 };
        added
    }

    /// Gives everything back, then waits for room for these messages.
    pub async fn start_anew(&mut self, messages: &[Message]) {
        (self.taken, self.units) = (None, 0);
        let wanted = self.units_of(messages);
        self.taken = Arc::clone(&self.memory.all).acquire_many_owned(permits(wanted)).await.ok();
        self.units = wanted;
    }

    /// Gives everything back.
    pub fn release(&mut self) {
        (self.taken, self.units) = (None, 0);
    }

    fn units_of(&self, messages: &[Message]) -> usize {
        let bytes: usize = messages.iter().map(|message| self.factor * message.payload.len() + MESSAGE_BYTES).sum();
        bytes.div_ceil(UNIT_BYTES).min(self.memory.quarter().saturating_sub(self.units))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures::FutureExt as _;

    use super::*;

    fn messages(bytes: usize) -> Vec<Message> {
        let payload = Bytes::from(vec![b'x'; bytes]);
        vec![Message { offset: 0, timestamp_ms: 0, key: None, payload, headers: Vec::new() }]
    }

    #[tokio::test]
    async fn bodies_and_runs_share_one_budget() {
        let memory = Memory::new(1 << 20);
        let body = memory.body(512 << 10).await;
        let mut run = memory.run(4);
        assert!(run.try_grow(&messages(63 << 10)));
        assert_eq!(memory.taken_bytes(), (512 << 10) + (253 << 10));
        let mut other = memory.run(4);
        assert!(other.try_grow(&messages(60 << 10)));
        assert!(!memory.run(4).try_grow(&messages(60 << 10)), "the budget is used up");
        let (mut third, large) = (memory.run(4), messages(60 << 10));
        let mut waiting = Box::pin(third.start_anew(&large));
        assert!(waiting.as_mut().now_or_never().is_none());
        drop(body);
        waiting.await;
        drop((run, other, third));
        assert_eq!(memory.taken_bytes(), 0);
    }

    #[tokio::test]
    async fn bodies_that_never_end_leave_a_quarter_to_the_tasks() {
        let memory = Memory::new(1 << 20);
        let mut slow = memory.body(usize::MAX).await;
        assert_eq!(memory.taken_bytes(), memory.max_body_bytes());
        assert!(!slow.try_grow_to(1 << 20));
        assert!(memory.body(1).now_or_never().is_none(), "other bodies wait");
        let mut run = memory.run(4);
        run.start_anew(&messages(1 << 20)).now_or_never().expect("a run does not wait for bodies");
        assert!(run.try_grow(&messages(1 << 20)), "what the quarter cannot hold must get through all the same");
        run.release();
        assert!(memory.body(1).now_or_never().is_none());
        drop(slow);
        assert!(memory.body(1).now_or_never().is_some());
    }

    #[tokio::test]
    async fn four_runs_of_the_most_payload_take_the_whole_budget_and_no_more() {
        let memory = Memory::new(64 << 20);
        let most = memory.run(16).most_payload_bytes();
        assert_eq!(most, 1 << 20);
        let mut runs: Vec<RunShare> = (0..4).map(|_| memory.run(16)).collect();
        assert!(runs.iter_mut().all(|run| run.try_grow(&messages(most))));
        assert_eq!(memory.taken_bytes(), 64 << 20);
        assert!(!memory.run(16).try_grow(&messages(1)));
    }

    #[tokio::test]
    async fn a_body_that_cannot_grow_keeps_what_it_has_and_nothing_leaks() {
        let memory = Memory::new(1 << 20);
        let mut one = memory.body(300 << 10).await;
        let two = memory.body(300 << 10).await;
        assert!(!one.try_grow_to(700 << 10));
        assert_eq!(memory.taken_bytes(), 600 << 10);
        drop(two);
        assert!(one.try_grow_to(700 << 10));
        drop(one);
        assert_eq!(memory.taken_bytes(), 0);
        assert_eq!(memory.bodies.available_permits(), memory.body_units);
    }
}
