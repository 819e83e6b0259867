//! Lets each stretch of a request through once: what a producer's second try brings again is taken out of a run.
//!
//! Pure. The invariant: what is let through of a message is a function of the messages before it in the partition, so
//! every life of a task gives the same rows. Repeats are taken out before rows are counted: they are not read rows.
//! What cannot be told apart goes to the rejected channel whole, so that nothing is lost or doubled unseen.

use std::ops::Range;

use arrow::{compute::concat_batches, record_batch::RecordBatch};
use batch::{Compression, Limits, decode_stream, encode_stream};
use bytes::{Bytes, BytesMut};
use delivery::{Fresh, RequestPart, Seen};
use topics::Message;

use crate::{
    decode::{Fault, RejectedRow},
    keys::{Key, Stretch, Unit, key_of},
};

/// Takes repeats out of runs.
pub(crate) struct Sieve {
    seen: Seen,
}

/// What was taken out of a run.
#[derive(Debug, Default)]
pub(crate) struct Sifted {
    /// Messages that cannot be told from repeats, in order.
    pub(crate) rejected: Vec<RejectedRow>,
    /// Messages that were taken before, in whole or in part.
    pub(crate) repeats: u64,
}

/// What becomes of a message.
enum Fate {
    Kept(Message),
    Repeated,
    Rejected(String),
}

impl Sieve {
    /// A sieve that knows what a checkpoint knows.
    pub(crate) fn new(seen: Seen) -> Self {
        Self { seen }
    }

    /// What was seen up to the end of the last run.
    pub(crate) fn seen(&self) -> &Seen {
        &self.seen
    }

    /// Leaves in `run` what was not taken before.
    pub(crate) fn sift(&mut self, run: &mut Vec<Message>) -> Sifted {
        let mut sifted = Sifted::default();
        if run.iter().all(|message| key_of(message).is_none()) {
            return sifted;
        }
        for message in std::mem::take(run) {
            let length = message.payload.len();
            match self.judge(message.clone()) {
                Fate::Kept(kept) => {
                    sifted.repeats += u64::from(kept.payload.len() != length);
                    run.push(kept);
                }
                Fate::Repeated => sifted.repeats += 1,
                Fate::Rejected(reason) => sifted.rejected.push(rejected(message, reason)),
            }
        }
        sifted
    }

    fn judge(&mut self, message: Message) -> Fate {
        let (key, stretch) = match key_of(&message) {
            None => return Fate::Kept(message),
            Some(Err(fault)) => return Fate::Rejected(fault.to_string()),
            Some(Ok(found)) => found,
        };
        match self.seen.accept(&part(&key, &stretch), message.offset) {
            Ok(Fresh::Whole) => Fate::Kept(message),
            Ok(Fresh::Repeat) => Fate::Repeated,
            Ok(Fresh::Pieces(pieces)) => match cut(&message.payload, &stretch, &pieces) {
                Some(payload) => Fate::Kept(Message { payload, ..message }),
                None => Fate::Rejected(unlike(&key)),
            },
            Err(unknowable) => Fate::Rejected(unknowable.to_string()),
        }
    }
}

fn part<'a>(key: &'a Key, stretch: &Stretch) -> RequestPart<'a> {
    let Stretch { range, total, .. } = stretch;
    RequestPart { producer: &key.producer, sequence: key.sequence, from: range.start, to: range.end, total: *total }
}

fn unlike(key: &Key) -> String {
    let Key { producer, sequence } = key;
    format!("request {sequence} of producer `{producer}` cannot be cut where an earlier try ended: it is another body")
}

fn rejected(message: Message, reason: String) -> RejectedRow {
    RejectedRow {
        offset: message.offset,
        row: 0,
        produced_at_ms: message.timestamp_ms,
        line: None,
        column: None,
        fault: Fault::Key,
        reason,
        bytes: message.payload,
    }
}

/// What of `payload`, which holds `stretch`, lies in `pieces`.
fn cut(payload: &Bytes, stretch: &Stretch, pieces: &[Range<u64>]) -> Option<Bytes> {
    let place = |at: u64| usize::try_from(at - stretch.range.start).ok();
    let pieces = pieces.iter().map(|piece| Some(place(piece.start)?..place(piece.end)?)).collect::<Option<Vec<_>>>()?;
    match stretch.unit {
        Unit::Bytes => cut_bytes(payload, usize::try_from(stretch.length()).ok()?, &pieces),
        Unit::Rows => cut_rows(payload, &pieces),
    }
}

/// What stands before the stretch, a CSV header, is kept. Copies.
fn cut_bytes(payload: &Bytes, length: usize, pieces: &[Range<usize>]) -> Option<Bytes> {
    let header = payload.len().checked_sub(length)?;
    let mut kept = BytesMut::from(&payload[..header]);
    for piece in pieces {
        kept.extend_from_slice(payload.get(header + piece.start..header + piece.end)?);
    }
    Some(kept.freeze())
}

fn cut_rows(payload: &Bytes, pieces: &[Range<usize>]) -> Option<Bytes> {
    let batches = decode_stream(payload, &Limits::default()).ok()?;
    let schema = batches.first()?.schema();
    let all = concat_batches(&schema, &batches).ok()?;
    let slice = |piece: &Range<usize>| -> Option<RecordBatch> {
        (piece.end <= all.num_rows()).then(|| all.slice(piece.start, piece.len()))
    };
    let kept = pieces.iter().map(slice).collect::<Option<Vec<_>>>()?;
    encode_stream(&concat_batches(&schema, &kept).ok()?, Compression::None).ok()
}
