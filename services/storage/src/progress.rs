//! How far a table has a channel: next offsets, ends per writer, and the writers' claims, as Delta `txn` versions.
//!
//! Pure. The invariant: [`Progress::advances`] names exactly what moved since the last commit, each with the version
//! the table must still have.

use std::collections::{BTreeMap, BTreeSet};

use delivery::{Ends, Gap, Origin, Position, Safeguard, Totals, Verdict, Writer};
use lake::{Advance, app_id};

/// A position or count that does not fit a Delta `txn` version.
#[derive(Debug, thiserror::Error)]
#[error("position {position} of writer `{writer}` does not fit a table's progress")]
pub(crate) struct TooFar {
    writer: Writer,
    position: Position,
}

/// A message that does not bring what its writer says: the channel behind it is not the one that was written.
#[derive(Debug, thiserror::Error)]
#[error(
    "writer `{writer}` says it emitted {emitted} rows up to {end}, the table has {has}: a message of the channel \
     was lost or replaced after it was acknowledged; drop and recreate the pipeline to build its tables again"
)]
pub(crate) struct Unaccounted {
    writer: Writer,
    end: Position,
    emitted: u64,
    has: u64,
}

/// The progress of some partitions of one channel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    partitions: BTreeMap<u32, PartitionProgress>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct PartitionProgress {
    next_offset: u64,
    ends: Ends,
    /// What each writer says it has done up to its end.
    totals: BTreeMap<Writer, Totals>,
}

impl Progress {
    /// The progress a table's `txn` versions record.
    pub(crate) fn read(channel: &str, partitions: &BTreeSet<u32>, txns: &BTreeMap<String, i64>) -> Self {
        let mut progress = Self::default();
        for &partition in partitions {
            progress.partitions.insert(partition, PartitionProgress::read(channel, partition, txns));
        }
        progress
    }

    /// Where to read a partition on.
    pub(crate) fn next_offset(&self, partition: u32) -> u64 {
        self.partitions.get(&partition).map_or(0, |progress| progress.next_offset)
    }

    /// Compares the rows a table has of a writer, with those of a message of data just accepted, with what the writer
    /// says in it. A message that ends elsewhere than the writer's end says nothing about what the table has.
    pub(crate) fn audit(&self, partition: u32, origin: &Origin, has: u64, says: Totals) -> Result<(), Unaccounted> {
        let end = || self.partitions.get(&partition).map(|progress| progress.ends.get(&origin.writer));
        if has == says.emitted || end() != Some(origin.to) || Safeguard::Audit.is_off() {
            return Ok(());
        }
        Err(Unaccounted { writer: origin.writer.clone(), end: origin.to, emitted: says.emitted, has })
    }

    /// What a writer says it has done up to its end.
    pub(crate) fn totals(&self, partition: u32, writer: &Writer) -> Totals {
        let progress = self.partitions.get(&partition);
        progress.and_then(|progress| progress.totals.get(writer)).copied().unwrap_or_default()
    }

    /// Judges a message by the one rule and moves on behind it.
    pub(crate) fn accept(
        &mut self,
        partition: u32,
        offset: u64,
        origin: &Origin,
        totals: Totals,
    ) -> Result<Verdict, Gap> {
        let progress = self.partitions.entry(partition).or_default();
        let verdict = progress.ends.accept(origin)?;
        if let Verdict::Take { .. } = verdict {
            let known = progress.totals.entry(origin.writer.clone()).or_default();
            *known = totals.after(*known);
        }
        progress.next_offset = offset + 1;
        Ok(verdict)
    }

    /// What a commit must say to get from `before` to here.
    pub(crate) fn advances(&self, channel: &str, before: &Self) -> Result<Vec<Advance>, TooFar> {
        let (after, before) = (self.versions(channel)?, before.versions(channel)?);
        let from = |app_id: &String| before.get(app_id).copied().unwrap_or(0);
        let moved = after.into_iter().filter(|(app_id, to)| from(app_id) != *to);
        Ok(moved.map(|(app_id, to)| Advance { from: from(&app_id), app_id, to }).collect())
    }

    fn versions(&self, channel: &str) -> Result<BTreeMap<String, i64>, TooFar> {
        let mut versions = BTreeMap::new();
        for (&partition, progress) in &self.partitions {
            progress.write(channel, partition, &mut versions)?;
        }
        Ok(versions)
    }
}

