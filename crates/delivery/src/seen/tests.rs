//! Every stretch of every request is taken once, however it was cut, repeated, interleaved and restarted.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::*;
use crate::{Checkpoint, Position};

fn part(producer: &str, sequence: u64, stretch: Range<u64>, total: u64) -> RequestPart<'_> {
    RequestPart { producer, sequence, from: stretch.start, to: stretch.end, total }
}

fn whole(producer: &str, sequence: u64) -> RequestPart<'_> {
    part(producer, sequence, 0..1, 1)
}

#[test]
fn a_request_is_taken_once() {
    let mut seen = Seen::default();
    assert_eq!(seen.accept(&whole("a", 7), 0), Ok(Fresh::Whole));
    assert_eq!(seen.accept(&whole("a", 7), 1), Ok(Fresh::Repeat));
    assert_eq!(seen.accept(&whole("b", 7), 2), Ok(Fresh::Whole), "numbers belong to their producer");
    assert_eq!(seen.accept(&whole("a", 6), 3), Ok(Fresh::Whole), "requests may overtake each other");
    assert_eq!(seen.accept(&part("a", 8, 0..0, 0), 4), Ok(Fresh::Whole), "an empty request is one too");
    assert_eq!(seen.accept(&part("a", 8, 0..0, 0), 5), Ok(Fresh::Repeat));
}

#[test]
fn a_second_try_that_is_cut_otherwise_gives_what_is_missing() {
    let mut seen = Seen::default();
    assert_eq!(seen.accept(&part("a", 0, 0..40, 100), 0), Ok(Fresh::Whole));
    assert_eq!(seen.accept(&part("a", 0, 60..80, 100), 1), Ok(Fresh::Whole));
    assert_eq!(seen.accept(&part("a", 0, 10..30, 100), 2), Ok(Fresh::Repeat));
    assert_eq!(seen.accept(&part("a", 0, 30..100, 100), 3), Ok(Fresh::Pieces(vec![40..60, 80..100])));
    assert_eq!(seen.accept(&part("a", 0, 0..100, 100), 4), Ok(Fresh::Repeat));
}

#[test]
fn another_body_under_the_same_key_is_not_mixed_in() {
    let mut seen = Seen::default();
    seen.accept(&part("a", 0, 0..40, 100), 0).unwrap();
    let error = seen.accept(&part("a", 0, 40..90, 90), 1).unwrap_err();
    assert!(error.to_string().contains("is 90 long here and was 100"), "{error}");
    assert_eq!(seen.accept(&part("a", 0, 40..100, 100), 2), Ok(Fresh::Whole));
}

#[test]
fn behind_the_window_nothing_is_guessed() {
    let mut seen = Seen::default();
    seen.accept(&whole("a", 0), 0).unwrap();
    seen.accept(&whole("a", REQUEST_WINDOW - 1), 1).unwrap();
    assert_eq!(seen.accept(&whole("a", 0), 2), Ok(Fresh::Repeat), "the oldest of the window");
    seen.accept(&whole("a", REQUEST_WINDOW), 3).unwrap();
    let error = seen.accept(&whole("a", 0), 4).unwrap_err();
    assert!(matches!(error, Unknowable::Behind { floor: 1, .. }), "{error}");
    assert_eq!(seen.accept(&whole("a", 1), 5), Ok(Fresh::Whole));
}

#[test]
fn holes_and_open_requests_are_bounded() {
    let mut seen = Seen::default();
    for piece in 0..MAX_PIECES as u64 {
        seen.accept(&part("a", 0, 2 * piece..2 * piece + 1, 1000), piece).unwrap();
    }
    let error = seen.accept(&part("a", 0, 900..901, 1000), 100).unwrap_err();
    assert!(matches!(error, Unknowable::Scattered { .. }), "{error}");
    for sequence in 1..=MAX_OPEN as u64 {
        seen.accept(&part("a", sequence, 0..1, 2), 200 + sequence).unwrap();
    }
    let error = seen.accept(&part("a", 0, 0..1000, 1000), 300).unwrap_err();
    assert!(matches!(error, Unknowable::Behind { floor: 1, .. }), "{error}");
}

#[test]
fn the_producer_heard_from_longest_ago_is_forgotten() {
    let mut seen = Seen::default();
    for producer in 0..MAX_PRODUCERS as u64 {
        seen.accept(&whole(&format!("p{producer}"), 0), producer).unwrap();
    }
    assert_eq!(seen.accept(&whole("p0", 0), 1 << 20), Ok(Fresh::Repeat), "and is the newest now");
    seen.accept(&whole("one more", 0), (1 << 20) + 1).unwrap();
    assert_eq!(seen.accept(&whole("p0", 0), (1 << 20) + 2), Ok(Fresh::Repeat));
    assert_eq!(seen.accept(&whole("p1", 0), (1 << 20) + 3), Ok(Fresh::Whole), "forgotten: the price of a bound");
    assert_eq!(seen.producers.len(), MAX_PRODUCERS);
    assert_eq!(seen.order.len(), MAX_PRODUCERS);
}

