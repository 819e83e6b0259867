//! What those who look on while a run goes must never see.
//!
//! * A table's version, rows and positions never go back, and neither do the answers of analysis.
//! * The ledger balances at every moment.
//! * Nobody reads a data message whose dead letters are not in the log yet.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use analysis::{AnalysisState, QueryRequest};
use arrow::{array::AsArray as _, datatypes::Int64Type};
use batch::{Compression, decode_envelope};
use delivery::Writer;
use lake::{Lake, Snapshot};
use parking_lot::Mutex;
use pipeline::TableStage;
use runtime::{edges::Edges, tasks::TaskGroup};
use topics::{Log, Reader, TopicName, memory::MemoryLog};

use crate::{
    process::Process,
    world::{Problems, World, topic},
};

const READ_BYTES: usize = 1 << 20;
/// How long a question may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Follows the versions of all tables.
pub(crate) struct TableWatch {
    lake: Lake,
    process: Process,
    problems: Problems,
    tables: Vec<TableStage>,
    seen: BTreeMap<String, Snapshot>,
}

impl TableWatch {
    pub(crate) fn new(world: &World) -> Self {
        let process = world.bystander("table watch");
        Self {
            lake: world.lake_of(&process, 900),
            process,
            problems: world.problems.clone(),
            tables: world.graph.tables.clone(),
            seen: BTreeMap::new(),
        }
    }

    pub(crate) async fn run(mut self) -> anyhow::Result<()> {
        loop {
            tokio::time::sleep(self.process.faults().milliseconds(3_000)).await;
            for table in self.tables.clone() {
                self.look(&table.folder).await;
            }
        }
    }

    async fn look(&mut self, folder: &str) {
        let known = self.seen.get(folder);
        let newest = match known {
            Some(known) => known.refresh(&self.lake).await.map(Some),
            None => Snapshot::load(&self.lake, folder).await,
        };
        // A store that does not answer says nothing.
        let Ok(Some(newest)) = newest else { return };
        if let Some(known) = known {
            let back = |what: &str| self.problems.add(format!("table {folder}: {what} went back"));
            if newest.version < known.version {
                back("the version");
            }
            if newest.rows() < known.rows() {
                back("the number of rows");
            }
            for (app_id, version) in known.txns.iter() {
                if newest.txns.get(app_id).is_none_or(|newest| newest < version) {
                    back(&format!("`{app_id}`"));
                }
            }
        }
        self.seen.insert(folder.to_owned(), newest);
    }
}

/// Asks analysis, whichever process runs it, and the ledger.
pub(crate) struct Questioner {
    asked: Arc<Mutex<Option<AnalysisState>>>,
    edges: Edges,
    process: Process,
    problems: Problems,
    tables: Vec<String>,
    seen: BTreeMap<String, (i64, Option<u64>)>,
    _group: TaskGroup,
}

impl Questioner {
    pub(crate) fn new(world: &World) -> Self {
        let process = world.bystander("questioner");
        let group = TaskGroup::new();
        let log: Arc<dyn Log> = Arc::new(world.log.reconnected());
        Self {
            asked: Arc::clone(&world.asked),
            edges: Edges::new(log, world.lake_of(&process, 901), Compression::None, &group),
            process,
            problems: world.problems.clone(),
            tables: world.graph.tables.iter().map(|table| format!("{}.{}", table.pipeline, table.name)).collect(),
            seen: BTreeMap::new(),
            _group: group,
        }
    }

    pub(crate) async fn run(mut self) -> anyhow::Result<()> {
        loop {
            tokio::time::sleep(Duration::from_secs(2) + self.process.faults().milliseconds(8_000)).await;
            self.check_ledger().await;
            let table = self.tables[self.process.faults().below(self.tables.len() as u64) as usize].clone();
            self.ask(&table).await;
        }
    }

    async fn check_ledger(&self) {
        let Ok(status) = analysis::ledger::status(&self.edges).await else { return };
        for account in status.accounts.iter().filter(|account| !account.balanced) {
            self.problems.add(format!("the ledger does not balance: {account:?}"));
        }
    }

