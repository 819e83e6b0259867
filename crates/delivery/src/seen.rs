//! Which of its producers' requests a reader has taken: what makes sending a request again harmless.
//!
//! A producer numbers its requests (the *sequence*, rising by one), and each message says which stretch of its request
//! it holds. As with the one rule, only what was not taken before is taken, whatever the stretches are that a second
//! try was cut into. The invariant: verdicts and state are a function of the messages judged so far, in log order;
//! no clock and no process has a part in it, so every life of a task, and every owner, judges alike.
//!
//! The memory is bounded, so it forgets: what is behind a producer's window is said to be unknown, never guessed at,
//! and the producer heard from longest ago, in log order, is forgotten whole. Deliberately absent: what a stretch
//! counts (bytes or rows) and what becomes of an unknown one. The constants are part of the rule: with other ones an
//! old log would be judged differently.

mod ranges;

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use serde::{Deserialize, Serialize};

use self::ranges::Ranges;

/// A request may be sent again while its producer's newest one is fewer than this many sequences ahead.
pub const REQUEST_WINDOW: u64 = 1024;
/// Producers remembered per input partition.
pub const MAX_PRODUCERS: usize = 16_384;
/// Requests of one producer that may be incomplete at once.
const MAX_OPEN: usize = 64;
/// Stretches with holes between them that one request may consist of on the way.
const MAX_PIECES: usize = 32;
/// Ranges kept over all producers: the bound on memory and on the size of a checkpoint.
const MAX_RANGES: usize = 1 << 18;

/// What a message says of the request it belongs to: it holds `[from, to)` of `total`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestPart<'a> {
    /// Who sent the request.
    pub producer: &'a str,
    /// Its number among the producer's requests; below 2^63.
    pub sequence: u64,
    /// Where in the request the message begins.
    pub from: u64,
    /// Where in the request it ends.
    pub to: u64,
    /// Where the request ends.
    pub total: u64,
}

/// What to take of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fresh {
    /// All of it: nothing was seen before.
    Whole,
    /// These stretches of the request; the rest was taken before. Never empty, in order.
    Pieces(Vec<Range<u64>>),
    /// Nothing: everything was taken before.
    Repeat,
}

/// Whether a message was taken before cannot be told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unknowable {
    /// The window has moved on.
    #[error(
        "request {sequence} of producer `{producer}` is behind its window, which begins at {floor}: whether it was taken \
         before is not known"
    )]
    Behind {
        /// Who sent it.
        producer: String,
        /// The request.
        sequence: u64,
        /// The oldest request that can still be told apart.
        floor: u64,
    },
    /// The same key with another body.
    #[error(
        "request {sequence} of producer `{producer}` is {found} long here and was {known} when it was sent before: a key \
         belongs to one body"
    )]
    OtherBody {
        /// Who sent it.
        producer: String,
        /// The request.
        sequence: u64,
        /// Its length in an earlier message.
        known: u64,
        /// Its length here.
        found: u64,
    },
    /// More holes than are kept account of.
    #[error("request {sequence} of producer `{producer}` arrived in too many pieces with holes between them")]
    Scattered {
        /// Who sent it.
        producer: String,
        /// The request.
        sequence: u64,
    },
}

