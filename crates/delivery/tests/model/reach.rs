//! Progress once faults stop, checked on the whole graph of states.
//!
//! `stateright`'s `eventually` misses runs that join others or close a cycle, so this is a check of its own: over the
//! steps that are no faults the graph has no cycle, and from every state one that is done can be reached. With that
//! and the property that whatever has come to rest is done, every run in which faults stop ends well.

use std::collections::HashMap;

use stateright::Model;

use crate::{
    setup::Setup,
    world::{World, digest},
};

/// What is known of the graph of a model's states.
pub(crate) struct Progress {
    pub(crate) states: usize,
    /// A state from which nothing good can be reached without a fault.
    pub(crate) hopeless: Option<World>,
    /// Steps without a fault can go on for ever.
    pub(crate) endless: bool,
}

/// Explores everything.
pub(crate) fn progress(setup: &Setup) -> Progress {
    let mut graph = Graph::default();
    let mut next: Vec<World> = setup.init_states().into_iter().filter(|world| graph.number(setup, world).1).collect();
    while let Some(world) = next.pop() {
        let (from, _) = graph.number(setup, &world);
        for after in setup.next_states(&world) {
            let (to, new) = graph.number(setup, &after);
            if after.faults == world.faults {
                graph.edges.push((from, to));
            }
            if new {
                next.push(after);
            }
        }
    }
    let hopeless = graph.hopeless();
    let hopeless = hopeless.and_then(|number| find(setup, graph.digests[number]));
    Progress { states: graph.done.len(), hopeless, endless: graph.has_cycle() }
}

#[derive(Default)]
struct Graph {
    numbers: HashMap<u64, usize>,
    digests: Vec<u64>,
    done: Vec<bool>,
    /// Steps that are no faults.
    edges: Vec<(usize, usize)>,
}

impl Graph {
    /// The number of a state, and whether it is new.
    fn number(&mut self, setup: &Setup, world: &World) -> (usize, bool) {
        let (digest, fresh) = (digest(world), self.done.len());
        let number = *self.numbers.entry(digest).or_insert(fresh);
        if number == fresh {
            self.digests.push(digest);
            self.done.push(setup.is_done(world));
        }
        (number, number == fresh)
    }

    /// Walks back from what is done.
    fn hopeless(&self) -> Option<usize> {
        let mut before = vec![Vec::new(); self.done.len()];
        self.edges.iter().for_each(|&(from, to)| before[to].push(from));
        let mut hope = self.done.clone();
        let mut open: Vec<usize> = (0..hope.len()).filter(|&number| hope[number]).collect();
        while let Some(number) = open.pop() {
            for &earlier in &before[number] {
                if !std::mem::replace(&mut hope[earlier], true) {
                    open.push(earlier);
                }
            }
        }
        hope.iter().position(|hope| !hope)
    }

    /// Takes away, again and again, what nothing leads to; a cycle stays.
    fn has_cycle(&self) -> bool {
        let (mut after, mut waiting) = (vec![Vec::new(); self.done.len()], vec![0_u32; self.done.len()]);
        for &(from, to) in &self.edges {
            after[from].push(to);
            waiting[to] += 1;
        }
        let mut open: Vec<usize> = (0..waiting.len()).filter(|&number| waiting[number] == 0).collect();
        let mut left = waiting.len();
        while let Some(number) = open.pop() {
            left -= 1;
            for &later in &after[number] {
                waiting[later] -= 1;
                if waiting[later] == 0 {
                    open.push(later);
                }
            }
        }
        left > 0
    }
}

/// Explores again, to show a state of which only the digest was kept.
fn find(setup: &Setup, wanted: u64) -> Option<World> {
    let mut seen = std::collections::HashSet::new();
    let mut next = setup.init_states();
    while let Some(world) = next.pop() {
        let digest = digest(&world);
        if digest == wanted {
            return Some(world);
        }
        if seen.insert(digest) {
            next.extend(setup.next_states(&world));
        }
    }
    None
}
