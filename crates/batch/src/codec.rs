//! Bytes ↔ batch: one self-contained Arrow IPC stream a message.
//!
//! Any Arrow client can read a payload as it is. Views are compacted before encoding, since a slice of a view batch
//! writes all of its string buffers. Decoding checks announced lengths first (`guard`).

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use arrow::{
    array::{ArrayRef, AsArray, RecordBatch, RecordBatchOptions},
    buffer::Buffer,
    datatypes::DataType,
    error::ArrowError,
    ipc::{
        CompressionType,
        reader::StreamDecoder,
        writer::{IpcWriteOptions, StreamWriter},
    },
};
use bytes::Bytes;
use delivery::ErrorClass;

use crate::{
    Envelope, Headers, Limits,
    envelope::encode_envelope,
    guard::{check_stream, check_unpacked},
    schema::fingerprint,
};

/// How the buffers inside a payload are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// For the embedded log: the disk is near.
    None,
    /// For Kafka: a third fewer bytes for about 0.2 µs a row.
    Lz4,
}

/// A payload that cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The batch has a type that does not travel.
    #[error("batch cannot be encoded as Arrow IPC")]
    Encode(#[source] ArrowError),
    /// The envelope says something else than the batch.
    #[error("envelope announces {announced}, the batch has {found}")]
    Mismatch {
        /// What the envelope says.
        announced: String,
        /// What the batch is.
        found: String,
    },
    /// A length in the payload is wrong or over a limit.
    #[error("payload of {bytes} bytes is not a sound Arrow IPC stream: {reason}")]
    Unsound {
        /// The payload's size.
        bytes: usize,
        /// What is wrong.
        reason: String,
    },
    /// The reader refused it.
    #[error("payload is not readable as Arrow IPC")]
    Decode(#[source] ArrowError),
    /// A message holds exactly one batch.
    #[error("payload holds {found} batches, a channel's message holds one")]
    NotOneBatch {
        /// How many there are.
        found: usize,
    },
}

impl CodecError {
    /// Bytes do not get better: dead-letter them. A batch of ours that cannot be encoded is a defect: stop.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Encode(_) | Self::Mismatch { .. } => ErrorClass::Stop,
            Self::Unsound { .. } | Self::Decode(_) | Self::NotOneBatch { .. } => ErrorClass::Reject,
        }
    }
}

/// Encodes a message: its headers and its payload.
///
/// # Errors
/// `Mismatch` when the envelope's row count or fingerprint is not the batch's; `Encode` when a type does not travel.
pub fn encode(
    envelope: &Envelope,
    batch: &RecordBatch,
    compression: Compression,
) -> Result<(Headers, Bytes), CodecError> {
    if envelope.rows as usize != batch.num_rows() {
        return Err(mismatch(format!("{} rows", envelope.rows), format!("{} rows", batch.num_rows())));
    }
    let found = fingerprint(&batch.schema());
    if envelope.fingerprint != found {
        return Err(mismatch(format!("schema {:032x}", envelope.fingerprint), format!("schema {found:032x}")));
    }
    Ok((encode_envelope(envelope), encode_stream(batch, compression)?))
}

fn mismatch(announced: String, found: String) -> CodecError {
    CodecError::Mismatch { announced, found }
}

/// Encodes a batch as one self-contained IPC stream.
///
/// # Errors
/// `Encode` when a type does not travel.
pub fn encode_stream(batch: &RecordBatch, compression: Compression) -> Result<Bytes, CodecError> {
    let compacted = compact_views(batch).map_err(CodecError::Encode)?;
    let codec = match compression {
        Compression::None => None,
        Compression::Lz4 => Some(CompressionType::LZ4_FRAME),
    };
    let options = IpcWriteOptions::default().try_with_compression(codec).map_err(CodecError::Encode)?;
    let mut bytes = Vec::with_capacity(compacted.get_array_memory_size() / 2 + 1024);
    let mut writer =
        StreamWriter::try_new_with_options(&mut bytes, &compacted.schema(), options).map_err(CodecError::Encode)?;
    writer.write(&compacted).and_then(|()| writer.finish()).map_err(CodecError::Encode)?;
    drop(writer);
    Ok(Bytes::from(bytes))
}

/// Drops the string bytes no row of a view column points at any more.
fn compact_views(batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let has_views = |data_type: &DataType| matches!(data_type, DataType::Utf8View | DataType::BinaryView);
    if !batch.schema().fields().iter().any(|field| has_views(field.data_type())) {
        return Ok(batch.clone());
    }
    let columns = batch.columns().iter().map(compact_column).collect();
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(batch.schema(), columns, &options)
}

fn compact_column(column: &ArrayRef) -> ArrayRef {
    match column.data_type() {
        DataType::Utf8View => Arc::new(column.as_string_view().gc()),
        DataType::BinaryView => Arc::new(column.as_binary_view().gc()),
        _ => Arc::clone(column),
    }
}

/// Decodes the one batch of a channel's message, which our own programs write: what its buffers say of themselves is
/// believed until they are unpacked.
///
/// # Errors
/// All of class `Reject`: the bytes are not ours, or damaged.
pub fn decode_batch(payload: &Bytes, limits: &Limits) -> Result<RecordBatch, CodecError> {
    let mut batches = decode(payload, limits, |_| Ok(()))?;
    match (batches.pop(), batches.is_empty()) {
        (Some(batch), true) => Ok(batch),
        (None, _) => Err(CodecError::NotOneBatch { found: 0 }),
        (Some(_), false) => Err(CodecError::NotOneBatch { found: batches.len() + 1 }),
    }
}

/// Decodes an Arrow IPC stream of any number of batches, as users send it. Nothing it says of itself is believed, so
/// LZ4 is unpacked twice.
///
/// # Errors
/// All of class `Reject`.
pub fn decode_stream(payload: &Bytes, limits: &Limits) -> Result<Vec<RecordBatch>, CodecError> {
    decode(payload, limits, check_unpacked)
}

fn decode(
    payload: &Bytes,
    limits: &Limits,
    check_further: impl Fn(&[u8]) -> Result<(), String>,
) -> Result<Vec<RecordBatch>, CodecError> {
    let unsound = |reason: String| CodecError::Unsound { bytes: payload.len(), reason };
    check_stream(payload, limits).map_err(unsound)?;
    // The reader of arrow 59 still panics on some damaged schemas and bitmaps (unknown types, short buffers).
    let decoded = catch_unwind(AssertUnwindSafe(|| {
        check_further(payload).map_err(unsound)?;
        read_stream(payload)
    }));
    decoded.unwrap_or_else(|_| Err(unsound("the reader gave up on it".to_owned())))
}

fn read_stream(payload: &Bytes) -> Result<Vec<RecordBatch>, CodecError> {
    let mut buffer = Buffer::from(payload.clone());
    let mut decoder = StreamDecoder::new();
    let mut batches = Vec::new();
    while let Some(batch) = decoder.decode(&mut buffer).map_err(CodecError::Decode)? {
        batches.push(batch);
    }
    decoder.finish().map_err(CodecError::Decode)?;
    Ok(batches)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
