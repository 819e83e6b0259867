//! The ledger: read = stored + rejected + filtered + late + in flight, for every source and view.
//!
//! It is made of facts, not of process counters: what the table holds and how far it has each writer (its files and
//! `txn` versions), and what each writer says in the newest message of its channel. So it is exact across restarts,
//! and it balances only if the rows in the table are as many as the writers say they wrote up to the table's position.
//! Rows that another program put into the table are counted apart. In its files ours cannot be told from its own: what
//! is lost or doubled there is not seen, up to as many rows as it put there.

mod watch;

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use arrow::{
    array::{Array as _, AsArray as _},
    compute::cast,
    datatypes::{DataType, Field, TimeUnit, TimestampMicrosecondType},
};
use axum::{Json, Router, extract::State, routing::get};
use batch::decode_envelope;
use delivery::{Totals, Writer};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use lake::{FileStats, Snapshot, app_id};
use pipeline::{Graph, TableStage};
use runtime::{
    catalog,
    clock::{Clock as _, SystemClock},
    edges::Edges,
};
use serde::{Deserialize, Serialize};
use topics::{Log, Span, TopicName};

use crate::{
    error::{ErrorKind, QueryError},
    snapshots::{self, SnapshotCache},
};

pub(crate) use self::watch::watch;

/// How many of the newest messages of a partition are looked at: each time more, while writers are missing from them. At
/// first more than one, as a writer that was replaced may have repeated an old one after the newest.
const NEWEST_MESSAGES: [u64; 4] = [4, 20, 100, 500];
const READ_BYTES: usize = 4 << 20;
/// Partitions of a channel looked at at the same time: each waits for the log, and holds what it reads.
const PARTITIONS_AT_ONCE: usize = 4;

/// The account of one source or view.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Account {
    /// `pipeline.name`.
    pub name: String,
    /// `source` or `view`.
    pub kind: String,
    /// Rows found in the input.
    pub read: u64,
    /// Rows in the table that came through Tailwater.
    pub stored: u64,
    /// Rows in (or on their way to) the rejected table.
    pub rejected: u64,
    /// Rows a condition left out.
    pub filtered: u64,
    /// Rows behind the watermark.
    pub late: u64,
    /// Rows in the channel that the table does not have yet.
    pub in_flight: u64,
    /// Input messages not read yet.
    pub lag: u64,
    /// Rows in the table that another program put there.
    #[serde(default)]
    pub foreign: u64,
    /// Age of the newest event time in the table, seconds; absent without event times or rows.
    pub freshness_seconds: Option<f64>,
    /// Whether every row is accounted for.
    pub balanced: bool,
    /// The table's version; absent while there is no table.
    pub version: Option<u64>,
}

/// The answer of `GET /v1/status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The catalog's version.
    pub catalog_version: u64,
    /// Sources and views, in the catalog's order.
    pub accounts: Vec<Account>,
}

impl Status {
    /// Whether everything that was sent is in the tables.
    pub fn settled(&self) -> bool {
        self.accounts.iter().all(|account| account.balanced && account.lag == 0 && account.in_flight == 0)
    }
}

impl Account {
    /// Rows that are in no column of the account, or in two.
    pub fn unaccounted(&self) -> u64 {
        let found = self.stored + self.rejected + self.filtered + self.late + self.in_flight;
        self.read.abs_diff(found)
    }
}

/// `GET /v1/status`.
pub fn router(edges: Edges) -> Router {
    Router::new().route("/v1/status", get(answer)).with_state(edges)
}

async fn answer(State(edges): State<Edges>) -> Result<Json<Status>, QueryError> {
    let unavailable = |error: anyhow::Error| QueryError::new(ErrorKind::Unavailable, format!("{error:#}"));
    status(&edges).await.map(Json).map_err(unavailable)
}

/// What is to be accounted for.
struct Subject<'a> {
    kind: &'static str,
    pipeline: &'a str,
    name: &'a str,
    /// Per writer-name prefix, the topic its positions are offsets of.
    inputs: Vec<Input<'a>>,
}

/// An input of a definition, and how the names of the writers that read it begin.
struct Input<'a> {
    topic: &'a str,
    writer_prefix: String,
}

