//! The fault campaign: real processes, a real Kafka, a real S3 server, and everything that may happen to them.
//!
//! Not a test of `cargo test`, since it takes from minutes to hours: `just faults` builds and runs it. Every fault is a
//! row of one table (`inject::table`); rows flow all the while, and after each block of faults every row that was sent
//! is compared with every row that is stored. Results are lines of a file, and `docs/reliability.md` is made from them.
//! The invariant: what is not run is said not to be run.
#![allow(clippy::print_stdout, reason = "a campaign tells how far it is")]

mod block;
mod controls;
mod field;
mod inject;
mod instance;
mod judge;
mod logs;
mod observer;
mod options;
mod report;
mod results;
mod service;
mod whole;

use std::{collections::BTreeMap, path::Path, process::ExitCode, time::Instant};

use anyhow::{Context as _, Result};

use crate::{
    block::Lane,
    field::Field,
    inject::{Act, Fault, Ground, catalogue},
    options::{Options, Order, Set},
    results::{Record, Results},
};

/// Blocks on one field before it is made anew: logs and tables grow.
const BLOCKS_PER_FIELD: usize = 6;
const FAULTS_PER_SHORT_BLOCK: usize = 8;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match Options::read(&arguments).and_then(|options| run(&options)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<bool> {
    match &options.order {
        Order::List => {
            catalogue().iter().for_each(|fault| println!("{:32} {}", fault.name, fault.what));
            Ok(true)
        }
        Order::Report(path) => {
            print!("{}", report::page(&Results::at(path))?);
            Ok(true)
        }
        Order::Negative => {
            let results = results(options)?;
            controls::run_all(options, |record| results.append(&record))
        }
        Order::Campaign(set) => Campaign::new(options, *set)?.run(),
    }
}

fn results(options: &Options) -> Result<Results> {
    let path = match &options.results {
        Some(path) => Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path),
        None => {
            let file = tempfile::Builder::new().prefix("tailwater-faults-").suffix(".jsonl").tempfile()?;
            file.into_temp_path().keep().context("keep the file of results")?
        }
    };
    println!("seed {}; results go to {}", options.seed, path.display());
    Ok(Results::at(&path))
}

/// All blocks that are still to be run.
struct Campaign<'a> {
    options: &'a Options,
    set: Set,
    results: Results,
    started: Instant,
    blocks: u64,
    passed: bool,
}

impl<'a> Campaign<'a> {
    fn new(options: &'a Options, set: Set) -> Result<Self> {
        logs::check_the_check()?;
        let results = results(options)?;
        Ok(Self { options, set, results, started: Instant::now(), blocks: 0, passed: true })
    }

    fn run(mut self) -> Result<bool> {
        let table = catalogue();
        let mut wanted: BTreeMap<Ground, Vec<Vec<Lane<'_>>>> = BTreeMap::new();
        for block in self.blocks_of(&table)? {
            wanted.entry(block[0].fault.ground).or_default().push(block);
        }
        for (ground, blocks) in wanted {
            match ground {
                Ground::OneBroker => self.on_fields(1, &blocks)?,
                Ground::Cluster => self.on_fields(3, &blocks)?,
                Ground::Own => blocks.iter().try_for_each(|block| self.by_itself(block))?,
            }
        }
        println!("{} in {:.0?}", if self.passed { "all is well" } else { "NOT all is well" }, self.started.elapsed());
        Ok(self.passed)
    }

