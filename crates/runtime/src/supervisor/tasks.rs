//! The tasks of one stage, by key: each lives, fails, is given up and lives again.
//!
//! Invariant: at most one life per key runs in this process, and a task is shown as ready only after it has said that
//! it works. A life that does not end when asked, or that stands still, is dropped at its next await: by the one rule
//! a task may be cut off anywhere.

use std::{collections::BTreeMap, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use delivery::ErrorClass;
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture};
use tokio::{task::JoinSet, time::Instant};
use topics::Log;

use super::{
    TaskPlan,
    progress::{Place, Progress, Ready},
    watchdog::{Answer, Glance, Stall, Watch},
};
use crate::{
    admin::{CheckHandle, Health},
    retry::{Backoff, TaskError},
    tasks::Stop,
};

/// A life this long makes the next failure a first one.
const HEALTHY_AFTER: Duration = Duration::from_secs(60);

/// How long a task may take to finish what it has begun once it is not wanted any more. Less than the shortest session
/// time-out a broker allows (6 s), so that the next owner hardly ever meets the old one.
pub const DRAIN_WITHIN: Duration = Duration::from_secs(5);
/// How long lives that were given up get to notice.
const DROPPED_WITHIN: Duration = Duration::from_secs(1);
/// How long a message that waits takes to come; then there is none.
const PROOF_WITHIN: Duration = Duration::from_secs(10);
/// How many partitions the log is asked about at once.
const QUESTIONS_AT_ONCE: usize = 8;

/// A life's end.
pub(super) struct Ended {
    key: String,
    outcome: Result<(), TaskError>,
}

/// A task that has not moved, to be asked about.
pub(super) struct Question {
    key: String,
    life: u64,
    places: Vec<Place>,
    /// Whether a message has to be shown, and not only an end that lies further.
    prove: bool,
}

/// What the log said about it.
pub(super) struct Answered {
    key: String,
    life: u64,
    answer: Answer,
}

pub(super) struct Tasks {
    stage: String,
    health: Health,
    /// How long a task may stand still before its life is given up.
    patience: Duration,
    running: JoinSet<Ended>,
    wanted: BTreeMap<String, Task>,
    /// Stopping lives whose key is no longer wanted, or wanted anew once they have ended.
    stopping: BTreeMap<String, Stopping>,
    lives: u64,
    failures: Throttle,
}

struct Task {
    plan: TaskPlan,
    state: State,
    backoff: Backoff,
    started: Instant,
    check: CheckHandle,
    progress: Progress,
    watch: Watch,
    /// Why the life that runs, or ran last, was given up.
    given_up: Option<String>,
    /// Whether the check may show something else than "running".
    unwell: bool,
}

enum State {
    Running(Life),
    /// Waits for the former life of the same key to end.
    Queued,
    /// Failed; starts again then.
    Waiting(Instant),
    /// Failed for good.
    Halted,
}

struct Life {
    number: u64,
    stop: Stop,
    /// Drops the life at its next await.
    abandon: Stop,
}

struct Stopping {
    abandon: Stop,
    /// When it is given up; nothing more can be done after that.
    at: Option<Instant>,
}

impl Tasks {
    pub(super) fn new(stage: &str, health: Health, patience: Duration) -> Self {
        Self {
            stage: stage.to_owned(),
            health,
            patience,
            running: JoinSet::new(),
            wanted: BTreeMap::new(),
            stopping: BTreeMap::new(),
            lives: 0,
            failures: Throttle::default(),
        }
    }

    /// Makes exactly these tasks run: starts the new ones, asks the others to stop.
    pub(super) fn want(&mut self, plans: Vec<TaskPlan>) {
        let mut plans: BTreeMap<String, TaskPlan> = plans.into_iter().map(|plan| (plan.key.clone(), plan)).collect();
        let unwanted: Vec<String> = self.wanted.keys().filter(|key| !plans.contains_key(*key)).cloned().collect();
        for key in unwanted {
            self.retire(&key);
        }
        plans.retain(|key, _| !self.wanted.contains_key(key));
        for (key, plan) in plans {
            let check = self.health.check(format!("{} {key}", self.stage));
            let now = Instant::now();
            let task = Task {
                plan,
                state: State::Queued,
                backoff: Backoff::new(Duration::from_millis(200), Duration::from_secs(15)),
                started: now,
                check,
                progress: Progress::default(),
                watch: Watch::new(now),
                given_up: None,
                unwell: true,
            };
            self.wanted.insert(key.clone(), task);
            self.start(&key);
        }
    }

    fn retire(&mut self, key: &str) {
        let Some(task) = self.wanted.remove(key) else { return };
        task.progress.silence();
        task.check.remove();
        if let State::Running(life) = task.state {
            life.stop.request();
            let stopping = Stopping { abandon: life.abandon, at: Some(Instant::now() + DRAIN_WITHIN) };
            self.stopping.insert(key.to_owned(), stopping);
        }
    }

