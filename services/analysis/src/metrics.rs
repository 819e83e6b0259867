//! Every metric of this crate, with its unit and meaning. Labels come from small closed sets.

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

const DURATION: &str = "tailwater_analysis_query_duration_seconds";
const ROWS: &str = "tailwater_analysis_query_rows_total";
const BYTES: &str = "tailwater_analysis_query_bytes_total";
const RUNNING: &str = "tailwater_analysis_queries_running";
const RUNNING_LIMIT: &str = "tailwater_analysis_queries_running_limit";
const REJECTED: &str = "tailwater_analysis_queries_rejected_total";
const FILES: &str = "tailwater_analysis_files_planned_total";
const TAILS: &str = "tailwater_analysis_tails_running";

/// Describes the metrics to whatever exporter is installed.
pub(crate) fn describe(running_limit: usize) {
    describe_histogram!(DURATION, Unit::Seconds, "Time from the arrival of a query to its end, by outcome");
    describe_counter!(ROWS, Unit::Count, "Rows answered");
    describe_counter!(BYTES, Unit::Bytes, "Bytes of answers sent, encoded");
    describe_gauge!(RUNNING, Unit::Count, "Queries being planned or executed");
    describe_gauge!(RUNNING_LIMIT, Unit::Count, "Most queries that may run at a time");
    describe_counter!(REJECTED, Unit::Count, "Queries turned away before they ran, by reason");
    describe_counter!(FILES, Unit::Count, "Files of scanned tables: read, or skipped by the Delta log alone");
    describe_gauge!(TAILS, Unit::Count, "Live tails being served");
    #[allow(clippy::cast_precision_loss)]
    gauge!(RUNNING_LIMIT).set(running_limit as f64);
}

pub(crate) fn query_started() {
    gauge!(RUNNING).increment(1.0);
}

pub(crate) fn query_ended(outcome: &'static str, seconds: f64, rows: u64) {
    gauge!(RUNNING).decrement(1.0);
    histogram!(DURATION, "outcome" => outcome).record(seconds);
    counter!(ROWS).increment(rows);
}

pub(crate) fn bytes_sent(bytes: u64) {
    counter!(BYTES).increment(bytes);
}

pub(crate) fn query_rejected(reason: &'static str) {
    counter!(REJECTED, "reason" => reason).increment(1);
}

pub(crate) fn files_planned(read: usize, all: usize) {
    counter!(FILES, "fate" => "read").increment(read as u64);
    counter!(FILES, "fate" => "skipped").increment(all.saturating_sub(read) as u64);
}

pub(crate) fn tail_started() {
    gauge!(TAILS).increment(1.0);
}

pub(crate) fn tail_ended() {
    gauge!(TAILS).decrement(1.0);
}
