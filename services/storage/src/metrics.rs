//! The service's metrics, in one place.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

/// Rows committed, by table.
pub(crate) const ROWS_STORED: &str = "tailwater_storage_rows_stored_total";
/// Commits, by outcome.
pub(crate) const COMMITS: &str = "tailwater_storage_commits_total";
/// Time from closing the files to the commit's answer.
pub(crate) const FLUSH_SECONDS: &str = "tailwater_storage_flush_duration_seconds";
/// Bytes of rows held in memory, encoded or waiting to be, by table.
pub(crate) const BUFFERED_BYTES: &str = "tailwater_storage_buffered_bytes";
/// Age of the newest event time committed, by table.
pub(crate) const FRESHNESS_SECONDS: &str = "tailwater_storage_freshness_seconds";
/// Messages dropped because they were taken before.
pub(crate) const REPEATS: &str = "tailwater_storage_repeated_messages_total";

pub(crate) fn describe() {
    describe_counter!(ROWS_STORED, Unit::Count, "rows committed");
    describe_counter!(COMMITS, Unit::Count, "commits, by outcome");
    describe_histogram!(FLUSH_SECONDS, Unit::Seconds, "time from closing the files to the commit's answer");
    describe_gauge!(BUFFERED_BYTES, Unit::Bytes, "bytes of rows held in memory, encoded or waiting to be");
    describe_gauge!(FRESHNESS_SECONDS, Unit::Seconds, "age of the newest event time at its commit");
    describe_counter!(REPEATS, Unit::Count, "messages dropped because they were taken before");
}
