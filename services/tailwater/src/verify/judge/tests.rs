//! Every planted fault is found, and a good history is not accused.

use std::collections::BTreeMap;

use testkit::seed::{Random, Seed};

use super::*;
use crate::verify::{
    content::{bad_row, payload},
    ledger::{Entry, Fate, Intent, tests::begin},
};

/// A row as it was found, which a test may change.
#[derive(Clone, Debug)]
struct FoundRow {
    run: String,
    producer: String,
    numbers: [i64; 6],
    payload: String,
    place: Place,
}

#[derive(Clone, Debug)]
struct FoundLetter {
    place: Place,
    reason: String,
    bytes: Vec<u8>,
}

/// A ledger, and everything that is there after it was served well.
#[derive(Clone, Debug)]
struct History {
    books: Books,
    rows: Vec<FoundRow>,
    letters: Vec<FoundLetter>,
    derived: Vec<(Derived, i64, i64, i64)>,
}

impl History {
    /// Random sends of some rows each, with all fates, over a topic of two partitions.
    fn random(random: &mut Random) -> Self {
        let mut books = Books::begin(begin());
        let mut history = Self { books: books.clone(), rows: vec![], letters: vec![], derived: vec![] };
        let mut ends = [0_u64; 2];
        for batch in 0..10 {
            let mut rows: Vec<(i64, i64)> = Vec::new();
            for _ in 0..=random.below(8) {
                let key = random.below(5) as i64 - 1;
                let before = rows.iter().filter(|(other, _)| *other == key).count() as i64;
                rows.push((key, books.next_seq(key) + before));
            }
            let intent = Intent { batch, at_ms: 1000 + batch as i64, batch_rows: 1, rows: rows.clone() };
            books.take(Entry::Intent(intent)).unwrap();
            let fates = rows.iter().map(|&row| history.send(random, &books, row, batch as u32, &mut ends)).collect();
            books.take(Entry::Fates { batch, fates }).unwrap();
        }
        history.books = books;
        history
    }

    fn send(&mut self, random: &mut Random, books: &Books, row: (i64, i64), batch: u32, ends: &mut [u64; 2]) -> Fate {
        let fate = random.below(10);
        if fate == 0 {
            return Fate::Failed;
        }
        if fate == 1 && random.below(2) == 0 {
            return Fate::Unknown;
        }
        let partition = row.0.rem_euclid(2) as u32;
        let place = Place { partition, offset: ends[partition as usize] };
        ends[partition as usize] += 1 + random.below(2);
        self.land(books, row, batch, place);
        match fate {
            1 => Fate::Unknown,
            2 => Fate::Acked(None),
            _ => Fate::Acked(Some(place)),
        }
    }

    fn land(&mut self, books: &Books, (key, seq): (i64, i64), batch: u32, place: Place) {
        if key == BAD_KEY {
            let bytes = bad_row(&books.sender, seq).into_bytes();
            self.letters.push(FoundLetter { place, reason: "bad".into(), bytes });
            return;
        }
        let payload = payload(books.begin.settings, key, seq);
        books.with_row(key, seq, batch, |row| {
            let numbers = [key, seq, row.batch, row.batch_rows, row.sent_at, i64::from(row.crc())];
            let (run, producer) = (row.run.to_owned(), row.producer.to_owned());
            self.rows.push(FoundRow { run, producer, numbers, payload: payload.clone(), place });
            for view in DERIVED.into_iter().filter(|view| view.has(key, seq)) {
                self.derived.push((view, key, seq, view.value(key, seq, row.crc())));
            }
        });
    }

    fn judge(&self) -> BTreeMap<Id, Finding> {
        self.judged(false)
    }

