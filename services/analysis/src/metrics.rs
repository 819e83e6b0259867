//! Every metric of this crate, with its unit and meaning. Labels come from small closed sets.

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

use crate::ledger::Account;

const DURATION: &str = "tailwater_analysis_query_duration_seconds";
const ROWS: &str = "tailwater_analysis_query_rows_total";
const BYTES: &str = "tailwater_analysis_query_bytes_total";
const RUNNING: &str = "tailwater_analysis_queries_running";
const RUNNING_LIMIT: &str = "tailwater_analysis_queries_running_limit";
const REJECTED: &str = "tailwater_analysis_queries_rejected_total";
const FILES: &str = "tailwater_analysis_files_planned_total";
const TAILS: &str = "tailwater_analysis_tails_running";
const LEDGER_ROWS: &str = "tailwater_analysis_ledger_rows";
const LEDGER_UNACCOUNTED: &str = "tailwater_analysis_ledger_unaccounted_rows";
const LEDGER_LAG: &str = "tailwater_analysis_ledger_lag_messages";
const LEDGER_FRESHNESS: &str = "tailwater_analysis_ledger_freshness_seconds";
const LEDGER_FAILURES: &str = "tailwater_analysis_ledger_failures_total";

/// Describes the metrics to whatever exporter is installed.
pub(crate) fn describe(running_limit: usize) {
    describe_histogram!(DURATION, Unit::Seconds, "Time from the arrival of a query to its end, by outcome");
    describe_counter!(ROWS, Unit::Count, "Rows answered");
    describe_counter!(BYTES, Unit::Bytes, "Bytes of answers sent, encoded");
    describe_gauge!(RUNNING, Unit::Count, "Queries being planned or executed");
    describe_gauge!(RUNNING_LIMIT, Unit::Count, "Most queries that may run at a time");
    describe_counter!(REJECTED, Unit::Count, "Requests turned away before they ran, by reason");
    describe_counter!(FILES, Unit::Count, "Files of scanned tables: read, or skipped by the Delta log alone");
    describe_gauge!(TAILS, Unit::Count, "Live tails being served");
    describe_gauge!(LEDGER_ROWS, Unit::Count, "Rows of a source or view, by where they are: read, stored, and so on");
    describe_gauge!(
        LEDGER_UNACCOUNTED,
        Unit::Count,
        "Rows read that are nowhere: not stored, rejected, filtered, late or in flight"
    );
    describe_gauge!(LEDGER_LAG, Unit::Count, "Input messages not read yet");
    describe_gauge!(LEDGER_FRESHNESS, Unit::Seconds, "Age of the newest event time in the table");
    describe_counter!(LEDGER_FAILURES, Unit::Count, "Times the ledger could not be worked out");
    counter!(LEDGER_FAILURES).absolute(0);
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

/// What the ledger says of one source or view.
#[allow(clippy::cast_precision_loss, reason = "a gauge takes f64; exact up to 2^53 rows")]
pub(crate) fn account(account: &Account) {
    let name = || account.name.clone();
    for (place, rows) in [
        ("read", account.read),
        ("stored", account.stored),
        ("rejected", account.rejected),
        ("filtered", account.filtered),
        ("late", account.late),
        ("in_flight", account.in_flight),
        ("foreign", account.foreign),
    ] {
        gauge!(LEDGER_ROWS, "name" => name(), "place" => place).set(rows as f64);
    }
    gauge!(LEDGER_UNACCOUNTED, "name" => name()).set(account.unaccounted() as f64);
    gauge!(LEDGER_LAG, "name" => name()).set(account.lag as f64);
    if let Some(age) = account.freshness_seconds {
        gauge!(LEDGER_FRESHNESS, "name" => name()).set(age);
    }
}

/// A source or view that was dropped has nothing to be alarmed about.
pub(crate) fn account_closed(name: &str) {
    gauge!(LEDGER_UNACCOUNTED, "name" => name.to_owned()).set(0.0);
    gauge!(LEDGER_LAG, "name" => name.to_owned()).set(0.0);
    gauge!(LEDGER_FRESHNESS, "name" => name.to_owned()).set(0.0);
}

pub(crate) fn ledger_failed() {
    counter!(LEDGER_FAILURES).increment(1);
}
