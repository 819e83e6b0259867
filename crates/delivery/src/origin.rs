//! Where a message's rows come from: its writer, and the stretch of that writer's input it covers.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::Position;

/// A task as seen from downstream. A channel partition may have many writers.
///
/// The name is stable across restarts and owners: two processes that run the same task are the same writer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct Writer(Arc<str>);

impl Writer {
    /// Names a writer, for example `shop.orders/3`.
    pub fn new(name: impl AsRef<str>) -> Self {
        Self(Arc::from(name.as_ref()))
    }

    /// The name as it stands in headers and checkpoints.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<String> for Writer {
    fn from(name: String) -> Self {
        Self::new(name)
    }
}

impl From<Writer> for String {
    fn from(writer: Writer) -> Self {
        writer.as_str().to_owned()
    }
}

impl fmt::Display for Writer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// "This message holds everything the writer made for this partition from its input positions `[from, to)`."
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Origin {
    /// Who wrote it.
    pub writer: Writer,
    /// The `to` of the writer's previous message to the same partition.
    pub from: Position,
    /// The position after the last row (or fruitless unit) covered.
    pub to: Position,
}

/// A stretch that ends before it begins.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("origin of writer `{writer}` ends at {to}, before it begins at {from}")]
pub struct InvalidOrigin {
    /// Who claimed it.
    pub writer: Writer,
    /// The claimed beginning.
    pub from: Position,
    /// The claimed end.
    pub to: Position,
}

impl Origin {
    /// A stretch `[from, to)`.
    ///
    /// # Errors
    /// `InvalidOrigin` when `to < from`; the message is corrupt and must not be read on.
    pub fn new(writer: Writer, from: Position, to: Position) -> Result<Self, InvalidOrigin> {
        if to < from {
            return Err(InvalidOrigin { writer, from, to });
        }
        Ok(Self { writer, from, to })
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}[{}, {})", self.writer, self.from, self.to)
    }
}
