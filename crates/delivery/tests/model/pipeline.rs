//! The model as `stateright` sees it: initial states, steps, and what must hold in every state.

use std::{collections::BTreeMap, sync::Arc};

use delivery::Totals;
use stateright::{Model, Property};

use crate::{
    log::{Log, Value},
    setup::{Fault, Setup, good_rows, source_of},
    storage::StorageModel,
    task::{Life, Outcome, TaskModel},
    world::{Action, DATA, REJECTED, Source, Suffered, Table, Task, VIEW_DATA, VIEW_REJECTED, World},
};

/// In every state the table holds what it should, in order, up to where it is.
pub(crate) const TABLE: &str = "the table is a prefix of what it should be";
/// In every state each channel, read by the one rule, holds the beginning of what its writers make.
pub(crate) const CHANNELS: &str = "every channel is a prefix of what its writers make";
/// A stretch is appended only behind its predecessor, and no reader goes on without it.
pub(crate) const GAPS: &str = "no channel has a gap and no reader accepts one";
/// Dead letters before the data that covers their stretch.
pub(crate) const REJECTED_FIRST: &str = "rejected rows are there before the data that covers them";
/// read = stored + rejected + filtered, at any committed point.
pub(crate) const LEDGER: &str = "the ledger of the table adds up";
/// Where nothing can happen any more, everything is delivered, or a halt has a cause in what was suffered.
pub(crate) const DONE: &str = "what has come to rest is delivered or halted for a cause";
/// Not vacuous: there is a run in which everything is delivered.
pub(crate) const DELIVERED: &str = "everything is delivered";

impl Model for Setup {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        if self.channels.is_empty() {
            return vec![self.world(Log::default())];
        }
        self.channels.iter().map(|channel| self.world(channel.clone())).collect()
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        for task in 0..world.tasks.len() {
            TaskModel::new(self, task).actions(world, actions);
        }
        if self.table {
            StorageModel::new(self).actions(world, actions);
        }
        if world.faults > 0 {
            self.log_faults(world, actions);
        }
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut world = world.clone();
        self.step(&mut world, action)?;
        Some(world.in_canonical_form())
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(TABLE, |setup: &Self, world: &World| !setup.table || setup.table_is_a_prefix(world)),
            Property::always(CHANNELS, |setup: &Self, world: &World| {
                world.suffered.lost || setup.channels_are_prefixes(world)
            }),
            Property::always(GAPS, |_: &Self, world: &World| {
                !world.skipped && world.logs.iter().all(|log| !log.truth.gap)
            }),
            Property::always(REJECTED_FIRST, |_: &Self, world: &World| rejected_first(world)),
            Property::always(LEDGER, |setup: &Self, world: &World| !setup.table || setup.ledger_adds_up(world)),
            Property::always(DONE, |setup: &Self, world: &World| setup.is_done(world) || !setup.is_at_rest(world)),
            Property::sometimes(DELIVERED, |setup: &Self, world: &World| setup.is_delivered(world)),
        ]
    }
}

impl Setup {
    fn world(&self, channel: Log) -> World {
        let source = |units: &Vec<_>| Source { start: 0, end: units.len() as u64, incarnation: 0 };
        let tasks = self.ingestion_tasks() + usize::from(self.view.is_some());
        World {
            sources: self.sources.iter().map(source).collect(),
            logs: [channel, Log::default(), Log::default(), Log::default()].map(Arc::new).to_vec(),
            tasks: vec![Task::default(); tasks],
            table: Table::default(),
            faults: self.faults,
            suffered: Suffered::default(),
            skipped: false,
        }
    }

