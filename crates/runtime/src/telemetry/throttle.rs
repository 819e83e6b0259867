//! At most one log line of a kind in a while, for anything a bad producer or a lost broker can trigger.
//!
//! Invariant: a suppressed line is counted, and the next line of its kind tells how many there were.
//! Deliberately absent: the lines after the last one shown. Totals are the business of metrics, which count all.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Kinds are meant to be a closed set; what comes after this many shares one place, so memory stays bounded.
const MOST_KINDS: usize = 256;
const OTHER_KINDS: &str = "other kinds";

/// Says which lines may be written.
///
/// ```
/// # use runtime::telemetry::throttle::Throttle;
/// # let (throttle, now_ms) = (Throttle::default(), 0);
/// if let Some(suppressed) = throttle.permit("bad row", now_ms) {
///     tracing::warn!(suppressed, "a row was rejected");
/// }
/// ```
#[derive(Debug)]
pub struct Throttle {
    interval_ms: i64,
    kinds: Mutex<BTreeMap<String, Kind>>,
}

#[derive(Debug)]
struct Kind {
    shown_ms: i64,
    suppressed: u64,
}

impl Throttle {
    pub fn new(interval: Duration) -> Throttle {
        Throttle { interval_ms: i64::try_from(interval.as_millis()).unwrap_or(i64::MAX), kinds: Mutex::default() }
    }

    /// Whether a line of this kind may be written now; if so, how many were suppressed since the last.
    pub fn permit(&self, kind: &str, now_ms: i64) -> Option<u64> {
        // Counters are whole after every statement, so a panic elsewhere does not spoil them.
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        let kind = if kinds.contains_key(kind) || kinds.len() < MOST_KINDS { kind } else { OTHER_KINDS };
        let Some(known) = kinds.get_mut(kind) else {
            kinds.insert(kind.to_owned(), Kind { shown_ms: now_ms, suppressed: 0 });
            return Some(0);
        };
        known.permit(now_ms, self.interval_ms)
    }
}

impl Default for Throttle {
    /// One line a second.
    fn default() -> Throttle {
        Throttle::new(Duration::from_secs(1))
    }
}

impl Kind {
    fn permit(&mut self, now_ms: i64, interval_ms: i64) -> Option<u64> {
        let since_ms = now_ms.saturating_sub(self.shown_ms);
        // A clock that was set back must not silence a kind until it has caught up.
        if (0..interval_ms).contains(&since_ms) {
            self.suppressed += 1;
            return None;
        }
        self.shown_ms = now_ms;
        Some(std::mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_second_and_the_next_tells_what_was_suppressed() {
        let throttle = Throttle::default();
        assert_eq!(throttle.permit("bad row", 10_000), Some(0));
        assert_eq!(throttle.permit("bad row", 10_001), None);
        assert_eq!(throttle.permit("bad row", 10_999), None);
        assert_eq!(throttle.permit("bad row", 11_000), Some(2));
        assert_eq!(throttle.permit("bad row", 11_001), None);
        assert_eq!(throttle.permit("bad row", 20_000), Some(1));
        assert_eq!(throttle.permit("bad row", 30_000), Some(0));
    }

    #[test]
    fn kinds_do_not_silence_each_other() {
        let throttle = Throttle::default();
        assert_eq!(throttle.permit("bad row", 0), Some(0));
        assert_eq!(throttle.permit("lost broker", 0), Some(0));
        assert_eq!(throttle.permit("bad row", 1), None);
    }

    #[test]
    fn a_clock_set_back_does_not_silence() {
        let throttle = Throttle::default();
        assert_eq!(throttle.permit("bad row", 1_000_000), Some(0));
        assert_eq!(throttle.permit("bad row", 5), Some(0));
        assert_eq!(throttle.permit("bad row", 6), None);
    }

    #[test]
    fn endless_kinds_share_one_place() {
        let throttle = Throttle::default();
        for kind in 0..MOST_KINDS + 100 {
            throttle.permit(&kind.to_string(), 0);
        }
        let kinds = throttle.kinds.lock().expect("no panic");
        assert_eq!(kinds.len(), MOST_KINDS + 1);
        assert_eq!(kinds[OTHER_KINDS].suppressed, 99);
    }
}
