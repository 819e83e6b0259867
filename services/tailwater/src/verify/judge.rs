//! Ledgers against what was found: the verdict on every invariant that concerns rows.
//!
//! Pure. The invariant: the verdict does not depend on the order in which rows are shown, so they may be read in any
//! order and in parts; only [`Judge::derived`] must come after all of [`Judge::stored`]. Holds no row, only a few bits
//! of each.
//! Deliberately absent: reading (`tables`), the Delta log (`lake::audit`), and time.

use std::collections::{BTreeMap, HashMap};

use super::{
    books::{Books, Sent},
    content::{BAD_KEY, Row, Sender, read_bad_row},
    finding::{Example, Finding, Id},
    ledger::Place,
};

/// A row of the source's table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stored<'a> {
    pub(crate) row: Row<'a>,
    pub(crate) crc: i64,
    pub(crate) place: Place,
}

/// A row of the source's rejected table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Letter<'a> {
    pub(crate) place: Place,
    pub(crate) reason: &'a str,
    pub(crate) bytes: &'a [u8],
}

/// Which rows a view must have, and what their computed column says: the SQL of `pipelines/verify`, once more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Derived {
    /// `even_events`: every second row.
    Even,
    /// `flows`, first branch: every row.
    In,
    /// `flows`, second branch: every third row.
    Out,
    /// `fifth_events`, a view on a view.
    Fifth,
}

pub(crate) const DERIVED: [Derived; 4] = [Derived::Even, Derived::In, Derived::Out, Derived::Fifth];

impl Derived {
    fn bit(self) -> u8 {
        match self {
            Self::Even => 1 << 1,
            Self::In => 1 << 2,
            Self::Out => 1 << 3,
            Self::Fifth => 1 << 4,
        }
    }

    fn has(self, key: i64, seq: i64) -> bool {
        match self {
            Self::Even => seq % 2 == 0,
            Self::In => true,
            Self::Out => seq % 3 == 0,
            Self::Fifth => seq % 2 == 0 && mixed(key, seq) % 5 == 0,
        }
    }

    /// The computed column of the view's row.
    pub(crate) fn value(self, key: i64, seq: i64, crc: u32) -> i64 {
        match self {
            Self::Even | Self::Fifth => mixed(key, seq),
            Self::In => i64::from(crc),
            Self::Out => -i64::from(crc),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Even => "even_events",
            Self::In => "flows, way `in`",
            Self::Out => "flows, way `out`",
            Self::Fifth => "fifth_events",
        }
    }
}

fn mixed(key: i64, seq: i64) -> i64 {
    seq * 2 + key
}

/// Found in the table it belongs to.
const FOUND: u8 = 1;
/// Found there more than once.
const DOUBLED: u8 = 1 << 7;

/// Sums over the source's table that do not depend on order: what an independent reader must see too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sums {
    pub(crate) rows: u64,
    /// Rows with another (run, producer, key, seq) than all others; not known among rows of strangers.
    pub(crate) distinct: Option<u64>,
    pub(crate) key: i128,
    pub(crate) seq: i128,
    pub(crate) crc: i128,
    /// The sum, modulo 2^64, of the checksum that is computed anew for each row.
    pub(crate) checksum: u64,
}

/// Counts that are no verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) sent: u64,
    pub(crate) acked: u64,
    pub(crate) unknown: u64,
    pub(crate) unknown_found: u64,
    pub(crate) failed: u64,
    pub(crate) rejected: u64,
    pub(crate) bad_lost: u64,
    pub(crate) bad_doubled: u64,
    /// Rows of runs that no ledger was given for.
    pub(crate) others: u64,
}

/// Where a row of one request was last seen in a file.
type Seen = (Place, i64);

/// See the module.
#[derive(Debug)]
pub(crate) struct Judge {
    books: Vec<Books>,
    /// Whether rows of senders without a ledger are none of our business.
    others_allowed: bool,
    findings: BTreeMap<Id, Finding>,
    sums: Sums,
    counts: Counts,
    in_files: HashMap<(usize, i64), Seen>,
}

impl Judge {
    /// A judge that has seen nothing yet.
    pub(crate) fn new(books: Vec<Books>, others_allowed: bool) -> Self {
        let ids = [Id::L, Id::D, Id::P, Id::C, Id::O, Id::U, Id::A, Id::Q];
        Self {
            books,
            others_allowed,
            findings: ids.into_iter().map(|id| (id, Finding::of(id))).collect(),
            sums: Sums { distinct: Some(0), ..Sums::default() },
            counts: Counts::default(),
            in_files: HashMap::new(),
        }
    }

