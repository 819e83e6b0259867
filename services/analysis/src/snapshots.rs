//! The newest known version of each table, shared by all queries and the ledger.
//!
//! The invariant: what [`SnapshotCache`] returns was checked against the store after it was asked for, so a query sees
//! every commit that finished before it began. A check is one request when nothing changed, and queries
//! that ask at the same time share one. What a caller who gives up has begun, the next one goes on with: callers who
//! never wait long enough still get there. Deliberately absent: a maximum age, which would trade that invariant for
//! the request, and any knowledge of which tables exist.

use std::{
    collections::HashMap,
    fmt,
    panic::{AssertUnwindSafe, resume_unwind},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use datafusion::common::DataFusionError;
use futures::{FutureExt as _, future::BoxFuture};
use lake::{Lake, LakeError, Snapshot};
use runtime::edges::Edges;
use tokio::sync::OwnedMutexGuard;

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
    newest: Arc<tokio::sync::Mutex<Newest>>,
}

#[derive(Debug, Default)]
struct Newest {
    /// The last caller that had asked when the latest check began.
    covers: u64,
    known: Option<Snapshot>,
    /// Those of a version that was asked for as a table to query: `known`, or one before it.
    files: Option<PinnedFiles>,
    checking: Option<Checking>,
}

/// A check that has begun. Nobody may be waiting for it any more.
struct Checking {
    covers: u64,
    /// A panic is an outcome: it must not be met again by whoever comes next.
    outcome: BoxFuture<'static, thread::Result<Result<Option<Snapshot>, LakeError>>>,
}

impl fmt::Debug for Checking {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Checking").field("covers", &self.covers).finish_non_exhaustive()
    }
}

/// The one cache of a process.
pub(crate) fn of_process(edges: &Edges) -> Arc<SnapshotCache> {
    edges.shared.get_or_make(|| Arc::new(SnapshotCache::new(edges.lake.clone())))
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

    /// The table's newest version, to be queried; `None` when nothing was ever committed.
    ///
    /// **Cancel safety**: dropped half done, it leaves what was known before, and the next call goes on from there.
    ///
    /// # Errors
    /// [`PinError`] when the store does not answer or the log is unreadable.
    pub async fn pin(&self, folder: &str, layout: &Layout) -> Result<Option<PinnedFiles>, PinError> {
        let newest = self.checked(folder).await.map_err(|source| PinError::Lake { folder: folder.to_owned(), source });
        let not_as_declared = |source| PinError::Layout { folder: folder.to_owned(), source };
        newest?.pin(layout).map_err(not_as_declared)
    }

    /// The table's newest version; `None` when nothing was ever committed. Cancel safe as [`SnapshotCache::pin`].
    ///
    /// # Errors
    /// When the store does not answer or the log is unreadable.
    pub async fn newest(&self, folder: &str) -> Result<Option<Snapshot>, LakeError> {
        Ok(self.checked(folder).await?.known.clone())
    }

    async fn checked(&self, folder: &str) -> Result<OwnedMutexGuard<Newest>, LakeError> {
        let entry = self.entry(folder);
        let number = entry.asked.fetch_add(1, Ordering::SeqCst) + 1;
        let mut newest = Arc::clone(&entry.newest).lock_owned().await;
        while newest.covers < number {
            let Newest { known, checking, .. } = &mut *newest;
            let checking = checking.get_or_insert_with(|| {
                let covers = entry.asked.load(Ordering::SeqCst);
                let (lake, folder, known) = (self.lake.clone(), folder.to_owned(), known.clone());
                let check = async move { read_on(&lake, &folder, known).await };
                Checking { covers, outcome: AssertUnwindSafe(check).catch_unwind().boxed() }
            });
            let (covers, outcome) = (checking.covers, checking.outcome.as_mut().await);
            newest.checking = None;
            match outcome.unwrap_or_else(|panic| resume_unwind(panic)) {
                Ok(snapshot) => (newest.known, newest.covers) = (snapshot, covers),
                // Of a check that somebody else began, long ago perhaps.
                Err(_) if covers < number => {}
                Err(error) => return Err(error),
            }
        }
        Ok(newest)
    }

    /// Forgets tables whose folder is not wanted any more.
    pub fn retain(&self, wanted: impl Fn(&str) -> bool) {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner).retain(|folder, _| wanted(folder));
    }

    fn entry(&self, folder: &str) -> Arc<Entry> {
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(tables.entry(folder.to_owned()).or_default())
    }
}

impl Newest {
    /// The files of the known version, worked out from those of the one before.
    fn pin(&mut self, layout: &Layout) -> Result<Option<PinnedFiles>, DataFusionError> {
        self.files = match (&self.known, self.files.take()) {
            (None, _) => None,
            (Some(known), Some(files)) if files.version() == known.version => Some(files),
            (Some(known), before) => Some(PinnedFiles::new(layout, known, before.as_ref())?),
        };
        Ok(self.files.clone())
    }
}

/// The table in `folder` as it is now, read on from what is `known` of it.
async fn read_on(lake: &Lake, folder: &str, known: Option<Snapshot>) -> Result<Option<Snapshot>, LakeError> {
    let Some(known) = known else { return Snapshot::load(lake, folder).await };
    match known.refresh(lake).await {
        Ok(snapshot) => Ok(Some(snapshot)),
        // The folder was emptied: the table is there, without rows.
        Err(LakeError::Mismatch { .. }) => Snapshot::load(lake, folder).await,
        Err(error) => Err(error),
    }
}
