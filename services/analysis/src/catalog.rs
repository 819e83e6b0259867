//! What one query can name: pipelines as schemas, their tables as tables, each pinned to one version.
//!
//! The invariant: a name stands for the same version of its table wherever a query uses it, and nothing outside the
//! catalog can be named at all. A table that was declared and never written is empty. Deliberately absent: state
//! across queries (that is `snapshots`), and registering anything.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use datafusion::{
    arrow::datatypes::SchemaRef,
    catalog::{CatalogProvider, CatalogProviderList, SchemaProvider, Session, TableProvider},
    common::{DataFusionError, Result, plan_err},
    datasource::TableType,
    logical_expr::{Expr, TableProviderFilterPushDown},
    physical_plan::ExecutionPlan,
};
use futures::{StreamExt, TryStreamExt, stream};
use pipeline::{Graph, TableStage};
use tokio::sync::OnceCell;

use crate::{
    snapshots::{PinError, SnapshotCache},
    table::{Columns, Layout, MOST_BATCH_ROWS, PinnedFiles, SnapshotParquetTable},
};

/// The one catalog.
pub const CATALOG: &str = "tailwater";
/// `orders$positions` is `orders` with the columns that say where each row came from.
pub const POSITIONS_SUFFIX: &str = "$positions";
/// The schema unqualified names are looked up in when there are several pipelines. Not listed.
const SEARCH_SCHEMA: &str = "any_pipeline";
/// Tables of one query whose newest version is looked up at the same time.
const PINS_AT_ONCE: usize = 8;

/// The tables there are, in a shape that is quick to look names up in. Made once per catalog version.
#[derive(Debug, Default)]
pub struct Tables {
    pipelines: BTreeMap<String, BTreeMap<String, Declared>>,
}

/// A declared table.
#[derive(Clone, Debug)]
pub struct Declared {
    /// As the pipeline declares it.
    pub stage: Arc<TableStage>,
    /// As files hold it.
    pub layout: Arc<Layout>,
}

impl Tables {
    /// The tables of a graph. Of two incarnations of one name the newer one is the table.
    pub fn new(graph: &Graph) -> Self {
        let mut pipelines: BTreeMap<String, BTreeMap<String, Declared>> = BTreeMap::new();
        for stage in &graph.tables {
            let tables = pipelines.entry(stage.pipeline.clone()).or_default();
            if tables.get(&stage.name).is_some_and(|known| known.stage.incarnation > stage.incarnation) {
                continue;
            }
            let declared = Declared { layout: Arc::new(Layout::new(stage)), stage: Arc::new(stage.clone()) };
            tables.insert(stage.name.clone(), declared);
        }
        Self { pipelines }
    }

    /// One table.
    pub fn get(&self, pipeline: &str, name: &str) -> Option<&Declared> {
        self.pipelines.get(pipeline)?.get(name)
    }

    /// Every table, in name order.
    pub fn iter(&self) -> impl Iterator<Item = &Declared> {
        self.pipelines.values().flat_map(BTreeMap::values)
    }

    /// The folders of all tables.
    pub fn folders(&self) -> BTreeSet<&str> {
        self.iter().map(|declared| declared.stage.folder.as_str()).collect()
    }

    /// The schema that unqualified names are resolved in.
    pub(crate) fn default_schema(&self) -> &str {
        match self.pipelines.first_key_value() {
            Some((only, _)) if self.pipelines.len() == 1 => only,
            _ => SEARCH_SCHEMA,
        }
    }

    /// Pipelines that have a table of this name.
    fn owners(&self, name: &str) -> Vec<&str> {
        let bare = name.strip_suffix(POSITIONS_SUFFIX).unwrap_or(name);
        let has = |tables: &BTreeMap<String, Declared>| tables.contains_key(bare);
        self.pipelines.iter().filter(|(_, tables)| has(tables)).map(|(pipeline, _)| pipeline.as_str()).collect()
    }

    /// What the user may have meant by a table that is not there.
    pub(crate) fn hint_for(&self, wanted: &str) -> String {
        let bare = wanted.rsplit('.').next().unwrap_or(wanted);
        let owners = self.owners(bare);
        if let Some(first) = owners.first() {
            return format!("there is `{first}.{bare}`");
        }
        let names: Vec<String> =
            self.iter().flat_map(|table| [table.stage.name.clone(), qualified(&table.stage)]).collect();
        match crate::nearest::nearest(wanted, names.iter().map(String::as_str)) {
            Some(near) => format!("did you mean `{near}`?"),
            None if names.is_empty() => "no pipeline has been applied yet; see `tailwater apply`".to_owned(),
            None => "`SHOW TABLES` lists what there is".to_owned(),
        }
    }
}

/// `pipeline.table`.
pub(crate) fn qualified(stage: &TableStage) -> String {
    format!("{}.{}", stage.pipeline, stage.name)
}

/// The catalog of one query. See the module.
#[derive(Clone, Debug)]
pub(crate) struct QueryCatalog {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    tables: Arc<Tables>,
    cache: Arc<SnapshotCache>,
    /// One entry per table the query has named, by folder.
    pins: Mutex<BTreeMap<String, Arc<Pin>>>,
}

/// A table a query has named, and its version once that was looked up.
#[derive(Debug)]
struct Pin {
    declared: Declared,
    files: OnceCell<Option<PinnedFiles>>,
}

impl QueryCatalog {
    pub(crate) fn new(tables: Arc<Tables>, cache: Arc<SnapshotCache>) -> Self {
        Self { shared: Arc::new(Shared { tables, cache, pins: Mutex::default() }) }
    }

