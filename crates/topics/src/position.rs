//! The check of a position against what a partition holds, the same in every log.

use crate::{Span, TopicError, TopicName};

/// The check that opening a reader makes in every log.
pub(crate) fn check_position(topic: &TopicName, partition: u32, requested: u64, span: Span) -> Result<(), TopicError> {
    if requested < span.start {
        return Err(TopicError::OffsetGone { topic: topic.clone(), partition, requested, start: span.start });
    }
    if requested > span.end {
        return Err(TopicError::OffsetAhead { topic: topic.clone(), partition, requested, end: span.end });
    }
    Ok(())
}
