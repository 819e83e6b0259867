//! Rows and positions in one commit, by compare-and-swap on the positions.
//!
//! The invariant: of all commits that advance a position from the same place, exactly one lands, once, whatever the
//! store answers. After any error the log itself is read: it alone knows whether a commit landed. Data files are
//! written once; every further attempt names the same files. Not done here: the library's commit loop, which lists
//! the log, does not back off, and takes a lost reply for a conflict.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bytes::Bytes;
use delivery::{CrashPoint, Safeguard};
use deltalake_core::logstore::CommitOrBytes;
use serde_json::{Map, Value, json};
use tokio::time::Instant;
use uuid::Uuid;

use crate::{LakeError, Table, commit_log::LogCommit, metrics, retry};

pub(crate) const ENGINE: &str = concat!("tailwater/", env!("CARGO_PKG_VERSION"));

/// The key in commitInfo by which a commit knows itself again.
pub(crate) const COMMIT_ID: &str = "tailwaterCommit";

const ATTEMPTS: u32 = 30;
/// A request that has not been answered by then has an unknown outcome, like any other failure.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(60);
/// Files older than this may have been vacuumed as orphans (deleted-file retention is a day).
const OLDEST_FILE_MS: i64 = 6 * 60 * 60 * 1000;

/// A data file that lies in the table's folder and is not yet part of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataFile {
    /// Where it lies, relative to the table's folder.
    pub path: String,
    /// Its size in bytes.
    pub size: u64,
    /// How many rows it holds.
    pub rows: u64,
    /// One entry per partition column, in Delta's text form; `None` is null.
    pub partition_values: BTreeMap<String, Option<String>>,
    /// Delta's statistics, as JSON.
    pub stats: String,
    /// When it was uploaded, in milliseconds since the epoch.
    pub modified_ms: i64,
}

/// One stored position to be moved on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advance {
    /// Its name, see [`app_id`](crate::app_id).
    pub app_id: String,
    /// What must be stored for the commit to land; an absent position counts as 0.
    pub from: i64,
    /// What is stored once it has landed.
    pub to: i64,
}

/// Files and positions that land together or not at all.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Commit {
    /// Uploaded files that become part of the table.
    pub files: Vec<DataFile>,
    /// The positions these files bring the table to. At least one.
    pub advances: Vec<Advance>,
    /// Notes for people, kept in the log for a while.
    pub info: Map<String, Value>,
}

/// How a commit ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommitOutcome {
    /// It is part of the table, once.
    Committed {
        /// The version it stands at.
        version: u64,
        /// How often the store was asked.
        attempts: u32,
    },
    /// Nothing was changed: a position was not where the commit expected it. Drop the rows, go on from `stored`.
    Fenced {
        /// The first position that differs.
        app_id: String,
        /// What is stored there.
        stored: i64,
    },
}

impl LogCommit {
    pub(crate) fn is(&self, id: &str) -> bool {
        let infos = self.actions.iter().filter_map(|action| action.commit_info.as_ref());
        infos.into_iter().any(|info| info.get(COMMIT_ID).and_then(Value::as_str) == Some(id))
    }
}

impl Table {
    /// Commits files and positions.
    ///
    /// Cancel safe: dropped half-way the outcome is open, and the next commit finds out.
    /// Fences a commit whose files have waited so long that clean-up may have taken them; going on from the stored
    /// position writes them anew.
    ///
    /// # Errors
    /// `Unsettled` (retry): the store did not answer clearly in all attempts; the same commit may be tried again.
    /// `Mismatch`, `Unsupported`, `InvalidCommit`, `BrokenLog` (stop). The handle stays usable after any of them.
    pub async fn commit(&mut self, commit: Commit) -> Result<CommitOutcome, LakeError> {
        let started = Instant::now();
        self.check(&commit)?;
        let result = self.settle(&commit).await;
        let (label, attempts) = match &result {
            Ok(CommitOutcome::Committed { attempts, .. }) => ("committed", Some(*attempts)),
            Ok(CommitOutcome::Fenced { .. }) => ("fenced", None),
            Err(LakeError::Unsettled { attempts, .. }) => ("failed", Some(*attempts)),
            Err(_) => ("failed", None),
        };
        metrics::commit_settled(&self.spec.name, label, attempts, started.elapsed());
        if label == "committed" {
            metrics::rows_committed(&self.spec.name, commit.files.iter().map(|file| file.rows).sum());
        }
        result
    }

    fn check(&self, commit: &Commit) -> Result<(), LakeError> {
        let refuse = |reason: String| Err(LakeError::InvalidCommit { table: self.spec.folder.clone(), reason });
        if commit.advances.is_empty() {
            return refuse("it advances no position, so a lost reply could not be told from a failure".to_owned());
        }
        let mut names = BTreeSet::new();
        for Advance { app_id, from, to } in &commit.advances {
            if !names.insert(app_id) {
                return refuse(format!("position `{app_id}` is advanced twice"));
            }
            if to < from {
                return refuse(format!("position `{app_id}` would go back from {from} to {to}"));
            }
        }
        for file in &commit.files {
            if !file.partition_values.keys().eq(self.spec.partition_by.iter().collect::<BTreeSet<_>>()) {
                return refuse(format!("file `{}` has partition values {:?}", file.path, file.partition_values));
            }
        }
        Ok(())
    }

