//! A walk over an Arrow IPC stream before anything is decoded or allocated.
//!
//! The reader of the `arrow` crate trusts lengths: a compressed buffer announces its own uncompressed size, a message
//! its own body. Here every length is checked against the bytes at hand and the [`Limits`], so that hostile input costs
//! an error. What a buffer announces need not be what it comes to: the reader unpacks LZ4 to its end and compares then,
//! so for bytes of strangers it is unpacked into nothing first. Deliberately absent: validation of the values, which
//! the reader does itself, as it does bound what Zstandard comes to.

use std::io::{self, Read as _};

use arrow::ipc::{self, CompressionType, MessageHeader};
use lz4_flex::frame::FrameDecoder;

/// What one payload may unfold to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Rows of one batch.
    pub max_rows: usize,
    /// Decoded bytes of the whole payload.
    pub max_bytes: usize,
}

impl Default for Limits {
    /// A unit's row bound, and 256 MiB: 256 times what a message carries.
    fn default() -> Self {
        Self { max_rows: delivery::MAX_ROWS_PER_UNIT as usize, max_bytes: 256 << 20 }
    }
}

const CONTINUATION: [u8; 4] = [0xff; 4];
const MAX_FIELDS: usize = 10_000;
const MAX_DEPTH: usize = 64;

/// Checks every announced length in an IPC stream.
///
/// # Errors
/// What is wrong, in words, for the caller's error.
pub(crate) fn check_stream(stream: &[u8], limits: &Limits) -> Result<(), String> {
    let mut decoded_bytes = 0usize;
    each_message(stream, |message, body| {
        decoded_bytes = decoded_bytes.saturating_add(check_message(message, body, limits)?);
        if decoded_bytes > limits.max_bytes {
            return Err(format!("it unfolds to more than {} bytes", limits.max_bytes));
        }
        Ok(())
    })
}

/// Checks that no buffer comes to more than it announces, in a stream whose lengths are checked.
///
/// # Errors
/// As [`check_stream`].
pub(crate) fn check_unpacked(stream: &[u8]) -> Result<(), String> {
    each_message(stream, |message, body| {
        let batch = match message.header_type() {
            MessageHeader::DictionaryBatch => message.header_as_dictionary_batch().and_then(|batch| batch.data()),
            _ => message.header_as_record_batch(),
        };
        let is_lz4 = |batch: &ipc::RecordBatch<'_>| {
            batch.compression().is_some_and(|how| how.codec() == CompressionType::LZ4_FRAME)
        };
        let buffers = batch.filter(is_lz4).and_then(|batch| batch.buffers());
        buffers.into_iter().flatten().try_for_each(|buffer| check_lz4(bytes_of(buffer, body)?))
    })
}

/// Hands on every message of a stream with its body.
fn each_message(
    mut rest: &[u8],
    mut visit: impl FnMut(&ipc::Message<'_>, &[u8]) -> Result<(), String>,
) -> Result<(), String> {
    while let Some((metadata, after)) = next_metadata(rest)? {
        let message = ipc::root_as_message(metadata).map_err(|error| format!("message metadata: {error}"))?;
        let body_length = usize::try_from(message.bodyLength()).map_err(|_| "negative body length".to_owned())?;
        if body_length > after.len() {
            return Err(format!("a body of {body_length} bytes is announced, {} are there", after.len()));
        }
        let (body, following) = after.split_at(body_length);
        visit(&message, body)?;
        rest = following;
    }
    Ok(())
}

/// A message's metadata, and the bytes after it.
type Metadata<'a> = (&'a [u8], &'a [u8]);

/// The next message's metadata and what follows it, or `None` at the end of the stream.
fn next_metadata(bytes: &[u8]) -> Result<Option<Metadata<'_>>, String> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let body = bytes.strip_prefix(&CONTINUATION[..]).unwrap_or(bytes);
    let Some((length, after)) = body.split_first_chunk::<4>() else {
        return Err("it ends inside a message length".to_owned());
    };
    let length = usize::try_from(i32::from_le_bytes(*length)).map_err(|_| "negative metadata length".to_owned())?;
    if length == 0 {
        return Ok(None);
    }
    if length > after.len() {
        return Err(format!("metadata of {length} bytes is announced, {} are there", after.len()));
    }
    Ok(Some(after.split_at(length)))
}

