//! Rows too large to travel in one message of a channel: rejected, not dropped.
//!
//! The verdict is on the row alone, uncompressed, so that it is the same on every kind of log. Most batches are
//! cleared by a glance at their widest values; only a suspicious row is encoded to be sure.

use std::collections::BTreeMap;

use arrow::{
    array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch},
    buffer::{BooleanBuffer, OffsetBuffer},
    compute::filter_record_batch,
    datatypes::DataType,
};
use batch::{Compression, encode_stream};
use topics::Message;

use super::{Decoded, Fault, Part, Verdict};

/// What the hidden offset column and the framing of compressed buffers may add to a row encoded alone.
const MARGIN_BYTES: usize = 4 << 10;

/// Moves rows that would not fit a message of `max_bytes` from the parts to the rejected rows.
pub(super) fn reject(decoded: &mut Decoded, run: &[Message], max_bytes: usize) {
    let limit = max_bytes.saturating_sub(MARGIN_BYTES);
    if decoded.parts.iter().all(|part| widest_row(&part.batch) < limit / 2) {
        return;
    }
    let units = rows_per_unit(&decoded.parts);
    let parts = std::mem::take(&mut decoded.parts);
    // Rows of the unit at hand that stood in earlier parts: where parts end depends on batching, verdicts must not.
    let (mut unit, mut earlier) = (i64::MIN, 0);
    for part in parts {
        let large: Vec<usize> =
            (0..part.batch.num_rows()).filter(|&row| is_too_large(&part.batch, row, limit)).collect();
        for &row in &large {
            let offset = part.offsets[row];
            let in_part = row - part.offsets.partition_point(|&other| other < offset);
            let place = in_part + if offset == unit { earlier } else { 0 };
            let single = units.get(&offset) == Some(&1);
            reject_row(decoded, run, (&part, row), Place { row: place, single }, limit);
        }
        if let Some(&last) = part.offsets.last() {
            let rows = part.offsets.len() - part.offsets.partition_point(|&other| other < last);
            earlier = rows + if last == unit { earlier } else { 0 };
            unit = last;
        }
        decoded.parts.extend(without(part, &large));
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

fn reject_row(decoded: &mut Decoded, run: &[Message], (part, row): (&Part, usize), place: Place, limit: usize) {
    let offset = part.offsets[row];
    let message = run.binary_search_by_key(&offset, |message| message.offset as i64);
    let Some(message) = message.ok().and_then(|index| run.get(index)) else { return };
    let alone = encode_stream(&part.batch.slice(row, 1), Compression::None).unwrap_or_default();
    let reason = format!("the row takes {} bytes encoded, a message may hold {limit}", alone.len());
    // Of a message with several rows, the row is kept as an Arrow stream of its own.
    let bytes = if place.single { message.payload.clone() } else { alone };
    decoded.reject(message, place.row, None, Verdict::new(Fault::TooLarge, reason), bytes);
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

fn is_too_large(batch: &RecordBatch, row: usize, limit: usize) -> bool {
    let bytes: usize = batch.columns().iter().map(|column| bytes_of(column, row, 1)).sum();
    bytes >= limit / 2
        && encode_stream(&batch.slice(row, 1), Compression::None).map_or(true, |encoded| encoded.len() > limit)
}

/// An upper bound of what any row takes: the widest value of each column, added up.
fn widest_row(batch: &RecordBatch) -> usize {
    batch.columns().iter().map(widest_value).sum()
}

fn widest_value(column: &ArrayRef) -> usize {
    match column.data_type() {
        DataType::Utf8 => longest(column.as_string::<i32>().offsets()),
        DataType::Binary => longest(column.as_binary::<i32>().offsets()),
        DataType::List(_) | DataType::Struct(_) => {
            (0..column.len()).map(|row| bytes_of(column, row, 1)).max().unwrap_or(0)
        }
        _ => FIXED_BYTES,
    }
}

/// The widest fixed-width value, a decimal.
const FIXED_BYTES: usize = 16;

fn longest(offsets: &OffsetBuffer<i32>) -> usize {
    offsets.windows(2).map(|pair| pair[1] - pair[0]).max().map_or(0, |longest| longest as usize)
}

/// About how many bytes a stretch of a column takes.
fn bytes_of(column: &ArrayRef, start: usize, rows: usize) -> usize {
    let within = |offsets: &OffsetBuffer<i32>| {
        let (from, to) = (offsets[start] as usize, offsets[start + rows] as usize);
        (from, to - from)
    };
    match column.data_type() {
        DataType::Utf8 => within(column.as_string::<i32>().offsets()).1 + 4 * rows,
        DataType::Binary => within(column.as_binary::<i32>().offsets()).1 + 4 * rows,
        DataType::List(_) => {
            let list = column.as_list::<i32>();
            let (from, items) = within(list.offsets());
            bytes_of(list.values(), from, items) + 4 * rows
        }
        DataType::Struct(_) => column.as_struct().columns().iter().map(|child| bytes_of(child, start, rows)).sum(),
        _ => FIXED_BYTES * rows,
    }
}
