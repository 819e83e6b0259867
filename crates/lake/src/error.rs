//! What can go wrong with a table or its store, and what the caller does about it.
//!
//! A variant states its own fact; the store's or the library's words stay in `source()`.

use delivery::ErrorClass;

type Source = Box<dyn std::error::Error + Send + Sync>;

/// Every error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LakeError {
    /// The store's address or options cannot be used as they stand.
    #[error("store `{url}` cannot be opened: {reason}")]
    BadStore {
        /// The address as configured.
        url: String,
        /// What is wrong and how to put it right.
        reason: String,
        /// The store library's words, where it spoke.
        #[source]
        source: Option<Source>,
    },
    /// The store answered the start-up probe with a refusal that a person must resolve.
    #[error("store `{url}` refused the probe: {reason}")]
    StoreRefused {
        /// The address.
        url: String,
        /// What is wrong and how to put it right.
        reason: String,
        /// The store's answer.
        #[source]
        source: Option<Source>,
    },
    /// The store did not answer the probe in a way that allows a verdict.
    #[error("store `{url}` could not be probed: {reason}")]
    StoreUnreachable {
        /// The address.
        url: String,
        /// What was seen and what to check.
        reason: String,
        /// The last failure.
        #[source]
        source: Option<Source>,
    },
    /// The store does not honour create-if-absent, so two writers could lose each other's commits.
    #[error(
        "store `{url}` is not safe for concurrent writers: {reason}; use a store with atomic `If-None-Match` and \
         `If-Match` puts"
    )]
    UnsafeStore {
        /// The address.
        url: String,
        /// What the probe saw.
        reason: String,
    },
    /// A request to the store failed after its retries.
    #[error("{operation} `{path}` did not succeed")]
    Store {
        /// What was attempted, as a verb.
        operation: &'static str,
        /// The object or folder.
        path: String,
        /// The store's words.
        #[source]
        source: object_store::Error,
    },
    /// The log of a table cannot be read as Delta.
    #[error("log of table `{table}` is broken at version {version}: {reason}")]
    BrokenLog {
        /// The table's folder.
        table: String,
        /// The commit or checkpoint that cannot be read.
        version: u64,
        /// What was found against what was expected.
        reason: String,
    },
    /// A table that uses what this crate does not read or write.
    #[error("table `{table}` needs {needs}, which this version does not {verb}; {fix}")]
    Unsupported {
        /// The table's folder.
        table: String,
        /// The feature.
        needs: String,
        /// `read` or `write`.
        verb: &'static str,
        /// What the reader can do.
        fix: String,
    },
    /// The table in the store is not the table that was asked for.
    #[error("table `{table}` {difference}; use another folder, or restore the table")]
    Mismatch {
        /// The table's folder.
        table: String,
        /// Where the two part, expected against found.
        difference: String,
    },
    /// A column that a Delta table cannot have.
    #[error("column `{column}` of table `{table}`: {reason}")]
    Column {
        /// The table's folder or name.
        table: String,
        /// The column, dotted where nested.
        column: String,
        /// Expected against found.
        reason: String,
    },
    /// Rows that do not fit the table they are written to.
    #[error("batch for table `{table}` does not fit: {reason}")]
    Batch {
        /// The table's name.
        table: String,
        /// Expected against found.
        reason: String,
    },
    /// Parquet could not be encoded or decoded.
    #[error("{operation} for table `{table}` is not possible")]
    Parquet {
        /// What was attempted.
        operation: &'static str,
        /// The table's name or folder.
        table: String,
        /// The library's words.
        #[source]
        source: Source,
    },
    /// A commit that breaks the rules of this crate; nothing was written.
    #[error("commit to table `{table}` is not allowed: {reason}")]
    InvalidCommit {
        /// The table's folder.
        table: String,
        /// Which rule.
        reason: String,
    },
    /// A commit whose outcome is still open after every attempt. The same commit may be tried again: if it did
    /// land, the next attempt is fenced at the position it reached.
    #[error("commit to table `{table}` was not settled at version {version} after {attempts} attempts")]
    Unsettled {
        /// The table's folder.
        table: String,
        /// The version last tried.
        version: u64,
        /// How often it was tried.
        attempts: u32,
        /// The last failure.
        #[source]
        source: Source,
    },
    /// A data file's name was already taken by other contents.
    #[error("data file `{path}` already exists with other contents; it was not overwritten")]
    Overwrite {
        /// The object.
        path: String,
    },
    /// Where a task began is written down, but not legibly.
    #[error(
        "`{path}` says where a task began and cannot be read; restore it, or drop and recreate the source or view to begin anew"
    )]
    Beginning {
        /// The object.
        path: String,
        /// What is wrong with it.
        #[source]
        source: delivery::CheckpointError,
    },
    /// The Delta library could not write a checkpoint of a log.
    #[error("checkpoint of table `{table}` at version {version} was not written")]
    Checkpoint {
        /// The table's folder.
        table: String,
        /// The version to be checkpointed.
        version: u64,
        /// The library's words.
        #[source]
        source: Source,
    },
}

impl LakeError {
    /// What the caller does: wait and try again, or stop. Nothing here is about a single message.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Store { source, .. } => store_class(source),
            Self::StoreUnreachable { .. } | Self::Unsettled { .. } | Self::Checkpoint { .. } => ErrorClass::Retry,
            _ => ErrorClass::Stop,
        }
    }

    pub(crate) fn store(operation: &'static str, path: impl ToString, source: object_store::Error) -> Self {
        Self::Store { operation, path: path.to_string(), source }
    }

    pub(crate) fn broken(table: &str, version: u64, reason: impl ToString) -> Self {
        Self::BrokenLog { table: table.to_owned(), version, reason: reason.to_string() }
    }

    pub(crate) fn parquet(operation: &'static str, table: &str, source: impl Into<Source>) -> Self {
        Self::Parquet { operation, table: table.to_owned(), source: source.into() }
    }
}

/// Whether the store knows us and does not want us. Somebody may mend keys, policy or clock meanwhile, so what was to be
/// done is tried again, though the same request is not repeated at once.
pub(crate) fn is_refusal(error: &object_store::Error) -> bool {
    use object_store::Error;
    matches!(error, Error::PermissionDenied { .. } | Error::Unauthenticated { .. })
}

/// Errors that no repetition can cure; all others may be weather.
pub(crate) fn store_class(error: &object_store::Error) -> ErrorClass {
    use object_store::Error;
    match error {
        Error::NotSupported { .. }
        | Error::NotImplemented { .. }
        | Error::InvalidPath { .. }
        | Error::UnknownConfigurationKey { .. } => ErrorClass::Stop,
        _ => ErrorClass::Retry,
    }
}
