//! Lines of libraries: at most one a second from each place in their code.
//!
//! A store or a broker that is away makes every request of every task say so. What is ours limits itself where that can
//! happen, and counts what it held back (`throttle`); libraries do neither.
//! Deliberately absent: limits for debug and trace lines. Whoever asks for those wants them all.

use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Context, Filter};

use super::throttle::Throttle;
use crate::clock::{Clock as _, SystemClock};

/// Our crates, as the targets of their lines begin.
const OURS: [&str; 12] = [
    "analysis",
    "batch",
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

/// Lets lines of libraries through, not too many.
#[derive(Debug, Default)]
pub(super) struct Libraries {
    throttle: Throttle,
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
        // The name of an event is its place in the code.
        let is_due = || self.throttle.permit(metadata.name(), SystemClock.now_ms()).is_some();
        is_ours(metadata) || *metadata.level() > Level::INFO || is_due()
    }

    /// It says nothing of levels. Without that word a filter that is joined with this one has no bound either, and every
    /// line that a library could write is looked at: the Kafka client has several for each message.
    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::TRACE)
    }
}

fn is_ours(metadata: &Metadata<'_>) -> bool {
    OURS.contains(&metadata.target().split("::").next().unwrap_or_default())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::{collections::BTreeSet, fs, path::PathBuf};

    use tracing_subscriber::{EnvFilter, Registry, filter::FilterExt};

    use super::*;

    #[test]
    fn a_level_that_is_joined_with_it_keeps_its_bound() {
        let joined = FilterExt::<Registry>::and(EnvFilter::new("info"), Libraries::default());
        let hint = Filter::<Registry>::max_level_hint(&joined);
        assert_eq!(hint, Some(LevelFilter::INFO));
    }

    #[test]
    fn ours_are_the_crates_of_this_workspace_that_say_something() {
        let root = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap()).join("../..");
        let names = ["crates", "services"].map(|folder| fs::read_dir(root.join(folder)).unwrap()).into_iter().flatten();
        let mut found: BTreeSet<String> =
            names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        assert!(found.remove("testkit"));
        assert_eq!(found, OURS.map(str::to_owned).into());
    }
}
