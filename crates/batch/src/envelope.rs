//! The headers of a channel's message, in bytes. The layout is frozen per version; `docs/envelope.md` spells it out.
//!
//! Numbers are little-endian. A header that does not apply is absent. Unknown headers are ignored, an unknown version
//! is refused: it may cover its stretch in a way this build does not understand.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use delivery::{ErrorClass, InvalidOrigin, Origin, Position, Totals, Writer};

use crate::bounds::{ColumnBounds, decode_bounds, encode_bounds};

/// Header names with their bytes, as a topic carries them.
pub type Headers = Vec<(String, Bytes)>;

/// The version this build writes and the only one it reads.
const VERSION: u8 = 1;

mod name {
    pub(super) const VERSION: &str = "v";
    pub(super) const SCHEMA: &str = "schema";
    pub(super) const ROWS: &str = "rows";
    pub(super) const EVENT_TIME: &str = "event-time";
    pub(super) const WATERMARK: &str = "watermark";
    pub(super) const ORIGIN: &str = "origin";
    pub(super) const TOTALS: &str = "totals";
    pub(super) const PORT: &str = "port";
    pub(super) const TRACE: &str = "traceparent";
    pub(super) const BOUNDS: &str = "bounds";
}

/// Which of a writer's outputs a message belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Port {
    /// Good rows.
    Data,
    /// Dead letters.
    Rejected,
}

/// What a message says of itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Envelope {
    /// Identity of the batch's schema, with the offset column.
    pub fingerprint: u128,
    /// Rows in the batch.
    pub rows: u32,
    /// Smallest and largest event time in the batch, microseconds UTC.
    pub event_time: Option<(i64, i64)>,
    /// No later row of this writer is expected to be older, microseconds UTC.
    pub watermark: Option<i64>,
    /// Writer and stretch covered.
    pub origin: Origin,
    /// The writer's running totals up to `origin.to`.
    pub totals: Totals,
    /// Data or dead letters.
    pub port: Port,
    /// W3C trace context of the request that brought the first row, if it was traced.
    pub traceparent: Option<String>,
    /// Per-column minimum and maximum, for the columns a definition asks for.
    pub bounds: Vec<ColumnBounds>,
}

/// Headers that are not a sound envelope.
#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    /// A header every message has is not there: not a channel's message.
    #[error("header `{header}` is missing; only Tailwater writes to a channel")]
    Missing {
        /// Which.
        header: &'static str,
    },
    /// Written by a newer Tailwater.
    #[error("envelope has version {found}, this build reads {VERSION}; upgrade the reader")]
    UnknownVersion {
        /// The version found.
        found: u8,
    },
    /// A header's bytes do not have the documented shape.
    #[error("header `{header}` has {length} bytes of an unexpected shape")]
    Malformed {
        /// Which.
        header: &'static str,
        /// Its size.
        length: usize,
    },
    /// The stretch ends before it begins.
    #[error(transparent)]
    Origin(#[from] InvalidOrigin),
}

impl EnvelopeError {
    /// A channel with foreign or newer messages cannot be read on: skipping one might skip rows.
    pub fn class(&self) -> ErrorClass {
        ErrorClass::Stop
    }
}

/// Writes an envelope as headers.
pub fn encode_envelope(envelope: &Envelope) -> Headers {
    let mut headers: Headers = vec![
        (name::VERSION.into(), Bytes::from_static(&[VERSION])),
        (name::SCHEMA.into(), Bytes::copy_from_slice(&envelope.fingerprint.to_le_bytes())),
        (name::ROWS.into(), Bytes::copy_from_slice(&envelope.rows.to_le_bytes())),
        (name::ORIGIN.into(), encode_origin(&envelope.origin)),
        (name::TOTALS.into(), encode_totals(&envelope.totals)),
        (
            name::PORT.into(),
            Bytes::from_static(match envelope.port {
                Port::Data => &[0],
                Port::Rejected => &[1],
            }),
        ),
    ];
    if let Some((first, last)) = envelope.event_time {
        let bytes = [first.to_le_bytes(), last.to_le_bytes()].concat();
        headers.push((name::EVENT_TIME.into(), bytes.into()));
    }
    if let Some(watermark) = envelope.watermark {
        headers.push((name::WATERMARK.into(), Bytes::copy_from_slice(&watermark.to_le_bytes())));
    }
    if let Some(trace) = &envelope.traceparent {
        headers.push((name::TRACE.into(), Bytes::copy_from_slice(trace.as_bytes())));
    }
    if !envelope.bounds.is_empty() {
        headers.push((name::BOUNDS.into(), encode_bounds(&envelope.bounds)));
    }
    headers
}

