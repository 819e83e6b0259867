//! Transformation: runs SQL over channels, and writes channels.
//!
//! One task per (view, branch, input partition): it reads the input channel with the one rule, runs the branch's kept
//! plan once per message, and writes what comes out under its own name. What it makes from a message never changes, so
//! two live owners, a lost checkpoint or a repeated message are all harmless.
//!
//! Deliberately absent: state across messages (aggregates, joins, windows); `apply` refuses such views.

mod metrics;
mod stage;
mod worker;

use std::sync::Arc;

use runtime::{
    config::Config,
    edges::Edges,
    memory::Memory,
    process::{self, Service},
    supervisor::{Settlements, StageContext, supervise},
    tasks::Stop,
};

pub use stage::TransformationStage;

/// The consumer group whose members share the work.
pub const GROUP: &str = "tailwater.transformation";

/// Runs the service until asked to stop, then drains.
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
    let memory = Memory::of_process(config.transformation.memory, &config.log);
    let stage = TransformationStage::new(memory, config, edges, settlements);
    supervise(Arc::new(stage), context, stop).await
}

/// Runs the service as a process: health and metrics beside it, until a signal.
///
/// # Errors
/// What could not be reached at the start, or what made it stop.
pub async fn serve(config: Config) -> anyhow::Result<()> {
    let listen = config.transformation.listen.clone();
    let service = Service {
        name: "transformation",
        listen,
        listen_key: "transformation.listen",
        router: |_, _| axum::Router::new(),
        run,
    };
    process::serve(config, service).await
}
