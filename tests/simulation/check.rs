//! What must be true when a run has come to rest.
//!
//! Every good row is in its table once, with its values, in its partition and in order; every bad one is in the
//! rejected table once; views are what their SQL makes of it; the ledger says so too; and the Delta logs are whole.
//! What is expected is worked out from the messages in the user's topic and from what their senders meant.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    sync::Arc,
};

use analysis::{AnalysisState, QueryRequest, ledger::Account};
use arrow::{
    array::{AsArray as _, RecordBatch},
    compute::cast,
    datatypes::{DataType, Int32Type, Int64Type},
};
use batch::Compression;
use bytes::Bytes;
use futures::TryStreamExt as _;
use object_store::{ObjectStore as _, ObjectStoreExt as _, path::Path};
use runtime::{edges::Edges, tasks::TaskGroup};
use serde_json::Value;
use topics::Log;

use crate::{
    input::{Fate, Order, TOPIC, UserRow},
    world::{ID, World, topic},
};

/// How many rows a problem names.
const EXAMPLES: usize = 4;

/// What became of the rows of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Rows that must be there.
    pub(crate) expected: usize,
    /// Of those, how many are not.
    pub(crate) lost: usize,
    /// Rows that are there and must not be: twice, or never meant.
    pub(crate) surplus: usize,
    /// Rows that stand before one they must stand behind.
    pub(crate) disordered: usize,
}

impl Tally {
    pub(crate) fn is_clean(&self) -> bool {
        self.lost + self.surplus + self.disordered == 0
    }
}

/// A row of any table: the partition it came by, whose it is (a branch of a view), its number, and its values.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Row {
    partition: i64,
    branch: i64,
    n: i64,
    values: Vec<String>,
}

/// What must be in each table.
pub(crate) struct Expected {
    tables: BTreeMap<&'static str, Vec<Row>>,
    accounts: BTreeMap<&'static str, Counts>,
}

/// Rows read, stored, rejected and filtered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    read: u64,
    stored: u64,
    rejected: u64,
    filtered: u64,
}

impl Counts {
    fn note<T>(&mut self, fate: &Fate<T>) {
        self.read += 1;
        match fate {
            Fate::Row(_) => self.stored += 1,
            Fate::Filtered => self.filtered += 1,
            Fate::Rejected => self.rejected += 1,
        }
    }
}

impl Expected {
    /// From what is in the user's topic.
    pub(crate) async fn of(world: &World) -> anyhow::Result<Self> {
        let mut expected = Self { tables: BTreeMap::new(), accounts: BTreeMap::new() };
        for partition in 0..world.partitions {
            let span = world.log.span(&topic(TOPIC), partition).await?;
            let mut next = span.start;
            let mut reader = world.log.reader(&topic(TOPIC), partition, next).await?;
            while next < span.end {
                for message in reader.read(usize::MAX).await? {
                    next = message.offset + 1;
                    expected.message(world, i64::from(partition), message.offset, &message.headers)?;
                }
            }
        }
        Ok(expected)
    }

    fn message(
        &mut self,
        world: &World,
        partition: i64,
        offset: u64,
        headers: &[(String, Bytes)],
    ) -> anyhow::Result<()> {
        let id = headers.iter().find(|(name, _)| name == ID).map(|(_, value)| std::str::from_utf8(value));
        let id: u64 = id.ok_or_else(|| anyhow::anyhow!("a message nobody sent"))??.parse()?;
        let sent = world.sent.lock();
        for row in &sent[&id] {
            match row {
                UserRow::Good(order) => self.good(partition, offset, order),
                UserRow::Bad(bytes) => self.bad(partition, offset, bytes),
            }
        }
        Ok(())
    }

