//! Ingestion: what users send → typed rows in channels.
//!
//! Reads user topics, decodes each message into rows of its source's columns, writes them to the source's channel and
//! what is not of that shape to its rejected channel, with its bytes. HTTP appends to the same topics first, so there
//! is one way in. The invariant is hop 1 of the delivery rule: same unit, same rows, same order.
//!
//! Deliberately absent: SQL, tables, and any state but checkpoints.

mod batcher;
pub mod decode;
pub mod http;
mod keys;
mod metrics;
mod reject;
mod sieve;
pub mod stage;
pub mod worker;

use std::sync::Arc;

use axum::Router;
use runtime::{
    config::Config,
    edges::Edges,
    memory::Memory,
    process::{self, Service},
    supervisor::{Settlements, StageContext, supervise},
    tasks::Stop,
};

pub use keys::{KEY_HEADER, RANGE_HEADER};

use crate::{http::Door, stage::IngestionStage};

/// The consumer group whose members share the partitions of user topics.
pub const GROUP: &str = "tailwater-ingestion";

/// The HTTP interface beside health and metrics.
pub fn router(config: &Config, edges: &Edges) -> Router {
    let door = Door::new(Arc::clone(&edges.log), edges.catalog.clone(), &config.ingestion, memory_of(config, edges));
    http::router(Arc::new(door))
}

/// One budget for requests and tasks of a process.
fn memory_of(config: &Config, edges: &Edges) -> Memory {
    edges.shared.get_or_make(|| Memory::of_process(config.ingestion.memory, &config.log))
}

/// Decodes user topics until asked to stop.
///
/// # Errors
/// When the group cannot be joined for a reason that waiting does not cure.
pub async fn run(config: Config, edges: Edges, stop: Stop) -> anyhow::Result<()> {
    metrics::describe();
    let settlements = Settlements::default();
    let context = StageContext {
        log: Arc::clone(&edges.log),
        group: GROUP.to_owned(),
        catalog: edges.catalog.clone(),
        health: edges.health.clone(),
        settlements: settlements.clone(),
    };
    let stage = IngestionStage::new(memory_of(&config, &edges), config, edges, settlements);
    supervise(Arc::new(stage), context, stop).await
}

/// Runs the service as a process, until a signal.
///
/// # Errors
/// What could not be reached at the start, or what made it stop.
pub async fn serve(config: Config) -> anyhow::Result<()> {
    let listen = config.ingestion.listen.clone();
    process::serve(config, Service { name: "ingestion", listen, listen_key: "ingestion.listen", router, run }).await
}
