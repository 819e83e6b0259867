//! A shop with a few tables, written through the lake, and a query manager over them.

use std::{sync::Arc, time::Duration};

use analysis::{Answer, ErrorKind, QueryError, QueryLimits, QueryManager, QueryRequest, snapshots::SnapshotCache};
use arrow::{
    array::{ArrayRef, Decimal128Array, Int32Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray},
    datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit},
    util::pretty::pretty_format_batches,
};
use lake::{Advance, Commit, CommitOutcome, FileWriter, Lake, Table, TableSpec, WriterOptions, app_id};
use pipeline::{Graph, TableStage};
use runtime::catalog::CatalogView;
use tokio::sync::watch;

pub(crate) struct Shop {
    pub(crate) lake: Lake,
    pub(crate) queries: Arc<QueryManager>,
    /// Dropped, it tells that the process stops.
    pub(crate) catalog: watch::Sender<Arc<CatalogView>>,
}

pub(crate) fn limits() -> QueryLimits {
    QueryLimits {
        query_memory: 64 << 20,
        memory: 128 << 20,
        timeout: Duration::from_secs(60),
        max_rows: 1_000_000,
        max_concurrent_queries: 4,
    }
}

impl Shop {
    pub(crate) fn new(tables: Vec<TableStage>) -> Self {
        Self::with_limits(tables, limits())
    }

    pub(crate) fn with_limits(tables: Vec<TableStage>, limits: QueryLimits) -> Self {
        let lake = Lake::memory();
        let (catalog, receiver) = watch::channel(Arc::new(view(tables)));
        let tables = Arc::new(SnapshotCache::new(lake.clone()));
        let queries = Arc::new(QueryManager::new(limits, tables, receiver).unwrap());
        Self { lake, queries, catalog }
    }

    pub(crate) fn apply(&self, tables: Vec<TableStage>) {
        self.catalog.send_replace(Arc::new(view(tables)));
    }

    pub(crate) async fn try_ask(&self, sql: &str) -> Result<Answer, QueryError> {
        self.queries.run(request(sql)).await
    }

