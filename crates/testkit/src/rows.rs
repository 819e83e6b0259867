//! Seeded rows as JSON lines: bids as an auction site sees them, and orders as a shop does.
//!
//! Invariant: the same seed gives the same bytes. Every row is unique by its key (`sequence`, `order_id`), so that a
//! ledger can tell it from all others.
//! The bids have the widths and the skew of the Nexmark benchmark's bids: about 216 bytes a row, half of them for twenty
//! hot auctions, a quarter of the text random, so that compression is not flattered.
//! Absent on purpose: Arrow. Rows reach the code under test the way users send them.

use crate::seed::Random;

const HOT_AUCTIONS: u64 = 20;
const AUCTIONS: u64 = 100_000;
const BIDDERS: u64 = 10_000;
const RARE_CHANNELS: u64 = 10_000;
const CHANNELS: [&str; 8] = ["apple", "google", "facebook", "baidu", "yandex", "bing", "email", "direct"];
const LETTERS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyzabcdef";
const EXTRA_LETTERS: usize = 40;
const URL_LETTERS: usize = 22;
const LONGEST_STEP_MICROS: u64 = 199;

/// 2025-01-01T00:00:00Z in microseconds; event time must not depend on when a test runs.
const FIRST_MICROS: i64 = 1_735_689_600_000_000;

/// How an event time is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeStyle {
    /// A string such as `2025-01-01T00:00:00.000123Z`.
    Iso,
    /// A number: milliseconds since 1970.
    EpochMillis,
    /// A number: microseconds since 1970.
    EpochMicros,
}

/// What one bid says, for sums to check against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bid {
    /// The auction it is for.
    pub auction: u64,
    /// Who bids.
    pub bidder: u64,
    /// In cents.
    pub price: u64,
    /// Event time, microseconds since 1970 UTC; grows from row to row.
    pub date_time_micros: i64,
}

/// An endless stream of bids.
#[derive(Clone, Debug)]
pub struct Bids {
    random: Random,
    style: TimeStyle,
    now_micros: i64,
}

impl Bids {
    /// The bids of `seed`, with event times as ISO strings.
    pub fn new(seed: u64) -> Bids {
        Bids::with_time(seed, TimeStyle::Iso)
    }

    /// The bids of `seed`.
    pub fn with_time(seed: u64, style: TimeStyle) -> Bids {
        Bids { random: Random::new(seed), style, now_micros: FIRST_MICROS }
    }

    /// Appends the next bid and a line feed to `out`.
    pub fn write_next(&mut self, out: &mut Vec<u8>) -> Bid {
        let bid = self.next_bid();
        out.extend_from_slice(b"{\"auction\":");
        push_number(out, bid.auction);
        out.extend_from_slice(b",\"bidder\":");
        push_number(out, bid.bidder);
        out.extend_from_slice(b",\"price\":");
        push_number(out, bid.price);
        out.extend_from_slice(b",\"channel\":\"");
        self.push_channel(out);
        out.extend_from_slice(b"\",\"url\":\"");
        self.push_url(out);
        out.extend_from_slice(b"\",\"date_time\":");
        push_time(out, bid.date_time_micros, self.style);
        out.extend_from_slice(b",\"extra\":\"");
        self.push_letters(out, EXTRA_LETTERS);
        out.extend_from_slice(b"\"}\n");
        bid
    }

    /// The next `rows` bids as JSON lines.
    pub fn lines(&mut self, rows: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(rows * 232);
        for _ in 0..rows {
            self.write_next(&mut out);
        }
        out
    }

    fn next_bid(&mut self) -> Bid {
        let random = &mut self.random;
        let auctions = if random.chance(50) { HOT_AUCTIONS } else { AUCTIONS };
        self.now_micros += 1 + random.below(LONGEST_STEP_MICROS) as i64;
        Bid {
            auction: 1_000 + random.below(auctions),
            bidder: 1_000 + random.below(BIDDERS),
            price: log_uniform(random),
            date_time_micros: self.now_micros,
        }
    }

    fn push_channel(&mut self, out: &mut Vec<u8>) {
        if self.random.chance(85) {
            out.extend_from_slice(self.random.pick(&CHANNELS).as_bytes());
        } else {
            out.extend_from_slice(b"channel-");
            push_number(out, self.random.below(RARE_CHANNELS));
        }
    }

