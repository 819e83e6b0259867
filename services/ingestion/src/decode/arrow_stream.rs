//! Arrow IPC stream messages → rows, columns matched by name.
//!
//! The invariant: no value changes silently. A column is taken as it is, widened, or cast value by value; a value that
//! does not survive its cast rejects its row, a column that can never fit rejects the message. A rejected row travels
//! as an IPC stream of that one row, in the schema it came in.
//!
//! A small message may stand for gigabytes: one value in a million rows, one dictionary with each of a million rejected
//! rows. So what its columns unfold to is known before they are cast, and what its rejected rows take is bounded.

mod unfolding;

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray as _, BooleanArray, RecordBatch, new_null_array},
    buffer::BooleanBuffer,
    compute::{CastOptions, cast_with_options, filter_record_batch, kernels::cmp::distinct, nullif},
    datatypes::{DataType, Field, TimeUnit, TimestampNanosecondType},
    error::ArrowError,
};
use batch::{Compression, Limits, decode_stream, encode_stream};
use bytes::Bytes;
use topics::Message;

use super::{
    Decoded, Fault, Part, Shape, Verdict, decimals,
    exact_numbers::{float_fault, holds_outermost},
    guarded, too_many_rows,
};
pub(crate) use unfolding::unfolded_bytes;

pub(super) struct ArrowDecoder {
    shape: Shape,
}

/// A batch in the source's columns, and which of its rows are bad.
struct Fitted {
    columns: Vec<ArrayRef>,
    faults: Vec<(usize, Verdict)>,
}

impl ArrowDecoder {
    pub(super) fn new(shape: Shape) -> Self {
        Self { shape }
    }

    pub(super) fn decode(&self, run: &[Message], output: &mut Decoded) {
        for message in run {
            let decoded = guarded(|| Some(self.decode_message(message)));
            match decoded.unwrap_or_else(|| Err(Verdict::new(Fault::Unreadable, "the message cannot be parsed"))) {
                Ok(decoded) => output.append(decoded),
                Err(verdict) => output.reject(message, 0, None, verdict, message.payload.clone()),
            }
        }
    }

    fn decode_message(&self, message: &Message) -> Result<Decoded, Verdict> {
        if message.payload.is_empty() {
            return Err(Verdict::new(Fault::Unreadable, "the message is empty"));
        }
        let limits = Limits::default();
        let batches = decode_stream(&message.payload, &limits)
            .map_err(|error| Verdict::new(Fault::Unreadable, with_cause(&error)))?;
        let rows = batches.iter().map(RecordBatch::num_rows).sum();
        if rows > self.shape.max_rows {
            return Err(too_many_rows(rows, self.shape.max_rows));
        }
        if self.unfolded_bytes(&batches) > limits.max_bytes {
            return Err(unfolds_too_far(&limits));
        }
        let mut decoded = Decoded::default();
        let (mut first_row, mut room) = (0, limits.max_bytes);
        for batch in &batches {
            self.decode_batch(message, batch, first_row, &mut room, &mut decoded)?;
            first_row += batch.num_rows();
        }
        Ok(decoded)
    }

    /// What the encoded columns that are taken come to once their encodings are gone.
    fn unfolded_bytes(&self, batches: &[RecordBatch]) -> usize {
        let mut bytes = 0_usize;
        for batch in batches {
            for field in self.shape.schema.fields() {
                if let Some(column) = batch.column_by_name(field.name())
                    && castable(column.data_type(), field.data_type())
                {
                    bytes = bytes.saturating_add(unfolded_bytes(column.as_ref()));
                }
            }
        }
        bytes
    }

