//! How far a table has come: its newest version and the positions stored with it.
//!
//! The invariant: positions are those of exactly `version`, from one replay. Read by us rather than by the library,
//! whose public interface replays the log once per position.

use std::collections::BTreeMap;

use crate::{
    LakeError,
    checkpoint_file::{self, Wanted},
    commit_log::{Action, LogCommit, LogReader, Metadata, Protocol, Segment},
};

/// The newest known version of a table and the positions stored in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The Delta version.
    pub version: u64,
    /// Per `appId`, the stored `version`: see [`app_id`](crate::app_id) for the names. Absent counts as 0.
    pub txns: BTreeMap<String, i64>,
}

impl Progress {
    /// The position stored under `app_id`; 0 where there is none.
    pub fn stored(&self, app_id: &str) -> i64 {
        self.txns.get(app_id).copied().unwrap_or(0)
    }
}

/// Everything a committer must know of a table, at one version.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    pub(crate) progress: Progress,
    pub(crate) protocol: Protocol,
    pub(crate) metadata: Metadata,
    /// How many commits lie after the newest checkpoint.
    pub(crate) commits_to_replay: u64,
}

impl Head {
    /// Reads the head of a log; `None` where there is no table.
    pub(crate) async fn load(reader: &LogReader) -> Result<Option<Self>, LakeError> {
        let Some(replay) = replay(reader, Wanted::Progress).await? else { return Ok(None) };
        let mut parts = Parts::default();
        let commits_to_replay = u64::try_from(replay.commits.len()).unwrap_or(u64::MAX);
        for action in replay.base {
            parts.take(action);
        }
        for commit in replay.commits {
            commit.actions.into_iter().for_each(|action| parts.take(action));
        }
        let broken = |what| LakeError::broken(reader.folder(), replay.version, format!("the log has no {what}"));
        Ok(Some(Self {
            progress: Progress { version: replay.version, txns: parts.txns },
            protocol: parts.protocol.ok_or_else(|| broken("protocol"))?,
            metadata: parts.metadata.ok_or_else(|| broken("metadata"))?,
            commits_to_replay,
        }))
    }

    /// Moves on by one commit; true when it changed the table's definition.
    pub(crate) fn apply(&mut self, commit: LogCommit) -> bool {
        let mut parts = Parts { txns: std::mem::take(&mut self.progress.txns), ..Parts::default() };
        commit.actions.into_iter().for_each(|action| parts.take(action));
        self.progress = Progress { version: commit.version, txns: parts.txns };
        let changed = parts.protocol.is_some() || parts.metadata.is_some();
        if let Some(protocol) = parts.protocol {
            self.protocol = protocol;
        }
        if let Some(metadata) = parts.metadata {
            self.metadata = metadata;
        }
        changed
    }
}

#[derive(Default)]
struct Parts {
    txns: BTreeMap<String, i64>,
    protocol: Option<Protocol>,
    metadata: Option<Metadata>,
}

impl Parts {
    fn take(&mut self, action: Action) {
        if let Some(txn) = action.txn {
            self.txns.insert(txn.app_id, txn.version);
        }
        self.protocol = action.protocol.or(self.protocol.take());
        self.metadata = action.meta_data.or(self.metadata.take());
    }
}

/// A log in replay order: the checkpoint's actions, then the commits after it.
pub(crate) struct Replay {
    pub(crate) version: u64,
    pub(crate) base: Vec<Action>,
    pub(crate) commits: Vec<LogCommit>,
    /// When the store received the newest commit, in milliseconds since the epoch.
    pub(crate) modified_ms: i64,
}

/// Reads a log from its newest readable checkpoint on.
pub(crate) async fn replay(reader: &LogReader, wanted: Wanted) -> Result<Option<Replay>, LakeError> {
    // Clean-up may take a listed object away before it is read; what it leaves is complete, so look once more.
    match replay_once(reader, wanted).await {
        Err(LakeError::BrokenLog { .. }) => replay_once(reader, wanted).await,
        outcome => outcome,
    }
}

async fn replay_once(reader: &LogReader, wanted: Wanted) -> Result<Option<Replay>, LakeError> {
    let Some(mut segment) = reader.segment().await? else { return Ok(None) };
    let (base, unreadable) = base(reader, &mut segment, wanted).await?;
    let commits = match (reader.commits(segment.commits).await, unreadable) {
        // Cleaned up, since there was a checkpoint: it is what is wrong.
        (Err(LakeError::BrokenLog { .. }), Some(unreadable)) => return Err(unreadable),
        (commits, _) => commits?,
    };
    Ok(Some(Replay { version: segment.version, base, commits, modified_ms: segment.modified_ms }))
}

/// The actions of the segment's checkpoint. Where that cannot be read, the segment becomes the one from the checkpoint
/// before it, or from version 0: what a checkpoint says, the commits up to it say too, while they are all there. Then
/// also what is wrong with the newest.
async fn base(
    reader: &LogReader,
    segment: &mut Segment,
    wanted: Wanted,
) -> Result<(Vec<Action>, Option<LakeError>), LakeError> {
    let mut newest = None;
    loop {
        let Some(checkpoint) = segment.checkpoint.clone() else { return Ok((Vec::new(), newest)) };
        let unreadable = match checkpoint_file::read(reader, &checkpoint, wanted).await {
            Ok(actions) => return Ok((actions, newest)),
            Err(error @ LakeError::BrokenLog { .. }) => error,
            Err(error) => return Err(error),
        };
        let told = unreadable.to_string();
        let unreadable = newest.take().unwrap_or(unreadable);
        *segment = match reader.segment_before(checkpoint.version).await {
            // A log that goes less far than the checkpoint says is not all of it.
            Ok(Some(before)) if before.version >= segment.version => before,
            Ok(_) => return Err(unreadable),
            Err(error) => return Err(error),
        };
        newest = Some(unreadable);
        tracing::warn!(location = %checkpoint.location, error = told, "log checkpoint cannot be read; going on from the one before; remove it, or no newer one is written");
    }
}