/// Accounts for every source and view.
///
/// # Errors
/// When the log or the store does not answer, or the catalog has not been read yet.
pub async fn status(edges: &Edges) -> anyhow::Result<Status> {
    let tables = snapshots::of_process(edges);
    let view = catalog::when_replayed(&edges.catalog).await?;
    let mut accounts = Vec::new();
    for subject in subjects(&view.graph) {
        accounts.push(account(edges, &tables, &view.graph, &subject).await?);
    }
    Ok(Status { catalog_version: view.catalog.version(), accounts })
}

fn subjects(graph: &Graph) -> Vec<Subject<'_>> {
    let sources = graph.sources.iter().map(|source| Subject {
        kind: "source",
        pipeline: &source.pipeline,
        name: &source.name,
        inputs: vec![Input { topic: &source.topic, writer_prefix: format!("{}.{}/", source.pipeline, source.name) }],
    });
    let views = graph.views.iter().map(|view| Subject {
        kind: "view",
        pipeline: &view.pipeline,
        name: &view.name,
        inputs: view
            .branches
            .iter()
            .map(|branch| Input {
                topic: &branch.input_channel,
                writer_prefix: format!("{}.{}.{}/", view.pipeline, view.name, branch.index),
            })
            .collect(),
    });
    sources.chain(views).collect()
}

/// Totals and positions per writer: as of the table, and as of the newest message.
#[derive(Default)]
struct Books {
    stored: BTreeMap<Writer, Totals>,
    newest: BTreeMap<Writer, (Totals, u64)>,
}

async fn account(
    edges: &Edges,
    tables: &SnapshotCache,
    graph: &Graph,
    subject: &Subject<'_>,
) -> anyhow::Result<Account> {
    let find =
        |wanted: &str| graph.tables.iter().find(|table| table.pipeline == subject.pipeline && table.name == wanted);
    let mut account = Account {
        name: format!("{}.{}", subject.pipeline, subject.name),
        kind: subject.kind.to_owned(),
        read: 0,
        stored: 0,
        rejected: 0,
        filtered: 0,
        late: 0,
        in_flight: 0,
        lag: 0,
        foreign: 0,
        freshness_seconds: None,
        balanced: true,
        version: None,
    };
    let Some(table) = find(subject.name) else { return Ok(account) };
    let snapshot = tables.newest(&table.folder).await?;
    let log = edges.log.as_ref();
    let read = read_partitions(log, subject).await?;
    let books = read_books(log, table, snapshot.as_ref(), &read).await?;
    fill(&mut account, table, snapshot.as_ref(), &books);
    account.lag = read.iter().map(|read| read.lag(&books)).sum();
    Ok(account)
}

/// A partition of an input. What comes from it is written to the channel's partition of the same number.
struct ReadPartition {
    number: u32,
    /// What is in it.
    span: Span,
    /// Who reads it.
    writer: Writer,
}

impl ReadPartition {
    /// Messages beyond what its writer has covered, as far as the books know.
    fn lag(&self, books: &Books) -> u64 {
        let covered = books.newest.get(&self.writer).map_or(self.span.start, |(_, offset)| *offset);
        self.span.end.saturating_sub(covered.max(self.span.start))
    }
}

async fn read_partitions(log: &dyn Log, subject: &Subject<'_>) -> anyhow::Result<Vec<ReadPartition>> {
    let mut read = Vec::new();
    for input in &subject.inputs {
        let topic = TopicName::try_from(input.topic.to_owned())?;
        let Some(description) = log.describe(&topic).await? else { continue };
        for number in 0..description.partitions {
            let span = log.span(&topic, number).await?;
            read.push(ReadPartition { number, span, writer: Writer::new(format!("{}{number}", input.writer_prefix)) });
        }
    }
    Ok(read)
}

fn fill(account: &mut Account, table: &TableStage, snapshot: Option<&Snapshot>, books: &Books) {
    let newest = books.newest.values().fold(Totals::default(), |sum, (totals, _)| sum + *totals);
    let stored = books.stored.values().fold(Totals::default(), |sum, totals| sum + *totals);
    account.read = newest.read;
    account.rejected = newest.rejected;
    account.filtered = newest.filtered;
    account.late = newest.late;
    let held = snapshot.and_then(Snapshot::rows).unwrap_or(0);
    let in_foreign_files = snapshot.and_then(Snapshot::rows_in_foreign_files).unwrap_or(0);
    account.foreign = foreign(held, in_foreign_files, stored.emitted);
    account.stored = held - account.foreign;
    account.in_flight = newest.emitted.saturating_sub(stored.emitted);
    account.balanced = newest.balanced() && account.stored == stored.emitted && newest.emitted >= stored.emitted;
    account.version = snapshot.map(|snapshot| snapshot.version);
    account.freshness_seconds = snapshot.and_then(|snapshot| freshness(table, snapshot));
}