    /// `room`: bytes that rejected rows of the message may still take.
    fn decode_batch(
        &self,
        message: &Message,
        batch: &RecordBatch,
        first_row: usize,
        room: &mut usize,
        decoded: &mut Decoded,
    ) -> Result<(), Verdict> {
        let Fitted { columns, faults } = self.fit(batch)?;
        let good = good_rows(batch.num_rows(), &faults);
        for (row, verdict) in faults {
            let bytes = one_row(batch, row);
            *room = room.checked_sub(bytes.len()).ok_or_else(Verdict::too_much_rejected)?;
            let place = first_row + row;
            decoded.reject(message, place, u32::try_from(place + 1).ok(), verdict, bytes);
        }
        let rows = good.true_count();
        if rows == 0 {
            return Ok(());
        }
        let defect = |error: ArrowError| Verdict::new(Fault::Value, error.to_string());
        let batch = if rows == batch.num_rows() {
            RecordBatch::try_new(Arc::clone(&self.shape.schema), columns).map_err(defect)?
        } else {
            self.keep(columns, &good).map_err(defect)?
        };
        decoded.parts.push(Part { batch, offsets: vec![message.offset as i64; rows] });
        Ok(())
    }

    /// The good rows only. Bad rows may hold NULLs the schema forbids, so they go before the schema is put on.
    fn keep(&self, columns: Vec<ArrayRef>, good: &BooleanArray) -> Result<RecordBatch, ArrowError> {
        let loose = |field: &Arc<Field>| Arc::new(field.as_ref().clone().with_nullable(true));
        let loose = arrow::datatypes::Schema::new(self.shape.schema.fields().iter().map(loose).collect::<Vec<_>>());
        let kept = filter_record_batch(&RecordBatch::try_new(Arc::new(loose), columns)?, good)?;
        RecordBatch::try_new(Arc::clone(&self.shape.schema), kept.columns().to_vec())
    }

    /// Brings a batch into the source's columns.
    fn fit(&self, batch: &RecordBatch) -> Result<Fitted, Verdict> {
        let sent = batch.schema();
        if self.shape.reject_unknown
            && let Some(field) =
                sent.fields().iter().find(|field| self.shape.schema.fields().find(field.name()).is_none())
        {
            return Err(Verdict::unknown(field.name()));
        }
        let mut fitted = Fitted { columns: Vec::new(), faults: Vec::new() };
        for field in self.shape.schema.fields() {
            let column = match batch.column_by_name(field.name()) {
                Some(column) => fitted.cast(field, column)?,
                None if field.is_nullable() => new_null_array(field.data_type(), batch.num_rows()),
                None => {
                    let reason = format!("column `{}` is NOT NULL and the message does not have it", field.name());
                    return Err(Verdict::of_column(Fault::Columns, field.name(), reason));
                }
            };
            fitted.columns.push(column);
        }
        // A row is rejected once, for its first bad column.
        fitted.faults.sort_by_key(|(row, _)| *row);
        fitted.faults.dedup_by_key(|(row, _)| *row);
        Ok(fitted)
    }
}

impl Fitted {
    fn cast(&mut self, field: &Field, sent: &ArrayRef) -> Result<ArrayRef, Verdict> {
        let (found, expected) = (sent.data_type(), field.data_type());
        if !castable(found, expected) {
            let reason = format!("column `{}`: expected {expected}, found {found}", field.name());
            return Err(Verdict::of_column(Fault::Columns, field.name(), reason));
        }
        let cast = cast(sent, expected)
            .map_err(|error| Verdict::of_column(Fault::Columns, field.name(), error.to_string()))?;
        self.judge_nulls(field, sent, &cast);
        self.judge_decimals_within(field, &cast);
        Ok(cast)
    }

    /// Lists and structs are not cast value by value, so their decimals are looked at here.
    fn judge_decimals_within(&mut self, field: &Field, column: &ArrayRef) {
        if !column.data_type().is_nested() {
            return;
        }
        let Some(rows) = decimals::rows_beyond_precision(column.as_ref()) else { return };
        for row in rows.set_indices() {
            let reason = format!("column `{}`: a decimal in it has more digits than its type holds", field.name());
            self.faults.push((row, Verdict::of_column(Fault::Value, field.name(), reason)));
        }
    }

