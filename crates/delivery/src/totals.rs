//! A writer's running totals since its incarnation began: the ledger, carried by every message.

use std::ops::{Add, AddAssign};

use serde::{Deserialize, Serialize};

/// Rows a writer has accounted for up to a position of its input. A function of the input's prefix, not of a process;
/// but where a stretch is cut, see [`after`](Totals::after).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Totals {
    /// Rows found in the input.
    pub read: u64,
    /// Rows written to the data channel.
    pub emitted: u64,
    /// Rows written to the rejected channel.
    pub rejected: u64,
    /// Rows a view's condition left out.
    pub filtered: u64,
    /// Rows behind the watermark of the operator that needed them in time.
    pub late: u64,
}

impl Totals {
    /// Whether every row read is accounted for.
    pub fn balanced(&self) -> bool {
        self.read == self.emitted + self.rejected + self.filtered + self.late
    }

    /// What is known of a writer that says `self`, where `known` was known at an earlier position.
    ///
    /// A message that ends inside a stretch says of rows that no message of its port holds what held at the stretch's
    /// beginning; another life of the writer may have ended a stretch before it and said more.
    #[must_use]
    pub fn after(self, known: Self) -> Self {
        let emitted = self.emitted.max(known.emitted);
        let rejected = self.rejected.max(known.rejected);
        let filtered = self.filtered.max(known.filtered);
        let late = self.late.max(known.late);
        Self { read: emitted + rejected + filtered + late, emitted, rejected, filtered, late }
    }
}

impl Add for Totals {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            read: self.read + other.read,
            emitted: self.emitted + other.emitted,
            rejected: self.rejected + other.rejected,
            filtered: self.filtered + other.filtered,
            late: self.late + other.late,
        }
    }
}

impl AddAssign for Totals {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}
