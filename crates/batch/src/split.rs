//! Cutting a batch so that each part fits a message, in order, nothing lost.

use arrow::array::RecordBatch;
use bytes::Bytes;

use crate::codec::{CodecError, Compression, encode_stream};

/// Rows that fit one message, and their encoding.
#[derive(Clone, Debug)]
pub struct Part {
    /// The rows: a slice of the batch given.
    pub batch: RecordBatch,
    /// The same rows as one self-contained IPC stream.
    pub payload: Bytes,
}

/// Why a batch cannot be cut to size.
#[derive(Debug, thiserror::Error)]
pub enum SplitError {
    /// One row alone is larger than a message may be: the caller rejects that row.
    #[error("row {row} alone takes {encoded_bytes} bytes encoded, a message may hold {max_encoded_bytes}")]
    RowTooLarge {
        /// Its index in the batch given.
        row: usize,
        /// Its size, encoded alone.
        encoded_bytes: usize,
        /// The limit.
        max_encoded_bytes: usize,
    },
    /// The batch cannot be encoded at all.
    #[error(transparent)]
    Codec(#[from] CodecError),
}

/// Encodes a batch as parts of at most `max_encoded_bytes` each; a batch that fits is encoded once.
///
/// **Shapes**: same schema, rows in order, no empty parts (a batch without rows gives no parts).
/// **Units**: encoded IPC bytes without headers. **Errors**: `RowTooLarge` if one row alone is over.
/// **Source**: the broker's `message.max.bytes`.
pub fn encode_to_fit(
    batch: &RecordBatch,
    max_encoded_bytes: usize,
    compression: Compression,
) -> Result<Vec<Part>, SplitError> {
    Ok(encode_to_fit_within(batch, max_encoded_bytes, usize::MAX, compression)?.unwrap_or_default())
}

/// As [`encode_to_fit`]; `None` once all parts together take more than `max_total_bytes`.
///
/// Each part repeats the schema and all dictionaries, so a small batch may come to gigabytes.
///
/// # Errors
/// As [`encode_to_fit`].
pub fn encode_to_fit_within(
    batch: &RecordBatch,
    max_encoded_bytes: usize,
    max_total_bytes: usize,
    compression: Compression,
) -> Result<Option<Vec<Part>>, SplitError> {
    let mut cutter = Cutter { max_encoded_bytes, compression, room: max_total_bytes, parts: Vec::new() };
    Ok(cutter.encode_or_halve(batch, 0)?.then_some(cutter.parts))
}

struct Cutter {
    max_encoded_bytes: usize,
    compression: Compression,
    /// Bytes that parts may still take.
    room: usize,
    parts: Vec<Part>,
}

impl Cutter {
    /// Halving keeps the cost at two encodings a row, and parts of one batch equal in size. Returns whether there was
    /// room for all.
    fn encode_or_halve(&mut self, batch: &RecordBatch, first_row: usize) -> Result<bool, SplitError> {
        let rows = batch.num_rows();
        if rows == 0 {
            return Ok(true);
        }
        let payload = encode_stream(batch, self.compression)?;
        let (encoded_bytes, max_encoded_bytes) = (payload.len(), self.max_encoded_bytes);
        if encoded_bytes <= max_encoded_bytes {
            let Some(room) = self.room.checked_sub(encoded_bytes) else { return Ok(false) };
            self.room = room;
            self.parts.push(Part { batch: batch.clone(), payload });
            return Ok(true);
        }
        if rows == 1 {
            return Err(SplitError::RowTooLarge { row: first_row, encoded_bytes, max_encoded_bytes });
        }
        drop(payload);
        let middle = rows / 2;
        Ok(self.encode_or_halve(&batch.slice(0, middle), first_row)?
            && self.encode_or_halve(&batch.slice(middle, rows - middle), first_row + middle)?)
    }
}

/// As [`encode_to_fit`], without the encodings.
pub fn split_to_fit(
    batch: &RecordBatch,
    max_encoded_bytes: usize,
    compression: Compression,
) -> Result<Vec<RecordBatch>, SplitError> {
    Ok(encode_to_fit(batch, max_encoded_bytes, compression)?.into_iter().map(|part| part.batch).collect())
}
