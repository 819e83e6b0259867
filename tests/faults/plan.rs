//! Cuts what is to be run into blocks: what is done at the same moment, and how much between two judgements.
//!
//! Invariants: faults done at the same moment are done to different parts, and what needs the deployment for itself has
//! it; kills, whose victims must be back soonest, meet no other fault.

use std::{
    collections::{BTreeMap, VecDeque},
    iter,
    time::Duration,
};

use crate::{
    inject::{Fault, Ground, Part},
    judge::Over,
};

/// What one lane of a block takes. A judgement reads every file of every table, twice, so long blocks are judged slowly.
const LANE_LIMIT: Duration = Duration::from_secs(240);

/// Runs of one fault.
pub(crate) struct Turn<'a> {
    pub(crate) fault: &'a Fault,
    pub(crate) runs: u32,
}

/// One turn after the other.
pub(crate) type Lane<'a> = Vec<Turn<'a>>;

/// What is done between two judgements.
pub(crate) struct Block<'a> {
    /// First, with nothing beside it.
    pub(crate) alone: Lane<'a>,
    /// Then these, side by side.
    pub(crate) beside: Vec<Lane<'a>>,
}

impl<'a> Block<'a> {
    pub(crate) fn turns(&self) -> impl Iterator<Item = &Turn<'a>> {
        self.alone.iter().chain(self.beside.iter().flatten())
    }

    /// See [`Part::is_timed`].
    pub(crate) fn is_timed(&self) -> bool {
        self.turns().all(|turn| turn.fault.part.is_timed())
    }

    pub(crate) fn ground(&self) -> Ground {
        self.turns().next().map_or(Ground::Own, |turn| turn.fault.ground)
    }

    pub(crate) fn over(&self) -> Over {
        self.turns().next().map_or(Over::Topic, |turn| turn.fault.over)
    }
}

/// What is left of faults that may be done in one field, by what they are done to.
#[derive(Default)]
struct Left<'a>(BTreeMap<Part, VecDeque<Turn<'a>>>);

/// All blocks: those of kills, and all others. Long ones come first.
pub(crate) fn blocks<'a>(left: impl Iterator<Item = Turn<'a>>) -> (Vec<Block<'a>>, Vec<Block<'a>>) {
    let (mut kills, mut shared) = (Left::default(), BTreeMap::<(Ground, Over, bool), Left<'a>>::new());
    let mut by_themselves = Vec::new();
    for turn in left.filter(|turn| turn.runs > 0) {
        match (turn.fault.ground, turn.fault.part) {
            (Ground::Own, _) => by_themselves.extend(turn.one_by_one().map(Block::from)),
            (_, Part::InstanceOf(_)) => kills.push(turn),
            (ground, part) => shared.entry((ground, turn.fault.over, part.is_timed())).or_default().push(turn),
        }
    }
    let shared = shared.into_values().flat_map(Left::into_blocks);
    (kills.into_blocks().collect(), shared.chain(by_themselves).collect())
}

impl<'a> Turn<'a> {
    fn one_by_one(self) -> impl Iterator<Item = Turn<'a>> {
        (0..self.runs).map(move |_| Turn { fault: self.fault, runs: 1 })
    }
}

impl<'a> From<Turn<'a>> for Block<'a> {
    fn from(turn: Turn<'a>) -> Self {
        Block { alone: vec![turn], beside: Vec::new() }
    }
}

impl<'a> Left<'a> {
    fn push(&mut self, turn: Turn<'a>) {
        self.0.entry(turn.fault.part).or_default().push_back(turn);
    }

    fn into_blocks(mut self) -> impl Iterator<Item = Block<'a>> {
        iter::from_fn(move || {
            let (mut alone, mut beside) = (Lane::new(), Vec::new());
            for (part, left) in &mut self.0 {
                let lane = cut_lane(left);
                if part.is_alone() {
                    alone.extend(lane);
                } else if !lane.is_empty() {
                    beside.push(lane);
                }
            }
            Some(Block { alone, beside }).filter(|block| block.turns().next().is_some())
        })
    }
}

/// As much of what is left as fits into a block.
fn cut_lane<'a>(left: &mut VecDeque<Turn<'a>>) -> Lane<'a> {
    let (mut lane, mut room) = (Lane::new(), LANE_LIMIT);
    while let Some(next) = left.front_mut() {
        let fitting = (room.as_secs() / next.fault.takes.as_secs().max(1)) as u32;
        let runs = fitting.min(next.runs);
        if runs == 0 {
            break;
        }
        room -= next.fault.takes * runs;
        next.runs -= runs;
        lane.push(Turn { fault: next.fault, runs });
        if next.runs == 0 {
            left.pop_front();
        }
    }
    lane
}
