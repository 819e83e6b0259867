//! The one rule of exactly-once delivery, and its words.
//!
//! Every message says which stretch of its writer's input it covers ([`Origin`]); every reader keeps the unbroken
//! prefix ([`Ends`]). What a writer makes from a given stretch never changes, so repeats can be cut off by position
//! alone. The invariant: per writer, the rows a reader takes are each row of the writer's output, once, in order.
//!
//! Pure: no I/O, no clock, no Arrow. Deliberately absent: how rows are cut out of a batch (`batch`), and where
//! checkpoints are kept (`lake`).

mod checkpoint;
mod class;
mod ends;
mod fail_points;
mod origin;
mod position;
mod seen;
mod totals;
mod witness;

pub use checkpoint::{Checkpoint, CheckpointError};
pub use class::ErrorClass;
pub use ends::{Ends, Gap, Verdict};
pub use fail_points::{CrashPoint, Safeguard};
pub use origin::{InvalidOrigin, Origin, Writer};
pub use position::{MAX_ROWS_PER_UNIT, Position};
pub use seen::{Fresh, MAX_PRODUCERS, REQUEST_WINDOW, RequestPart, Seen, Unknowable};
pub use totals::Totals;
pub use witness::Witness;

#[cfg(test)]
mod tests;