    /// Pins every table named so far, several at a time.
    pub(crate) async fn pin_all(&self) -> Result<(), PinError> {
        let pins: Vec<Arc<Pin>> = self.shared.pins().values().cloned().collect();
        stream::iter(pins)
            .map(|pin| async move { self.shared.files(&pin).await.map(drop) })
            .buffer_unordered(PINS_AT_ONCE)
            .try_collect()
            .await
    }

    /// The pinned versions by qualified name; `None` for a table that was never written.
    pub(crate) fn versions(&self) -> Vec<(String, Option<u64>)> {
        let pinned = |pin: &Arc<Pin>| {
            let files = pin.files.get()?;
            Some((qualified(&pin.declared.stage), files.as_ref().map(PinnedFiles::version)))
        };
        self.shared.pins().values().filter_map(pinned).collect()
    }

    /// How many rows may be decoded at a time, whichever of the pinned tables they are of.
    pub(crate) fn rows_at_once(&self) -> usize {
        let pins = self.shared.pins();
        let each = pins.values().filter_map(|pin| pin.files.get()?.as_ref().map(PinnedFiles::rows_at_once));
        each.min().unwrap_or(MOST_BATCH_ROWS)
    }
}

impl Shared {
    fn pins(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Arc<Pin>>> {
        self.pins.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pin(&self, declared: &Declared) -> Arc<Pin> {
        let fresh = || Arc::new(Pin { declared: declared.clone(), files: OnceCell::new() });
        Arc::clone(self.pins().entry(declared.stage.folder.clone()).or_insert_with(fresh))
    }

    async fn files<'a>(&self, pin: &'a Pin) -> Result<&'a Option<PinnedFiles>, PinError> {
        let look_up = || self.cache.pin(&pin.declared.stage.folder, &pin.declared.layout);
        pin.files.get_or_try_init(look_up).await
    }

    fn table(self: &Arc<Self>, pipeline: &str, name: &str) -> Option<Arc<dyn TableProvider>> {
        let (bare, columns) = match name.strip_suffix(POSITIONS_SUFFIX) {
            Some(bare) => (bare, Columns::WithPositions),
            None => (name, Columns::Declared),
        };
        let declared = self.tables.get(pipeline, bare)?;
        let schema = declared.layout.schema(columns);
        Some(Arc::new(NamedTable { shared: Arc::clone(self), pin: self.pin(declared), columns, schema }))
    }
}

impl CatalogProviderList for QueryCatalog {
    fn register_catalog(&self, _: String, _: Arc<dyn CatalogProvider>) -> Option<Arc<dyn CatalogProvider>> {
        None
    }

    fn catalog_names(&self) -> Vec<String> {
        vec![CATALOG.to_owned()]
    }

    fn catalog(&self, name: &str) -> Option<Arc<dyn CatalogProvider>> {
        (name == CATALOG).then(|| Arc::new(self.clone()) as _)
    }
}

impl CatalogProvider for QueryCatalog {
    fn schema_names(&self) -> Vec<String> {
        self.shared.tables.pipelines.keys().cloned().collect()
    }

    fn schema(&self, name: &str) -> Option<Arc<dyn SchemaProvider>> {
        if self.shared.tables.pipelines.contains_key(name) {
            return Some(Arc::new(PipelineSchema { shared: Arc::clone(&self.shared), pipeline: name.to_owned() }));
        }
        (name == SEARCH_SCHEMA).then(|| Arc::new(SearchSchema { shared: Arc::clone(&self.shared) }) as _)
    }
}

/// One pipeline.
#[derive(Debug)]
struct PipelineSchema {
    shared: Arc<Shared>,
    pipeline: String,
}

#[async_trait]
impl SchemaProvider for PipelineSchema {
    fn table_names(&self) -> Vec<String> {
        self.shared.tables.pipelines.get(&self.pipeline).into_iter().flat_map(BTreeMap::keys).cloned().collect()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        Ok(self.shared.table(&self.pipeline, name))
    }

    fn table_exist(&self, name: &str) -> bool {
        let bare = name.strip_suffix(POSITIONS_SUFFIX).unwrap_or(name);
        self.shared.tables.get(&self.pipeline, bare).is_some()
    }
}

/// All pipelines: a name is found here when exactly one has it.
#[derive(Debug)]
struct SearchSchema {
    shared: Arc<Shared>,
}

#[async_trait]
impl SchemaProvider for SearchSchema {
    fn table_names(&self) -> Vec<String> {
        Vec::new()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        match self.shared.tables.owners(name).as_slice() {
            [] => Ok(None),
            [only] => Ok(self.shared.table(only, name)),
            several => plan_err!(
                "table `{name}` is in several pipelines: write {}",
                several.iter().map(|pipeline| format!("`{pipeline}.{name}`")).collect::<Vec<_>>().join(" or ")
            ),
        }
    }

    fn table_exist(&self, name: &str) -> bool {
        !self.shared.tables.owners(name).is_empty()
    }
}

/// A table a query names. Its version is looked up before it is scanned, once.
#[derive(Debug)]
struct NamedTable {
    shared: Arc<Shared>,
    pin: Arc<Pin>,
    columns: Columns,
    schema: SchemaRef,
}

#[async_trait]
impl TableProvider for NamedTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let files = self.shared.files(&self.pin).await;
        let files = files.map_err(|error| DataFusionError::External(Box::new(error)))?.clone();
        let layout = Arc::clone(&self.pin.declared.layout);
        SnapshotParquetTable::new(layout, self.columns, files).scan(state, projection, filters, limit).await
    }
}