    fn step(&self, world: &mut World, action: Action) -> Option<()> {
        let of = |task| TaskModel::new(self, task);
        let storage = StorageModel::new(self);
        match action {
            Action::Begin { task, start } => of(task).begin(world, start),
            Action::Write { task, life, to, cut, rejected_cut } => of(task).write(world, life, to, (cut, rejected_cut)),
            Action::Pass { task, life, to } => of(task).pass(world, life, to),
            Action::Land { task, life, port } => of(task).land(world, life, port),
            Action::Drop { task, life } => of(task).drop_first(world, life),
            Action::Settle { task, life } => of(task).settle(world, life),
            Action::Keep { task, life } => of(task).keep(world, life),
            Action::Crash { task, life } => of(task).crash(world, life),
            Action::Open => storage.open(world),
            Action::Read { owner } => storage.read(world, owner),
            Action::Commit { owner } => storage.commit(world, owner),
            Action::Arrive { owner, put, reply_lost } => storage.arrive(world, owner, put, reply_lost),
            Action::ArriveLate { orphan } => storage.arrive_late(world, orphan),
            Action::TimeOut { owner } => storage.time_out(world, owner),
            Action::Reread { owner } => storage.reread(world, owner),
            Action::CrashOwner { owner } => storage.crash(world, owner),
            Action::ForeignCommit => storage.foreign_commit(world),
            fault => self.befall(world, fault),
        }
    }

    /// What happens to the logs themselves.
    fn befall(&self, world: &mut World, fault: Action) -> Option<()> {
        world.suffer(1)?;
        match fault {
            Action::Duplicate { log, offset } => {
                let again = world.logs[log].at(offset)?.clone();
                world.log(log).append(again);
            }
            Action::Lose { log, offset } => {
                world.log(log).messages[usize::try_from(offset).ok()?] = None;
                world.suffered.lost = true;
            }
            Action::Truncate { log } => {
                match &self.rewritten {
                    Some(rewritten) => world.logs[log] = Arc::new(rewritten.clone()),
                    None => {
                        world.log(log).messages.pop()?;
                    }
                }
                world.suffered.lost = true;
            }
            Action::Trim { source } => {
                world.sources[source].start += 1;
                world.suffered.trimmed = true;
            }
            Action::Recreate { source } => {
                world.sources[source].incarnation += 1;
                world.sources[source].start = 0;
                world.suffered.recreated = true;
            }
            _ => return None,
        }
        Some(())
    }

    fn log_faults(&self, world: &World, actions: &mut Vec<Action>) {
        let may = |fault| self.kinds.contains(&fault);
        for (number, log) in world.logs.iter().enumerate() {
            let there = (0..log.end()).filter(|&offset| log.at(offset).is_some());
            for offset in there {
                actions.extend(may(Fault::Duplicate).then_some(Action::Duplicate { log: number, offset }));
                let lose = may(Fault::LostMessage) && number == DATA;
                actions.extend(lose.then_some(Action::Lose { log: number, offset }));
            }
            let cut = may(Fault::Truncation) && log.end() > log.start && number == DATA;
            actions.extend(cut.then_some(Action::Truncate { log: number }));
        }
        for (number, source) in world.sources.iter().enumerate() {
            // What is gone before a task has begun was never part of its input.
            let begun = world.tasks.get(number).is_some_and(|task| task.marker.is_some());
            let trim = may(Fault::Trim) && begun && source.start < source.end;
            actions.extend(trim.then_some(Action::Trim { source: number }));
            let recreate = may(Fault::Recreation) && source.incarnation == 0;
            actions.extend(recreate.then_some(Action::Recreate { source: number }));
        }
    }

    /// What the source's task makes of all its input, in one incarnation.
    fn expected_of(&self, source: usize, incarnation: u8) -> Vec<Value> {
        let units = (0..).zip(&self.sources[source]);
        let rows = units.flat_map(|(offset, &unit)| good_rows(source, incarnation, offset, unit));
        rows.map(|row| row.value).collect()
    }

