//! Checkpoints of tasks: what a stateless or stateful task remembers between lives.
//!
//! The invariant: a checkpoint is written once under a name that contains its position and is never changed, so any
//! number of owners may write at once. A lost or unreadable one costs time, never rows; but a store that does not
//! answer is an error and never "no checkpoint".
//!
//! Beside them stands where the task once began, written before its first output and never pruned: it tells a task
//! that lost its checkpoints from one that never ran, and all owners agree on it.

use delivery::{Checkpoint, Position};
use futures::TryStreamExt;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions, path::Path};

use crate::{Lake, LakeError, retry};

/// How many checkpoints per partition are kept.
const KEPT: usize = 3;
/// How often the checkpoints are listed anew because those listed were pruned meanwhile.
const LISTINGS: usize = 5;

/// The checkpoints of one stage, per partition.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    lake: Lake,
    stage: String,
}

impl Checkpoints {
    /// The checkpoints of `stage`, whose name contains the incarnation of what it runs.
    pub fn new(lake: &Lake, stage: &str) -> Self {
        Self { lake: lake.clone(), stage: stage.to_owned() }
    }

    /// The newest readable checkpoint of `partition`. An unreadable one is skipped with a warning.
    ///
    /// # Errors
    /// `Store` when the store does not answer: try again, do not start from the beginning.
    pub async fn newest(&self, partition: u32) -> Result<Option<Checkpoint>, LakeError> {
        for _ in 0..LISTINGS {
            let mut pruned = false;
            for (position, location) in self.list(partition).await?.into_iter().rev() {
                match self.get(&location).await? {
                    None => pruned = true,
                    Some(bytes) => match readable(&location, position, &bytes) {
                        Some(checkpoint) => return Ok(Some(checkpoint)),
                        None => continue,
                    },
                }
            }
            // Another owner is ahead of us: what it pruned it has put newer ones for.
            if !pruned {
                return Ok(None);
            }
        }
        let folder = self.folder(partition);
        Err(LakeError::store(
            "reading",
            folder.clone(),
            Error::Generic {
                store: "checkpoints",
                source: format!("`{folder}` changed faster than it could be read").into(),
            },
        ))
    }

    /// Where a task without a checkpoint is to start: at `first` if it never began, else where it then began.
    ///
    /// # Errors
    /// `Store` when the store does not answer, `Beginning` when what it has cannot be read.
    pub async fn begin(&self, partition: u32, first: &Checkpoint) -> Result<Checkpoint, LakeError> {
        let location = self.beginning(partition);
        for _ in 0..LISTINGS {
            if self.create(&location, first).await? {
                return Ok(first.clone());
            }
            if let Some(bytes) = self.get(&location).await? {
                let unreadable = |source| LakeError::Beginning { path: location.to_string(), source };
                return Checkpoint::from_bytes(&bytes).map_err(unreadable);
            }
        }
        Err(LakeError::store(
            "reading",
            location.clone(),
            Error::Generic { store: "checkpoints", source: format!("`{location}` comes and goes").into() },
        ))
    }

    /// Keeps a checkpoint. One that is already there for the same position is as good.
    ///
    /// # Errors
    /// `Store` when it was not kept; the task may go on and try again at its next checkpoint.
    pub async fn put(&self, partition: u32, checkpoint: &Checkpoint) -> Result<(), LakeError> {
        let location = self.location(partition, checkpoint.position);
        self.create(&location, checkpoint).await?;
        if let Err(error) = self.prune(partition).await {
            // Old checkpoints do no harm, and the next put tries again.
            tracing::debug!(stage = self.stage, partition, %error, "old checkpoints not removed");
        }
        Ok(())
    }

    /// Whether this call wrote it; `false` where something was there (perhaps from this call, whose answer got lost).
    async fn create(&self, location: &Path, checkpoint: &Checkpoint) -> Result<bool, LakeError> {
        let bytes = checkpoint.to_bytes();
        let store = self.lake.store();
        let create = || store.put_opts(location, bytes.clone().into(), PutOptions::from(PutMode::Create));
        match retry::repeat(&self.lake.ambient, create).await {
            Ok(_) => Ok(true),
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Ok(false),
            Err(error) => Err(LakeError::store("writing", location.clone(), error)),
        }
    }

    async fn prune(&self, partition: u32) -> Result<(), LakeError> {
        let mut kept = self.list(partition).await?;
        kept.truncate(kept.len().saturating_sub(KEPT));
        for (_, location) in kept {
            match self.lake.store().delete(&location).await {
                Ok(()) | Err(Error::NotFound { .. }) => {}
                Err(error) => return Err(LakeError::store("deleting", location, error)),
            }
        }
        Ok(())
    }

    /// Oldest first.
    async fn list(&self, partition: u32) -> Result<Vec<(Position, Path)>, LakeError> {
        let folder = self.folder(partition);
        let store = self.lake.store();
        let listed = retry::repeat(&self.lake.ambient, || store.list(Some(&folder)).try_collect::<Vec<_>>()).await;
        let listed = match listed {
            Ok(objects) => objects,
            Err(Error::NotFound { .. }) => Vec::new(),
            Err(error) => return Err(LakeError::store("listing", folder, error)),
        };
        let named = listed.into_iter().filter_map(|object| Some((position_of(&object.location)?, object.location)));
        let mut found: Vec<_> = named.collect();
        found.sort_unstable();
        Ok(found)
    }

