//! The catalog topic: every service replays it, and `apply` appends to it.
//!
//! The topic has one partition and is kept for ever. A record names the version it was made against; a record made
//! against another version is void for every reader, so of two racing changes only one wins. The invariant: whoever
//! has replayed to the same offset knows the same catalog. What a record means is decided in `pipeline`.

use std::{sync::Arc, time::Duration};

use engine::RowProgram;
use pipeline::{Catalog, ChangePlan, Graph, Permissions, Problems, Replay, SourceText};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use topics::{Creation, Log, NewMessage, Reader, Retention, TopicError, TopicName, TopicSettings};

use crate::{
    admin::CheckHandle,
    retry::{Backoff, TaskError},
    tasks::Stop,
};

/// How much of the catalog is read at once.
const READ_BYTES: usize = 1 << 20;

/// The catalog as of one version, and what follows from it.
#[derive(Clone, Debug, Default)]
pub struct CatalogView {
    /// Definitions.
    pub catalog: Catalog,
    /// Stages, channels and tables made from them.
    pub graph: Arc<Graph>,
    /// Whether this is the catalog as it was when the service began, or a later one. Until then it is empty, and what
    /// it does not name may be there all the same.
    pub replayed: bool,
}

/// What a service holds: always the newest view it has replayed.
pub type CatalogReceiver = watch::Receiver<Arc<CatalogView>>;

/// How long a request waits for the first replay.
const REPLAYED_WITHIN: Duration = Duration::from_secs(10);

/// Nobody can say yet what there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the catalog has not been read yet: the log does not answer, or this process has only just started")]
pub struct NotReplayed;

/// The newest view, as soon as there is one: whoever says "there is no such table" must have read the catalog.
///
/// # Errors
/// When that takes longer than a request should wait.
pub async fn when_replayed(catalog: &CatalogReceiver) -> Result<Arc<CatalogView>, NotReplayed> {
    let mut catalog = catalog.clone();
    let view = tokio::time::timeout(REPLAYED_WITHIN, catalog.wait_for(|view| view.replayed)).await;
    view.ok().and_then(Result::ok).map(|view| Arc::clone(&view)).ok_or(NotReplayed)
}

/// A wish to change one pipeline.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApplyRequest {
    /// The pipeline's name.
    pub pipeline: String,
    /// All of its SQL files.
    pub files: Vec<ApplyFile>,
    /// Whether definitions may change.
    #[serde(default)]
    pub replace: bool,
    /// Whether definitions may go.
    #[serde(default)]
    pub drop: bool,
    /// Whether to stop after the plan.
    #[serde(default)]
    pub dry_run: bool,
}

/// One SQL file of a pipeline.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApplyFile {
    /// Its name, for error messages.
    pub file: String,
    /// Its text.
    pub text: String,
}

/// What became of a wish.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ApplyAnswer {
    /// What was (or would be) added, changed and dropped.
    pub plan: String,
    /// Whether the catalog has changed.
    pub changed: bool,
    /// The catalog's version afterwards.
    pub version: u64,
}

