//! What a ledger amounts to: every row that was about to be sent, what it says, and what became of it.
//!
//! Invariant: a key's rows stand at the index of their sequence number; an entry that does not go on where the last
//! one ended is refused, so a ledger with a hole is never judged. 24 bytes a row.
//! Deliberately absent: the file (`ledger`), and comparing (`judge`).

use std::collections::BTreeMap;

use anyhow::{bail, ensure};

use super::{
    content::{self, BAD_KEY, Row, Sender, Settings},
    ledger::{Begin, Entry, Fate, Intent, Place},
};

/// A producer's rows.
#[derive(Clone, Debug)]
pub(crate) struct Books {
    pub(crate) sender: Sender,
    /// The newest session.
    pub(crate) begin: Begin,
    pub(crate) batches: Vec<Batch>,
    pub(crate) keys: BTreeMap<i64, Vec<Sent>>,
    /// Rows of the last intent, until their fate is written.
    open: Vec<(i64, i64)>,
}

/// What the rows of one send have in common.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Batch {
    pub(crate) at_ms: i64,
    pub(crate) batch_rows: u32,
    settings: Settings,
}

/// One row that was about to be sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    pub(crate) batch: u32,
    pub(crate) crc: u32,
    partition: u32,
    offset: u64,
    state: State,
    /// Bits of what was found of it; the judge's.
    pub(crate) found: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    AckedAt,
    Acked,
    Unknown,
    Failed,
}

impl Sent {
    /// Where it stands: as acknowledged, until the judge has found it and says so.
    pub(crate) fn place(&self) -> Place {
        Place { partition: self.partition, offset: self.offset }
    }

    pub(crate) fn is_acked(&self) -> bool {
        matches!(self.state, State::AckedAt | State::Acked)
    }

    pub(crate) fn is_unknown(&self) -> bool {
        self.state == State::Unknown
    }

    pub(crate) fn is_failed(&self) -> bool {
        self.state == State::Failed
    }

    /// The place its acknowledgement named.
    pub(crate) fn acked_place(&self) -> Option<Place> {
        (self.state == State::AckedAt).then(|| self.place())
    }

    /// Remembers where it was found.
    pub(crate) fn found_at(&mut self, place: Place) {
        (self.partition, self.offset) = (place.partition, place.offset);
        if self.state == State::AckedAt {
            self.state = State::Acked;
        }
    }

    fn set(&mut self, fate: Fate) {
        self.state = match fate {
            Fate::Acked(Some(place)) => {
                (self.partition, self.offset) = (place.partition, place.offset);
                State::AckedAt
            }
            Fate::Acked(None) => State::Acked,
            Fate::Unknown => State::Unknown,
            Fate::Failed => State::Failed,
        };
    }
}

impl Books {
    /// Books with nothing in them but their first session.
    pub(crate) fn begin(begin: Begin) -> Self {
        let (batches, keys, open) = (Vec::new(), BTreeMap::new(), Vec::new());
        Self { sender: begin.sender(), begin, batches, keys, open }
    }

    /// Books an entry that follows those before.
    pub(crate) fn take(&mut self, entry: Entry) -> anyhow::Result<()> {
        match entry {
            Entry::Begin(begin) => {
                ensure!(begin.sender() == self.sender, "the session is of another run or producer");
                self.begin = begin;
            }
            Entry::Intent(intent) => self.intend(intent)?,
            Entry::Fates { batch, fates } => self.settle(batch, &fates)?,
        }
        Ok(())
    }

    fn intend(&mut self, intent: Intent) -> anyhow::Result<()> {
        let batch = u32::try_from(self.batches.len())?;
        ensure!(u64::from(batch) == intent.batch, "expected batch {batch}, found {}", intent.batch);
        let settings = self.begin.settings;
        self.batches.push(Batch { at_ms: intent.at_ms, batch_rows: intent.batch_rows, settings });
        for &(key, seq) in &intent.rows {
            let crc = self.crc(key, seq, batch);
            let rows = self.keys.entry(key).or_default();
            if i64::try_from(rows.len()).ok() != Some(seq) {
                bail!("expected sequence number {} of key {key}, found {seq}", rows.len());
            }
            rows.push(Sent { batch, crc, partition: 0, offset: 0, state: State::Unknown, found: 0 });
        }
        self.open = intent.rows;
        Ok(())
    }

