//! A campaign: all faults of a set, cut into blocks, each on a field, several fields side by side.
//!
//! The invariant: what is not run is said not to be run, and what was run before (`--resume`) is not run again.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Instant,
};

use anyhow::Result;

use crate::{
    block::{self, Lane},
    field::Field,
    inject::{Act, Fault, Ground, Whole, catalogue},
    options::{Options, Set},
    queue::Queue,
    report,
    results::{Record, Results},
    whole,
};

/// Blocks on one field before it is made anew: logs and tables grow.
const BLOCKS_PER_FIELD: usize = 3;
const FAULTS_PER_SHORT_BLOCK: usize = 9;

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
        let (kills, mut others): (Vec<_>, Vec<_>) =
            self.blocks_of(&table)?.into_iter().partition(|block| block[0].fault.beside_others);
        others.sort_by_key(|block| block[0].fault.ground);
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

    /// Block after block, on one field after the other.
    fn work(&self, queue: &Queue<Vec<Lane<'_>>>) -> Result<()> {
        let mut field: Option<Used> = None;
        while let Some(lanes) = queue.next() {
            let ground = lanes[0].fault.ground;
            field = field.filter(|used| used.ground == ground && used.blocks < BLOCKS_PER_FIELD);
            match ground {
                Ground::Own => self.by_themselves(&lanes)?,
                Ground::OneBroker | Ground::Cluster => field = self.on_field(field, &lanes)?,
            }
        }
        Ok(())
    }

    /// One block on this field or on a fresh one; the field where it may be used again.
    fn on_field(&self, field: Option<Used>, lanes: &[Lane<'_>]) -> Result<Option<Used>> {
        let Some(mut used) = field.map_or_else(|| self.set_up(lanes[0].fault.ground), |used| Ok(Some(used)))? else {
            self.skip(lanes, "peers are missing")?;
            return Ok(None);
        };
        used.blocks += 1;
        if self.block(&used.field, lanes)? {
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
    fn block(&self, field: &Field, lanes: &[Lane<'_>]) -> Result<bool> {
        let seed = self.next_seed();
        let names: Vec<String> = lanes.iter().map(|lane| format!("{} x{}", lane.fault.name, lane.runs)).collect();
        println!("[{:.0?}] {} (seed {seed})", self.started.elapsed(), names.join(", "));
        let name = format!("{}-{seed}", lanes[0].fault.name);
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
        records.into_iter().try_for_each(|record| self.take(&record))?;
        Ok(whole)
    }

    /// Each run on a field of its own.
    fn by_themselves(&self, lanes: &[Lane<'_>]) -> Result<()> {
        for lane in lanes {
            let Act::Whole(act) = lane.fault.act else { continue };
            for _ in 0..lane.runs {
                self.take(&self.by_itself(&lane.fault.name, act))?;
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

    fn skip(&self, lanes: &[Lane<'_>], reason: &str) -> Result<()> {
        for lane in lanes {
            let skipped = Some(reason.to_owned());
            self.take(&Record { fault: lane.fault.name.clone(), skipped, ..self.record() })?;
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

/// The next block of a fault, off what is left of it.
fn cut_off<'f>(fault: &'f Fault, left: &mut u32) -> Lane<'f> {
    let runs = fault.block.min(*left);
    *left -= runs;
    Lane { fault, runs }
}
