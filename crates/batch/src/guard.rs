//! A walk over an Arrow IPC stream before anything is decoded or allocated.
//!
//! The reader of the `arrow` crate trusts lengths: a compressed buffer announces its own uncompressed size, a message
//! its own body. Here every length is checked against the bytes at hand and the [`Limits`], so that hostile input costs
//! an error. Deliberately absent: validation of the values, which the reader does itself.

use arrow::ipc::{self, MessageHeader};

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
pub(crate) fn check_stream(mut rest: &[u8], limits: &Limits) -> Result<(), String> {
    let mut decoded_bytes = 0usize;
    while let Some((metadata, after)) = next_metadata(rest)? {
        let message = ipc::root_as_message(metadata).map_err(|error| format!("message metadata: {error}"))?;
        let body_length = usize::try_from(message.bodyLength()).map_err(|_| "negative body length".to_owned())?;
        if body_length > after.len() {
            return Err(format!("a body of {body_length} bytes is announced, {} are there", after.len()));
        }
        let (body, following) = after.split_at(body_length);
        decoded_bytes = decoded_bytes.saturating_add(check_message(&message, body, limits)?);
        if decoded_bytes > limits.max_bytes {
            return Err(format!("it unfolds to more than {} bytes", limits.max_bytes));
        }
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

/// The decoded size of one buffer: its own length, or what a compressed one announces in its first eight bytes.
fn check_buffer(buffer: &ipc::Buffer, body: &[u8], compressed: bool) -> Result<usize, String> {
    let offset = usize::try_from(buffer.offset()).map_err(|_| "negative buffer offset".to_owned())?;
    let length = usize::try_from(buffer.length()).map_err(|_| "negative buffer length".to_owned())?;
    let bytes = offset.checked_add(length).and_then(|end| body.get(offset..end)).ok_or("a buffer outside its body")?;
    if !compressed || bytes.is_empty() {
        return Ok(length);
    }
    let announced = bytes.first_chunk::<8>().ok_or("a compressed buffer without its length")?;
    match i64::from_le_bytes(*announced) {
        -1 => Ok(length),
        announced => usize::try_from(announced).map_err(|_| "negative uncompressed length".to_owned()),
    }
}