    fn judged(&self, others_allowed: bool) -> BTreeMap<Id, Finding> {
        let mut judge = Judge::new(vec![self.books.clone()], others_allowed);
        for found in &self.rows {
            let [key, seq, batch, batch_rows, sent_at, crc] = found.numbers;
            let (run, producer, payload) = (found.run.as_str(), found.producer.as_str(), found.payload.as_str());
            let row = Row { run, producer, key, seq, batch, batch_rows, sent_at, payload };
            judge.stored(&Stored { row, crc, place: found.place });
        }
        for letter in &self.letters {
            judge.rejected(&Letter { place: letter.place, reason: &letter.reason, bytes: &letter.bytes });
        }
        for &(view, key, seq, value) in &self.derived {
            judge.derived(view, ("r", "p"), key, seq, value);
        }
        judge.verdict().0.into_iter().map(|finding| (finding.id, finding)).collect()
    }

    fn violated(&self) -> Vec<Id> {
        self.judge().into_values().filter(|finding| finding.violations > 0).map(|finding| finding.id).collect()
    }

    /// A found row that was acknowledged at a place.
    fn acked(&self, random: &mut Random) -> usize {
        let mut books = self.books.clone();
        let places: Vec<usize> = (0..self.rows.len())
            .filter(|&index| {
                let [key, seq, ..] = self.rows[index].numbers;
                books.get_mut(key, seq).unwrap().acked_place().is_some()
            })
            .collect();
        places[random.below(places.len() as u64) as usize]
    }
}

fn good(name: &str) -> (Seed, Random, History) {
    let seed = Seed::of(name);
    let mut random = seed.random();
    let history = History::random(&mut random);
    (seed, random, history)
}

#[test]
fn a_good_history_is_not_accused_in_whatever_order_it_is_shown() {
    let seed = Seed::of("a good history");
    let mut random = seed.random();
    for _ in 0..200 {
        let mut history = History::random(&mut random);
        assert_eq!(history.violated(), []);
        history.rows.reverse();
        history.derived.reverse();
        assert_eq!(history.violated(), []);
        let findings = history.judge();
        assert_eq!(findings[&Id::D].checked, history.rows.len() as u64);
        assert!(findings[&Id::A].checked >= history.rows.len() as u64);
    }
}

#[test]
fn a_lost_row_is_found() {
    let (_seed, mut random, mut history) = good("lost");
    let lost = history.rows.remove(history.acked(&mut random));
    let findings = history.judge();
    assert_eq!(findings[&Id::L].violations, 1);
    let example = &findings[&Id::L].examples[0];
    assert_eq!((example.key, example.seq), (Some(lost.numbers[0]), Some(lost.numbers[1])));
    assert_eq!((example.partition, example.offset), (Some(lost.place.partition), Some(lost.place.offset)));
}

#[test]
fn a_doubled_row_is_found_once_however_often_it_is_there() {
    let (_seed, mut random, mut history) = good("doubled");
    let row = history.rows[history.acked(&mut random)].clone();
    history.rows.extend([row.clone(), row]);
    assert_eq!(history.judge()[&Id::D].violations, 2, "two copies too many");
}

#[test]
fn swapped_rows_are_found_even_where_no_place_was_acknowledged() {
    let mut books = Books::begin(begin());
    let intent = Intent { batch: 0, at_ms: 0, batch_rows: 1, rows: vec![(1, 0), (1, 1)] };
    books.take(Entry::Intent(intent)).unwrap();
    books.take(Entry::Fates { batch: 0, fates: vec![Fate::Acked(None); 2] }).unwrap();
    let mut history = History { books: books.clone(), rows: vec![], letters: vec![], derived: vec![] };
    history.land(&books, (1, 0), 0, Place { partition: 0, offset: 9 });
    history.land(&books, (1, 1), 0, Place { partition: 0, offset: 8 });
    assert_eq!(history.violated(), [Id::O]);
}

#[test]
fn a_row_elsewhere_than_acknowledged_is_found() {
    let (_seed, mut random, mut history) = good("moved");
    let index = history.acked(&mut random);
    history.rows[index].place.partition ^= 1;
    assert!(history.violated().contains(&Id::O));
}