impl PartitionProgress {
    fn read(channel: &str, partition: u32, txns: &BTreeMap<String, i64>) -> Self {
        let count = |app_id: &str| txns.get(app_id).and_then(|&version| u64::try_from(version).ok());
        let mut progress =
            Self { next_offset: count(&app_id::next_offset(channel, partition)).unwrap_or(0), ..Self::default() };
        for (writer, packed) in app_id::ends(txns, channel, partition) {
            progress.totals.insert(writer.clone(), app_id::totals(txns, channel, partition, &writer));
            progress.ends.set(writer, Position::unpack(packed).unwrap_or(Position::START));
        }
        progress
    }

    fn write(&self, channel: &str, partition: u32, versions: &mut BTreeMap<String, i64>) -> Result<(), TooFar> {
        let too_far = |writer: &Writer, position| TooFar { writer: writer.clone(), position };
        let offset = Position::at(self.next_offset);
        let next = i64::try_from(self.next_offset).map_err(|_| too_far(&Writer::new(channel), offset))?;
        versions.insert(app_id::next_offset(channel, partition), next);
        for (writer, &end) in self.ends.iter() {
            let packed = end.pack().ok_or_else(|| too_far(writer, end))?;
            versions.insert(app_id::end(channel, partition, writer), packed);
            let totals = self.totals.get(writer).copied().unwrap_or_default();
            for (name, count) in app_id::named_totals(channel, partition, writer, &totals) {
                versions.insert(name, i64::try_from(count).map_err(|_| too_far(writer, end))?);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_message_that_brings_other_rows_than_its_writer_says_is_refused() {
        let origin = |from, to| Origin::new(Writer::new("w/0"), Position::at(from), Position::at(to)).unwrap();
        let says = |emitted| Totals { read: emitted, emitted, ..Totals::default() };
        let mut progress = Progress::default();
        for (from, to, rows) in [(0, 2, 2), (2, 2, 0), (0, 2, 0), (1, 5, 3)] {
            let has = progress.totals(4, &Writer::new("w/0")).emitted + rows;
            progress.accept(4, to, &origin(from, to), says(to)).unwrap();
            progress.audit(4, &origin(from, to), has, says(to)).unwrap();
        }
        progress.audit(4, &origin(0, 3), 5, says(3)).expect("what ends before the end says nothing");
        let other = progress.audit(4, &origin(1, 5), 5, says(4)).unwrap_err();
        assert!(other.to_string().contains("says it emitted 4 rows up to 5, the table has 5"), "{other}");
    }

    #[test]
    fn a_writer_that_cuts_its_stretches_elsewhere_never_takes_a_count_back() {
        let origin = |from, to| Origin::new(Writer::new("w/0"), Position::at(from), Position::at(to)).unwrap();
        let says = |emitted, rejected, filtered| Totals {
            read: emitted + rejected + filtered,
            emitted,
            rejected,
            filtered,
            late: 0,
        };
        let mut progress = Progress::default();
        progress.accept(4, 1, &origin(0, 20), says(15, 3, 2)).unwrap();
        let before = progress.clone();
        // The next life has made one stretch of all and cut it at 30: what it rejected and left out, it says at the end.
        progress.accept(4, 2, &origin(0, 30), says(22, 0, 0)).unwrap();
        assert_eq!(progress.totals(4, &Writer::new("w/0")), says(22, 3, 2));
        progress.advances("c", &before).unwrap().iter().for_each(|advance| assert!(advance.to > advance.from));
        progress.accept(4, 3, &origin(30, 40), says(30, 5, 5)).unwrap();
        assert_eq!(progress.totals(4, &Writer::new("w/0")), says(30, 5, 5));
    }

    #[test]
    fn what_a_commit_says_is_what_a_restart_reads() {
        let origin = |from, to| Origin::new(Writer::new("w/0"), Position::at(from), Position::inside(to, 3)).unwrap();
        let totals = Totals { read: 9, emitted: 7, rejected: 2, ..Totals::default() };
        let before = Progress::read("c", &BTreeSet::from([4]), &BTreeMap::new());
        let mut after = before.clone();
        after.accept(4, 11, &origin(0, 5), totals).unwrap();
        let advances = after.advances("c", &before).unwrap();
        assert!(advances.iter().all(|advance| advance.from == 0), "{advances:?}");
        let txns: BTreeMap<String, i64> = advances.into_iter().map(|advance| (advance.app_id, advance.to)).collect();
        assert_eq!(Progress::read("c", &BTreeSet::from([4]), &txns), after);
        assert_eq!(after.next_offset(4), 12);
        assert!(after.advances("c", &after.clone()).unwrap().is_empty(), "what has not moved is not said");
    }
}
