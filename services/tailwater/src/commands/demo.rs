//! `tailwater demo`: the main job end to end on real data, with nothing but this program.
//!
//! Everything goes the way a user's rows go: over HTTP into landing topics, through channels into tables, and out by
//! SQL. The answers are compared with those worked out beforehand from the raw files by another program.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::anyhow;
use runtime::{
    catalog::{ApplyFile, ApplyRequest},
    config::Config,
    metrics::{BuildInfo, Metrics},
    telemetry, units,
};

use crate::{
    arguments::Format,
    client::{Client, Door},
    commands::{
        Failure, ingest, sql, status,
        up::{Running, apply_request},
    },
    output,
    shop::{self, File},
};

/// Far longer than it takes; a demo that hangs says where.
const SETTLED_WITHIN: Duration = Duration::from_secs(60);

pub(crate) async fn run(users: Config, once: bool, folder: Option<PathBuf>) -> Result<(), Failure> {
    let temporary = tempfile::Builder::new().prefix("tailwater-demo-").tempdir()?;
    let folder = folder.unwrap_or_else(|| temporary.path().to_owned());
    let config = self_contained(users, once, &folder);
    let _telemetry = telemetry::start(&config.telemetry, "demo").map_err(anyhow::Error::from)?;
    let metrics = Metrics::install(BuildInfo::of("demo")).map_err(anyhow::Error::from)?;
    let Some(running) = Running::start(&config, metrics).await? else { return Ok(()) };
    let shown = show(&running, &config).await;
    if shown.is_ok() && !once {
        output::note(next_steps(&running, &folder));
        running.stopped().await;
    }
    running.finish().await.and(shown)
}

/// Of the user's config only where it answers and what it says of itself: the demo needs nobody's cluster or store.
fn self_contained(users: Config, once: bool, folder: &Path) -> Config {
    let mut config = Config { http: users.http, telemetry: users.telemetry, ..Config::default() };
    config.log.path = folder.join("log");
    config.store.url = folder.join("tables").display().to_string();
    config.telemetry.level = "warn".to_owned();
    // What brings no rows, a second run's parts for one, shows in the ledger with the next checkpoint.
    config.ingestion.checkpoint_every = units::Duration::secs(1);
    config.transformation.checkpoint_every = units::Duration::secs(1);
    if once {
        // A script's demo must not meet another process on the usual port.
        config.http.listen = "127.0.0.1:0".to_owned();
    }
    config
}

async fn show(running: &Running, config: &Config) -> Result<(), Failure> {
    let url = running.url();
    let client = Client::new(Some(&url), config, Door::Ingestion);
    output::note("1. the pipeline: five sources and what is made of them\n");
    apply_request(running, &pipeline()).await?;
    wait_for_sources(&client).await?;
    output::note("\n2. real orders of a model-car shop, over HTTP; each part is durable before the next is sent\n");
    for file in shop::DATA {
        send(&client, file).await?;
    }
    settle(&client).await?;
    output::note("\n3. the ledger: every row accounted for\n");
    status::print(status::fetch(&client).await?, Format::Table)?;
    output::note("\n4. answers, from Delta tables");
    answer_all(&client).await
}

fn pipeline() -> ApplyRequest {
    let files = shop::PIPELINE.iter().map(|file| ApplyFile { file: file.name.into(), text: file.text.into() });
    ApplyRequest { pipeline: "shop".into(), files: files.collect(), replace: false, drop: false, dry_run: false }
}

/// Ingestion follows the catalog; until it has seen the sources it does not know them.
async fn wait_for_sources(client: &Client) -> Result<(), Failure> {
    poll("the sources", async || {
        let answer = client.send(client.short_request(reqwest::Method::GET, "/v1/sources")).await?;
        let text = answer.text().await.map_err(anyhow::Error::from)?;
        Ok(shop::DATA.iter().all(|file| text.contains(source_of(file))))
    })
    .await
}

