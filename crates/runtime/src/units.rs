//! Sizes and times as people write them: `"64MiB"`, `"900kB"`, `"250ms"`, `"7d"`.
//!
//! Invariant: text and value round-trip exactly, in both directions, so a printed config is the config.
//! Deliberately absent: arithmetic. Callers take the plain number with `get()` and calculate with that.

use std::fmt;
use std::str::FromStr;

use serde::de::{Deserialize, Deserializer, Unexpected, Visitor};
use serde::ser::{Serialize, Serializer};
use thiserror::Error;

/// A number of bytes. `MiB` is 1024², `MB` is 1000²; a bare number is bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct ByteSize(u64);

/// A stretch of time with a unit. A bare number is refused: nobody knows what `5` means.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Duration(std::time::Duration);

/// The text is no size.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("expected a size such as `64MiB`, `900kB` or `1024`, found `{found}`")]
pub struct NotAByteSize {
    found: String,
}

/// The text is no stretch of time.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("expected a time with a unit such as `250ms`, `5s` or `7d`, found `{found}`")]
pub struct NotADuration {
    found: String,
}

/// Units a size is read with. Lower-case for comparing; the first spelling of a factor is the one printed.
const SIZE_UNITS: [(&str, &str, u64); 10] = [
    ("PiB", "pib", 1 << 50),
    ("TiB", "tib", 1 << 40),
    ("GiB", "gib", 1 << 30),
    ("MiB", "mib", 1 << 20),
    ("KiB", "kib", 1 << 10),
    ("TB", "tb", 1_000_000_000_000),
    ("GB", "gb", 1_000_000_000),
    ("MB", "mb", 1_000_000),
    ("kB", "kb", 1_000),
    ("B", "b", 1),
];

/// Units a time is printed with, largest first. All are exact.
const TIME_UNITS: [(&str, u128); 7] = [
    ("d", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

impl ByteSize {
    pub const fn bytes(bytes: u64) -> ByteSize {
        ByteSize(bytes)
    }

    /// Units: 1000 bytes.
    pub const fn kilobytes(count: u64) -> ByteSize {
        ByteSize(count * 1000)
    }

    /// Units: 1024² bytes.
    pub const fn mebibytes(count: u64) -> ByteSize {
        ByteSize(count << 20)
    }

    /// Units: 1024³ bytes.
    pub const fn gibibytes(count: u64) -> ByteSize {
        ByteSize(count << 30)
    }

    pub const fn get(self) -> u64 {
        self.0
    }

    /// The size as a length in memory. A size beyond the address space becomes the largest one.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl Duration {
    pub const fn millis(millis: u64) -> Duration {
        Duration(std::time::Duration::from_millis(millis))
    }

    pub const fn secs(secs: u64) -> Duration {
        Duration(std::time::Duration::from_secs(secs))
    }

    pub const fn days(days: u64) -> Duration {
        Duration(std::time::Duration::from_secs(days * 86_400))
    }

    pub const fn get(self) -> std::time::Duration {
        self.0
    }

    pub const fn is_zero(self) -> bool {
        self.0.is_zero()
    }
}

impl From<Duration> for std::time::Duration {
    fn from(duration: Duration) -> std::time::Duration {
        duration.0
    }
}

impl From<std::time::Duration> for Duration {
    fn from(duration: std::time::Duration) -> Duration {
        Duration(duration)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = SIZE_UNITS
            .iter()
            .filter(|(_, _, factor)| self.0 > 0 && self.0.is_multiple_of(*factor))
            // The shortest number reads best: 900000 is 900kB, 67108864 is 64MiB.
            .min_by_key(|(_, _, factor)| (self.0 / factor).to_string().len());
        match exact {
            Some((unit, _, factor)) => write!(out, "{}{unit}", self.0 / factor),
            None => write!(out, "0B"),
        }
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.as_nanos();
        let exact = TIME_UNITS.iter().find(|(_, factor)| nanos > 0 && nanos.is_multiple_of(*factor));
        match exact {
            Some((unit, factor)) => write!(out, "{}{unit}", nanos / factor),
            None => write!(out, "0s"),
        }
    }
}

impl FromStr for ByteSize {
    type Err = NotAByteSize;

    fn from_str(text: &str) -> Result<ByteSize, NotAByteSize> {
        parse_size(text.trim()).map(ByteSize).ok_or_else(|| NotAByteSize { found: text.to_owned() })
    }
}

impl FromStr for Duration {
    type Err = NotADuration;

    fn from_str(text: &str) -> Result<Duration, NotADuration> {
        let not_a_duration = || NotADuration { found: text.to_owned() };
        // `humantime` lets a bare 0 pass; one rule without exceptions is easier to remember.
        if !text.contains(|letter: char| letter.is_alphabetic()) {
            return Err(not_a_duration());
        }
        humantime::parse_duration(text.trim()).map(Duration).map_err(|_| not_a_duration())
    }
}

fn parse_size(text: &str) -> Option<u64> {
    let unit_at = text.find(|letter: char| letter.is_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let number = number.trim();
    let factor = size_factor(unit)?;
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor);
    }
    let digits_and_point = number.chars().all(|letter| letter.is_ascii_digit() || letter == '.');
    let bytes = number.parse::<f64>().ok()? * factor as f64;
    (digits_and_point && bytes < u64::MAX as f64).then_some(bytes.round() as u64)
}

fn size_factor(unit: &str) -> Option<u64> {
    if unit.is_empty() {
        return Some(1);
    }
    let unit = unit.to_lowercase();
    SIZE_UNITS
        .iter()
        // `64M` and `64Mi` are common shorthand for `64MB` and `64MiB`.
        .find(|(_, name, _)| *name == unit || name.strip_suffix('b') == Some(&unit))
        .map(|(_, _, factor)| *factor)
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for Duration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ByteSize, D::Error> {
        deserializer.deserialize_any(ByteSizeVisitor)
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        deserializer.deserialize_any(DurationVisitor)
    }
}

struct ByteSizeVisitor;

impl Visitor<'_> for ByteSizeVisitor {
    type Value = ByteSize;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a size such as `64MiB`, `900kB` or `1024`")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<ByteSize, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_u64<E: serde::de::Error>(self, bytes: u64) -> Result<ByteSize, E> {
        Ok(ByteSize(bytes))
    }

    fn visit_i64<E: serde::de::Error>(self, bytes: i64) -> Result<ByteSize, E> {
        u64::try_from(bytes).map(ByteSize).map_err(|_| E::invalid_value(Unexpected::Signed(bytes), &self))
    }
}

