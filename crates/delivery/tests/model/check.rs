//! Runs a model: shows that it holds, or that it fails where it must.

use std::time::Instant;

use stateright::{Checker, HasDiscoveries, Model};

use crate::{
    reach::progress,
    setup::Setup,
    world::{Action, World},
};

/// Larger graphs are checked for progress with one fault less.
const GRAPH_STATES: usize = 8_000;

/// How far beyond the bounds of CI to go: 1 is CI.
fn bound() -> u8 {
    let text = std::env::var("TAILWATER_MODEL_BOUND").unwrap_or_else(|_| "1".to_owned());
    text.parse().ok().filter(|bound| *bound > 0).expect("TAILWATER_MODEL_BOUND is a number from 1")
}

fn run(setup: Setup, threads: usize) -> impl Checker<Setup> {
    setup.checker().threads(threads).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join()
}

/// Explores every state and finds nothing wrong; once faults stop, progress is always possible and always ends.
pub(crate) fn holds(name: &str, mut setup: Setup) {
    setup.faults += bound() - 1;
    setup.in_flight += usize::from(bound() - 1);
    let started = Instant::now();
    let checker = run(setup.clone(), if bound() > 1 { 2 } else { 1 });
    let (states, depth) = (checker.unique_state_count(), checker.max_depth());
    println!("{name}: {states} states, {depth} steps deep, {:.1?}", started.elapsed());
    checker.assert_properties();
    let started = Instant::now();
    setup.faults -= u8::from(states > GRAPH_STATES && setup.faults > 0);
    let progress = progress(&setup);
    println!("{name}: progress from each of {} states, {:.1?}", progress.states, started.elapsed());
    assert!(progress.hopeless.is_none(), "{name}: nothing good can be reached from {:#?}", progress.hopeless);
    assert!(!progress.endless, "{name}: steps without a fault can go on for ever");
}

/// Finds a counter-example to one of `properties`, and prints it.
pub(crate) fn fails(name: &str, setup: Setup, properties: &[&'static str]) {
    let started = Instant::now();
    let checker = run(setup, 1);
    println!("{name}: {} states, {:.1?}", checker.unique_state_count(), started.elapsed());
    let found = properties.iter().find_map(|&property| Some((property, checker.discovery(property)?)));
    let others: Vec<&str> = checker.discoveries().into_keys().collect();
    let (property, path) = found.unwrap_or_else(|| panic!("{name}: no counter-example to {properties:?}, {others:?}"));
    println!("{name}: not true that {property}:");
    let steps: Vec<(World, Option<Action>)> = path.into_vec();
    for (number, action) in steps.iter().filter_map(|(_, action)| action.as_ref()).enumerate() {
        println!("{:4}. {action:?}", number + 1);
    }
    if let Some((last, _)) = steps.last() {
        println!("{}", last.summary());
    }
}
