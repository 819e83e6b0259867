//! What a row of a verify run says: a function of the run's settings and the row's name.
//!
//! Invariant: the same settings, key and sequence number give the same row in every later version of this program, so
//! the checker knows what was sent without a copy of it. That is why the generator stands here and not in a crate.
//! Deliberately absent: which rows are sent when (`schedule`), and where to.

use serde::{Deserialize, Serialize};

/// The key under which bad rows are counted; no good row has it.
pub(crate) const BAD_KEY: i64 = -1;

/// Between the columns a checksum covers: a character no column but the payload may hold, and that comes last.
const SEPARATOR: &[u8] = b"\x1f";

/// Letters of payloads: those JSON writes as they are, those it escapes, and some of two and three bytes.
const LETTERS: [char; 32] = [
    'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i', 'j', 'k', 'l', 'm', 'n', 'o', 'p', 'q', 'r', 's', 't', '0', '1', '2',
    ' ', ',', '{', '"', '\\', '\n', '\'', 'é', '水',
];

/// What the content of rows depends on, besides their names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Settings {
    pub(crate) seed: u64,
    /// Bytes of a payload, from.
    pub(crate) min_bytes: u32,
    /// Bytes of a payload, to and with.
    pub(crate) max_bytes: u32,
}

/// Who sends.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Sender {
    pub(crate) run: String,
    pub(crate) producer: String,
}

/// A row of the table `events`, without its checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Row<'a> {
    pub(crate) run: &'a str,
    pub(crate) producer: &'a str,
    pub(crate) key: i64,
    pub(crate) seq: i64,
    /// The number of the send among the producer's sends.
    pub(crate) batch: i64,
    /// How many rows were sent in one request and must appear together.
    pub(crate) batch_rows: i64,
    /// Microseconds since 1970 in UTC.
    pub(crate) sent_at: i64,
    pub(crate) payload: &'a str,
}

impl Row<'_> {
    /// CRC-32 (as zlib computes it) of every column, as text, with a unit separator between them.
    pub(crate) fn crc(&self) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        for text in [self.run, self.producer] {
            hasher.update(text.as_bytes());
            hasher.update(SEPARATOR);
        }
        for number in [self.key, self.seq, self.batch, self.batch_rows, self.sent_at] {
            hasher.update(number.to_string().as_bytes());
            hasher.update(SEPARATOR);
        }
        hasher.update(self.payload.as_bytes());
        hasher.finalize()
    }

    /// The row as the source takes it.
    pub(crate) fn to_json(self) -> String {
        let Row { run, producer, key, seq, batch, batch_rows, sent_at, payload } = self;
        let payload = serde_json::Value::from(payload);
        let crc = self.crc();
        format!(
            r#"{{"run_id":"{run}","producer":"{producer}","key":{key},"seq":{seq},"batch":{batch},"batch_rows":{batch_rows},"sent_at":{sent_at},"crc":{crc},"payload":{payload}}}"#
        )
    }
}

/// The payload of a good row. Half of them are at most an eighth of the range long, one in sixteen goes to its end.
pub(crate) fn payload(settings: Settings, key: i64, seq: i64) -> String {
    let mut numbers = Numbers::of(settings.seed, key, seq);
    let bytes = length(settings, &mut numbers);
    let mut text = String::with_capacity(bytes);
    while text.len() < bytes {
        let mut bits = numbers.next();
        for _ in 0..12 {
            let letter = LETTERS[(bits & 31) as usize];
            bits >>= 5;
            let fits = text.len() + letter.len_utf8() <= bytes;
            text.push(if fits { letter } else { 'x' });
            if text.len() == bytes {
                break;
            }
        }
    }
    text
}

fn length(settings: Settings, numbers: &mut Numbers) -> usize {
    let range = u64::from(settings.max_bytes.saturating_sub(settings.min_bytes));
    let longest = match numbers.next() % 16 {
        0..8 => range / 8,
        8..15 => range / 2,
        _ => range,
    };
    settings.min_bytes as usize + (numbers.next() % (longest + 1)) as usize
}

