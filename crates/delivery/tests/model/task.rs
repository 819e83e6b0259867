//! Hops 1 and 2: a task reads units in order and writes stretches of them to a data and a rejected port.
//!
//! The steps are those of `runtime::channel_writer` and of the two workers; positions, ends, totals and checkpoints
//! are the product's own types, and a life's memory *is* a checkpoint, as in the product.

use std::{collections::VecDeque, sync::Arc};

use delivery::{Checkpoint, Origin, Position, Safeguard, Totals, Writer};

use crate::{
    log::{Message, Row, Value, receive, row_position},
    setup::{Fault, Missing, Setup, View, good_rows, rejected_rows, source_writer},
    world::{Action, DATA, Halt, REJECTED, Start, VIEW_DATA, VIEW_REJECTED, World, cost},
};

/// An output of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Port {
    Data,
    Rejected,
}

impl Port {
    fn name(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Rejected => "rejected",
        }
    }
}

/// One life of a task: its memory and its connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Life {
    /// What it would put as a checkpoint now.
    state: Checkpoint,
    /// The incarnation of the input it reads.
    incarnation: u8,
    /// The position of its newest checkpoint.
    kept: u64,
    /// Totals at the end of the last stretch written.
    written: Totals,
    /// In flight, oldest first.
    queue: VecDeque<(Port, Arc<Message>)>,
    /// Appended once everything in flight has landed.
    then: Vec<Arc<Message>>,
    /// Waits for everything to be durable.
    settling: bool,
}

/// What a stretch of units comes to.
struct Made {
    /// Position, ends and totals after it.
    state: Checkpoint,
    good: Vec<Row>,
    rejected: Vec<Row>,
}

/// A task of a setup.
#[derive(Clone, Copy)]
pub(crate) struct TaskModel<'a> {
    setup: &'a Setup,
    number: usize,
}

impl<'a> TaskModel<'a> {
    pub(crate) fn new(setup: &'a Setup, number: usize) -> Self {
        Self { setup, number }
    }

