//! What a caller does about an error: the only three choices a streaming loop has.

/// The class of an error. Every library error answers with one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorClass {
    /// It may work next time: wait with back-off and try again.
    Retry,
    /// This message (or row) can never work: keep it as a dead letter and go on.
    Reject,
    /// Going on would lose or double rows, or needs a person: stop and say why.
    Stop,
}

impl ErrorClass {
    /// The word used in logs and metric labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Reject => "reject",
            Self::Stop => "stop",
        }
    }
}