    /// What is left to do, cut into blocks; faults that run side by side share them.
    fn blocks_of<'f>(&self, table: &'f [Fault]) -> Result<Vec<Vec<Lane<'f>>>> {
        let mut left = Vec::new();
        for fault in table.iter().filter(|fault| self.options.wants(&fault.name)) {
            let set = if self.set == Set::Short { fault.short } else { fault.long };
            let wanted = self.options.runs.unwrap_or(set);
            left.push((fault, wanted.saturating_sub(self.results.done(&fault.name)?)));
        }
        let (mut beside, alone): (Vec<_>, Vec<_>) = left.into_iter().partition(|(fault, _)| fault.beside_others);
        let mut blocks = Vec::new();
        while beside.iter().any(|(_, runs)| *runs > 0) {
            let lanes = beside.iter_mut().filter(|(_, runs)| *runs > 0).map(|(fault, runs)| cut_off(fault, runs));
            blocks.push(lanes.collect());
        }
        // The short set judges several faults at once, since a judgement takes longer than most of them.
        let together = if self.set == Set::Short { FAULTS_PER_SHORT_BLOCK } else { 1 };
        let mut open: Vec<Lane<'f>> = Vec::new();
        for (fault, mut runs) in alone {
            while runs > 0 {
                if open.len() >= together || open.first().is_some_and(|first| !first.fault.shares_with(fault)) {
                    blocks.push(std::mem::take(&mut open));
                }
                open.push(cut_off(fault, &mut runs));
            }
        }
        blocks.push(open);
        blocks.retain(|block| !block.is_empty());
        Ok(blocks)
    }

    /// Block after block on the same field, until it is used up or broken.
    fn on_fields(&mut self, brokers: usize, blocks: &[Vec<Lane<'_>>]) -> Result<()> {
        let mut field: Option<(Field, usize)> = None;
        for lanes in blocks {
            if field.as_ref().is_none_or(|(_, used)| *used >= BLOCKS_PER_FIELD) {
                drop(field.take());
                let Some(fresh) = Field::set_up(brokers, self.options.seed, &self.options.start())? else {
                    return self.skip(lanes, "peers are missing");
                };
                field = Some((fresh, 0));
            }
            let Some((ground, used)) = &mut field else { continue };
            *used += 1;
            let whole = self.block(ground, lanes)?;
            if !whole {
                println!("  the logs are in {}", ground.keep().display());
                field = None;
            }
        }
        Ok(())
    }

    /// One block; whether the field may be used again.
    fn block(&mut self, field: &Field, lanes: &[Lane<'_>]) -> Result<bool> {
        self.blocks += 1;
        let seed = self.options.seed + self.blocks;
        let names: Vec<String> = lanes.iter().map(|lane| format!("{} x{}", lane.fault.name, lane.runs)).collect();
        println!("[{:.0?}] {} (seed {seed})", self.started.elapsed(), names.join(", "));
        let name = format!("{}-{}", lanes[0].fault.name, self.blocks);
        let records = block::run(field, self.options, lanes, &name, seed).unwrap_or_else(|error| {
            let failed = |lane: &Lane<'_>| Record {
                fault: lane.fault.name.clone(),
                problems: vec![format!("{error:#}")],
                seed,
                ..self.record()
            };
            lanes.iter().map(failed).collect()
        });
        let whole = records.iter().all(Record::passed);
        records.into_iter().try_for_each(|record| self.take(record))?;
        Ok(whole)
    }

    fn by_itself(&mut self, lanes: &[Lane<'_>]) -> Result<()> {
        for lane in lanes {
            let Act::Whole(act) = &lane.fault.act else { continue };
            for _ in 0..lane.runs {
                self.blocks += 1;
                let seed = self.options.seed + self.blocks;
                println!("[{:.0?}] {} (seed {seed})", self.started.elapsed(), lane.fault.name);
                let task = whole::Task { options: self.options, seed, without: None };
                let mut record = Record { fault: lane.fault.name.clone(), runs: 1, seed, ..self.record() };
                match act(&task) {
                    Ok(whole::Outcome { skipped: Some(reason), .. }) => {
                        println!("\n  SKIPPED: {}: {reason}\n", lane.fault.name);
                        (record.runs, record.skipped) = (0, Some(reason));
                    }
                    Ok(outcome) => {
                        record.recovery.extend(outcome.recovery);
                        record.problems = outcome.problems;
                        block::take(&mut record, &outcome.verdict);
                    }
                    Err(error) => record.problems.push(format!("{error:#}")),
                }
                self.take(record)?;
            }
        }
        Ok(())
    }

    fn skip(&mut self, lanes: &[Lane<'_>], reason: &str) -> Result<()> {
        for lane in lanes {
            let skipped = Some(reason.to_owned());
            self.take(Record { fault: lane.fault.name.clone(), skipped, ..self.record() })?;
        }
        Ok(())
    }

    fn record(&self) -> Record {
        Record {
            kind: "campaign".to_owned(),
            seed: self.options.seed,
            command: self.options.command.clone(),
            ..Record::default()
        }
    }

    /// Keeps a result and says what it is.
    fn take(&mut self, record: Record) -> Result<()> {
        let verdict = if record.passed() { "ok" } else { "FAILED" };
        let p95 = report::percentile(&record.recovery, 95);
        let (lost, doubled) = (record.lost, record.doubled);
        println!(
            "  {verdict} {}: {} runs, {} rows, {lost} lost, {doubled} doubled, recovery p95 {p95:.1?}",
            record.fault, record.runs, record.rows
        );
        record.problems.iter().for_each(|problem| println!("    {problem}"));
        self.passed &= record.passed();
        self.results.append(&record)
    }
}

/// The next block of a fault, off what is left of it.
fn cut_off<'f>(fault: &'f Fault, left: &mut u32) -> Lane<'f> {
    let runs = fault.block.min(*left);
    *left -= runs;
    Lane { fault, runs }
}