    fn view(&self) -> Option<&'a View> {
        (self.number == self.setup.ingestion_tasks()).then(|| self.setup.view.as_ref().unwrap())
    }

    fn writer(&self) -> Writer {
        if self.view().is_some() { Writer::new("v/0") } else { source_writer(self.number) }
    }

    fn target(&self, port: Port) -> usize {
        match (self.view(), port) {
            (None, Port::Data) => DATA,
            (None, Port::Rejected) => REJECTED,
            (Some(_), Port::Data) => VIEW_DATA,
            (Some(_), Port::Rejected) => VIEW_REJECTED,
        }
    }

    /// The incarnation, first offset and end of the input.
    fn input(&self, world: &World) -> (u8, u64, u64) {
        if self.view().is_some() {
            let log = &world.logs[DATA];
            (0, log.start, log.end())
        } else {
            let source = &world.sources[self.number];
            (source.incarnation, source.start, source.end)
        }
    }

    /// Every step of this task's owners.
    pub(crate) fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        let task = &world.tasks[self.number];
        self.beginnings(world, actions);
        for (index, life) in task.lives.iter().enumerate() {
            self.life_actions(world, index, life, actions);
            if world.faults > 0 && self.setup.kinds.contains(&Fault::Crash) {
                actions.push(Action::Crash { task: self.number, life: index });
            }
        }
    }

    fn beginnings(&self, world: &World, actions: &mut Vec<Action>) {
        let kept = &world.tasks[self.number].kept;
        let mut starts = vec![Start::Newest];
        starts.extend((1..kept.len()).map(|age| Start::Kept(kept.len() - 1 - age)));
        starts.extend((!kept.is_empty()).then_some(Start::Nothing));
        let possible = starts.into_iter().filter(|&start| self.price(world, start).is_some());
        actions.extend(possible.map(|start| Action::Begin { task: self.number, start }));
    }

    /// What a beginning costs in faults: nothing where a life ended and the next one starts from the newest.
    fn price(&self, world: &World, start: Start) -> Option<u8> {
        let task = &world.tasks[self.number];
        let again = !task.lives.is_empty() || task.halted.is_some();
        let faults = [
            (again, Fault::Takeover),
            (matches!(start, Start::Kept(_)), Fault::StaleCheckpoint),
            (start == Start::Nothing, Fault::LostCheckpoint),
        ];
        let price = cost(&faults, &self.setup.kinds)?;
        (task.lives.len() < 2 && price <= world.faults).then_some(price)
    }

    fn life_actions(&self, world: &World, index: usize, life: &Life, actions: &mut Vec<Action>) {
        let task = self.number;
        for port in [Port::Data, Port::Rejected] {
            if life.queue.iter().any(|(other, _)| *other == port) {
                actions.push(Action::Land { task, life: index, port });
            }
        }
        if self.setup.missing == Some(Missing::GaplessAppends) && world.faults > 0 && !life.queue.is_empty() {
            actions.push(Action::Drop { task, life: index });
        }
        if life.settling {
            if life.queue.is_empty() || self.setup.lacks(Safeguard::DurableCheckpoint) {
                actions.push(Action::Keep { task, life: index });
            }
            return;
        }
        if !life.then.is_empty() {
            return;
        }
        if life.state.position.offset > life.kept {
            actions.push(Action::Settle { task, life: index });
        }
        if life.queue.len() <= self.setup.in_flight {
            self.writes(world, index, life, actions);
        }
    }

    fn writes(&self, world: &World, index: usize, life: &Life, actions: &mut Vec<Action>) {
        let task = self.number;
        let (incarnation, _, end) = self.input(world);
        let next = life.state.position.offset;
        // A log that ends before the position, or is another one, is noticed by trying to read.
        let other = life.incarnation != incarnation && !self.setup.lacks(Safeguard::Incarnation);
        let ends = if end < next || other { vec![next] } else { (next + 1..=end).collect() };
        for to in ends {
            let Ok(made) = self.make(world, life, to) else {
                actions.push(Action::Write { task, life: index, to, cut: 0, rejected_cut: 0 });
                break;
            };
            if made.good.is_empty() && made.rejected.is_empty() {
                actions.push(Action::Pass { task, life: index, to });
            }
            let cuts = |rows: &[Row]| if self.setup.cuts { 0..rows.len().max(1) } else { 0..1 };
            for cut in cuts(&made.good) {
                let writes = cuts(&made.rejected);
                actions.extend(writes.map(|rejected_cut| Action::Write { task, life: index, to, cut, rejected_cut }));
            }
        }
    }

    /// A new owner looks where to go on, as `Worker::begin` and `Worker::resume` do.
    pub(crate) fn begin(&self, world: &mut World, start: Start) -> Option<()> {
        let price = self.price(world, start)?;
        world.suffer(price)?;
        let task = &world.tasks[self.number];
        let kept = match start {
            Start::Newest => task.kept.last(),
            Start::Kept(index) => task.kept.get(index),
            Start::Nothing => None,
        };
        let begun = match kept.cloned() {
            Some((incarnation, checkpoint)) => self.resume(world, incarnation, checkpoint),
            None => self.begin_without(world),
        };
        let (incarnation, _, _) = self.input(world);
        let task = &mut world.tasks[self.number];
        match begun {
            Ok(state) => {
                let (kept, written) = (state.position.offset, state.totals);
                let (queue, then) = (VecDeque::new(), Vec::new());
                task.lives.push(Life { state, incarnation, kept, written, queue, then, settling: false });
                task.halted = None;
            }
            Err(halt) => task.halted = Some(halt),
        }
        Some(())
    }

    fn resume(&self, world: &World, made_in: u8, checkpoint: Checkpoint) -> Result<Checkpoint, Halt> {
        let (incarnation, start, end) = self.input(world);
        let position = checkpoint.position.offset;
        if made_in != incarnation && !self.setup.lacks(Safeguard::Incarnation) {
            Err(Halt::Recreated)
        } else if position < start {
            Err(Halt::Gone)
        } else if position > end {
            Err(Halt::Ahead)
        } else {
            Ok(checkpoint)
        }
    }

    /// The beginning of the input, if it is still there.
    fn begin_without(&self, world: &mut World) -> Result<Checkpoint, Halt> {
        let (incarnation, start, _) = self.input(world);
        if self.view().is_some() {
            return if start > 0 { Err(Halt::Gone) } else { Ok(Checkpoint::start()) };
        }
        // Create-if-absent, so all owners go by the first one's.
        let &mut (made_in, begun) = world.tasks[self.number].marker.get_or_insert((incarnation, start));
        if self.setup.missing == Some(Missing::Marker) {
            return Ok(Checkpoint::at(Position::at(start)));
        }
        if made_in != incarnation && !self.setup.lacks(Safeguard::Incarnation) {
            Err(Halt::Recreated)
        } else if begun < start {
            Err(Halt::Gone)
        } else {
            Ok(Checkpoint::at(Position::at(begun)))
        }
    }

    fn make(&self, world: &World, life: &Life, to: u64) -> Result<Made, Halt> {
        let (incarnation, start, end) = self.input(world);
        if life.incarnation != incarnation && !self.setup.lacks(Safeguard::Incarnation) {
            return Err(Halt::Recreated);
        }
        let next = life.state.position.offset;
        if next < start {
            return Err(Halt::Gone);
        }
        if next > end {
            return Err(Halt::Ahead);
        }
        let mut made = Made { state: life.state.clone(), good: Vec::new(), rejected: Vec::new() };
        for offset in next..to {
            match self.view() {
                Some(view) => self.run_view(world, view, offset, &mut made)?,
                None => self.decode(incarnation, offset, &mut made),
            }
        }
        made.state.position = Position::at(to);
        Ok(made)
    }

    fn decode(&self, incarnation: u8, offset: u64, made: &mut Made) {
        let unit = self.setup.sources[self.number][usize::try_from(offset).unwrap()];
        made.good.extend(good_rows(self.number, incarnation, offset, unit));
        made.rejected.extend(rejected_rows(self.number, incarnation, offset, unit));
        let (emitted, rejected) = (u64::from(unit.good), u64::from(unit.rejected));
        made.state.totals += Totals { read: emitted + rejected, emitted, rejected, ..Totals::default() };
    }

    fn run_view(&self, world: &World, view: &View, offset: u64, made: &mut Made) -> Result<(), Halt> {
        // A hole in offsets is normal.
        let Some(message) = world.logs[DATA].at(offset) else { return Ok(()) };
        let received = receive(&mut made.state.ends, message, self.setup.missing).map_err(|_| Halt::Gap)?;
        for row in received.rows {
            match view.apply(&mut made.state.totals, row.value) {
                Outcome::Good(value) => made.good.push(Row { unit: offset, value }),
                Outcome::Rejected(value) => made.rejected.push(Row { unit: offset, value }),
                Outcome::Filtered => {}
            }
        }
        Ok(())
    }

    /// Dead letters first and durably, then the rows, or a message without rows.
    pub(crate) fn write(&self, world: &mut World, index: usize, to: u64, cuts: (usize, usize)) -> Option<()> {
        let life = &world.tasks[self.number].lives[index];
        let made = match self.make(world, life, to) {
            Ok(made) => made,
            Err(halt) => {
                world.tasks[self.number].lives.remove(index);
                world.tasks[self.number].halted = Some(halt);
                return Some(());
            }
        };
        world.skipped |= self.steps_over_a_gap(world, life, to);
        let (good, rejected) = (made.good, made.rejected);
        let life = &mut world.tasks[self.number].lives[index];
        life.state = made.state;
        let dead = if rejected.is_empty() { Vec::new() } else { self.parts(life, Port::Rejected, &rejected, cuts.1) };
        let data = self.parts(life, Port::Data, &good, cuts.0);
        life.written = life.state.totals;
        if dead.is_empty() {
            life.enqueue(Port::Data, data);
        } else if self.setup.lacks(Safeguard::RejectedFirst) {
            life.enqueue(Port::Data, data);
            life.enqueue(Port::Rejected, dead);
        } else {
            life.enqueue(Port::Rejected, dead);
            life.then = data;
        }
        Some(())
    }

    fn steps_over_a_gap(&self, world: &World, life: &Life, to: u64) -> bool {
        let mut ends = life.state.ends.clone();
        let messages = (life.state.position.offset..to).filter_map(|offset| world.logs[DATA].at(offset));
        self.view().is_some()
            && messages
                .into_iter()
                .any(|message| receive(&mut ends, message, self.setup.missing).is_ok_and(|received| received.skipped))
    }

    /// Reads what comes to nothing; the next stretch covers it.
    pub(crate) fn pass(&self, world: &mut World, index: usize, to: u64) -> Option<()> {
        let made = self.make(world, &world.tasks[self.number].lives[index], to).ok()?;
        world.tasks[self.number].lives[index].state = made.state;
        Some(())
    }

    /// A stretch on a port, as one message or two that touch.
    fn parts(&self, life: &mut Life, port: Port, rows: &[Row], cut: usize) -> Vec<Arc<Message>> {
        let (from, to) = (life.state.output(port.name()), life.state.position);
        life.state.outputs.insert(port.name().to_owned(), to);
        let message = |from, to, rows: &[Row], totals| {
            let origin = Origin::new(self.writer(), from, to).unwrap();
            Arc::new(Message { origin, rows: rows.to_vec(), totals })
        };
        if cut == 0 {
            return vec![message(from, to, rows, life.state.totals)];
        }
        let place = row_position(rows, cut, from);
        let inside = inside(life.written, port, cut as u64);
        vec![message(from, place, &rows[..cut], inside), message(place, to, &rows[cut..], life.state.totals)]
    }

    pub(crate) fn land(&self, world: &mut World, index: usize, port: Port) -> Option<()> {
        let life = &mut world.tasks[self.number].lives[index];
        let first = life.queue.iter().position(|(other, _)| *other == port)?;
        let (_, message) = life.queue.remove(first)?;
        life.go_on();
        world.log(self.target(port)).append(message);
        Some(())
    }

    /// Without gapless appends only the failed message is gone, and its life has not noticed.
    pub(crate) fn drop_first(&self, world: &mut World, index: usize) -> Option<()> {
        world.suffer(1)?;
        let life = &mut world.tasks[self.number].lives[index];
        life.queue.pop_front()?;
        life.go_on();
        Some(())
    }

    /// What `checkpoint` does before it puts.
    pub(crate) fn settle(&self, world: &mut World, index: usize) -> Option<()> {
        let life = &mut world.tasks[self.number].lives[index];
        let to = life.state.position;
        for port in [Port::Data, Port::Rejected] {
            let heartbeat = port == Port::Data && self.view().is_some();
            if life.state.output(port.name()) < to || heartbeat {
                let parts = self.parts(life, port, &[], 0);
                life.enqueue(port, parts);
            }
        }
        life.settling = true;
        Some(())
    }

    pub(crate) fn keep(&self, world: &mut World, index: usize) -> Option<()> {
        let task = &mut world.tasks[self.number];
        let life = &mut task.lives[index];
        life.settling = false;
        life.kept = life.state.position.offset;
        // As the store has it.
        let kept = (life.incarnation, Checkpoint::from_bytes(&life.state.to_bytes()).unwrap());
        if !task.kept.contains(&kept) {
            task.kept.push(kept);
            task.kept.sort_by_key(|(_, checkpoint)| checkpoint.position);
        }
        Some(())
    }

    pub(crate) fn crash(&self, world: &mut World, index: usize) -> Option<()> {
        world.suffer(1)?;
        world.tasks[self.number].lives.remove(index);
        Some(())
    }
}