/// The rows that are wrong on purpose go to the source they pretend to belong to.
fn source_of(file: &File) -> &'static str {
    match file.name.split_once('.') {
        Some(("broken", _)) | None => "lines",
        Some((name, _)) => name,
    }
}

async fn send(client: &Client, file: &File) -> Result<(), Failure> {
    let content_type = if file.name.ends_with(".csv") { "text/csv; header=present" } else { "application/x-ndjson" };
    let source = format!("shop.{}", source_of(file));
    let bar = ingest::progress_bar(file.name, Some(file.text.len() as u64));
    for (index, part) in cut(file.text, content_type).into_iter().enumerate() {
        let bytes = part.len() as u64;
        // The same in every run: one on the same folder sends what is stored already, and it stays stored once.
        let key = format!("demo-{}:{index}", file.name);
        let part = bytes::Bytes::copy_from_slice(part.as_bytes());
        ingest::post_as(client, &source, content_type, part, &key).await?;
        bar.inc(bytes);
    }
    bar.finish();
    Ok(())
}

/// A few parts a file, so that the bar has something to show.
fn cut<'a>(text: &'a str, content_type: &str) -> Vec<&'a str> {
    const PART_BYTES: usize = 64 << 10;
    if content_type.starts_with("text/csv") {
        return vec![text];
    }
    let mut parts = Vec::new();
    let mut rest = text;
    while rest.len() > PART_BYTES {
        let Some(end) = rest.as_bytes()[..PART_BYTES].iter().rposition(|&byte| byte == b'\n') else { break };
        let (part, after) = rest.split_at(end + 1);
        parts.push(part);
        rest = after;
    }
    parts.push(rest);
    parts
}

/// Waits until everything sent is in the tables.
async fn settle(client: &Client) -> Result<(), Failure> {
    poll("the rows to reach the tables", async || Ok(status::fetch(client).await?.settled())).await
}

async fn poll(what: &str, ready: impl AsyncFn() -> Result<bool, Failure>) -> Result<(), Failure> {
    let started = tokio::time::Instant::now();
    while !ready().await? {
        if started.elapsed() > SETTLED_WITHIN {
            let waited = SETTLED_WITHIN.as_secs();
            return Err(anyhow!("waited {waited} s for {what}; please report this with the log at level debug").into());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

async fn answer_all(client: &Client) -> Result<(), Failure> {
    let mut wrong = Vec::new();
    for (query, expected) in shop::QUERIES.iter().zip(shop::ANSWERS) {
        let question = query.text.lines().next().unwrap_or_default().trim_start_matches("--").trim();
        output::note(format!("\n{question}"));
        sql::ask(client, query.text, Format::Table).await?;
        let answer = sql::answer_as_csv(client, query.text).await.with_context_of(query.name)?;
        if answer.trim() != expected.text.trim() {
            wrong.push(query.name);
        }
    }
    if wrong.is_empty() {
        output::note(format!("\nall {} answers equal those worked out from the raw files", shop::ANSWERS.len()));
        return Ok(());
    }
    Err(anyhow!("answers differ from the expected ones: {}", wrong.join(", ")).into())
}

trait ContextOf<T> {
    fn with_context_of(self, name: &str) -> Result<T, Failure>;
}

impl<T> ContextOf<T> for Result<T, Failure> {
    fn with_context_of(self, name: &str) -> Result<T, Failure> {
        self.map_err(|failure| Failure { error: failure.error.context(format!("query `{name}`")), ..failure })
    }
}

fn next_steps(running: &Running, folder: &Path) -> String {
    format!(
        "\n5. go on (another terminal):\n  tailwater sql                                      # a prompt\n  \
         tailwater status\n  tailwater tail shop.orders --from start --limit 3\n  \
         curl -d '{{\"order_id\": 1}}' -H 'content-type: application/json' {url}/v1/ingest/shop/orders\n  \
         tailwater init my-shop                             # a project of your own\n\n\
         the log and the Delta tables lie under {folder}\nserving at {url} until Ctrl-C",
        url = running.url(),
        folder = folder.display(),
    )
}
