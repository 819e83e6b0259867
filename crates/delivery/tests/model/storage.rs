//! Hop 3: owners of a channel partition read it and commit rows and positions to the table in one entry.
//!
//! The steps are those of `storage::worker` and of `lake::Table::commit`: the positions are compared, the entry is put
//! under the next version if that is free, and after any unclear answer the log is read before anything else.

use std::collections::BTreeMap;

use delivery::{Ends, Position, Safeguard, Totals, Verdict, Writer};

use crate::{
    log::{Value, receive},
    setup::{Fault, Setup},
    world::{Action, DATA, Halt, Table, VIEW_DATA, World, cost},
};

/// How far a table, or a reader on its way, has the channel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Progress {
    pub(crate) next: u64,
    pub(crate) ends: Ends,
    pub(crate) totals: BTreeMap<Writer, Totals>,
}

impl Progress {
    /// As a table stores it: every end as the version of a Delta `txn` action.
    fn stored(&self) -> Self {
        let mut ends = Ends::default();
        for (writer, end) in self.ends.iter() {
            ends.set(writer.clone(), Position::unpack(end.pack().unwrap()).unwrap());
        }
        Self { ends, ..self.clone() }
    }
}

/// An owner of the partition.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Owner {
    /// The newest version it knows, and the positions there.
    head: u8,
    known: Progress,
    /// What the table must still have for its commit.
    base: Progress,
    progress: Progress,
    rows: Vec<Value>,
    phase: Phase,
    /// Versions its commit is under way to; the last one is the put it waits for.
    puts: Vec<u8>,
    /// Its commit is in the log; only reading the log tells it.
    landed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    Reading,
    /// The batch is closed; to be put at the version after `head`.
    Trying,
    Waiting,
    /// The answer was not a clear yes.
    InDoubt,
}

/// A put whose owner is gone.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Orphan {
    version: u8,
    progress: Progress,
    rows: Vec<Value>,
}

/// Hop 3 of a setup.
#[derive(Clone, Copy)]
pub(crate) struct StorageModel<'a> {
    setup: &'a Setup,
}

impl<'a> StorageModel<'a> {
    pub(crate) fn new(setup: &'a Setup) -> Self {
        Self { setup }
    }

    /// The channel the table is fed from.
    pub(crate) fn channel(&self) -> usize {
        if self.setup.view.is_some() { VIEW_DATA } else { DATA }
    }

