//! Many runs, one after the other, on two threads.

use std::sync::{
    Mutex,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use parking_lot::RwLock;

use crate::run::{Options, Outcome, run};

/// Runs with all safeguards share it; a run without one has it alone.
pub(crate) static SAFEGUARDS: RwLock<()> = RwLock::new(());

/// Runs in CI.
const SEEDS: u64 = 300;
const THREADS: usize = 2;

fn number_from(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is a number from 0 to 2^64-1, found `{text}`")))
}

/// The seeds that were asked for.
fn wanted(most: u64) -> std::ops::Range<u64> {
    match number_from("TAILWATER_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number_from("TAILWATER_SEEDS").unwrap_or(most),
    }
}

/// Runs seeds until one fails, whose story it panics with. Messages that had to be cut in all runs together.
fn run_all(seeds: std::ops::Range<u64>, options: Options) -> usize {
    let next = AtomicU64::new(seeds.start);
    let (failure, cuts) = (Mutex::<Option<Outcome>>::default(), AtomicUsize::default());
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::SeqCst);
                    if seed >= seeds.end || failure.lock().unwrap().is_some() {
                        return;
                    }
                    let outcome = run(seed, options);
                    cuts.fetch_add(outcome.cuts, Ordering::SeqCst);
                    if seeds.end - seeds.start == 1 {
                        eprintln!("seed {seed}: {:?}\n{}", outcome.tally, outcome.schedule.join("\n"));
                    }
                    if !outcome.is_clean() {
                        failure.lock().unwrap().get_or_insert(outcome);
                    }
                }
            });
        }
    });
    if let Some(outcome) = failure.into_inner().unwrap() {
        panic!("{}", outcome.report());
    }
    cuts.into_inner()
}

#[test]
fn whatever_befalls_the_services_every_row_arrives_once() {
    let _all_safeguards = SAFEGUARDS.read();
    let seeds = wanted(SEEDS);
    let many = seeds.end - seeds.start >= SEEDS;
    let cuts = run_all(seeds, Options::default());
    assert!(cuts > 0 || !many, "no message was cut, so nothing was tried between the parts of one");
    eprintln!("{cuts} messages were cut");
}

#[test]
fn a_log_that_loses_what_it_acknowledged_halts_its_readers() {
    let _all_safeguards = SAFEGUARDS.read();
    run_all(wanted(40), Options { lost_messages: 2, ..Options::default() });
}

#[test]
fn a_topic_that_is_recreated_is_not_mixed_with_the_old_one() {
    let _all_safeguards = SAFEGUARDS.read();
    run_all(wanted(40), Options { recreated: true, ..Options::default() });
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let _all_safeguards = SAFEGUARDS.read();
    for seed in wanted(5) {
        let (first, second) = (run(seed, Options::default()), run(seed, Options::default()));
        let differs = first.schedule.iter().zip(&second.schedule).position(|(first, second)| first != second);
        if let Some(place) = differs {
            panic!("seed {seed} differs:\n{}\n{}", first.schedule[place], second.schedule[place]);
        }
        assert_eq!(first.schedule.len(), second.schedule.len(), "seed {seed}");
        assert_eq!(first.fingerprint, second.fingerprint, "seed {seed}: the bytes in the log or the store differ");
    }
}
