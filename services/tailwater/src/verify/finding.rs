//! Invariants, and what was found of each.

use serde::Serialize;

use super::ledger::Place;

/// How many examples of each violation are kept.
const EXAMPLES: usize = 5;

/// An invariant, by its letter in `docs/reliability.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub(crate) enum Id {
    L,
    D,
    P,
    C,
    O,
    U,
    A,
    Q,
    T,
    I,
    M,
}

impl Id {
    pub(crate) fn meaning(self) -> &'static str {
        match self {
            Self::L => "every acknowledged row is in the table",
            Self::D => "no row is in the table twice",
            Self::P => "no row is in the table that was not sent",
            Self::C => "every row says what was sent",
            Self::O => "rows of a key stand in the order they were sent in, where their acknowledgements say",
            Self::U => "a row of unknown fate is there once or not at all",
            Self::A => "views hold exactly what follows from the table",
            Self::Q => "every bad row is kept once, whole, with place and reason",
            Self::T => "the Delta logs, their files and their positions agree",
            Self::I => "an independent reader sees the same rows",
            Self::M => "rows and versions never go back, and a request never shows in part",
        }
    }
}

/// One violation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Example {
    pub(crate) what: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) producer: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) key: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) seq: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) partition: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) offset: Option<u64>,
}

impl Example {
    /// A violation that concerns a row; without a producer it concerns none.
    pub(crate) fn of(what: &str, producer: &str, key: i64, seq: i64) -> Self {
        let named = !producer.is_empty();
        Self {
            what: what.to_owned(),
            producer: producer.to_owned(),
            key: named.then_some(key),
            seq: named.then_some(seq),
            ..Self::default()
        }
    }

    /// A violation that concerns no single row.
    pub(crate) fn plain(what: impl Into<String>) -> Self {
        Self { what: what.into(), ..Self::default() }
    }

    pub(crate) fn at(self, place: Place) -> Self {
        Self { partition: Some(place.partition), offset: Some(place.offset), ..self }
    }
}

impl std::fmt::Display for Example {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.what)?;
        if let (Some(key), Some(seq)) = (self.key, self.seq) {
            write!(formatter, " [producer {} key {key} seq {seq}]", self.producer)?;
        }
        if let (Some(partition), Some(offset)) = (self.partition, self.offset) {
            write!(formatter, " at {partition}/{offset}")?;
        }
        Ok(())
    }
}

/// What was found of one invariant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    pub(crate) id: Id,
    pub(crate) meaning: &'static str,
    pub(crate) checked: u64,
    pub(crate) violations: u64,
    pub(crate) examples: Vec<Example>,
}

impl Finding {
    pub(crate) fn of(id: Id) -> Self {
        Self { id, meaning: id.meaning(), checked: 0, violations: 0, examples: Vec::new() }
    }

    pub(crate) fn violate(&mut self, example: impl FnOnce() -> Example) {
        self.violations += 1;
        if self.examples.len() < EXAMPLES {
            self.examples.push(example());
        }
    }
}
