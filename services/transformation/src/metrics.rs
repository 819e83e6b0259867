//! The service's metrics, in one place.

use metrics::{Unit, describe_counter, describe_histogram};

/// Rows taken from input channels.
pub(crate) const ROWS_READ: &str = "tailwater_transformation_rows_read_total";
/// Rows written to output channels.
pub(crate) const ROWS_EMITTED: &str = "tailwater_transformation_rows_emitted_total";
/// Rows a view's SQL failed on.
pub(crate) const ROWS_REJECTED: &str = "tailwater_transformation_rows_rejected_total";
/// Rows a view's condition left out.
pub(crate) const ROWS_FILTERED: &str = "tailwater_transformation_rows_filtered_total";
/// Messages dropped because they were taken before.
pub(crate) const REPEATS: &str = "tailwater_transformation_repeated_messages_total";
/// Time to run a view over one message.
pub(crate) const BATCH_SECONDS: &str = "tailwater_transformation_batch_duration_seconds";

pub(crate) fn describe() {
    describe_counter!(ROWS_READ, Unit::Count, "rows taken from input channels");
    describe_counter!(ROWS_EMITTED, Unit::Count, "rows written to output channels");
    describe_counter!(ROWS_REJECTED, Unit::Count, "rows a view's SQL failed on");
    describe_counter!(ROWS_FILTERED, Unit::Count, "rows a view's condition left out");
    describe_counter!(REPEATS, Unit::Count, "messages dropped because they were taken before");
    describe_histogram!(BATCH_SECONDS, Unit::Seconds, "time to run a view over one message");
}
