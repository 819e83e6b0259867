//! How long to wait before trying again, and an error that says whether trying again makes sense.
//!
//! Invariant: a wait never exceeds its maximum and never is below half of its step, so retries neither pile up nor spin.
//! Deliberately absent: the loop. One layer retries, and that layer knows what to log, count and give up on.

use std::cell::RefCell;
use std::fmt;
use std::time::Duration;

use delivery::ErrorClass;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

thread_local! {
    static SEEDS: RefCell<Option<StdRng>> = const { RefCell::new(None) };
}

/// From now on, back-offs begun on this thread are made from `seed`: for simulations, which run whole services on one
/// thread and must be able to run again. A parameter would have to pass through every task of every service.
pub fn seed_this_thread(seed: u64) {
    SEEDS.set(Some(StdRng::seed_from_u64(seed)));
}

/// Waits that double from `first` up to `max`, each drawn from the upper half of its step.
///
/// The jitter keeps tasks that failed together from trying again together.
#[derive(Debug)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    step: Duration,
    attempts: u32,
    random: StdRng,
}

impl Backoff {
    /// Seeded from the operating system, or from [`seed_this_thread`]. Tests use [`Backoff::seeded`].
    pub fn new(first: Duration, max: Duration) -> Backoff {
        let random = SEEDS.with_borrow_mut(|seeds| seeds.as_mut().map(StdRng::from_rng));
        Backoff::with_random(first, max, random.unwrap_or_else(StdRng::from_os_rng))
    }

    /// The same seed gives the same waits.
    pub fn seeded(first: Duration, max: Duration, seed: u64) -> Backoff {
        Backoff::with_random(first, max, StdRng::seed_from_u64(seed))
    }

    fn with_random(first: Duration, max: Duration, random: StdRng) -> Backoff {
        let first = first.min(max);
        Backoff { first, max, step: first, attempts: 0, random }
    }

    /// How long to wait now.
    #[expect(
        clippy::should_implement_trait,
        reason = "waits never run out, so an iterator's Option would only be unwrapped"
    )]
    pub fn next(&mut self) -> Duration {
        let wait = self.step.mul_f64(0.5 + self.random.random::<f64>() / 2.0).min(self.max);
        self.step = self.step.saturating_mul(2).min(self.max);
        self.attempts = self.attempts.saturating_add(1);
        wait
    }

    /// It worked: the next failure waits `first` again.
    pub fn reset(&mut self) {
        self.step = self.first;
        self.attempts = 0;
    }

    /// Waits handed out since the start or the last reset.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }
}

/// Any error, with the answer to what the caller should do about it.
///
/// Display prints the whole chain of causes once, and `source()` is empty, so nobody prints it twice.
#[derive(Debug)]
pub struct TaskError {
    class: ErrorClass,
    source: anyhow::Error,
}

impl TaskError {
    pub fn new(class: ErrorClass, source: impl Into<anyhow::Error>) -> TaskError {
        TaskError { class, source: source.into() }
    }

    /// It may work next time.
    pub fn retry(source: impl Into<anyhow::Error>) -> TaskError {
        TaskError::new(ErrorClass::Retry, source)
    }

    /// This message is at fault; dead-letter it and go on.
    pub fn reject(source: impl Into<anyhow::Error>) -> TaskError {
        TaskError::new(ErrorClass::Reject, source)
    }

    /// It never works without a human.
    pub fn stop(source: impl Into<anyhow::Error>) -> TaskError {
        TaskError::new(ErrorClass::Stop, source)
    }

    pub fn class(&self) -> ErrorClass {
        self.class
    }

    /// The same error with what was being done in front of it.
    #[must_use]
    pub fn context(self, doing: impl fmt::Display + Send + Sync + 'static) -> TaskError {
        TaskError { class: self.class, source: self.source.context(doing) }
    }

    /// What was wrapped, for telling kinds of errors apart.
    pub fn inner(&self) -> &anyhow::Error {
        &self.source
    }
}