    /// A safe cast makes NULL of a value that does not fit; here that is a fault of the row.
    fn judge_nulls(&mut self, field: &Field, sent: &ArrayRef, cast: &ArrayRef) {
        if cast.logical_null_count() == sent.logical_null_count()
            && (field.is_nullable() || cast.logical_null_count() == 0)
        {
            return;
        }
        let (sent_nulls, cast_nulls) = (sent.logical_nulls(), cast.logical_nulls());
        for row in 0..cast.len() {
            if !cast_nulls.as_ref().is_some_and(|nulls| nulls.is_null(row)) {
                continue;
            }
            if !sent_nulls.as_ref().is_some_and(|nulls| nulls.is_null(row)) {
                let reason = format!("column `{}`: the value does not fit {}", field.name(), field.data_type());
                self.faults.push((row, Verdict::of_column(Fault::Value, field.name(), reason)));
            } else if !field.is_nullable() {
                self.faults.push((row, Verdict::missing(field.name())));
            }
        }
    }
}

/// Casts value by value: one that does not fit becomes NULL.
fn cast(sent: &ArrayRef, expected: &DataType) -> Result<ArrayRef, ArrowError> {
    match (values_of(sent.data_type()), expected) {
        (found @ DataType::Decimal128(_, _), DataType::Decimal128(_, _)) => {
            let decimals = decimals::within_precision(&cast_safely(sent, found)?);
            cast_safely(&decimals, expected)
        }
        (found, DataType::Decimal128(precision, scale)) if decimals::are_texts(found) => {
            let decimals = decimals::from_texts(sent, *precision, *scale);
            let decimals = decimals.ok_or_else(|| ArrowError::CastError("its texts cannot be read".to_owned()))?;
            Ok(Arc::new(decimals))
        }
        (found, DataType::Float32 | DataType::Float64) if decimals::are_texts(found) => {
            floats_from_texts(sent, expected)
        }
        (found, DataType::Float32 | DataType::Float64) if found.is_integer() => {
            floats_from_whole(&cast_safely(sent, found)?, expected)
        }
        (found @ DataType::Timestamp(TimeUnit::Nanosecond, _), DataType::Timestamp(_, _)) => {
            cast_safely(&whole_micros(&cast_safely(sent, found)?), expected)
        }
        _ => cast_safely(sent, expected),
    }
}

/// The type of the values that keys and runs stand for.
fn values_of(data_type: &DataType) -> &DataType {
    match data_type {
        DataType::Dictionary(_, values) => values_of(values),
        DataType::RunEndEncoded(_, values) => values_of(values.data_type()),
        other => other,
    }
}

fn cast_safely(sent: &ArrayRef, expected: &DataType) -> Result<ArrayRef, ArrowError> {
    match sent.data_type() == expected {
        true => Ok(Arc::clone(sent)),
        false => cast_with_options(sent, expected, &CastOptions { safe: true, ..CastOptions::default() }),
    }
}

/// Texts as floats. A number that is read as infinite becomes NULL.
fn floats_from_texts(texts: &ArrayRef, expected: &DataType) -> Result<ArrayRef, ArrowError> {
    let floats = cast_safely(texts, expected)?;
    if !holds_outermost(floats.as_ref()) {
        return Ok(floats);
    }
    let texts = cast_safely(texts, &DataType::Utf8)?;
    let texts = texts.as_string::<i32>();
    let is_beyond = |row| texts.is_valid(row) && float_fault(texts.value(row), expected).is_some();
    nullif(&floats, &BooleanArray::new(BooleanBuffer::collect_bool(texts.len(), is_beyond), None))
}

/// Whole numbers as floats; NULL where the nearest float is another number.
fn floats_from_whole(sent: &ArrayRef, expected: &DataType) -> Result<ArrayRef, ArrowError> {
    let floats = cast_safely(sent, expected)?;
    // Every number of these fits.
    let narrow = if *expected == DataType::Float32 { size_of::<i16>() } else { size_of::<i32>() };
    if sent.data_type().primitive_width().is_some_and(|width| width <= narrow) {
        return Ok(floats);
    }
    let back = cast_safely(&floats, sent.data_type())?;
    nullif(&floats, &distinct(&back, sent)?)
}

