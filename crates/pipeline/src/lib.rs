//! What a pipeline is: the SQL dialect, definitions, the catalog of all pipelines, and the stages they compile to.
//!
//! Invariant: pure. Text and records go in, values and problems come out; the same input gives the same output.
//! Deliberately absent: reading files, the catalog topic, clocks, and the execution of anything: see `runtime` and
//! `engine`.

mod catalog;
mod change;
mod columns;
pub mod depth;
mod exact;
mod graph;
mod inspect;
mod json_numbers;
mod lex;
mod names;
mod near;
mod parse;
mod planner;
mod problem;
mod resolve;
mod session;
mod spec;
#[cfg(test)]
mod testing;
mod wire;

pub use catalog::{Catalog, CatalogError, Change, Definition, Replay};
pub use change::{ChangePlan, Changed, Permissions, Reason, Refused, plan_change};
pub use graph::{
    Branch, BrokenPipeline, Graph, SinkStage, SourceStage, TableStage, ViewStage, compile, rejected_schema,
};
pub use names::{CATALOG_TOPIC, channel, folder, landing_topic, rejected_channel, rejected_table};
pub use parse::parse;
pub use problem::{Problem, Problems};
pub use session::{add_dialect, session_state};
pub use spec::{
    Column, Format, SinkSpec, SourceOptions, SourceSpec, SourceText, Spec, Statement, UnknownColumns, ViewOptions,
    ViewSpec, Watermark,
};
