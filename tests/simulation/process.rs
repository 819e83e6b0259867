//! What makes an instance of a service a process: it can die between any two of its dealings with the world.
//!
//! Everything a service awaits is a request to the log or the store, a timer, or another of its own tasks. So every
//! request is two places to die at: before it has an effect, and after it and before its answer.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use topics::Membership;

use crate::{faults::Faults, trace::Trace};

/// Processes that have died and are not buried yet, by number.
#[derive(Default)]
pub(crate) struct Deaths {
    numbers: Mutex<Vec<u64>>,
    told: Notify,
}

impl Deaths {
    /// Waits for a death. Cancel safe.
    pub(crate) async fn next(&self) -> u64 {
        loop {
            let told = self.told.notified();
            if let Some(number) = self.numbers.lock().pop() {
                return number;
            }
            told.await;
        }
    }
}

/// The fate of one process. Clones share it.
#[derive(Clone)]
pub(crate) struct Process {
    inner: Arc<Inner>,
}

struct Inner {
    number: u64,
    name: String,
    faults: Faults,
    trace: Trace,
    deaths: Arc<Deaths>,
    dead: AtomicBool,
    /// Places until death.
    left: Mutex<Option<u64>>,
    expiries: watch::Sender<u64>,
    /// Places in groups that outlive a process that died, until its session runs out.
    sessions: Mutex<Vec<Box<dyn Membership>>>,
}

impl Process {
    pub(crate) fn new(number: u64, name: String, faults: Faults, trace: Trace, deaths: Arc<Deaths>) -> Self {
        let faults = faults.of_process(&name);
        let inner = Inner {
            number,
            name,
            faults,
            trace,
            deaths,
            dead: AtomicBool::new(false),
            left: Mutex::default(),
            expiries: watch::Sender::new(0),
            sessions: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    pub(crate) fn name(&self) -> &str {
        &self.inner.name
    }

    pub(crate) fn faults(&self) -> &Faults {
        &self.inner.faults
    }

    pub(crate) fn note(&self, event: &str) {
        self.inner.trace.note(format!("{} {event}", self.inner.name));
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.inner.dead.load(Ordering::SeqCst)
    }

    /// It will die at the so-manieth place from now.
    pub(crate) fn die_after(&self, places: u64) {
        *self.inner.left.lock() = Some(places);
    }

    /// It will not die any more.
    pub(crate) fn live_on(&self) {
        *self.inner.left.lock() = None;
    }

    /// Its group will think it gone, whatever it thinks itself.
    pub(crate) fn expire(&self) {
        self.inner.expiries.send_modify(|count| *count += 1);
    }

    pub(crate) fn expiries(&self) -> watch::Receiver<u64> {
        self.inner.expiries.subscribe()
    }

    /// Keeps a place in a group until the session of a dead process runs out.
    pub(crate) fn bequeath(&self, membership: Box<dyn Membership>) {
        self.inner.sessions.lock().push(membership);
    }

    /// The session of a dead process runs out.
    pub(crate) fn forget_sessions(&self) {
        self.inner.sessions.lock().clear();
    }

    /// A place to die at. A dead process never goes on.
    pub(crate) async fn place(&self, place: &str) {
        if self.is_dead() || self.dies_here() {
            if !self.inner.dead.swap(true, Ordering::SeqCst) {
                self.note(&format!("dies {place}"));
                self.inner.deaths.numbers.lock().push(self.inner.number);
                self.inner.deaths.told.notify_one();
            }
            std::future::pending::<()>().await;
        }
    }

    fn dies_here(&self) -> bool {
        match self.inner.left.lock().as_mut() {
            None => false,
            Some(0) => true,
            Some(left) => {
                *left -= 1;
                false
            }
        }
    }
}