/// Times in nanoseconds, but NULL where one is finer than a microsecond. Copies nothing if none is.
fn whole_micros(sent: &ArrayRef) -> ArrayRef {
    let Some(times) = sent.as_primitive_opt::<TimestampNanosecondType>() else { return Arc::clone(sent) };
    if times.values().iter().all(|nanos| nanos % 1_000 == 0) {
        return Arc::clone(sent);
    }
    let whole = times.unary_opt::<_, TimestampNanosecondType>(|nanos| (nanos % 1_000 == 0).then_some(nanos));
    Arc::new(whole.with_data_type(sent.data_type().clone()))
}

/// Whether values of `found` can stand in a column of `expected`: unchanged, or checked one by one.
fn castable(found: &DataType, expected: &DataType) -> bool {
    use DataType::{
        Binary, BinaryView, Boolean, Date32, Date64, Decimal128, Dictionary, FixedSizeBinary, Float16, Float32,
        Float64, LargeBinary, LargeUtf8, List, Null, RunEndEncoded, Struct, Timestamp, Utf8, Utf8View,
    };
    match (found, expected) {
        (Null, _) => true,
        (Dictionary(_, values), _) => castable(values, expected),
        (RunEndEncoded(_, values), _) => castable(values.data_type(), expected),
        (Utf8 | LargeUtf8 | Utf8View, Utf8) | (Binary | LargeBinary | BinaryView | FixedSizeBinary(_), Binary) => true,
        // Texts are read as JSON and CSV read them.
        (Utf8 | LargeUtf8 | Utf8View, Boolean | Date32 | Decimal128(_, _) | Timestamp(_, _)) => true,
        (Utf8 | LargeUtf8 | Utf8View, numeric) if numeric.is_numeric() => true,
        (found, Float32 | Float64) if found.is_integer() => true,
        (found, expected) if found.is_integer() && expected.is_integer() => true,
        (found, Decimal128(_, _)) if found.is_integer() => true,
        (Float16 | Float32 | Float64, Float64) | (Float16 | Float32, Float32) => true,
        // A smaller scale would round.
        (Decimal128(_, found), Decimal128(_, expected)) => found <= expected,
        (Date32 | Date64, Date32) | (Timestamp(_, _) | Date32, Timestamp(_, _)) => true,
        (List(found), List(expected)) => nested_equal(found, expected),
        (Struct(found), Struct(expected)) => {
            found.len() == expected.len()
                && found.iter().zip(expected).all(|(one, other)| one.name() == other.name() && nested_equal(one, other))
        }
        (found, expected) => found == expected,
    }
}

/// Inside lists and structs nothing is checked value by value, so only what cannot fail is taken.
fn nested_equal(found: &Field, expected: &Field) -> bool {
    let same = match (found.data_type(), expected.data_type()) {
        (DataType::List(found), DataType::List(expected)) => nested_equal(found, expected),
        (found @ DataType::Struct(_), expected @ DataType::Struct(_)) => castable(found, expected),
        (found, expected) => found == expected,
    };
    same && (expected.is_nullable() || !found.is_nullable())
}

fn good_rows(rows: usize, faults: &[(usize, Verdict)]) -> BooleanArray {
    let mut faults = faults.iter().map(|(row, _)| *row).peekable();
    let good = BooleanBuffer::collect_bool(rows, |row| faults.next_if_eq(&row).is_none());
    BooleanArray::new(good, None)
}

/// One row as a stream of its own, so that it can be sent again as it was.
fn one_row(batch: &RecordBatch, row: usize) -> Bytes {
    let encoded = encode_stream(&batch.slice(row, 1), Compression::None).unwrap_or_default();
    // A copy: the encoder sets aside as much as the whole batch would take.
    Bytes::copy_from_slice(&encoded)
}

fn unfolds_too_far(limits: &Limits) -> Verdict {
    let reason = format!(
        "without dictionaries, runs and views the message takes more than the {} bytes it may; send smaller ones",
        limits.max_bytes
    );
    Verdict::new(Fault::TooLarge, reason)
}

fn with_cause(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}
