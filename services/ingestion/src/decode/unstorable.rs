//! Rows that cannot get into their table (`runtime::row_limits`): rejected, not dropped.

use std::collections::BTreeMap;

use arrow::{array::BooleanArray, buffer::BooleanBuffer, compute::filter_record_batch};
use batch::{Compression, encode_stream};
use runtime::row_limits::{RowLimits, Unstorable};
use topics::Message;

use super::{Decoded, Fault, Part, Verdict};

/// Moves rows beyond the limits from the parts to the rejected rows.
pub(super) fn reject(decoded: &mut Decoded, run: &[Message], limits: &RowLimits) {
    let faults: Vec<_> = decoded.parts.iter().map(|part| limits.faults(&part.batch)).collect();
    if faults.iter().all(Vec::is_empty) {
        return;
    }
    let units = rows_per_unit(&decoded.parts);
    let parts = std::mem::take(&mut decoded.parts);
    // Rows of the unit at hand that stood in earlier parts: where parts end depends on batching, verdicts must not.
    let (mut unit, mut earlier) = (i64::MIN, 0);
    for (part, faults) in parts.into_iter().zip(faults) {
        for (row, fault) in &faults {
            let offset = part.offsets[*row];
            let in_part = row - part.offsets.partition_point(|&other| other < offset);
            let place = in_part + if offset == unit { earlier } else { 0 };
            let single = units.get(&offset) == Some(&1);
            reject_row(decoded, run, (&part, *row), Place { row: place, single }, fault);
        }
        if let Some(&last) = part.offsets.last() {
            let rows = part.offsets.len() - part.offsets.partition_point(|&other| other < last);
            earlier = rows + if last == unit { earlier } else { 0 };
            unit = last;
        }
        let rows: Vec<usize> = faults.into_iter().map(|(row, _)| row).collect();
        decoded.parts.extend(without(part, &rows));
    }
    decoded.rejected.sort_by_key(|row| (row.offset, row.row));
}

/// Where a row stands in its message, among the good rows.
struct Place {
    row: usize,
    single: bool,
}

fn rows_per_unit(parts: &[Part]) -> BTreeMap<i64, usize> {
    let mut units = BTreeMap::new();
    for &offset in parts.iter().flat_map(|part| &part.offsets) {
        *units.entry(offset).or_default() += 1;
    }
    units
}

fn reject_row(decoded: &mut Decoded, run: &[Message], (part, row): (&Part, usize), place: Place, fault: &Unstorable) {
    let offset = part.offsets[row];
    let message = run.binary_search_by_key(&offset, |message| message.offset as i64);
    let Some(message) = message.ok().and_then(|index| run.get(index)) else { return };
    let verdict = match fault {
        Unstorable::TooLarge { .. } => Verdict::new(Fault::TooLarge, fault.to_string()),
        Unstorable::WithoutPartition { column } => Verdict::of_column(Fault::Value, column, fault.to_string()),
    };
    // Of a message with several rows, the row is kept as an Arrow stream of its own.
    let bytes = match place.single {
        true => message.payload.clone(),
        false => encode_stream(&part.batch.slice(row, 1), Compression::None).unwrap_or_default(),
    };
    decoded.reject(message, place.row, None, verdict, bytes);
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