/// Why a wish was not granted.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The SQL is at fault.
    #[error("{0}")]
    Problems(Problems),
    /// It needs a permission that was not given.
    #[error("{reason}")]
    Refused {
        /// What would be needed.
        reason: String,
        /// The plan it is about.
        plan: String,
    },
    /// It can be planned but not run.
    #[error("the change cannot be run; nothing was published")]
    Unusable(#[source] anyhow::Error),
    /// Somebody else's change came first.
    #[error("the catalog was changed by someone else meanwhile; look at the new plan and apply again")]
    Raced,
    /// The catalog holds something this version cannot read.
    #[error("the catalog cannot be read")]
    Unreadable(#[source] anyhow::Error),
    /// The log failed; whether the change is in is unknown until it is read again.
    #[error("the log failed while the catalog was changed; apply again: what is in already is left alone")]
    Log(#[from] TopicError),
}

/// The catalog's topic.
pub fn topic() -> TopicName {
    TopicName::try_from(pipeline::CATALOG_TOPIC.to_owned()).expect("the catalog topic's name is a valid constant")
}

/// Creates the catalog topic where it does not exist. Where it does, nobody needs the right to create it.
///
/// # Errors
/// What the log says.
pub async fn ensure_topic(log: &dyn Log) -> Result<Creation, TopicError> {
    if log.describe(&topic()).await?.is_some() {
        return Ok(Creation::Existed);
    }
    let settings = TopicSettings { partitions: 1, retention: Retention::default(), ..TopicSettings::default() };
    log.create(&topic(), &settings).await
}

/// Replays the catalog topic from its beginning to wherever it ends, and further as it grows.
struct Replayer {
    catalog: Catalog,
    next_offset: u64,
}

impl Replayer {
    fn new() -> Self {
        Self { catalog: Catalog::default(), next_offset: 0 }
    }

    async fn reader(&self, log: &dyn Log) -> Result<Box<dyn Reader>, TopicError> {
        log.reader(&topic(), 0, self.next_offset).await
    }

    /// Reads what is there, at least one record; the fate of the record at `watched`, if it was among them.
    async fn read(&mut self, reader: &mut dyn Reader, watched: Option<u64>) -> Result<Option<Replay>, ApplyError> {
        let mut fate = None;
        for message in reader.read(READ_BYTES).await? {
            let unreadable = |error| ApplyError::Unreadable(anyhow::Error::new(error));
            let replay = self.catalog.replay(&message.payload).map_err(unreadable)?;
            self.next_offset = message.offset + 1;
            if watched == Some(message.offset) {
                fate = Some(replay);
            }
        }
        Ok(fate)
    }

    async fn read_to(&mut self, log: &dyn Log, end: u64) -> Result<(), ApplyError> {
        if self.next_offset < end {
            let mut reader = self.reader(log).await?;
            while self.next_offset < end {
                self.read(reader.as_mut(), None).await?;
            }
        }
        Ok(())
    }
}

/// The catalog as it is now.
///
/// # Errors
/// `Log` or `Unreadable`.
pub async fn read_all(log: &dyn Log) -> Result<Catalog, ApplyError> {
    Ok(replayed(log).await?.catalog)
}

async fn replayed(log: &dyn Log) -> Result<Replayer, ApplyError> {
    ensure_topic(log).await?;
    let mut replayer = Replayer::new();
    let end = log.span(&topic(), 0).await?.end;
    replayer.read_to(log, end).await?;
    Ok(replayer)
}

/// Plans a change and, unless it is a dry run, makes it.
///
/// # Errors
/// See [`ApplyError`]; nothing has changed but for `Log`, where the outcome is unknown and applying again is safe.
pub async fn apply(log: &dyn Log, request: &ApplyRequest) -> Result<ApplyAnswer, ApplyError> {
    let mut replayer = replayed(log).await?;
    let plan = plan(&replayer.catalog, request)?;
    let text = plan.to_string();
    let version = replayer.catalog.version();
    if request.dry_run {
        return Ok(ApplyAnswer { plan: text, changed: false, version });
    }
    let permissions = Permissions { replace: request.replace, drop: request.drop };
    let refused = |error: pipeline::Refused| ApplyError::Refused { reason: error.to_string(), plan: text.clone() };
    let Some(change) = plan.into_change(permissions).map_err(refused)? else {
        return Ok(ApplyAnswer { plan: text, changed: false, version });
    };
    let record = change.to_bytes();
    rehearse(replayer.catalog.clone(), &record, &request.pipeline)?;
    let message = NewMessage { payload: record.into(), ..NewMessage::default() };
    let offset = log.appender().append(&topic(), 0, message).await?.await?;
    let mut reader = replayer.reader(log).await?;
    loop {
        match replayer.read(reader.as_mut(), Some(offset)).await? {
            Some(Replay::Accepted { version }) => return Ok(ApplyAnswer { plan: text, changed: true, version }),
            Some(Replay::Stale { .. }) => return Err(ApplyError::Raced),
            None => {}
        }
    }
}

/// Goes through everything the services will do with a change of a pipeline, so that what cannot run is not published.
/// Other pipelines are not asked: one that is broken must not keep this one from changing.
fn rehearse(mut catalog: Catalog, record: &[u8], pipeline: &str) -> Result<(), ApplyError> {
    let unusable = |error: anyhow::Error| ApplyError::Unusable(error);
    catalog.replay(record).map_err(|error| unusable(error.into()))?;
    let graph = Graph::of(&catalog);
    if let Some(broken) = graph.broken.iter().find(|broken| broken.pipeline == pipeline) {
        return Err(unusable(broken.problems.clone().into()));
    }
    for view in graph.views.iter().filter(|view| view.pipeline == pipeline) {
        for branch in &view.branches {
            RowProgram::compile(branch, &view.schema).map_err(|error| unusable(error.into()))?;
        }
    }
    Ok(())
}

fn plan(catalog: &Catalog, request: &ApplyRequest) -> Result<ChangePlan, ApplyError> {
    let files = request.files.iter().map(|file| SourceText { file: file.file.clone(), text: file.text.clone() });
    let files: Vec<_> = files.collect();
    let statements = pipeline::parse(&files).map_err(ApplyError::Problems)?;
    pipeline::plan_change(catalog, &request.pipeline, statements).map_err(ApplyError::Problems)
}

/// Follows the catalog for the life of a service, publishing each version it reaches.
///
/// A log that fails is waited for; a record this version cannot read keeps the last good view and shows the reason in
/// the health check, because going on with what is known loses nothing. A pipeline that this version cannot run is in
/// the check and in the log, and the others go on, so the process is ready all the same.
///
/// # Errors
/// None while running; ends when asked to stop.
pub async fn follow(
    log: Arc<dyn Log>,
    views: watch::Sender<Arc<CatalogView>>,
    check: CheckHandle,
    stop: Stop,
) -> anyhow::Result<()> {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
    let mut replayer = Replayer::new();
    loop {
        let error = tokio::select! {
            biased;
            () = stop.stopped() => return Ok(()),
            error = follow_until_error(log.as_ref(), &mut replayer, &views, &check) => error,
        };
        check.set_waiting(format!("{:#}", anyhow::Error::new(error)));
        tokio::select! {
            biased;
            () = stop.stopped() => return Ok(()),
            () = tokio::time::sleep(backoff.next()) => {}
        }
    }
}

async fn follow_until_error(
    log: &dyn Log,
    replayer: &mut Replayer,
    views: &watch::Sender<Arc<CatalogView>>,
    check: &CheckHandle,
) -> ApplyError {
    match try_follow(log, replayer, views, check).await {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

async fn try_follow(
    log: &dyn Log,
    replayer: &mut Replayer,
    views: &watch::Sender<Arc<CatalogView>>,
    check: &CheckHandle,
) -> Result<std::convert::Infallible, ApplyError> {
    ensure_topic(log).await?;
    let end = log.span(&topic(), 0).await?.end;
    replayer.read_to(log, end).await?;
    let mut reader = replayer.reader(log).await?;
    loop {
        publish(&replayer.catalog, views);
        check.set_ready(standing(&views.borrow()));
        replayer.read(reader.as_mut(), None).await?;
    }
}

fn publish(catalog: &Catalog, views: &watch::Sender<Arc<CatalogView>>) {
    let known = views.borrow().clone();
    if known.replayed && known.catalog.version() == catalog.version() {
        return;
    }
    let graph = Graph::of(catalog);
    tracing::info!(version = catalog.version(), "catalog replayed");
    for broken in &graph.broken {
        let pipeline = broken.pipeline.as_str();
        tracing::warn!(pipeline, error = %broken.problems, "pipeline does not run: this version cannot read it");
    }
    views.send_replace(Arc::new(CatalogView { catalog: catalog.clone(), graph: Arc::new(graph), replayed: true }));
}

/// What the health check says: the version, and which pipelines do not run, with the first fault of each.
fn standing(view: &CatalogView) -> String {
    let mut parts = vec![format!("version {}", view.catalog.version())];
    for broken in &view.graph.broken {
        let first = broken.problems.iter().next();
        let fault = first.map(|fault| format!("{}:{}: {}", fault.file, fault.line, fault.message)).unwrap_or_default();
        parts.push(format!("pipeline `{}` does not run: {fault}; apply it anew, or upgrade", broken.pipeline));
    }
    parts.join("; ")
}

impl From<ApplyError> for TaskError {
    fn from(error: ApplyError) -> Self {
        match error {
            ApplyError::Log(error) => Self::retry(error),
            other => Self::stop(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use topics::memory::MemoryLog;

    use super::*;

    fn request(pipeline: &str, sql: &str, replace: bool) -> ApplyRequest {
        let files = vec![ApplyFile { file: "p.sql".into(), text: sql.into() }];
        ApplyRequest { pipeline: pipeline.into(), files, replace, drop: false, dry_run: false }
    }

    async fn view_of(log: &MemoryLog) -> Arc<CatalogView> {
        let (views, _catalog) = watch::channel(Arc::default());
        publish(&read_all(log).await.unwrap(), &views);
        views.borrow().clone()
    }

    #[tokio::test]
    async fn a_pipeline_that_cannot_be_read_leaves_the_others_alone_and_can_be_replaced() {
        let log = MemoryLog::new();
        apply(&log, &request("good", "CREATE SOURCE a (b INT);", false)).await.unwrap();
        let record = r#"{"format":1,"base":1,"id":"","pipeline":"old","drops":[],
            "upserts":[{"name":"a","statement":"CREATE SOURCE a (b GADGET)"}]}"#;
        let message = NewMessage { payload: record.into(), ..NewMessage::default() };
        log.appender().append(&topic(), 0, message).await.unwrap().await.unwrap();

        let view = view_of(&log).await;
        assert_eq!((view.graph.sources.len(), view.graph.broken.len()), (1, 1));
        let shown = standing(&view);
        assert!(shown.starts_with("version 2; pipeline `old` does not run: catalog:old.a:1: unknown type"), "{shown}");

        apply(&log, &request("good", "CREATE SOURCE a (b INT); CREATE SOURCE c (d INT);", false)).await.unwrap();
        let repaired = "CREATE SOURCE a (b VARCHAR);";
        let refused = apply(&log, &request("old", repaired, false)).await.unwrap_err();
        assert!(matches!(refused, ApplyError::Refused { .. }), "{refused:?}");
        apply(&log, &request("old", repaired, true)).await.unwrap();
        let view = view_of(&log).await;
        assert_eq!((view.graph.sources.len(), standing(&view).as_str()), (3, "version 4"));
    }

    #[tokio::test(start_paused = true)]
    async fn an_empty_catalog_is_replayed_too() {
        let (views, catalog) = watch::channel(Arc::default());
        publish(&Catalog::default(), &views);
        assert!(when_replayed(&catalog).await.unwrap().replayed);
    }

    #[tokio::test(start_paused = true)]
    async fn a_catalog_that_is_never_replayed_is_not_waited_for_for_ever() {
        let (_views, catalog) = watch::channel(Arc::default());
        let began = tokio::time::Instant::now();
        assert_eq!(when_replayed(&catalog).await.unwrap_err(), NotReplayed);
        assert_eq!(began.elapsed().as_secs(), REPLAYED_WITHIN.as_secs());
    }
}