/// Of `held` rows, those that came from another program. Of the rows in its files (`in_foreign_files`) some may be
/// ours, where it rewrote files; what is ours is known in sum.
fn foreign(held: u64, in_foreign_files: u64, ours: u64) -> u64 {
    held.saturating_sub(ours).min(in_foreign_files)
}

/// Now minus the newest event time among the files' statistics.
fn freshness(table: &TableStage, snapshot: &Snapshot) -> Option<f64> {
    let field = snapshot.schema.field_with_name(table.event_time.as_ref()?).ok()?;
    let newest = snapshot.files.iter().filter_map(|file| max_micros(&file.stats, field)).max()?;
    Some((SystemClock.now_ms() * 1000 - newest) as f64 / 1_000_000.0)
}

fn max_micros(stats: &FileStats, field: &Field) -> Option<i64> {
    let micros = cast(&stats.max_of(field)?, &DataType::Timestamp(TimeUnit::Microsecond, None)).ok()?;
    let micros = micros.as_primitive_opt::<TimestampMicrosecondType>()?;
    (micros.len() == 1 && micros.is_valid(0)).then(|| micros.value(0))
}

async fn read_books(
    log: &dyn Log,
    table: &TableStage,
    snapshot: Option<&Snapshot>,
    read: &[ReadPartition],
) -> anyhow::Result<Books> {
    let mut books = Books::default();
    let channel = TopicName::try_from(table.channel.clone())?;
    let Some(description) = log.describe(&channel).await? else { return Ok(books) };
    let partitions = 0..description.partitions;
    if let Some(snapshot) = snapshot {
        partitions.clone().for_each(|partition| read_table_side(&mut books, table, partition, snapshot));
    }
    // Of the others, the table knows all there is.
    let behind: Vec<_> = read.iter().filter(|read| read.lag(&books) > 0).collect();
    let mut newest = stream::iter(partitions)
        .map(|partition| {
            let here = behind.iter().filter(|read| read.number == partition);
            read_channel_side(log, &channel, partition, here.map(|read| read.writer.clone()).collect())
        })
        .buffered(PARTITIONS_AT_ONCE);
    while let Some(origins) = newest.try_next().await? {
        for (writer, totals, to) in origins {
            note_newest(&mut books, writer, totals, to);
        }
    }
    Ok(books)
}

fn read_table_side(books: &mut Books, table: &TableStage, partition: u32, snapshot: &Snapshot) {
    for (writer, end) in app_id::ends(&snapshot.txns, &table.channel, partition) {
        let totals = app_id::totals(&snapshot.txns, &table.channel, partition, &writer);
        let offset = delivery::Position::unpack(end).unwrap_or_default().offset;
        books.stored.insert(writer.clone(), totals);
        note_newest(books, writer, totals, offset);
    }
}

/// Who wrote the newest messages of a partition, their totals and how far they were. Looks further back only until each
/// of `missing` was met: messages are large, and all but their headers is for nothing here.
async fn read_channel_side(
    log: &dyn Log,
    channel: &TopicName,
    partition: u32,
    mut missing: BTreeSet<Writer>,
) -> anyhow::Result<Vec<(Writer, Totals, u64)>> {
    let mut origins = Vec::new();
    let span = log.span(channel, partition).await?;
    let mut looked_at = span.end..span.end;
    for newest in NEWEST_MESSAGES {
        let has_all = !origins.is_empty() && missing.is_empty();
        if has_all || looked_at.start == span.start {
            break;
        }
        let start = span.start.max(span.end.saturating_sub(newest));
        for found in read_origins(log, channel, partition, start..looked_at.start).await? {
            missing.remove(&found.0);
            origins.push(found);
        }
        looked_at.start = start;
    }
    Ok(origins)
}

