//! A campaign: all faults of a set, cut into blocks, each on a field, several fields side by side.
//!
//! The invariant: what is not run is said not to be run, and what was run before (`--resume`) is not run again.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Instant,
};

use anyhow::Result;
use parking_lot::Mutex;

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

/// Blocks on one field before it is made anew: logs and tables grow.
const BLOCKS_PER_FIELD: usize = 3;

/// A field that blocks were done on.
struct Used {
    field: Field,
    ground: Ground,
    blocks: usize,
}

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
        let used = self.work(&Queue::new(kills), None)?;
        let used = Mutex::new(used);
        Queue::new(others).work_off(self.options.fields, |queue| {
            let first = used.lock().take();
            self.work(queue, first).map(drop)
        })?;
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

    /// Block after block, on one field after the other; the last one where it may be used again.
    fn work(&self, queue: &Queue<Block<'_>>, first: Option<Used>) -> Result<Option<Used>> {
        let mut field = first;
        while let Some(block) = queue.next() {
            let ground = block.ground();
            field = field.filter(|used| used.ground == ground && used.blocks < BLOCKS_PER_FIELD);
            match ground {
                Ground::Own => self.by_themselves(&block)?,
                Ground::OneBroker | Ground::Cluster => field = self.on_field(field, &block)?,
            }
        }
        Ok(field)
    }

    /// One block on this field or on a fresh one; the field where it may be used again.
    fn on_field(&self, field: Option<Used>, block: &Block<'_>) -> Result<Option<Used>> {
        let Some(mut used) = field.map_or_else(|| self.set_up(block.ground()), |used| Ok(Some(used)))? else {
            self.skip(block, "peers are missing")?;
            return Ok(None);
        };
        used.blocks += 1;
        if self.block(&used.field, block)? {
            return Ok(Some(used));
        }
        println!("  the logs are in {}", used.field.keep().display());
        Ok(None)
    }

    fn set_up(&self, ground: Ground) -> Result<Option<Used>> {
        let brokers = if ground == Ground::Cluster { 3 } else { 1 };
        let field = Field::set_up(brokers, self.options.seed, &self.options.start())?;
        Ok(field.map(|field| Used { field, ground, blocks: 0 }))
    }

    /// One block; whether the field may be used again.
    fn block(&self, field: &Field, block: &Block<'_>) -> Result<bool> {
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
        let whole = records.iter().all(Record::passed);
        records.into_iter().try_for_each(|record| self.take(&record))?;
        Ok(whole)
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
