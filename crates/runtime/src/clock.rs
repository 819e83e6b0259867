//! Wall time and waiting, as a parameter.
//!
//! Invariant: code that takes a [`Clock`] behaves the same for the same clock readings; tests move [`ManualClock`] by hand.
//! Deliberately absent: event time. Watermarks come from the log and never ask what time it is.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::future::BoxFuture;
use tokio::sync::watch;

/// Where a process takes the time from.
///
/// Laws: `now_ms` never waits; a returned future owns all it needs, is cancel safe and completes once its time has come.
pub trait Clock: Send + Sync + 'static {
    /// Milliseconds since 1970-01-01 UTC. May jump where the machine's clock is set.
    fn now_ms(&self) -> i64;

    /// Waits that long. Not moved by the machine's clock being set.
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()>;

    /// Waits until `now_ms` is at least `at_ms`; at once where it already is.
    fn sleep_until(&self, at_ms: i64) -> BoxFuture<'static, ()> {
        match u64::try_from(at_ms.saturating_sub(self.now_ms())) {
            Ok(ahead) if ahead > 0 => self.sleep(Duration::from_millis(ahead)),
            _ => Box::pin(std::future::ready(())),
        }
    }
}

/// The machine's clock and tokio's timer.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now_ms(&self) -> i64 {
        match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => saturating_ms(since),
            Err(before) => -saturating_ms(before.duration()),
        }
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration))
    }
}

/// A clock that moves only when told to. Clones share the time.
#[derive(Clone, Debug)]
pub struct ManualClock {
    now_ms: Arc<watch::Sender<i64>>,
    sleepers: Arc<watch::Sender<usize>>,
}

impl ManualClock {
    pub fn at(now_ms: i64) -> ManualClock {
        ManualClock { now_ms: Arc::new(watch::Sender::new(now_ms)), sleepers: Arc::new(watch::Sender::new(0)) }
    }

    /// Moves the time on and wakes everybody whose time has come. Units: whole milliseconds, a part of one is dropped.
    pub fn advance(&self, by: Duration) {
        self.now_ms.send_modify(|now| *now = now.saturating_add(saturating_ms(by)));
    }

    /// Sets the time, also backwards, as an operator may do to a machine.
    pub fn set(&self, now_ms: i64) {
        self.now_ms.send_replace(now_ms);
    }

    /// How many futures are waiting for the time to move.
    pub fn sleepers(&self) -> usize {
        *self.sleepers.borrow()
    }

    /// Waits until at least `count` futures are asleep, so a test advances only once the code under test waits.
    pub async fn wait_for_sleepers(&self, count: usize) {
        self.sleepers.subscribe().wait_for(|sleepers| *sleepers >= count).await.expect("the clock owns the sender");
    }
}

impl Default for ManualClock {
    fn default() -> ManualClock {
        ManualClock::at(0)
    }
}

impl Clock for ManualClock {
    fn now_ms(&self) -> i64 {
        *self.now_ms.borrow()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        self.sleep_until(self.now_ms().saturating_add(saturating_ms(duration)))
    }

    fn sleep_until(&self, at_ms: i64) -> BoxFuture<'static, ()> {
        let clock = self.clone();
        Box::pin(async move {
            let mut times = clock.now_ms.subscribe();
            if *times.borrow_and_update() >= at_ms {
                return;
            }
            let _asleep = Asleep::count_in(&clock.sleepers);
            times.wait_for(|now| *now >= at_ms).await.expect("the clock owns the sender");
        })
    }
}

/// Counts one sleeper for as long as it lives, so a cancelled sleep is no sleeper.
struct Asleep {
    sleepers: Arc<watch::Sender<usize>>,
}

impl Asleep {
    fn count_in(sleepers: &Arc<watch::Sender<usize>>) -> Asleep {
        sleepers.send_modify(|count| *count += 1);
        Asleep { sleepers: Arc::clone(sleepers) }
    }
}

impl Drop for Asleep {
    fn drop(&mut self) {
        self.sleepers.send_modify(|count| *count -= 1);
    }
}

fn saturating_ms(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test]
    async fn advancing_wakes_exactly_those_whose_time_has_come() {
        let clock = ManualClock::at(1_000);
        let mut early = clock.sleep(SECOND);
        let mut late = clock.sleep_until(3_000);
        assert!((&mut early).now_or_never().is_none());
        assert!((&mut late).now_or_never().is_none());
        assert_eq!(clock.sleepers(), 2);
        clock.advance(SECOND - Duration::from_millis(1));
        assert!((&mut early).now_or_never().is_none());
        clock.advance(Duration::from_millis(1));
        assert_eq!(clock.now_ms(), 2_000);
        assert!(early.now_or_never().is_some());
        assert!((&mut late).now_or_never().is_none());
        assert_eq!(clock.sleepers(), 1);
        clock.advance(SECOND);
        assert!(late.now_or_never().is_some());
        assert_eq!(clock.sleepers(), 0);
    }

    #[tokio::test]
    async fn a_sleep_until_the_past_is_over_at_once() {
        let clock = ManualClock::at(5);
        assert!(clock.sleep_until(5).now_or_never().is_some());
        assert!(clock.sleep(Duration::ZERO).now_or_never().is_some());
        assert!(SystemClock.sleep_until(0).now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_cancelled_sleep_is_no_sleeper() {
        let clock = ManualClock::default();
        let mut sleep = clock.sleep(SECOND);
        assert!((&mut sleep).now_or_never().is_none());
        drop(sleep);
        assert_eq!(clock.sleepers(), 0);
    }

    #[tokio::test]
    async fn a_test_can_wait_until_the_code_under_test_sleeps() {
        let clock = ManualClock::default();
        tokio::join!(clock.sleep(SECOND), async {
            clock.wait_for_sleepers(1).await;
            clock.advance(SECOND);
        });
        assert_eq!(clock.now_ms(), 1_000);
    }

    #[tokio::test(start_paused = true)]
    async fn the_system_clock_sleeps_on_tokios_timer() {
        let before = tokio::time::Instant::now();
        SystemClock.sleep(SECOND).await;
        assert_eq!(before.elapsed(), SECOND);
        assert!(SystemClock.now_ms() > 1_600_000_000_000);
    }
}
