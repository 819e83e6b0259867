//! What this crate counts, under `tailwater_lake_…`.
//!
//! Labels come from small closed sets: the table's name, an outcome. Updated once per commit, file or refresh, never
//! per row. Call [`describe`] once after an exporter is installed.

use std::time::Duration;

use metrics::{Unit, counter, describe_counter, describe_histogram, histogram};

const COMMITS: &str = "tailwater_lake_commits_total";
const COMMIT_SECONDS: &str = "tailwater_lake_commit_duration_seconds";
const COMMIT_ATTEMPTS: &str = "tailwater_lake_commit_attempts";
const COMMITTED_ROWS: &str = "tailwater_lake_committed_rows_total";
const FILE_BYTES: &str = "tailwater_lake_file_bytes";
const UPLOAD_RETRIES: &str = "tailwater_lake_upload_retries_total";
const CHECKPOINTS: &str = "tailwater_lake_checkpoints_total";
const CHECKPOINT_SECONDS: &str = "tailwater_lake_checkpoint_duration_seconds";
const COMMITS_READ: &str = "tailwater_lake_commits_read_total";

/// Registers unit and meaning of every metric of this crate.
pub fn describe() {
    describe_counter!(COMMITS, Unit::Count, "commits by outcome: committed, fenced or failed");
    describe_histogram!(COMMIT_SECONDS, Unit::Seconds, "time to settle one commit, all attempts included");
    describe_histogram!(COMMIT_ATTEMPTS, Unit::Count, "attempts one commit took");
    describe_counter!(COMMITTED_ROWS, Unit::Count, "rows committed to tables");
    describe_histogram!(FILE_BYTES, Unit::Bytes, "size of uploaded data files");
    describe_counter!(UPLOAD_RETRIES, Unit::Count, "repeated attempts to upload a data file");
    describe_counter!(CHECKPOINTS, Unit::Count, "log checkpoints by outcome: written or failed");
    describe_histogram!(CHECKPOINT_SECONDS, Unit::Seconds, "time to write one log checkpoint");
    describe_counter!(COMMITS_READ, Unit::Count, "commits of others read while committing or refreshing");
}

pub(crate) fn commit_settled(table: &str, outcome: &'static str, attempts: Option<u32>, took: Duration) {
    counter!(COMMITS, "table" => table.to_owned(), "outcome" => outcome).increment(1);
    histogram!(COMMIT_SECONDS, "table" => table.to_owned()).record(took);
    if let Some(attempts) = attempts {
        histogram!(COMMIT_ATTEMPTS, "table" => table.to_owned()).record(attempts);
    }
}

pub(crate) fn rows_committed(table: &str, rows: u64) {
    counter!(COMMITTED_ROWS, "table" => table.to_owned()).increment(rows);
}

pub(crate) fn file_uploaded(table: &str, bytes: u64, retries: u32) {
    // A histogram takes f64; a file beyond 2^53 bytes does not exist.
    histogram!(FILE_BYTES, "table" => table.to_owned()).record(bytes as f64);
    counter!(UPLOAD_RETRIES, "table" => table.to_owned()).increment(u64::from(retries));
}

pub(crate) fn checkpoint_finished(table: &str, outcome: &'static str, took: Duration) {
    counter!(CHECKPOINTS, "table" => table.to_owned(), "outcome" => outcome).increment(1);
    histogram!(CHECKPOINT_SECONDS, "table" => table.to_owned()).record(took);
}

pub(crate) fn commits_read(table: &str, commits: usize) {
    counter!(COMMITS_READ, "table" => table.to_owned()).increment(u64::try_from(commits).unwrap_or(u64::MAX));
}
