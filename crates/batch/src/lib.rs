//! One message of a channel: an Arrow record batch as a self-contained IPC stream, and an envelope of headers.
//!
//! The invariant: what [`encode`] wrote, [`decode_envelope`] and [`decode_batch`] give back unchanged, and bytes that
//! nobody here wrote give an error, never a panic, nor in [`decode_stream`] an allocation larger than [`Limits`]. The
//! layout is documented byte by byte in `docs/envelope.md`.
//!
//! Pure: no I/O, no clock. Deliberately absent: which rows a reader takes (`delivery`) and how messages travel
//! (`topics`).

mod bounds;
mod codec;
mod envelope;
mod guard;
mod rows;
mod schema;
mod split;

pub use bounds::{ColumnBounds, Scalar, bounds_of, event_time_range};
pub use codec::{CodecError, Compression, decode_batch, decode_stream, encode, encode_stream};
pub use envelope::{Envelope, EnvelopeError, Headers, Port, decode_envelope, encode_envelope};
pub use guard::Limits;
pub use rows::rows_from;
pub use schema::{OFFSET_COLUMN, fingerprint, user_schema, wire_schema, with_offsets, without_offsets};
pub use split::{Part, SplitError, encode_to_fit, encode_to_fit_within, split_to_fit};