async fn read_origins(
    log: &dyn Log,
    channel: &TopicName,
    partition: u32,
    offsets: Range<u64>,
) -> anyhow::Result<Vec<(Writer, Totals, u64)>> {
    let mut origins = Vec::new();
    let mut next = offsets.start;
    let mut reader = log.reader(channel, partition, next).await?;
    while next < offsets.end {
        for message in reader.read(READ_BYTES).await? {
            next = message.offset + 1;
            if message.offset < offsets.end {
                let envelope = decode_envelope(&message.headers)?;
                let to = envelope.origin.to.offset;
                origins.push((envelope.origin.writer, envelope.totals, to));
            }
        }
    }
    Ok(origins)
}

/// A zombie may repeat old totals after new ones: the largest count.
fn note_newest(books: &mut Books, writer: Writer, totals: Totals, offset: u64) {
    let newest = books.newest.entry(writer).or_default();
    if totals.read >= newest.0.read {
        newest.0 = totals;
    }
    newest.1 = newest.1.max(offset);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use batch::{Envelope, Port, encode_envelope};
    use delivery::{Origin, Position};
    use topics::{NewMessage, TopicSettings, memory::MemoryLog};

    use super::*;

    /// What `writer` says after it has covered its input up to `to`.
    fn message(writer: &Writer, to: u64) -> NewMessage {
        let envelope = Envelope {
            fingerprint: 0,
            rows: 0,
            event_time: None,
            watermark: None,
            origin: Origin::new(writer.clone(), Position::at(to - 1), Position::at(to)).unwrap(),
            totals: Totals { read: to, filtered: to, ..Totals::default() },
            port: Port::Data,
            traceparent: None,
            bounds: vec![],
        };
        NewMessage { headers: encode_envelope(&envelope), ..NewMessage::default() }
    }

    async fn channel_of(messages: Vec<NewMessage>) -> (MemoryLog, TopicName) {
        let (log, channel) = (MemoryLog::new(), TopicName::try_from("channel".to_owned()).unwrap());
        log.create(&channel, &TopicSettings { partitions: 1, ..TopicSettings::default() }).await.unwrap();
        let appender = log.appender();
        for message in messages {
            let _durable = appender.append(&channel, 0, message).await.unwrap();
        }
        appender.flush().await.unwrap();
        (log, channel)
    }

    #[tokio::test]
    async fn no_more_messages_are_looked_at_than_needed_to_meet_each_writer() {
        let (busy, idle, gone) = (Writer::new("busy/0"), Writer::new("idle/0"), Writer::new("gone/0"));
        let mut messages = vec![message(&idle, 7)];
        messages.extend((1..=100).map(|to| message(&busy, to)));
        let (log, channel) = channel_of(messages).await;
        let looked_at = async |writers: &[&Writer]| {
            let writers = writers.iter().map(|writer| (*writer).clone()).collect();
            let found = read_channel_side(&log, &channel, 0, writers).await.unwrap();
            let mut books = Books::default();
            let looked_at = found.len();
            for (writer, totals, to) in found {
                note_newest(&mut books, writer, totals, to);
            }
            assert_eq!(books.newest[&busy].1, 100);
            (looked_at, books.newest.get(&idle).map(|(_, to)| *to))
        };
        assert_eq!(looked_at(&[]).await, (4, None));
        assert_eq!(looked_at(&[&busy]).await, (4, None));
        assert_eq!(looked_at(&[&busy, &idle]).await, (101, Some(7)));
        assert_eq!(looked_at(&[&busy, &gone]).await, (101, Some(7)), "each message once");
    }

    #[test]
    fn rows_of_other_programs_are_what_is_more_than_ours_in_their_files() {
        assert_eq!(foreign(100, 0, 100), 0, "only we write");
        assert_eq!(foreign(112, 12, 100), 12, "another program appends");
        assert_eq!(foreign(112, 70, 100), 12, "and compacts, so that its files hold rows of ours");
        assert_eq!(foreign(101, 0, 100), 0, "a row of ours that is doubled is not foreign");
        assert_eq!(foreign(113, 12, 100), 12, "nor where others write, too");
        assert_eq!(foreign(111, 12, 100), 11, "what is lost of ours cannot be told from what they removed");
        assert_eq!(foreign(99, 0, 100), 0);
    }
}
