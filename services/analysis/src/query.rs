//! The one way a query runs, whichever door it came through: admit, plan, pin, execute, account.
//!
//! The invariants: a query only reads, and only tables of the catalog; it sees one version of each, fixed before its
//! first row; it holds a slot, memory within two limits and a deadline, and gives all three back when its answer is
//! complete, fails or is dropped. Deliberately absent: formats and HTTP (`format`, `api`).
//!
//! Nothing spills to disk (see `memory`), so a query that needs more than its limit ends with an error, never a hang.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arrow::{
    array::RecordBatch,
    datatypes::{DataType, SchemaRef},
};
use datafusion::{
    common::{DataFusionError, Result as DataFusionResult, config::Dialect},
    execution::{
        SendableRecordBatchStream, SessionState, SessionStateBuilder,
        context::SQLOptions,
        disk_manager::{DiskManagerBuilder, DiskManagerMode},
        object_store::ObjectStoreRegistry,
        runtime_env::RuntimeEnvBuilder,
    },
    logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder},
    physical_optimizer::{PhysicalOptimizerRule, ensure_coop::EnsureCooperative},
    physical_plan::execute_stream,
    prelude::SessionConfig,
    sql::{
        parser::Statement,
        sqlparser::{dialect::GenericDialect, tokenizer::Tokenizer},
    },
};
use futures::StreamExt;
use object_store::ObjectStore;
use pipeline::depth;
use runtime::catalog::{CatalogReceiver, CatalogView};
use tokio::time::{Instant, timeout_at};
use url::Url;

use crate::{
    admission::{Admission, Slot},
    catalog::{CATALOG, Declared, QueryCatalog, Tables},
    error::{ErrorKind, QueryError},
    joins::{LettingGo, Wanted},
    memory::{ProcessPool, QueryPool},
    metrics,
    output::{CHUNK_ROWS, chunks, plain_batch, plain_schema},
    snapshots::SnapshotCache,
    statement::{bind, check_reads_only, refused},
    table::PinnedFiles,
    windows::{AccountingForWindows, Held},
};

/// Longer statements are a mistake, or an attack on the parser.
pub const MAX_SQL_BYTES: usize = 1 << 20;

/// What queries may use. See `[analysis]` in the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueryLimits {
    /// Bytes one query may reserve.
    pub query_memory: usize,
    /// Bytes all queries together may reserve.
    pub memory: usize,
    /// Longest time from arrival to the last row; a request may ask for less.
    pub timeout: Duration,
    /// Most rows of one answer; a request may ask for fewer.
    pub max_rows: u64,
    /// Most queries at a time.
    pub max_concurrent_queries: usize,
}

/// A question.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct QueryRequest {
    /// One statement.
    pub sql: String,
    /// Values of `$1`, `$2`, …
    pub params: Vec<serde_json::Value>,
    /// Most rows wanted; more is an error after that many.
    pub max_rows: Option<u64>,
    /// Longest time wanted.
    pub timeout: Option<Duration>,
}

/// An answer whose rows are still coming.
#[derive(Debug)]
pub struct Answer {
    /// Of every batch.
    pub schema: SchemaRef,
    /// The version of each table read, by qualified name; `None` for one that was never written.
    pub versions: Vec<(String, Option<u64>)>,
    first: Option<RecordBatch>,
    /// `None` once the answer is complete or has failed.
    running: Option<Running>,
}

/// Dropped in this order: the work stops before the slot is free.
#[derive(Debug)]
struct Running {
    execution: Execution,
    account: Account,
}

impl Answer {
    /// The next batch, never empty. After an error there is nothing more.
    ///
    /// # Errors
    /// The query failed on the way, ran out of time, or has more rows than asked for.
    pub async fn next(&mut self) -> Option<Result<RecordBatch, QueryError>> {
        let running = self.running.as_mut()?;
        let next = match self.first.take() {
            Some(first) => Ok(Some(first)),
            None => running.execution.next().await,
        };
        match next {
            Ok(Some(batch)) => {
                running.account.rows += batch.num_rows() as u64;
                Some(Ok(batch))
            }
            Ok(None) => {
                self.complete();
                None
            }
            Err(error) => Some(Err(self.fail(error))),
        }
    }

