//! What ingestion counts. Labels come from small closed sets; everything is counted once a batch, never once a row.

use std::time::Duration;

use metrics::{Unit, counter, describe_counter, describe_histogram, histogram};

use crate::decode::Fault;

const ROWS_READ: &str = "tailwater_ingestion_rows_read_total";
const ROWS_EMITTED: &str = "tailwater_ingestion_rows_emitted_total";
const ROWS_REJECTED: &str = "tailwater_ingestion_rows_rejected_total";
const REPEATED_MESSAGES: &str = "tailwater_ingestion_repeated_messages_total";
const READ_MESSAGES: &str = "tailwater_ingestion_read_messages_total";
const READ_BYTES: &str = "tailwater_ingestion_read_bytes_total";
const DECODE_SECONDS: &str = "tailwater_ingestion_decode_duration_seconds";
const BATCH_ROWS: &str = "tailwater_ingestion_batch_rows";
const CHECKPOINTS: &str = "tailwater_ingestion_checkpoints_total";
const HTTP_REQUESTS: &str = "tailwater_ingestion_http_requests_total";
const HTTP_BYTES: &str = "tailwater_ingestion_http_received_bytes_total";
const HTTP_SECONDS: &str = "tailwater_ingestion_http_request_duration_seconds";

/// Describes the metrics to the exporter. Call once a process.
pub(crate) fn describe() {
    describe_counter!(ROWS_READ, Unit::Count, "Rows found in user messages");
    describe_counter!(ROWS_EMITTED, Unit::Count, "Rows written to data channels");
    describe_counter!(ROWS_REJECTED, Unit::Count, "Rows written to rejected channels, by reason");
    describe_counter!(READ_MESSAGES, Unit::Count, "User messages read");
    describe_counter!(REPEATED_MESSAGES, Unit::Count, "User messages taken before, by their idempotency key");
    describe_counter!(READ_BYTES, Unit::Bytes, "Payload bytes of user messages read");
    describe_histogram!(DECODE_SECONDS, Unit::Seconds, "Time to decode one run of messages");
    describe_histogram!(BATCH_ROWS, Unit::Count, "Good rows of one run of messages");
    describe_counter!(CHECKPOINTS, Unit::Count, "Checkpoints written, by outcome");
    describe_counter!(HTTP_REQUESTS, Unit::Count, "Requests to ingest, by status");
    describe_counter!(HTTP_BYTES, Unit::Bytes, "Bytes taken over HTTP, unpacked");
    describe_histogram!(HTTP_SECONDS, Unit::Seconds, "Time from a request to ingest to its answer");
}

/// The metrics of one source, its labels made once.
#[derive(Clone)]
pub(crate) struct SourceMetrics {
    pipeline: String,
    source: String,
    rows_read: metrics::Counter,
    rows_emitted: metrics::Counter,
    messages: metrics::Counter,
    repeats: metrics::Counter,
    bytes: metrics::Counter,
    decode_seconds: metrics::Histogram,
    batch_rows: metrics::Histogram,
}

impl SourceMetrics {
    pub(crate) fn new(pipeline: &str, source: &str) -> Self {
        let (pipeline, source) = (pipeline.to_owned(), source.to_owned());
        Self {
            rows_read: counter!(ROWS_READ, "pipeline" => pipeline.clone(), "source" => source.clone()),
            rows_emitted: counter!(ROWS_EMITTED, "pipeline" => pipeline.clone(), "source" => source.clone()),
            messages: counter!(READ_MESSAGES, "pipeline" => pipeline.clone(), "source" => source.clone()),
            repeats: counter!(REPEATED_MESSAGES, "pipeline" => pipeline.clone(), "source" => source.clone()),
            bytes: counter!(READ_BYTES, "pipeline" => pipeline.clone(), "source" => source.clone()),
            decode_seconds: histogram!(DECODE_SECONDS, "pipeline" => pipeline.clone(), "source" => source.clone()),
            batch_rows: histogram!(BATCH_ROWS, "pipeline" => pipeline.clone(), "source" => source.clone()),
            pipeline,
            source,
        }
    }

    pub(crate) fn count_read(&self, messages: usize, bytes: usize) {
        self.messages.increment(messages as u64);
        self.bytes.increment(bytes as u64);
    }

    /// Messages that were taken before, in whole or in part: their rows are not counted as read again.
    pub(crate) fn count_repeats(&self, messages: u64) {
        self.repeats.increment(messages);
    }

    pub(crate) fn count_decoded(&self, good: u64, rejected: &[(Fault, u64)], took: Duration) {
        let bad: u64 = rejected.iter().map(|(_, rows)| rows).sum();
        self.rows_read.increment(good + bad);
        self.rows_emitted.increment(good);
        self.decode_seconds.record(took.as_secs_f64());
        self.batch_rows.record(good as f64);
        for (fault, rows) in rejected {
            let (pipeline, source) = (self.pipeline.clone(), self.source.clone());
            counter!(ROWS_REJECTED, "pipeline" => pipeline, "source" => source, "reason" => fault.as_str())
                .increment(*rows);
        }
    }
}

pub(crate) fn count_checkpoint(written: bool) {
    counter!(CHECKPOINTS, "outcome" => if written { "written" } else { "failed" }).increment(1);
}

pub(crate) fn count_request(status: u16, bytes: usize, took: Duration) {
    counter!(HTTP_REQUESTS, "status" => status.to_string()).increment(1);
    counter!(HTTP_BYTES).increment(bytes as u64);
    histogram!(HTTP_SECONDS).record(took.as_secs_f64());
}
