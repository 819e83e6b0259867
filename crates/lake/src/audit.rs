//! Whether a table's log, its files and its positions agree: everything Tailwater promises of a table, checked from
//! the store alone.
//!
//! Checked: versions follow each other without holes; no commit stands twice and no file is part of the table twice;
//! positions never go back; a commit adds as many rows as its positions say; checkpoints equal the replayed log; every
//! active file is there with its true size and row count; and, where rows are read too, they lie in the stretch their
//! commit covers. Commits of other programs are allowed and not held to our positions.
//! The invariant: what is wrong with the table is a fault in the answer; only a store that does not answer is an error.
//! Deliberately absent: repair, and what rows mean.

mod files;
mod stretch;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use arrow::array::RecordBatch;
use futures::{StreamExt, stream};
use serde_json::Value;

pub use self::files::Rows;
use self::stretch::Stretches;
use crate::{
    Lake, LakeError,
    append::COMMIT_ID,
    checkpoint_file::{self, Wanted},
    commit_log::{Action, AddAction, Checkpoint, Listed, LogCommit, LogReader},
};

/// Commits fetched at a time.
const FETCH_AT_ONCE: usize = 16;
/// Faults that are told; all are counted.
const FAULTS_TOLD: usize = 20;

/// What an audit found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Audit {
    /// The newest version.
    pub version: u64,
    /// Commits read.
    pub commits: u64,
    /// Commits of other programs among them.
    pub foreign: u64,
    /// Active files.
    pub files: u64,
    /// Rows in them, by their footers.
    pub rows: u64,
    /// Positions the table stores.
    pub positions: u64,
    /// How many faults there are.
    pub faults: u64,
    /// The first of them.
    pub told: Vec<Fault>,
}

/// One thing that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The version it is about, where it is about one.
    pub version: Option<u64>,
    /// What was found, in words.
    pub what: String,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.version {
            Some(version) => write!(formatter, "version {version}: {}", self.what),
            None => formatter.write_str(&self.what),
        }
    }
}

impl Audit {
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.faults == 0
    }

    fn fault(&mut self, version: impl Into<Option<u64>>, what: impl Into<String>) {
        self.faults += 1;
        if self.told.len() < FAULTS_TOLD {
            self.told.push(Fault { version: version.into(), what: what.into() });
        }
    }
}

/// What a table holds of what its writers say they have done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    /// What they emitted: as many rows as they say.
    Emitted,
    /// What they rejected: a long one takes several rows.
    Rejected,
}

/// Audits the table in `folder`; `None` where there is no table. With `rows`, every active file is read whole and its
/// rows are shown, file by file as they were added.
///
/// # Errors
/// `Store` (retry): the store does not answer.
pub async fn audit(
    lake: &Lake,
    folder: &str,
    holds: Holds,
    rows: Option<Rows<'_>>,
) -> Result<Option<Audit>, LakeError> {
    let reader = LogReader::new(lake, folder);
    let listed = reader.list_from(0).await?;
    let Some(newest) = listed.commits.keys().chain(listed.checkpoints.keys()).max() else { return Ok(None) };
    let audit = Audit { version: *newest, ..Audit::default() };
    let mut replay = Replay {
        audit,
        holds,
        active: HashMap::new(),
        txns: BTreeMap::new(),
        ids: HashMap::new(),
        stretches: Stretches::default(),
        order: 0,
    };
    replay.run(&reader, &listed).await?;
    let Replay { mut audit, active, stretches, .. } = replay;
    audit.files = active.len() as u64;
    files::check(lake, folder, &active, &stretches, rows, &mut audit).await?;
    Ok(Some(audit))
}

/// An active file, and when it was added.
#[derive(Clone, Debug)]
struct ActiveFile {
    version: u64,
    /// Its place among all files ever added.
    order: u64,
    add: AddAction,
}

/// The log, replayed up to some version.
struct Replay {
    audit: Audit,
    holds: Holds,
    active: HashMap<String, ActiveFile>,
    txns: BTreeMap<String, i64>,
    /// Ids of our commits, and where they stand.
    ids: HashMap<String, u64>,
    stretches: Stretches,
    /// How many files were added so far.
    order: u64,
}

impl Replay {
    async fn run(&mut self, reader: &LogReader, listed: &Listed) -> Result<(), LakeError> {
        let next = self.begin(reader, listed).await?;
        let fetches = (next..=self.audit.version).map(|version| async move { (version, reader.commit(version).await) });
        let mut commits = stream::iter(fetches).buffered(FETCH_AT_ONCE);
        while let Some((version, commit)) = commits.next().await {
            match commit {
                Ok(Some(commit)) => self.take(commit),
                Ok(None) => self.audit.fault(version, "the commit is missing, though the log goes on"),
                Err(LakeError::BrokenLog { reason, .. }) => self.audit.fault(version, reason),
                Err(error) => return Err(error),
            }
            if let Some(location) = listed.checkpoints.get(&version) {
                let checkpoint = Checkpoint { version, location: location.clone() };
                self.compare(reader, &checkpoint).await?;
            }
        }
        self.audit.positions = self.txns.len() as u64;
        Ok(())
    }

