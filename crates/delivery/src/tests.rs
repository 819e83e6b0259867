//! The rule under crash, repeat, regrouping and zombies, as a property over seeded schedules.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::*;

#[test]
fn positions_pack_in_order_and_unpack() {
    let mut packed = Vec::new();
    for offset in [0, 1, 2, 1 << 20, (1 << 43) - 1] {
        for row in [0, 1, MAX_ROWS_PER_UNIT - 1] {
            let position = Position::inside(offset, row);
            let number = position.pack().unwrap();
            assert_eq!(Position::unpack(number), Some(position));
            packed.push(number);
        }
    }
    assert!(packed.is_sorted(), "packed positions sort as positions do");
}

#[test]
fn positions_too_large_for_a_txn_version_are_refused() {
    assert_eq!(Position::at(1 << 43).pack(), None);
    assert_eq!(Position::inside(0, MAX_ROWS_PER_UNIT).pack(), None);
    assert_eq!(Position::unpack(-1), None);
}

#[test]
fn an_origin_that_ends_before_it_begins_is_refused() {
    let writer = Writer::new("w");
    assert!(Origin::new(writer.clone(), Position::at(2), Position::at(1)).is_err());
    assert!(Origin::new(writer, Position::at(1), Position::at(1)).is_ok());
}

#[test]
fn the_rule_follows_its_table() {
    let writer = Writer::new("w");
    let origin = |from, to| Origin::new(writer.clone(), Position::at(from), Position::at(to)).unwrap();
    let mut ends = Ends::default();
    ends.set(writer.clone(), Position::at(10));
    assert_eq!(ends.judge(&origin(10, 10)), Ok(Verdict::Heartbeat));
    assert_eq!(ends.judge(&origin(9, 9)), Ok(Verdict::Repeat));
    assert_eq!(ends.judge(&origin(3, 10)), Ok(Verdict::Repeat));
    assert_eq!(ends.judge(&origin(10, 12)), Ok(Verdict::Take { from: Position::at(10) }));
    assert_eq!(ends.judge(&origin(4, 12)), Ok(Verdict::Take { from: Position::at(10) }));
    let gap = ends.accept(&origin(11, 12)).unwrap_err();
    assert_eq!(gap.to_string(), "gap in the output of writer `w`: expected position 10, found 11");
    assert_eq!(ends.get(&writer), Position::at(10), "a gap moves nothing");
}

#[test]
fn a_checkpoint_survives_encoding_and_unknown_formats_are_refused() {
    let mut checkpoint = Checkpoint::at(Position::inside(7, 3));
    checkpoint.ends.set(Writer::new("a/0"), Position::at(5));
    checkpoint.outputs.insert("data".into(), Position::at(7));
    checkpoint.totals = Totals { read: 9, emitted: 7, rejected: 2, ..Totals::default() };
    let bytes = checkpoint.to_bytes();
    assert_eq!(Checkpoint::from_bytes(&bytes).unwrap(), checkpoint);
    let newer = String::from_utf8(bytes).unwrap().replace("\"format\":1", "\"format\":2");
    assert!(matches!(Checkpoint::from_bytes(newer.as_bytes()), Err(CheckpointError::UnknownFormat { found: 2 })));
    assert!(Checkpoint::from_bytes(b"{}").is_err());
}

/// A writer's input: how many rows each unit yields. Row `r` of unit `u` has the value `(u, r)`.
struct Input(Vec<u32>);

type Row = (u64, u32);

/// One message in the log: its origin and the rows of that stretch.
#[derive(Clone)]
struct Message {
    origin: Origin,
    rows: Vec<Row>,
}

impl Input {
    fn rows(&self) -> impl Iterator<Item = Row> + '_ {
        self.0.iter().enumerate().flat_map(|(unit, &rows)| (0..rows).map(move |row| (unit as u64, row)))
    }

    /// Every position at which a message may be cut, in order.
    fn cuts(&self) -> Vec<Position> {
        let mut cuts: Vec<Position> = self.rows().map(|(unit, row)| Position::inside(unit, row)).collect();
        cuts.extend((0..=self.0.len() as u64).map(Position::at));
        cuts.sort_unstable();
        cuts.dedup();
        cuts
    }

    fn message(&self, writer: &Writer, from: Position, to: Position) -> Message {
        let inside = |(unit, row): &Row| (from..to).contains(&Position::inside(*unit, *row));
        Message { origin: Origin::new(writer.clone(), from, to).unwrap(), rows: self.rows().filter(inside).collect() }
    }
}

/// One life of a writer: from some checkpoint at or before what was written, regrouped at random, cut off at random.
struct Life {
    at: usize,
}

/// Writes lives of several (zombie) owners interleaved. A life only ever starts at a place whose earlier output is
/// durable, as the checkpoint rule demands.
fn random_log(input: &Input, writer: &Writer, rng: &mut StdRng) -> Vec<Message> {
    let cuts = input.cuts();
    let mut log = Vec::new();
    let mut durable = 0;
    let mut lives: Vec<Life> = vec![Life { at: 0 }];
    while durable + 1 < cuts.len() || rng.random_bool(0.5) {
        match rng.random_range(0..10) {
            0 => lives.push(Life { at: rng.random_range(0..=durable) }),
            1 if lives.len() > 1 => {
                let dead = rng.random_range(0..lives.len());
                lives.swap_remove(dead);
            }
            _ => {
                let chosen = rng.random_range(0..lives.len());
                let life = &mut lives[chosen];
                let next = (life.at + rng.random_range(0..4usize)).min(cuts.len() - 1);
                log.push(input.message(writer, cuts[life.at], cuts[next]));
                life.at = next;
                durable = durable.max(next);
            }
        }
        if log.len() > 4000 {
            break;
        }
    }
    log
}

