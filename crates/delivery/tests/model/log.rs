//! Messages and channels of the model: a partitioned log reduced to what the protocol can see of it.
//!
//! A row is its value and the unit it came from; everything else of a batch is left out. Every log keeps the truth
//! beside its messages: what a reader that was never behind has taken. The model checks readers against it.

use std::{collections::BTreeMap, sync::Arc};

use delivery::{Ends, Gap, Origin, Position, Safeguard, Totals, Verdict, Writer};

use crate::setup::Missing;

/// What a row holds: enough to tell every row of a run from every other.
pub(crate) type Value = u32;

/// A row on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Row {
    /// The offset of the unit it was made from.
    pub(crate) unit: u64,
    pub(crate) value: Value,
}

/// A message of a channel.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Message {
    pub(crate) origin: Origin,
    pub(crate) rows: Vec<Row>,
    pub(crate) totals: Totals,
}

impl Message {
    /// The rows at positions `>= from`, found as `batch::rows_from` finds them: by unit, then by number in the unit.
    fn rows_from(&self, from: Position) -> Vec<Row> {
        let place = |index| row_position(&self.rows, index, self.origin.from);
        (0..self.rows.len()).filter(|&index| place(index) >= from).map(|index| self.rows[index]).collect()
    }
}

/// The position of row `index` of a message that begins at `from`.
pub(crate) fn row_position(rows: &[Row], index: usize, from: Position) -> Position {
    let unit = rows[index].unit;
    let first = rows.partition_point(|row| row.unit < unit);
    let before = if unit == from.offset { from.row } else { 0 };
    Position::inside(unit, before + u32::try_from(index - first).unwrap())
}

/// What a reader makes of a message.
pub(crate) struct Received {
    pub(crate) verdict: Verdict,
    pub(crate) rows: Vec<Row>,
    /// Only without the gap check: the reader went on behind a gap.
    pub(crate) skipped: bool,
}

/// The one rule, by the real [`Ends`]; with a safeguard removed, what a reader without it would do.
pub(crate) fn receive(ends: &mut Ends, message: &Message, missing: Option<Missing>) -> Result<Received, Gap> {
    let origin = &message.origin;
    let end = ends.get(&origin.writer);
    if missing == Some(Missing::Safeguard(Safeguard::Slicing)) && origin.from <= end && origin.to > origin.from {
        ends.set(origin.writer.clone(), end.max(origin.to));
        let verdict = Verdict::Take { from: origin.from };
        return Ok(Received { verdict, rows: message.rows.clone(), skipped: false });
    }
    match ends.accept(origin) {
        Ok(verdict) => {
            let rows = match verdict {
                Verdict::Take { from } => message.rows_from(from),
                Verdict::Repeat | Verdict::Heartbeat => Vec::new(),
            };
            Ok(Received { verdict, rows, skipped: false })
        }
        Err(_) if missing == Some(Missing::Safeguard(Safeguard::GapCheck)) => {
            ends.set(origin.writer.clone(), origin.to);
            let verdict = Verdict::Take { from: origin.from };
            Ok(Received { verdict, rows: message.rows.clone(), skipped: true })
        }
        Err(gap) => Err(gap),
    }
}

/// What a reader that was never behind has taken of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Truth {
    pub(crate) ends: Ends,
    pub(crate) rows: Vec<Value>,
    /// What each writer says it has done up to its end.
    pub(crate) totals: BTreeMap<Writer, Totals>,
    /// It met a gap: a stretch was appended whose predecessor never was.
    pub(crate) gap: bool,
}

/// One partition of a channel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Log {
    /// The first offset that can be read.
    pub(crate) start: u64,
    /// By offset; `None` where the broker lost a message.
    pub(crate) messages: Vec<Option<Arc<Message>>>,
    pub(crate) truth: Truth,
}

impl Log {
    /// The offset the next message gets.
    pub(crate) fn end(&self) -> u64 {
        self.messages.len() as u64
    }

    pub(crate) fn at(&self, offset: u64) -> Option<&Arc<Message>> {
        self.messages.get(usize::try_from(offset).unwrap()).and_then(Option::as_ref)
    }

    pub(crate) fn append(&mut self, message: Arc<Message>) {
        match receive(&mut self.truth.ends, &message, None) {
            Ok(Received { verdict: Verdict::Take { .. }, rows, .. }) => {
                self.truth.rows.extend(rows.into_iter().map(|row| row.value));
                self.truth.totals.insert(message.origin.writer.clone(), message.totals);
            }
            Ok(_) => {}
            Err(_) => self.truth.gap = true,
        }
        self.messages.push(Some(message));
    }
}
