//! A message remembered by its fingerprint: tells whether a log still holds what was read from it.
//!
//! Positions alone cannot tell a topic that was deleted and created again from the old one, and not every log has a
//! name for the difference. The invariant: equal messages have equal witnesses, on any machine and in any version; a
//! change of the timestamp, or of the first or last 4 KiB of key, payload or a header, goes unseen once in 2^64.

use serde::{Deserialize, Serialize};

/// The last message a task took before its position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Witness {
    /// Where it stood.
    pub offset: u64,
    /// Its timestamp, milliseconds since 1970.
    pub timestamp_ms: i64,
    /// FNV-1a over its parts: of each its length, its first and its last 4 KiB.
    pub hash: u64,
}

impl Witness {
    /// A witness of the message that stands at `offset` and has these `parts`; an absent part is not an empty one.
    pub fn of<'a>(offset: u64, timestamp_ms: i64, parts: impl IntoIterator<Item = Option<&'a [u8]>>) -> Self {
        let mut hash = OFFSET_BASIS;
        for part in parts {
            let length = part.map_or(u64::MAX, |part| part.len() as u64);
            hash = fnv1a(hash, &length.to_le_bytes());
            let part = part.unwrap_or_default();
            let head = part.len().min(SAMPLE_BYTES);
            let tail = part.len().saturating_sub(SAMPLE_BYTES).max(head);
            hash = fnv1a(fnv1a(hash, &part[..head]), &part[tail..]);
        }
        Self { offset, timestamp_ms, hash }
    }
}

/// A witness is taken from every batch that is read, so it must cost nothing to speak of.
const SAMPLE_BYTES: usize = 4096;
const OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0000_0100_0000_01b3;

fn fnv1a(start: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(start, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(PRIME))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_witness_is_the_same_on_every_machine_and_sees_every_change() {
        let of = |key: Option<&'static [u8]>, payload: &'static [u8]| Witness::of(7, 1_000, [key, Some(payload)]);
        let stored = of(Some(b"k"), b"row");
        assert_eq!(stored.hash, 0x92c2_9600_3e91_1a72, "stored in checkpoints, and so frozen");
        let others = [of(None, b"row"), of(Some(b""), b"row"), of(Some(b"kr"), b"ow"), of(Some(b"k"), b"rowx")];
        assert!(others.iter().all(|other| other.hash != stored.hash));
        assert_ne!(of(None, b"row"), of(Some(b""), b"row"));
    }
}
