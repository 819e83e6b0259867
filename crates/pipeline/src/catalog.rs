//! The catalog: every definition of every pipeline, as the replay of an ordered log of changes.
//!
//! Invariant: the catalog is a pure function of the records replayed, and every reader decides alike. A record names
//! the version it was made against; if that is not the version at its place in the log, the record is void for
//! everybody. So of two changes that race exactly one happens. What the definitions of a record say has no part in
//! that: one that this program cannot read is in force and broken, which is its own pipeline's trouble alone, and ends
//! when it is replaced or dropped.
//! Deliberately absent: the log itself, and guessing. A damaged record, or one of another format, stops every reader.
//!
//! # Records
//! One JSON object per record:
//! ```json
//! {"format": 1, "base": 3, "id": "5d0c…", "pipeline": "shop",
//!  "upserts": [{"name": "orders", "statement": "CREATE SOURCE orders (…) WITH (…)"}], "drops": ["old"]}
//! ```
//! `format` grows when the meaning of a record does; a reader refuses formats it does not know. `base` is the version
//! the change was made against (0 is the empty catalog), and an accepted record makes version `base + 1`, which is
//! the incarnation of all its upserts. `upserts` holds whatever changes, including definitions that change only
//! because an input does. `id` makes records
//! different, so that their maker can tell which one in the log is its own.

use std::collections::{BTreeMap, BTreeSet};

use delivery::ErrorClass;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::parse::parse_stored;
use crate::problem::Problems;
use crate::spec::Statement;

const RECORD_FORMAT: u32 = 1;

/// All definitions, as of one version.
#[derive(Debug, Clone, Default)]
pub struct Catalog {
    version: u64,
    definitions: BTreeMap<(String, String), Definition>,
    broken: BTreeMap<(String, String), BrokenDefinition>,
}

/// A definition in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Definition {
    pub pipeline: String,
    pub name: String,
    /// The catalog version that made it. A changed definition is a new incarnation.
    pub incarnation: u64,
    pub statement: Statement,
}

/// A definition in force that this program cannot read: another build knew more, or was less strict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BrokenDefinition {
    pub(crate) name: String,
    pub(crate) problems: Problems,
}

/// What a stored definition says, or why that cannot be read.
type Reading = Result<Statement, Problems>;

/// What became of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Replay {
    /// The change happened and made this version.
    Accepted { version: u64 },
    /// The change was made against another version than the one in force, and is void.
    Stale { base: u64, version: u64 },
}

/// Why the catalog cannot be read or compiled.
#[derive(Debug, Error)]
pub enum CatalogError {
    #[error(
        "catalog record after version {version} has format {found}, this program reads up to {RECORD_FORMAT}; upgrade it"
    )]
    UnknownFormat { version: u64, found: u32 },
    #[error("catalog record after version {version} is damaged: {reason}")]
    Damaged { version: u64, reason: String },
    #[error("pipeline `{pipeline}` of catalog version {version} does not compile here; upgrade, or apply it anew")]
    DoesNotCompile {
        version: u64,
        pipeline: String,
        #[source]
        source: Problems,
    },
}

impl CatalogError {
    /// Always `Stop`: reading on would mean guessing.
    pub fn class(&self) -> ErrorClass {
        ErrorClass::Stop
    }
}

impl Catalog {
    /// How many changes were accepted.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Definitions in force that this program can read, by pipeline and name.
    pub fn definitions(&self) -> impl Iterator<Item = &Definition> {
        self.definitions.values()
    }

    /// Pipelines that have a definition, be it one that cannot be read.
    pub fn pipelines(&self) -> BTreeSet<&str> {
        self.definitions.keys().chain(self.broken.keys()).map(|(pipeline, _)| pipeline.as_str()).collect()
    }

    /// The definition of that name, if there is one that can be read.
    pub fn definition(&self, pipeline: &str, name: &str) -> Option<&Definition> {
        self.definitions.get(&(pipeline.to_owned(), name.to_owned()))
    }

    pub(crate) fn of_pipeline(&self, pipeline: &str) -> impl Iterator<Item = &Definition> {
        let pipeline = pipeline.to_owned();
        self.definitions.values().filter(move |definition| definition.pipeline == pipeline)
    }

    pub(crate) fn broken_of(&self, pipeline: &str) -> impl Iterator<Item = &BrokenDefinition> {
        let pipeline = pipeline.to_owned();
        self.broken.iter().filter(move |((owner, _), _)| *owner == pipeline).map(|(_, definition)| definition)
    }