fn read(ends: &mut Ends, log: &[Message]) -> Result<Vec<Row>, Gap> {
    let mut taken = Vec::new();
    for message in log {
        if let Verdict::Take { from } = ends.accept(&message.origin)? {
            let kept = message.rows.iter().filter(|(unit, row)| Position::inside(*unit, *row) >= from);
            taken.extend(kept.copied());
        }
    }
    Ok(taken)
}

fn cases() -> ProptestConfig {
    ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() }
}

/// `TAILWATER_SEED` replays one schedule.
fn seed_or(generated: u64) -> u64 {
    std::env::var("TAILWATER_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(generated)
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn any_mix_of_crash_repeat_regrouping_and_zombie_gives_the_unbroken_prefix(
        seed in any::<u64>(), units in prop::collection::vec(0u32..4, 1..20),
    ) {
        let seed = seed_or(seed);
        let mut rng = StdRng::seed_from_u64(seed);
        let input = Input(units);
        let log = random_log(&input, &Writer::new("w"), &mut rng);
        let mut ends = Ends::default();
        let taken = read(&mut ends, &log).unwrap();
        let expected: Vec<Row> = input.rows().collect();
        prop_assert_eq!(&taken[..], &expected[..taken.len()], "seed {}", seed);
        let end = ends.get(&Writer::new("w"));
        let covered = expected.iter().filter(|(unit, row)| Position::inside(*unit, *row) < end).count();
        prop_assert_eq!(taken.len(), covered, "seed {}", seed);
    }

    #[test]
    fn a_reader_that_restarts_from_its_own_ends_takes_the_same_rows(
        seed in any::<u64>(), units in prop::collection::vec(0u32..4, 1..20),
    ) {
        let seed = seed_or(seed);
        let mut rng = StdRng::seed_from_u64(seed);
        let input = Input(units);
        let log = random_log(&input, &Writer::new("w"), &mut rng);
        let whole = read(&mut Ends::default(), &log).unwrap();
        let cut = rng.random_range(0..=log.len());
        let mut ends = Ends::default();
        let mut pieces = read(&mut ends, &log[..cut]).unwrap();
        let mut restarted: Ends = serde_json::from_slice(&serde_json::to_vec(&ends).unwrap()).unwrap();
        pieces.extend(read(&mut restarted, &log[cut..]).unwrap());
        prop_assert_eq!(pieces, whole, "seed {}", seed);
    }

    #[test]
    fn a_missing_message_always_halts_unless_a_repeat_covers_it(
        seed in any::<u64>(), units in prop::collection::vec(1u32..4, 2..20),
    ) {
        let seed = seed_or(seed);
        let mut rng = StdRng::seed_from_u64(seed);
        let input = Input(units);
        let mut log = random_log(&input, &Writer::new("w"), &mut rng);
        log.remove(rng.random_range(0..log.len()));
        let expected: Vec<Row> = input.rows().collect();
        let mut ends = Ends::default();
        let mut taken = Vec::new();
        for message in &log {
            match read(&mut ends, std::slice::from_ref(message)) {
                Ok(rows) => taken.extend(rows),
                Err(gap) => {
                    prop_assert!(gap.found > gap.expected);
                    break;
                }
            }
        }
        prop_assert_eq!(&taken[..], &expected[..taken.len()], "seed {}", seed);
    }
}

#[test]
fn a_task_that_begins_late_takes_each_writer_on_from_where_it_first_sees_it() {
    let origin =
        |writer: &str, from, to| Origin::new(Writer::new(writer), Position::at(from), Position::at(to)).unwrap();
    let mut early = Checkpoint::start();
    assert!(early.accept(&origin("w", 5, 7)).is_err(), "a task that saw the beginning of its input misses [0, 5)");
    let mut late = Checkpoint::at(Position::at(9));
    late.begins_late = true;
    assert_eq!(late.accept(&origin("w", 5, 7)).unwrap(), Verdict::Take { from: Position::at(5) });
    assert_eq!(late.accept(&origin("w", 0, 6)).unwrap(), Verdict::Repeat);
    assert_eq!(late.accept(&origin("w", 6, 9)).unwrap(), Verdict::Take { from: Position::at(7) });
    assert!(late.accept(&origin("w", 10, 11)).is_err(), "from there on a gap is a gap");
    assert_eq!(late.accept(&origin("new", 0, 1)).unwrap(), Verdict::Take { from: Position::START });
}

#[test]
fn a_checkpoint_of_before_witnesses_is_read() {
    let old = r#"{"format":1,"position":{"offset":7,"row":0},"outputs":{},"ends":{},
        "totals":{"read":1,"emitted":1,"rejected":0,"filtered":0,"late":0},"max_event_time":null}"#;
    let mut expected = Checkpoint::at(Position::at(7));
    expected.totals = Totals { read: 1, emitted: 1, ..Totals::default() };
    assert_eq!(Checkpoint::from_bytes(old.as_bytes()).unwrap(), expected);
    expected.witness = Some(Witness::of(6, 1_000, [None, Some(b"row".as_slice())]));
    expected.input = "i".into();
    expected.begins_late = true;
    assert_eq!(Checkpoint::from_bytes(&expected.to_bytes()).unwrap(), expected);
}
