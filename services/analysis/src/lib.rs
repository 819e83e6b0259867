//! Analysis: SQL over tables, and channels as they fill. It only reads.
//!
//! The invariants: an answer comes from one version of each table, named in the answer; every query is bounded in
//! time, memory and rows, and stops when nobody waits for it any more. Deliberately absent so far: the union with the
//! part of a channel that storage has not committed, other wire protocols, logins, queries over several machines.

mod admission;
pub mod api;
pub mod catalog;
mod error;
mod format;
mod joins;
pub mod ledger;
mod memory;
mod metrics;
mod nearest;
mod output;
pub mod query;
pub mod snapshots;
mod statement;
mod statistics;
pub mod table;
mod tail;
mod windows;

use std::sync::Arc;

use axum::Router;
use runtime::{
    catalog::CatalogReceiver,
    config::{AnalysisConfig, Config},
    edges::Edges,
    process::{self, Service},
    tasks::Stop,
};

pub use crate::{
    api::SNAPSHOT_HEADER,
    error::{ErrorKind, Place, QueryError},
    format::{Encoder, Ending, Format},
    query::{Answer, QueryLimits, QueryManager, QueryRequest},
    tail::Tails,
};

/// What the routes work with. Cheap to clone.
#[derive(Clone)]
pub struct AnalysisState {
    /// Queries and tables.
    pub queries: Arc<QueryManager>,
    /// Channels.
    pub log: Arc<dyn topics::Log>,
    /// Those who follow channels.
    pub tails: Tails,
    /// Closed when the process stops, which ends tails: they would otherwise never end.
    pub catalog: CatalogReceiver,
}

impl AnalysisState {
    /// The state of a service with these edges.
    ///
    /// # Panics
    /// When the query engine refuses its own functions: a defect that every test meets.
    pub fn new(config: &AnalysisConfig, edges: &Edges) -> Self {
        let queries = QueryManager::new(QueryLimits::from(config), snapshots::of_process(edges), edges.catalog.clone())
            .expect("the query engine is set up from constants");
        Self {
            queries: Arc::new(queries),
            log: Arc::clone(&edges.log),
            tails: Tails::default(),
            catalog: edges.catalog.clone(),
        }
    }
}

impl From<&AnalysisConfig> for QueryLimits {
    fn from(config: &AnalysisConfig) -> Self {
        Self {
            query_memory: config.query_memory.as_usize(),
            memory: config.memory.as_usize(),
            timeout: config.timeout.into(),
            max_rows: config.max_rows,
            max_concurrent_queries: config.max_concurrent_queries,
        }
    }
}

/// The HTTP interface beside health and metrics: queries, tables, tails and the ledger.
pub fn router(config: &Config, edges: &Edges) -> Router {
    api::router(AnalysisState::new(&config.analysis, edges)).merge(ledger::router(edges.clone()))
}

/// Says that queries are answered and keeps the ledger's metrics new, until asked to stop. Queries are answered in the
/// routes.
///
/// # Errors
/// None so far.
pub async fn run(_config: Config, edges: Edges, stop: Stop) -> anyhow::Result<()> {
    let check = edges.health.check("analysis");
    check.set_ready("answering queries");
    ledger::watch(edges, stop).await;
    check.set_waiting("stopping");
    Ok(())
}

/// Runs the service as a process: health and metrics beside it, until a signal.
///
/// # Errors
/// What could not be reached at the start, or what made it stop.
pub async fn serve(config: Config) -> anyhow::Result<()> {
    let listen = config.analysis.listen.clone();
    process::serve(config, Service { name: "analysis", listen, listen_key: "analysis.listen", router, run }).await
}