    /// The answer as a text table without borders, lines in order.
    pub(crate) async fn ask(&self, sql: &str) -> Vec<String> {
        let answer = self.try_ask(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        lines(answer).await
    }

    /// One text cell.
    pub(crate) async fn text(&self, sql: &str) -> String {
        self.ask(sql).await.join("\n")
    }

    pub(crate) async fn refusal(&self, sql: &str) -> QueryError {
        match self.try_ask(sql).await {
            Err(error) => error,
            Ok(mut answer) => loop {
                match answer.next().await {
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return error,
                    None => panic!("`{sql}` was answered"),
                }
            },
        }
    }

    pub(crate) async fn kind_of_refusal(&self, sql: &str) -> ErrorKind {
        self.refusal(sql).await.kind
    }
}

fn view(tables: Vec<TableStage>) -> CatalogView {
    CatalogView { graph: Arc::new(Graph { tables, ..Graph::default() }), replayed: true, ..CatalogView::default() }
}

pub(crate) fn request(sql: &str) -> QueryRequest {
    QueryRequest { sql: sql.to_owned(), ..QueryRequest::default() }
}

pub(crate) async fn batches(mut answer: Answer) -> Vec<RecordBatch> {
    let mut batches = Vec::new();
    while let Some(batch) = answer.next().await {
        batches.push(batch.unwrap());
    }
    batches
}

pub(crate) async fn lines(answer: Answer) -> Vec<String> {
    let text = pretty_format_batches(&batches(answer).await).unwrap().to_string();
    let cells =
        |line: &str| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>().join(" ");
    text.lines().filter(|line| line.starts_with('|')).skip(1).map(cells).collect()
}

pub(crate) fn stage(pipeline: &str, name: &str, columns: Vec<Field>, partition_by: &[&str]) -> TableStage {
    let statistics = columns.iter().map(|field| field.name().clone()).collect();
    TableStage {
        pipeline: pipeline.to_owned(),
        name: name.to_owned(),
        incarnation: 1,
        channel: format!("tailwater.channel.{pipeline}.{name}.1"),
        folder: format!("{pipeline}/{name}/1"),
        schema: Arc::new(Schema::new(columns)),
        partition_by: partition_by.iter().map(|&column| column.to_owned()).collect(),
        statistics,
        event_time: None,
    }
}

pub(crate) fn time() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

pub(crate) fn orders_stage() -> TableStage {
    let columns = vec![
        Field::new("order_id", DataType::Int64, true),
        Field::new("customer_id", DataType::Int64, true),
        Field::new("amount", DataType::Decimal128(12, 2), true),
        Field::new("country", DataType::Utf8, true),
        Field::new("note", DataType::Utf8, true),
        Field::new("ordered_at", time(), true),
    ];
    stage("shop", "orders", columns, &[])
}

pub(crate) fn customers_stage() -> TableStage {
    let columns = vec![Field::new("customer_id", DataType::Int64, true), Field::new("name", DataType::Utf8, true)];
    stage("shop", "customers", columns, &[])
}

pub(crate) const COUNTRIES: [Option<&str>; 4] = [Some("FR"), Some("ES"), None, Some("US")];

/// Orders with these ids: a customer in ten, cents equal to the id, a country in four, a minute apart.
pub(crate) fn orders(ids: std::ops::Range<i64>) -> RecordBatch {
    let all: Vec<i64> = ids.collect();
    let pick = |id: &i64| COUNTRIES[usize::try_from(*id).unwrap() % COUNTRIES.len()];
    let notes = all.iter().map(|id| format!(r#"{{"channel":"web","tags":["t{id}"],"visits":{id}}}"#));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from(all.clone())),
        Arc::new(all.iter().map(|id| Some(id % 10)).collect::<Int64Array>()),
        Arc::new(
            all.iter()
                .map(|id| Some(i128::from(*id)))
                .collect::<Decimal128Array>()
                .with_precision_and_scale(12, 2)
                .unwrap(),
        ),
        Arc::new(all.iter().map(pick).collect::<StringArray>()),
        Arc::new(notes.map(Some).collect::<StringArray>()),
        Arc::new(
            all.iter().map(|id| Some(id * 60_000_000)).collect::<TimestampMicrosecondArray>().with_timezone("UTC"),
        ),
    ];
    RecordBatch::try_new(orders_stage().schema, columns).unwrap()
}

pub(crate) fn customers(ids: std::ops::Range<i64>) -> RecordBatch {
    let names = ids.clone().map(|id| Some(format!("customer {id}"))).collect::<StringArray>();
    let columns: Vec<ArrayRef> = vec![Arc::new(Int64Array::from_iter_values(ids)), Arc::new(names)];
    RecordBatch::try_new(customers_stage().schema, columns).unwrap()
}

/// Commits rows as storage does: every batch a file, all in one version.
pub(crate) async fn write(lake: &Lake, stage: &TableStage, batches: &[RecordBatch]) -> u64 {
    let spec = spec_of(stage);
    let mut table = Table::open_or_create(lake, &spec).await.unwrap();
    let next = app_id::next_offset(&stage.channel, 0);
    let from = table.progress().txns.get(&next).copied().unwrap_or(0);
    let mut to = from;
    let mut files = Vec::new();
    for batch in batches {
        let mut writer = FileWriter::new(lake, &spec, WriterOptions::default()).unwrap();
        writer.write(&with_hidden(batch, &spec.schema, to)).unwrap();
        to += batch.num_rows() as i64;
        for file in writer.close().unwrap() {
            files.push(file.upload(lake).await.unwrap());
        }
    }
    let advances = vec![Advance { app_id: next, from, to }];
    match table.commit(Commit { files, advances, ..Commit::default() }).await.unwrap() {
        CommitOutcome::Committed { version, .. } => version,
        fenced @ CommitOutcome::Fenced { .. } => panic!("{fenced:?}"),
    }
}

fn spec_of(stage: &TableStage) -> TableSpec {
    let mut fields: Vec<_> = stage.schema.fields().iter().cloned().collect();
    fields.push(Arc::new(Field::new(lake::PARTITION_COLUMN, DataType::Int32, true)));
    fields.push(Arc::new(Field::new(lake::OFFSET_COLUMN, DataType::Int64, true)));
    TableSpec {
        folder: stage.folder.clone(),
        name: stage.name.clone(),
        schema: Arc::new(Schema::new(fields)),
        partition_by: stage.partition_by.clone(),
        statistics: stage.statistics.clone(),
    }
}

fn with_hidden(batch: &RecordBatch, schema: &SchemaRef, first_offset: i64) -> RecordBatch {
    let rows = batch.num_rows();
    let mut columns = batch.columns().to_vec();
    columns.push(Arc::new(Int32Array::from(vec![0; rows])));
    columns.push(Arc::new(Int64Array::from_iter_values(first_offset..first_offset + rows as i64)));
    RecordBatch::try_new(Arc::clone(schema), columns).unwrap()
}

/// A shop with 40 orders in four files of ten and ten customers.
pub(crate) async fn small_shop() -> Shop {
    let shop = Shop::new(vec![orders_stage(), customers_stage()]);
    let files = [orders(0..10), orders(10..20), orders(20..30), orders(30..40)];
    write(&shop.lake, &orders_stage(), &files).await;
    write(&shop.lake, &customers_stage(), &[customers(0..10)]).await;
    shop
}
