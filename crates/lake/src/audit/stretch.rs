//! Which input each commit covers, by its positions: rows of its files must lie in there.

use std::collections::{BTreeMap, HashMap};

use delivery::Position;

use super::Holds;

/// From and to, over all writers of a partition.
type Hull = (Position, Position);

/// Per version and channel partition, the stretch its commit covers.
#[derive(Debug, Default)]
pub(super) struct Stretches(HashMap<u64, BTreeMap<u32, Hull>>);

const END: &str = "tailwater/end/";

/// The sum of what all writers say they have done.
pub(super) fn counted(holds: Holds, txns: &BTreeMap<String, i64>) -> i128 {
    let prefix = match holds {
        Holds::Emitted => "tailwater/emitted/",
        Holds::Rejected => "tailwater/rejected/",
    };
    with_prefix(txns, prefix).map(|(_, count)| i128::from(count)).sum()
}

fn with_prefix<'a>(txns: &'a BTreeMap<String, i64>, prefix: &'a str) -> impl Iterator<Item = (&'a str, i64)> {
    txns.range(prefix.to_owned()..).map_while(move |(app_id, version)| Some((app_id.strip_prefix(prefix)?, *version)))
}

impl Stretches {
    /// Remembers how far a commit moved the ends.
    pub(super) fn note(&mut self, version: u64, before: &BTreeMap<String, i64>, after: &BTreeMap<String, i64>) {
        let mut hulls: BTreeMap<u32, Hull> = BTreeMap::new();
        for (name, to) in with_prefix(after, END) {
            let from = before.get(&format!("{END}{name}")).copied().unwrap_or(0);
            // channel/partition/writer; channels have no slash in their names.
            let partition = name.split('/').nth(1).and_then(|partition| partition.parse().ok());
            let (Some(partition), Some(from), Some(to)) = (partition, Position::unpack(from), Position::unpack(to))
            else {
                continue;
            };
            if from == to {
                continue;
            }
            let hull = hulls.entry(partition).or_insert((from, to));
            *hull = (hull.0.min(from), hull.1.max(to));
        }
        self.0.insert(version, hulls);
    }

    /// Whether a row of a commit may stand at an offset; `None` where the commit is not ours.
    pub(super) fn covers(&self, version: u64, partition: i64, offset: i64) -> Option<bool> {
        let hulls = self.0.get(&version)?;
        let hull = u32::try_from(partition).ok().and_then(|partition| hulls.get(&partition));
        let (Some((from, to)), Ok(offset)) = (hull, u64::try_from(offset)) else { return Some(false) };
        Some(offset >= from.offset && (offset < to.offset || offset == to.offset && to.row > 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(offset: u64, row: u32) -> BTreeMap<String, i64> {
        let end = Position::inside(offset, row).pack().unwrap_or_default();
        [("tailwater/end/c/3/w.x/3".to_owned(), end), ("tailwater/emitted/c/3/w.x/3".to_owned(), 9)].into()
    }

    #[test]
    fn a_commit_covers_what_its_ends_moved_over() {
        let mut stretches = Stretches::default();
        stretches.note(7, &ends(10, 0), &ends(20, 0));
        stretches.note(8, &ends(20, 0), &ends(20, 4));
        let covers = |version, offset| stretches.covers(version, 3, offset);
        assert_eq!([covers(7, 9), covers(7, 10), covers(7, 19), covers(7, 20)], [false, true, true, false].map(Some));
        assert_eq!([covers(8, 20), covers(8, 21), covers(8, 19)], [true, false, false].map(Some));
        assert_eq!(stretches.covers(7, 2, 15), Some(false), "another partition did not move");
        assert_eq!(stretches.covers(9, 3, 15), None);
        assert_eq!((counted(Holds::Emitted, &ends(1, 0)), counted(Holds::Rejected, &ends(1, 0))), (9, 0));
    }
}