impl Life {
    /// Whether it has something in flight.
    pub(crate) fn is_busy(&self) -> bool {
        !self.queue.is_empty()
    }

    fn enqueue(&mut self, port: Port, messages: Vec<Arc<Message>>) {
        self.queue.extend(messages.into_iter().map(|message| (port, message)));
    }

    /// Appends what waited for everything before it to be durable.
    fn go_on(&mut self) {
        if self.queue.is_empty() {
            let then = std::mem::take(&mut self.then);
            self.enqueue(Port::Data, then);
        }
    }
}

/// Totals at a cut inside a stretch, as `ChannelWriter::totals_inside` has them.
fn inside(written: Totals, port: Port, rows: u64) -> Totals {
    match port {
        Port::Data => Totals { read: written.read + rows, emitted: written.emitted + rows, ..written },
        Port::Rejected => Totals { read: written.read + rows, rejected: written.rejected + rows, ..written },
    }
}

/// What a view makes of a row.
pub(crate) enum Outcome {
    Good(Value),
    Rejected(Value),
    Filtered,
}

impl View {
    /// The value and how many rows were read before it: any row lost, doubled or swapped shows in all later ones.
    pub(crate) fn apply(&self, totals: &mut Totals, value: Value) -> Outcome {
        let numbered = value | u32::try_from(totals.read + 1).unwrap() << 16;
        totals.read += 1;
        if self.filtered.contains(&value) {
            totals.filtered += 1;
            Outcome::Filtered
        } else if self.rejected.contains(&value) {
            totals.rejected += 1;
            Outcome::Rejected(numbered)
        } else {
            totals.emitted += 1;
            Outcome::Good(numbered)
        }
    }
}