    /// Waits for something outside of the query, such as room for its next rows, but no longer than the query may take.
    /// After an error the query has let go of all it held, as after one of [`next`](Self::next).
    ///
    /// # Errors
    /// The query ran out of time.
    pub(crate) async fn within_its_time<T>(&mut self, work: impl Future<Output = T>) -> Result<T, QueryError> {
        let Some(deadline) = self.running.as_ref().map(|running| running.execution.deadline) else {
            return Ok(work.await);
        };
        deadline.bound(work).await.map_err(|error| self.fail(error))
    }

    fn fail(&mut self, error: QueryError) -> QueryError {
        self.first = None;
        let Some(mut running) = self.running.take() else { return error };
        running.account.close_with(error)
    }

    fn complete(&mut self) {
        if let Some(running) = &mut self.running {
            running.account.outcome = "ok";
        }
        self.running = None;
    }
}

/// What is written down of a query, when it ends in whatever way.
#[derive(Debug)]
struct Account {
    started: Instant,
    rows: u64,
    outcome: &'static str,
    _slot: Slot,
}

impl Account {
    fn open(started: Instant, slot: Slot) -> Self {
        metrics::query_started();
        Self { started, rows: 0, outcome: "cancelled", _slot: slot }
    }

    fn close_with(&mut self, error: QueryError) -> QueryError {
        self.outcome = error.kind.outcome();
        error
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        let seconds = self.started.elapsed().as_secs_f64();
        metrics::query_ended(self.outcome, seconds, self.rows);
        tracing::debug!(outcome = self.outcome, seconds, rows = self.rows, "query ended");
    }
}

/// The query manager. See the module.
#[derive(Debug)]
pub struct QueryManager {
    limits: QueryLimits,
    cache: Arc<SnapshotCache>,
    catalog: CatalogReceiver,
    tables: Mutex<Known>,
    admission: Admission,
    process: Arc<ProcessPool>,
    base: SessionState,
    cores: usize,
}

/// The tables of the catalog version they were made from.
#[derive(Debug)]
struct Known {
    view: Arc<CatalogView>,
    tables: Arc<Tables>,
}

impl QueryManager {
    /// A manager over tables and a catalog that may change.
    ///
    /// # Errors
    /// When the query engine cannot be set up: a defect.
    pub fn new(limits: QueryLimits, cache: Arc<SnapshotCache>, catalog: CatalogReceiver) -> DataFusionResult<Self> {
        metrics::describe(limits.max_concurrent_queries);
        let view = Arc::clone(&catalog.borrow());
        let tables = Arc::new(Tables::new(&view.graph));
        Ok(Self {
            admission: Admission::new(limits.max_concurrent_queries),
            process: Arc::new(ProcessPool::new(limits.memory)),
            base: base_session(cache.lake().store(), &limits)?,
            cache,
            tables: Mutex::new(Known { view, tables }),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            catalog,
            limits,
        })
    }

    /// The tables of the newest catalog version.
    pub fn tables(&self) -> Arc<Tables> {
        let view = Arc::clone(&self.catalog.borrow());
        let mut known = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(&known.view, &view) {
            known.tables = Arc::new(Tables::new(&view.graph));
            known.view = view;
            let folders = known.tables.folders();
            self.cache.retain(|folder| folders.contains(folder));
        }
        Arc::clone(&known.tables)
    }

