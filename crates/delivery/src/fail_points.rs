//! The named steps of the protocol at which a test may end a process, and the safeguards it may switch off.
//!
//! The invariant: in a build without the feature `failpoints` of the crate `fail`, which only the system tests switch
//! on, every mark compiles to nothing and every safeguard is on. Deliberately absent: what a process does when it gets
//! there, which `runtime::fail_points` arms from the environment.

/// A step of the protocol: the moment right after what its name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CrashPoint {
    /// HTTP ingest: the body is durable in the topic, the answer is not sent.
    RequestDurable,
    /// Hops 1 and 2: dead letters are durable, the data message that covers their stretch is not appended.
    RejectedDurable,
    /// Hops 1 and 2: a data message is queued, its receipt is open.
    DataQueued,
    /// Hops 1 and 2: everything is durable, the checkpoint is not put.
    OutputDurable,
    /// Hops 1 and 2: the checkpoint is put.
    CheckpointPut,
    /// Hop 3: data files are uploaded, the commit is not tried.
    FilesUploaded,
    /// Hop 3: the log was read and the positions compared, the commit entry is not put.
    CommitChecked,
    /// Hop 3: the commit entry is put (or the put has failed), nobody has looked at the outcome.
    CommitPut,
    /// Hop 3: a checkpoint of the table's log is being written.
    LogCheckpoint,
}

impl CrashPoint {
    /// Every step, in the order of the hops.
    pub const ALL: [Self; 9] = [
        Self::RequestDurable,
        Self::RejectedDurable,
        Self::DataQueued,
        Self::OutputDurable,
        Self::CheckpointPut,
        Self::FilesUploaded,
        Self::CommitChecked,
        Self::CommitPut,
        Self::LogCheckpoint,
    ];

    /// The name a test arms it by.
    pub const fn name(self) -> &'static str {
        match self {
            Self::RequestDurable => "request_durable",
            Self::RejectedDurable => "rejected_durable",
            Self::DataQueued => "data_queued",
            Self::OutputDurable => "output_durable",
            Self::CheckpointPut => "checkpoint_put",
            Self::FilesUploaded => "files_uploaded",
            Self::CommitChecked => "commit_checked",
            Self::CommitPut => "commit_put",
            Self::LogCheckpoint => "log_checkpoint",
        }
    }

    /// Passes the step, unless a test ends the process here.
    #[inline]
    pub fn pass(self) {
        fail::fail_point!(self.name());
    }
}

/// What keeps rows from being lost or doubled. Each exists to be switched off by a test that must then fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Safeguard {
    /// A reader cuts off what it already has of a message, and drops a message it has whole.
    Slicing,
    /// A reader halts at a stretch that begins after its end.
    GapCheck,
    /// Dead letters are durable before the data message that covers their stretch is appended.
    RejectedFirst,
    /// A checkpoint is put only once everything made from before its position is durable.
    DurableCheckpoint,
    /// A commit lands only where the table has the positions its batch starts from.
    PositionCheck,
    /// After a commit of unknown outcome the log is read before anything else is tried.
    Reread,
    /// A deleted and recreated topic is told from the old one.
    Incarnation,
    /// A table takes as many rows of a writer as the writer says it emitted.
    Audit,
}

impl Safeguard {
    /// Every safeguard.
    pub const ALL: [Self; 8] = [
        Self::Slicing,
        Self::GapCheck,
        Self::RejectedFirst,
        Self::DurableCheckpoint,
        Self::PositionCheck,
        Self::Reread,
        Self::Incarnation,
        Self::Audit,
    ];

    /// The name a test switches it off by.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Slicing => "slicing",
            Self::GapCheck => "gap_check",
            Self::RejectedFirst => "rejected_first",
            Self::DurableCheckpoint => "durable_checkpoint",
            Self::PositionCheck => "position_check",
            Self::Reread => "reread",
            Self::Incarnation => "incarnation",
            Self::Audit => "audit",
        }
    }

    /// Whether a test has switched it off.
    #[inline]
    pub fn is_off(self) -> bool {
        fail::fail_point!(self.name(), |_| true);
        false
    }
}