    /// Shows a row of the source's table.
    pub(crate) fn stored(&mut self, stored: &Stored<'_>) {
        let Stored { row, crc, place } = *stored;
        let true_crc = row.crc();
        self.add(&row, crc, true_crc);
        let example = |what: &str| Example::of(what, row.producer, row.key, row.seq).at(place);
        let Some(index) = self.sender(row.run, row.producer) else {
            self.sums.distinct = None;
            self.stranger(|| example(&format!("a row of run `{}`, for which no ledger was given", row.run)));
            return;
        };
        self.checked(Id::P);
        let sent = if row.key == BAD_KEY { None } else { self.books[index].get_mut(row.key, row.seq) };
        let Some(sent) = sent else {
            self.violated(Id::P, || example("stored and never sent"));
            return;
        };
        let before = *sent;
        sent.found |= if before.found & FOUND == 0 { FOUND } else { DOUBLED };
        sent.found_at(if before.found & FOUND == 0 { place } else { before.place() });
        if before.is_failed() {
            self.violated(Id::P, || example("stored, though the send had certainly failed"));
        }
        self.checked(Id::C);
        if crc != i64::from(true_crc) || true_crc != before.crc {
            self.violated(Id::C, || example("stored with other content than was sent"));
        }
        self.checked(Id::D);
        if before.found & FOUND != 0 {
            self.sums.distinct = self.sums.distinct.map(|rows| rows - 1);
            self.violated(Id::D, || example("stored more than once"));
        } else if let Some(acked) = before.acked_place().filter(|acked| *acked != place) {
            let Place { partition, offset } = acked;
            self.violated(Id::O, || example(&format!("stands elsewhere than acknowledged, {partition}/{offset}")));
        }
    }

    /// Shows a row of the source's rejected table; of one cut into parts, the first.
    pub(crate) fn rejected(&mut self, letter: &Letter<'_>) {
        self.counts.rejected += 1;
        let shown = || String::from_utf8_lossy(&letter.bytes[..letter.bytes.len().min(80)]).into_owned();
        let Some((sender, seq)) = read_bad_row(letter.bytes) else {
            let of_ours = self.books.iter().any(|books| mentions(letter.bytes, &books.sender.run));
            let example = || Example::of(&format!("rejected, though not bad: {}", shown()), "", 0, 0).at(letter.place);
            if of_ours {
                self.violated(Id::Q, example)
            } else {
                self.stranger(example)
            }
            return;
        };
        let example = |what: &str| Example::of(what, &sender.producer, BAD_KEY, seq).at(letter.place);
        let Some(index) = self.sender(&sender.run, &sender.producer) else {
            self.stranger(|| example(&format!("a bad row of run `{}`, for which no ledger was given", sender.run)));
            return;
        };
        let Some(sent) = self.books[index].get_mut(BAD_KEY, seq) else {
            self.violated(Id::Q, || example("rejected and never sent"));
            return;
        };
        let before = *sent;
        sent.found |= if before.found & FOUND == 0 { FOUND } else { DOUBLED };
        self.counts.bad_doubled += u64::from(before.found & FOUND != 0);
        let fault = if before.found & FOUND != 0 {
            Some("rejected more than once")
        } else if before.is_failed() {
            Some("rejected, though the send had certainly failed")
        } else if crc32fast::hash(letter.bytes.trim_ascii()) != before.crc {
            Some("kept with other bytes than were sent")
        } else if before.acked_place().is_some_and(|place| place != letter.place) {
            Some("its place is not the acknowledged one")
        } else {
            letter.reason.is_empty().then_some("rejected without a reason")
        };
        if let Some(fault) = fault {
            self.violated(Id::Q, || example(fault));
        }
    }

    /// Shows a row of a view, after all stored rows.
    pub(crate) fn derived(&mut self, view: Derived, sender: (&str, &str), key: i64, seq: i64, value: i64) {
        let (run, producer) = sender;
        let example = |what: &str| Example::of(&format!("{}: {what}", view.name()), producer, key, seq);
        let Some(index) = self.sender(run, producer) else {
            self.stranger(|| example(&format!("a row of run `{run}`, for which no ledger was given")));
            return;
        };
        self.checked(Id::A);
        let Some(sent) = self.books[index].get_mut(key, seq).filter(|sent| key != BAD_KEY && sent.found & FOUND != 0)
        else {
            self.violated(Id::A, || example("its row is not in the source's table"));
            return;
        };
        let (doubled, expected) = (sent.found & view.bit() != 0, view.value(key, seq, sent.crc));
        sent.found |= view.bit();
        if doubled {
            self.violated(Id::A, || example("is there more than once"));
        } else if !view.has(key, seq) {
            self.violated(Id::A, || example("should have been left out"));
        } else if value != expected {
            self.violated(Id::A, || example(&format!("says {value}, expected {expected}")));
        }
    }