    fn start(&mut self, key: &str) {
        let Some(task) = self.wanted.get_mut(key) else { return };
        if self.stopping.contains_key(key) {
            task.state = State::Queued;
            return;
        }
        let ready = if task.given_up.take().is_some() { Ready::Moved } else { Ready::Begun };
        task.progress = Progress::announcing(task.check.clone(), ready);
        task.started = Instant::now();
        task.watch = Watch::new(task.started);
        self.lives += 1;
        let life = Life { number: self.lives, stop: Stop::new(), abandon: Stop::new() };
        let (key, abandon) = (key.to_owned(), life.abandon.clone());
        let work = (task.plan.start)(life.stop.clone(), task.progress.clone());
        task.state = State::Running(life);
        self.running.spawn(async move { Ended { key, outcome: live(work, abandon).await } });
    }

    /// Waits for a life to end. Cancel safe; never resolves while none runs.
    pub(super) async fn ended(&mut self) -> Ended {
        loop {
            match self.running.join_next().await {
                Some(Ok(ended)) => return ended,
                Some(Err(error)) => tracing::error!(stage = self.stage, %error, "task ended without a word"),
                None => std::future::pending().await,
            }
        }
    }

    pub(super) fn bury(&mut self, ended: Ended) {
        let Ended { key, outcome } = ended;
        if self.stopping.remove(&key).is_some() {
            self.start(&key);
            return;
        }
        let Some(task) = self.wanted.get_mut(&key) else { return };
        task.progress.silence();
        if task.started.elapsed() >= HEALTHY_AFTER {
            task.backoff.reset();
        }
        let error = match &task.given_up {
            Some(reason) => TaskError::retry(anyhow::anyhow!("{reason}; starting again from its checkpoint")),
            None => outcome.err().unwrap_or_else(|| TaskError::retry(anyhow::anyhow!("task ended by itself"))),
        };
        metrics::counter!("tailwater_runtime_task_failures_total", "stage" => self.stage.clone(),
            "class" => error.class().as_str())
        .increment(1);
        task.check.set_waiting(error.to_string());
        task.unwell = true;
        let held_back = self.failures.pass();
        if error.class() == ErrorClass::Stop {
            if let Some(held_back) = held_back {
                tracing::error!(stage = self.stage, task = key, %error, held_back, "task halted; it needs a person");
            }
            task.state = State::Halted;
        } else {
            let pause = task.backoff.next();
            if let Some(held_back) = held_back {
                let pause_ms = pause.as_millis() as u64;
                tracing::warn!(stage = self.stage, task = key, %error, pause_ms, held_back, "task failed");
            }
            task.state = State::Waiting(Instant::now() + pause);
        }
    }

    pub(super) fn next_restart(&self) -> Option<Instant> {
        self.wanted
            .values()
            .filter_map(|task| if let State::Waiting(when) = task.state { Some(when) } else { None })
            .min()
    }

    pub(super) fn restart_due(&mut self) {
        let now = Instant::now();
        let due = |task: &Task| matches!(task.state, State::Waiting(when) if when <= now);
        let keys: Vec<String> = self.wanted.iter().filter(|(_, task)| due(task)).map(|(key, _)| key.clone()).collect();
        for key in keys {
            self.start(&key);
        }
    }

    pub(super) fn next_abandon(&self) -> Option<Instant> {
        self.stopping.values().filter_map(|stopping| stopping.at).min()
    }

    /// Drops the lives that were asked to stop and did not in time.
    pub(super) fn abandon_late(&mut self) {
        let now = Instant::now();
        for (key, stopping) in &mut self.stopping {
            if stopping.at.is_some_and(|at| at <= now) {
                stopping.at = None;
                stopping.abandon.request();
                if let Some(held_back) = self.failures.pass() {
                    let waited_s = DRAIN_WITHIN.as_secs();
                    tracing::warn!(
                        stage = self.stage,
                        task = key,
                        waited_s,
                        held_back,
                        "task did not finish in time and was cut off; whoever takes over does its last bit again"
                    );
                }
            }
        }
    }

    /// Looks at every life; those to ask the log about.
    pub(super) fn look(&mut self) -> Vec<Question> {
        let now = Instant::now();
        let (mut questions, mut stalls) = (Vec::new(), Vec::new());
        for (key, task) in &mut self.wanted {
            let State::Running(life) = &task.state else { continue };
            let (moves, places) = task.progress.look();
            match task.watch.glance(now, moves, !places.is_empty()) {
                Glance::Fine => {}
                Glance::Moved => task.well(),
                Glance::Ask { prove } => {
                    questions.push(Question { key: key.clone(), life: life.number, places, prove });
                }
                Glance::Stalled(stall) => stalls.push((key.clone(), stall)),
            }
        }
        for (key, stall) in stalls {
            self.stalled(&key, &stall);
        }
        questions
    }