    /// Where to replay from: version 0, or the oldest checkpoint of a log whose beginning was cleaned up.
    async fn begin(&mut self, reader: &LogReader, listed: &Listed) -> Result<u64, LakeError> {
        if listed.commits.contains_key(&0) {
            return Ok(0);
        }
        let Some((&version, location)) = listed.checkpoints.first_key_value() else {
            self.audit.fault(0, "the log has no beginning: neither version 0 nor a checkpoint");
            return Ok(listed.commits.first_key_value().map_or(0, |(version, _)| *version));
        };
        let checkpoint = Checkpoint { version, location: location.clone() };
        match checkpoint_file::read(reader, &checkpoint, Wanted::Everything).await {
            Ok(actions) => actions.into_iter().for_each(|action| self.inherit(version, action)),
            Err(LakeError::BrokenLog { reason, .. }) => self.audit.fault(version, reason),
            Err(error) => return Err(error),
        }
        Ok(version + 1)
    }

    fn inherit(&mut self, version: u64, action: Action) {
        self.order += 1;
        if let Some(add) = action.add {
            self.active.insert(add.path.clone(), ActiveFile { version, order: self.order, add });
        }
        if let Some(txn) = action.txn {
            self.txns.insert(txn.app_id, txn.version);
        }
    }

    fn take(&mut self, commit: LogCommit) {
        self.audit.commits += 1;
        let version = commit.version;
        let id = commit.actions.iter().find_map(|action| action.commit_info.as_ref()?.get(COMMIT_ID)?.as_str());
        let id = id.map(str::to_owned);
        match &id {
            Some(id) => {
                if let Some(first) = self.ids.insert(id.clone(), version) {
                    self.audit.fault(version, format!("the same commit stands at version {first} already"));
                }
            }
            None if version > 0 => self.audit.foreign += 1,
            None => {}
        }
        let before = self.txns.clone();
        let (mut added, mut moved) = (0, 0);
        for action in commit.actions {
            if let Some(txn) = action.txn {
                self.advance(version, txn.app_id, txn.version);
                moved += 1;
            }
            if let Some(remove) = action.remove
                && self.active.remove(&remove.path).is_none()
            {
                self.audit.fault(version, format!("`{}` is removed and was not part of the table", remove.path));
            }
            if let Some(add) = action.add {
                added += rows_of(&add).unwrap_or(0);
                self.add(version, add);
            }
        }
        if id.is_some() {
            if added > 0 && moved == 0 {
                self.audit.fault(version, format!("{added} rows are added and no position moves"));
            }
            let said = stretch::counted(self.holds, &self.txns) - stretch::counted(self.holds, &before);
            let fits = match self.holds {
                Holds::Emitted => said == i128::from(added),
                Holds::Rejected => said <= i128::from(added),
            };
            if !fits {
                self.audit.fault(version, format!("{added} rows are added, the positions say {said}"));
            }
            self.stretches.note(version, &before, &self.txns);
        }
    }

    fn advance(&mut self, version: u64, app_id: String, to: i64) {
        let from = self.txns.get(&app_id).copied().unwrap_or(0);
        if to < from {
            self.audit.fault(version, format!("position `{app_id}` goes back from {from} to {to}"));
        }
        self.txns.insert(app_id, to);
    }

    fn add(&mut self, version: u64, add: AddAction) {
        self.order += 1;
        let path = add.path.clone();
        let file = ActiveFile { version, order: self.order, add };
        if let Some(first) = self.active.insert(path.clone(), file) {
            let first = first.version;
            self.audit
                .fault(version, format!("`{path}` is added again, it is part of the table since version {first}"));
        }
    }

    /// A checkpoint must say what the log up to it says.
    async fn compare(&mut self, reader: &LogReader, checkpoint: &Checkpoint) -> Result<(), LakeError> {
        let version = checkpoint.version;
        let actions = match checkpoint_file::read(reader, checkpoint, Wanted::Everything).await {
            Ok(actions) => actions,
            Err(LakeError::BrokenLog { reason, .. }) => {
                self.audit.fault(version, reason);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let (mut paths, mut txns, mut twice) = (HashSet::new(), BTreeMap::new(), BTreeSet::new());
        for action in actions {
            if let Some(add) = action.add
                && !paths.insert(add.path.clone())
            {
                twice.insert(add.path);
            }
            if let Some(txn) = action.txn {
                txns.insert(txn.app_id, txn.version);
            }
        }
        let missing = self.active.keys().filter(|path| !paths.contains(*path)).count();
        let strange = paths.iter().filter(|path| !self.active.contains_key(*path)).count();
        if missing + strange + twice.len() > 0 {
            let twice = twice.len();
            let what = format!("the checkpoint lacks {missing} files, has {strange} too many and {twice} twice");
            self.audit.fault(version, what);
        }
        if txns != self.txns {
            self.audit.fault(version, "the checkpoint has other positions than the log");
        }
        Ok(())
    }
}

/// How many rows a file has, as its statistics say.
fn rows_of(add: &AddAction) -> Option<u64> {
    let stats: Value = serde_json::from_str(add.stats.as_deref()?).ok()?;
    stats.get("numRecords")?.as_u64()
}

/// What is called for each batch of a file that is read.
pub type Show<'a> = dyn FnMut(&RecordBatch) + Send + 'a;
