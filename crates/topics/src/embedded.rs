//! A durable log inside one process, on one file.
//!
//! Invariant: a receipt resolves only after its message is on the disk. One writer thread takes
//! everything that is queued, writes it in one transaction with one sync, and only then settles the
//! receipts; so throughput grows with load and nothing is acknowledged early. A crash at any moment
//! leaves the last commit.
//!
//! Deliberately absent: sharing between processes (the folder is locked), replication, and giving
//! space back to the file system: what retention frees is used again by later messages.

mod backend;
mod lock;
mod reader;
mod record;
mod retention;
mod state;
mod writer;

use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use redb::backends::FileBackend;
use redb::{Builder, Database, DatabaseError, StorageBackend, StorageError};
use tokio::sync::oneshot;

use crate::limits::MESSAGE_OVERHEAD_BYTES;
use crate::outstanding::Pending;
use crate::position::check_position;
use crate::{
    Appender, Clock, Creation, Description, Log, Membership, NewMessage, Reader, Receipt, Span, TopicError, TopicName,
    TopicSettings, wall_clock,
};

use backend::{Patience, PatientFile};
use lock::FolderLock;
use reader::EmbeddedReader;
use state::{Append, Op, Shared, TopicState};
use writer::Writer;

const FILE: &str = "log.redb";

/// How an embedded log behaves.
#[derive(Clone)]
pub struct EmbeddedOptions {
    /// What may be queued and not yet durable. Also bounds one group commit. Default 64 MiB.
    pub max_inflight_bytes: usize,
    /// Memory for pages of the file. Default 64 MiB: the tail that readers follow stays in it.
    pub cache_bytes: usize,
    /// Retention runs at most this often, and only after something was appended. Default 5 s.
    pub trim_every: Duration,
    /// Stamps messages and decides about their age.
    pub clock: Clock,
}

impl Default for EmbeddedOptions {
    fn default() -> Self {
        Self {
            max_inflight_bytes: 64 << 20,
            cache_bytes: 64 << 20,
            trim_every: Duration::from_secs(5),
            clock: wall_clock(),
        }
    }
}

impl fmt::Debug for EmbeddedOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddedOptions")
            .field("max_inflight_bytes", &self.max_inflight_bytes)
            .field("cache_bytes", &self.cache_bytes)
            .field("trim_every", &self.trim_every)
            .finish_non_exhaustive()
    }
}

/// A durable log in a folder. Clones share it; it closes with the last clone, reader and appender.
#[derive(Clone)]
pub struct EmbeddedLog(Arc<Handle>);

/// Keeps the writer thread, and ends it.
struct Handle {
    shared: Arc<Shared>,
    turn: tokio::sync::Mutex<()>,
    patience: Arc<Patience>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Handle {
    /// Whatever is queued is still written, unless the disk is full.
    fn drop(&mut self) {
        self.shared.queue.close();
        self.patience.closing();
        if let Some(writer) = self.writer.lock().take()
            && writer.join().is_err()
        {
            tracing::error!(path = %self.shared.path.display(), "writer of the embedded log panicked");
        }
    }
}

impl fmt::Debug for EmbeddedLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("EmbeddedLog").field(&self.0.shared.path).finish()
    }
}

impl EmbeddedLog {
    /// Opens the log in a folder, which is created where it is missing. Blocks: after a crash a large
    /// log is checked first.
    ///
    /// **Errors**: [`TopicError::InUse`] while another process has it, [`TopicError::Open`] with what
    /// to do where the folder or file cannot be used.
    pub fn open(path: impl AsRef<Path>, options: EmbeddedOptions) -> Result<Self, TopicError> {
        Self::open_on(path.as_ref(), options, |file| file)
    }

    fn open_on<B: StorageBackend>(
        folder: &Path,
        options: EmbeddedOptions,
        wrap: impl FnOnce(FileBackend) -> B,
    ) -> Result<Self, TopicError> {
        std::fs::create_dir_all(folder).map_err(|error| cannot_open(folder, error))?;
        let lock = FolderLock::take(folder)?;
        let patience = Patience::new();
        let file = open_file(folder)?;
        let file = PatientFile::new(wrap(file), Arc::clone(&patience));
        let database = open_database(folder, &options, file)?;
        let shared = Arc::new(Shared::load(folder, database, lock, options)?);
        patience.opened();
        let writer = Writer::start(Arc::clone(&shared)).map_err(|error| cannot_open(folder, error))?;
        Ok(Self(Arc::new(Handle {
            shared,
            turn: tokio::sync::Mutex::new(()),
            patience,
            writer: Mutex::new(Some(writer)),
        })))
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.0.shared.path
    }

    /// Removes all messages of a partition below an offset, whatever its retention says.
    pub async fn trim(&self, topic: &TopicName, partition: u32, before: u64) -> Result<(), TopicError> {
        let shared = &self.0.shared;
        let topic = shared.topic_with(topic, partition)?;
        let (reply, done) = oneshot::channel();
        shared.queue.push(Op::Trim { topic, partition, before, reply })?;
        done.await.unwrap_or(Err(TopicError::Closed))
    }
}

fn open_file(folder: &Path) -> Result<FileBackend, TopicError> {
    let path = folder.join(FILE);
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(|error| cannot_open(&path, error))?;
    FileBackend::new(file).map_err(|error| cannot_open_database(folder, error))
}