    async fn ask(&mut self, table: &str) {
        let Some(state) = self.asked.lock().clone() else { return };
        let request = QueryRequest { sql: format!("SELECT count(*) FROM {table}"), ..QueryRequest::default() };
        // A store that does not answer says nothing, and neither does a process that died.
        let run = tokio::time::timeout(PATIENCE, state.queries.run(request));
        let Ok(Ok(mut answer)) = run.await else { return };
        let version = answer.versions.first().and_then(|(_, version)| *version);
        let Ok(Some(Ok(batch))) = tokio::time::timeout(PATIENCE, answer.next()).await else { return };
        let count = batch.column(0).as_primitive::<Int64Type>().value(0);
        let known = self.seen.insert(table.to_owned(), (count, version));
        if known.is_some_and(|known| known.0 > count || known.1 > version) {
            self.problems.add(format!("{table} went back from {known:?} to {:?}", (count, version)));
        }
    }
}

/// Reads a data partition and its rejected partition as they grow.
pub(crate) struct LetterWatch {
    log: MemoryLog,
    problems: Problems,
    data: TopicName,
    rejected: TopicName,
    partition: u32,
    /// Where the rejected partition was read to, and the dead letters each writer had counted by then.
    next_rejected: u64,
    letters: BTreeMap<Writer, u64>,
    /// Letters were trimmed before they were read here: until a later one of the same writer, its count is not known.
    uncertain: bool,
}

impl LetterWatch {
    /// One for each data partition there is.
    pub(crate) fn all(world: &World) -> Vec<Self> {
        let sources = world.graph.sources.iter().map(|source| (&source.channel, &source.rejected));
        let views = world.graph.views.iter().map(|view| (&view.channel, &view.rejected));
        let pairs = sources.chain(views).map(|(data, rejected)| (topic(data), topic(rejected)));
        let watch = |(data, rejected): (TopicName, TopicName)| {
            (0..world.partitions).map(move |partition| Self {
                log: world.log.clone(),
                problems: world.problems.clone(),
                data: data.clone(),
                rejected: rejected.clone(),
                partition,
                next_rejected: 0,
                letters: BTreeMap::new(),
                uncertain: false,
            })
        };
        pairs.flat_map(watch).collect()
    }

    pub(crate) async fn run(mut self) -> anyhow::Result<()> {
        let mut next = 0;
        loop {
            let Ok(mut reader) = self.log.reader(&self.data, self.partition, next).await else {
                // Not made yet, or trimmed meanwhile.
                tokio::time::sleep(Duration::from_millis(50)).await;
                next = self.log.span(&self.data, self.partition).await.map_or(next, |span| span.start.max(next));
                continue;
            };
            while let Ok(messages) = reader.read(READ_BYTES).await {
                for message in messages {
                    next = message.offset + 1;
                    let envelope = decode_envelope(&message.headers)?;
                    self.check(&envelope.origin.writer, envelope.totals.rejected, message.offset).await?;
                }
            }
        }
    }

    async fn check(&mut self, writer: &Writer, counted: u64, offset: u64) -> anyhow::Result<()> {
        if self.known(writer) < counted {
            self.read_letters().await?;
        }
        if self.known(writer) < counted && !self.uncertain {
            let Self { data, partition, rejected, .. } = self;
            self.problems.add(format!(
                "message {data}/{partition}@{offset} counts {counted} dead letters, {rejected} has {} of {writer}",
                self.letters.get(writer).copied().unwrap_or_default()
            ));
        }
        Ok(())
    }

    fn known(&self, writer: &Writer) -> u64 {
        self.letters.get(writer).copied().unwrap_or_default()
    }

    async fn read_letters(&mut self) -> anyhow::Result<()> {
        let span = self.log.span(&self.rejected, self.partition).await?;
        self.uncertain |= span.start > self.next_rejected;
        self.next_rejected = self.next_rejected.max(span.start);
        let mut reader: Box<dyn Reader> = self.log.reader(&self.rejected, self.partition, self.next_rejected).await?;
        while self.next_rejected < span.end {
            for message in reader.read(READ_BYTES).await? {
                self.next_rejected = message.offset + 1;
                let envelope = decode_envelope(&message.headers)?;
                let known = self.letters.entry(envelope.origin.writer).or_default();
                *known = envelope.totals.rejected.max(*known);
                self.uncertain = false;
            }
        }
        Ok(())
    }
}
