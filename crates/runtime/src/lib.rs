//! What every Tailwater process needs besides its own work: config, telemetry, tasks, shutdown, health, time and retries,
//! and what every task over topics shares: the catalog, supervision, and writing channels.
//!
//! Invariant: every task has an owner, a name and a fate, and the environment is read in one module, [`config`]
//! (what tests of our own ask for in [`fail_points`]).
//! Deliberately absent: what a service does with the rows.

pub mod admin;
pub mod catalog;
pub mod channel_writer;
pub mod channels;
pub mod clock;
pub mod config;
pub mod dead_letters;
pub mod edges;
pub mod exit;
pub mod fail_points;
pub mod input;
pub mod memory;
pub mod metrics;
pub mod process;
pub mod retry;
pub mod row_limits;
pub mod signal;
pub mod supervisor;
pub mod tasks;
pub mod telemetry;
pub mod units;
