//! A block: load, faults of one or several kinds, and then a judgement over every row that was sent meanwhile.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use testkit::seed::Random;

use crate::{
    field::Field,
    inject::{Act, RECOVERY_LIMIT, Run, recovered_all},
    instance::START_LIMIT,
    judge::{self, Load, SETTLE_WITHIN, Strangers, Verdict, Watcher},
    options::Options,
    plan::{Block, Lane, Turn},
    results::Record,
};

const FLOW_LIMIT: Duration = Duration::from_secs(90);
/// Between a recovery and the next fault, at most.
const PAUSE_MS: u64 = 500;

/// Does a block; one record a turn. An error means that the field is of no more use.
pub(crate) fn run(field: &Field, options: &Options, block: &Block<'_>, name: &str, seed: u64) -> Result<Vec<Record>> {
    let mut load = Load::start(field, name, block.over(), options.rate, seed)?;
    load.wait_until_it_flows(field, FLOW_LIMIT)?;
    // All the way into every table, or the first recovery is that of the start.
    recovered_all(field, Instant::now())?;
    let watcher = Watcher::start(field, name)?;
    let mut random = Random::new(seed);
    let mut records = do_lane(field, &block.alone, random.fork());
    if !records.iter().all(Record::passed) {
        make_whole(field)?;
    }
    thread::scope(|scope| {
        let mut start = |lane| {
            let random = random.fork();
            (lane, scope.spawn(move || do_lane(field, lane, random)))
        };
        let running: Vec<_> = block.beside.iter().map(|lane| start(lane)).collect();
        let ended = running.into_iter().map(|(lane, running)| running.join().unwrap_or_else(|_| vec![panicked(lane)]));
        records.extend(ended.flatten());
    });
    let verdict = settle(field, load, Strangers::Wrong);
    let mut faults = watcher.stop().unwrap_or_else(|error| vec![format!("{error:#}")]);
    if verdict.is_ok() {
        faults.extend(field.spinning());
    }
    let (peaks, habits) = field.habits();
    faults.extend(habits);
    for record in &mut records {
        record.kind = "campaign".to_owned();
        record.seed = seed;
        record.command = options.command.clone();
        record.peak_rss = peaks.iter().map(|(service, bytes)| ((*service).to_owned(), *bytes)).collect();
        record.problems.extend(faults.iter().cloned());
        if record.skipped.is_some() {
            continue;
        }
        match &verdict {
            Ok(verdict) => take(record, verdict),
            Err(error) => record.problems.push(format!("{error:#}")),
        }
    }
    Ok(records)
}

fn panicked(lane: &Lane<'_>) -> Record {
    let names: Vec<&str> = lane.iter().map(|turn| turn.fault.name.as_str()).collect();
    let problem = format!("the thread that does {} panicked", names.join(", "));
    Record {
        fault: names.first().copied().unwrap_or_default().to_owned(),
        problems: vec![problem],
        ..Record::default()
    }
}

/// The turns of a lane. The first fault that the field does not recover from ends it: what is not run has no record.
fn do_lane(field: &Field, lane: &Lane<'_>, mut random: Random) -> Vec<Record> {
    let mut records = Vec::new();
    for turn in lane {
        let record = do_turn(field, turn, &mut random);
        let recovered = record.passed();
        records.push(record);
        if !recovered {
            break;
        }
    }
    records
}

fn do_turn(field: &Field, turn: &Turn<'_>, random: &mut Random) -> Record {
    let name = &turn.fault.name;
    let mut record = Record { fault: name.clone(), ..Record::default() };
    let Act::UnderLoad(inject) = &turn.fault.act else { return record };
    for _ in 0..turn.runs {
        // What falls on the same moment again and again finds the same bugs again and again.
        thread::sleep(Duration::from_millis(random.below(PAUSE_MS)));
        let began = Instant::now();
        match inject(field, random) {
            Ok(Run::Recovered(took)) => {
                record.runs += 1;
                record.recovery.push(took);
                println!("  {name}: recovered in {took:.1?} ({:.1?} in all)", began.elapsed());
            }
            Ok(Run::Skipped(reason)) => {
                println!("\n  SKIPPED: {name}: {reason}\n");
                record.skipped = Some(reason);
                break;
            }
            Err(error) => {
                println!("  {name}: FAILED: {error:#}");
                record.runs += 1;
                record.problems.push(format!("{error:#}"));
                break;
            }
        }
    }
    record
}

/// Undoes what faults did.
fn make_whole(field: &Field) -> Result<()> {
    field.heal()?;
    field.start_missing(START_LIMIT)
}

/// Ends all faults and the load, waits until everything is in the tables and everybody ready, and judges.
pub(crate) fn settle(field: &Field, load: Load, strangers: Strangers) -> Result<Verdict> {
    make_whole(field)?;
    load.stop()?;
    let since = Instant::now();
    recovered_all(field, since).context("after the load")?;
    field.wait_until_ready(RECOVERY_LIMIT).context("after the load")?;
    let settled = Instant::now();
    let verdict = judge::check(field, SETTLE_WITHIN, strangers);
    println!("  settled in {:.1?}, judged in {:.1?}", settled - since, settled.elapsed());
    verdict
}

pub(crate) fn take(record: &mut Record, verdict: &Verdict) {
    record.rows = verdict.rows;
    record.lost = verdict.lost;
    record.doubled = verdict.doubled;
    record.problems.extend(verdict.violations.iter().cloned());
    if !verdict.ok && record.passed() {
        record.problems.push("the checker is not content and does not say why".to_owned());
    }
}
