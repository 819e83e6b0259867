//! Rejected rows on their way to the rejected channel: where they came from is added, nothing is taken away.

use runtime::dead_letters::DeadLetter;
use topics::TopicName;

use crate::decode::RejectedRow;

/// Rejected rows of one partition as dead letters, in order.
pub(crate) fn letters(topic: &TopicName, partition: u32, rows: &[RejectedRow]) -> Vec<DeadLetter> {
    let letter = |row: &RejectedRow| DeadLetter {
        topic: topic.as_str().to_owned(),
        partition,
        offset: row.offset,
        line: row.line,
        column: row.column.clone(),
        reason: row.reason.clone(),
        bytes: row.bytes.clone(),
        produced_at_ms: row.produced_at_ms,
    };
    rows.iter().map(letter).collect()
}
