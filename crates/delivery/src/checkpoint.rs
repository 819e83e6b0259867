//! What a task remembers between lives. A lost or stale one costs time, never rows.
//!
//! Written after everything made from before `position` is durable, under a name that contains the position, and only
//! if no such name exists; any of them is a correct place to go on from.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Ends, Gap, Origin, Position, Seen, Totals, Verdict, Witness};

/// The format this build writes and the only one it reads.
const FORMAT: u8 = 1;

/// The state of a stateless task (hops 1 and 2) at one position of its input.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    format: u8,
    /// The next input position to process.
    pub position: Position,
    /// Per output port, the end of the last stretch written to it.
    pub outputs: BTreeMap<String, Position>,
    /// Per writer of the input channel, how far its output was taken.
    pub ends: Ends,
    /// Running totals up to `position`.
    pub totals: Totals,
    /// The newest event time seen before `position`, in microseconds UTC: what the watermark is made of.
    pub max_event_time: Option<i64>,
    /// Per writer of the input channel, the watermark it last announced, in microseconds UTC.
    #[serde(default)]
    pub watermarks: BTreeMap<String, i64>,
    /// The last message taken before `position`: what must still stand there when the task goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub witness: Option<Witness>,
    /// What the log calls the input topic's incarnation; empty where it was not asked.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub input: String,
    /// The task began where its input no longer began at its start: what writers made before is not part of its
    /// history, and a writer it sees for the first time is taken on from there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub begins_late: bool,
    /// Requests seen before `position` (hop 1).
    #[serde(default, skip_serializing_if = "Seen::is_empty")]
    pub seen: Seen,
}

/// A checkpoint that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// Not JSON of the expected shape.
    #[error("checkpoint is not readable")]
    Malformed(#[source] serde_json::Error),
    /// Written by another version of Tailwater.
    #[error(
        "checkpoint has format {found}, this version reads {FORMAT}; run the version that wrote it, or delete it and replay"
    )]
    UnknownFormat {
        /// The format found.
        found: u8,
    },
}

impl Checkpoint {
    /// The state of a task that has read nothing.
    pub fn start() -> Self {
        Self::at(Position::START)
    }

    /// The state of a task that begins at `position` with empty totals.
    pub fn at(position: Position) -> Self {
        Self {
            format: FORMAT,
            position,
            outputs: BTreeMap::new(),
            ends: Ends::default(),
            totals: Totals::default(),
            max_event_time: None,
            watermarks: BTreeMap::new(),
            witness: None,
            input: String::new(),
            begins_late: false,
            seen: Seen::default(),
        }
    }

    /// The end of what was written to `port`.
    pub fn output(&self, port: &str) -> Position {
        self.outputs.get(port).copied().unwrap_or(Position::START)
    }

    /// Judges a message of the input channel and moves the writer's end when its rows are to be taken.
    ///
    /// # Errors
    /// As [`Ends::accept`].
    pub fn accept(&mut self, origin: &Origin) -> Result<Verdict, Gap> {
        if self.begins_late && !self.ends.knows(&origin.writer) {
            self.ends.set(origin.writer.clone(), origin.from);
        }
        self.ends.accept(origin)
    }

    /// Encodes as JSON.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a checkpoint has only string keys and plain values")
    }

    /// Decodes what [`to_bytes`](Self::to_bytes) wrote.
    ///
    /// # Errors
    /// See [`CheckpointError`]; the caller falls back to an older checkpoint or to the start.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CheckpointError> {
        #[derive(Deserialize)]
        struct Format {
            format: u8,
        }
        let Format { format } = serde_json::from_slice(bytes).map_err(CheckpointError::Malformed)?;
        if format != FORMAT {
            return Err(CheckpointError::UnknownFormat { found: format });
        }
        serde_json::from_slice(bytes).map_err(CheckpointError::Malformed)
    }
}