impl fmt::Display for TaskError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&crate::exit::report(self.source.as_ref()))
    }
}

impl From<topics::TopicError> for TaskError {
    /// A topic that is not there may come (back): the task waits for it, and then looks whether it is the same.
    fn from(error: topics::TopicError) -> Self {
        use topics::TopicError::{UnknownPartition, UnknownTopic};
        match error {
            UnknownTopic { .. } | UnknownPartition { .. } => Self::retry(error),
            other => Self::new(other.class(), other),
        }
    }
}

impl From<lake::LakeError> for TaskError {
    fn from(error: lake::LakeError) -> Self {
        Self::new(error.class(), error)
    }
}

impl std::error::Error for TaskError {}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use anyhow::anyhow;

    use super::*;

    const FIRST: Duration = Duration::from_millis(100);
    const MAX: Duration = Duration::from_secs(5);

    #[test]
    fn waits_double_with_jitter_and_stay_under_the_maximum() {
        for seed in 0..200 {
            let mut backoff = Backoff::seeded(FIRST, MAX, seed);
            let mut step = FIRST;
            for _ in 0..20 {
                let wait = backoff.next();
                assert!(wait >= step / 2 && wait <= step, "seed {seed}: {wait:?} of {step:?}");
                step = (step * 2).min(MAX);
            }
            assert_eq!(backoff.attempts(), 20);
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_waits_and_another_seed_others() {
        let waits = |seed| -> Vec<Duration> {
            let mut backoff = Backoff::seeded(FIRST, MAX, seed);
            (0..8).map(|_| backoff.next()).collect()
        };
        assert_eq!(waits(7), waits(7));
        assert_ne!(waits(7), waits(8));
    }

    #[test]
    fn back_offs_of_a_seeded_thread_come_again() {
        let waits = |seed| {
            seed_this_thread(seed);
            let (mut one, mut other) = (Backoff::new(FIRST, MAX), Backoff::new(FIRST, MAX));
            (one.next(), other.next())
        };
        assert_eq!(waits(7), waits(7));
        assert_ne!(waits(7), waits(8));
        let (one, other) = waits(7);
        assert_ne!(one, other, "tasks that failed together do not meet again");
    }

    #[test]
    fn success_starts_the_waits_over() {
        let mut backoff = Backoff::seeded(FIRST, MAX, 1);
        for _ in 0..10 {
            backoff.next();
        }
        backoff.reset();
        assert_eq!(backoff.attempts(), 0);
        assert!(backoff.next() <= FIRST);
    }

    #[test]
    fn a_first_wait_above_the_maximum_is_cut_and_huge_maxima_do_not_overflow() {
        assert!(Backoff::seeded(MAX, FIRST, 1).next() <= FIRST);
        let mut backoff = Backoff::seeded(Duration::MAX / 2, Duration::MAX / 2, 1);
        for _ in 0..4 {
            backoff.next();
        }
    }

    #[test]
    fn a_task_waits_for_a_topic_that_is_not_made_yet() {
        let topic = topics::TopicName::new("tailwater.rejected.a").expect("valid");
        assert_eq!(TaskError::from(topics::TopicError::UnknownTopic { topic }).class(), ErrorClass::Retry);
        assert_eq!(TaskError::from(topics::TopicError::Closed).class(), ErrorClass::Stop);
    }

    #[test]
    fn a_task_error_prints_its_chain_once_and_keeps_its_class() {
        let error = TaskError::reject(anyhow!("bad digit").context("column `amount`")).context("message orders/3@7");
        assert_eq!(error.class(), ErrorClass::Reject);
        assert_eq!(error.to_string(), "message orders/3@7: column `amount`: bad digit");
        assert!(error.source().is_none());
        let outer = anyhow::Error::new(error).context("task `ingest`");
        assert_eq!(format!("{outer:#}"), "task `ingest`: message orders/3@7: column `amount`: bad digit");
    }
}
