//! Streaming operators: the SQL of a view, run on one batch at a time.
//!
//! Invariant: pure. The same rows in give the same rows out, in the same order, whatever the batches they came in,
//! however often, and on whichever thread.
//! Deliberately absent: channels, positions and checkpoints (the services own them), and for now all state: windows
//! and joins come with it.

mod checked;
mod error;
mod program;
mod slot;

pub use error::EngineError;
pub use program::{RowProgram, Sifted};