    /// Applies the next record of the log.
    ///
    /// Errors: the record cannot be understood; nothing changed, and the caller must not go on. Definitions in it that
    /// cannot be read are none: see [`crate::Graph::broken`].
    pub fn replay(&mut self, record: &[u8]) -> Result<Replay, CatalogError> {
        let change = self.decode(record)?;
        if change.base != self.version {
            return Ok(Replay::Stale { base: change.base, version: self.version });
        }
        let upserts = self.read_upserts(&change)?;
        self.check_drops(&change)?;
        self.version += 1;
        for name in &change.drops {
            self.remove(&change.pipeline, name);
        }
        for (upsert, reading) in change.upserts.iter().zip(upserts) {
            self.remove(&change.pipeline, &upsert.name);
            self.insert(&change.pipeline, &upsert.name, reading);
        }
        Ok(Replay::Accepted { version: self.version })
    }

    fn remove(&mut self, pipeline: &str, name: &str) {
        let key = (pipeline.to_owned(), name.to_owned());
        self.definitions.remove(&key);
        self.broken.remove(&key);
    }

    fn insert(&mut self, pipeline: &str, name: &str, reading: Reading) {
        let (pipeline, name) = (pipeline.to_owned(), name.to_owned());
        let key = (pipeline.clone(), name.clone());
        match reading {
            Ok(statement) => {
                let definition = Definition { pipeline, name, incarnation: self.version, statement };
                self.definitions.insert(key, definition);
            }
            Err(problems) => {
                self.broken.insert(key, BrokenDefinition { name, problems });
            }
        }
    }

    fn damaged(&self, reason: impl Into<String>) -> CatalogError {
        CatalogError::Damaged { version: self.version, reason: reason.into() }
    }

    /// Reads the format alone first: a later format may have another shape altogether.
    fn decode(&self, record: &[u8]) -> Result<Change, CatalogError> {
        let head: Head = serde_json::from_slice(record).map_err(|error| self.damaged(error.to_string()))?;
        if head.format != RECORD_FORMAT {
            return Err(CatalogError::UnknownFormat { version: self.version, found: head.format });
        }
        serde_json::from_slice(record).map_err(|error| self.damaged(error.to_string()))
    }

    fn read_upserts(&self, change: &Change) -> Result<Vec<Reading>, CatalogError> {
        change.upserts.iter().map(|upsert| self.read_upsert(&change.pipeline, upsert)).collect()
    }

    fn read_upsert(&self, pipeline: &str, upsert: &Upsert) -> Result<Reading, CatalogError> {
        let file = format!("catalog:{pipeline}.{}", upsert.name);
        let parsed = match parse_stored(&file, &upsert.statement) {
            Ok(parsed) => parsed,
            Err(problems) => return Ok(Err(problems)),
        };
        match <[Statement; 1]>::try_from(parsed) {
            Ok([statement]) if statement.name == upsert.name => Ok(Ok(statement)),
            _ => Err(self.damaged(format!("the statement of `{}` does not define it", upsert.name))),
        }
    }

    fn has(&self, pipeline: &str, name: &str) -> bool {
        let key = (pipeline.to_owned(), name.to_owned());
        self.definitions.contains_key(&key) || self.broken.contains_key(&key)
    }

    fn check_drops(&self, change: &Change) -> Result<(), CatalogError> {
        let missing = change.drops.iter().find(|name| !self.has(&change.pipeline, name));
        match missing {
            Some(name) => Err(self.damaged(format!("it drops `{name}`, which does not exist"))),
            None => Ok(()),
        }
    }
}

#[derive(Deserialize)]
struct Head {
    format: u32,
}

/// One record of the catalog log: what one apply changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    format: u32,
    base: u64,
    id: String,
    pipeline: String,
    upserts: Vec<Upsert>,
    drops: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Upsert {
    name: String,
    statement: String,
}

impl Change {
    pub(crate) fn new(base: u64, pipeline: &str, upserts: Vec<&Statement>, drops: Vec<String>) -> Change {
        let upserts: Vec<Upsert> = upserts
            .into_iter()
            .map(|statement| Upsert { name: statement.name.clone(), statement: statement.sql.clone() })
            .collect();
        let mut change =
            Change { format: RECORD_FORMAT, base, id: String::new(), pipeline: pipeline.to_owned(), upserts, drops };
        change.id = format!("{:016x}", digest(&change.to_bytes()));
        change
    }

    /// Names the change, so that its maker recognises it in the log. Without this the id is a digest of the content,
    /// and two equal changes made at the same time are taken for one, which they are.
    pub fn with_id(mut self, id: impl Into<String>) -> Change {
        self.id = id.into();
        self
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    /// The version the change was made against.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// The record to append to the catalog topic.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a change is text and numbers, which JSON can hold")
    }
}

/// FNV-1a: short, stable across builds, and no attacker to keep out.
fn digest(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

#[cfg(test)]
mod tests;