fn encode_origin(origin: &Origin) -> Bytes {
    let mut bytes = BytesMut::with_capacity(24 + origin.writer.as_str().len());
    for position in [origin.from, origin.to] {
        bytes.put_u64_le(position.offset);
        bytes.put_u32_le(position.row);
    }
    bytes.put_slice(origin.writer.as_str().as_bytes());
    bytes.freeze()
}

fn encode_totals(totals: &Totals) -> Bytes {
    let mut bytes = BytesMut::with_capacity(40);
    for count in [totals.read, totals.emitted, totals.rejected, totals.filtered, totals.late] {
        bytes.put_u64_le(count);
    }
    bytes.freeze()
}

/// Reads an envelope back from a message's headers.
///
/// # Errors
/// See [`EnvelopeError`]; all of class `Stop`.
pub fn decode_envelope(headers: &[(String, Bytes)]) -> Result<Envelope, EnvelopeError> {
    match required(headers, name::VERSION)?.as_ref() {
        [VERSION] => {}
        [found] => return Err(EnvelopeError::UnknownVersion { found: *found }),
        other => return Err(malformed(name::VERSION, other)),
    }
    Ok(Envelope {
        fingerprint: u128::from_le_bytes(fixed(headers, name::SCHEMA)?),
        rows: u32::from_le_bytes(fixed(headers, name::ROWS)?),
        event_time: optional(headers, name::EVENT_TIME, decode_event_time)?,
        watermark: optional(headers, name::WATERMARK, |bytes| Some(i64::from_le_bytes(bytes.try_into().ok()?)))?,
        origin: decode_origin(required(headers, name::ORIGIN)?)?,
        totals: decode_totals(required(headers, name::TOTALS)?)?,
        port: decode_port(required(headers, name::PORT)?)?,
        traceparent: optional(headers, name::TRACE, |bytes| Some(std::str::from_utf8(bytes).ok()?.to_owned()))?,
        bounds: optional(headers, name::BOUNDS, decode_bounds)?.unwrap_or_default(),
    })
}

fn find<'a>(headers: &'a [(String, Bytes)], wanted: &str) -> Option<&'a Bytes> {
    headers.iter().find(|(name, _)| name == wanted).map(|(_, bytes)| bytes)
}

fn required<'a>(headers: &'a [(String, Bytes)], header: &'static str) -> Result<&'a Bytes, EnvelopeError> {
    find(headers, header).ok_or(EnvelopeError::Missing { header })
}

fn fixed<const N: usize>(headers: &[(String, Bytes)], header: &'static str) -> Result<[u8; N], EnvelopeError> {
    let bytes = required(headers, header)?;
    bytes.as_ref().try_into().map_err(|_| malformed(header, bytes))
}

fn optional<T>(
    headers: &[(String, Bytes)],
    header: &'static str,
    decode: impl Fn(&[u8]) -> Option<T>,
) -> Result<Option<T>, EnvelopeError> {
    match find(headers, header) {
        None => Ok(None),
        Some(bytes) => decode(bytes).map(Some).ok_or_else(|| malformed(header, bytes)),
    }
}

fn malformed(header: &'static str, bytes: &[u8]) -> EnvelopeError {
    EnvelopeError::Malformed { header, length: bytes.len() }
}

fn decode_event_time(bytes: &[u8]) -> Option<(i64, i64)> {
    let (first, last) = bytes.split_first_chunk::<8>()?;
    Some((i64::from_le_bytes(*first), i64::from_le_bytes(last.try_into().ok()?)))
}

fn decode_origin(bytes: &Bytes) -> Result<Origin, EnvelopeError> {
    let shape = || malformed(name::ORIGIN, bytes);
    let mut rest = bytes.as_ref();
    if rest.len() < 24 {
        return Err(shape());
    }
    let from = Position::inside(rest.get_u64_le(), rest.get_u32_le());
    let to = Position::inside(rest.get_u64_le(), rest.get_u32_le());
    let writer = std::str::from_utf8(rest).map_err(|_| shape())?;
    Ok(Origin::new(Writer::new(writer), from, to)?)
}

fn decode_totals(bytes: &Bytes) -> Result<Totals, EnvelopeError> {
    let mut rest = bytes.as_ref();
    if rest.len() != 40 {
        return Err(malformed(name::TOTALS, bytes));
    }
    Ok(Totals {
        read: rest.get_u64_le(),
        emitted: rest.get_u64_le(),
        rejected: rest.get_u64_le(),
        filtered: rest.get_u64_le(),
        late: rest.get_u64_le(),
    })
}

fn decode_port(bytes: &Bytes) -> Result<Port, EnvelopeError> {
    match bytes.as_ref() {
        [0] => Ok(Port::Data),
        [1] => Ok(Port::Rejected),
        other => Err(malformed(name::PORT, other)),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
