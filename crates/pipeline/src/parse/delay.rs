//! The delay of a watermark: interval text to a duration and back.
//!
//! Invariant: `print(read(text))` reads back as the same duration; whole microseconds, never negative.
//! Deliberately absent: months and years, whose length depends on the calendar.

use std::time::Duration;

use datafusion::sql::sqlparser::tokenizer::Token;

use crate::lex::Cursor;
use crate::near::did_you_mean_or_list;
use crate::problem::Problem;

const MICROSECOND: u64 = 1;
const MILLISECOND: u64 = 1_000;
const SECOND: u64 = 1_000_000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// A delay longer than this holds back every window for years: surely a slip.
const MAX_DELAY_DAYS: u64 = 3_650;

/// Units from large to small, by their plural.
const UNITS: [(&str, u64); 7] = [
    ("weeks", 7 * DAY),
    ("days", DAY),
    ("hours", HOUR),
    ("minutes", MINUTE),
    ("seconds", SECOND),
    ("milliseconds", MILLISECOND),
    ("microseconds", MICROSECOND),
];

const ABBREVIATIONS: [(&str, u64); 11] = [
    ("w", 7 * DAY),
    ("d", DAY),
    ("h", HOUR),
    ("hr", HOUR),
    ("min", MINUTE),
    ("mins", MINUTE),
    ("m", MINUTE),
    ("s", SECOND),
    ("sec", SECOND),
    ("ms", MILLISECOND),
    ("us", MICROSECOND),
];

/// Reads `INTERVAL '5 seconds'` or `INTERVAL '5' SECOND`.
pub(super) fn read(cursor: &mut Cursor<'_>) -> Result<Duration, Problem> {
    cursor.expect_keyword("INTERVAL")?;
    let span = cursor.span();
    let Some(Token::SingleQuotedString(text)) = cursor.peek().map(|token| &token.token) else {
        let help = "write for example INTERVAL '5 seconds'";
        return Err(cursor.expected("the length of the interval as a string", &[]).with_help(help));
    };
    cursor.next();
    let unit = cursor.peek_word().filter(|word| word.quote_style.is_none()).map(|word| word.value.clone());
    let text = match unit {
        Some(unit) => {
            cursor.next();
            format!("{text} {unit}")
        }
        None => text.clone(),
    };
    let microseconds = microseconds(&text).map_err(|fault| {
        let problem = cursor.problem(span, format!("interval '{text}' {}", fault.message));
        problem.with_help(fault.help.unwrap_or_else(|| "write for example INTERVAL '5 seconds'".to_owned()))
    })?;
    Ok(Duration::from_micros(microseconds))
}

struct Fault {
    message: String,
    help: Option<String>,
}

impl Fault {
    fn new(message: &str) -> Fault {
        Fault { message: message.to_owned(), help: None }
    }
}

fn microseconds(text: &str) -> Result<u64, Fault> {
    let spaced = separate_numbers(text);
    let mut words = spaced.split_whitespace();
    let mut total = 0_u64;
    let mut parts = 0;
    while let Some(number) = words.next() {
        let unit = words.next().ok_or_else(|| Fault::new("has a number without a unit"))?;
        let part = one_part(number, unit)?;
        total = total.checked_add(part).ok_or_else(too_long)?;
        parts += 1;
    }
    if parts == 0 {
        return Err(Fault::new("is empty"));
    }
    if total > MAX_DELAY_DAYS * DAY {
        return Err(too_long());
    }
    Ok(total)
}

/// `1h30m` becomes `1 h 30 m`.
fn separate_numbers(text: &str) -> String {
    let mut spaced = String::with_capacity(text.len() + 4);
    let mut previous = ' ';
    for character in text.chars() {
        let begins_unit = character.is_alphabetic() && previous.is_ascii_digit();
        let begins_number = character.is_ascii_digit() && previous.is_alphabetic();
        if begins_unit || begins_number {
            spaced.push(' ');
        }
        spaced.push(character);
        previous = character;
    }
    spaced
}

fn too_long() -> Fault {
    Fault::new(&format!("is longer than {MAX_DELAY_DAYS} days"))
}