    fn good(&mut self, partition: i64, offset: u64, order: &Order) {
        let n = order.n;
        let values = vec![order.amount.to_string(), order.code.clone(), order.note.clone(), format!("offset {offset}")];
        self.row("orders", Row { partition, branch: 0, n, values });
        self.count("orders", &Fate::Row(()));
        let number = |value: i64| vec![value.to_string()];
        self.row("merged", Row { partition, branch: 1, n, values: number(order.amount) });
        self.count("merged", &Fate::Row(()));
        let fate = order.doubled();
        self.count("doubles", &fate);
        match fate {
            Fate::Row(double) => {
                let values = vec![double.doubled.to_string(), double.code.to_string()];
                self.row("doubles", Row { partition, branch: 0, n, values });
                self.row("merged", Row { partition, branch: 2, n, values: number(double.doubled) });
                self.count("merged", &Fate::Row(()));
                if double.doubled % 4 == 0 {
                    self.row("fours", Row { partition, branch: 0, n, values: number(double.doubled + double.code) });
                    self.count("fours", &Fate::Row(()));
                } else {
                    self.count::<()>("fours", &Fate::Filtered);
                }
            }
            // The row stands in the dead letter as JSON; its number tells which it is.
            Fate::Rejected => self.row("doubles_rejected", Row { partition, branch: 0, n, values: Vec::new() }),
            Fate::Filtered => {}
        }
    }

    fn bad(&mut self, partition: i64, offset: u64, bytes: &str) {
        self.count::<()>("orders", &Fate::Rejected);
        let n = i64::try_from(offset).unwrap_or(i64::MAX);
        self.row("orders_rejected", Row { partition, branch: 0, n, values: vec![bytes.to_owned()] });
    }

    fn row(&mut self, table: &'static str, row: Row) {
        self.tables.entry(table).or_default().push(row);
    }

    fn count<T>(&mut self, name: &'static str, fate: &Fate<T>) {
        self.accounts.entry(name).or_default().note(fate);
    }
}

/// Reads everything back, without faults.
pub(crate) struct Checker<'a> {
    world: &'a World,
    analysis: AnalysisState,
    edges: Edges,
    expected: Expected,
    tally: Tally,
    _group: TaskGroup,
}

const TABLES: [&str; 8] = [
    "orders",
    "orders_rejected",
    "doubles",
    "doubles_rejected",
    "fours",
    "fours_rejected",
    "merged",
    "merged_rejected",
];

impl<'a> Checker<'a> {
    pub(crate) async fn new(world: &'a World) -> anyhow::Result<Self> {
        let group = TaskGroup::new();
        let log: Arc<dyn Log> = Arc::new(world.log.reconnected());
        let mut edges = Edges::new(log, world.plain_lake(), Compression::None, &group);
        edges.catalog.wait_for(|view| !view.graph.tables.is_empty()).await?;
        let analysis = AnalysisState::new(&world.config.analysis, &edges);
        let expected = Expected::of(world).await?;
        Ok(Self { world, analysis, edges, expected, tally: Tally::default(), _group: group })
    }

    /// Whether the ledger says that everything that was sent has arrived.
    pub(crate) async fn has_settled(&self) -> bool {
        let status = analysis::ledger::status(&self.edges).await;
        status.is_ok_and(|status| status.settled()) && self.letters_have_arrived().await
    }

    /// The ledger does not tell how far rejected tables are.
    async fn letters_have_arrived(&self) -> bool {
        for table in ["orders_rejected", "doubles_rejected"] {
            let expected = self.expected.tables.get(table).map_or(0, Vec::len);
            if !self.read(table).await.is_ok_and(|batches| rows_of(table, &batches).len() >= expected) {
                return false;
            }
        }
        true
    }

    /// Everything, of a run that has settled.
    pub(crate) async fn check_all(&mut self) -> anyhow::Result<Tally> {
        for table in TABLES {
            self.check_table(table).await;
        }
        if let Err(error) = self.check_ledger().await {
            self.world.problems.add(format!("the ledger cannot be read: {error}"));
        }
        for table in &self.world.graph.tables {
            check_log(self.world, table).await?;
        }
        Ok(self.tally)
    }