    /// Shows a row as it follows others in a file: rows of one request have one offset, and only files keep their order.
    pub(crate) fn in_file(&mut self, sender: (&str, &str), key: i64, seq: i64, place: Place) {
        let Some(index) = self.sender(sender.0, sender.1) else { return };
        let before = self.in_files.insert((index, key), (place, seq));
        if before.is_some_and(|(before, earlier)| before == place && earlier >= seq) {
            self.violated(Id::O, || Example::of("out of order in its request", sender.1, key, seq).at(place));
        }
    }

    /// What the table adds up to so far.
    pub(crate) fn sums(&self) -> Sums {
        self.sums
    }

    /// The verdict, once everything has been shown.
    pub(crate) fn verdict(mut self) -> (Vec<Finding>, Counts) {
        for index in 0..self.books.len() {
            let books = std::mem::take(&mut self.books[index].keys);
            let producer = self.books[index].sender.producer.clone();
            for (key, rows) in books {
                for (seq, sent) in (0_i64..).zip(&rows) {
                    self.settle(&producer, key, seq, sent);
                }
                if key != BAD_KEY {
                    self.check_order(&producer, key, &rows);
                }
            }
        }
        (self.findings.into_values().collect(), self.counts)
    }

    fn settle(&mut self, producer: &str, key: i64, seq: i64, sent: &Sent) {
        self.counts.sent += 1;
        self.counts.acked += u64::from(sent.is_acked());
        self.counts.failed += u64::from(sent.is_failed());
        let found = sent.found & FOUND != 0;
        let example = |what: &str| {
            let example = Example::of(what, producer, key, seq);
            if sent.is_acked() { example.at(sent.place()) } else { example }
        };
        let whole = if key == BAD_KEY { Id::Q } else { Id::L };
        if sent.is_acked() {
            self.checked(whole);
            if !found {
                self.counts.bad_lost += u64::from(key == BAD_KEY);
                self.violated(whole, || example("acknowledged and nowhere to be found"));
            }
        }
        if sent.is_unknown() {
            self.counts.unknown += 1;
            self.counts.unknown_found += u64::from(found);
            self.checked(Id::U);
            if sent.found & DOUBLED != 0 {
                self.violated(Id::U, || example("of unknown fate, and there more than once"));
            }
        }
        if key != BAD_KEY && found {
            for view in DERIVED.into_iter().filter(|view| view.has(key, seq) && sent.found & view.bit() == 0) {
                self.checked(Id::A);
                self.violated(Id::A, || example(&format!("{}: the row is missing", view.name())));
            }
        }
    }

    /// Acknowledged rows of a key stand in the order they were sent in, partition by partition. A row of unknown fate
    /// may have arrived late.
    fn check_order(&mut self, producer: &str, key: i64, rows: &[Sent]) {
        let mut last: BTreeMap<u32, (u64, u32)> = BTreeMap::new();
        for (seq, sent) in (0_i64..).zip(rows).filter(|(_, sent)| sent.is_acked() && sent.found & FOUND != 0) {
            self.checked(Id::O);
            let Place { partition, offset } = sent.place();
            let before = last.insert(partition, (offset, sent.batch));
            let follows = before.is_none_or(|(earlier, batch)| match offset.cmp(&earlier) {
                std::cmp::Ordering::Less => false,
                std::cmp::Ordering::Equal => batch == sent.batch,
                std::cmp::Ordering::Greater => true,
            });
            if !follows {
                self.violated(Id::O, || {
                    Example::of("stands before its predecessor", producer, key, seq).at(sent.place())
                });
            }
        }
    }

    fn add(&mut self, row: &Row<'_>, crc: i64, true_crc: u32) {
        self.sums.rows += 1;
        self.sums.distinct = self.sums.distinct.map(|rows| rows + 1);
        self.sums.key += i128::from(row.key);
        self.sums.seq += i128::from(row.seq);
        self.sums.crc += i128::from(crc);
        self.sums.checksum = self.sums.checksum.wrapping_add(u64::from(true_crc));
    }

    fn sender(&self, run: &str, producer: &str) -> Option<usize> {
        let is = |sender: &Sender| sender.producer == producer && sender.run == run;
        self.books.iter().position(|books| is(&books.sender))
    }

    fn stranger(&mut self, example: impl FnOnce() -> Example) {
        self.counts.others += 1;
        if !self.others_allowed {
            self.checked(Id::P);
            self.violated(Id::P, example);
        }
    }

    fn checked(&mut self, id: Id) {
        self.findings.entry(id).or_insert_with(|| Finding::of(id)).checked += 1;
    }

    fn violated(&mut self, id: Id, example: impl FnOnce() -> Example) {
        self.findings.entry(id).or_insert_with(|| Finding::of(id)).violate(example);
    }
}

fn mentions(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len().max(1)).any(|window| window == text.as_bytes())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