    pub(super) fn hear(&mut self, answers: Vec<Answered>) {
        let now = Instant::now();
        for Answered { key, life, answer } in answers {
            let Some(task) = self.wanted.get_mut(&key) else { continue };
            if !matches!(&task.state, State::Running(running) if running.number == life) {
                continue;
            }
            let idle = matches!(answer, Answer::Idle);
            match task.watch.hear(now, answer) {
                Some(stall) => self.stalled(&key, &stall),
                None if idle => task.well(),
                None => {}
            }
        }
    }

    fn stalled(&mut self, key: &str, stall: &Stall) {
        let Some(task) = self.wanted.get_mut(key) else { return };
        task.check.set_waiting(stall.to_string());
        let gives_up = stall.is_of_the_task() && stall.lasted >= self.patience && task.given_up.is_none();
        if (!task.unwell || gives_up)
            && let Some(held_back) = self.failures.pass()
        {
            tracing::error!(stage = self.stage, task = key, %stall, gives_up, held_back, "task is stuck");
        }
        task.unwell = true;
        if let (true, State::Running(life)) = (gives_up, &task.state) {
            metrics::counter!("tailwater_runtime_task_stalls_total", "stage" => self.stage.clone()).increment(1);
            task.progress.silence();
            task.given_up = Some(stall.to_string());
            life.abandon.request();
        }
    }

    /// Asks all tasks to stop and waits until they have, or have been cut off.
    pub(super) async fn drain(&mut self) {
        let keys: Vec<String> = self.wanted.keys().cloned().collect();
        for key in keys {
            self.retire(&key);
        }
        let end = Instant::now() + DRAIN_WITHIN + DROPPED_WITHIN;
        loop {
            let abandon_at = self.next_abandon().unwrap_or(end);
            tokio::select! {
                biased;
                ended = self.running.join_next() => match ended {
                    None => return,
                    Some(Ok(Ended { key, outcome: Err(error) })) => {
                        tracing::warn!(stage = self.stage, task = key, %error, "task failed while draining; it will be done again");
                    }
                    Some(_) => {}
                },
                () = tokio::time::sleep_until(abandon_at), if abandon_at < end => self.abandon_late(),
                () = tokio::time::sleep_until(end) => {
                    tracing::error!(stage = self.stage, tasks = self.running.len(), "tasks are stuck on the processor and are left behind");
                    return self.running.abort_all();
                }
            }
        }
    }
}

impl Task {
    fn well(&mut self) {
        if std::mem::take(&mut self.unwell) {
            self.check.set_ready("running");
        }
    }
}

/// One life, until it ends or is given up. A panic is caught here so that the task's key is not lost with it.
async fn live(work: BoxFuture<'static, Result<(), TaskError>>, abandon: Stop) -> Result<(), TaskError> {
    let work = AssertUnwindSafe(work).catch_unwind();
    tokio::select! {
        biased;
        outcome = work => outcome.unwrap_or_else(|_| Err(TaskError::retry(anyhow::anyhow!("task panicked")))),
        () = abandon.stopped() => Err(TaskError::retry(anyhow::anyhow!("given up"))),
    }
}

/// Asks the log about tasks that do not move.
pub(super) async fn ask(log: Arc<dyn Log>, questions: Vec<Question>) -> Vec<Answered> {
    let ask = |Question { key, life, places, prove }| {
        let log = Arc::clone(&log);
        async move { Answered { key, life, answer: ask_about(log, places, prove).await } }
    };
    futures::stream::iter(questions).map(ask).buffer_unordered(QUESTIONS_AT_ONCE).collect().await
}

async fn ask_about(log: Arc<dyn Log>, places: Vec<Place>, prove: bool) -> Answer {
    for place in places {
        match log.span(&place.topic, place.partition).await {
            Ok(span) if span.end <= place.next => {}
            Ok(span) => {
                if !prove || has_message(log.as_ref(), &place).await {
                    return Answer::Waiting { place, end: span.end, proven: prove };
                }
            }
            Err(error) => return Answer::Unknown(error.to_string()),
        }
    }
    Answer::Idle
}

/// Whether a message can be read at a place. A log may end in offsets that never hold one: marks of transactions.
pub(super) async fn has_message(log: &dyn Log, place: &Place) -> bool {
    let read = async {
        let mut reader = log.reader(&place.topic, place.partition, place.next).await?;
        reader.read(1).await
    };
    // An error is for the next life to explain.
    tokio::time::timeout(PROOF_WITHIN, read).await.is_ok()
}

/// Lets one line a second through.
#[derive(Default)]
struct Throttle {
    last: Option<Instant>,
    held_back: u64,
}

impl Throttle {
    /// How many were held back since the last line, when this one may go.
    fn pass(&mut self) -> Option<u64> {
        let now = Instant::now();
        if self.last.is_some_and(|last| now - last < Duration::from_secs(1)) {
            self.held_back += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.held_back))
    }
}
