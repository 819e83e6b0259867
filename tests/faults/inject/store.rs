//! Faults of the object store: refused, answered wrongly, torn, late, silent, or done and not told.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lake::{FileEntry, Lake};
use object_store::{ObjectStore as _, ObjectStoreExt as _, PutMode, PutOptions, path::Path};
use pipeline::TableStage;
use serde_json::json;
use testkit::{
    chaos::{Action, Loss, Method, Rule, RuleId},
    seed::Random,
};

use super::{Run, recovered};
use crate::{
    field::Field,
    judge::{PIPELINE, SOURCE},
    observer::LOOK_EVERY,
    service::Service,
};

const STORM_FOR: Duration = Duration::from_secs(8);
const TAKEN_LIMIT: Duration = Duration::from_secs(60);
/// Commits of all tables.
const COMMITS: &str = "*/_delta_log/*.json";
/// Time for somebody else to act between a commit and the news that it failed.
const HOLD: Duration = Duration::from_secs(3);

/// A commit that landed and whose writer is told that it did not.
pub(super) fn lose_commit_reply(field: &Field, random: &mut Random) -> Result<Run> {
    let seen = if random.chance(50) { Loss::Disconnect } else { Loss::Error };
    let hold = Duration::from_millis(random.below(400));
    let rule = Rule::new(Action::LoseReply { hold, seen }).method(Method::PUT).path(COMMITS).times(1);
    let rule = field.s3.add(rule);
    wait_until_taken(field, rule, 1)?;
    recovered(field, Service::Storage, Instant::now())
}

/// The same, and before the writer hears of it, somebody compacts what it has just committed.
pub(super) fn lose_commit_reply_to_compaction(field: &Field, random: &mut Random) -> Result<Run> {
    let seen = if random.chance(50) { Loss::Disconnect } else { Loss::Error };
    let graph = field.observer.graph();
    let table = graph.tables.iter().find(|table| table.pipeline == PIPELINE && table.name == SOURCE);
    let table = table.context("the table of the load")?;
    let commits = format!("*/{}/_delta_log/*.json", table.folder);
    let lost = Rule::new(Action::LoseReply { hold: HOLD, seen }).method(Method::PUT).path(&commits).times(1);
    let lost = field.s3.add(lost);
    wait_until_taken(field, lost, 1)?;
    field.observer.block_on(compact_newest(field, table))?;
    recovered(field, Service::Storage, Instant::now())
}

/// Other files with the same rows in place of the newest ones, as any engine's compaction would commit it.
async fn compact_newest(field: &Field, table: &TableStage) -> Result<()> {
    let lake = field.observer.lake();
    let deadline = Instant::now() + TAKEN_LIMIT;
    loop {
        let snapshot = field.observer.snapshot(table).await?.context("the table is there")?;
        let newest = snapshot.files.iter().map(|file| file.modified_ms).max().unwrap_or(0);
        let files: Vec<_> = snapshot.files.iter().filter(|file| newest - file.modified_ms < 2000).collect();
        let mut lines = vec![json!({ "commitInfo": { "operation": "OPTIMIZE", "timestamp": newest } })];
        for file in files {
            lines.extend(moved(lake, table, file).await?);
        }
        let text: Vec<String> = lines.iter().map(serde_json::Value::to_string).collect();
        let entry = Path::from(format!("{}/_delta_log/{:020}.json", table.folder, snapshot.version + 1));
        let put = lake.store().put_opts(&entry, text.join("\n").into(), PutOptions::from(PutMode::Create)).await;
        match put {
            Ok(_) => return Ok(()),
            Err(error) => ensure!(Instant::now() < deadline, "no foreign commit landed: {error}"),
        }
    }
}

/// The two lines of a commit that put a copy in place of a file.
async fn moved(lake: &Lake, table: &TableStage, file: &FileEntry) -> Result<[serde_json::Value; 2]> {
    let copy = file.path.replace(".parquet", "-compacted.parquet");
    let place = |name: &str| Path::from(format!("{}/{name}", table.folder));
    lake.store().copy(&place(&file.path), &place(&copy)).await?;
    let values = &file.partition_values;
    let stats = json!({ "numRecords": file.rows, "minValues": file.stats.min, "maxValues": file.stats.max, "nullCount": file.stats.nulls });
    Ok([
        json!({ "remove": { "path": file.path, "deletionTimestamp": file.modified_ms, "dataChange": false,
            "extendedFileMetadata": true, "partitionValues": values, "size": file.size } }),
        json!({ "add": { "path": copy, "partitionValues": values, "size": file.size,
            "modificationTime": file.modified_ms, "dataChange": false, "stats": stats.to_string() } }),
    ])
}

/// Replies lost to anything that is put.
pub(super) fn lose_put_replies(field: &Field, _random: &mut Random) -> Result<Run> {
    let lost = Action::LoseReply { hold: Duration::ZERO, seen: Loss::Disconnect };
    storm(field, [Rule::new(lost).method(Method::PUT).percent(20)])
}

/// Conditional puts refused although nobody was first.
pub(super) fn conflicts(field: &Field, _random: &mut Random) -> Result<Run> {
    let commits = |status, code| Rule::new(Action::Answer(status, code)).method(Method::PUT).path(COMMITS).percent(25);
    storm(field, [commits(409, "ConditionalRequestConflict"), commits(412, "PreconditionFailed")])
}

/// Everything refused now and then.
pub(super) fn overload(field: &Field, _random: &mut Random) -> Result<Run> {
    let refused = |status, code, percent| Rule::new(Action::Answer(status, code)).percent(percent);
    storm(field, [refused(503, "SlowDown", 30), refused(429, "TooManyRequests", 10), refused(500, "InternalError", 5)])
}

/// Answers that end in the middle.
pub(super) fn tear(field: &Field, _random: &mut Random) -> Result<Run> {
    storm(field, [Rule::new(Action::Tear).method(Method::GET).percent(25)])
}

/// Answers that come late.
pub(super) fn delay(field: &Field, _random: &mut Random) -> Result<Run> {
    storm(field, [Rule::new(Action::Delay(Duration::from_millis(1500))).percent(30)])
}

/// Two requests that are never answered.
pub(super) fn hang(field: &Field, _random: &mut Random) -> Result<Run> {
    let rule = field.s3.add(Rule::new(Action::Hang).method(Method::PUT).times(2));
    wait_until_taken(field, rule, 1)?;
    recovered(field, Service::Storage, Instant::now())
}

/// The server killed and started again.
pub(super) fn kill_server(field: &Field, random: &mut Random) -> Result<Run> {
    let mut store = field.store();
    store.kill()?;
    std::thread::sleep(Duration::from_millis(1000 + random.below(2000)));
    store.restart()?;
    drop(store);
    recovered(field, Service::Storage, Instant::now())
}

/// The rules for a while; then all is well again.
fn storm<const N: usize>(field: &Field, rules: [Rule; N]) -> Result<Run> {
    let rules = rules.map(|rule| field.s3.add(rule));
    std::thread::sleep(STORM_FOR);
    wait_until_taken(field, rules[0], 1)?;
    field.s3.heal();
    recovered(field, Service::Storage, Instant::now())
}

fn wait_until_taken(field: &Field, rule: RuleId, times: u64) -> Result<()> {
    let started = Instant::now();
    while field.s3.taken(rule) < times {
        ensure!(started.elapsed() < TAKEN_LIMIT, "no request met the fault in {TAKEN_LIMIT:?}");
        std::thread::sleep(LOOK_EVERY / 5);
    }
    Ok(())
}