    pub(crate) fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        let table = &world.table;
        if self.price(world).is_some() {
            actions.push(Action::Open);
        }
        for (index, owner) in table.owners.iter().enumerate() {
            self.owner_actions(world, index, owner, actions);
        }
        actions.extend((0..table.orphans.len()).map(|orphan| Action::ArriveLate { orphan }));
        if self.possible(world, Fault::ForeignCommit) {
            actions.push(Action::ForeignCommit);
        }
    }

    fn possible(&self, world: &World, fault: Fault) -> bool {
        world.faults > 0 && self.setup.kinds.contains(&fault)
    }

    fn price(&self, world: &World) -> Option<u8> {
        let table = &world.table;
        let again = !table.owners.is_empty() || table.halted.is_some();
        let price = cost(&[(again, Fault::Takeover)], &self.setup.kinds)?;
        (table.owners.len() < 2 && price <= world.faults).then_some(price)
    }

    fn owner_actions(&self, world: &World, index: usize, owner: &Owner, actions: &mut Vec<Action>) {
        let log = &world.logs[self.channel()];
        if self.possible(world, Fault::Crash) {
            actions.push(Action::CrashOwner { owner: index });
        }
        for put in 0..owner.puts.len() {
            actions.push(Action::Arrive { owner: index, put, reply_lost: false });
            if self.possible(world, Fault::LostReply) {
                actions.push(Action::Arrive { owner: index, put, reply_lost: true });
            }
        }
        match owner.phase {
            Phase::Reading => {
                if log.end() != owner.progress.next || log.start > owner.progress.next {
                    actions.push(Action::Read { owner: index });
                }
                if owner.progress.next > owner.base.next {
                    actions.push(Action::Commit { owner: index });
                }
            }
            Phase::Trying => actions.push(Action::Commit { owner: index }),
            Phase::Waiting if self.possible(world, Fault::Timeout) => actions.push(Action::TimeOut { owner: index }),
            Phase::Waiting => {}
            Phase::InDoubt => actions.push(Action::Reread { owner: index }),
        }
    }

    /// Starts at the offset in the table.
    pub(crate) fn open(&self, world: &mut World) -> Option<()> {
        let price = self.price(world)?;
        world.suffer(price)?;
        let table = &mut world.table;
        let (head, base) = (table.version, table.progress.clone());
        let (rows, puts) = (Vec::new(), Vec::new());
        let (known, progress, phase) = (base.clone(), base.clone(), Phase::Reading);
        table.owners.push(Owner { head, known, base, progress, rows, phase, puts, landed: false });
        table.halted = None;
        Some(())
    }

    pub(crate) fn read(&self, world: &mut World, index: usize) -> Option<()> {
        let log = &world.logs[self.channel()];
        let owner = &mut world.table.owners[index];
        let taken = owner.take_next(log, self.setup);
        match taken {
            Ok(skipped) => world.skipped |= skipped,
            Err(halt) => {
                world.table.halted = Some(halt);
                world.table.release(index);
            }
        }
        Some(())
    }

    /// The positions are compared with those of the newest version known: fenced, or the entry is put behind it.
    pub(crate) fn commit(&self, world: &mut World, index: usize) -> Option<()> {
        let owner = &mut world.table.owners[index];
        if owner.known != owner.base && !self.setup.lacks(Safeguard::PositionCheck) {
            world.table.release(index);
            return Some(());
        }
        owner.puts.push(owner.head + 1);
        owner.phase = Phase::Waiting;
        Some(())
    }

    pub(crate) fn arrive(&self, world: &mut World, index: usize, put: usize, reply_lost: bool) -> Option<()> {
        if reply_lost {
            world.suffer(1)?;
        }
        let table = &mut world.table;
        let owner = &mut table.owners[index];
        let awaited = owner.phase == Phase::Waiting && put + 1 == owner.puts.len();
        let version = owner.puts.remove(put);
        let landed = version == table.version + 1;
        if landed {
            table.version = version;
            table.progress = owner.progress.stored();
            table.rows.extend_from_slice(&owner.rows);
            owner.landed = true;
        }
        match (awaited, landed && !reply_lost) {
            (true, true) => {
                owner.head = version;
                owner.known = owner.progress.clone();
                table.finish(index);
            }
            (true, false) => owner.phase = Phase::InDoubt,
            (false, _) => {}
        }
        Some(())
    }

    pub(crate) fn arrive_late(&self, world: &mut World, orphan: usize) -> Option<()> {
        let table = &mut world.table;
        let orphan = table.orphans.remove(orphan);
        if orphan.version == table.version + 1 {
            table.version = orphan.version;
            table.progress = orphan.progress.stored();
            table.rows.extend(orphan.rows);
        }
        Some(())
    }

    pub(crate) fn time_out(&self, world: &mut World, index: usize) -> Option<()> {
        world.suffer(1)?;
        world.table.owners[index].phase = Phase::InDoubt;
        Some(())
    }

    /// Ours is there: done. Otherwise the same commit again behind what is new, unless a position has moved.
    pub(crate) fn reread(&self, world: &mut World, index: usize) -> Option<()> {
        let table = &mut world.table;
        let owner = &mut table.owners[index];
        if self.setup.lacks(Safeguard::Reread) {
            owner.head += 1;
            owner.phase = Phase::Trying;
            return Some(());
        }
        owner.head = table.version;
        owner.known = table.progress.clone();
        owner.phase = Phase::Trying;
        if owner.landed {
            table.finish(index);
        }
        Some(())
    }

    pub(crate) fn crash(&self, world: &mut World, index: usize) -> Option<()> {
        world.suffer(1)?;
        world.table.release(index);
        Some(())
    }

    pub(crate) fn foreign_commit(&self, world: &mut World) -> Option<()> {
        world.suffer(1)?;
        world.table.version += 1;
        Some(())
    }
}

impl Owner {
    /// Takes the next message; says whether it went on behind a gap.
    fn take_next(&mut self, log: &crate::log::Log, setup: &Setup) -> Result<bool, Halt> {
        if self.progress.next < log.start {
            return Err(Halt::Gone);
        }
        if self.progress.next > log.end() {
            return Err(Halt::Ahead);
        }
        let offset = self.progress.next;
        self.progress.next += 1;
        // A hole in offsets is normal.
        let Some(message) = log.at(offset) else { return Ok(false) };
        let received = receive(&mut self.progress.ends, message, setup.missing).map_err(|_| Halt::Gap)?;
        let writer = &message.origin.writer;
        let before = self.progress.totals.get(writer).copied().unwrap_or_default();
        let ends_here = self.progress.ends.get(writer) == message.origin.to;
        if setup.audits() && ends_here && before.emitted + received.rows.len() as u64 != message.totals.emitted {
            return Err(Halt::Ledger);
        }
        if let Verdict::Take { .. } = received.verdict {
            self.progress.totals.insert(writer.clone(), message.totals);
        }
        self.rows.extend(received.rows.iter().map(|row| row.value));
        Ok(received.skipped)
    }
}

impl Table {
    /// The owner's commit stands: it reads on.
    fn finish(&mut self, index: usize) {
        self.release_puts(index);
        let owner = &mut self.owners[index];
        owner.base = owner.progress.clone();
        owner.rows.clear();
        owner.landed = false;
        owner.phase = Phase::Reading;
    }

    /// The owner ends; its puts go on.
    fn release(&mut self, index: usize) {
        self.release_puts(index);
        self.owners.remove(index);
    }

    /// Puts at versions that are taken can never land: only the others are kept.
    fn release_puts(&mut self, index: usize) {
        let owner = &mut self.owners[index];
        let open = std::mem::take(&mut owner.puts).into_iter().filter(|&version| version > self.version);
        let (progress, rows) = (owner.progress.clone(), owner.rows.clone());
        self.orphans.extend(open.map(|version| Orphan { version, progress: progress.clone(), rows: rows.clone() }));
    }
}