    /// Of a run in which the log broke its promise: whatever is stored of a partition is a prefix of what should be, of
    /// one topic and no other where there were two of the name.
    pub(crate) async fn check_prefixes(&mut self) -> anyhow::Result<Tally> {
        for table in TABLES {
            let Some(batches) = self.readable(table).await else { continue };
            let found = rows_of(table, &batches);
            // Nothing says that all has come to rest, so what was sent is looked up after what was stored.
            let now = Expected::of(self.world).await?;
            let topics = [Some(&now), self.world.replaced.as_ref()];
            let mut lanes: BTreeMap<(i64, i64), Vec<Row>> = BTreeMap::new();
            for row in found {
                lanes.entry((row.partition, row.branch)).or_default().push(row);
            }
            for ((partition, branch), found) in lanes {
                let lane = |row: &&Row| (row.partition, row.branch) == (partition, branch);
                let prefix = |of: &Expected| -> Vec<Row> {
                    of.tables.get(table).into_iter().flatten().filter(lane).take(found.len()).cloned().collect()
                };
                let prefixes = topics.into_iter().flatten().map(prefix);
                let likest = prefixes.min_by_key(|prefix| found.iter().filter(|row| !prefix.contains(row)).count());
                self.compare(&format!("{table}/{partition}, the prefix of"), likest.unwrap_or_default(), found);
            }
        }
        Ok(self.tally)
    }

    async fn check_table(&mut self, table: &'static str) {
        let expected = self.expected.tables.get(table).cloned().unwrap_or_default();
        if let Some(batches) = self.readable(table).await {
            self.compare(table, expected, rows_of(table, &batches));
            self.check_order(table, &batches);
        }
    }

    async fn readable(&self, table: &str) -> Option<Vec<RecordBatch>> {
        let read = self.read(table).await;
        read.inspect_err(|error| self.world.problems.add(format!("{table} cannot be read: {error}"))).ok()
    }

    fn compare(&mut self, table: &str, mut expected: Vec<Row>, mut found: Vec<Row>) {
        expected.sort();
        found.sort();
        let (lost, surplus) = (without(&expected, &found), without(&found, &expected));
        self.tally.expected += expected.len();
        self.tally.lost += lost.len();
        self.tally.surplus += surplus.len();
        self.report(&format!("{table}: missing"), &lost);
        self.report(&format!("{table}: surplus"), &surplus);
    }

    /// A batch is a piece of a file: in it the rows of a partition stand in the order in which they were stored.
    fn check_order(&mut self, table: &str, batches: &[RecordBatch]) {
        let mut disordered = Vec::new();
        for batch in batches {
            let mut newest: BTreeMap<(i64, i64), i64> = BTreeMap::new();
            for row in rows_of(table, std::slice::from_ref(batch)) {
                let newest = newest.entry((row.partition, row.branch)).or_insert(row.n);
                if row.n < *newest {
                    disordered.push(row);
                } else {
                    *newest = row.n;
                }
            }
        }
        self.tally.disordered += disordered.len();
        self.report(&format!("{table}: out of order"), &disordered);
    }

    fn report(&self, what: &str, rows: &[Row]) {
        if !rows.is_empty() {
            let examples = shortened(&rows[..rows.len().min(EXAMPLES)]);
            self.world.problems.add(format!("{what} {} rows, among them {examples}", rows.len()));
        }
    }