    /// A table's files at its newest version.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn pin(&self, table: &Declared) -> Result<Option<PinnedFiles>, QueryError> {
        let pinned = self.cache.pin(&table.stage.folder, &table.layout).await;
        pinned.map_err(|error| QueryError::from_pin(&error))
    }

    /// Queries that hold a slot.
    pub fn running(&self) -> usize {
        self.admission.running()
    }

    /// Bytes reserved by running queries.
    pub fn reserved_bytes(&self) -> usize {
        self.process.reserved()
    }

    /// Runs a query up to its first rows.
    ///
    /// **Cancel safety**: dropping the future or the answer stops the work and frees what it held.
    ///
    /// # Errors
    /// [`QueryError`], with a place and a hint where there is one.
    pub async fn run(&self, request: QueryRequest) -> Result<Answer, QueryError> {
        if request.sql.len() > MAX_SQL_BYTES {
            let message = format!("the statement has {} bytes, {MAX_SQL_BYTES} are allowed", request.sql.len());
            return Err(QueryError::new(ErrorKind::TooLarge, message));
        }
        let timeout = request.timeout.map_or(self.limits.timeout, |wanted| wanted.min(self.limits.timeout));
        let started = Instant::now();
        let deadline = Deadline { at: started + timeout, timeout };
        let slot = self.admission.enter(deadline.at).await?;
        let mut account = Account::open(started, slot);
        let begun = Box::pin(self.begin(request, deadline)).await;
        let (mut execution, versions) = begun.map_err(|error| account.close_with(error))?;
        let schema = Arc::clone(&execution.schema);
        let first = execution.next().await.map_err(|error| account.close_with(error))?;
        let mut answer = Answer { schema, versions, first, running: Some(Running { execution, account }) };
        if answer.first.is_none() {
            answer.complete();
        }
        Ok(answer)
    }

    async fn begin(
        &self,
        request: QueryRequest,
        deadline: Deadline,
    ) -> Result<(Execution, Vec<(String, Option<u64>)>), QueryError> {
        let tables = self.tables();
        let catalog = QueryCatalog::new(Arc::clone(&tables), Arc::clone(&self.cache));
        let pool = Arc::new(QueryPool::new(self.limits.query_memory, Arc::clone(&self.process)));
        let bounds = Bounds { pool, wanted: Wanted::until(deadline.at), held: Arc::default() };
        let explain = Explain { tables: Arc::clone(&tables), pool: Arc::clone(&bounds.pool) };
        let mut state = self.session(&catalog, &tables, &bounds).map_err(|error| explain.error(&error))?;
        state.mark_start_execution();
        let planning = plan(&state, &catalog, &explain, &request);
        let logical = deadline.bound(planning).await??;
        let config = state.config().clone().with_batch_size(catalog.rows_at_once());
        *state.config_mut() = config;
        let physical = deadline.bound(state.create_physical_plan(&logical)).await?;
        let physical = physical.map_err(|error| explain.error(&error))?;
        let schema = plain_schema(&physical.schema());
        let stream = execute_stream(physical, state.task_ctx()).map_err(|error| explain.error(&error))?;
        let left = request.max_rows.map_or(self.limits.max_rows, |wanted| wanted.min(self.limits.max_rows));
        let execution = Execution {
            _bounds: bounds,
            stream,
            schema,
            explain,
            deadline,
            left,
            max_rows: left,
            rest: None,
            chunks: VecDeque::new(),
            cut: false,
        };
        Ok((execution, catalog.versions()))
    }

    fn session(&self, catalog: &QueryCatalog, tables: &Tables, bounds: &Bounds) -> DataFusionResult<SessionState> {
        let config = self
            .base
            .config()
            .clone()
            .with_default_catalog_and_schema(CATALOG, tables.default_schema())
            .with_target_partitions(self.cores.div_ceil(self.running().max(1)));
        let pool = Arc::clone(&bounds.pool);
        let runtime =
            RuntimeEnvBuilder::from_runtime_env(self.base.runtime_env()).with_memory_pool(pool).build_arc()?;
        Ok(SessionStateBuilder::new_from_existing(self.base.clone())
            .with_config(config)
            .with_runtime_env(runtime)
            .with_catalog_list(Arc::new(catalog.clone()))
            .with_physical_optimizer_rules(bounds.add_to(self.base.physical_optimizers()))
            .build())
    }
}

/// What a query's plan is made to keep to. Dropped, it ends what still runs of the query.
#[derive(Debug)]
struct Bounds {
    pool: Arc<QueryPool>,
    wanted: Arc<Wanted>,
    held: Arc<Held>,
}

type Rule = Arc<dyn PhysicalOptimizerRule + Send + Sync>;

impl Bounds {
    /// DataFusion's rules and ours. Ours come right behind the one that has scans give their thread back, which would
    /// leave them as they are below a join that gives back its own; and before those that check the whole plan.
    fn add_to(&self, rules: &[Rule]) -> Vec<Rule> {
        let scans = EnsureCooperative::new();
        let place = rules.iter().position(|rule| rule.name() == scans.name()).map_or(rules.len(), |place| place + 1);
        let mut rules = rules.to_vec();
        rules.insert(place, Arc::new(LettingGo::new(Arc::clone(&self.wanted))));
        rules.insert(place, Arc::new(AccountingForWindows::new(Arc::clone(&self.held))));
        rules
    }
}

impl Drop for Bounds {
    fn drop(&mut self) {
        self.wanted.give_up();
    }
}