#[test]
fn rows_of_one_request_out_of_order_are_found() {
    let (_seed, _, history) = good("request");
    let mut judge = Judge::new(vec![history.books], false);
    let place = Place { partition: 0, offset: 4 };
    judge.in_file(("r", "p"), 1, 7, place);
    judge.in_file(("r", "p"), 2, 3, place);
    judge.in_file(("r", "p"), 1, 6, place);
    let (findings, _) = judge.verdict();
    assert_eq!(findings.iter().find(|finding| finding.id == Id::O).unwrap().violations, 1);
}

#[test]
fn a_corrupt_column_is_found_whichever_it_is() {
    let (_seed, mut random, history) = good("corrupt");
    let index = history.acked(&mut random);
    for column in 2..6 {
        let mut damaged = history.clone();
        damaged.rows[index].numbers[column] += 1;
        assert!(damaged.violated().contains(&Id::C), "column {column}");
    }
    let mut damaged = history;
    damaged.rows[index].payload.push('!');
    assert!(damaged.violated().contains(&Id::C));
}

#[test]
fn content_of_another_row_with_its_right_checksum_is_found() {
    let (_seed, mut random, mut history) = good("replaced");
    let index = history.acked(&mut random);
    let row = &mut history.rows[index];
    row.payload = "other".into();
    let [key, seq, batch, batch_rows, sent_at, _] = row.numbers;
    let forged = Row { run: "r", producer: "p", key, seq, batch, batch_rows, sent_at, payload: "other" };
    row.numbers[5] = i64::from(forged.crc());
    assert!(history.violated().contains(&Id::C));
}

#[test]
fn phantoms_are_found_whether_never_sent_failed_or_of_nobody() {
    let (_seed, mut random, history) = good("phantom");
    let row = history.rows[history.acked(&mut random)].clone();
    let changes: [fn(&mut FoundRow); 3] =
        [|row| row.numbers[1] = 100_000, |row| row.numbers[0] = -1, |row| row.producer = "nobody".into()];
    for change in changes {
        let mut haunted = history.clone();
        let mut phantom = row.clone();
        change(&mut phantom);
        haunted.rows.push(phantom);
        assert!(haunted.violated().contains(&Id::P));
    }
    let mut books = Books::begin(begin());
    books.take(Entry::Intent(Intent { batch: 0, at_ms: 0, batch_rows: 1, rows: vec![(1, 0)] })).unwrap();
    books.take(Entry::Fates { batch: 0, fates: vec![Fate::Failed] }).unwrap();
    let mut failed = History { books: books.clone(), rows: vec![], letters: vec![], derived: vec![] };
    failed.land(&books, (1, 0), 0, Place::default());
    assert_eq!(failed.violated(), [Id::P]);
}

#[test]
fn rows_of_other_runs_are_left_alone_where_that_is_allowed() {
    let (_seed, mut random, mut history) = good("others");
    let mut other = history.rows[history.acked(&mut random)].clone();
    other.run = "elsewhere".into();
    history.rows.push(other);
    assert_eq!(history.judge()[&Id::P].violations, 1);
    assert_eq!(history.judged(true)[&Id::P].violations, 0);
}

#[test]
fn a_row_of_unknown_fate_may_be_missing_or_there_but_not_twice() {
    let mut books = Books::begin(begin());
    books.take(Entry::Intent(Intent { batch: 0, at_ms: 0, batch_rows: 1, rows: vec![(1, 0)] })).unwrap();
    let mut history = History { books: books.clone(), rows: vec![], letters: vec![], derived: vec![] };
    assert_eq!(history.violated(), []);
    history.land(&books, (1, 0), 0, Place::default());
    assert_eq!(history.violated(), []);
    history.rows.push(history.rows[0].clone());
    assert_eq!(history.violated(), [Id::D, Id::U]);
}

