//! How far the tasks are: what they say, for the watchdog and for lag tools.
//!
//! Invariant: a life that was given up says nothing more about its task's health.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;
use topics::TopicName;

use crate::admin::CheckHandle;

/// Positions tasks have made durable, on their way to the group's offsets. Cheap to clone.
#[derive(Clone, Default)]
pub struct Settlements(Arc<Mutex<BTreeMap<(TopicName, u32), u64>>>);

impl Settlements {
    /// Everything before `offset` is durable downstream.
    pub fn settle(&self, topic: &TopicName, partition: u32, offset: u64) {
        self.0.lock().insert((topic.clone(), partition), offset);
    }

    pub(super) fn take(&self) -> Vec<(TopicName, u32, u64)> {
        let settled = std::mem::take(&mut *self.0.lock());
        settled.into_iter().map(|((topic, partition), offset)| (topic, partition, offset)).collect()
    }
}

/// How far one life of a task is. Cheap to clone and to call.
///
/// A task says where it begins as soon as it can work, and then where it is whenever it has done with something. It is
/// stuck when it has input and says nothing new.
#[derive(Clone, Default)]
pub struct Progress(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    places: Vec<Place>,
    moves: u64,
    announce: Option<Announce>,
}

/// A place the task has reached: everything before `next` is done with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) topic: TopicName,
    pub(super) partition: u32,
    pub(super) next: u64,
}

/// What makes the task's check ready.
struct Announce {
    check: CheckHandle,
    when: Ready,
}

/// When a life counts as working.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ready {
    /// It could begin.
    Begun,
    /// It got further than where it began: the life before it could begin, too, and then stood still.
    Moved,
}

impl Progress {
    /// The progress of a new life, which makes `check` ready.
    pub(super) fn announcing(check: CheckHandle, when: Ready) -> Self {
        Self(Arc::new(Mutex::new(State { announce: Some(Announce { check, when }), ..State::default() })))
    }

    /// Everything before `next` of this partition is done with, for now: it may be said again, and further back.
    pub fn reached(&self, topic: &TopicName, partition: u32, next: u64) {
        let mut state = self.0.lock();
        let known = state.places.iter_mut().find(|place| place.partition == partition && place.topic == *topic);
        let moved = match known {
            Some(place) => std::mem::replace(&mut place.next, next) != next,
            None => {
                state.places.push(Place { topic: topic.clone(), partition, next });
                false
            }
        };
        state.moves += u64::from(moved);
        if moved || state.announce.as_ref().is_some_and(|announce| announce.when == Ready::Begun) {
            state.announce();
        }
    }

    /// From here on this life is not heard any more.
    pub(super) fn silence(&self) {
        self.0.lock().announce = None;
    }

    /// How often it moved, and where it is; nowhere before it has begun.
    pub(super) fn look(&self) -> (u64, Vec<Place>) {
        let state = self.0.lock();
        (state.moves, state.places.clone())
    }
}

impl State {
    fn announce(&mut self) {
        if let Some(announce) = self.announce.take() {
            announce.check.set_ready("running");
        }
    }
}
