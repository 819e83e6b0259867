//! The bytes of the embedded log: keys, messages, topics.
//!
//! Invariant: `decode(encode(x)) = x`, and bytes that this version did not write are refused by name.
//! The layouts are stored, and so frozen; a new one gets a new version byte.

use std::time::Duration;

use bytes::{Buf, Bytes};

use crate::{Headers, Message, NewMessage, Retention, TopicSettings};

const VERSION: u8 = 1;
const HAS_KEY: u8 = 1;
const HAS_HEADERS: u8 = 2;
/// Version, flags, time of the append, time of the message.
const FIXED_BYTES: usize = 1 + 1 + 8 + 8;

/// Topic, partition, offset, such that the order of bytes is the order of messages.
pub(crate) type MessageKey = [u8; 16];

pub(crate) fn message_key(topic: u32, partition: u32, offset: u64) -> MessageKey {
    let mut key = [0; 16];
    key[..4].copy_from_slice(&topic.to_be_bytes());
    key[4..8].copy_from_slice(&partition.to_be_bytes());
    key[8..].copy_from_slice(&offset.to_be_bytes());
    key
}

pub(crate) fn offset_of(key: &MessageKey) -> u64 {
    let mut offset = &key[8..];
    offset.get_u64()
}

/// Bytes [`encode_message`] needs.
pub(crate) fn message_bytes(message: &NewMessage) -> usize {
    let key = message.key.as_ref().map_or(0, |key| 4 + key.len());
    FIXED_BYTES + key + headers_bytes(&message.headers) + message.payload.len()
}

fn headers_bytes(headers: &Headers) -> usize {
    if headers.is_empty() {
        return 0;
    }
    let each = headers.iter().map(|(n, v)| 8 + n.len() + v.len());
    4 + each.sum::<usize>()
}

/// Fills `out`, which is exactly [`message_bytes`] long. The payload is copied once, into its page.
pub(crate) fn encode_message(message: &NewMessage, appended_ms: i64, out: &mut [u8]) {
    let mut out = Cursor(out);
    let has_key = u8::from(message.key.is_some()) * HAS_KEY;
    let has_headers = u8::from(!message.headers.is_empty()) * HAS_HEADERS;
    out.put(&[VERSION, has_key | has_headers]);
    out.put(&appended_ms.to_le_bytes());
    let timestamp_ms = message.timestamp_ms.unwrap_or(appended_ms);
    out.put(&timestamp_ms.to_le_bytes());
    if let Some(key) = &message.key {
        out.put_sized(key);
    }
    if !message.headers.is_empty() {
        out.put(&(message.headers.len() as u32).to_le_bytes());
        for (name, value) in &message.headers {
            out.put_sized(name.as_bytes());
            out.put_sized(value);
        }
    }
    out.put(&message.payload);
}

struct Cursor<'a>(&'a mut [u8]);

impl Cursor<'_> {
    fn put(&mut self, bytes: &[u8]) {
        let rest = std::mem::take(&mut self.0);
        let (here, rest) = rest.split_at_mut(bytes.len());
        here.copy_from_slice(bytes);
        self.0 = rest;
    }

    fn put_sized(&mut self, bytes: &[u8]) {
        self.put(&(bytes.len() as u32).to_le_bytes());
        self.put(bytes);
    }
}

/// When a stored message was appended, without decoding the rest.
pub(crate) fn appended_ms(stored: &[u8]) -> Result<i64, &'static str> {
    let bytes = stored.get(2..10).ok_or("too short")?;
    let mut bytes = bytes;
    Ok(bytes.get_i64_le())
}

/// Takes a stored message apart. Key, payload and header values are slices of `stored`.
pub(crate) fn decode_message(offset: u64, mut stored: Bytes) -> Result<Message, &'static str> {
    if stored.len() < FIXED_BYTES {
        return Err("too short");
    }
    if stored.get_u8() != VERSION {
        return Err("unknown version; it was written by a newer Tailwater");
    }
    let flags = stored.get_u8();
    stored.advance(8);
    let timestamp_ms = stored.get_i64_le();
    let key = match flags & HAS_KEY {
        0 => None,
        _ => Some(take_sized(&mut stored)?),
    };
    let headers = match flags & HAS_HEADERS {
        0 => Headers::new(),
        _ => take_headers(&mut stored)?,
    };
    Ok(Message { offset, timestamp_ms, key, payload: stored, headers })
}

fn take_headers(stored: &mut Bytes) -> Result<Headers, &'static str> {
    let count = take_u32(stored)? as usize;
    // Each takes at least 8 bytes, so a wrong count cannot ask for memory that is not there.
    if count > stored.len() / 8 {
        return Err("more headers than bytes");
    }
    let mut headers = Headers::with_capacity(count);
    for _ in 0..count {
        let name = take_sized(stored)?;
        let name = std::str::from_utf8(&name).map_err(|_| "header name is not UTF-8")?;
        headers.push((name.to_owned(), take_sized(stored)?));
    }
    Ok(headers)
}