fn open_database(folder: &Path, options: &EmbeddedOptions, file: impl StorageBackend) -> Result<Database, TopicError> {
    let shown = folder.to_owned();
    let mut builder = Builder::new();
    builder.set_cache_size(options.cache_bytes);
    builder.set_repair_callback(move |repair| {
        let percent = (repair.progress() * 100.0) as u32;
        tracing::info!(path = %shown.display(), percent, "checking the embedded log after a crash");
    });
    builder.create_with_backend(file).map_err(|error| cannot_open_database(folder, error))
}

/// An error of the file system, with what to do about it.
fn cannot_open(path: &Path, error: std::io::Error) -> TopicError {
    let fix = match error.kind() {
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            "make it writable for this user, or set the path of the log to a folder that is"
        }
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "free some space on its disk",
        ErrorKind::AlreadyExists | ErrorKind::NotADirectory => {
            "a file is in its way: move it, or set the path of the log to another folder"
        }
        _ => "check the path of the log",
    };
    TopicError::Open { path: path.to_owned(), fix: fix.to_owned(), source: Arc::new(error) }
}

fn cannot_open_database(folder: &Path, error: DatabaseError) -> TopicError {
    let path = folder.join(FILE);
    match error {
        DatabaseError::Storage(StorageError::Io(error)) if error.kind() != ErrorKind::InvalidData => {
            cannot_open(&path, error)
        }
        error => TopicError::Open {
            path,
            fix: "restore it from a copy, or move the file away to start with an empty log".to_owned(),
            source: Arc::new(error),
        },
    }
}

/// The error of a database that was open already.
fn storage_error(
    path: &Path,
    doing: &'static str,
    error: impl std::error::Error + Send + Sync + 'static,
) -> TopicError {
    TopicError::Storage { path: PathBuf::from(path), doing, source: Arc::new(error) }
}

#[async_trait]
impl Log for EmbeddedLog {
    async fn create(&self, topic: &TopicName, settings: &TopicSettings) -> Result<Creation, TopicError> {
        if settings.partitions == 0 {
            return Err(TopicError::Settings {
                topic: topic.clone(),
                reason: "expected at least 1 partition, found 0".to_owned(),
            });
        }
        if self.0.shared.topic(topic).is_ok() {
            return Ok(Creation::Existed);
        }
        let (reply, done) = oneshot::channel();
        self.0.shared.queue.push(Op::Create { topic: topic.clone(), settings: settings.clone(), reply })?;
        done.await.unwrap_or(Err(TopicError::Closed))
    }

    async fn grow(&self, topic: &TopicName, partitions: u32) -> Result<u32, TopicError> {
        let found = self.0.shared.topic(topic)?.settings.partitions;
        if found >= partitions {
            return Ok(found);
        }
        let (reply, done) = oneshot::channel();
        self.0.shared.queue.push(Op::Grow { topic: topic.clone(), partitions, reply })?;
        done.await.unwrap_or(Err(TopicError::Closed))
    }

    async fn describe(&self, topic: &TopicName) -> Result<Option<Description>, TopicError> {
        let shared = &self.0.shared;
        Ok(shared.topic(topic).ok().map(|topic| Description {
            partitions: topic.settings.partitions,
            incarnation: format!("{:x}-{}", shared.made_at, topic.id),
        }))
    }

    async fn span(&self, topic: &TopicName, partition: u32) -> Result<Span, TopicError> {
        let topic = self.0.shared.topic_with(topic, partition)?;
        Ok(topic.partition(partition).span())
    }

    async fn reader(&self, topic: &TopicName, partition: u32, from: u64) -> Result<Box<dyn Reader>, TopicError> {
        let state = self.0.shared.topic_with(topic, partition)?;
        check_position(topic, partition, from, state.partition(partition).span())?;
        Ok(Box::new(EmbeddedReader::new(self.clone(), state, partition, from)))
    }

    fn appender(&self) -> Arc<dyn Appender> {
        Arc::new(EmbeddedAppender(self.clone()))
    }

    async fn join(&self, group: &str, topics: Vec<TopicName>) -> Result<Box<dyn Membership>, TopicError> {
        Ok(Box::new(self.0.shared.groups.join(group, topics)))
    }

    async fn broken(&self) -> TopicError {
        self.0.shared.broken.wait().await
    }
}

struct EmbeddedAppender(EmbeddedLog);

impl EmbeddedAppender {
    fn check(topic: &TopicState, partition: u32, message: &NewMessage) -> Result<usize, TopicError> {
        let bytes = message.content_bytes();
        let limit = topic.settings.max_message_bytes;
        if bytes > limit {
            return Err(TopicError::TooLarge { topic: topic.name.clone(), partition, bytes, limit });
        }
        Ok(bytes + MESSAGE_OVERHEAD_BYTES)
    }
}

#[async_trait]
impl Appender for EmbeddedAppender {
    async fn append(&self, topic: &TopicName, partition: u32, message: NewMessage) -> Result<Receipt, TopicError> {
        let Handle { shared, turn, .. } = &*self.0.0;
        let topic = shared.topic_with(topic, partition)?;
        let bytes = Self::check(&topic, partition, &message)?;
        // Permits are handed out in the order of calls, and so are places in the queue.
        let _turn = turn.lock().await;
        let permit = shared.limit.take(bytes).await;
        let (pending, receipt) = Pending::begin(&shared.outstanding, permit);
        shared.queue.push(Op::Append(Append { topic, partition, message, pending }))?;
        Ok(receipt)
    }

    async fn flush(&self) -> Result<(), TopicError> {
        self.0.0.shared.outstanding.drained().await
    }
}

#[cfg(test)]
mod tests;