    fn push_url(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"https://www.nexmark.com/");
        self.push_letters(out, URL_LETTERS);
        out.extend_from_slice(b"/item.htm?query=1");
    }

    fn push_letters(&mut self, out: &mut Vec<u8>, count: usize) {
        let mut left = count;
        while left > 0 {
            let mut bits = self.random.bits();
            for _ in 0..left.min(12) {
                out.push(LETTERS[(bits & 31) as usize]);
                bits >>= 5;
            }
            left = left.saturating_sub(12);
        }
    }
}

/// A price between 1 and 99 999 999 cents whose logarithm is evenly spread: integer work only, so equal everywhere.
fn log_uniform(random: &mut Random) -> u64 {
    let magnitude = 10_u64.pow(random.below(8) as u32);
    magnitude + random.below(9 * magnitude)
}

/// What one order says, for sums to check against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// 0, 1, 2, … in the order they were made.
    pub order_id: u64,
    /// Who ordered.
    pub customer_id: u64,
    /// The amount in cents.
    pub amount_cents: u64,
    /// Where it goes.
    pub country: &'static str,
    /// Event time, microseconds since 1970 UTC.
    pub ordered_at_micros: i64,
}

impl Order {
    /// A number that stands for everything the order says, to book in a ledger.
    pub fn content(&self) -> u64 {
        let country = self.country.bytes().fold(0_u64, |sum, byte| sum * 31 + u64::from(byte));
        let parts = [self.customer_id, self.amount_cents, country, self.ordered_at_micros as u64];
        parts.iter().fold(self.order_id, |mixed, part| Random::new(mixed ^ part.rotate_left(17)).bits())
    }
}

const COUNTRIES: [&str; 8] = ["USA", "France", "Spain", "Österreich", "Côte d'Ivoire", "日本", "Brasil", "New Zealand"];
const CUSTOMERS: u64 = 5_000;
const MOST_CENTS: u64 = 1_000_000;
const LONGEST_PAUSE_MICROS: u64 = 2_000_000;
const LONGEST_DELAY_MICROS: u64 = 4_000_000;
const LATE_PERCENT: u64 = 10;

/// An endless stream of orders; one in ten is up to four seconds behind its time.
#[derive(Clone, Debug)]
pub struct Orders {
    random: Random,
    next_id: u64,
    now_micros: i64,
}

impl Orders {
    /// The orders of `seed`, numbered from 0.
    pub fn new(seed: u64) -> Orders {
        Orders { random: Random::new(seed), next_id: 0, now_micros: FIRST_MICROS }
    }

    /// Appends the next order and a line feed to `out`.
    pub fn write_next(&mut self, out: &mut Vec<u8>) -> Order {
        let order = self.next_order();
        out.extend_from_slice(b"{\"order_id\":");
        push_number(out, order.order_id);
        out.extend_from_slice(b",\"customer_id\":");
        push_number(out, order.customer_id);
        out.extend_from_slice(b",\"amount\":");
        push_cents(out, order.amount_cents);
        out.extend_from_slice(b",\"country\":\"");
        out.extend_from_slice(order.country.as_bytes());
        out.extend_from_slice(b"\",\"ordered_at\":");
        push_time(out, order.ordered_at_micros, TimeStyle::Iso);
        out.extend_from_slice(b"}\n");
        order
    }

    /// The next `rows` orders as JSON lines, and what they say.
    pub fn lines(&mut self, rows: usize) -> (Vec<u8>, Vec<Order>) {
        let mut out = Vec::with_capacity(rows * 128);
        let orders = (0..rows).map(|_| self.write_next(&mut out)).collect();
        (out, orders)
    }

    fn next_order(&mut self) -> Order {
        let random = &mut self.random;
        self.now_micros += random.below(LONGEST_PAUSE_MICROS) as i64;
        let delay = if random.chance(LATE_PERCENT) { random.below(LONGEST_DELAY_MICROS) as i64 } else { 0 };
        let order_id = self.next_id;
        self.next_id += 1;
        Order {
            order_id,
            customer_id: random.below(CUSTOMERS),
            amount_cents: random.below(MOST_CENTS),
            country: COUNTRIES[random.below(COUNTRIES.len() as u64) as usize],
            ordered_at_micros: self.now_micros - delay,
        }
    }
}

fn push_number(out: &mut Vec<u8>, number: u64) {
    let mut digits = [0_u8; 20];
    let mut start = digits.len();
    let mut rest = number;
    loop {
        start -= 1;
        digits[start] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[start..]);
}

/// A number with exactly `width` digits.
fn push_padded(out: &mut Vec<u8>, number: u64, width: u32) {
    for place in (0..width).rev() {
        out.push(b'0' + (number / 10_u64.pow(place) % 10) as u8);
    }
}

