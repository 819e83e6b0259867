//! The newest known version of each table, shared by all queries.
//!
//! The invariant: what [`SnapshotCache::pin`] returns was checked against the store after it was asked for, so a
//! query sees every commit that finished before it began. A check is one request when nothing changed, and queries
//! that ask at the same time share one. Deliberately absent: a maximum age, which would trade that invariant for the
//! request, and any knowledge of which tables exist.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use datafusion::common::DataFusionError;
use lake::{Lake, LakeError, Snapshot};

use crate::table::{Layout, PinnedFiles};

/// A table could not be read at its newest version.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// The store or the Delta log refused.
    #[error("table in folder `{folder}` could not be read")]
    Lake {
        /// The table's folder.
        folder: String,
        /// Why.
        #[source]
        source: LakeError,
    },
    /// The log says something its schema does not allow.
    #[error("table in folder `{folder}` is not as declared")]
    Layout {
        /// The table's folder.
        folder: String,
        /// Why.
        #[source]
        source: DataFusionError,
    },
}

/// See the module.
#[derive(Debug)]
pub struct SnapshotCache {
    lake: Lake,
    tables: Mutex<HashMap<String, Arc<Entry>>>,
}

#[derive(Debug, Default)]
struct Entry {
    /// Numbers callers in the order they asked.
    asked: AtomicU64,
    newest: tokio::sync::Mutex<Newest>,
}

#[derive(Debug, Default)]
struct Newest {
    /// The last caller that had asked when the latest check began.
    covers: u64,
    known: Option<(Snapshot, PinnedFiles)>,
}

impl SnapshotCache {
    /// An empty cache over a store.
    pub fn new(lake: Lake) -> Self {
        Self { lake, tables: Mutex::default() }
    }

    /// The store.
    pub fn lake(&self) -> &Lake {
        &self.lake
    }

    /// The table's newest version; `None` when nothing was ever committed.
    ///
    /// **Cancel safety**: dropped half done, it leaves what was known before.
    ///
    /// # Errors
    /// [`PinError`] when the store does not answer or the log is unreadable.
    pub async fn pin(&self, folder: &str, layout: &Layout) -> Result<Option<PinnedFiles>, PinError> {
        let entry = self.entry(folder);
        let number = entry.asked.fetch_add(1, Ordering::SeqCst) + 1;
        let mut newest = entry.newest.lock().await;
        if newest.covers < number {
            let covers = entry.asked.load(Ordering::SeqCst);
            newest.known = self.check(folder, layout, newest.known.as_ref()).await?;
            newest.covers = covers;
        }
        Ok(newest.known.as_ref().map(|(_, files)| files.clone()))
    }

    /// Forgets tables whose folder is not wanted any more.
    pub fn retain(&self, wanted: impl Fn(&str) -> bool) {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner).retain(|folder, _| wanted(folder));
    }

    fn entry(&self, folder: &str) -> Arc<Entry> {
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(tables.entry(folder.to_owned()).or_default())
    }

    async fn check(
        &self,
        folder: &str,
        layout: &Layout,
        known: Option<&(Snapshot, PinnedFiles)>,
    ) -> Result<Option<(Snapshot, PinnedFiles)>, PinError> {
        let lake_error = |source| PinError::Lake { folder: folder.to_owned(), source };
        let before = known.map(|(snapshot, _)| snapshot);
        let Some(snapshot) = newest(&self.lake, folder, before).await.map_err(lake_error)? else { return Ok(None) };
        match known {
            Some((_, files)) if files.version() == snapshot.version => Ok(Some((snapshot, files.clone()))),
            _ => {
                let earlier = known.map(|(_, files)| files);
                let files = PinnedFiles::new(layout, &snapshot, earlier)
                    .map_err(|source| PinError::Layout { folder: folder.to_owned(), source })?;
                Ok(Some((snapshot, files)))
            }
        }
    }
}

/// The table in `folder` as it is now, read on from what is `known` of it.
///
/// # Errors
/// When the store does not answer or the log is unreadable.
pub(crate) async fn newest(lake: &Lake, folder: &str, known: Option<&Snapshot>) -> Result<Option<Snapshot>, LakeError> {
    let Some(known) = known else { return Snapshot::load(lake, folder).await };
    match known.refresh(lake).await {
        Ok(snapshot) => Ok(Some(snapshot)),
        // The folder was emptied: the table is there, without rows.
        Err(LakeError::Mismatch { .. }) => Snapshot::load(lake, folder).await,
        Err(error) => Err(error),
    }
}