/// The decoded bytes of one message.
fn check_message(message: &ipc::Message<'_>, body: &[u8], limits: &Limits) -> Result<usize, String> {
    match message.header_type() {
        MessageHeader::Schema => check_schema(message).map(|()| 0),
        MessageHeader::RecordBatch => {
            let batch = message.header_as_record_batch().ok_or("a record batch without content")?;
            check_batch(&batch, body, limits)
        }
        MessageHeader::DictionaryBatch => {
            let dictionary = message.header_as_dictionary_batch().ok_or("a dictionary without content")?;
            let batch = dictionary.data().ok_or("a dictionary without values")?;
            check_batch(&batch, body, limits)
        }
        other => Err(format!("unexpected message of kind {other:?}")),
    }
}

fn check_schema(message: &ipc::Message<'_>) -> Result<(), String> {
    let schema = message.header_as_schema().ok_or("a schema without content")?;
    let mut fields = 0;
    for field in schema.fields().into_iter().flatten() {
        check_field(&field, 1, &mut fields)?;
    }
    Ok(())
}

fn check_field(field: &ipc::Field<'_>, depth: usize, fields: &mut usize) -> Result<(), String> {
    *fields += 1;
    if *fields > MAX_FIELDS || depth > MAX_DEPTH {
        return Err(format!("more than {MAX_FIELDS} fields, or nested deeper than {MAX_DEPTH}"));
    }
    for child in field.children().into_iter().flatten() {
        check_field(&child, depth + 1, fields)?;
    }
    Ok(())
}

fn check_batch(batch: &ipc::RecordBatch<'_>, body: &[u8], limits: &Limits) -> Result<usize, String> {
    let rows = usize::try_from(batch.length()).map_err(|_| "negative row count".to_owned())?;
    if rows > limits.max_rows {
        return Err(format!("a batch of {rows} rows, at most {} are taken", limits.max_rows));
    }
    for node in batch.nodes().into_iter().flatten() {
        let length = usize::try_from(node.length()).map_err(|_| "negative column length".to_owned())?;
        let nulls = usize::try_from(node.null_count()).map_err(|_| "negative null count".to_owned())?;
        if length > limits.max_bytes.saturating_mul(8) || nulls > length {
            return Err(format!("a column of {length} values with {nulls} nulls"));
        }
    }
    let compressed = batch.compression().is_some();
    let mut decoded_bytes = 0usize;
    for buffer in batch.buffers().into_iter().flatten() {
        decoded_bytes = decoded_bytes.saturating_add(check_buffer(buffer, body, compressed)?);
    }
    Ok(decoded_bytes)
}

/// The decoded size of one buffer: its own length, or what a compressed one announces.
fn check_buffer(buffer: &ipc::Buffer, body: &[u8], compressed: bool) -> Result<usize, String> {
    let bytes = bytes_of(buffer, body)?;
    let packed = if compressed { packed_buffer(bytes)? } else { None };
    Ok(packed.map_or(bytes.len(), |(announced, _)| announced))
}

fn bytes_of<'a>(buffer: &ipc::Buffer, body: &'a [u8]) -> Result<&'a [u8], String> {
    let offset = usize::try_from(buffer.offset()).map_err(|_| "negative buffer offset".to_owned())?;
    let length = usize::try_from(buffer.length()).map_err(|_| "negative buffer length".to_owned())?;
    let bytes = offset.checked_add(length).and_then(|end| body.get(offset..end));
    bytes.ok_or_else(|| "a buffer outside its body".to_owned())
}

/// What a buffer announces in its first eight bytes, and what stands behind them; `None` for one that is not packed.
fn packed_buffer(bytes: &[u8]) -> Result<Option<(usize, &[u8])>, String> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let Some((announced, packed)) = bytes.split_first_chunk::<8>() else {
        return Err("a compressed buffer without its length".to_owned());
    };
    match i64::from_le_bytes(*announced) {
        -1 => Ok(None),
        announced => match usize::try_from(announced) {
            Ok(announced) => Ok(Some((announced, packed))),
            Err(_) => Err("negative uncompressed length".to_owned()),
        },
    }
}

fn check_lz4(bytes: &[u8]) -> Result<(), String> {
    // Of one that announces nothing, nothing is unpacked.
    let Some((announced, packed)) = packed_buffer(bytes)?.filter(|(announced, _)| *announced > 0) else {
        return Ok(());
    };
    let mut unpacked = FrameDecoder::new(packed).take(announced as u64 + 1);
    let found = io::copy(&mut unpacked, &mut io::sink()).map_err(|error| format!("a compressed buffer: {error}"))?;
    match found > announced as u64 {
        true => Err(format!("a compressed buffer unpacks to more than the {announced} bytes it announces")),
        false => Ok(()),
    }
}