struct DurationVisitor;

impl Visitor<'_> for DurationVisitor {
    type Value = Duration;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a time with a unit such as `250ms`, `5s` or `7d`")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Duration, E> {
        text.parse().map_err(E::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn size(text: &str) -> u64 {
        text.parse::<ByteSize>().unwrap_or_else(|error| panic!("{error}")).get()
    }

    #[test]
    fn sizes_read_binary_and_decimal_units_apart() {
        assert_eq!(size("64MiB"), 64 << 20);
        assert_eq!(size("64 mib"), 64 << 20);
        assert_eq!(size("64Mi"), 64 << 20);
        assert_eq!(size("900kB"), 900_000);
        assert_eq!(size("64M"), 64_000_000);
        assert_eq!(size("1.5GiB"), 3 << 29);
        assert_eq!(size("1024"), 1024);
        assert_eq!(size("0"), 0);
    }

    #[test]
    fn sizes_print_the_shortest_exact_text() {
        for text in ["0B", "1B", "1023B", "1KiB", "900kB", "64MiB", "1GiB", "4MiB", "10TiB"] {
            assert_eq!(ByteSize::bytes(size(text)).to_string(), text);
        }
    }

    #[test]
    fn text_that_is_no_size_is_refused_with_an_example() {
        for text in ["", "MiB", "-1", "-1MiB", "1e3", "12XB", "lots", "99999999999PiB", "1.2.3kB", "inf"] {
            let error = text.parse::<ByteSize>().expect_err(text);
            assert!(error.to_string().contains("`64MiB`"), "{error}");
        }
    }

    #[test]
    fn times_need_a_unit() {
        assert_eq!("250ms".parse(), Ok(Duration::millis(250)));
        assert_eq!("7d".parse(), Ok(Duration::days(7)));
        assert_eq!("1m 30s".parse(), Ok(Duration::secs(90)));
        for text in ["", "5", "0", "-5s", "5 parsecs"] {
            let error = text.parse::<Duration>().expect_err(text);
            assert!(error.to_string().contains("`250ms`"), "{error}");
        }
    }

    #[test]
    fn times_print_in_the_largest_exact_unit() {
        for text in ["0s", "20ms", "1s", "90s", "1m", "7d", "3us", "1001ns", "25h"] {
            let time: Duration = text.parse().expect("a time");
            assert_eq!(time.to_string(), text);
        }
    }

    #[test]
    fn both_travel_through_toml_as_text() {
        #[derive(PartialEq, Debug, serde::Serialize, serde::Deserialize)]
        struct Both {
            size: ByteSize,
            time: Duration,
        }
        let both = Both { size: ByteSize::kilobytes(900), time: Duration::millis(250) };
        let text = toml::to_string(&both).expect("TOML");
        assert_eq!(text, "size = \"900kB\"\ntime = \"250ms\"\n");
        assert_eq!(toml::from_str::<Both>(&text).expect("both"), both);
        let error = toml::from_str::<Both>("size = 5\ntime = 5").expect_err("no unit");
        assert!(error.message().contains("time with a unit"), "{error}");
        let error = toml::from_str::<Both>("size = -5\ntime = \"5s\"").expect_err("negative");
        assert!(error.message().contains("`64MiB`"), "{error}");
    }

    proptest! {
        #[test]
        fn every_size_survives_its_text(bytes: u64) {
            prop_assert_eq!(size(&ByteSize::bytes(bytes).to_string()), bytes);
        }

        #[test]
        fn every_time_survives_its_text(secs in 0..u64::MAX / 2, nanos in 0..1_000_000_000u32) {
            let time = Duration(std::time::Duration::new(secs % 1_000_000_000, nanos));
            prop_assert_eq!(time.to_string().parse(), Ok(time));
        }
    }
}