    async fn get(&self, location: &Path) -> Result<Option<bytes::Bytes>, LakeError> {
        let store = self.lake.store();
        match retry::repeat(&self.lake.ambient, || async { store.get(location).await?.bytes().await }).await {
            Ok(bytes) => Ok(Some(bytes)),
            // Pruned by another owner since it was listed.
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(LakeError::store("reading", location, error)),
        }
    }

    fn folder(&self, partition: u32) -> Path {
        Path::from("_tailwater/checkpoints").join(self.stage.as_str()).join(partition.to_string())
    }

    /// Not among the checkpoints, so that whoever removes those does not make the task look new.
    fn beginning(&self, partition: u32) -> Path {
        Path::from("_tailwater/beginnings").join(self.stage.as_str()).join(format!("{partition}.json"))
    }

    fn location(&self, partition: u32, position: Position) -> Path {
        self.folder(partition).join(format!("{:020}-{:010}.json", position.offset, position.row))
    }
}

fn readable(location: &Path, position: Position, bytes: &[u8]) -> Option<Checkpoint> {
    match Checkpoint::from_bytes(bytes) {
        Ok(checkpoint) if checkpoint.position == position => return Some(checkpoint),
        Ok(checkpoint) => {
            tracing::warn!(%location, found = %checkpoint.position, "checkpoint holds another position than its name; going on from the one before");
        }
        Err(error) => {
            tracing::warn!(%location, %error, "checkpoint cannot be read; going on from the one before");
        }
    }
    None
}

fn position_of(location: &Path) -> Option<Position> {
    let (offset, row) = location.filename()?.strip_suffix(".json")?.split_once('-')?;
    Some(Position::inside(offset.parse().ok()?, row.parse().ok()?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn at(offset: u64) -> Checkpoint {
        Checkpoint::at(Position::at(offset))
    }

    #[tokio::test]
    async fn the_newest_of_a_partition_is_found_and_only_three_are_kept() {
        let lake = Lake::memory();
        let checkpoints = Checkpoints::new(&lake, "ingestion.shop/orders.1");
        assert_eq!(checkpoints.newest(0).await.unwrap(), None);
        for offset in [9, 100, 20, 3, 1_000] {
            checkpoints.put(0, &at(offset)).await.unwrap();
        }
        checkpoints.put(1, &at(5)).await.unwrap();
        assert_eq!(checkpoints.newest(0).await.unwrap().unwrap().position, Position::at(1_000));
        assert_eq!(checkpoints.newest(1).await.unwrap().unwrap().position, Position::at(5));
        let kept: Vec<_> =
            checkpoints.list(0).await.unwrap().into_iter().map(|(position, _)| position.offset).collect();
        assert_eq!(kept, [20, 100, 1_000]);
    }

    #[tokio::test]
    async fn rows_within_one_unit_sort_by_row() {
        let checkpoints = Checkpoints::new(&Lake::memory(), "s");
        for row in [2, 10, 1] {
            checkpoints.put(0, &Checkpoint::at(Position::inside(7, row))).await.unwrap();
        }
        assert_eq!(checkpoints.newest(0).await.unwrap().unwrap().position, Position::inside(7, 10));
    }

    #[tokio::test]
    async fn a_checkpoint_is_never_changed_once_written() {
        let checkpoints = Checkpoints::new(&Lake::memory(), "s");
        let first = at(7);
        let mut second = at(7);
        second.max_event_time = Some(3);
        checkpoints.put(0, &first).await.unwrap();
        checkpoints.put(0, &second).await.unwrap();
        assert_eq!(checkpoints.newest(0).await.unwrap(), Some(first));
    }

    #[tokio::test]
    async fn an_unreadable_newest_falls_back_to_the_one_before() {
        let lake = Lake::memory();
        let checkpoints = Checkpoints::new(&lake, "s");
        checkpoints.put(0, &at(7)).await.unwrap();
        for (offset, body) in [(8, ""), (9, "{\"format\":99}"), (10, "not json")] {
            let location = checkpoints.location(0, Position::at(offset));
            lake.store().put(&location, body.into()).await.unwrap();
        }
        assert_eq!(checkpoints.newest(0).await.unwrap().unwrap().position, Position::at(7));
    }

    #[tokio::test]
    async fn a_task_begins_once_and_all_owners_agree_where() {
        let checkpoints = Checkpoints::new(&Lake::memory(), "s");
        let (one, other) = (at(5), at(7));
        let (one, other) = tokio::join!(checkpoints.begin(0, &one), checkpoints.begin(0, &other));
        let (one, other) = (one.unwrap(), other.unwrap());
        assert_eq!(one, other);
        for offset in 10..20 {
            checkpoints.put(0, &at(offset)).await.unwrap();
        }
        assert_eq!(checkpoints.begin(0, &at(99)).await.unwrap(), one, "pruning leaves it alone");
        assert_eq!(checkpoints.begin(1, &at(3)).await.unwrap(), at(3), "each partition has its own");
        assert_eq!(checkpoints.newest(1).await.unwrap(), None, "where a task began is no checkpoint");
    }

    #[tokio::test]
    async fn a_beginning_that_cannot_be_read_is_no_first_start() {
        let lake = Lake::memory();
        let checkpoints = Checkpoints::new(&lake, "s");
        lake.store().put(&checkpoints.beginning(0), "not json".into()).await.unwrap();
        let error = checkpoints.begin(0, &at(0)).await.unwrap_err();
        assert_eq!(error.class(), delivery::ErrorClass::Stop);
        assert!(error.to_string().contains("_tailwater/beginnings/s/0.json"), "{error}");
    }
}
