//! A place in a task's input.
//!
//! `(0, 0)` is the unambiguous beginning: a position names what comes *next*, never what was last.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Rows one unit (input message) may yield for one partition; a unit with more is rejected whole.
///
/// The bound exists so that a position fits the signed 64-bit `version` of a Delta `txn` action.
pub const MAX_ROWS_PER_UNIT: u32 = 1 << ROW_BITS;

const ROW_BITS: u32 = 20;
const MAX_OFFSET: u64 = (1 << (63 - ROW_BITS)) - 1;

/// The next input offset to read and, inside what that one unit yields for a partition, the next row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Position {
    /// Offset of the next input message.
    pub offset: u64,
    /// Index of the next row among those the message yields.
    pub row: u32,
}

impl Position {
    /// The beginning of any input.
    pub const START: Self = Self { offset: 0, row: 0 };

    /// The beginning of the unit at `offset`.
    pub const fn at(offset: u64) -> Self {
        Self { offset, row: 0 }
    }

    /// A row inside the unit at `offset`.
    pub const fn inside(offset: u64, row: u32) -> Self {
        Self { offset, row }
    }

    /// One number that sorts as positions do, for a Delta `txn` version; `None` beyond 2^43 offsets or 2^20 rows.
    pub fn pack(self) -> Option<i64> {
        if self.offset > MAX_OFFSET || self.row >= MAX_ROWS_PER_UNIT {
            return None;
        }
        i64::try_from((self.offset << ROW_BITS) | u64::from(self.row)).ok()
    }

    /// The inverse of [`pack`](Self::pack); `None` for a negative number.
    pub fn unpack(packed: i64) -> Option<Self> {
        let packed = u64::try_from(packed).ok()?;
        let row = u32::try_from(packed & u64::from(MAX_ROWS_PER_UNIT - 1)).ok()?;
        Some(Self { offset: packed >> ROW_BITS, row })
    }
}

impl fmt::Display for Position {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.row {
            0 => write!(formatter, "{}", self.offset),
            row => write!(formatter, "{}+{row}", self.offset),
        }
    }
}