    async fn check_ledger(&mut self) -> anyhow::Result<()> {
        let status = analysis::ledger::status(&self.edges).await?;
        // Not the lag: a stage that stopped first does not see the heartbeat that the one before it wrote last.
        for Account { name, read, stored, rejected, filtered, late, in_flight, balanced, .. } in status.accounts {
            let found = Counts { read, stored, rejected, filtered };
            let bare = name.trim_start_matches("shop.");
            let expected = self.expected.accounts.get(bare).copied().unwrap_or_default();
            if found != expected || late + in_flight > 0 || !balanced {
                self.world.problems.add(format!(
                    "ledger of {name}: {found:?}, late {late}, in flight {in_flight}, balanced {balanced}; \
                     expected {expected:?}"
                ));
            }
        }
        Ok(())
    }

    async fn read(&self, table: &str) -> anyhow::Result<Vec<RecordBatch>> {
        let columns = match table {
            "orders" => "n, amount, code, note",
            "doubles" => "n, doubled, code",
            "fours" => "n, more",
            "merged" => "n, branch, value",
            _ => "\"offset\", part, bytes",
        };
        // Parts of one letter may be in two files, and files are read in any order.
        let order = if table == "orders_rejected" { "ORDER BY \"__partition\", \"offset\", line, part" } else { "" };
        let sql = format!("SELECT {columns}, \"__partition\", \"__offset\" FROM shop.\"{table}$positions\" {order}");
        let request = QueryRequest { sql, ..QueryRequest::default() };
        let mut answer = self.analysis.queries.run(request).await?;
        let mut batches = Vec::new();
        while let Some(batch) = answer.next().await {
            batches.push(batch?);
        }
        Ok(batches)
    }
}

fn shortened(rows: &[Row]) -> String {
    let text = format!("{rows:?}");
    text.chars().take(600).collect()
}

/// What is in `all` and not in `others`, as often as it is there. Both are sorted.
fn without(all: &[Row], others: &[Row]) -> Vec<Row> {
    let mut others = others.iter().peekable();
    let mut left = Vec::new();
    for row in all {
        while others.peek().is_some_and(|other| *other < row) {
            others.next();
        }
        if others.peek() == Some(&row) {
            others.next();
        } else {
            left.push(row.clone());
        }
    }
    left
}

fn rows_of(table: &str, batches: &[RecordBatch]) -> Vec<Row> {
    let mut rows = Vec::new();
    for batch in batches {
        let columns = batch.num_columns();
        let partition = batch.column(columns - 2).as_primitive::<Int32Type>();
        let offset = batch.column(columns - 1).as_primitive::<Int64Type>();
        for row in 0..batch.num_rows() {
            let partition = i64::from(partition.value(row));
            match table {
                "orders_rejected" | "doubles_rejected" | "fours_rejected" | "merged_rejected" => {
                    letter(table, batch, row, partition, &mut rows);
                }
                _ => rows.push(plain_row(table, batch, row, partition, offset.value(row))),
            }
        }
    }
    rows
}

fn plain_row(table: &str, batch: &RecordBatch, row: usize, partition: i64, offset: i64) -> Row {
    let number = |column: usize| batch.column(column).as_primitive::<Int64Type>().value(row);
    let text = |column: usize| {
        let texts = cast(batch.column(column), &DataType::Utf8).expect("a column of text");
        texts.as_string::<i32>().value(row).to_owned()
    };
    let n = number(0);
    let (branch, values) = match table {
        "orders" => (0, vec![number(1).to_string(), text(2), text(3), format!("offset {offset}")]),
        "doubles" => (0, vec![number(1).to_string(), number(2).to_string()]),
        "fours" => (0, vec![number(1).to_string()]),
        _ => (number(1), vec![number(2).to_string()]),
    };
    Row { partition, branch, n, values }
}