#[test]
fn bad_rows_lost_doubled_altered_or_without_reason_are_found() {
    let (_seed, _, history) = loop {
        let (seed, random, history) = good("bad rows");
        let mut books = history.books.clone();
        let first = history.letters.first().and_then(|letter| read_bad_row(&letter.bytes));
        if first.is_some_and(|(_, seq)| books.get_mut(BAD_KEY, seq).unwrap().acked_place().is_some()) {
            break (seed, random, history);
        }
        if std::env::var_os("TAILWATER_SEED").is_some() {
            return;
        }
    };
    let changes: [fn(&mut Vec<FoundLetter>); 6] = [
        |letters| drop(letters.remove(0)),
        |letters| letters.push(letters[0].clone()),
        |letters| letters[0].bytes.push(b'!'),
        |letters| letters[0].reason.clear(),
        |letters| letters[0].place.offset += 1,
        |letters| letters.push(FoundLetter { bytes: b"{\"run_id\":\"r\",\"key\":1}".to_vec(), ..letters[0].clone() }),
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let mut damaged = history.clone();
        change(&mut damaged.letters);
        assert_eq!(damaged.violated(), [Id::Q], "change {number}");
    }
}

#[test]
fn views_that_miss_double_alter_or_invent_rows_are_found() {
    let (_seed, mut random, history) = good("views");
    let index = random.below(history.derived.len() as u64) as usize;
    type Change = fn(&mut Vec<(Derived, i64, i64, i64)>, usize);
    let changes: [Change; 4] = [
        |derived, index| {
            derived.remove(index);
        },
        |derived, index| derived.push(derived[index]),
        |derived, index| derived[index].3 += 1,
        |derived, _| derived.push((Derived::In, 1, 100_000, 0)),
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let mut damaged = history.clone();
        change(&mut damaged.derived, index);
        assert_eq!(damaged.violated(), [Id::A], "change {number}");
    }
    let mut unfiltered = history;
    let odd = unfiltered.rows.iter().find(|row| row.numbers[1] % 2 == 1).map(|row| row.numbers);
    if let Some([key, seq, ..]) = odd {
        unfiltered.derived.push((Derived::Even, key, seq, mixed(key, seq)));
        assert_eq!(unfiltered.violated(), [Id::A]);
    }
}

#[test]
fn any_single_change_of_a_good_history_is_found() {
    let seed = Seed::of("any single change");
    let mut random = seed.random();
    let mut tried = BTreeMap::new();
    for round in 0..1000 {
        let history = History::random(&mut random);
        let mut changed = history.clone();
        let name = change(&mut random, &mut changed);
        *tried.entry(name).or_insert(0) += 1;
        assert_ne!(changed.violated(), [], "round {round}: {name} was not found");
    }
    assert!(tried.len() == 11 && tried.values().all(|&times| times > 30), "{tried:?}");
}

/// Changes one thing; its name.
fn change(random: &mut Random, history: &mut History) -> &'static str {
    let row = random.below(history.rows.len() as u64) as usize;
    let derived = random.below(history.derived.len() as u64) as usize;
    match random.below(11) {
        0 => {
            history.rows.remove(row);
            "a row is lost"
        }
        1 => {
            history.rows.push(history.rows[row].clone());
            "a row is doubled"
        }
        2 => {
            let column = random.below(6) as usize;
            history.rows[row].numbers[column] ^= 1 << random.below(20);
            "a number is changed"
        }
        3 => {
            history.rows[row].payload.push('x');
            "a payload is changed"
        }
        4 => {
            let mut phantom = history.rows[row].clone();
            phantom.numbers[1] += 100_000;
            history.rows.push(phantom);
            "a row is invented"
        }
        5 => {
            let acked = history.acked(random);
            history.rows[acked].place.offset += 1 + random.below(5);
            "a row is moved"
        }
        6 => {
            history.derived.remove(derived);
            "a derived row is lost"
        }
        7 => {
            history.derived.push(history.derived[derived]);
            "a derived row is doubled"
        }
        8 => {
            history.derived[derived].3 ^= 1 << random.below(40);
            "a derived value is changed"
        }
        9 => {
            history.rows[row].producer.push('x');
            "a row has another sender"
        }
        _ => {
            let letter = FoundLetter { place: Place::default(), reason: "x".into(), bytes: b"r".to_vec() };
            history.letters.push(letter);
            "a good row is rejected"
        }
    }
}
