//! Sets of numbers, kept as ranges.
//!
//! The invariant: ranges are in order, not empty, and neither overlap nor touch, so equal sets are equal values.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// Disjoint ranges that do not touch, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Ranges(Vec<(u64, u64)>);

impl Ranges {
    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    pub(super) fn contains(&self, place: u64) -> bool {
        let after = self.0.partition_point(|&(from, _)| from <= place);
        after > 0 && place < self.0[after - 1].1
    }

    pub(super) fn is_whole(&self, total: u64) -> bool {
        total == 0 || self.0 == [(0, total)]
    }

    /// What of `wanted` is not in here.
    pub(super) fn missing(&self, wanted: &Range<u64>) -> Vec<Range<u64>> {
        let (mut missing, mut from) = (Vec::new(), wanted.start);
        let first = self.0.partition_point(|&(_, to)| to <= wanted.start);
        for &(taken_from, taken_to) in self.0[first..].iter().take_while(|&&(from, _)| from < wanted.end) {
            if from < taken_from {
                missing.push(from..taken_from);
            }
            from = taken_to;
        }
        if from < wanted.end {
            missing.push(from..wanted.end);
        }
        missing
    }

    pub(super) fn insert(&mut self, new: Range<u64>) {
        if new.is_empty() {
            return;
        }
        let first = self.0.partition_point(|&(_, to)| to < new.start);
        let last = self.0.partition_point(|&(from, _)| from <= new.end);
        let from = self.0.get(first).filter(|_| first < last).map_or(new.start, |&(from, _)| from.min(new.start));
        let to = if first < last { self.0[last - 1].1.max(new.end) } else { new.end };
        self.0.splice(first..last, [(from, to)]);
    }

    pub(super) fn remove_below(&mut self, floor: u64) {
        self.0.retain(|&(_, to)| to > floor);
        if let Some(first) = self.0.first_mut() {
            first.0 = first.0.max(floor);
        }
    }
}
