//! Stages: what the services run for a catalog.
//!
//! Invariant: the same catalog gives the same graph, in the order of pipeline and name; every channel that a stage
//! reads is one that another stage of the graph writes. A pipeline has all of its stages or none, and one that has none
//! leaves the others as they are.
//! Deliberately absent: partitions and tasks, which depend on the log and on who is there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::logical_expr::LogicalPlan;

use crate::catalog::{Catalog, CatalogError, Definition};
use crate::names::{channel, folder, landing_topic, rejected_channel, rejected_table};
use crate::planner::{PlannedView, Relation};
use crate::problem::Problems;
use crate::resolve::{Resolved, resolve};
use crate::spec::{Format, SinkSpec, SourceSpec, Spec, Statement, ViewSpec};
use crate::wire::utc;

/// Everything there is to run.
#[derive(Debug, Clone, Default)]
pub struct Graph {
    pub sources: Vec<SourceStage>,
    pub views: Vec<ViewStage>,
    pub sinks: Vec<SinkStage>,
    pub tables: Vec<TableStage>,
    pub broken: Vec<BrokenPipeline>,
}

/// A pipeline that was right when it was applied and is not in this program. It has no stages until it is applied
/// again, or dropped, or another program takes over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokenPipeline {
    pub pipeline: String,
    pub problems: Problems,
}

/// Decodes a topic into a channel.
#[derive(Debug, Clone)]
pub struct SourceStage {
    pub pipeline: String,
    pub name: String,
    pub incarnation: u64,
    pub spec: SourceSpec,
    /// The declared columns; hidden columns of the channel are not among them.
    pub schema: SchemaRef,
    /// The user's topic, or the landing topic.
    pub topic: String,
    /// Whether `topic` is a landing topic, which Tailwater makes.
    pub landing: bool,
    pub channel: String,
    pub rejected: String,
}

/// Computes a channel from channels, row by row.
#[derive(Debug, Clone)]
pub struct ViewStage {
    pub pipeline: String,
    pub name: String,
    pub incarnation: u64,
    pub schema: SchemaRef,
    pub channel: String,
    pub rejected: String,
    pub branches: Vec<Branch>,
    /// Columns that the table's files are divided by.
    pub partition_by: Vec<String>,
    /// The column that is a copy of its inputs' event time in every branch.
    pub event_time: Option<String>,
    pub bounds: Vec<String>,
}

/// One way into a view. An input that the SQL names twice is two branches.
#[derive(Debug, Clone)]
pub struct Branch {
    /// Place among the view's branches, in the order of the SQL.
    pub index: usize,
    /// Name of the definition that is read.
    pub input: String,
    pub input_channel: String,
    pub input_schema: SchemaRef,
    /// Coerced, not optimized; exactly one scan, of a table named like the input; yields the view's columns.
    pub plan: LogicalPlan,
}

/// Publishes a channel to a user's topic.
#[derive(Debug, Clone)]
pub struct SinkStage {
    pub pipeline: String,
    pub name: String,
    pub incarnation: u64,
    pub input_channel: String,
    pub schema: SchemaRef,
    pub topic: String,
    pub format: Format,
}

/// Commits a channel to a table.
#[derive(Debug, Clone)]
pub struct TableStage {
    pub pipeline: String,
    /// Name of the table in SQL, for example `orders` or `orders_rejected`.
    pub name: String,
    pub incarnation: u64,
    pub channel: String,
    /// Under the root of the store.
    pub folder: String,
    /// The user's columns; hidden columns of the table are not among them.
    pub schema: SchemaRef,
    pub partition_by: Vec<String>,
    /// Empty: the store's own choice.
    pub statistics: Vec<String>,
    pub event_time: Option<String>,
}

/// Columns of every table of rejected input.
///
/// Shapes: `topic`, `partition` and `offset` say where the input was; `line` and `column` where in it the fault is,
/// if known; `bytes` is the input itself, cut into several rows counted by `part` where it is too long for one.
pub fn rejected_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("topic", DataType::Utf8, false),
        Field::new("partition", DataType::Int32, false),
        Field::new("offset", DataType::Int64, false),
        Field::new("line", DataType::Int32, true),
        Field::new("column", DataType::Utf8, true),
        Field::new("reason", DataType::Utf8, false),
        Field::new("bytes", DataType::Binary, false),
        Field::new("part", DataType::Int32, false),
        Field::new("produced_at", utc(), false),
    ]))
}

impl Graph {
    /// Compiles every pipeline of the catalog; those that cannot be are in `broken`.
    pub fn of(catalog: &Catalog) -> Graph {
        let mut graph = Graph::default();
        for pipeline in catalog.pipelines() {
            if let Err(problems) = compile_pipeline(catalog, pipeline, &mut graph) {
                graph.broken.push(BrokenPipeline { pipeline: pipeline.to_owned(), problems });
            }
        }
        graph
    }
}

/// [`Graph::of`] for whoever needs all pipelines.
///
/// Errors: a pipeline that was right when it was applied is not in this program.
pub fn compile(catalog: &Catalog) -> Result<Graph, CatalogError> {
    let graph = Graph::of(catalog);
    match graph.broken.first().cloned() {
        None => Ok(graph),
        Some(BrokenPipeline { pipeline, problems }) => {
            Err(CatalogError::DoesNotCompile { version: catalog.version(), pipeline, source: problems })
        }
    }
}

