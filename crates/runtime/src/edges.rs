//! The edges of a process: the log, the lake, the catalog and the health registry, built from the config.
//!
//! Everything a service touches outside itself comes in through [`Edges`], so tests hand in memory implementations.

use std::{
    any::{Any, TypeId},
    collections::HashMap,
    sync::Arc,
};

use anyhow::Context as _;
use batch::Compression;
use lake::{Lake, StoreConfig};
use parking_lot::Mutex;
use tokio::sync::watch;
use topics::{
    Log, TopicError,
    embedded::{EmbeddedLog, EmbeddedOptions},
    kafka::{KafkaConfig, KafkaLog},
};

use crate::{
    admin::Health,
    catalog::{self, CatalogReceiver, CatalogView},
    config::{Config, LogKind},
    retry::TaskError,
    tasks::{Fate, Stop, TaskGroup},
};

/// What a service is given to work with. Cheap to clone.
#[derive(Clone)]
pub struct Edges {
    /// Topics.
    pub log: Arc<dyn Log>,
    /// Tables and checkpoints.
    pub lake: Lake,
    /// The newest catalog.
    pub catalog: CatalogReceiver,
    /// Where readiness is reported.
    pub health: Health,
    /// How payloads are compressed: worth it over a network, not on the way to a local disk.
    pub compression: Compression,
    /// What the parts of a service have in common in this process.
    pub shared: Shared,
}

/// One value of each type, for all who hold these edges: the HTTP interface and the work of a service meet here.
#[derive(Clone, Default)]
pub struct Shared(Arc<Mutex<HashMap<TypeId, Box<dyn Any + Send>>>>);

impl Shared {
    /// The value of this type; whoever asks first makes it.
    pub fn get_or_make<T: Clone + Send + 'static>(&self, make: impl FnOnce() -> T) -> T {
        let mut values = self.0.lock();
        if let Some(made) = values.get(&TypeId::of::<T>()).and_then(|value| value.downcast_ref::<T>()) {
            return made.clone();
        }
        let made = make();
        values.insert(TypeId::of::<T>(), Box::new(made.clone()));
        made
    }
}

impl Edges {
    /// Edges over a log and a lake that are there already; follows the catalog in `group`.
    pub fn new(log: Arc<dyn Log>, lake: Lake, compression: Compression, group: &TaskGroup) -> Self {
        Self::with_health(log, lake, compression, Health::with_stop(group.stop()), group)
    }

    /// As [`Edges::new`], reporting to a registry that is served already.
    pub fn with_health(
        log: Arc<dyn Log>,
        lake: Lake,
        compression: Compression,
        health: Health,
        group: &TaskGroup,
    ) -> Self {
        let (views, catalog) = watch::channel(Arc::new(CatalogView::default()));
        let check = health.check("catalog");
        check.set_waiting("not replayed yet");
        let follow = catalog::follow(Arc::clone(&log), views, check, group.stop());
        group.spawn("catalog", Fate::Critical, follow);
        group.spawn("log", Fate::Critical, until_broken(Arc::clone(&log), group.stop()));
        Self { log, lake, catalog, health, compression, shared: Shared::default() }
    }

    /// Opens the log and the store a config names, and proves that the store can be committed to.
    ///
    /// # Errors
    /// What could not be reached, with the fix in the text.
    pub async fn open(config: &Config, service: &str, health: Health, group: &TaskGroup) -> anyhow::Result<Self> {
        let lake = open_lake(config)?;
        lake.probe().await.map_err(TaskError::from)?;
        let log = open_log(config, service).await.map_err(TaskError::from)?;
        let compression = match config.log.kind {
            LogKind::Kafka => Compression::Lz4,
            LogKind::Embedded => Compression::None,
        };
        Ok(Self::with_health(log, lake, compression, health, group))
    }
}

/// A log that must be opened anew ends the process, and whoever starts it again opens it.
async fn until_broken(log: Arc<dyn Log>, stop: Stop) -> anyhow::Result<()> {
    tokio::select! {
        () = stop.stopped() => Ok(()),
        reason = log.broken() => Err(TaskError::retry(reason).into()),
    }
}

/// The lake a config names; nothing is contacted yet.
///
/// # Errors
/// A URL or option that makes no sense.
pub fn open_lake(config: &Config) -> anyhow::Result<Lake> {
    let store = StoreConfig { url: config.store.url.clone(), options: config.store.options.clone().into_map() };
    Lake::open(&store).with_context(|| format!("store `{}` cannot be opened", config.store.url))
}

/// The log a config names.
///
/// # Errors
/// A broker that does not answer, a folder that cannot be used or is in use.
pub async fn open_log(config: &Config, service: &str) -> Result<Arc<dyn Log>, TopicError> {
    let log = &config.log;
    match log.kind {
        LogKind::Embedded => Ok(Arc::new(EmbeddedLog::open(
            &log.path,
            EmbeddedOptions { max_inflight_bytes: log.max_inflight_bytes.as_usize(), ..EmbeddedOptions::default() },
        )?)),
        LogKind::Kafka => {
            let kafka = KafkaConfig {
                brokers: log.brokers.clone(),
                properties: log.properties.clone().into_map(),
                max_inflight_bytes: log.max_inflight_bytes.as_usize(),
                fetch_bytes_per_partition: log.fetch_bytes_per_partition.as_usize(),
                client_id: format!("tailwater-{service}"),
            };
            Ok(Arc::new(KafkaLog::connect(kafka).await?))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use topics::memory::MemoryLog;

    use super::*;
    use crate::exit::Code;

    #[tokio::test(start_paused = true)]
    async fn a_broken_log_ends_the_process_with_the_code_that_asks_for_another_start() {
        let (log, group) = (MemoryLog::new(), TaskGroup::new());
        let _edges = Edges::new(Arc::new(log.clone()), Lake::memory(), Compression::None, &group);
        log.break_for_good(TopicError::Closed);
        group.stop().stopped().await;
        let ended = group.finish(Duration::from_secs(1)).await;
        assert_eq!(ended.map_err(|error| Code::of(&error.into())), Err(Code::Unavailable));
    }
}
