//! Rows that cannot get into their table (`runtime::row_limits`): rejected, not dropped.
//!
//! Of a message of text a row is kept as it came; of any other as an Arrow stream of its own, which repeats the schema.
//! The invariant: what those streams take is bounded by their message, and its verdict depends on it alone.

use std::collections::{BTreeMap, BTreeSet};

use arrow::{array::BooleanArray, buffer::BooleanBuffer, compute::filter_record_batch};
use batch::{Compression, encode_stream};
use bytes::Bytes;
use runtime::row_limits::{RowLimits, Unstorable};
use topics::Message;

use super::{Decoded, Fault, Part, RejectedRow, RowText, Verdict};

/// Rows kept as streams take this many times their message at most.
const KEPT_FACTOR: usize = 4;
/// What they may take however small their message is.
const KEPT_ANYWAY: usize = 1 << 20;

/// Moves rows beyond the limits from the parts to the rejected rows.
///
/// `rows_of` says where the rows of a message stand, good and bad; `None` for a message that is no text.
pub(super) fn reject(
    decoded: &mut Decoded,
    run: &[Message],
    limits: &RowLimits,
    rows_of: &dyn Fn(&Message) -> Option<Vec<RowText>>,
) {
    let faults: Vec<_> = decoded.parts.iter().map(|part| limits.faults(&part.batch)).collect();
    if faults.iter().all(Vec::is_empty) {
        return;
    }
    let good = rows_per_unit(&decoded.parts);
    let before = std::mem::take(&mut decoded.rejected);
    let (found, over) = (Decoded::default(), BTreeSet::new());
    let mut rejection = Rejection { run, rows_of, good, before: &before, unit: None, found, over };
    // Rows of the unit at hand that stood in earlier parts: where parts end depends on batching, verdicts must not.
    let (mut unit, mut earlier) = (i64::MIN, 0);
    for (part, faults) in std::mem::take(&mut decoded.parts).into_iter().zip(faults) {
        for (row, fault) in &faults {
            let offset = part.offsets[*row];
            let in_part = row - part.offsets.partition_point(|&other| other < offset);
            let place = in_part + if offset == unit { earlier } else { 0 };
            rejection.reject((&part, *row), place, fault);
        }
        if let Some(&last) = part.offsets.last() {
            let rows = part.offsets.len() - part.offsets.partition_point(|&other| other < last);
            earlier = rows + if last == unit { earlier } else { 0 };
            unit = last;
        }
        let rows: Vec<usize> = faults.into_iter().map(|(row, _)| row).collect();
        decoded.parts.extend(without(part, &rows));
    }
    let Rejection { found, over, .. } = rejection;
    decoded.rejected = before;
    decoded.rejected.extend(found.rejected);
    if !over.is_empty() {
        reject_whole(decoded, run, &over);
    }
    decoded.rejected.sort_by_key(|row| (row.offset, row.row));
}

/// Good rows, message by message.
fn rows_per_unit(parts: &[Part]) -> BTreeMap<u64, usize> {
    let mut units = BTreeMap::new();
    for &offset in parts.iter().flat_map(|part| &part.offsets) {
        *units.entry(offset.unsigned_abs()).or_default() += 1;
    }
    units
}

/// Rejects rows that were good so far, in input order.
struct Rejection<'a> {
    run: &'a [Message],
    rows_of: &'a dyn Fn(&Message) -> Option<Vec<RowText>>,
    /// How many good rows each message had.
    good: BTreeMap<u64, usize>,
    /// What was rejected before.
    before: &'a [RejectedRow],
    /// The message at hand.
    unit: Option<Unit<'a>>,
    /// What is rejected now.
    found: Decoded,
    /// Messages whose rows would take too much one by one.
    over: BTreeSet<u64>,
}

/// A message with rows that cannot be stored.
struct Unit<'a> {
    message: &'a Message,
    rows: usize,
    /// For each row that was rejected before, how many good ones stand before it.
    good_before: Vec<usize>,
    /// Its rows as they came, where it is text.
    texts: Option<Vec<RowText>>,
    /// Bytes that rows kept as streams may still take.
    room: usize,
}

/// A rejected row as it is kept.
struct Kept {
    bytes: Bytes,
    line: Option<u32>,
}

