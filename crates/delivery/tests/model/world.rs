//! The state of a model, and the steps that can be taken from it.
//!
//! Every actor keeps its state here, so that a step is a function from world to world. Owners of one task are
//! interchangeable: they are kept in an order of their own, which halves the states.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use delivery::Checkpoint;

use crate::{
    log::{Log, Value},
    setup::Fault,
    storage::{Orphan, Owner, Progress},
    task::{Life, Port},
};

/// Indices of the channels in [`World::logs`].
pub(crate) const DATA: usize = 0;
pub(crate) const REJECTED: usize = 1;
pub(crate) const VIEW_DATA: usize = 2;
pub(crate) const VIEW_REJECTED: usize = 3;

/// Everything at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct World {
    pub(crate) sources: Vec<Source>,
    pub(crate) logs: Vec<Arc<Log>>,
    /// Ingestion tasks, then the view's.
    pub(crate) tasks: Vec<Task>,
    pub(crate) table: Table,
    /// Faults that may still happen.
    pub(crate) faults: u8,
    /// What has happened that excuses a halt.
    pub(crate) suffered: Suffered,
    /// A reader went on behind a gap.
    pub(crate) skipped: bool,
}

/// A partition of a user topic. Its messages follow from the setup.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Source {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) incarnation: u8,
}

/// What has befallen the logs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Suffered {
    pub(crate) lost: bool,
    pub(crate) trimmed: bool,
    pub(crate) recreated: bool,
}

/// A task of hop 1 or 2: its owners, and what outlives them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Task {
    pub(crate) lives: Vec<Life>,
    /// Oldest first; each with the incarnation of the input it was made from.
    pub(crate) kept: Vec<(u8, Checkpoint)>,
    /// Where the task began, and in which incarnation of its input.
    pub(crate) marker: Option<(u8, u64)>,
    pub(crate) halted: Option<Halt>,
}

/// Why a task or a storage partition stopped for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Halt {
    /// A message begins after the reader's end.
    Gap,
    /// The next offset is no longer in the log, or the beginning of the input is gone and so are the checkpoints.
    Gone,
    /// The log ends before the next offset.
    Ahead,
    /// The input is another incarnation.
    Recreated,
    /// The rows taken are not as many as their writer says it emitted.
    Ledger,
}

/// The table, those who write it, and what is under way to it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Table {
    pub(crate) version: u8,
    pub(crate) progress: Progress,
    pub(crate) rows: Vec<Value>,
    pub(crate) owners: Vec<Owner>,
    /// Puts whose owner is gone.
    pub(crate) orphans: Vec<Orphan>,
    pub(crate) halted: Option<Halt>,
}

/// Where a task starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// At its newest checkpoint, or without one where there is none.
    Newest,
    /// At an older one.
    Kept(usize),
    /// Without one, though there is one.
    Nothing,
}

/// One step of one actor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// A life of a task begins.
    Begin { task: usize, start: Start },
    /// Reads up to `to` and writes the stretch, cut before these rows where not 0.
    Write { task: usize, life: usize, to: u64, cut: usize, rejected_cut: usize },
    /// Reads up to `to`, finds nothing, and leaves it to the next stretch.
    Pass { task: usize, life: usize, to: u64 },
    /// The first message in flight to a port lands.
    Land { task: usize, life: usize, port: Port },
    /// Only without gapless appends: the first message in flight fails, those behind it go on.
    Drop { task: usize, life: usize },
    /// Writes up to the position on both ports and waits for everything to be durable.
    Settle { task: usize, life: usize },
    /// Puts the checkpoint.
    Keep { task: usize, life: usize },
    /// A life ends, and what it had in flight goes with it.
    Crash { task: usize, life: usize },
    /// A message is delivered again.
    Duplicate { log: usize, offset: u64 },
    /// The broker loses an acknowledged message.
    Lose { log: usize, offset: u64 },
    /// The broker loses the last acknowledged message and reuses its offset.
    Truncate { log: usize },
    /// Retention takes the oldest message of a user topic.
    Trim { source: usize },
    /// A user topic is deleted and recreated.
    Recreate { source: usize },
    /// A storage owner reads the table.
    Open,
    /// A storage owner takes the next message.
    Read { owner: usize },
    /// A storage owner finds its positions unmoved and puts its commit at the next version.
    Commit { owner: usize },
    /// A put reaches the store.
    Arrive { owner: usize, put: usize, reply_lost: bool },
    /// The put of an owner that is gone reaches the store.
    ArriveLate { orphan: usize },
    /// A storage owner stops waiting for the answer.
    TimeOut { owner: usize },
    /// A storage owner reads the log after an unclear answer.
    Reread { owner: usize },
    /// A storage owner ends.
    CrashOwner { owner: usize },
    /// Somebody else commits.
    ForeignCommit,
}

impl World {
    /// One form for worlds that differ only in the order of owners.
    pub(crate) fn in_canonical_form(mut self) -> Self {
        for task in &mut self.tasks {
            order(&mut task.lives);
        }
        order(&mut self.table.owners);
        order(&mut self.table.orphans);
        self
    }

    /// What lies in the logs and the table, for the end of a counter-example.
    pub(crate) fn summary(&self) -> String {
        let mut lines = Vec::new();
        for (name, log) in ["data", "rejected", "view data", "view rejected"].iter().zip(&self.logs) {
            for (offset, message) in log.messages.iter().enumerate() {
                let text = message.as_ref().map_or("lost".to_owned(), |message| {
                    let values: Vec<String> = message.rows.iter().map(|row| format!("{:x}", row.value)).collect();
                    format!("{} rows {}", message.origin, values.join(" "))
                });
                lines.push(format!("      {name}@{offset}: {text}"));
            }
        }
        let rows: Vec<String> = self.table.rows.iter().map(|value| format!("{value:x}")).collect();
        lines.push(format!("      table: next {}, rows {}", self.table.progress.next, rows.join(" ")));
        let halts: Vec<_> = self.tasks.iter().filter_map(|task| task.halted).chain(self.table.halted).collect();
        lines.push(format!("      halted: {halts:?}"));
        lines.join("\n")
    }

    /// A log to be changed.
    pub(crate) fn log(&mut self, number: usize) -> &mut Log {
        Arc::make_mut(&mut self.logs[number])
    }

    /// Takes a fault from what is left, if there is one.
    pub(crate) fn suffer(&mut self, faults: u8) -> Option<()> {
        self.faults = self.faults.checked_sub(faults)?;
        Some(())
    }
}

fn order<T: Hash>(equals: &mut [T]) {
    if equals.len() > 1 {
        equals.sort_by_cached_key(digest);
    }
}

/// A number for a value, the same in every run.
pub(crate) fn digest<T: Hash>(value: &T) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// The cost of a step that needs one fault more when a second owner starts.
pub(crate) fn cost(faults: &[(bool, Fault)], kinds: &[Fault]) -> Option<u8> {
    let needed: Vec<Fault> = faults.iter().filter(|(needed, _)| *needed).map(|&(_, fault)| fault).collect();
    needed.iter().all(|fault| kinds.contains(fault)).then(|| u8::try_from(needed.len()).unwrap())
}
