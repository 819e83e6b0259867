//! What a model is built of: the input, the stages, the faults that may happen, and which safeguard is missing.
//!
//! Plain data. Nothing here knows what a step does.

use delivery::{Position, Safeguard, Totals, Writer};

use crate::log::{Log, Message, Row, Value};

/// What one message of a user topic decodes to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unit {
    pub(crate) good: u32,
    pub(crate) rejected: u32,
}

/// A unit with this many good and rejected rows.
pub(crate) const fn unit(good: u32, rejected: u32) -> Unit {
    Unit { good, rejected }
}

/// What may go wrong. Each costs one of [`Setup::faults`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A task or storage owner ends at any step; what it had in flight and had not landed is gone, in order. This is
    /// also an append that failed, a lost reply to one that did not, and an error of any other kind.
    Crash,
    /// A second owner starts while the first one runs on.
    Takeover,
    /// A task starts from any kept checkpoint but the newest.
    StaleCheckpoint,
    /// A task finds no checkpoint.
    LostCheckpoint,
    /// Any message of a channel is delivered a second time, behind all others.
    Duplicate,
    /// The broker loses any acknowledged message of hop 1's channel; its offset stays empty.
    LostMessage,
    /// The broker loses the last acknowledged message of hop 1's channel; its offset is given to the next one.
    Truncation,
    /// The user topic loses its oldest message to retention.
    Trim,
    /// The user topic is deleted and recreated with the same name and other messages.
    Recreation,
    /// The store applies a commit and the answer is lost.
    LostReply,
    /// The store does not answer in time; the put is still under way and may land at any later time.
    Timeout,
    /// Somebody else commits to the table and moves no position.
    ForeignCommit,
}

/// A safeguard the model runs without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Missing {
    /// One of those the product can switch off for its own tests.
    Safeguard(Safeguard),
    /// The marker that tells a first start from a lost checkpoint.
    Marker,
    /// The law of the log: a failed append takes everything queued behind it along.
    GaplessAppends,
}

/// A stateful view: numbers the rows it reads.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    /// Values it leaves out.
    pub(crate) filtered: Vec<Value>,
    /// Values it cannot compute.
    pub(crate) rejected: Vec<Value>,
}

/// A model.
#[derive(Clone, Debug, Default)]
pub(crate) struct Setup {
    /// One ingestion task each, all writing to one channel partition.
    pub(crate) sources: Vec<Vec<Unit>>,
    /// Instead of ingestion: every channel it might have written, one initial state each.
    pub(crate) channels: Vec<Log>,
    pub(crate) view: Option<View>,
    pub(crate) table: bool,
    pub(crate) faults: u8,
    pub(crate) kinds: Vec<Fault>,
    /// Whether a stretch may be cut into two messages at any row.
    pub(crate) cuts: bool,
    /// What stands in the channel after a [`Fault::Truncation`]: its writer, started again, has grouped otherwise.
    pub(crate) rewritten: Option<Log>,
    /// Messages a task may have in flight when it writes a stretch.
    pub(crate) in_flight: usize,
    /// Whether the table compares the rows it took with what their writer says it emitted. Only where something may be
    /// lost before a view: elsewhere it would find what another safeguard is there for.
    pub(crate) audit: bool,
    pub(crate) missing: Option<Missing>,
}

impl Setup {
    /// The same model with something missing.
    pub(crate) fn without(mut self, missing: Missing) -> Self {
        self.missing = Some(missing);
        self
    }

    pub(crate) fn lacks(&self, safeguard: Safeguard) -> bool {
        self.missing == Some(Missing::Safeguard(safeguard))
    }

    /// Whether the table does compare.
    pub(crate) fn audits(&self) -> bool {
        self.audit && !self.lacks(Safeguard::Audit)
    }

    /// How many ingestion tasks there are; a view's task has the number after the last.
    pub(crate) fn ingestion_tasks(&self) -> usize {
        if self.channels.is_empty() { self.sources.len() } else { 0 }
    }
}