impl<'a> Rejection<'a> {
    /// Rejects a row, the `place`th good one of its message.
    fn reject(&mut self, (part, row): (&Part, usize), place: usize, fault: &Unstorable) {
        let offset = part.offsets[row].unsigned_abs();
        if self.over.contains(&offset) {
            return;
        }
        let Some(unit) = self.unit_at(offset) else { return };
        let (message, place) = (unit.message, unit.place_among_all(place));
        match unit.keep((part, row), place) {
            Some(Kept { bytes, line }) => self.found.reject(message, place, line, verdict_on(fault), bytes),
            None => {
                self.over.insert(offset);
            }
        }
    }

    /// The message at an offset; they come in order.
    fn unit_at(&mut self, offset: u64) -> Option<&mut Unit<'a>> {
        if self.unit.as_ref().is_none_or(|unit| unit.message.offset != offset) {
            self.unit = Some(self.begin(offset)?);
        }
        self.unit.as_mut()
    }

    fn begin(&self, offset: u64) -> Option<Unit<'a>> {
        let index = self.run.binary_search_by_key(&offset, |message| message.offset).ok()?;
        let message = self.run.get(index)?;
        let first = self.before.partition_point(|row| row.offset < offset);
        let bad = self.before[first..].iter().take_while(|row| row.offset == offset);
        let good_before = |(index, row): (usize, &RejectedRow)| (row.row as usize).saturating_sub(index);
        let good_before: Vec<usize> = bad.enumerate().map(good_before).collect();
        let rows = self.good.get(&offset).copied().unwrap_or(0) + good_before.len();
        let texts = (self.rows_of)(message).filter(|texts| texts.len() == rows);
        let room = KEPT_ANYWAY.max(KEPT_FACTOR * message.payload.len());
        Some(Unit { message, rows, good_before, texts, room })
    }
}

impl Unit<'_> {
    /// The place among all rows of the `place`th good one.
    fn place_among_all(&self, place: usize) -> usize {
        place + self.good_before.partition_point(|&before| before <= place)
    }

    /// A row as it is kept; `None` where there is no room for it.
    fn keep(&mut self, (part, row): (&Part, usize), place: usize) -> Option<Kept> {
        if let Some(text) = self.texts.as_ref().and_then(|texts| texts.get(place)) {
            return Some(Kept { bytes: self.message.payload.slice(text.bytes.clone()), line: Some(text.line) });
        }
        let line = u32::try_from(place + 1).ok();
        if self.rows == 1 {
            return Some(Kept { bytes: self.message.payload.clone(), line });
        }
        let encoded = encode_stream(&part.batch.slice(row, 1), Compression::None).unwrap_or_default();
        self.room = self.room.checked_sub(encoded.len())?;
        // A copy: the encoder sets aside as much as the whole batch would take.
        Some(Kept { bytes: Bytes::copy_from_slice(&encoded), line })
    }
}

fn verdict_on(fault: &Unstorable) -> Verdict {
    match fault {
        Unstorable::TooLarge { .. } => Verdict::new(Fault::TooLarge, fault.to_string()),
        Unstorable::WithoutPartition { column } => Verdict::of_column(Fault::Value, column, fault.to_string()),
    }
}

/// Rejects messages as they stand, with all of their rows, good and bad.
fn reject_whole(decoded: &mut Decoded, run: &[Message], over: &BTreeSet<u64>) {
    let is_over = |offset: i64| over.contains(&offset.unsigned_abs());
    let parts = std::mem::take(&mut decoded.parts).into_iter();
    let kept = parts.filter_map(|part| {
        let rows: Vec<usize> = (0..part.offsets.len()).filter(|&row| is_over(part.offsets[row])).collect();
        without(part, &rows)
    });
    decoded.parts = kept.collect();
    decoded.rejected.retain(|row| !over.contains(&row.offset));
    for message in run.iter().filter(|message| over.contains(&message.offset)) {
        decoded.reject(message, 0, None, Verdict::too_much_rejected(), message.payload.clone());
    }
}

fn without(part: Part, rows: &[usize]) -> Option<Part> {
    if rows.is_empty() {
        return Some(part);
    }
    let keep = BooleanBuffer::collect_bool(part.batch.num_rows(), |row| rows.binary_search(&row).is_err());
    let batch = filter_record_batch(&part.batch, &BooleanArray::new(keep, None)).ok()?;
    let kept = part.offsets.into_iter().enumerate().filter(|(row, _)| rows.binary_search(row).is_err());
    let offsets: Vec<i64> = kept.map(|(_, offset)| offset).collect();
    (!offsets.is_empty()).then_some(Part { batch, offsets })
}
