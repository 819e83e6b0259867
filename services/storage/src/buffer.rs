//! What to hold and when to flush: rows on their way into files, by bytes, rows and age.
//!
//! Pure but for the encoder it feeds. The invariant: rows enter in the order their messages were accepted, with the
//! progress that covers them, so a flush is always a prefix.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use arrow::{
    array::{ArrayRef, Int32Array, Int64Array, RecordBatch, RecordBatchOptions},
    compute::kernels::numeric::add,
    datatypes::{DataType, Field, Schema, SchemaRef},
    error::ArrowError,
};
use batch::without_offsets;
use tokio::time::Instant;

/// The channel partition a row came by.
pub(crate) const PARTITION_COLUMN: &str = "__partition";

/// When a flush is due.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FlushPolicy {
    pub(crate) bytes: usize,
    pub(crate) rows: u64,
    pub(crate) age: Duration,
    /// How long progress without rows may go uncommitted: it only costs reading again.
    pub(crate) idle_age: Duration,
    /// … where nothing more comes for so long, it is committed before that: the ledger then shows nothing on its way.
    pub(crate) quiet_age: Duration,
}

/// Bytes of rows held by all tables of the process: waiting to be encoded, encoded, or on their way to the store. Over
/// the limit, each table flushes what it has, and one that is flushing takes nothing more.
///
/// The limit is half of `storage.memory`: encoding, reading and the program need the rest.
#[derive(Clone, Debug)]
pub(crate) struct SharedMemory {
    held: Arc<AtomicUsize>,
    limit: usize,
}

impl SharedMemory {
    pub(crate) fn new(memory: usize) -> Self {
        Self { held: Arc::default(), limit: memory / 2 }
    }

    /// Nothing yet, for one buffer.
    pub(crate) fn share(&self) -> Share {
        Share { memory: self.clone(), bytes: 0 }
    }

    pub(crate) fn is_exhausted(&self) -> bool {
        self.held.load(Ordering::Relaxed) >= self.limit
    }
}

/// What one buffer holds, until it is in the store; given back when dropped.
#[derive(Debug)]
pub(crate) struct Share {
    memory: SharedMemory,
    bytes: usize,
}

impl Share {
    /// It holds so much now.
    pub(crate) fn set(&mut self, bytes: usize) {
        self.memory.held.fetch_add(bytes, Ordering::Relaxed);
        self.memory.held.fetch_sub(self.bytes, Ordering::Relaxed);
        self.bytes = bytes;
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.memory.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// How full a buffer is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Level {
    pub(crate) bytes: usize,
    pub(crate) rows: u64,
    /// When the first uncommitted row came.
    pub(crate) rows_since: Option<Instant>,
    /// When the first uncommitted message came, rows or not.
    pub(crate) moved_since: Option<Instant>,
    /// When the last one came.
    pub(crate) moved_last: Option<Instant>,
}

impl Level {
    /// A message was accepted.
    pub(crate) fn note(&mut self, rows: usize, now: Instant) {
        self.moved_since.get_or_insert(now);
        self.moved_last = Some(now);
        if rows > 0 {
            self.rows_since.get_or_insert(now);
        }
    }
}

impl FlushPolicy {
    /// Whether the level demands a flush before more is taken.
    pub(crate) fn is_full(&self, level: &Level) -> bool {
        level.bytes >= self.bytes || level.rows >= self.rows
    }

