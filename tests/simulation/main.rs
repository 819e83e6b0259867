//! The whole of Tailwater in one process, in simulated time, with faults drawn from a seed.
//!
//! The real code of all four services runs on a log and a store in memory. Every request may be slow, fail, or fail
//! after its effect; processes die at any request, stop, join, believe to own what they lost; checkpoints are lost,
//! channels trimmed, somebody else commits. Then the faults end, everything must settle, and every row is looked for.
//!
//! `TAILWATER_SEED=7` replays one run; `TAILWATER_SEEDS=20000` makes it a long one. Deliberately absent: real threads,
//! real disks and real networks (see `tests/system`), and log checkpoints of tables, which are written on threads.
//!
//! A target of its own, because switched-off safeguards hold for the whole process.
#![allow(clippy::unwrap_used)]

mod check;
mod controls;
mod faults;
mod input;
mod log_edge;
mod monitor;
mod process;
mod run;
mod schedule;
mod seeds;
mod store_edge;
mod trace;
mod world;