    /// What a view makes of these rows.
    fn view_of(&self, input: &[Value]) -> Vec<Value> {
        let Some(view) = &self.view else { return input.to_vec() };
        let mut totals = Totals::default();
        let outcomes = input.iter().map(|&value| view.apply(&mut totals, value));
        outcomes.filter_map(|outcome| if let Outcome::Good(value) = outcome { Some(value) } else { None }).collect()
    }

    fn channels_are_prefixes(&self, world: &World) -> bool {
        let input = self.sources_are_prefixes(&world.logs[DATA].truth.rows);
        let view = self.view.is_none() || {
            let made = self.view_of(&world.logs[DATA].truth.rows);
            made.starts_with(&world.logs[VIEW_DATA].truth.rows)
        };
        input && view
    }

    /// Of each source a prefix, of one incarnation.
    fn sources_are_prefixes(&self, rows: &[Value]) -> bool {
        (0..self.sources.len()).all(|source| {
            let own: Vec<Value> = rows.iter().copied().filter(|&value| source_of(value) == source).collect();
            (0..2).any(|incarnation| self.expected_of(source, incarnation).starts_with(&own))
        })
    }

    fn table_is_a_prefix(&self, world: &World) -> bool {
        match &self.view {
            Some(_) => self.view_of(&world.logs[DATA].truth.rows).starts_with(&world.table.rows),
            None => self.sources_are_prefixes(&world.table.rows),
        }
    }

    fn ledger_adds_up(&self, world: &World) -> bool {
        let rejected = if self.view.is_some() { VIEW_REJECTED } else { REJECTED };
        let sum = |count: fn(&Totals) -> u64| world.table.progress.totals.values().map(count).sum::<u64>();
        let there = world.logs[rejected].truth.rows.len() as u64;
        world.table.progress.totals.values().all(Totals::balanced)
            && sum(|totals| totals.emitted) == world.table.rows.len() as u64
            && sum(|totals| totals.rejected) <= there
    }

    /// Whether nothing can happen any more.
    pub(crate) fn is_at_rest(&self, world: &World) -> bool {
        if world.tasks.iter().flat_map(|task| &task.lives).any(Life::is_busy) {
            return false;
        }
        let mut actions = Vec::new();
        self.actions(world, &mut actions);
        actions.is_empty()
    }

    /// Whether everything is delivered, or a part has halted for a cause.
    pub(crate) fn is_done(&self, world: &World) -> bool {
        let suffered = world.suffered;
        let cause = suffered.lost || suffered.trimmed || suffered.recreated;
        let halts = world.tasks.iter().filter_map(|task| task.halted).chain(world.table.halted).count();
        // Of a lost message at the very end nobody can know before its writer's next one.
        self.is_delivered(world) || (halts > 0 && cause) || suffered.lost || self.rewritten.is_some()
    }

    fn is_delivered(&self, world: &World) -> bool {
        let channel = StorageModel::new(self).channel();
        let sources =
            (0..self.sources.len()).flat_map(|source| self.expected_of(source, world.sources[source].incarnation));
        let all: usize = sources.count();
        let read = &world.logs[DATA].truth.rows;
        let view = self.view.is_none() || world.logs[VIEW_DATA].truth.rows == self.view_of(read);
        let stored = !self.table || world.table.rows == world.logs[channel].truth.rows;
        let rejected = self.ingestion_tasks() == 0
            || world.logs[REJECTED].truth.rows.len()
                == self.sources.iter().flatten().map(|unit| unit.rejected as usize).sum::<usize>();
        read.len() == all && view && stored && rejected && world.table.halted.is_none()
    }
}

/// Of every writer the dead letters before its end are in the rejected channel.
fn rejected_first(world: &World) -> bool {
    [(DATA, REJECTED), (VIEW_DATA, VIEW_REJECTED)].into_iter().all(|(data, rejected)| {
        let totals: &BTreeMap<_, Totals> = &world.logs[data].truth.totals;
        let needed: u64 = totals.values().map(|totals| totals.rejected).sum();
        needed <= world.logs[rejected].truth.rows.len() as u64
    })
}