    /// When a flush is due by age alone.
    pub(crate) fn due(&self, level: &Level) -> Option<Instant> {
        match (level.rows_since, level.moved_since) {
            (Some(since), _) => Some(since + self.age),
            (None, Some(since)) => {
                let quiet = level.moved_last.unwrap_or(since) + self.quiet_age;
                Some(quiet.min(since + self.idle_age))
            }
            (None, None) => None,
        }
    }
}

/// The schema of a table's rows: the user's columns, where they came by, and where they came from.
pub(crate) fn table_schema(user: &Schema) -> SchemaRef {
    let mut fields: Vec<_> = user.fields().iter().cloned().collect();
    fields.push(Arc::new(Field::new(PARTITION_COLUMN, DataType::Int32, false)));
    fields.push(Arc::new(Field::new(batch::OFFSET_COLUMN, DataType::Int64, false)));
    Arc::new(Schema::new(fields))
}

/// A message's rows as rows of the table: offsets made absolute, the partition added.
///
/// # Errors
/// When the message's columns are not the table's.
pub(crate) fn table_rows(
    schema: &SchemaRef,
    wire: &RecordBatch,
    partition: u32,
    first_offset: u64,
) -> Result<RecordBatch, ArrowError> {
    let (user, relative) = without_offsets(wire)?;
    let overflow = |_| ArrowError::ArithmeticOverflow("offset or partition beyond a table's range".into());
    let base = Int64Array::new_scalar(i64::try_from(first_offset).map_err(overflow)?);
    let offsets: ArrayRef = add(&relative, &base)?;
    let partition = i32::try_from(partition).map_err(overflow)?;
    let mut columns: Vec<ArrayRef> = user.columns().to_vec();
    columns.push(Arc::new(Int32Array::from_value(partition, user.num_rows())));
    columns.push(offsets);
    let options = RecordBatchOptions::new().with_row_count(Some(user.num_rows()));
    RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const POLICY: FlushPolicy = FlushPolicy {
        bytes: 100,
        rows: 10,
        age: Duration::from_secs(1),
        idle_age: Duration::from_secs(60),
        quiet_age: Duration::from_secs(15),
    };

    #[test]
    fn a_flush_is_due_by_bytes_rows_and_age() {
        let now = Instant::now();
        let mut level = Level::default();
        assert_eq!(POLICY.due(&level), None, "nothing held, nothing due");
        level.note(0, now);
        assert_eq!(POLICY.due(&level), Some(now + Duration::from_secs(15)), "progress without rows waits for more");
        level.note(0, now + Duration::from_secs(14));
        assert_eq!(POLICY.due(&level), Some(now + Duration::from_secs(29)), "as long as more comes");
        level.note(0, now + Duration::from_secs(50));
        assert_eq!(POLICY.due(&level), Some(now + Duration::from_secs(60)), "but not for ever");
        level = Level::default();
        level.note(0, now);
        level.note(3, now + Duration::from_secs(2));
        assert_eq!(POLICY.due(&level), Some(now + Duration::from_secs(3)));
        assert!(!POLICY.is_full(&level));
        assert!(POLICY.is_full(&Level { bytes: 100, ..level }));
        assert!(POLICY.is_full(&Level { rows: 10, ..level }));
    }

    #[test]
    fn tables_share_one_limit() {
        let memory = SharedMemory::new(200);
        let (mut one, mut other) = (memory.share(), memory.share());
        one.set(60);
        assert!(!memory.is_exhausted());
        other.set(40);
        assert!(memory.is_exhausted());
        one.set(50);
        assert!(!memory.is_exhausted());
        one.set(60);
        drop(other);
        assert!(!memory.is_exhausted(), "what is dropped is given back");
    }

    #[test]
    fn rows_of_a_table_carry_absolute_offsets_and_their_partition() {
        let user = Schema::new(vec![Field::new("id", DataType::Int64, false)]);
        let ids: ArrayRef = Arc::new(Int64Array::from(vec![7, 8]));
        let batch = RecordBatch::try_new(Arc::new(user.clone()), vec![ids]).unwrap();
        let wire = batch::with_offsets(&batch, Int64Array::from(vec![0, 3])).unwrap();
        let rows = table_rows(&table_schema(&user), &wire, 5, 40).unwrap();
        assert_eq!(rows.column(1).as_ref(), &Int32Array::from(vec![5, 5]));
        assert_eq!(rows.column(2).as_ref(), &Int64Array::from(vec![40, 43]));
    }
}
