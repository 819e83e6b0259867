//! Which rows are sent next: keys hot and cold, bad ones among them, batches as large as the rate wants.
//!
//! Pure. Invariant: the same settings and the same books give the same rows.

use std::time::Duration;

use super::{
    books::Books,
    content::{BAD_KEY, Numbers},
};

/// Sends a second that keep both the log and the ledger's disk from being the bottleneck.
const SENDS_PER_SECOND: f64 = 50.0;
/// Rows of one send at most: with payloads of 900 bytes still one message of ingestion.
const MAX_ROWS: u64 = 250;
/// Half of all rows go to one key in this many.
const HOT_SHARE: u64 = 16;

/// What is to be sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) keys: u64,
    pub(crate) bad_rate: f64,
    /// Rows a second; 0 for as many as there can be.
    pub(crate) rate: f64,
    /// Bytes of a payload at most: batches of large rows are short.
    pub(crate) max_bytes: u32,
}

/// Largest request, so that it stays one message and shows as a whole.
const MAX_REQUEST_BYTES: u64 = 256 << 10;
/// What a row has besides its payload.
const ROW_BYTES: u64 = 200;

impl Plan {
    /// Rows of one send: more of them while the sends are behind the rate.
    pub(crate) fn batch_rows(&self, behind: u64) -> u64 {
        let by_rate = if self.rate > 0.0 { (self.rate / SENDS_PER_SECOND).ceil() as u64 } else { MAX_ROWS };
        // A payload of control characters is up to twice as long in JSON.
        let by_bytes = MAX_REQUEST_BYTES / (ROW_BYTES + 2 * u64::from(self.max_bytes));
        by_rate.max(behind).min(by_bytes).clamp(1, MAX_ROWS)
    }

    /// How many rows should have been sent by now and were not.
    pub(crate) fn behind(&self, elapsed: Duration, sent: u64) -> u64 {
        ((elapsed.as_secs_f64() * self.rate) as u64).saturating_sub(sent)
    }

    /// The `count` rows of the next send, by key and sequence number.
    pub(crate) fn next(&self, books: &Books, count: u64) -> Vec<(i64, i64)> {
        let mut numbers = Numbers::of(self.seed, i64::MAX, books.next_batch().cast_signed());
        let mut rows: Vec<(i64, i64)> = Vec::new();
        let mut next = std::collections::BTreeMap::new();
        for _ in 0..count {
            let key = self.key(&mut numbers);
            let seq = next.entry(key).or_insert_with(|| books.next_seq(key));
            rows.push((key, *seq));
            *seq += 1;
        }
        rows
    }

    fn key(&self, numbers: &mut Numbers) -> i64 {
        const PARTS: u64 = 1 << 32;
        if (numbers.below(PARTS) as f64) < self.bad_rate * PARTS as f64 {
            return BAD_KEY;
        }
        let hot = self.keys.div_ceil(HOT_SHARE);
        let range = if numbers.below(2) == 0 { hot } else { self.keys };
        numbers.below(range.max(1)).cast_signed()
    }

    /// When so many rows may have been sent, after the start.
    pub(crate) fn due(&self, rows: u64) -> Duration {
        if self.rate > 0.0 { Duration::from_secs_f64(rows as f64 / self.rate) } else { Duration::ZERO }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::verify::ledger::{Entry, Intent, tests::begin};

    const PLAN: Plan = Plan { seed: 7, keys: 200, bad_rate: 0.01, rate: 5000.0, max_bytes: 900 };

    #[test]
    fn rows_go_on_per_key_and_hot_keys_get_half_of_them() {
        let mut books = Books::begin(begin());
        let (mut hot, mut bad, mut all) = (0, 0, 0);
        for batch in 0..300 {
            let rows = PLAN.next(&books, PLAN.batch_rows(0));
            assert_eq!(rows, PLAN.next(&books, PLAN.batch_rows(0)), "the same books, the same rows");
            hot += rows.iter().filter(|(key, _)| (0..13).contains(key)).count();
            bad += rows.iter().filter(|(key, _)| *key == BAD_KEY).count();
            all += rows.len();
            books.take(Entry::Intent(Intent { batch, at_ms: 0, batch_rows: 1, rows })).unwrap();
        }
        assert_eq!(all, 300 * 100);
        assert!((all * 45 / 100..all * 60 / 100).contains(&hot), "{hot} of {all}");
        assert!((all / 200..all / 50).contains(&bad), "{bad} of {all}");
        assert!(books.keys.len() > 150);
    }

    #[test]
    fn large_rows_go_in_short_batches() {
        assert_eq!(Plan { max_bytes: 900_000, ..PLAN }.batch_rows(99), 1);
        assert_eq!(Plan { rate: 0.0, max_bytes: 100, ..PLAN }.batch_rows(0), 250);
        assert_eq!(Plan { rate: 10.0, ..PLAN }.batch_rows(0), 1);
        assert_eq!(PLAN.due(10_000), Duration::from_secs(2));
    }

    #[test]
    fn sends_that_are_behind_the_rate_grow() {
        let slow = Plan { rate: 100.0, max_bytes: 100, ..PLAN };
        assert_eq!((slow.batch_rows(0), slow.batch_rows(40), slow.batch_rows(9999)), (2, 40, 250));
        assert_eq!(slow.behind(Duration::from_secs(2), 150), 50);
        assert_eq!(slow.behind(Duration::from_secs(1), 150), 0);
    }
}