/// What a task has seen of the requests of its input partition.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "Vec<Stored>", into = "Vec<Stored>")]
pub struct Seen {
    producers: BTreeMap<Arc<str>, Producer>,
    /// Producers by the offset they were last heard at.
    order: BTreeMap<u64, Arc<str>>,
    ranges: usize,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Producer {
    /// Offset of its newest message.
    heard_at: u64,
    /// Everything below cannot be told apart any more.
    floor: u64,
    /// Sequences of which everything was taken.
    complete: Ranges,
    /// Sequences of which something is missing.
    open: BTreeMap<u64, Open>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Open {
    total: u64,
    taken: Ranges,
}

impl Seen {
    /// Whether nothing was seen.
    pub fn is_empty(&self) -> bool {
        self.producers.is_empty()
    }

    /// Judges the message at input offset `offset`, and remembers it. Offsets rise from call to call.
    ///
    /// # Errors
    /// [`Unknowable`]: to take the message may double rows and to drop it may lose some.
    pub fn accept(&mut self, part: &RequestPart<'_>, offset: u64) -> Result<Fresh, Unknowable> {
        let (name, mut producer) = match self.producers.remove_entry(part.producer) {
            Some((name, producer)) => {
                self.order.remove(&producer.heard_at);
                self.ranges -= producer.ranges();
                (name, producer)
            }
            None => (Arc::from(part.producer), Producer::default()),
        };
        producer.heard_at = offset;
        let verdict = producer.accept(part);
        self.ranges += producer.ranges();
        self.order.insert(offset, Arc::clone(&name));
        self.producers.insert(name, producer);
        self.forget();
        verdict
    }

    /// Forgets those heard from longest ago until the bounds are kept.
    fn forget(&mut self) {
        while self.producers.len() > 1 && (self.producers.len() > MAX_PRODUCERS || self.ranges > MAX_RANGES) {
            let Some((_, name)) = self.order.pop_first() else { return };
            let gone = self.producers.remove(&name);
            self.ranges -= gone.map_or(0, |producer| producer.ranges());
        }
    }
}

impl Producer {
    fn accept(&mut self, part: &RequestPart<'_>) -> Result<Fresh, Unknowable> {
        let (producer, sequence) = (|| part.producer.to_owned(), part.sequence);
        if sequence < self.floor {
            return Err(Unknowable::Behind { producer: producer(), sequence, floor: self.floor });
        }
        if self.complete.contains(sequence) {
            return Ok(Fresh::Repeat);
        }
        let open = self.open.entry(sequence).or_insert(Open { total: part.total, taken: Ranges::default() });
        if open.total != part.total {
            return Err(Unknowable::OtherBody { producer: producer(), sequence, known: open.total, found: part.total });
        }
        let fresh = open.take(part.from..part.to);
        if open.taken.is_whole(open.total) {
            self.open.remove(&sequence);
            self.complete.insert(sequence..sequence + 1);
        }
        self.move_floor(sequence);
        fresh.ok_or_else(|| Unknowable::Scattered { producer: producer(), sequence })
    }

    fn move_floor(&mut self, sequence: u64) {
        let mut floor = self.floor.max((sequence + 1).saturating_sub(REQUEST_WINDOW));
        while self.open.len() > MAX_OPEN
            && let Some((oldest, _)) = self.open.pop_first()
        {
            floor = floor.max(oldest + 1);
        }
        if floor > self.floor {
            self.floor = floor;
            self.complete.remove_below(floor);
            self.open = self.open.split_off(&floor);
        }
    }

    fn ranges(&self) -> usize {
        1 + self.complete.count() + self.open.values().map(|open| 1 + open.taken.count()).sum::<usize>()
    }
}

impl Open {
    /// `None` when the stretch cannot be kept account of.
    fn take(&mut self, stretch: Range<u64>) -> Option<Fresh> {
        let missing = self.taken.missing(&stretch);
        if missing.is_empty() && !stretch.is_empty() {
            return Some(Fresh::Repeat);
        }
        let mut taken = self.taken.clone();
        taken.insert(stretch.clone());
        if taken.count() > MAX_PIECES {
            return None;
        }
        self.taken = taken;
        let whole = stretch.is_empty() || missing == [stretch];
        Some(if whole { Fresh::Whole } else { Fresh::Pieces(missing) })
    }
}

/// A producer as a checkpoint holds it.
#[derive(Clone, Serialize, Deserialize)]
struct Stored {
    producer: String,
    heard_at: u64,
    floor: u64,
    complete: Ranges,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    open: Vec<(u64, u64, Ranges)>,
}

impl From<Seen> for Vec<Stored> {
    fn from(seen: Seen) -> Self {
        let store = |(producer, state): (Arc<str>, Producer)| Stored {
            producer: producer.as_ref().to_owned(),
            heard_at: state.heard_at,
            floor: state.floor,
            complete: state.complete,
            open: state.open.into_iter().map(|(sequence, open)| (sequence, open.total, open.taken)).collect(),
        };
        seen.producers.into_iter().map(store).collect()
    }
}

impl From<Vec<Stored>> for Seen {
    fn from(stored: Vec<Stored>) -> Self {
        let mut seen = Self::default();
        for Stored { producer, heard_at, floor, complete, open } in stored {
            let open = open.into_iter().map(|(sequence, total, taken)| (sequence, Open { total, taken })).collect();
            let state = Producer { heard_at, floor, complete, open };
            seen.ranges += state.ranges();
            let producer: Arc<str> = Arc::from(producer);
            seen.order.insert(heard_at, Arc::clone(&producer));
            seen.producers.insert(producer, state);
        }
        seen
    }
}

#[cfg(test)]
mod tests;
