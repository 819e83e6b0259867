//! Lets a warning through at most once in a while, and counts what it holds back.
//!
//! Invariant: the first event always passes. Deliberately absent: what is logged.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// One kind of event.
#[derive(Debug)]
pub(crate) struct Throttle {
    every: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    last: Option<Instant>,
    held_back: u64,
}

impl Throttle {
    pub(crate) const fn new(every: Duration) -> Self {
        Self { every, state: Mutex::new(State { last: None, held_back: 0 }) }
    }

    pub(crate) const fn once_a_second() -> Self {
        Self::new(Duration::from_secs(1))
    }

    /// `Some(held back since)` when this event may be reported.
    pub(crate) fn pass(&self) -> Option<u64> {
        let mut state = self.state.lock();
        let now = Instant::now();
        match state.last {
            Some(last) if now.duration_since(last) < self.every => {
                state.held_back += 1;
                None
            }
            _ => {
                state.last = Some(now);
                Some(std::mem::take(&mut state.held_back))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_passes_and_the_rest_is_counted() {
        let throttle = Throttle::new(Duration::from_secs(3600));
        assert_eq!(throttle.pass(), Some(0));
        assert_eq!(throttle.pass(), None);
        assert_eq!(throttle.pass(), None);
        let eager = Throttle::new(Duration::ZERO);
        assert_eq!(eager.pass(), Some(0));
        assert_eq!(eager.pass(), Some(0));
    }
}
