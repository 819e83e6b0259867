//! The table's log as it lies in the store: where it starts, which commits follow, what they say.
//!
//! Reading a log yields a prefix of its history without holes, or an error; never a history with a commit missing. That
//! none is missing is found out by asking for each: a listing of a folder that is being written to may leave one out
//! and have the next. Only single-file V1 checkpoints are read. `.crc`, `_staged_commits`, compacted commits and files
//! of unknown names are passed over: everything they say stands in commits and checkpoints too.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, future::try_join_all, stream};
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt, path::Path};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{Lake, LakeError, ambient::Ambient, retry};

/// One line of a commit, reduced to what this crate acts on. Unknown actions parse to an empty line.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Action {
    pub(crate) add: Option<AddAction>,
    pub(crate) remove: Option<RemoveAction>,
    pub(crate) txn: Option<TxnAction>,
    pub(crate) meta_data: Option<Metadata>,
    pub(crate) protocol: Option<Protocol>,
    pub(crate) commit_info: Option<Map<String, Value>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AddAction {
    pub(crate) path: String,
    #[serde(default)]
    pub(crate) partition_values: BTreeMap<String, Option<String>>,
    pub(crate) size: i64,
    #[serde(default)]
    pub(crate) modification_time: i64,
    pub(crate) stats: Option<String>,
    pub(crate) deletion_vector: Option<Value>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct RemoveAction {
    pub(crate) path: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TxnAction {
    pub(crate) app_id: String,
    pub(crate) version: i64,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Metadata {
    pub(crate) id: String,
    pub(crate) schema_string: String,
    #[serde(default)]
    pub(crate) partition_columns: Vec<String>,
    #[serde(default)]
    pub(crate) configuration: BTreeMap<String, Option<String>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Protocol {
    pub(crate) min_reader_version: i32,
    pub(crate) min_writer_version: i32,
    #[serde(default)]
    pub(crate) reader_features: Option<Vec<String>>,
    #[serde(default)]
    pub(crate) writer_features: Option<Vec<String>>,
}

/// One commit, read and parsed.
#[derive(Debug)]
pub(crate) struct LogCommit {
    pub(crate) version: u64,
    pub(crate) actions: Vec<Action>,
}

impl LogCommit {
    /// When the writer says it committed, in milliseconds since the epoch.
    pub(crate) fn committed_ms(&self) -> Option<i64> {
        let info = self.actions.iter().find_map(|action| action.commit_info.as_ref())?;
        info.get("inCommitTimestamp").or_else(|| info.get("timestamp"))?.as_i64()
    }
}

/// What a listing shows of a log from its newest readable checkpoint on.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) checkpoint: Option<Checkpoint>,
    /// Versions to replay after the checkpoint.
    pub(crate) commits: Range<u64>,
    /// The newest version.
    pub(crate) version: u64,
    /// When the store received the newest commit, in milliseconds since the epoch.
    pub(crate) modified_ms: i64,
}

#[derive(Clone, Debug)]
pub(crate) struct Checkpoint {
    pub(crate) version: u64,
    pub(crate) location: Path,
}

/// Reads one table's log.
#[derive(Clone)]
pub(crate) struct LogReader {
    store: Arc<dyn ObjectStore>,
    folder: String,
    ambient: Ambient,
}

/// How many objects of a log are fetched at a time.
const FETCH_AT_ONCE: usize = 16;

impl LogReader {
    pub(crate) fn new(lake: &Lake, folder: &str) -> Self {
        Self { store: lake.store(), folder: folder.to_owned(), ambient: lake.ambient.clone() }
    }

    pub(crate) fn folder(&self) -> &str {
        &self.folder
    }

    /// What there is to replay; `None` where there is no table.
    pub(crate) async fn segment(&self) -> Result<Option<Segment>, LakeError> {
        let hint = self.checkpoint_hint().await?;
        if let Some(start) = hint {
            let listed = self.list_from(start).await?;
            if listed.checkpoints.first_key_value().is_some_and(|(version, _)| *version == start) {
                return Ok(listed.segment());
            }
            // The hint names what is not there (a checkpoint in parts, or a stale hint): look at everything.
        }
        Ok(self.list_from(0).await?.segment())
    }

    /// What there is to replay without the checkpoints from `version` on.
    pub(crate) async fn segment_before(&self, version: u64) -> Result<Option<Segment>, LakeError> {
        let mut listed = self.list_from(0).await?;
        listed.checkpoints.retain(|found, _| *found < version);
        Ok(listed.segment())
    }

    /// Every commit after `version`, oldest first; empty when there is none.
    ///
    /// All of them are fetched anyhow, so nothing is listed: on a folder that takes time with the age of the table. One
    /// is asked for at first, since most often there is none, then as many at a time as there were already.
    pub(crate) async fn commits_after(&self, version: u64) -> Result<Vec<LogCommit>, LakeError> {
        let mut commits = Vec::new();
        loop {
            let next = version + 1 + commits.len() as u64;
            let ahead = commits.len().clamp(1, FETCH_AT_ONCE);
            let found = self.commits_from(next, ahead).await?;
            let is_newest = found.len() < ahead;
            commits.extend(found);
            if is_newest {
                return Ok(commits);
            }
        }
    }

    /// The next `count` commits from `first` on, or fewer where the log ends before.
    async fn commits_from(&self, first: u64, count: usize) -> Result<Vec<LogCommit>, LakeError> {
        let mut answers = try_join_all((first..).take(count).map(|version| self.commit(version))).await?;
        let known = answers.iter().rposition(Option::is_some).map_or(0, |newest| newest + 1);
        answers.truncate(known);
        let mut commits = Vec::with_capacity(known);
        for (version, answer) in (first..).zip(answers) {
            commits.push(match answer {
                Some(commit) => commit,
                // It came between its request and that of a later one, if all is well.
                None => self.existing(version).await?,
            });
        }
        Ok(commits)
    }

    /// The given commits, oldest first.
    ///
    /// # Errors
    /// `BrokenLog` when one of them is not there.
    pub(crate) async fn commits(&self, versions: Range<u64>) -> Result<Vec<LogCommit>, LakeError> {
        let fetches = versions.map(|version| self.existing(version));
        stream::iter(fetches).buffered(FETCH_AT_ONCE).try_collect().await
    }

    /// One commit that must be there, since a later one is.
    async fn existing(&self, version: u64) -> Result<LogCommit, LakeError> {
        let missing = || LakeError::broken(&self.folder, version, "the commit is missing, though the log goes on");
        self.commit(version).await?.ok_or_else(missing)
    }

    /// One commit; `None` when there is no such version yet.
    pub(crate) async fn commit(&self, version: u64) -> Result<Option<LogCommit>, LakeError> {
        let Some(bytes) = self.get(&self.log_path(&format!("{version:020}.json"))).await? else { return Ok(None) };
        let actions = parse_actions(&bytes).map_err(|reason| LakeError::broken(&self.folder, version, reason))?;
        Ok(Some(LogCommit { version, actions }))
    }

    /// The whole object; `None` when it is not there.
    pub(crate) async fn get(&self, location: &Path) -> Result<Option<Bytes>, LakeError> {
        let fetched = retry::repeat(&self.ambient, || async { self.store.get(location).await?.bytes().await }).await;
        match fetched {
            Ok(bytes) => Ok(Some(bytes)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(LakeError::store("reading", location, error)),
        }
    }

    /// The version `_last_checkpoint` names, where it names a checkpoint in one file.
    async fn checkpoint_hint(&self) -> Result<Option<u64>, LakeError> {
        #[derive(Deserialize)]
        struct Hint {
            version: u64,
            parts: Option<u64>,
        }
        let hint = self.get(&self.log_path("_last_checkpoint")).await?;
        // It is only a hint: one that cannot be read costs a longer listing.
        let hint = hint.and_then(|bytes| serde_json::from_slice::<Hint>(&bytes).ok());
        Ok(hint.filter(|hint| hint.parts.is_none()).map(|hint| hint.version))
    }

    /// Commits and checkpoints from `version` on.
    pub(crate) async fn list_from(&self, version: u64) -> Result<Listed, LakeError> {
        let log = self.log_path("");
        let start = self.log_path(&format!("{version:020}"));
        let objects: Result<Vec<ObjectMeta>, _> =
            retry::repeat(&self.ambient, || self.store.list_with_offset(Some(&log), &start).try_collect()).await;
        let objects = match objects {
            Ok(objects) => objects,
            Err(object_store::Error::NotFound { .. }) => Vec::new(),
            Err(error) => return Err(LakeError::store("listing", log, error)),
        };
        let mut listed = Listed::default();
        for object in objects {
            // Folders inside the log hold staged commits and parts of newer checkpoint formats.
            if object.location.parts_count() == log.parts_count() + 1 {
                listed.admit(object);
            }
        }
        Ok(listed)
    }

    fn log_path(&self, name: &str) -> Path {
        let log = Lake::folder_path(&self.folder).join("_delta_log");
        if name.is_empty() { log } else { log.join(name) }
    }
}

/// What a listing shows of a log.
#[derive(Default)]
pub(crate) struct Listed {
    /// Checkpoints in one file, by version.
    pub(crate) checkpoints: BTreeMap<u64, Path>,
    /// When the store received each commit, in milliseconds since the epoch.
    pub(crate) commits: BTreeMap<u64, i64>,
}

impl Listed {
    /// What there is to replay, from the newest checkpoint to the newest version; `None` where there is nothing.
    fn segment(self) -> Option<Segment> {
        let newest = self.commits.last_key_value().map(|(version, modified_ms)| (*version, *modified_ms));
        let checkpoint = self.checkpoints.into_iter().next_back();
        let checkpoint = checkpoint.map(|(version, location)| Checkpoint { version, location });
        let summed_up = checkpoint.as_ref().map(|checkpoint| checkpoint.version);
        let (newest_commit, modified_ms) = newest.or_else(|| Some((summed_up?, 0)))?;
        let version = newest_commit.max(summed_up.unwrap_or(0));
        let first = summed_up.map_or(0, |version| version + 1);
        Some(Segment { checkpoint, commits: first..version + 1, version, modified_ms })
    }

    fn admit(&mut self, object: ObjectMeta) {
        let Some((digits, kind)) = object.location.filename().and_then(|name| name.split_once('.')) else { return };
        if digits.len() != 20 {
            return;
        }
        let Ok(version) = digits.parse() else { return };
        match kind {
            "json" => {
                self.commits.insert(version, object.last_modified.timestamp_millis());
            }
            "checkpoint.parquet" => {
                self.checkpoints.insert(version, object.location);
            }
            _ => {}
        }
    }
}

fn parse_actions(bytes: &[u8]) -> Result<Vec<Action>, String> {
    let actions: Result<Vec<Action>, _> = serde_json::Deserializer::from_slice(bytes).into_iter().collect();
    match actions {
        Ok(actions) if actions.is_empty() => Err("the commit is empty".to_owned()),
        Ok(actions) => Ok(actions),
        Err(error) => Err(format!("the commit is not valid JSON: {error}")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    async fn lake_with(names: &[&str]) -> LogReader {
        let lake = Lake::memory();
        for name in names {
            let body = r#"{"commitInfo":{"timestamp":7}}"#;
            lake.store().put(&Path::parse(format!("t/_delta_log/{name}")).unwrap(), body.into()).await.unwrap();
        }
        LogReader::new(&lake, "t")
    }

    #[tokio::test]
    async fn files_that_are_no_commits_are_passed_over() {
        let reader = lake_with(&[
            "00000000000000000000.json",
            "00000000000000000000.crc",
            "00000000000000000001.json",
            "00000000000000000001.00000000000000000002.compacted.json",
            "00000000000000000001.checkpoint.0000000001.0000000002.parquet",
            "_staged_commits/00000000000000000002.6f0d.json",
            "_sidecars/x.parquet",
            "notes.txt",
            "0001.json",
        ])
        .await;
        let segment = reader.segment().await.unwrap().unwrap();
        assert_eq!((segment.version, segment.commits, segment.checkpoint.is_none()), (1, 0..2, true));
    }

    #[tokio::test]
    async fn a_missing_commit_is_an_error_that_names_it() {
        let reader = lake_with(&["00000000000000000000.json", "00000000000000000002.json"]).await;
        let segment = reader.segment().await.unwrap().unwrap();
        let error = reader.commits(segment.commits).await.unwrap_err();
        assert!(matches!(&error, LakeError::BrokenLog { version: 1, .. }), "{error}");
    }

    #[tokio::test]
    async fn a_commit_that_a_listing_leaves_out_is_asked_for() {
        let reader = lake_with(&["00000000000000000000.json", "00000000000000000001.json"]).await;
        let mut listed = reader.list_from(0).await.unwrap();
        listed.commits.remove(&0);
        let commits = reader.commits(listed.segment().unwrap().commits).await.unwrap();
        assert_eq!(commits.iter().map(|commit| commit.version).collect::<Vec<_>>(), [0, 1]);
    }

    #[tokio::test]
    async fn a_hole_ahead_of_a_reader_is_an_error_and_not_the_end() {
        let names: Vec<String> = [0, 1, 2, 3, 4, 6].iter().map(|version| format!("{version:020}.json")).collect();
        let reader = lake_with(&names.iter().map(String::as_str).collect::<Vec<_>>()).await;
        let error = reader.commits_after(0).await.unwrap_err();
        assert!(matches!(&error, LakeError::BrokenLog { version: 5, .. }), "{error}");
    }

    #[tokio::test]
    async fn an_empty_folder_is_no_table() {
        assert!(lake_with(&[]).await.segment().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_stale_or_torn_hint_costs_a_listing_and_nothing_else() {
        let reader = lake_with(&["00000000000000000000.json", "00000000000000000001.json"]).await;
        for hint in [r#"{"version":7,"size":1}"#, r#"{"vers"#, r#"{"version":1,"parts":3,"size":9}"#] {
            reader.store.put(&reader.log_path("_last_checkpoint"), hint.into()).await.unwrap();
            assert_eq!(reader.segment().await.unwrap().unwrap().version, 1, "{hint}");
        }
    }

    #[tokio::test]
    async fn a_torn_commit_is_an_error_not_a_shorter_history() {
        let reader = lake_with(&["00000000000000000000.json"]).await;
        for torn in ["", r#"{"add":{"path":"#] {
            reader.store.put(&reader.log_path("00000000000000000001.json"), torn.into()).await.unwrap();
            let error = reader.commits_after(0).await.unwrap_err();
            assert!(matches!(error, LakeError::BrokenLog { version: 1, .. }), "{error}");
        }
    }

    #[tokio::test]
    async fn a_reader_far_behind_gets_every_commit_once() {
        let names: Vec<String> = (0..40).map(|version| format!("{version:020}.json")).collect();
        let reader = lake_with(&names.iter().map(String::as_str).collect::<Vec<_>>()).await;
        let commits = reader.commits_after(2).await.unwrap();
        assert_eq!(commits.iter().map(|commit| commit.version).collect::<Vec<_>>(), (3..40).collect::<Vec<_>>());
        assert_eq!(commits[0].committed_ms(), Some(7));
    }
}
