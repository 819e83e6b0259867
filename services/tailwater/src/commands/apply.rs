//! `tailwater apply`: a pipeline folder into the catalog, plan first.
//!
//! On Kafka the catalog topic is written directly. The embedded log belongs to one process: a running one is asked
//! over HTTP, otherwise the log is opened here. Where there is none yet, the command was perhaps typed in another
//! folder than `up`: whoever answers at the usual address comes first, so that no log is made that nobody reads.

use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, anyhow};
use reqwest::Method;
use runtime::{
    catalog::{self, ApplyAnswer, ApplyFile, ApplyRequest},
    config::{Config, LogKind},
    edges,
};
use topics::{TopicError, memory::MemoryLog};

use crate::{
    arguments::Global,
    client::{Client, Door},
    commands::Failure,
    output,
};

/// What was asked for.
pub(crate) struct Wish {
    pub(crate) folder: PathBuf,
    pub(crate) pipeline: Option<String>,
    pub(crate) replace: bool,
    pub(crate) drop: bool,
    pub(crate) dry_run: bool,
}

pub(crate) async fn run(global: &Global, config: &Config, wish: Wish) -> Result<(), Failure> {
    let request = request(&wish)?;
    let answer = match config.log.kind {
        _ if global.url.is_some() => apply_over_http(global, config, &request).await?,
        LogKind::Kafka => apply_to_log(config, &request).await?,
        LogKind::Embedded => apply_embedded(global, config, &request).await?,
    };
    report(&answer, wish.dry_run)
}

fn report(answer: &ApplyAnswer, dry_run: bool) -> Result<(), Failure> {
    output::line(answer.plan.trim_end())?;
    match (answer.changed, dry_run) {
        (true, _) => output::note(format!("applied; the catalog is at version {}", answer.version)),
        (false, true) => output::note("dry run: nothing was changed"),
        (false, false) => output::note("nothing to change"),
    }
    Ok(())
}

/// The folder's SQL files as a wish.
pub(crate) fn request(wish: &Wish) -> Result<ApplyRequest, Failure> {
    let pipeline = match &wish.pipeline {
        Some(name) => name.clone(),
        None => folder_name(&wish.folder)?,
    };
    Ok(ApplyRequest {
        pipeline,
        files: read_files(&wish.folder)?,
        replace: wish.replace,
        drop: wish.drop,
        dry_run: wish.dry_run,
    })
}

fn folder_name(folder: &Path) -> Result<String, Failure> {
    let folder = folder.canonicalize().with_context(|| format!("pipeline folder `{}`", folder.display()))?;
    let name = folder.file_name().and_then(|name| name.to_str());
    Ok(name.ok_or_else(|| anyhow!("folder `{}` has no name; say --pipeline NAME", folder.display()))?.to_owned())
}

/// Every `*.sql` right in the folder, by name; those in `queries/` are questions, not definitions.
pub(crate) fn sql_files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("pipeline folder `{}`", folder.display()))?;
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "sql"));
    paths.sort();
    Ok(paths)
}

/// The definitions in a folder.
pub(crate) fn read_files(folder: &Path) -> Result<Vec<ApplyFile>, Failure> {
    let paths = sql_files(folder)?;
    if paths.is_empty() {
        return Err(anyhow!("folder `{}` has no *.sql file", folder.display()).into());
    }
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).with_context(|| format!("file `{}`", path.display()))?;
        Ok(ApplyFile { file: path.display().to_string(), text })
    };
    paths.into_iter().map(read).collect()
}

async fn apply_embedded(global: &Global, config: &Config, request: &ApplyRequest) -> Result<ApplyAnswer, Failure> {
    let path = config.log.path.display();
    if !has_log(&config.log.path) {
        let client = Client::new(None, config, Door::Ingestion);
        if client.is_tailwater().await {
            output::note(format!("there is no log in {path}; asking the Tailwater at {}", client.base()));
            return apply_over_http(global, config, request).await;
        }
        if request.dry_run {
            output::note(format!("no Tailwater runs, and there is no log in {path}: planned for an empty catalog"));
            return Ok(catalog::apply(&MemoryLog::new(), request).await.map_err(anyhow::Error::from)?);
        }
    }
    match edges::open_log(config, "apply").await {
        Ok(log) => {
            let answer = catalog::apply(log.as_ref(), request).await.map_err(anyhow::Error::from)?;
            if answer.changed {
                output::note(format!("no Tailwater runs on the log in {path}: published there, for the next one"));
            }
            Ok(answer)
        }
        Err(TopicError::InUse { .. }) => apply_over_http(global, config, request).await,
        Err(error) => Err(Failure::unavailable(error.into())),
    }
}

/// A folder with nothing in it was never a log. One that cannot be looked into is left to whoever opens it to explain.
fn has_log(folder: &Path) -> bool {
    match std::fs::read_dir(folder) {
        Ok(mut entries) => entries.next().is_some(),
        Err(error) => error.kind() != ErrorKind::NotFound,
    }
}

/// Publishes to the log itself.
pub(crate) async fn apply_to_log(config: &Config, request: &ApplyRequest) -> Result<ApplyAnswer, Failure> {
    let log = edges::open_log(config, "apply").await.map_err(|error| Failure::unavailable(error.into()))?;
    Ok(catalog::apply(log.as_ref(), request).await.map_err(anyhow::Error::from)?)
}

/// Asks a running process.
pub(crate) async fn apply_over_http(
    global: &Global,
    config: &Config,
    request: &ApplyRequest,
) -> Result<ApplyAnswer, Failure> {
    let client = Client::new(global.url.as_deref(), config, Door::Ingestion);
    let answer = client.send(client.short_request(Method::POST, "/v1/catalog").json(request)).await?;
    Ok(answer.json().await.map_err(anyhow::Error::from)?)
}
