//! What was sent against what came out.
//!
//! Invariant looked for: every row that was acknowledged is stored or rejected, exactly once and unchanged; a row whose
//! acknowledgement never came may be missing, but not doubled; and nothing is stored that was never sent.
//! Absent on purpose: order. Readers that promise one check it themselves.

use std::collections::BTreeMap;
use std::fmt;

/// How many examples of each fault are kept for the report.
const EXAMPLES: usize = 10;

/// The books of one test: one entry per row, by a key the test chose, unique among all rows sent.
#[derive(Debug, Default)]
pub struct Ledger {
    rows: BTreeMap<u64, Entry>,
}

#[derive(Debug, Default)]
struct Entry {
    /// What the row said when it was sent; none if it never was.
    sent: Option<u64>,
    acknowledged: bool,
    stored: u32,
    altered: u32,
    rejected: u32,
}

impl Ledger {
    /// An empty ledger.
    pub fn new() -> Ledger {
        Ledger::default()
    }

    /// Books a row that is about to be sent; `content` is any number that stands for what it says.
    pub fn sent(&mut self, key: u64, content: u64) {
        self.rows.entry(key).or_default().sent = Some(content);
    }

    /// Books that the row was acknowledged: from now on it must not be lost.
    pub fn acknowledged(&mut self, key: u64) {
        self.rows.entry(key).or_default().acknowledged = true;
    }

    /// Books a row found in the output.
    pub fn stored(&mut self, key: u64, content: u64) {
        let entry = self.rows.entry(key).or_default();
        entry.stored += 1;
        if entry.sent.is_some_and(|sent| sent != content) {
            entry.altered += 1;
        }
    }

    /// Books a row found among the rejected ones.
    pub fn rejected(&mut self, key: u64) {
        self.rows.entry(key).or_default().rejected += 1;
    }

    /// Compares both sides.
    ///
    /// **Errors**: all faults at once, each with its number of rows and a few keys.
    pub fn settle(&self) -> Result<Balance, Box<Discrepancy>> {
        let mut balance = Balance::default();
        let mut found = Discrepancy::default();
        for (&key, entry) in &self.rows {
            balance.add(entry);
            found.add(key, entry);
        }
        if found.is_empty() { Ok(balance) } else { Err(Box::new(found)) }
    }
}

/// The sums of a ledger without faults.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Balance {
    /// Rows sent, acknowledged or not.
    pub sent: u64,
    /// Rows found in the output.
    pub stored: u64,
    /// Rows found among the rejected ones.
    pub rejected: u64,
    /// Rows sent, never acknowledged, and not found: the sender was told nothing, so nothing is lost.
    pub unsettled: u64,
}

impl Balance {
    fn add(&mut self, entry: &Entry) {
        self.sent += u64::from(entry.sent.is_some());
        self.stored += u64::from(entry.stored);
        self.rejected += u64::from(entry.rejected);
        self.unsettled += u64::from(entry.stored + entry.rejected == 0);
    }
}

/// Everything that is wrong between the two sides.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Discrepancy {
    /// Acknowledged and nowhere to be found.
    pub lost: Keys,
    /// Found more than once.
    pub doubled: Keys,
    /// Found with other content than sent.
    pub altered: Keys,
    /// Found and never sent.
    pub invented: Keys,
}

impl Discrepancy {
    fn add(&mut self, key: u64, entry: &Entry) {
        let found = entry.stored + entry.rejected;
        self.lost.add_if(found == 0 && entry.acknowledged, key);
        self.doubled.add_if(found > 1, key);
        self.altered.add_if(entry.altered > 0, key);
        self.invented.add_if(found > 0 && entry.sent.is_none(), key);
    }

    fn is_empty(&self) -> bool {
        [&self.lost, &self.doubled, &self.altered, &self.invented].iter().all(|keys| keys.count == 0)
    }
}

impl fmt::Display for Discrepancy {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let faults = [
            ("lost", &self.lost),
            ("doubled", &self.doubled),
            ("altered", &self.altered),
            ("invented", &self.invented),
        ];
        let texts = faults.iter().filter(|(_, keys)| keys.count > 0).map(|(name, keys)| format!("{name}: {keys}"));
        write!(formatter, "the ledger does not balance: {}", texts.collect::<Vec<_>>().join("; "))
    }
}

impl std::error::Error for Discrepancy {}

/// A number of rows, and the first few of them.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Keys {
    /// How many rows.
    pub count: u64,
    /// The keys of the first of them.
    pub examples: Vec<u64>,
}

impl Keys {
    fn add_if(&mut self, faulty: bool, key: u64) {
        if !faulty {
            return;
        }
        self.count += 1;
        if self.examples.len() < EXAMPLES {
            self.examples.push(key);
        }
    }
}

impl fmt::Display for Keys {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} rows, among them {:?}", self.count, self.examples)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger_of(rows: u64) -> Ledger {
        let mut ledger = Ledger::new();
        for key in 0..rows {
            ledger.sent(key, key * 10);
            ledger.acknowledged(key);
        }
        ledger
    }

    #[test]
    fn every_row_stored_or_rejected_once_balances() {
        let mut ledger = ledger_of(3);
        ledger.stored(0, 0);
        ledger.rejected(1);
        ledger.stored(2, 20);
        let balance = ledger.settle().expect("nothing is wrong");
        assert_eq!(balance, Balance { sent: 3, stored: 2, rejected: 1, unsettled: 0 });
    }

    #[test]
    fn an_acknowledged_row_that_is_nowhere_is_lost() {
        let mut ledger = ledger_of(2);
        ledger.stored(1, 10);
        let found = ledger.settle().expect_err("row 0 is lost");
        assert_eq!(found.lost, Keys { count: 1, examples: vec![0] });
        assert_eq!(found.to_string(), "the ledger does not balance: lost: 1 rows, among them [0]");
    }

    #[test]
    fn a_row_without_acknowledgement_may_be_missing_but_not_doubled() {
        let mut ledger = Ledger::new();
        ledger.sent(0, 0);
        ledger.sent(1, 1);
        assert_eq!(ledger.settle().expect("nothing was promised").unsettled, 2);
        ledger.stored(1, 1);
        ledger.stored(1, 1);
        assert_eq!(ledger.settle().expect_err("row 1 is doubled").doubled.examples, [1]);
    }

    #[test]
    fn a_row_both_stored_and_rejected_is_doubled() {
        let mut ledger = ledger_of(1);
        ledger.stored(0, 0);
        ledger.rejected(0);
        assert_eq!(ledger.settle().expect_err("row 0 is in two places").doubled.count, 1);
    }

    #[test]
    fn altered_and_invented_rows_are_told_apart() {
        let mut ledger = ledger_of(1);
        ledger.stored(0, 1);
        ledger.stored(9, 9);
        let found = ledger.settle().expect_err("two faults");
        assert_eq!((found.altered.examples, found.invented.examples), (vec![0], vec![9]));
    }
}