/// Parts of one letter follow each other; a letter of a view names its row by its JSON.
fn letter(table: &str, batch: &RecordBatch, row: usize, partition: i64, rows: &mut Vec<Row>) {
    let bytes = cast(batch.column(2), &DataType::Binary).expect("a column of bytes");
    let text = String::from_utf8_lossy(bytes.as_binary::<i32>().value(row)).into_owned();
    let part = batch.column(1).as_primitive::<Int32Type>().value(row);
    if table != "orders_rejected" {
        let json: Value = serde_json::from_str(&text).unwrap_or_default();
        let n = json.get("n").and_then(Value::as_i64).unwrap_or(-1);
        return rows.push(Row { partition, branch: 0, n, values: Vec::new() });
    }
    let n = batch.column(0).as_primitive::<Int64Type>().value(row);
    match rows.last_mut() {
        Some(last) if part > 0 && (last.n, last.partition) == (n, partition) => last.values[0].push_str(&text),
        _ => rows.push(Row { partition, branch: 0, n, values: vec![text] }),
    }
}

/// One table's log: versions without a hole, files that are there and named once, positions that only rise, and as
/// many rows in each commit as its writers say.
async fn check_log(world: &World, table: &pipeline::TableStage) -> anyhow::Result<()> {
    let problem = |text: String| world.problems.add(format!("the log of {}: {text}", table.name));
    let folder = Path::from(format!("{}/_delta_log", table.folder));
    let mut objects: Vec<_> = world.store.list(Some(&folder)).try_collect().await?;
    objects.retain(|object| object.location.extension() == Some("json"));
    objects.sort_by(|one, other| one.location.cmp(&other.location));
    let (mut txns, mut paths): (BTreeMap<String, i64>, _) = (BTreeMap::new(), BTreeSet::new());
    for (version, object) in objects.iter().enumerate() {
        let name = format!("{version:020}.json");
        if object.location.filename() != Some(name.as_str()) {
            problem(format!("expected {name}, found {}", object.location));
        }
        let body = world.store.get(&object.location).await?.bytes().await?;
        let (mut rows, mut emitted) = (0, 0);
        for action in serde_json::Deserializer::from_slice(&body).into_iter::<Value>() {
            let action = action?;
            if let Some(add) = action.get("add") {
                rows += check_file(world, table, add, &mut paths, &problem).await?;
            }
            if let Some(txn) = action.get("txn") {
                emitted += check_txn(txn, &mut txns, &problem);
            }
        }
        let letters = table.name.ends_with("_rejected");
        if rows != emitted && !letters {
            problem(format!("version {version} has {rows} rows, its writers say {emitted}"));
        }
    }
    Ok(())
}

async fn check_file(
    world: &World,
    table: &pipeline::TableStage,
    add: &Value,
    paths: &mut BTreeSet<String>,
    problem: &impl Fn(String),
) -> anyhow::Result<i64> {
    let path = add["path"].as_str().unwrap_or_default();
    if !paths.insert(path.to_owned()) {
        problem(format!("file {path} is there twice"));
    }
    let stored = world.store.head(&Path::parse(format!("{}/{path}", table.folder))?).await;
    match stored {
        Ok(object) if Some(object.size) == add["size"].as_u64() => {}
        other => problem(format!("file {path} of {} bytes is {other:?}", add["size"])),
    }
    let stats: Value = serde_json::from_str(add["stats"].as_str().unwrap_or_default())?;
    Ok(stats["numRecords"].as_i64().unwrap_or(-1))
}

/// How many rows its writer says came with this commit, where the position counts them.
fn check_txn(txn: &Value, txns: &mut BTreeMap<String, i64>, problem: &impl Fn(String)) -> i64 {
    let app_id = txn["appId"].as_str().unwrap_or_default();
    let version = txn["version"].as_i64().unwrap_or(-1);
    let before = txns.insert(app_id.to_owned(), version).unwrap_or(0);
    if version < before {
        problem(format!("`{app_id}` goes back from {before} to {version}"));
    }
    if app_id.starts_with("tailwater/emitted/") { version - before } else { 0 }
}

/// For messages of the negative controls.
pub(crate) fn shown(problems: &[impl Debug]) -> String {
    problems.iter().take(3).map(|problem| format!("{problem:?}")).collect::<Vec<_>>().join("; ")
}