fn push_cents(out: &mut Vec<u8>, cents: u64) {
    push_number(out, cents / 100);
    out.push(b'.');
    push_padded(out, cents % 100, 2);
}

fn push_time(out: &mut Vec<u8>, micros: i64, style: TimeStyle) {
    match style {
        TimeStyle::EpochMillis => push_number(out, (micros / 1_000) as u64),
        TimeStyle::EpochMicros => push_number(out, micros as u64),
        TimeStyle::Iso => push_iso(out, micros),
    }
}

fn push_iso(out: &mut Vec<u8>, micros: i64) {
    let seconds = micros.div_euclid(1_000_000);
    let (year, month, day) = civil_date(seconds.div_euclid(86_400));
    let second_of_day = seconds.rem_euclid(86_400) as u64;
    out.push(b'"');
    for (number, width, after) in [
        (year, 4, b'-'),
        (month, 2, b'-'),
        (day, 2, b'T'),
        (second_of_day / 3_600, 2, b':'),
        (second_of_day / 60 % 60, 2, b':'),
        (second_of_day % 60, 2, b'.'),
        (micros.rem_euclid(1_000_000) as u64, 6, b'Z'),
    ] {
        push_padded(out, number, width);
        out.push(after);
    }
    out.push(b'"');
}

/// Year, month and day of a number of days since 1970.
///
/// **Source**: Howard Hinnant, chrono-Compatible Low-Level Date Algorithms, `civil_from_days`.
fn civil_date(days: i64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year as u64, month as u64, day as u64)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn parsed(lines: &[u8]) -> Vec<Value> {
        let text = std::str::from_utf8(lines).expect("rows are UTF-8");
        text.lines().map(|line| serde_json::from_str(line).expect("rows are JSON")).collect()
    }

    #[test]
    fn bids_say_what_they_return_and_have_the_promised_width() {
        let mut bids = Bids::with_time(1, TimeStyle::EpochMicros);
        let mut lines = Vec::new();
        let said: Vec<Bid> = (0..10_000).map(|_| bids.write_next(&mut lines)).collect();
        for (row, bid) in parsed(&lines).iter().zip(&said) {
            assert_eq!(row["auction"], bid.auction);
            assert_eq!(row["bidder"], bid.bidder);
            assert_eq!(row["price"], bid.price);
            assert_eq!(row["date_time"], bid.date_time_micros);
        }
        let width = lines.len() / said.len();
        assert!((211..=221).contains(&width), "{width} bytes a row");
        let hot = said.iter().filter(|bid| bid.auction < 1_000 + HOT_AUCTIONS).count();
        assert!((4_800..5_200).contains(&hot), "{hot} of 10000 for the hot auctions");
    }

    #[test]
    fn the_same_seed_gives_the_same_bytes_and_another_seed_others() {
        assert_eq!(Bids::new(5).lines(100), Bids::new(5).lines(100));
        assert_ne!(Bids::new(5).lines(100), Bids::new(6).lines(100));
        assert_eq!(Orders::new(5).lines(100), Orders::new(5).lines(100));
    }

    #[test]
    fn orders_say_what_they_return() {
        let (lines, said) = Orders::new(3).lines(1_000);
        for (row, order) in parsed(&lines).iter().zip(&said) {
            assert_eq!(row["order_id"], order.order_id);
            assert_eq!(row["country"], order.country);
            let cents = row["amount"].as_f64().expect("a number") * 100.0;
            assert_eq!(cents.round() as u64, order.amount_cents);
        }
        let late = said.windows(2).filter(|pair| pair[1].ordered_at_micros < pair[0].ordered_at_micros).count();
        assert!(late > 20, "only {late} of 1000 orders are behind their time");
    }

    #[test]
    fn iso_times_are_right_at_the_edges_of_the_calendar() {
        for (micros, expected) in [
            (0, "\"1970-01-01T00:00:00.000000Z\""),
            (951_782_399_999_999, "\"2000-02-28T23:59:59.999999Z\""),
            (951_782_400_000_000, "\"2000-02-29T00:00:00.000000Z\""),
            (FIRST_MICROS, "\"2025-01-01T00:00:00.000000Z\""),
            (1_798_761_599_000_001, "\"2026-12-31T23:59:59.000001Z\""),
        ] {
            let mut out = Vec::new();
            push_iso(&mut out, micros);
            assert_eq!(String::from_utf8_lossy(&out), expected);
        }
    }
}