/// The writer of ingestion task `index`.
pub(crate) fn source_writer(index: usize) -> Writer {
    Writer::new(format!("s/{index}"))
}

/// The good rows of a unit.
pub(crate) fn good_rows(source: usize, incarnation: u8, offset: u64, unit: Unit) -> impl Iterator<Item = Row> {
    (0..unit.good).map(move |index| row(source, incarnation, offset, index))
}

/// The rejected rows of a unit.
pub(crate) fn rejected_rows(source: usize, incarnation: u8, offset: u64, unit: Unit) -> impl Iterator<Item = Row> {
    (0..unit.rejected).map(move |index| row(source, incarnation, offset, 4 + index))
}

fn row(source: usize, incarnation: u8, offset: u64, index: u32) -> Row {
    Row { unit: offset, value: value(source, incarnation, offset, index) }
}

/// Good rows count from 0, rejected ones from 4.
pub(crate) fn value(source: usize, incarnation: u8, offset: u64, index: u32) -> Value {
    let (source, offset) = (u32::try_from(source).unwrap(), u32::try_from(offset).unwrap());
    source << 8 | u32::from(incarnation) << 6 | offset << 3 | index
}

/// The source a value came from.
pub(crate) fn source_of(value: Value) -> usize {
    usize::try_from(value >> 8 & 0xff).unwrap()
}

/// A channel of one source whose messages cover these stretches of units, in this order.
pub(crate) fn channel(units: &[Unit], stretches: &[(u64, u64)]) -> Log {
    let all = every_stretch(0, units);
    let mut log = Log::default();
    for &(from, to) in stretches {
        let (from, to) = (Position::at(from), Position::at(to));
        let found = all.iter().find(|message| message.origin.from == from && message.origin.to == to);
        log.append(found.unwrap().clone().into());
    }
    log
}

/// Every channel of at most `most` messages that the given sources' tasks might have written: any grouping, any cut
/// inside a unit, any repeat, any interleaving of the writers; everything is there at the end.
pub(crate) fn every_channel(sources: &[Vec<Unit>], most: usize) -> Vec<Log> {
    let stretches: Vec<Message> =
        (0..sources.len()).flat_map(|source| every_stretch(source, &sources[source])).collect();
    let complete = |log: &Log| {
        let ends = sources.iter().enumerate().map(|(index, units)| (source_writer(index), units.len() as u64));
        ends.into_iter().all(|(writer, end)| log.truth.ends.get(&writer) == Position::at(end))
    };
    let (mut found, mut open) = (Vec::new(), vec![Log::default()]);
    for _ in 0..most {
        let longer = open.iter().flat_map(|log| stretches.iter().filter_map(move |stretch| longer(log, stretch)));
        open = longer.collect();
        found.extend(open.iter().filter(|log| complete(log)).cloned());
    }
    found
}

fn longer(log: &Log, stretch: &Message) -> Option<Log> {
    let mut log = log.clone();
    log.append(stretch.clone().into());
    (!log.truth.gap).then_some(log)
}

fn every_stretch(source: usize, units: &[Unit]) -> Vec<Message> {
    let rows: Vec<Row> = (0..).zip(units).flat_map(|(offset, &unit)| good_rows(source, 0, offset, unit)).collect();
    let mut places = Vec::new();
    for (offset, unit) in (0..).zip(units) {
        places.extend((0..unit.good.max(1)).map(|row| Position::inside(offset, row)));
    }
    places.push(Position::at(units.len() as u64));
    let place = |row: &Row| Position::inside(row.unit, row.value & 3);
    let mut stretches = Vec::new();
    for (index, &from) in places.iter().enumerate() {
        for &to in &places[index + 1..] {
            let origin = delivery::Origin::new(source_writer(source), from, to).unwrap();
            let before = rows.iter().filter(|row| place(row) < to).count() as u64;
            let rows = rows.iter().filter(|row| (from..to).contains(&place(row))).copied().collect();
            let totals = Totals { read: before, emitted: before, ..Totals::default() };
            stretches.push(Message { origin, rows, totals });
        }
    }
    stretches
}