    async fn settle(&mut self, commit: &Commit) -> Result<CommitOutcome, LakeError> {
        self.distrust_old_head().await?;
        let now_ms = self.lake.now_ms();
        if commit.files.iter().any(|file| now_ms.saturating_sub(file.modified_ms) > OLDEST_FILE_MS) {
            let first = &commit.advances[0];
            return Ok(CommitOutcome::Fenced {
                app_id: first.app_id.clone(),
                stored: self.head.progress.stored(&first.app_id),
            });
        }
        let id = self.lake.ambient.uuid();
        let bytes = render(commit, &id.to_string(), now_ms);
        let mut attempt = Attempts::default();
        loop {
            if let Some(fenced) = self.fence(&commit.advances) {
                return Ok(fenced);
            }
            self.ensure_definition()?;
            CrashPoint::CommitChecked.pass();
            let target = self.head.progress.version + 1;
            attempt.total += 1;
            let written = self.try_write(target, bytes.clone(), id).await;
            CrashPoint::CommitPut.pass();
            let Err(error) = written else {
                self.landed(target, &commit.advances);
                return Ok(CommitOutcome::Committed { version: target, attempts: attempt.total });
            };
            if Safeguard::Reread.is_off() {
                // What a writer does that takes every failure for somebody else's commit.
                self.head.progress.version = target;
                continue;
            }
            if let Some(version) = self.find_out(&id, &mut attempt, error).await? {
                self.mark_checkpoint_due(version);
                return Ok(CommitOutcome::Committed { version, attempts: attempt.total });
            }
            attempt.fruitless = if self.head.progress.version + 1 > target { 0 } else { attempt.fruitless + 1 };
            // Also after a plain conflict: without a pause all losers would meet again at the next version.
            retry::back_off(&self.lake.ambient, attempt.fruitless + 1).await;
        }
    }

    /// Reads the log after a failed write: `Some` where our commit stands, `None` when it does not stand yet.
    async fn find_out(
        &mut self,
        id: &Uuid,
        attempt: &mut Attempts,
        mut error: Failure,
    ) -> Result<Option<u64>, LakeError> {
        let id = id.to_string();
        loop {
            match self.catch_up(Some(&id)).await {
                Ok(Some(version)) => return Ok(Some(version)),
                Ok(None) if attempt.total < ATTEMPTS => return Ok(None),
                Ok(None) => {}
                Err(broken @ (LakeError::BrokenLog { .. } | LakeError::Mismatch { .. })) => return Err(broken),
                Err(unreadable) => error = unreadable.into(),
            }
            if attempt.total >= ATTEMPTS {
                let (table, version) = (self.spec.folder.clone(), self.head.progress.version + 1);
                return Err(LakeError::Unsettled { table, version, attempts: attempt.total, source: error });
            }
            attempt.total += 1;
            attempt.fruitless += 1;
            retry::back_off(&self.lake.ambient, attempt.fruitless).await;
        }
    }

    async fn try_write(&self, version: u64, bytes: Bytes, id: Uuid) -> Result<(), Failure> {
        let written = self.log.write_commit_entry(version, CommitOrBytes::LogBytes(bytes), id);
        match tokio::time::timeout(ATTEMPT_TIMEOUT, written).await {
            Ok(answer) => answer.map_err(Into::into),
            Err(elapsed) => Err(elapsed.into()),
        }
    }

    fn fence(&self, advances: &[Advance]) -> Option<CommitOutcome> {
        if Safeguard::PositionCheck.is_off() {
            return None;
        }
        let stored = |advance: &Advance| self.head.progress.stored(&advance.app_id);
        let moved = advances.iter().find(|advance| stored(advance) != advance.from)?;
        Some(CommitOutcome::Fenced { app_id: moved.app_id.clone(), stored: stored(moved) })
    }

    fn landed(&mut self, version: u64, advances: &[Advance]) {
        let progress = &mut self.head.progress;
        progress.version = version;
        let moved = advances.iter().filter(|advance| advance.to != advance.from);
        progress.txns.extend(moved.map(|advance| (advance.app_id.clone(), advance.to)));
        self.confirmed_ms = self.lake.now_ms();
        self.mark_checkpoint_due(version);
    }

    // Each version has one committer, so each checkpoint is asked for once however many writers there are.
    fn mark_checkpoint_due(&mut self, version: u64) {
        if version.is_multiple_of(self.checkpoint_every) {
            self.checkpoint_due = Some(version);
        }
    }
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[derive(Default)]
struct Attempts {
    total: u32,
    /// Attempts in a row that met no commit of anybody.
    fruitless: u32,
}

fn render(commit: &Commit, id: &str, now_ms: i64) -> Bytes {
    let rows: u64 = commit.files.iter().map(|file| file.rows).sum();
    let size: u64 = commit.files.iter().map(|file| file.size).sum();
    // First, as readers that know in-commit timestamps expect it.
    let info = json!({ "commitInfo": {
        "timestamp": now_ms,
        "operation": "STREAMING UPDATE",
        "operationParameters": { "outputMode": "Append" },
        "operationMetrics": {
            "numAddedFiles": commit.files.len().to_string(),
            "numOutputRows": rows.to_string(),
            "numOutputBytes": size.to_string(),
        },
        "isBlindAppend": true,
        "engineInfo": ENGINE,
        COMMIT_ID: id,
        "tailwater": commit.info,
    }});
    let moved = commit.advances.iter().filter(|advance| advance.to != advance.from);
    let txns = moved
        .map(|advance| json!({ "txn": { "appId": advance.app_id, "version": advance.to, "lastUpdated": now_ms } }));
    let adds = commit.files.iter().map(|file| {
        json!({ "add": {
            // A path in the log is URL-encoded; ours contain nothing but `%` that needs it.
            "path": file.path.replace('%', "%25"),
            "partitionValues": file.partition_values,
            "size": file.size,
            "modificationTime": file.modified_ms,
            "dataChange": true,
            "stats": file.stats,
        }})
    });
    let lines: Vec<String> = [info].into_iter().chain(txns).chain(adds).map(|line| line.to_string()).collect();
    lines.join("\n").into()
}
