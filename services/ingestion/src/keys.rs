//! Idempotency keys: who sent a request, its number, and which stretch of it a message holds.
//!
//! Pure. The same two facts travel in HTTP and in messages, and programs that write to a source's topic themselves may
//! send them too. The invariant: one producer's requests all go to one partition of a topic, from every process, since
//! the task of that partition is what tells a repeat. Deliberately absent: what was seen before (`sieve`).

use std::ops::Range;

use bytes::Bytes;
use runtime::dead_letters::shortened;
use topics::{Headers, Message};

/// The HTTP header, and what it looks like.
pub(crate) const HTTP_KEY: &str = "idempotency-key";
/// The message header with a key.
pub const KEY_HEADER: &str = "tailwater-idempotency-key";
/// The message header that says which stretch of its request a message holds. Without it, the whole.
pub const RANGE_HEADER: &str = "tailwater-idempotency-range";

/// The longest name of a producer.
const MAX_PRODUCER_BYTES: usize = 128;
/// Sequences stay below this, so that "the next one" is always a number.
const SEQUENCE_END: u64 = 1 << 63;

/// `<producer>:<sequence>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) producer: String,
    pub(crate) sequence: u64,
}

/// What the stretches of a request count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Bytes of its rows as text, without a CSV header.
    Bytes,
    /// Rows, where the same row may be encoded to other bytes.
    Rows,
}

/// The stretch of a request a message holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stretch {
    pub(crate) unit: Unit,
    pub(crate) range: Range<u64>,
    pub(crate) total: u64,
}

/// A key that is not one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum KeyFault {
    #[error("`{found}` is not `<producer>:<sequence>`")]
    Shape { found: String },
    #[error("the producer in `{found}` is not 1 to {MAX_PRODUCER_BYTES} letters, digits or any of . _ - : / @ +")]
    Producer { found: String },
    #[error("the sequence `{found}` is not a number from 0 to 2^63-1")]
    Sequence { found: String },
    #[error("`{found}` is not `bytes <from>-<to>/<total>` or `rows <from>-<to>/<total>`")]
    Range { found: String },
    #[error("header `{RANGE_HEADER}` says {said} bytes, the message has {found}")]
    Short { said: u64, found: u64 },
}

impl Key {
    pub(crate) fn parse(text: &str) -> Result<Self, KeyFault> {
        let text = text.trim();
        // The quotes that the draft of the header asks for.
        let text = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
        let shape = || KeyFault::Shape { found: in_short(text) };
        let (producer, sequence) = text.rsplit_once(':').ok_or_else(shape)?;
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-:/@+".contains(&byte);
        if producer.is_empty() || producer.len() > MAX_PRODUCER_BYTES || !producer.bytes().all(plain) {
            return Err(KeyFault::Producer { found: in_short(text) });
        }
        let sequence = number(sequence).filter(|&sequence| sequence < SEQUENCE_END);
        let sequence = sequence.ok_or_else(|| KeyFault::Sequence { found: in_short(text) })?;
        Ok(Self { producer: producer.to_owned(), sequence })
    }

    /// The headers of a message that holds `stretch` of the request.
    pub(crate) fn headers(&self, stretch: &Stretch) -> [(String, Bytes); 2] {
        let unit = match stretch.unit {
            Unit::Bytes => "bytes",
            Unit::Rows => "rows",
        };
        let range = format!("{unit} {}-{}/{}", stretch.range.start, stretch.range.end, stretch.total);
        let key = format!("{}:{}", self.producer, self.sequence);
        [(KEY_HEADER.to_owned(), key.into()), (RANGE_HEADER.to_owned(), range.into())]
    }

    /// The partition of a topic of `partitions` that all requests of this producer go to.
    pub(crate) fn partition(&self, partitions: u32) -> u32 {
        u32::try_from(hash(self.producer.as_bytes()) % u64::from(partitions.max(1))).unwrap_or(0)
    }
}

impl Stretch {
    fn parse(text: &str) -> Result<Self, KeyFault> {
        let parsed = || {
            let (unit, rest) = text.trim().split_once(' ')?;
            let (range, total) = rest.split_once('/')?;
            let (from, to) = range.split_once('-')?;
            let unit = match unit {
                "bytes" => Unit::Bytes,
                "rows" => Unit::Rows,
                _ => return None,
            };
            let (range, total) = (number(from)?..number(to)?, number(total)?);
            let sound = range.end <= total && (range.start < range.end || total == 0);
            sound.then_some(Self { unit, range, total })
        };
        parsed().ok_or_else(|| KeyFault::Range { found: in_short(text) })
    }