#[test]
fn producers_with_very_many_holes_cannot_fill_the_memory() {
    let (mut seen, mut offset) = (Seen::default(), 0);
    for producer in 0..100 + MAX_RANGES as u64 / (REQUEST_WINDOW / 2) {
        let name = format!("p{producer}");
        for sequence in (0..REQUEST_WINDOW).step_by(2) {
            seen.accept(&whole(&name, sequence), offset).unwrap();
            offset += 1;
        }
    }
    assert!(seen.ranges <= MAX_RANGES);
    let counted: usize = seen.producers.values().map(Producer::ranges).sum();
    assert_eq!(seen.ranges, counted);
}

fn seeds() -> Range<u64> {
    match std::env::var("TAILWATER_SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => seed..seed + 1,
        None => 0..500,
    }
}

/// A message of the log.
#[derive(Clone, Debug)]
struct Landed {
    producer: usize,
    sequence: u64,
    stretch: Range<u64>,
}

const PRODUCERS: [&str; 3] = ["a", "b", "c"];
const REQUESTS: u64 = 6;

fn total(producer: usize, sequence: u64) -> u64 {
    (7 * producer as u64 + 13 * sequence) % 40
}

/// One try: cut anywhere, broken off anywhere, with messages the log may have lost between.
fn attempt(random: &mut StdRng, producer: usize, sequence: u64, whole: bool) -> Vec<Landed> {
    let total = total(producer, sequence);
    let mut cuts: Vec<u64> = (0..random.random_range(0..5)).map(|_| random.random_range(0..=total)).collect();
    cuts.extend([0, total]);
    cuts.sort_unstable();
    cuts.dedup();
    let mut parts: Vec<Landed> =
        cuts.windows(2).map(|cut| Landed { producer, sequence, stretch: cut[0]..cut[1] }).collect();
    if total == 0 {
        parts.push(Landed { producer, sequence, stretch: 0..0 });
    }
    if !whole {
        parts.retain(|_| random.random_bool(0.7));
    }
    parts
}

/// A log in which tries of all requests are interleaved, each in its own order; the requests that one try completed.
fn log(random: &mut StdRng) -> (Vec<Landed>, BTreeSet<(usize, u64)>) {
    let (mut attempts, mut whole) = (Vec::new(), BTreeSet::new());
    for _ in 0..random.random_range(1..40) {
        let (producer, sequence) = (random.random_range(0..PRODUCERS.len()), random.random_range(0..REQUESTS));
        let completes = random.random_bool(0.4);
        if completes {
            whole.insert((producer, sequence));
        }
        attempts.push(attempt(random, producer, sequence, completes));
    }
    let mut log = Vec::new();
    while !attempts.is_empty() {
        let chosen = random.random_range(0..attempts.len());
        if attempts[chosen].is_empty() {
            attempts.swap_remove(chosen);
        } else {
            log.push(attempts[chosen].remove(0));
        }
    }
    (log, whole)
}

fn judge(seen: &mut Seen, message: &Landed, offset: usize) -> Fresh {
    let total = total(message.producer, message.sequence);
    let part = part(PRODUCERS[message.producer], message.sequence, message.stretch.clone(), total);
    seen.accept(&part, offset as u64).unwrap()
}

#[test]
fn every_stretch_is_taken_once_and_every_life_judges_alike() {
    for seed in seeds() {
        let mut random = StdRng::seed_from_u64(seed);
        let (log, whole) = log(&mut random);
        let mut seen = Seen::default();
        let (mut states, mut verdicts) = (vec![seen.clone()], Vec::new());
        for (offset, message) in log.iter().enumerate() {
            verdicts.push(judge(&mut seen, message, offset));
            states.push(seen.clone());
        }

        // A life that begins at any checkpoint goes on with the same verdicts.
        let from = random.random_range(0..states.len());
        let mut checkpoint = Checkpoint::at(Position::at(from as u64));
        checkpoint.seen = states[from].clone();
        let mut later = Checkpoint::from_bytes(&checkpoint.to_bytes()).unwrap().seen;
        for (offset, message) in log.iter().enumerate().skip(from) {
            assert_eq!(judge(&mut later, message, offset), verdicts[offset], "seed {seed}");
        }
        assert_eq!(later, seen, "seed {seed}");

        let mut taken: BTreeMap<(usize, u64), Vec<u64>> = BTreeMap::new();
        for (message, verdict) in log.iter().zip(&verdicts) {
            let pieces = match verdict {
                Fresh::Whole => vec![message.stretch.clone()],
                Fresh::Pieces(pieces) => pieces.clone(),
                Fresh::Repeat => Vec::new(),
            };
            taken.entry((message.producer, message.sequence)).or_default().extend(pieces.into_iter().flatten());
        }
        for ((producer, sequence), mut places) in taken {
            let (count, key) = (places.len(), (producer, sequence));
            places.sort_unstable();
            places.dedup();
            assert_eq!(places.len(), count, "seed {seed}: something of {key:?} was taken twice");
            if whole.contains(&key) {
                assert_eq!(places, Vec::from_iter(0..total(producer, sequence)), "seed {seed}: {key:?}");
            }
        }
    }
}
