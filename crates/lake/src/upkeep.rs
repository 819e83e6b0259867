//! Checkpoints of a table's log, so that opening a long log stays fast.
//!
//! A classic single-file checkpoint, written by the library. It replays the whole log and blocks while it writes, so
//! it runs on a blocking thread and never on the way of a commit. A checkpoint is a cache of the log: losing one
//! costs time, so failures are told and forgotten. Deliberately absent: removing old commits, compaction, vacuum.

use std::{sync::Arc, time::Duration};

use delivery::CrashPoint;
use deltalake_core::{DeltaTable, checkpoints::create_checkpoint};
use tokio::{runtime::Handle, time::Instant};

use crate::{Lake, LakeError, TableSpec, metrics};

/// Versions between two checkpoints of a log.
pub const DEFAULT_CHECKPOINT_EVERY: u64 = 100;

/// A checkpoint that should be written.
#[derive(Debug)]
#[must_use = "a checkpoint that is not run makes the table slow to open"]
pub struct CheckpointJob {
    lake: Lake,
    folder: Arc<str>,
    name: Arc<str>,
    version: u64,
}

/// How the writing of a checkpoint went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointRun {
    /// Whether it was written.
    pub written: bool,
    /// What it took, without the wait for its turn among those of the lake.
    pub took: Duration,
}

impl CheckpointJob {
    pub(crate) fn new(lake: &Lake, spec: &TableSpec, version: u64) -> Self {
        let (folder, name) = (spec.folder.as_str().into(), spec.name.as_str().into());
        Self { lake: lake.clone(), folder, name, version }
    }

    /// The version to be checkpointed.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Writes the checkpoint. A failure is logged as a warning, and the next checkpoint makes up for it. Dropped
    /// half-way, the work goes on to its end on its own thread.
    pub async fn run(self) -> CheckpointRun {
        CrashPoint::LogCheckpoint.pass();
        let (table, version) = (Arc::clone(&self.name), self.version);
        let (outcome, took) = self.write().await;
        let written = outcome.is_ok();
        metrics::checkpoint_finished(&table, if written { "written" } else { "failed" }, took);
        match outcome {
            Ok(()) => tracing::debug!(table = &*table, version, ?took, "log checkpoint written"),
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::warn!(table = &*table, version, %error, cause, "log checkpoint not written; opening the table stays slower until the next");
            }
        }
        CheckpointRun { written, took }
    }

    async fn write(self) -> (Result<(), LakeError>, Duration) {
        let (folder, version) = (Arc::clone(&self.folder), self.version);
        let turn = Arc::clone(&self.lake.checkpointing).acquire_owned().await;
        let started = Instant::now();
        let runtime = Handle::current();
        let work = tokio::task::spawn_blocking(move || {
            // Kept to the end of the work, which goes on when nobody waits for it any more.
            let _turn = turn;
            runtime.block_on(async {
                let mut table = DeltaTable::new(self.lake.log_store(&self.folder));
                table.load_version(self.version).await?;
                create_checkpoint(&table, None).await
            })
        });
        let failed = |source| LakeError::Checkpoint { table: folder.to_string(), version, source };
        let outcome = match work.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(failed(error.into())),
            Err(panic) => Err(failed(panic.into())),
        };
        (outcome, started.elapsed())
    }
}
