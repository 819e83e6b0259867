//! A campaign: all faults of a set, cut into blocks, each on a field, several fields side by side.
//!
//! The invariant: what is not run is said not to be run, and what was run before (`--resume`) is not run again.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Instant,
};

use anyhow::Result;

use crate::{
    block,
    field::Field,
    inject::{Act, Fault, Ground, Whole, catalogue},
    options::{Options, Set},
    plan::{self, Block, Turn},
    queue::Queue,
    report,
    results::{Record, Results},
    whole,
};

/// Fewer and larger files than the field's own: a judgement reads all of them. Where recoveries are timed it is left out,
/// since they wait for a flush, or for the hundredth commit.
const FLUSH_AGE: &str = "storage.flush_age=2s";

/// All blocks that are still to be run.
pub(crate) struct Campaign<'a> {
    options: &'a Options,
    set: Set,
    results: Results,
    started: Instant,
    blocks: AtomicU64,
    failed: AtomicBool,
}

impl<'a> Campaign<'a> {
    pub(crate) fn new(options: &'a Options, set: Set, results: Results) -> Self {
        let (blocks, failed) = Default::default();
        Self { options, set, results, started: Instant::now(), blocks, failed }
    }

    /// Whether all is well.
    pub(crate) fn run(self) -> Result<bool> {
        let table = catalogue();
        let (kills, others) = plan::blocks(self.left(&table)?.into_iter());
        // Who is to be back soonest has the machine for itself.
        Queue::new(kills).work_off(1, |queue| self.work(queue))?;
        Queue::new(others).work_off(self.options.fields, |queue| self.work(queue))?;
        let passed = !self.failed.load(Ordering::Relaxed);
        println!("{} in {:.0?}", if passed { "all is well" } else { "NOT all is well" }, self.started.elapsed());
        Ok(passed)
    }

    /// The seed of the next block or run.
    fn next_seed(&self) -> u64 {
        self.options.seed + 1 + self.blocks.fetch_add(1, Ordering::Relaxed)
    }

    /// What was not done yet.
    fn left<'f>(&self, table: &'f [Fault]) -> Result<Vec<Turn<'f>>> {
        let wanted = table.iter().filter(|fault| self.options.wants(&fault.name));
        let left = wanted.map(|fault| {
            let set = if self.set == Set::Short { fault.short } else { fault.long };
            let wanted = self.options.runs.unwrap_or(set);
            Ok(Turn { fault, runs: wanted.saturating_sub(self.results.done(&fault.name)?) })
        });
        left.collect()
    }

    /// Block after block, each on a field of its own: logs and tables grow.
    fn work(&self, queue: &Queue<Block<'_>>) -> Result<()> {
        while let Some(block) = queue.next() {
            let brokers = match block.ground() {
                Ground::Own => {
                    self.by_themselves(&block)?;
                    continue;
                }
                Ground::OneBroker => 1,
                Ground::Cluster => 3,
            };
            let start = self.options.start();
            let start = if block.is_timed() { start } else { start.set(FLUSH_AGE) };
            match Field::set_up(brokers, self.options.seed, &start)? {
                Some(field) => self.block(&field, &block)?,
                None => self.skip(&block, "peers are missing")?,
            }
        }
        Ok(())
    }

    /// One block. Where anything was wrong, the field's folder stays.
    fn block(&self, field: &Field, block: &Block<'_>) -> Result<()> {
        let seed = self.next_seed();
        let names: Vec<String> = block.turns().map(|turn| format!("{} x{}", turn.fault.name, turn.runs)).collect();
        println!("[{:.0?}] {} (seed {seed})", self.started.elapsed(), names.join(", "));
        let name = format!("block-{seed}");
        let records = block::run(field, self.options, block, &name, seed).unwrap_or_else(|error| {
            let failed = |turn: &Turn<'_>| Record {
                fault: turn.fault.name.clone(),
                problems: vec![format!("{error:#}")],
                seed,
                ..self.record()
            };
            block.turns().map(failed).collect()
        });
        if !records.iter().all(Record::passed) {
            println!("  the logs are in {}", field.keep().display());
        }
        records.into_iter().try_for_each(|record| self.take(&record))
    }

    /// Each run on a field of its own.
    fn by_themselves(&self, block: &Block<'_>) -> Result<()> {
        for turn in block.turns() {
            let Act::Whole(act) = turn.fault.act else { continue };
            for _ in 0..turn.runs {
                self.take(&self.by_itself(&turn.fault.name, act))?;
            }
        }
        Ok(())
    }

    fn by_itself(&self, fault: &str, act: Whole) -> Record {
        let seed = self.next_seed();
        println!("[{:.0?}] {fault} (seed {seed})", self.started.elapsed());
        let task = whole::Task { options: self.options, seed, without: None };
        let mut record = Record { fault: fault.to_owned(), runs: 1, seed, ..self.record() };
        match act(&task) {
            Ok(whole::Outcome { skipped: Some(reason), .. }) => {
                println!("\n  SKIPPED: {fault}: {reason}\n");
                (record.runs, record.skipped) = (0, Some(reason));
            }
            Ok(outcome) => {
                record.recovery.extend(outcome.recovery);
                record.problems = outcome.problems;
                block::take(&mut record, &outcome.verdict);
            }
            Err(error) => record.problems.push(format!("{error:#}")),
        }
        record
    }

    fn skip(&self, block: &Block<'_>, reason: &str) -> Result<()> {
        for turn in block.turns() {
            let skipped = Some(reason.to_owned());
            self.take(&Record { fault: turn.fault.name.clone(), skipped, ..self.record() })?;
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
    fn take(&self, record: &Record) -> Result<()> {
        let verdict = if record.passed() { "ok" } else { "FAILED" };
        let p95 = report::percentile(&record.recovery, 95);
        let (lost, doubled) = (record.lost, record.doubled);
        println!(
            "  {verdict} {}: {} runs, {} rows, {lost} lost, {doubled} doubled, recovery p95 {p95:.1?}",
            record.fault, record.runs, record.rows
        );
        record.problems.iter().for_each(|problem| println!("    {problem}"));
        if !record.passed() {
            self.failed.store(true, Ordering::Relaxed);
        }
        self.results.append(record)
    }
}