    pub(crate) fn length(&self) -> u64 {
        self.range.end - self.range.start
    }
}

/// What a message says of the request it belongs to; `None` for a message without a key.
pub(crate) fn key_of(message: &Message) -> Option<Result<(Key, Stretch), KeyFault>> {
    let key = text_of(&message.headers, KEY_HEADER)?;
    Some(key.and_then(|key| Ok((Key::parse(key)?, stretch_of(message)?))))
}

fn stretch_of(message: &Message) -> Result<Stretch, KeyFault> {
    let found = message.payload.len() as u64;
    let Some(range) = text_of(&message.headers, RANGE_HEADER) else {
        return Ok(Stretch { unit: Unit::Bytes, range: 0..found, total: found });
    };
    let stretch = Stretch::parse(range?)?;
    if stretch.unit == Unit::Bytes && stretch.length() > found {
        return Err(KeyFault::Short { said: stretch.length(), found });
    }
    Ok(stretch)
}

fn text_of<'a>(headers: &'a Headers, wanted: &str) -> Option<Result<&'a str, KeyFault>> {
    let (_, value) = headers.iter().find(|(name, _)| name == wanted)?;
    Some(std::str::from_utf8(value).map_err(|_| KeyFault::Shape { found: "(not text)".to_owned() }))
}

/// A number as it is written: digits only.
fn number(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

fn in_short(text: &str) -> String {
    shortened(text, 2 * MAX_PRODUCER_BYTES).into_owned()
}

/// FNV-1a with a last mix: which partition a producer has is part of what is stored, so it never changes.
fn hash(bytes: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325;
    for &byte in bytes {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    (hash ^ (hash >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn key(text: &str) -> Key {
        Key::parse(text).unwrap()
    }

    #[test]
    fn a_key_is_a_producer_and_a_number() {
        assert_eq!(key("till-7:12"), Key { producer: "till-7".into(), sequence: 12 });
        assert_eq!(key(" \"a:b:0\" "), Key { producer: "a:b".into(), sequence: 0 });
        for (text, says) in [
            ("", "<producer>:<sequence>"),
            ("7b0c1fd2-4a1e-4e5f-9d0e-2f6f5f3a1b22", "<producer>:<sequence>"),
            (":1", "producer"),
            ("a b:1", "producer"),
            (&format!("{}:1", "x".repeat(129)), "producer"),
            ("a:", "sequence"),
            ("a:+1", "sequence"),
            ("a:-1", "sequence"),
            ("a:1.0", "sequence"),
            ("a:9223372036854775808", "sequence"),
        ] {
            let fault = Key::parse(text).unwrap_err().to_string();
            assert!(fault.contains(says), "{text}: {fault}");
        }
    }

    #[test]
    fn what_the_door_writes_the_task_reads() {
        let stretch = Stretch { unit: Unit::Rows, range: 3..7, total: 9 };
        let headers = Vec::from(key("till-7:12").headers(&stretch));
        let message = Message { offset: 0, timestamp_ms: 0, key: None, payload: Bytes::new(), headers };
        assert_eq!(key_of(&message), Some(Ok((key("till-7:12"), stretch))));
    }

    #[test]
    fn a_range_that_cannot_be_is_refused() {
        for text in ["bytes 0-1", "bytes 2-1/3", "bytes 1-1/3", "bytes 0-4/3", "lines 0-1/1", "bytes -1-2/3", ""] {
            assert!(Stretch::parse(text).is_err(), "{text}");
        }
        assert!(Stretch::parse("bytes 0-0/0").is_ok());
    }

    #[test]
    fn a_producer_keeps_its_partition_and_producers_are_spread() {
        // Stored in topics: these numbers must never change.
        assert_eq!([1, 7, 100].map(|partitions| key("till-7:1").partition(partitions)), [0, 4, 15]);
        let mut taken = [0; 8];
        for producer in 0..8000 {
            taken[key(&format!("p{producer}:1")).partition(8) as usize] += 1;
        }
        assert!(taken.iter().all(|count| (800..1200).contains(count)), "{taken:?}");
    }
}
