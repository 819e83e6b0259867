//! When a task counts as stuck: it has had input, and has not moved, for a minute.
//!
//! Pure: time and what the log says come in. A task that moves costs nothing; only one that has not moved for a while
//! makes the watchdog ask the log whether anything waits for it.

use std::{fmt, time::Duration};

use tokio::time::Instant;

use super::progress::Place;

/// A task that has had input waiting for this long and has not moved is stuck. Long enough for a slow store or a
/// broker that changes leaders, short enough that nobody looks at a dead pipeline for long.
pub const STALLED_AFTER: Duration = Duration::from_secs(60);
/// How often tasks are looked at.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(10);
/// How long a task that has nothing to do is left alone.
const REST: Duration = Duration::from_secs(30);
/// How long a life may take to begin: reading a table's log takes its time.
const BEGINS_WITHIN: Duration = Duration::from_secs(300);

/// What the watchdog knows of one life.
#[derive(Debug)]
pub(super) struct Watch {
    moves: u64,
    /// When it last moved, or was last seen to have nothing to do.
    well_at: Instant,
    /// Since when input is known to wait.
    waiting_since: Option<Instant>,
    look_at: Instant,
}

/// What a look at the task's own word says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Glance {
    /// It has moved since the last look.
    Moved,
    /// There is no reason to ask yet.
    Fine,
    /// It has not moved for a while: ask the log whether it should have; the last time, for a message that proves it.
    Ask { prove: bool },
    /// It has not even begun.
    Stalled(Stall),
}

/// What the log says about a task that does not move.
#[derive(Debug)]
pub(super) enum Answer {
    /// Nothing waits for it.
    Idle,
    /// This waits: the place it is at, and the end of that partition; proven by a message, or likely.
    Waiting { place: Place, end: u64, proven: bool },
    /// The log does not say.
    Unknown(String),
}

/// A task that is stuck.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stall {
    pub(super) lasted: Duration,
    what: What,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum What {
    Beginning,
    At { place: Place, end: u64 },
    LogSilent(String),
}

impl Stall {
    /// Whether starting the task again can help: not where it is the log that does not answer.
    pub(super) fn is_of_the_task(&self) -> bool {
        !matches!(self.what, What::LogSilent(_))
    }
}

impl fmt::Display for Stall {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.lasted.as_secs();
        match &self.what {
            What::Beginning => write!(out, "not begun for {seconds} s"),
            What::At { place, end } => {
                let Place { topic, partition, next } = place;
                write!(out, "no progress for {seconds} s at {topic}/{partition}@{next}, which ends at {end}")
            }
            What::LogSilent(error) => write!(out, "no progress for {seconds} s, and the log does not answer: {error}"),
        }
    }
}

impl Watch {
    pub(super) fn new(now: Instant) -> Self {
        Self { moves: 0, well_at: now, waiting_since: None, look_at: now + LOOK_EVERY }
    }

    /// Looks at what the task says of itself.
    pub(super) fn glance(&mut self, now: Instant, moves: u64, begun: bool) -> Glance {
        if !begun {
            let lasted = now - self.well_at;
            let stall = Stall { lasted, what: What::Beginning };
            return if lasted < BEGINS_WITHIN { Glance::Fine } else { Glance::Stalled(stall) };
        }
        if moves != self.moves {
            self.moves = moves;
            self.well(now, LOOK_EVERY);
            return Glance::Moved;
        }
        if now < self.look_at {
            return Glance::Fine;
        }
        Glance::Ask { prove: self.waiting_since.is_some_and(|since| now - since >= STALLED_AFTER) }
    }

    /// Takes what the log said when it was asked.
    pub(super) fn hear(&mut self, now: Instant, answer: Answer) -> Option<Stall> {
        let (what, proven) = match answer {
            Answer::Idle => {
                self.well(now, REST);
                return None;
            }
            Answer::Waiting { place, end, proven } => (What::At { place, end }, proven),
            Answer::Unknown(error) => (What::LogSilent(error), true),
        };
        self.look_at = now + LOOK_EVERY;
        let since = *self.waiting_since.get_or_insert(now);
        (proven && now - since >= STALLED_AFTER).then(|| Stall { lasted: now - self.well_at, what })
    }

    fn well(&mut self, now: Instant, look_in: Duration) {
        self.well_at = now;
        self.waiting_since = None;
        self.look_at = now + look_in;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use topics::TopicName;

    use super::*;

    fn waiting() -> Answer {
        let topic = TopicName::new("orders").unwrap();
        Answer::Waiting { place: Place { topic, partition: 3, next: 1042 }, end: 2000, proven: true }
    }

    #[test]
    fn a_task_that_moves_or_has_nothing_to_do_is_never_stuck() {
        let start = Instant::now();
        let mut watch = Watch::new(start);
        for round in 1..100u64 {
            let now = start + Duration::from_secs(10 * round);
            assert_eq!(watch.glance(now, round, true), Glance::Moved);
        }
        let start = start + Duration::from_secs(1000);
        let mut asked = 0;
        for round in 1..100u64 {
            let now = start + Duration::from_secs(10 * round);
            if watch.glance(now, 99, true) == (Glance::Ask { prove: false }) {
                asked += 1;
                assert_eq!(watch.hear(now, Answer::Idle), None);
            }
        }
        assert!((30..=34).contains(&asked), "it is asked for every 30 s: {asked}");
    }

    #[test]
    fn a_task_with_input_that_stands_still_for_a_minute_is_stuck() {
        let start = Instant::now();
        let mut watch = Watch::new(start);
        let mut stalls = Vec::new();
        for second in 1..=90 {
            let now = start + Duration::from_secs(second);
            if let Glance::Ask { prove } = watch.glance(now, 0, true) {
                assert_eq!(prove, second >= 70, "a proof costs a reader, so it is asked for at the end");
                stalls.extend(watch.hear(now, waiting()).map(|stall| (second, stall)));
            }
        }
        let (second, stall) = &stalls[0];
        assert_eq!(*second, 70, "first seen waiting after 10 s");
        assert_eq!(stall.to_string(), "no progress for 70 s at orders/3@1042, which ends at 2000");
        assert!(stall.is_of_the_task());
    }

    #[test]
    fn input_that_came_late_is_waited_for_from_when_it_was_seen() {
        let start = Instant::now();
        let at = |second| start + Duration::from_secs(second);
        let mut watch = Watch::new(start);
        assert_eq!(watch.hear(at(1000), Answer::Idle), None);
        for second in [1030, 1040, 1050, 1060, 1070, 1080] {
            assert_eq!(watch.hear(at(second), waiting()), None);
        }
        assert!(watch.hear(at(1090), waiting()).is_some());
    }

    #[test]
    fn a_log_that_does_not_answer_is_no_fault_of_the_task() {
        let start = Instant::now();
        let mut watch = Watch::new(start);
        assert_eq!(watch.hear(start, Answer::Unknown("no broker".into())), None);
        let stall = watch.hear(start + STALLED_AFTER, Answer::Unknown("no broker".into())).unwrap();
        assert!(!stall.is_of_the_task());
        assert!(stall.to_string().contains("the log does not answer: no broker"), "{stall}");
    }

    #[test]
    fn a_life_may_take_minutes_to_begin_but_not_for_ever() {
        let start = Instant::now();
        let mut watch = Watch::new(start);
        assert_eq!(watch.glance(start + Duration::from_secs(299), 0, false), Glance::Fine);
        let late = watch.glance(start + Duration::from_secs(301), 0, false);
        assert!(matches!(&late, Glance::Stalled(stall) if stall.to_string() == "not begun for 301 s"), "{late:?}");
    }
}
