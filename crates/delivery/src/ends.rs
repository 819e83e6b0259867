//! The one rule: how far a reader has each writer's output, and what to do with the next message.

use std::collections::{BTreeMap, btree_map};

use serde::{Deserialize, Serialize};

use crate::{Origin, Position, Safeguard, Writer};

/// What the one rule says of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No rows, at the reader's end: only its watermark or idle mark counts.
    Heartbeat,
    /// Everything in it was taken before: drop it, count it.
    Repeat,
    /// Take the rows at positions `>= from`; the end has moved to the message's `to`.
    Take {
        /// The reader's end before this message.
        from: Position,
    },
}

/// A stretch of a writer's output is missing. The reader must halt: skipping would lose rows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("gap in the output of writer `{writer}`: expected position {expected}, found {found}")]
pub struct Gap {
    /// Whose output has the gap.
    pub writer: Writer,
    /// The reader's end.
    pub expected: Position,
    /// Where the message begins.
    pub found: Position,
}

/// Per writer, how far a reader has that writer's output. An unknown writer is at the start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ends(BTreeMap<Writer, Position>);

impl Ends {
    /// The reader's end for `writer`.
    pub fn get(&self, writer: &Writer) -> Position {
        self.0.get(writer).copied().unwrap_or(Position::START)
    }

    /// Whether anything of this writer was ever seen.
    pub fn knows(&self, writer: &Writer) -> bool {
        self.0.contains_key(writer)
    }

    /// Restores an end, for example from a table or a checkpoint.
    pub fn set(&mut self, writer: Writer, end: Position) {
        self.0.insert(writer, end);
    }

    /// Every known writer with its end, in name order.
    pub fn iter(&self) -> btree_map::Iter<'_, Writer, Position> {
        self.0.iter()
    }

    /// Judges a message without moving the end.
    ///
    /// # Errors
    /// [`Gap`] when the message begins after the reader's end: halt this partition, never skip.
    pub fn judge(&self, origin: &Origin) -> Result<Verdict, Gap> {
        let end = self.get(&origin.writer);
        if Safeguard::Slicing.is_off() && origin.to > origin.from {
            return Ok(Verdict::Take { from: origin.from });
        }
        if origin.from > end && !Safeguard::GapCheck.is_off() {
            return Err(Gap { writer: origin.writer.clone(), expected: end, found: origin.from });
        }
        Ok(if origin.to > end {
            Verdict::Take { from: end }
        } else if origin.from == end {
            Verdict::Heartbeat
        } else {
            Verdict::Repeat
        })
    }

    /// Judges a message and moves the end when its rows are to be taken.
    ///
    /// # Errors
    /// As [`judge`](Self::judge); the end stays where it was.
    pub fn accept(&mut self, origin: &Origin) -> Result<Verdict, Gap> {
        let verdict = self.judge(origin)?;
        if let Verdict::Take { .. } = verdict {
            let end = self.0.entry(origin.writer.clone()).or_default();
            *end = origin.to.max(*end);
        }
        Ok(verdict)
    }
}