fn one_part(number: &str, unit: &str) -> Result<u64, Fault> {
    if number.starts_with('-') {
        return Err(Fault::new("is negative; a watermark cannot run ahead of the events"));
    }
    let length = unit_length(unit)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let whole = digits(whole)?.checked_mul(length).ok_or_else(too_long)?;
    let fraction = fraction_of(fraction, length)?;
    whole.checked_add(fraction).ok_or_else(too_long)
}

fn digits(text: &str) -> Result<u64, Fault> {
    if text.is_empty() || !text.chars().all(|c| c.is_ascii_digit()) {
        return Err(Fault::new("is not made of numbers and units"));
    }
    text.parse().map_err(|_| too_long())
}

fn fraction_of(fraction: &str, length: u64) -> Result<u64, Fault> {
    if fraction.is_empty() {
        return Ok(0);
    }
    if fraction.len() > 9 {
        return Err(Fault::new("is finer than a microsecond"));
    }
    let scale = 10_u64.pow(u32::try_from(fraction.len()).unwrap_or(9));
    let parts = u128::from(digits(fraction)?) * u128::from(length);
    if parts % u128::from(scale) != 0 {
        return Err(Fault::new("is finer than a microsecond"));
    }
    u64::try_from(parts / u128::from(scale)).map_err(|_| too_long())
}

fn unit_length(unit: &str) -> Result<u64, Fault> {
    let unit = unit.to_ascii_lowercase();
    let named = UNITS.iter().find(|(plural, _)| *plural == unit || plural.trim_end_matches('s') == unit);
    let short = ABBREVIATIONS.iter().find(|(name, _)| *name == unit);
    if let Some((_, length)) = named.or(short) {
        return Ok(*length);
    }
    if ["month", "months", "year", "years", "mon", "y"].contains(&unit.as_str()) {
        return Err(Fault::new("has months or years in it, whose length varies; use days"));
    }
    let known: Vec<&str> = UNITS.iter().map(|(plural, _)| *plural).collect();
    let help = did_you_mean_or_list(&unit, &known);
    Err(Fault { message: format!("has the unknown unit `{unit}`"), help: Some(help) })
}

/// The canonical text, for example `1 days 2 hours` or `0 seconds`.
pub(super) fn print(delay: Duration) -> String {
    let mut rest = u64::try_from(delay.as_micros()).unwrap_or(u64::MAX);
    let mut parts = Vec::new();
    for (unit, length) in UNITS.iter().skip(1) {
        let count = rest / length;
        rest %= length;
        if count > 0 {
            parts.push(format!("{count} {unit}"));
        }
    }
    if parts.is_empty() { "0 seconds".to_owned() } else { parts.join(" ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<u64, String> {
        microseconds(text).map_err(|fault| fault.message)
    }

    #[test]
    fn every_way_to_write_a_length_is_understood() {
        let table = [
            ("5 seconds", 5 * SECOND),
            ("5 second", 5 * SECOND),
            ("5s", 5 * SECOND),
            ("1.5 seconds", SECOND + 500 * MILLISECOND),
            ("1 hour 30 minutes", HOUR + 30 * MINUTE),
            ("1h30m", HOUR + 30 * MINUTE),
            ("2 WEEKS", 14 * DAY),
            ("0 seconds", 0),
            ("250 milliseconds 7 microseconds", 250 * MILLISECOND + 7),
        ];
        for (text, expected) in table {
            assert_eq!(read_text(text), Ok(expected), "{text}");
            let printed = print(Duration::from_micros(expected));
            assert_eq!(read_text(&printed), Ok(expected), "{text} printed as {printed}");
        }
    }

    #[test]
    fn what_is_no_length_is_refused() {
        for text in [
            "",
            "5",
            "seconds",
            "-5 seconds",
            "1 month",
            "2 fortnights",
            "99999999999999999999 seconds",
            "4000 days",
            "0.0000001 seconds",
            "1e3 seconds",
        ] {
            assert!(read_text(text).is_err(), "{text}");
        }
    }
}
