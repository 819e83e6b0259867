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
    let mut parts = Vec::new();
    encode_or_halve(batch, 0, max_encoded_bytes, compression, &mut parts)?;
    Ok(parts)
}

/// Halving keeps the cost at two encodings a row, and parts of one batch equal in size.
fn encode_or_halve(
    batch: &RecordBatch,
    first_row: usize,
    max_encoded_bytes: usize,
    compression: Compression,
    parts: &mut Vec<Part>,
) -> Result<(), SplitError> {
    let rows = batch.num_rows();
    if rows == 0 {
        return Ok(());
    }
    let payload = encode_stream(batch, compression)?;
    if payload.len() <= max_encoded_bytes {
        parts.push(Part { batch: batch.clone(), payload });
        return Ok(());
    }
    if rows == 1 {
        return Err(SplitError::RowTooLarge { row: first_row, encoded_bytes: payload.len(), max_encoded_bytes });
    }
    drop(payload);
    let middle = rows / 2;
    encode_or_halve(&batch.slice(0, middle), first_row, max_encoded_bytes, compression, parts)?;
    let (second, first_row) = (batch.slice(middle, rows - middle), first_row + middle);
    encode_or_halve(&second, first_row, max_encoded_bytes, compression, parts)
}

/// As [`encode_to_fit`], without the encodings.
pub fn split_to_fit(
    batch: &RecordBatch,
    max_encoded_bytes: usize,
    compression: Compression,
) -> Result<Vec<RecordBatch>, SplitError> {
    Ok(encode_to_fit(batch, max_encoded_bytes, compression)?.into_iter().map(|part| part.batch).collect())
}
