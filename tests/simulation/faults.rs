//! Which faults a run has, how often, and the dice that decide each.
//!
//! Every class of fault is on or off for a whole run, so that runs differ in kind and not only in luck; all draws come
//! from one seed. Deliberately absent: faults of lifecycle, which stand in `schedule`.

use std::{
    hash::Hasher as _,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use testkit::Random;
use topics::memory::{Attempt, Fault};

use crate::trace::{Fingerprint, Trace};

/// How often each fault happens, in a thousand requests.
#[derive(Clone, Debug, Default)]
pub(crate) struct Chances {
    pub(crate) append_before: u64,
    pub(crate) append_after: u64,
    pub(crate) append_twice: u64,
    pub(crate) append_late: u64,
    pub(crate) append_late_and_fail: u64,
    pub(crate) log_fails: u64,
    pub(crate) log_pauses: u64,
    pub(crate) put_before: u64,
    pub(crate) put_after: u64,
    pub(crate) put_taken: u64,
    pub(crate) put_own: u64,
    pub(crate) store_fails: u64,
    pub(crate) delete_after: u64,
    pub(crate) store_pauses: u64,
    /// The longest pause.
    pub(crate) pause_ms: u64,
}

impl Chances {
    pub(crate) fn draw(random: &mut Random) -> Self {
        let mut rate = |most: u64| if random.chance(45) { 1 + random.below(most) } else { 0 };
        Self {
            append_before: rate(40),
            append_after: rate(40),
            append_twice: rate(60),
            append_late: rate(60),
            append_late_and_fail: rate(40),
            log_fails: rate(20),
            log_pauses: rate(200),
            put_before: rate(80),
            put_after: rate(120),
            put_taken: rate(60),
            put_own: rate(60),
            store_fails: rate(30),
            delete_after: rate(100),
            store_pauses: rate(300),
            pause_ms: 1 + random.below(400),
        }
    }
}

/// What happens to one put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PutFault {
    None,
    /// Nothing is written, an error is returned.
    Before,
    /// It is written, and the answer is lost.
    After,
    /// Nothing is written, "already exists" is returned.
    Taken,
    /// It is written, and a repetition inside the client finds its own object.
    Own,
}

/// The dice of one run. Clones share them.
#[derive(Clone)]
pub(crate) struct Faults {
    chances: Arc<Chances>,
    seed: u64,
    random: Arc<Mutex<Random>>,
    on: Arc<AtomicBool>,
    /// Acknowledged channel messages that are yet to be lost.
    to_lose: Arc<AtomicU64>,
    trace: Trace,
}

impl Faults {
    pub(crate) fn new(chances: Chances, mut random: Random, trace: Trace) -> Self {
        Self {
            chances: Arc::new(chances),
            seed: random.bits(),
            random: Arc::new(Mutex::new(random)),
            on: Arc::new(AtomicBool::new(true)),
            to_lose: Arc::default(),
            trace,
        }
    }

    /// The same faults with dice of their own, so that one process's luck does not hang on what others do.
    pub(crate) fn of_process(&self, name: &str) -> Self {
        let mut print = Fingerprint::default();
        print.write(name.as_bytes());
        let random = Random::new(self.seed ^ print.finish());
        Self { random: Arc::new(Mutex::new(random)), ..self.clone() }
    }

    /// From now on every request succeeds at once.
    pub(crate) fn stop(&self) {
        self.on.store(false, Ordering::SeqCst);
    }

    pub(crate) fn are_on(&self) -> bool {
        self.on.load(Ordering::SeqCst)
    }

    /// The log will break its promise this often: something acknowledged is not there.
    pub(crate) fn lose(&self, messages: u64) {
        self.to_lose.store(messages, Ordering::SeqCst);
    }

    pub(crate) fn below(&self, bound: u64) -> u64 {
        self.random.lock().below(bound)
    }

    pub(crate) fn milliseconds(&self, most: u64) -> Duration {
        Duration::from_millis(self.below(most + 1))
    }

    fn happens(&self, per_thousand: u64) -> bool {
        self.are_on() && per_thousand > 0 && self.below(1000) < per_thousand
    }

    /// The fate of an append. What users send is never doubled: whoever sends twice means two.
    pub(crate) fn append(&self, attempt: &Attempt<'_>) -> Fault {
        if attempt.topic.as_str() == pipeline::CATALOG_TOPIC || !self.are_on() {
            return Fault::None;
        }
        let channel = attempt.topic.as_str().starts_with("tailwater.");
        let chances = &self.chances;
        let faults = [
            (chances.append_before, Fault::FailBefore),
            (chances.append_after, Fault::FailAfter),
            (chances.append_late, Fault::Delay),
            (chances.append_late_and_fail, Fault::DelayThenFail),
            (if channel { chances.append_twice } else { 0 }, Fault::Duplicate),
        ];
        let mut roll = self.below(1000);
        let mut fate = Fault::None;
        for (chance, fault) in faults {
            if roll < chance {
                fate = fault;
                break;
            }
            roll -= chance;
        }
        if channel && fate == Fault::None && self.to_lose.load(Ordering::SeqCst) > 0 && self.below(100) < 10 {
            self.to_lose.fetch_sub(1, Ordering::SeqCst);
            fate = Fault::Lose;
        }
        if fate != Fault::None {
            self.trace.note(format!("append {} to {}/{}: {fate:?}", attempt.number, attempt.topic, attempt.partition));
        }
        fate
    }

    /// Whether a request to the log that changes nothing fails.
    pub(crate) fn log_fails(&self) -> bool {
        self.happens(self.chances.log_fails)
    }

    /// Whether a request to the store that changes nothing fails, or a delete before its effect.
    pub(crate) fn store_fails(&self) -> bool {
        self.happens(self.chances.store_fails)
    }

    pub(crate) fn delete_reply_is_lost(&self) -> bool {
        self.happens(self.chances.delete_after)
    }

    pub(crate) fn put(&self) -> PutFault {
        let chances = &self.chances;
        let faults = [
            (chances.put_before, PutFault::Before),
            (chances.put_after, PutFault::After),
            (chances.put_taken, PutFault::Taken),
            (chances.put_own, PutFault::Own),
        ];
        if !self.are_on() {
            return PutFault::None;
        }
        let mut roll = self.below(1000);
        for (chance, fault) in faults {
            if roll < chance {
                return fault;
            }
            roll -= chance;
        }
        PutFault::None
    }

    pub(crate) async fn log_pause(&self) {
        self.pause(self.chances.log_pauses).await;
    }

    pub(crate) async fn store_pause(&self) {
        self.pause(self.chances.store_pauses).await;
    }

    async fn pause(&self, per_thousand: u64) {
        if self.happens(per_thousand) {
            let pause = self.milliseconds(self.chances.pause_ms);
            tokio::time::sleep(pause).await;
        }
    }
}