/// A row that must be rejected: a value of the wrong type, broken syntax, or a missing value, in turn.
pub(crate) fn bad_row(sender: &Sender, seq: i64) -> String {
    let Sender { run, producer } = sender;
    let name = format!(r#""bad":"{run}/{producer}/{seq}""#);
    match seq % 3 {
        0 => format!(r#"{{{name},"run_id":"{run}","producer":"{producer}","key":"no number","seq":{seq}}}"#),
        1 => format!(r#"{{{name},"run_id":"{run}","producer":"{producer}","key":"#),
        _ => format!(r#"{{{name},"run_id":"{run}","producer":"{producer}","key":1}}"#),
    }
}

/// Whose bad row these bytes are.
pub(crate) fn read_bad_row(bytes: &[u8]) -> Option<(Sender, i64)> {
    let text = std::str::from_utf8(bytes).ok()?.trim_ascii_start();
    let (name, _) = text.strip_prefix(r#"{"bad":""#)?.split_once('"')?;
    let mut parts = name.split('/');
    let (run, producer, seq) = (parts.next()?, parts.next()?, parts.next()?.parse().ok()?);
    Some((Sender { run: run.to_owned(), producer: producer.to_owned() }, seq))
}

/// A small generator of random numbers (SplitMix64; Steele, Lea, Flood 2014).
#[derive(Clone, Debug)]
pub(crate) struct Numbers(u64);

impl Numbers {
    pub(crate) fn of(seed: u64, first: i64, second: i64) -> Self {
        let mut numbers = Self(seed);
        let mixed = numbers.next() ^ first.cast_unsigned().wrapping_mul(0xd6e8_feb8_6659_fd93);
        let mut numbers = Self(mixed);
        Self(numbers.next() ^ second.cast_unsigned().wrapping_mul(0xa076_1d64_78bd_642f))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number from 0 up to, and not with, `bound`; 0 for a bound of 0.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        let product = u128::from(self.next()) * u128::from(bound);
        (product >> 64) as u64
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const SETTINGS: Settings = Settings { seed: 7, min_bytes: 0, max_bytes: 900 };

    #[test]
    fn a_row_is_the_same_in_every_version_of_this_program() {
        let payload = payload(Settings { min_bytes: 24, max_bytes: 24, ..SETTINGS }, 3, 5);
        let row =
            Row { run: "r", producer: "p", key: 3, seq: 5, batch: 1, batch_rows: 2, sent_at: 9, payload: &payload };
        assert_eq!((payload.as_str(), row.crc()), FROZEN, "ledgers in the field depend on it");
    }

    /// Worked out by another program, too.
    const FROZEN: (&str, u32) = ("\"nk\nng{dre,f\\ lo{b0 b\nd0", 3_535_984_871);

    #[test]
    fn payloads_keep_their_bounds_and_use_them() {
        let lengths: Vec<usize> = (0..2000).map(|seq| payload(SETTINGS, 4, seq).len()).collect();
        assert!(lengths.iter().all(|&length| length <= 900));
        assert!(lengths.iter().any(|&length| length > 800) && lengths.iter().any(|&length| length < 20));
        let wide = Settings { min_bytes: 10, max_bytes: 10, ..SETTINGS };
        assert!((0..50).all(|seq| payload(wide, 0, seq).len() == 10));
    }

    #[test]
    fn the_checksum_covers_every_column() {
        let row = Row { run: "r", producer: "p", key: 1, seq: 2, batch: 3, batch_rows: 4, sent_at: 5, payload: "x" };
        let changed = [
            Row { run: "s", ..row },
            Row { producer: "q", ..row },
            Row { key: 2, ..row },
            Row { seq: 3, ..row },
            Row { batch: 4, ..row },
            Row { batch_rows: 5, ..row },
            Row { sent_at: 6, ..row },
            Row { payload: "y", ..row },
        ];
        assert!(changed.iter().all(|other| other.crc() != row.crc()));
    }

    #[test]
    fn json_says_what_the_row_says() {
        let payload = payload(SETTINGS, 1, 77);
        let row =
            Row { run: "r", producer: "p", key: 1, seq: 77, batch: 3, batch_rows: 1, sent_at: 5, payload: &payload };
        let read: serde_json::Value = serde_json::from_str(&row.to_json()).unwrap();
        assert_eq!(read["payload"], payload.as_str());
        assert_eq!((read["seq"].as_i64(), read["crc"].as_i64()), (Some(77), Some(i64::from(row.crc()))));
    }

    #[test]
    fn bad_rows_say_whose_they_are() {
        let sender = Sender { run: "r".into(), producer: "p-1".into() };
        for seq in 0..6 {
            assert_eq!(read_bad_row(bad_row(&sender, seq).as_bytes()), Some((sender.clone(), seq)));
        }
        assert_eq!(read_bad_row(b"{\"key\":1}"), None);
        assert_eq!(read_bad_row(b"\xff\xfe"), None);
    }
}