    fn settle(&mut self, batch: u64, fates: &[Fate]) -> anyhow::Result<()> {
        ensure!(batch + 1 == self.batches.len() as u64, "the fate of batch {batch} does not follow its intent");
        let rows = std::mem::take(&mut self.open);
        ensure!(fates.len() == rows.len() || fates.len() == 1, "expected {} fates, found {}", rows.len(), fates.len());
        for (index, (key, seq)) in rows.into_iter().enumerate() {
            let fate = fates.get(index).or(fates.first()).copied().unwrap_or(Fate::Unknown);
            if let Some(sent) = self.get_mut(key, seq) {
                sent.set(fate);
            }
        }
        Ok(())
    }

    fn crc(&self, key: i64, seq: i64, batch: u32) -> u32 {
        if key == BAD_KEY {
            return crc32fast::hash(content::bad_row(&self.sender, seq).as_bytes());
        }
        self.with_row(key, seq, batch, |row| row.crc())
    }

    /// The row as it was sent.
    pub(crate) fn with_row<T>(&self, key: i64, seq: i64, batch: u32, look: impl FnOnce(&Row<'_>) -> T) -> T {
        let of = self.batches[batch as usize];
        look(&Row {
            run: &self.sender.run,
            producer: &self.sender.producer,
            key,
            seq,
            batch: i64::from(batch),
            batch_rows: i64::from(of.batch_rows),
            sent_at: of.at_ms * 1000,
            payload: &content::payload(of.settings, key, seq),
        })
    }

    pub(crate) fn get_mut(&mut self, key: i64, seq: i64) -> Option<&mut Sent> {
        self.keys.get_mut(&key)?.get_mut(usize::try_from(seq).ok()?)
    }

    /// The number the next send of this producer has.
    pub(crate) fn next_batch(&self) -> u64 {
        self.batches.len() as u64
    }

    /// The sequence number the next row of a key has.
    pub(crate) fn next_seq(&self, key: i64) -> i64 {
        self.keys.get(&key).map_or(0, |rows| i64::try_from(rows.len()).unwrap_or(i64::MAX))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::verify::ledger::tests::begin;

    fn intent(batch: u64, rows: &[(i64, i64)]) -> Entry {
        Entry::Intent(Intent { batch, at_ms: 1, batch_rows: 1, rows: rows.to_vec() })
    }

    #[test]
    fn a_row_without_a_fate_is_unknown() {
        let mut books = Books::begin(begin());
        books.take(intent(0, &[(1, 0), (2, 0)])).unwrap();
        assert!(books.get_mut(1, 0).unwrap().is_unknown());
        books.take(Entry::Fates { batch: 0, fates: vec![Fate::Acked(None), Fate::Failed] }).unwrap();
        books.take(intent(1, &[(1, 1)])).unwrap();
        assert!(books.get_mut(1, 0).unwrap().is_acked() && books.get_mut(2, 0).unwrap().is_failed());
        assert!(books.get_mut(1, 1).unwrap().is_unknown());
        assert_eq!((books.next_batch(), books.next_seq(1), books.next_seq(9)), (2, 2, 0));
    }

    #[test]
    fn a_hole_in_the_ledger_is_refused() {
        let mut books = Books::begin(begin());
        assert!(books.take(intent(1, &[])).is_err(), "batch 0 is missing");
        books.take(intent(0, &[(1, 0)])).unwrap();
        assert!(books.take(intent(1, &[(1, 2)])).is_err(), "row 1 of key 1 is missing");
        assert!(books.take(Entry::Fates { batch: 0, fates: vec![Fate::Failed] }).is_err(), "that fate comes too late");
    }

    #[test]
    fn a_later_session_may_have_other_settings_but_not_another_name() {
        let mut books = Books::begin(begin());
        let mut other = begin();
        other.settings.seed = 8;
        books.take(Entry::Begin(other.clone())).unwrap();
        assert_eq!(books.begin.settings.seed, 8);
        other.producer = "q".into();
        assert!(books.take(Entry::Begin(other)).is_err());
    }
}
