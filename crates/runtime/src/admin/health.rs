//! What the process waits for, by name.
//!
//! Invariant: a process is ready only while every check is ready, there is at least one, and nobody asked it to stop.
//! Deliberately absent: probing. Whoever does the work says how it goes; health never calls a broker or a store.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::tasks::Stop;

/// The registry of checks. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Health {
    checks: Arc<Mutex<BTreeMap<String, CheckState>>>,
    stop: Option<Stop>,
}

/// How one check stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CheckState {
    /// Does its work. The detail may be empty.
    Ready { detail: String },
    /// Does not, for this reason.
    Waiting { reason: String },
}

/// One line of the report.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CheckLine {
    pub name: String,
    pub state: CheckState,
}

/// The right to say how one check stands. Clones speak for the same check; dropping it leaves the last word standing.
#[derive(Clone, Debug)]
pub struct CheckHandle {
    name: String,
    health: Health,
}

impl Health {
    pub fn new() -> Health {
        Health::default()
    }

    /// Not ready any more from the word to stop on, so that no new work is sent to a process that drains.
    pub fn with_stop(stop: Stop) -> Health {
        Health { stop: Some(stop), ..Health::default() }
    }

    /// Registers a check, waiting until it is first set.
    pub fn check(&self, name: impl Into<String>) -> CheckHandle {
        let handle = CheckHandle { name: name.into(), health: self.clone() };
        handle.set_waiting("starting");
        handle
    }

    pub fn is_ready(&self) -> bool {
        self.report().iter().all(|line| matches!(line.state, CheckState::Ready { .. }))
    }

    /// All checks by name. Never empty: a process that has registered none yet is starting.
    pub fn report(&self) -> Vec<CheckLine> {
        let mut lines: Vec<CheckLine> =
            self.checks().iter().map(|(name, state)| CheckLine { name: name.clone(), state: state.clone() }).collect();
        if lines.is_empty() {
            lines.push(CheckLine::waiting("process", "starting"));
        }
        if self.stop.as_ref().is_some_and(Stop::is_stopping) {
            lines.push(CheckLine::waiting("process", "stopping"));
        }
        lines
    }

    fn checks(&self) -> MutexGuard<'_, BTreeMap<String, CheckState>> {
        // Each write replaces one whole entry, so a panic elsewhere leaves nothing half done.
        self.checks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CheckLine {
    fn waiting(name: &str, reason: &str) -> CheckLine {
        CheckLine { name: name.to_owned(), state: CheckState::Waiting { reason: reason.to_owned() } }
    }
}

impl CheckHandle {
    /// It works. `detail` may be empty.
    pub fn set_ready(&self, detail: impl Into<String>) {
        self.set(CheckState::Ready { detail: detail.into() });
    }

    /// It does not work yet, or not any more.
    pub fn set_waiting(&self, reason: impl Into<String>) {
        self.set(CheckState::Waiting { reason: reason.into() });
    }

    /// The thing checked is gone for good, and nobody should wait for it.
    pub fn remove(self) {
        self.health.checks().remove(&self.name);
    }

    fn set(&self, state: CheckState) {
        self.health.checks().insert(self.name.clone(), state);
    }
}
