//! Storage: commits channels to Delta tables, rows and positions in one compare-and-swap.
//!
//! One task per table and set of assigned partitions. It starts at the offset in the table, keeps the unbroken prefix
//! by the one rule, and every commit says both which files came and how far each channel partition and each writer in
//! it has got. A commit that another owner overtook is dropped and read again from the table: two owners are harmless.
//!
//! Deliberately absent: compaction, expiry and vacuum, which come with table upkeep.

mod buffer;
mod metrics;
mod progress;
mod stage;
mod upkeep;
mod worker;

use std::sync::Arc;

use runtime::{
    config::Config,
    edges::Edges,
    process::{self, Service},
    supervisor::{Settlements, StageContext, supervise},
    tasks::Stop,
};

pub use stage::StorageStage;

/// The consumer group whose members share the work.
pub const GROUP: &str = "tailwater.storage";

/// Runs the service until asked to stop, then commits what it holds.
///
/// # Errors
/// When the group can never be joined.
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
    let stage = StorageStage::new(config, edges, settlements);
    supervise(Arc::new(stage), context, stop).await
}

/// Runs the service as a process: health and metrics beside it, until a signal.
///
/// # Errors
/// What could not be reached at the start, or what made it stop.
pub async fn serve(config: Config) -> anyhow::Result<()> {
    let listen = config.storage.listen.clone();
    let service =
        Service { name: "storage", listen, listen_key: "storage.listen", router: |_, _| axum::Router::new(), run };
    process::serve(config, service).await
}
