//! Delta tables on object storage: create, commit with positions, read, checkpoint.
//!
//! The invariant: rows and the positions they came from change in one commit, by compare-and-swap on the positions,
//! so a crash, a lost reply or a second writer can neither lose nor double a row. The only user of the Delta library,
//! and of it only the parts that do not commit: its commit loop and its OPTIMIZE are not safe for us.
//!
//! Deliberately absent: deciding what to commit and when (service `storage`), queries (service `analysis`),
//! compaction, expiry and vacuum.

mod ambient;
pub mod app_id;
mod append;
pub mod audit;
mod checkpoint_file;
mod checkpoints;
mod column_stats;
mod commit_log;
mod error;
mod features;
mod local;
pub mod metrics;
mod partitions;
mod probe;
mod progress;
mod read;
mod retry;
mod schema;
mod store;
mod table;
mod text;
mod upkeep;
mod write;

pub use ambient::Clock;
pub use append::{Advance, Commit, CommitOutcome, DataFile};
pub use checkpoints::Checkpoints;
pub use error::LakeError;
pub use partitions::rows_without_partition;
pub use progress::Progress;
pub use read::{FileEntry, FileStats, Snapshot};
pub use schema::{from_delta_schema, to_delta_schema};
pub use store::{Lake, StoreConfig};
pub use table::{OFFSET_COLUMN, PARTITION_COLUMN, Table, TableSpec};
pub use upkeep::{CheckpointJob, CheckpointRun, DEFAULT_CHECKPOINT_EVERY};
pub use write::{EncodedFile, FileWriter, WriterOptions};