fn compile_pipeline(catalog: &Catalog, pipeline: &str, graph: &mut Graph) -> Result<(), Problems> {
    let unread = catalog.broken_of(pipeline).flat_map(|definition| definition.problems.iter().cloned());
    Problems::check(unread.collect())?;
    let definitions: Vec<&Definition> = catalog.of_pipeline(pipeline).collect();
    let statements: Vec<&Statement> = definitions.iter().map(|definition| &definition.statement).collect();
    let mut resolved = resolve(&statements, &BTreeSet::new());
    Problems::check(std::mem::take(&mut resolved.problems))?;
    PipelineCompiler::new(pipeline, &definitions, resolved).run(graph);
    Ok(())
}

struct PipelineCompiler<'a> {
    pipeline: &'a str,
    definitions: &'a [&'a Definition],
    incarnations: BTreeMap<&'a str, u64>,
    relations: BTreeMap<String, Relation>,
    views: BTreeMap<String, PlannedView>,
}

impl<'a> PipelineCompiler<'a> {
    fn new(pipeline: &'a str, definitions: &'a [&'a Definition], resolved: Resolved) -> PipelineCompiler<'a> {
        let incarnations =
            definitions.iter().map(|definition| (definition.name.as_str(), definition.incarnation)).collect();
        PipelineCompiler { pipeline, definitions, incarnations, relations: resolved.relations, views: resolved.views }
    }

    fn run(mut self, graph: &mut Graph) {
        for definition in self.definitions {
            match &definition.statement.spec {
                Spec::Source(source) => self.source(definition, source, graph),
                Spec::View(view) => self.view(definition, view, graph),
                Spec::Sink(sink) => self.sink(definition, sink, graph),
            }
        }
    }

    fn channel_of(&self, input: &str) -> String {
        let incarnation = self.incarnations.get(input).copied().unwrap_or_default();
        channel(self.pipeline, input, incarnation)
    }

    fn schema_of(&self, name: &str) -> SchemaRef {
        self.relations.get(name).map_or_else(|| Arc::new(Schema::empty()), |relation| Arc::clone(&relation.schema))
    }

    fn source(&self, definition: &Definition, source: &SourceSpec, graph: &mut Graph) {
        let name = &definition.name;
        let event_time = source.watermark.as_ref().map(|watermark| watermark.column.clone());
        let options = &source.options;
        self.tables(definition, &options.partition_by, &options.statistics, event_time, graph);
        graph.sources.push(SourceStage {
            pipeline: self.pipeline.to_owned(),
            name: name.clone(),
            incarnation: definition.incarnation,
            spec: source.clone(),
            schema: self.schema_of(name),
            topic: source.topic.clone().unwrap_or_else(|| landing_topic(self.pipeline, name)),
            landing: source.topic.is_none(),
            channel: channel(self.pipeline, name, definition.incarnation),
            rejected: rejected_channel(self.pipeline, name, definition.incarnation),
        });
    }

    fn view(&mut self, definition: &Definition, view: &ViewSpec, graph: &mut Graph) {
        let name = &definition.name;
        let Some(planned) = self.views.remove(name) else { return };
        let event_time = planned.relation.event_time.clone();
        let options = &view.options;
        self.tables(definition, &options.partition_by, &options.statistics, event_time.clone(), graph);
        let branches = planned.branches.into_iter().enumerate().map(|(index, branch)| Branch {
            index,
            input_channel: self.channel_of(&branch.input),
            input_schema: self.schema_of(&branch.input),
            input: branch.input,
            plan: branch.plan,
        });
        graph.views.push(ViewStage {
            pipeline: self.pipeline.to_owned(),
            name: name.clone(),
            incarnation: definition.incarnation,
            schema: planned.relation.schema,
            channel: channel(self.pipeline, name, definition.incarnation),
            rejected: rejected_channel(self.pipeline, name, definition.incarnation),
            branches: branches.collect(),
            partition_by: options.partition_by.clone(),
            event_time,
            bounds: options.bounds.clone(),
        });
    }

    fn sink(&self, definition: &Definition, sink: &SinkSpec, graph: &mut Graph) {
        graph.sinks.push(SinkStage {
            pipeline: self.pipeline.to_owned(),
            name: definition.name.clone(),
            incarnation: definition.incarnation,
            input_channel: self.channel_of(&sink.from),
            schema: self.schema_of(&sink.from),
            topic: sink.topic.clone(),
            format: sink.format,
        });
    }

    /// The table of a definition and the table of what it rejected.
    fn tables(
        &self,
        definition: &Definition,
        partition_by: &[String],
        statistics: &[String],
        event_time: Option<String>,
        graph: &mut Graph,
    ) {
        let Definition { name, incarnation, .. } = definition;
        graph.tables.push(TableStage {
            pipeline: self.pipeline.to_owned(),
            name: name.clone(),
            incarnation: *incarnation,
            channel: channel(self.pipeline, name, *incarnation),
            folder: folder(self.pipeline, name, *incarnation),
            schema: self.schema_of(name),
            partition_by: partition_by.to_vec(),
            statistics: statistics.to_vec(),
            event_time,
        });
        let rejected = rejected_table(name);
        graph.tables.push(TableStage {
            pipeline: self.pipeline.to_owned(),
            incarnation: *incarnation,
            channel: rejected_channel(self.pipeline, name, *incarnation),
            folder: folder(self.pipeline, &rejected, *incarnation),
            name: rejected,
            schema: rejected_schema(),
            partition_by: Vec::new(),
            statistics: Vec::new(),
            event_time: None,
        });
    }
}

#[cfg(test)]
mod tests;
