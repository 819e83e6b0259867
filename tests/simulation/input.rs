//! What users send, and what must become of it: worked out by hand here, not by the code under test.

use testkit::Random;

/// The pipeline of every run: a source, a view of it, a view of that view, and a union of both.
pub(crate) const SQL: &str = "
CREATE SOURCE orders (
  n BIGINT NOT NULL, amount BIGINT, code VARCHAR, note VARCHAR, at TIMESTAMP,
  WATERMARK FOR at AS at - INTERVAL '5 seconds'
) WITH (topic = 'shop.orders', format = 'json', bounds = 'n');

CREATE MATERIALIZED VIEW doubles AS
SELECT n, amount * 2 AS doubled, CAST(code AS BIGINT) AS code FROM orders WHERE amount % 3 <> 0;

CREATE MATERIALIZED VIEW fours AS
SELECT n, doubled + code AS more FROM doubles WHERE doubled % 4 = 0;

CREATE MATERIALIZED VIEW merged AS
SELECT n, 1 AS branch, amount AS value FROM orders
UNION ALL
SELECT n, 2 AS branch, doubled AS value FROM doubles;
";

/// The topic users send to.
pub(crate) const TOPIC: &str = "shop.orders";

/// One row as a user means it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum UserRow {
    Good(Order),
    /// Bytes that are no order.
    Bad(String),
}

/// A good row. `n` is unique, and rises in the order in which messages are sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Order {
    pub(crate) n: i64,
    pub(crate) amount: i64,
    pub(crate) code: String,
    pub(crate) note: String,
}

impl Order {
    fn to_json(&self) -> String {
        let Self { n, amount, code, note } = self;
        let (minute, second) = (n / 60 % 60, n % 60);
        format!(
            r#"{{"n":{n},"amount":{amount},"code":"{code}","note":"{note}","at":"2026-01-01T00:{minute:02}:{second:02}"}}"#
        )
    }

    /// What the view `doubles` makes of it.
    pub(crate) fn doubled(&self) -> Fate<Double> {
        if self.amount % 3 == 0 {
            return Fate::Filtered;
        }
        match self.code.parse() {
            Ok(code) => Fate::Row(Double { n: self.n, doubled: self.amount * 2, code }),
            Err(_) => Fate::Rejected,
        }
    }
}

/// A row of the view `doubles`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Double {
    pub(crate) n: i64,
    pub(crate) doubled: i64,
    pub(crate) code: i64,
}

/// What a view makes of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate<T> {
    Row(T),
    Filtered,
    Rejected,
}

/// The messages of one run, in the order in which they are sent.
pub(crate) struct Messages {
    random: Random,
    next: i64,
    longest_note: u64,
    /// Bytes of a row that fits no message; none where such rows are not sent.
    oversized: Option<usize>,
}

impl Messages {
    pub(crate) fn new(random: Random, longest_note: u64, oversized: Option<usize>) -> Self {
        Self { random, next: 1, longest_note, oversized }
    }

    /// The next message: its payload and its rows.
    pub(crate) fn next(&mut self) -> (String, Vec<UserRow>) {
        if self.oversized.is_some() && self.random.chance(3) {
            return self.next_oversized();
        }
        let rows = match self.random.below(20) {
            0..12 => 1,
            12..18 => 2 + self.random.below(5),
            _ => 10 + self.random.below(30),
        };
        let mut texts = Vec::new();
        let mut meant = Vec::new();
        for _ in 0..rows {
            let (text, row) = self.next_row();
            texts.push(text);
            meant.push(row);
        }
        (texts.join("\n"), meant)
    }

    fn next_oversized(&mut self) -> (String, Vec<UserRow>) {
        let mut order = self.next_order();
        order.note = "z".repeat(self.oversized.unwrap_or_default());
        let payload = order.to_json();
        (payload.clone(), vec![UserRow::Bad(payload)])
    }

    fn next_row(&mut self) -> (String, UserRow) {
        let kind = self.random.below(40);
        let order = self.next_order();
        let n = order.n;
        let bad = match kind {
            0 => format!(r#"{{"n":"x{n}","amount":1}}"#),
            1 => format!(r#"{{"n":{n},"note":"unfinished"#),
            2 => format!(r#"{{"amount":{n}}}"#),
            3 => format!(r#"{{"n":null,"amount":{n}}}"#),
            _ => {
                let text = order.to_json();
                return (text, UserRow::Good(order));
            }
        };
        (bad.clone(), UserRow::Bad(bad))
    }

    fn next_order(&mut self) -> Order {
        let n = self.next;
        self.next += 1;
        let amount = self.random.below(1000) as i64;
        let number = self.random.below(100).to_string();
        let code = if self.random.chance(8) { format!("c{number}") } else { number };
        let length = if self.random.chance(20) { self.random.below(self.longest_note + 1) } else { n as u64 % 7 };
        let letter = char::from(b'a' + self.random.below(26) as u8);
        Order { n, amount, code, note: letter.to_string().repeat(length as usize) }
    }
}
