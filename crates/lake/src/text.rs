//! Delta's text forms of dates, timestamps and decimals.
//!
//! Exact: what is written parses back to the same value. A value without such a form (a year beyond 9999) yields
//! `None`, and the caller does without.

use std::ops::RangeInclusive;

use chrono::{DateTime, Datelike, NaiveDate, NaiveDateTime};

/// Days and microseconds since 1970 that have a form: of the years 0 to 9999.
pub(crate) const DAYS: RangeInclusive<i32> = -719_528..=2_932_896;
pub(crate) const MICROS: RangeInclusive<i64> = -62_167_219_200_000_000..=253_402_300_799_999_999;

/// `2024-02-29`.
pub(crate) fn date(days: i32) -> Option<String> {
    let date = NaiveDate::from_epoch_days(days).filter(|date| four_digits(date.year()))?;
    Some(date.format("%Y-%m-%d").to_string())
}

/// `2024-02-29T12:00:00.000001Z`, the form readers take in any session time zone.
pub(crate) fn timestamp(micros: i64) -> Option<String> {
    Some(date_time(micros)?.format("%Y-%m-%dT%H:%M:%S%.6fZ").to_string())
}

/// `2024-02-29T12:00:00.000001`, for statistics of a timestamp without a zone.
pub(crate) fn local_timestamp(micros: i64) -> Option<String> {
    Some(date_time(micros)?.format("%Y-%m-%dT%H:%M:%S%.6f").to_string())
}

/// `2024-02-29 12:00:00.000001`, for partition values of a timestamp without a zone.
pub(crate) fn local_partition_timestamp(micros: i64) -> Option<String> {
    Some(date_time(micros)?.format("%Y-%m-%d %H:%M:%S%.6f").to_string())
}

/// `-1.05` for -105 at scale 2: also a JSON number.
pub(crate) fn decimal(unscaled: i128, scale: i8) -> String {
    let Some(scale) = usize::try_from(scale).ok().filter(|scale| *scale > 0) else { return unscaled.to_string() };
    let sign = if unscaled < 0 { "-" } else { "" };
    let digits = format!("{:0>width$}", unscaled.unsigned_abs(), width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    format!("{sign}{whole}.{fraction}")
}

fn date_time(micros: i64) -> Option<NaiveDateTime> {
    DateTime::from_timestamp_micros(micros).map(|at| at.naive_utc()).filter(|at| four_digits(at.year()))
}

fn four_digits(year: i32) -> bool {
    (0..=9999).contains(&year)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_what_delta_specifies() {
        assert_eq!(date(19_782).unwrap(), "2024-02-29");
        assert_eq!(date(-1).unwrap(), "1969-12-31");
        assert_eq!(timestamp(1).unwrap(), "1970-01-01T00:00:00.000001Z");
        assert_eq!(timestamp(-1).unwrap(), "1969-12-31T23:59:59.999999Z");
        assert_eq!(local_timestamp(0).unwrap(), "1970-01-01T00:00:00.000000");
        assert_eq!(local_partition_timestamp(0).unwrap(), "1970-01-01 00:00:00.000000");
    }

    #[test]
    fn decimals_keep_every_digit() {
        let forms = [(-105, 2, "-1.05"), (5, 3, "0.005"), (0, 2, "0.00"), (7, 0, "7"), (-1, 1, "-0.1")];
        for (unscaled, scale, expected) in forms {
            assert_eq!(decimal(unscaled, scale), expected);
        }
        assert_eq!(decimal(i128::from(i64::MAX) * 1_000, 3), "9223372036854775807.000");
    }

    #[test]
    fn the_ends_of_what_has_a_form_are_known() {
        for (day, has_form) in
            [(*DAYS.start(), true), (*DAYS.end(), true), (DAYS.start() - 1, false), (DAYS.end() + 1, false)]
        {
            assert_eq!(date(day).is_some(), has_form, "{day}");
        }
        for (at, has_form) in
            [(*MICROS.start(), true), (*MICROS.end(), true), (MICROS.start() - 1, false), (MICROS.end() + 1, false)]
        {
            assert_eq!(timestamp(at).is_some(), has_form, "{at}");
        }
    }

    #[test]
    fn what_has_no_four_digit_year_has_no_form() {
        assert_eq!(timestamp(i64::MAX), None);
        assert_eq!(timestamp(253_402_300_800_000_000), None, "the year 10000");
        assert!(timestamp(253_402_300_799_999_999).is_some());
        assert_eq!(date(i32::MIN), None);
    }
}