fn take_sized(stored: &mut Bytes) -> Result<Bytes, &'static str> {
    let bytes = take_u32(stored)? as usize;
    if bytes > stored.len() {
        return Err("cut off");
    }
    Ok(stored.split_to(bytes))
}

fn take_u32(stored: &mut Bytes) -> Result<u32, &'static str> {
    if stored.len() < 4 {
        return Err("cut off");
    }
    Ok(stored.get_u32_le())
}

/// A topic as stored: its number (never used again) and its settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TopicRecord {
    pub(crate) id: u32,
    pub(crate) settings: TopicSettings,
}

/// `u64::MAX` stands for "for ever".
const FOR_EVER: u64 = u64::MAX;
const TOPIC_BYTES: usize = 1 + 4 + 4 + 8 + 8 + 8;

impl TopicRecord {
    pub(crate) fn encode(&self) -> [u8; TOPIC_BYTES] {
        let settings = &self.settings;
        let age_ms = settings.retention.age.map_or(FOR_EVER, |age| u64::try_from(age.as_millis()).unwrap_or(FOR_EVER));
        let mut bytes = [0; TOPIC_BYTES];
        let mut out = Cursor(&mut bytes);
        out.put(&[VERSION]);
        out.put(&self.id.to_le_bytes());
        out.put(&settings.partitions.to_le_bytes());
        out.put(&settings.retention.bytes.unwrap_or(FOR_EVER).to_le_bytes());
        out.put(&age_ms.to_le_bytes());
        out.put(&(settings.max_message_bytes as u64).to_le_bytes());
        bytes
    }

    pub(crate) fn decode(mut stored: &[u8]) -> Result<Self, &'static str> {
        if stored.len() != TOPIC_BYTES || stored.get_u8() != VERSION {
            return Err("unknown version; it was written by a newer Tailwater");
        }
        let id = stored.get_u32_le();
        let partitions = stored.get_u32_le();
        let bytes = Some(stored.get_u64_le()).filter(|bytes| *bytes != FOR_EVER);
        let age_ms = Some(stored.get_u64_le()).filter(|age| *age != FOR_EVER);
        let retention = Retention { bytes, age: age_ms.map(Duration::from_millis) };
        let max_message_bytes = usize::try_from(stored.get_u64_le()).unwrap_or(usize::MAX);
        Ok(Self { id, settings: TopicSettings { partitions, retention, max_message_bytes } })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_bytes() -> impl Strategy<Value = Bytes> {
        prop::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from)
    }

    fn any_message() -> impl Strategy<Value = NewMessage> {
        let headers = prop::collection::vec((".{0,8}", any_bytes()), 0..4);
        let key = prop::option::of(any_bytes());
        (key, any_bytes(), headers, prop::option::of(any::<i64>()))
            .prop_map(|(key, payload, headers, timestamp_ms)| NewMessage { key, payload, headers, timestamp_ms })
    }

    fn stored(message: &NewMessage, appended_ms: i64) -> Bytes {
        let mut bytes = vec![0; message_bytes(message)];
        encode_message(message, appended_ms, &mut bytes);
        Bytes::from(bytes)
    }

    proptest! {
        #[test]
        fn a_message_comes_back_as_it_was(message in any_message(), now: i64, offset: u64) {
            let bytes = stored(&message, now);
            prop_assert_eq!(appended_ms(&bytes), Ok(now));
            let expected = Message {
                offset,
                timestamp_ms: message.timestamp_ms.unwrap_or(now),
                key: message.key,
                payload: message.payload,
                headers: message.headers,
            };
            prop_assert_eq!(decode_message(offset, bytes), Ok(expected));
        }

        #[test]
        fn foreign_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..64), flags in 0u8..4) {
            let mut known = vec![VERSION, flags];
            known.extend_from_slice(&bytes);
            let _either = decode_message(0, Bytes::from(known));
            let _either = decode_message(0, Bytes::from(bytes));
        }

        #[test]
        fn keys_sort_like_positions(a: (u32, u32, u64), b: (u32, u32, u64)) {
            let (left, right) = (message_key(a.0, a.1, a.2), message_key(b.0, b.1, b.2));
            prop_assert_eq!(left.cmp(&right), a.cmp(&b));
            prop_assert_eq!(offset_of(&left), a.2);
        }

        #[test]
        fn a_topic_comes_back_as_it_was(id: u32, partitions: u32, bytes in prop::option::of(0..u64::MAX), age in prop::option::of(0u64..u64::MAX / 2), max: u32) {
            let record = TopicRecord { id, settings: TopicSettings {
                partitions,
                retention: Retention { bytes, age: age.map(Duration::from_millis) },
                max_message_bytes: max as usize,
            }};
            prop_assert_eq!(TopicRecord::decode(&record.encode()), Ok(record));
        }
    }

    #[test]
    fn a_newer_version_is_refused_by_name() {
        let mut bytes = stored(&NewMessage::of("x"), 1).to_vec();
        bytes[0] = VERSION + 1;
        let fault = decode_message(0, Bytes::from(bytes)).expect_err("refused");
        assert!(fault.contains("newer"), "{fault}");
    }
}
