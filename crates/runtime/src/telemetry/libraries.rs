//! Lines of libraries: at most one a second from each place in their code.
//!
//! A store or a broker that is away makes every request of every task say so. What is ours limits itself where that can
//! happen, and counts what it held back (`throttle`); libraries do neither.
//! Deliberately absent: limits for debug and trace lines. Whoever asks for those wants them all.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Filter};

/// Our crates, as the targets of their lines begin.
const OURS: [&str; 13] = [
    "analysis",
    "batch",
    "benches",
    "delivery",
    "engine",
    "ingestion",
    "lake",
    "pipeline",
    "runtime",
    "storage",
    "tailwater",
    "topics",
    "transformation",
];
const EVERY: Duration = Duration::from_secs(1);

/// Lets lines of libraries through, not too many.
#[derive(Debug, Default)]
pub(super) struct Libraries {
    /// By place in the code, of which there are only so many.
    shown: Mutex<HashMap<Identifier, Instant>>,
}

impl Libraries {
    fn is_due(&self, place: Identifier) -> bool {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let is_due = shown.get(&place).is_none_or(|last| now.duration_since(*last) >= EVERY);
        if is_due {
            shown.insert(place, now);
        }
        is_due
    }
}

impl<S: Subscriber> Filter<S> for Libraries {
    fn enabled(&self, _: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        true
    }

    fn callsite_enabled(&self, _: &'static Metadata<'static>) -> Interest {
        Interest::always()
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        let metadata = event.metadata();
        is_ours(metadata) || *metadata.level() > Level::INFO || self.is_due(metadata.callsite())
    }
}

fn is_ours(metadata: &Metadata<'_>) -> bool {
    OURS.contains(&metadata.target().split("::").next().unwrap_or_default())
}
