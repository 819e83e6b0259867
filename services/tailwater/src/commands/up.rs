//! `tailwater up`: all four services in one process, behind one address.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use runtime::{
    admin::{self, AdminServer, Health, serve_visitors},
    catalog::{self, ApplyError, ApplyRequest},
    config::Config,
    edges::Edges,
    metrics::{BuildInfo, Metrics},
    process::{DRAIN_WITHIN, log_config, open_edges},
    signal,
    tasks::{Fate, TaskGroup},
    telemetry,
};

use crate::{
    commands::{
        Failure,
        apply::{self, Wish, sql_files},
    },
    output,
};

/// The four services at work.
pub(crate) struct Running {
    group: TaskGroup,
    pub(crate) edges: Edges,
    /// Answers for health and metrics until everything has drained.
    admin: AdminServer,
}

impl Running {
    /// Opens the edges and starts the services; `None` where a signal comes first.
    pub(crate) async fn start(config: &Config, metrics: Metrics) -> anyhow::Result<Option<Self>> {
        let group = TaskGroup::new();
        signal::listen(group.stop())?;
        let health = Health::with_stop(group.stop());
        let pages = admin::router(health.clone(), metrics);
        let (admin, visitors) = AdminServer::start(&config.http.listen, "http.listen", pages.clone())?;
        let Some(edges) = open_edges(config, "up", health, &group).await? else { return Ok(None) };
        let router = ingestion::router(config, &edges).merge(analysis::router(config, &edges)).merge(pages);
        let stop = group.stop();
        group.spawn("http", Fate::Critical, async move { Ok(serve_visitors(visitors, router, stop).await?) });
        group.spawn("ingestion", Fate::Critical, ingestion::run(config.clone(), edges.clone(), group.stop()));
        group.spawn("transformation", Fate::Critical, transformation::run(config.clone(), edges.clone(), group.stop()));
        group.spawn("storage", Fate::Critical, storage::run(config.clone(), edges.clone(), group.stop()));
        group.spawn("analysis", Fate::Critical, analysis::run(config.clone(), edges.clone(), group.stop()));
        Ok(Some(Self { group, edges, admin }))
    }

    /// Where it answers.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.admin.address())
    }

    /// Waits for a signal or a failure.
    pub(crate) async fn stopped(&self) {
        self.group.stop().stopped().await;
    }

    /// Drains and ends.
    pub(crate) async fn finish(self) -> Result<(), Failure> {
        self.group.finish(DRAIN_WITHIN).await.map_err(|failure| anyhow::Error::from(failure).into())
    }
}

pub(crate) async fn run(config: Config, pipelines: Option<PathBuf>) -> Result<(), Failure> {
    let _telemetry = telemetry::start(&config.telemetry, "up").map_err(anyhow::Error::from)?;
    let metrics = Metrics::install(BuildInfo::of("up")).map_err(anyhow::Error::from)?;
    log_config(&config);
    let folders = pipeline_folders(pipelines.as_deref())?;
    let Some(running) = Running::start(&config, metrics).await? else { return Ok(()) };
    for folder in &folders {
        apply_folder(&running, folder).await?;
    }
    output::note(format!(
        "Tailwater is up at {url}\n  log     {log}\n  tables  {store}\n  \
         try     tailwater status | tailwater sql | curl {url}/readyz?verbose\n  Ctrl-C drains and stops; twice stops at once",
        url = running.url(),
        log = config.log.path.display(),
        store = config.store.url,
    ));
    running.stopped().await;
    output::note("draining");
    running.finish().await
}

/// Pipelines beside the config are there when the program is up. A change that needs a permission is left to `apply`,
/// which needs the program to be up.
async fn apply_folder(running: &Running, folder: &Path) -> Result<(), Failure> {
    let wish = Wish { folder: folder.to_owned(), pipeline: None, replace: false, drop: false, dry_run: false };
    let request = apply::request(&wish)?;
    let folder = folder.display();
    let Err(error) = apply_request(running, &request).await else { return Ok(()) };
    let Some(ApplyError::Refused { reason, .. }) = error.downcast_ref() else {
        return Err(error.context(format!("pipeline folder `{folder}`")).into());
    };
    output::note(format!(
        "pipeline folder `{folder}` differs from what runs, which goes on: {reason}\n  \
         now that Tailwater is up: tailwater apply {folder}, with what it needs; --dry-run shows the plan"
    ));
    Ok(())
}

/// Applies a pipeline in this process, and waits until its services know it.
pub(crate) async fn apply_request(running: &Running, request: &ApplyRequest) -> anyhow::Result<()> {
    let answer = catalog::apply(running.edges.log.as_ref(), request).await?;
    if answer.changed {
        output::note(answer.plan.trim_end());
    }
    // Whoever is told that it is there may use it at once.
    let mut catalog = running.edges.catalog.clone();
    tokio::select! {
        _ = catalog.wait_for(|view| view.catalog.version() >= answer.version) => {}
        () = running.stopped() => {}
    }
    Ok(())
}

/// Every folder in `pipelines` that holds SQL and is not hidden; none when there is no such folder and none was named.
pub(crate) fn pipeline_folders(named: Option<&Path>) -> Result<Vec<PathBuf>, Failure> {
    let parent = named.unwrap_or_else(|| Path::new("pipelines"));
    if named.is_none() && !parent.is_dir() {
        return Ok(Vec::new());
    }
    let entries = std::fs::read_dir(parent).with_context(|| format!("folder `{}`", parent.display()))?;
    let mut folders = Vec::new();
    for folder in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        if folder.is_dir() && !is_hidden(&folder) && !sql_files(&folder)?.is_empty() {
            folders.push(folder);
        }
    }
    folders.sort();
    Ok(folders)
}

/// What an editor or a version control keeps for itself.
fn is_hidden(folder: &Path) -> bool {
    folder.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn folders_without_sql_and_hidden_ones_are_passed_over() {
        let parent = tempfile::tempdir().unwrap();
        for file in ["shop/views.sql", "shop/queries/a.sql", "notes/README.md", "only/queries/a.sql", ".git/a.sql"] {
            let file = parent.path().join(file);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, "").unwrap();
        }
        let found = pipeline_folders(Some(parent.path())).unwrap();
        assert_eq!(found, [parent.path().join("shop")]);
    }
}
