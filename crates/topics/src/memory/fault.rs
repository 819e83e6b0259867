//! What a test may make of an append to a log in memory.

use std::sync::Arc;

use crate::{NewMessage, TopicName};

/// What happens to an append.
///
/// Whatever fails takes along everything that stands behind it, as the law of [`Appender`](crate::Appender) says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    /// It succeeds.
    #[default]
    None,
    /// It fails and leaves nothing behind. The caller cannot tell this from [`Fault::FailAfter`].
    FailBefore,
    /// It is in the log, but the reply got lost.
    FailAfter,
    /// It is in the log twice, and the receipt names the first.
    Duplicate,
    /// It waits, and with it everything its appender puts behind it in its partition, until
    /// [`MemoryLog::release`](super::MemoryLog::release). Other appenders overtake it.
    Delay,
    /// As [`Fault::Delay`], and then it fails and leaves nothing behind.
    DelayThenFail,
    /// The receipt says that it is durable, and it is not in the log: what a log must never do, so that a test may
    /// see what its readers make of it.
    Lose,
}

impl Fault {
    pub(super) fn waits(self) -> bool {
        matches!(self, Self::Delay | Self::DelayThenFail)
    }

    /// What is left of it once the wait is over.
    pub(super) fn after_the_wait(self) -> Self {
        match self {
            Self::Delay => Self::None,
            Self::DelayThenFail => Self::FailBefore,
            other => other,
        }
    }
}

/// An append as the fault hook sees it.
#[derive(Debug)]
pub struct Attempt<'a> {
    /// Counts the appends of this log from 0, in order.
    pub number: u64,
    /// Where it goes.
    pub topic: &'a TopicName,
    /// Where it goes.
    pub partition: u32,
    /// What goes there.
    pub message: &'a NewMessage,
}

pub(super) type Hook = Arc<dyn Fn(&Attempt<'_>) -> Fault + Send + Sync>;