/// What all sessions share: functions, settings, footers read before, and the one store.
fn base_session(store: Arc<dyn ObjectStore>, limits: &QueryLimits) -> DataFusionResult<SessionState> {
    let mut config = SessionConfig::new()
        .with_information_schema(true)
        .with_create_default_catalog_and_schema(false)
        .with_default_catalog_and_schema(CATALOG, "");
    config.options_mut().sql_parser.collect_spans = true;
    let runtime = RuntimeEnvBuilder::new()
        .with_object_store_registry(Arc::new(OneStore(store)))
        .with_disk_manager_builder(DiskManagerBuilder::default().with_mode(DiskManagerMode::Disabled))
        // Footers of immutable files; an eighth of what queries may use, outside of it.
        .with_metadata_cache_limit(limits.memory / 8)
        .build_arc()?;
    let mut state =
        SessionStateBuilder::new().with_config(config).with_runtime_env(runtime).with_default_features().build();
    pipeline::add_dialect(&mut state)?;
    Ok(state)
}

/// A registry with the table store and nothing else: no SQL reaches local files or another bucket.
#[derive(Debug)]
struct OneStore(Arc<dyn ObjectStore>);

impl ObjectStoreRegistry for OneStore {
    fn register_store(&self, _: &Url, _: Arc<dyn ObjectStore>) -> Option<Arc<dyn ObjectStore>> {
        None
    }

    fn get_store(&self, url: &Url) -> DataFusionResult<Arc<dyn ObjectStore>> {
        if crate::table::STORE_URL.starts_with(&format!("{}://", url.scheme())) {
            return Ok(Arc::clone(&self.0));
        }
        Err(DataFusionError::Plan(format!("`{url}` is outside of the table store")))
    }
}

async fn plan(
    state: &SessionState,
    catalog: &QueryCatalog,
    explain: &Explain,
    request: &QueryRequest,
) -> Result<LogicalPlan, QueryError> {
    let statement = parse(state, explain, &request.sql)?;
    check_reads_only(&statement)?;
    check_depth(&statement)?;
    let plan = state.statement_to_plan(statement).await.map_err(|error| explain.error(&error))?;
    let options = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
    options.verify_plan(&plan).map_err(|_| refused("SELECT INTO"))?;
    let plan = readable(bind(plan, &request.params)?).map_err(|error| explain.error(&error))?;
    catalog.pin_all().await.map_err(|error| QueryError::from_pin(&error))?;
    Ok(plan)
}

fn parse(state: &SessionState, explain: &Explain, sql: &str) -> Result<Statement, QueryError> {
    // What does not even fall into tokens is explained by the parser, which makes no tree of it.
    if let Ok(tokens) = Tokenizer::new(&GenericDialect {}, sql).tokenize_with_location() {
        depth::check_tokens(&tokens)?;
    }
    state.sql_to_statement(sql, &Dialect::Generic).map_err(|error| match error.find_root() {
        DataFusionError::NotImplemented(_) => {
            QueryError::new(ErrorKind::Invalid, "there are several statements").with_hint("send one at a time")
        }
        DataFusionError::Plan(_) => QueryError::new(ErrorKind::Invalid, "there is no statement"),
        _ => explain.error(&error),
    })
}

fn check_depth(statement: &Statement) -> Result<(), QueryError> {
    match statement {
        Statement::Statement(inner) => Ok(depth::check_tree(inner)?),
        Statement::Explain(explain) => check_depth(&explain.statement),
        // Never planned.
        Statement::CreateExternalTable(_) | Statement::CopyTo(_) | Statement::Reset(_) => Ok(()),
    }
}

/// Turns JSON values of unknown type, which no format can show, into their text.
fn readable(plan: LogicalPlan) -> DataFusionResult<LogicalPlan> {
    let is_union = |data_type: &DataType| matches!(data_type, DataType::Union(_, _));
    if !plan.schema().fields().iter().any(|field| is_union(field.data_type())) {
        return Ok(plan);
    }
    let to_text = datafusion_functions_json::udfs::json_union_to_text_udf();
    let columns: Vec<Expr> = plan
        .schema()
        .iter()
        .map(|(qualifier, field)| {
            let column = Expr::from((qualifier, field));
            if is_union(field.data_type()) { to_text.call(vec![column]).alias(field.name()) } else { column }
        })
        .collect();
    LogicalPlanBuilder::from(plan).project(columns)?.build()
}

/// What it takes to explain an error to the user.
#[derive(Debug)]
struct Explain {
    tables: Arc<Tables>,
    pool: Arc<QueryPool>,
}

