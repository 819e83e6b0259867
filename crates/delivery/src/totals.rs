//! A writer's running totals since its incarnation began: the ledger, carried by every message.

use std::ops::{Add, AddAssign};

use serde::{Deserialize, Serialize};

/// Rows a writer has accounted for up to a position of its input. A function of the input's prefix, not of a process.
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
