//! The cut of the one rule: which rows of a message lie at or after a position.
//!
//! Rows are in input order, so their offsets never fall; a row's number inside its unit follows from its place.

use arrow::array::{Array, Int64Array, RecordBatch};
use delivery::{Origin, Position};

use crate::OFFSET_COLUMN;

/// The rows of `batch` at positions `>= from`: a slice, nothing is copied.
///
/// **Shapes**: same schema, rows in order, possibly none. A batch without [`OFFSET_COLUMN`] has no positions to cut
/// at and is returned whole.
pub fn rows_from(batch: &RecordBatch, origin: &Origin, from: Position) -> RecordBatch {
    let offsets = batch.column_by_name(OFFSET_COLUMN).and_then(|column| column.as_any().downcast_ref::<Int64Array>());
    match offsets {
        Some(offsets) if from > origin.from => {
            let first = first_row_at(offsets.values(), origin, from);
            batch.slice(first, batch.num_rows() - first)
        }
        _ => batch.clone(),
    }
}

fn first_row_at(relative: &[i64], origin: &Origin, from: Position) -> usize {
    let wanted = i64::try_from(from.offset.saturating_sub(origin.from.offset)).unwrap_or(i64::MAX);
    let unit_start = relative.partition_point(|&offset| offset < wanted);
    let unit_rows = relative[unit_start..].partition_point(|&offset| offset == wanted);
    let first_number = if from.offset == origin.from.offset { origin.from.row } else { 0 };
    let skipped = from.row.saturating_sub(first_number) as usize;
    unit_start + skipped.min(unit_rows)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use arrow::{
        array::{ArrayRef, Int64Array},
        datatypes::{DataType, Field, Schema},
    };
    use delivery::Writer;

    use super::*;

    fn batch(relative: Vec<i64>) -> RecordBatch {
        let schema = Schema::new(vec![
            Field::new("place", DataType::Int64, false),
            Field::new(OFFSET_COLUMN, DataType::Int64, false),
        ]);
        let places: ArrayRef = Arc::new(Int64Array::from_iter_values(0..relative.len() as i64));
        RecordBatch::try_new(Arc::new(schema), vec![places, Arc::new(Int64Array::from(relative))]).unwrap()
    }

    fn first_place(cut: &RecordBatch) -> Option<i64> {
        let places = cut.column(0).as_any().downcast_ref::<Int64Array>().unwrap();
        (!places.is_empty()).then(|| places.value(0))
    }

    #[test]
    fn rows_are_cut_at_units_and_inside_them() {
        // Units 10 (rows 5, 6 of it), 12 (three rows), 13 (one row); unit 11 yielded nothing.
        let origin = Origin::new(Writer::new("w"), Position::inside(10, 5), Position::at(14)).unwrap();
        let batch = batch(vec![0, 0, 2, 2, 2, 3]);
        let cut = |offset, row| first_place(&rows_from(&batch, &origin, Position::inside(offset, row)));
        assert_eq!(cut(9, 0), Some(0));
        assert_eq!(cut(10, 5), Some(0));
        assert_eq!(cut(10, 6), Some(1));
        assert_eq!(cut(10, 7), Some(2));
        assert_eq!(cut(11, 0), Some(2));
        assert_eq!(cut(12, 2), Some(4));
        assert_eq!(cut(12, 9), Some(5), "rows beyond those a unit yields belong to the next unit");
        assert_eq!(cut(13, 1), None);
        assert_eq!(cut(14, 0), None);
    }
}