impl Explain {
    fn error(&self, error: &DataFusionError) -> QueryError {
        let explained = QueryError::from_datafusion(error, self.pool.refusal(), &self.tables);
        if explained.kind == ErrorKind::Internal {
            tracing::error!(%error, "query failed in a way it should not");
        }
        explained
    }
}

/// When a query must be done.
#[derive(Clone, Copy, Debug)]
struct Deadline {
    at: Instant,
    timeout: Duration,
}

impl Deadline {
    async fn bound<T>(&self, work: impl Future<Output = T>) -> Result<T, QueryError> {
        // Work that is always ready would never meet the timer.
        if !self.is_over()
            && let Ok(done) = timeout_at(self.at, work).await
        {
            return Ok(done);
        }
        Err(self.error())
    }

    fn is_over(&self) -> bool {
        Instant::now() >= self.at
    }

    fn error(&self) -> QueryError {
        let message = format!("query took longer than {} ms", self.timeout.as_millis());
        QueryError::new(ErrorKind::Timeout, message)
            .with_hint("give it more time with `timeout_ms`, up to `analysis.timeout`, or have it read less")
    }
}

/// A running plan within its bounds.
struct Execution {
    /// Before the stream: whoever works for it elsewhere is told before it is gone.
    _bounds: Bounds,
    stream: SendableRecordBatchStream,
    schema: SchemaRef,
    explain: Explain,
    deadline: Deadline,
    left: u64,
    max_rows: u64,
    /// What is left of the plan's last batch.
    rest: Option<RecordBatch>,
    /// What is made of it and ready.
    chunks: VecDeque<RecordBatch>,
    /// Rows were cut off already.
    cut: bool,
}

impl std::fmt::Debug for Execution {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Execution").field("deadline", &self.deadline).field("left", &self.left).finish()
    }
}

impl Execution {
    /// The next rows, a chunk at a time; cut at the row limit, after which only an error comes.
    async fn next(&mut self) -> Result<Option<RecordBatch>, QueryError> {
        while self.chunks.is_empty() {
            if self.cut {
                return Err(self.over_the_row_limit());
            }
            let Some(rows) = self.rows().await? else { return Ok(None) };
            self.hand_out(&rows)?;
        }
        // Chunks at hand wait for nothing, so they would never meet the timer.
        if self.deadline.is_over() {
            return Err(self.deadline.error());
        }
        Ok(self.chunks.pop_front())
    }

    /// Some rows of the plan, no more than a chunk may have.
    async fn rows(&mut self) -> Result<Option<RecordBatch>, QueryError> {
        let next = match self.rest.take() {
            Some(rest) => Some(rest),
            None => self.batch().await?,
        };
        let Some(batch) = next else { return Ok(None) };
        let taken = batch.num_rows().min(CHUNK_ROWS);
        if taken < batch.num_rows() {
            self.rest = Some(batch.slice(taken, batch.num_rows() - taken));
        }
        Ok(Some(batch.slice(0, taken)))
    }

    /// The next batch with rows.
    async fn batch(&mut self) -> Result<Option<RecordBatch>, QueryError> {
        loop {
            match self.deadline.bound(self.stream.next()).await? {
                None => return Ok(None),
                // Joins end with an error of their own when time is over.
                Some(Err(_)) if self.deadline.is_over() => return Err(self.deadline.error()),
                Some(Err(error)) => return Err(self.explain.error(&error)),
                Some(Ok(batch)) if batch.num_rows() == 0 => {}
                Some(Ok(batch)) => return Ok(Some(batch)),
            }
        }
    }

    fn hand_out(&mut self, rows: &RecordBatch) -> Result<(), QueryError> {
        if self.left == 0 {
            return Err(self.over_the_row_limit());
        }
        let taken = rows.num_rows().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        self.left -= taken as u64;
        self.cut = taken < rows.num_rows();
        let plain = plain_batch(&rows.slice(0, taken), &self.schema);
        let plain = plain.map_err(|error| self.explain.error(&error.into()))?;
        self.chunks.extend(chunks(&plain));
        Ok(())
    }

    fn over_the_row_limit(&self) -> QueryError {
        QueryError::new(ErrorKind::TooLarge, format!("the answer has more than {} rows", self.max_rows))
            .with_hint("add a LIMIT, or raise `max_rows`, up to `analysis.max_rows`")
    }
}
