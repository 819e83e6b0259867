//! Proof on the user's own cluster: rows whose content and fate are known, and a check that accounts for each.
//!
//! `produce` sends rows and keeps a ledger of what became of each; `check` compares ledgers with every table that must
//! hold the rows, and audits the tables' logs; `watch` looks for anything that goes back meanwhile. What a row says
//! follows from its name, so the ledger is small; the checker is pure (`judge`) and knows the pipeline's SQL.
//! Deliberately absent: faults. Kill what you like while it runs.

mod books;
pub(crate) mod check;
mod content;
pub(crate) mod definitions;
mod finding;
mod judge;
mod ledger;
mod outgoing;
pub(crate) mod produce;
mod reader;
mod report;
mod scan;
mod schedule;
mod settle;
mod tables;
pub(crate) mod watch;
