//! The lake as its users see it: faults, races, zombies, checkpoints, and other readers.
//!
//! Time is paused where back-off is involved, so nothing here waits. `TAILWATER_SEED` runs one seed.
#![allow(clippy::unwrap_used)]

mod audit;
mod checkpoint;
mod commits;
mod exactly_once;
mod faults;
mod files;
mod peers;
mod probe;
mod support;
