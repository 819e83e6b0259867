//! Tasks with an owner, a name and a fate, and the word to stop.
//!
//! Invariant: no task's end goes unseen. A failure, a panic or an early end of a critical task is kept and stops its
//! group even while nobody waits for it; whatever is left at the deadline is aborted and named.
//! Deliberately absent: restarting. What may be tried again is tried inside the task, with `retry`.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use delivery::ErrorClass;
use futures::FutureExt;
use thiserror::Error;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::{Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, error, info_span, warn};

use crate::exit;
use crate::retry::TaskError;

/// How long aborted tasks get to end. They do so at their next await, unless they are stuck on the CPU.
const ABORTED_WITHIN: Duration = Duration::from_secs(1);

/// The word to stop: to finish what was begun, make it durable and return. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    token: CancellationToken,
}

impl Stop {
    pub fn new() -> Stop {
        Stop::default()
    }

    /// Asks everybody who listens to stop. Asking twice is the same as once.
    pub fn request(&self) {
        self.token.cancel();
    }

    pub fn is_stopping(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Waits for the word. Cancel safe; returns at once when it was already given.
    pub async fn stopped(&self) {
        self.token.cancelled().await;
    }

    /// Waits for the word without borrowing, for handing into something that wants a `'static` future.
    pub fn into_stopped(self) -> impl Future<Output = ()> + Send + 'static {
        self.token.cancelled_owned()
    }

    /// A stop for a part: it hears this one, and can also be given alone.
    #[must_use]
    pub fn child(&self) -> Stop {
        Stop { token: self.token.child_token() }
    }
}

/// What a task's end means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// The process is pointless without it: an error, a panic, or an end before the word to stop, stops the group.
    Critical,
    /// It may end at any time. An error or a panic is logged and counted; the group goes on.
    Detached,
}

/// How a task went wrong.
#[derive(Debug, Error)]
pub enum TaskFailure {
    /// The cause is printed with its whole chain here, and so is no `source()`.
    #[error("task `{task}` failed: {}", exit::report(.cause.as_ref()))]
    Failed { task: Arc<str>, cause: anyhow::Error },
    #[error("task `{task}` panicked: {message}")]
    Panicked { task: Arc<str>, message: String },
    #[error("task `{task}` ended early, though nothing asked it to stop")]
    EndedEarly { task: Arc<str> },
    #[error("{} not stopped within {deadline:?} and aborted: {}", were(tasks), quoted(tasks))]
    Stragglers { tasks: Vec<Arc<str>>, deadline: Duration },
}

impl TaskFailure {
    /// What the failed task itself said it was, where it said so; otherwise nothing tells that trying again helps.
    pub fn class(&self) -> ErrorClass {
        match self {
            TaskFailure::Failed { cause, .. } => {
                cause.downcast_ref::<TaskError>().map_or(ErrorClass::Stop, TaskError::class)
            }
            _ => ErrorClass::Stop,
        }
    }

    /// The error the task returned, if it did.
    pub fn cause(&self) -> Option<&anyhow::Error> {
        match self {
            TaskFailure::Failed { cause, .. } => Some(cause),
            _ => None,
        }
    }

    fn outcome(&self) -> &'static str {
        match self {
            TaskFailure::Failed { .. } => "failed",
            TaskFailure::Panicked { .. } => "panicked",
            TaskFailure::EndedEarly { .. } => "ended_early",
            TaskFailure::Stragglers { .. } => "aborted",
        }
    }
}

fn were(tasks: &[Arc<str>]) -> &'static str {
    if tasks.len() == 1 { "task was" } else { "tasks were" }
}

fn quoted(tasks: &[Arc<str>]) -> String {
    let names: Vec<String> = tasks.iter().map(|task| format!("`{task}`")).collect();
    names.join(", ")
}

/// Owns tasks. Clones share them; dropping the last clone aborts what still runs.
#[derive(Clone)]
pub struct TaskGroup {
    shared: Arc<Shared>,
}

struct Shared {
    stop: Stop,
    tasks: Mutex<Tasks>,
    first_failure: Mutex<Option<TaskFailure>>,
}

#[derive(Default)]
struct Tasks {
    running: JoinSet<()>,
    names: BTreeMap<Id, Arc<str>>,
}

impl TaskGroup {
    pub fn new() -> TaskGroup {
        TaskGroup::with_stop(Stop::new())
    }

    /// A group that stops at this word, and gives it when one of its critical tasks fails.
    pub fn with_stop(stop: Stop) -> TaskGroup {
        TaskGroup { shared: Arc::new(Shared { stop, tasks: Mutex::default(), first_failure: Mutex::default() }) }
    }

    /// The word this group stops at.
    pub fn stop(&self) -> Stop {
        self.shared.stop.clone()
    }

    /// Starts a task. Call inside a tokio runtime.
    pub fn spawn<F>(&self, name: impl Into<Arc<str>>, fate: Fate, future: F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let name = name.into();
        let watch = Watch {
            name: Arc::clone(&name),
            fate,
            stop: self.shared.stop.clone(),
            group: Arc::downgrade(&self.shared),
        };
        let span = info_span!("task", task = %name);
        let mut tasks = self.shared.tasks();
        tasks.forget_ended();
        let handle = tasks.running.spawn(watch.run(future).instrument(span));
        tasks.names.insert(handle.id(), name);
    }

    /// Names of the tasks that have not ended.
    pub fn running(&self) -> Vec<Arc<str>> {
        let mut tasks = self.shared.tasks();
        tasks.forget_ended();
        tasks.names.values().cloned().collect()
    }

    /// Gives the word to stop, waits until all tasks have ended, and tells the first failure.
    /// Tasks that have not ended after `deadline` are aborted. One that is stuck on the CPU cannot be; it is named and
    /// left behind, so that the end of the process never waits for it.
    ///
    /// **Errors**: the first failure of a critical task; or else the tasks that were aborted.
    pub async fn finish(self, deadline: Duration) -> Result<(), TaskFailure> {
        self.shared.stop.request();
        let mut tasks = Tasks::default();
        let drained = tokio::time::timeout(deadline, self.shared.drain(&mut tasks)).await;
        let stragglers = match drained {
            Ok(()) => Vec::new(),
            Err(_) => self.shared.abort(tasks).await,
        };
        if !stragglers.is_empty() {
            self.shared.note(TaskFailure::Stragglers { tasks: stragglers, deadline });
        }
        match lock(&self.shared.first_failure).take() {
            Some(failure) => Err(failure),
            None => Ok(()),
        }
    }
}

impl Default for TaskGroup {
    fn default() -> TaskGroup {
        TaskGroup::new()
    }
}

impl fmt::Debug for TaskGroup {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("TaskGroup")
            .field("running", &self.running())
            .field("stopping", &self.shared.stop.is_stopping())
            .finish()
    }
}

impl Shared {
    fn tasks(&self) -> MutexGuard<'_, Tasks> {
        lock(&self.tasks)
    }

    /// Waits for all tasks, also those that others start meanwhile. `taken` holds what is being waited for.
    async fn drain(&self, taken: &mut Tasks) {
        loop {
            *taken = std::mem::take(&mut *self.tasks());
            if taken.running.is_empty() {
                return;
            }
            taken.drain().await;
        }
    }

    async fn abort(&self, taken: Tasks) -> Vec<Arc<str>> {
        let late = std::mem::take(&mut *self.tasks());
        let (mut stragglers, late) = tokio::join!(taken.abort(), late.abort());
        stragglers.extend(late);
        stragglers.sort();
        stragglers
    }

    /// Keeps the first failure, since later ones are mostly its consequence, and stops the others.
    fn note(&self, failure: TaskFailure) {
        lock(&self.first_failure).get_or_insert(failure);
        self.stop.request();
    }
}

impl Tasks {
    fn forget_ended(&mut self) {
        while let Some(ended) = self.running.try_join_next_with_id() {
            self.forget(ended);
        }
    }

    async fn drain(&mut self) {
        while let Some(ended) = self.running.join_next_with_id().await {
            self.forget(ended);
        }
    }

    /// Names of the tasks that did not end by themselves.
    async fn abort(mut self) -> Vec<Arc<str>> {
        self.running.abort_all();
        let mut stragglers = Vec::new();
        let ends = async {
            while let Some(ended) = self.running.join_next_with_id().await {
                let aborted = matches!(&ended, Err(error) if error.is_cancelled());
                let id = ended.map_or_else(|error| error.id(), |(id, ())| id);
                stragglers.extend(self.names.remove(&id).filter(|_| aborted));
            }
        };
        if tokio::time::timeout(ABORTED_WITHIN, ends).await.is_err() {
            stragglers.extend(std::mem::take(&mut self.names).into_values());
        }
        stragglers
    }

    fn forget(&mut self, ended: Result<(Id, ()), JoinError>) {
        // The task has told its end itself; only its name is still held here.
        let id = ended.map_or_else(|error| error.id(), |(id, ())| id);
        self.names.remove(&id);
    }
}

/// Sees a task to its end, from inside the task, so that an end is noticed even while nobody joins it.
struct Watch {
    name: Arc<str>,
    fate: Fate,
    stop: Stop,
    /// Weak: a task must not keep the group alive that owns it.
    group: std::sync::Weak<Shared>,
}

impl Watch {
    async fn run<F>(self, future: F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let end = AssertUnwindSafe(future).catch_unwind().await;
        match self.judge(end) {
            None => debug!(task = %self.name, "task ended"),
            Some(failure) => self.tell(failure),
        }
    }

    fn judge(&self, end: Result<anyhow::Result<()>, Box<dyn Any + Send>>) -> Option<TaskFailure> {
        let task = Arc::clone(&self.name);
        match end {
            Err(panic) => Some(TaskFailure::Panicked { task, message: panic_message(panic.as_ref()) }),
            Ok(Err(cause)) => Some(TaskFailure::Failed { task, cause }),
            Ok(Ok(())) if self.fate == Fate::Critical && !self.stop.is_stopping() => {
                Some(TaskFailure::EndedEarly { task })
            }
            Ok(Ok(())) => None,
        }
    }

    fn tell(&self, failure: TaskFailure) {
        crate::metrics::count_task_failure(failure.outcome());
        match self.fate {
            Fate::Critical => {
                error!(error = %failure, "stopping: a critical task went wrong");
                if let Some(group) = self.group.upgrade() {
                    group.note(failure);
                }
            }
            Fate::Detached => warn!(error = %failure, "a task went wrong"),
        }
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no message").to_owned()
}

/// The state behind these locks is whole after every statement, so a panic elsewhere does not spoil it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs a closure that uses the CPU for long (decoding, Parquet encoding) without holding up other tasks.
///
/// On a multi-thread runtime its other tasks move to another thread meanwhile. A current-thread runtime has no other
/// thread, and tests on it stay deterministic: there it is a plain call.
pub fn compute<T>(closure: impl FnOnce() -> T) -> T {
    let flavor = Handle::try_current().map(|handle| handle.runtime_flavor());
    match flavor {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(closure),
        _ => closure(),
    }
}

#[cfg(test)]
mod tests {
    use anyhow::{anyhow, bail};
    use tokio::sync::oneshot;

    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    async fn until_stopped(stop: Stop) -> anyhow::Result<()> {
        stop.stopped().await;
        Ok(())
    }

    #[tokio::test]
    async fn tasks_that_stop_when_asked_finish_cleanly() {
        let group = TaskGroup::new();
        group.spawn("reader", Fate::Critical, until_stopped(group.stop()));
        group.spawn("writer", Fate::Critical, until_stopped(group.stop()));
        assert_eq!(group.running().len(), 2);
        group.finish(LONG).await.expect("a clean end");
    }

    #[tokio::test]
    async fn a_failure_stops_the_others_though_nobody_waits_for_it() {
        let group = TaskGroup::new();
        let stop = group.stop();
        group.spawn("reader", Fate::Critical, until_stopped(stop.clone()));
        group.spawn("writer", Fate::Critical, async { Err(anyhow!("disk full").context("append")) });
        stop.stopped().await;
        let failure = group.finish(LONG).await.expect_err("writer failed");
        assert_eq!(failure.to_string(), "task `writer` failed: append: disk full");
        assert_eq!(failure.class(), ErrorClass::Stop);
        let printed = format!("{:#}", anyhow::Error::new(failure));
        assert_eq!(printed.matches("disk full").count(), 1, "{printed}");
    }

    #[tokio::test]
    async fn the_first_failure_wins() {
        let group = TaskGroup::new();
        let stop = group.stop();
        group.spawn("late", Fate::Critical, async move {
            stop.stopped().await;
            bail!("consequence")
        });
        group.spawn("early", Fate::Critical, async { bail!("cause") });
        group.stop().stopped().await;
        let failure = group.finish(LONG).await.expect_err("both failed");
        assert_eq!(failure.to_string(), "task `early` failed: cause");
    }

    #[tokio::test]
    async fn a_panic_is_caught_and_named() {
        let group = TaskGroup::new();
        group.spawn("decoder", Fate::Critical, async { panic!("at row {}", 7) });
        group.stop().stopped().await;
        let failure = group.finish(LONG).await.expect_err("decoder panicked");
        assert_eq!(failure.to_string(), "task `decoder` panicked: at row 7");
    }

    #[tokio::test]
    async fn a_critical_task_that_ends_early_is_a_failure() {
        let group = TaskGroup::new();
        group.spawn("reader", Fate::Critical, async { Ok(()) });
        group.stop().stopped().await;
        let failure = group.finish(LONG).await.expect_err("reader ended");
        assert!(matches!(failure, TaskFailure::EndedEarly { .. }), "{failure}");
    }

    #[tokio::test]
    async fn a_detached_task_may_end_fail_and_panic_without_stopping_the_group() {
        let group = TaskGroup::new();
        let (ended, all_ended) = oneshot::channel::<()>();
        group.spawn("ends", Fate::Detached, async { Ok(()) });
        group.spawn("fails", Fate::Detached, async { bail!("never mind") });
        group.spawn("panics", Fate::Detached, async move {
            let _ended = ended;
            panic!("never mind")
        });
        assert!(all_ended.await.is_err(), "dropped by the panic");
        while !group.running().is_empty() {
            tokio::task::yield_now().await;
        }
        assert!(!group.stop().is_stopping());
        group.finish(LONG).await.expect("detached ends do not count");
    }

    #[tokio::test(start_paused = true)]
    async fn stragglers_are_aborted_at_the_deadline_and_named() {
        let group = TaskGroup::new();
        let (held, dropped) = oneshot::channel::<()>();
        group.spawn("good", Fate::Critical, until_stopped(group.stop()));
        group.spawn("stuck", Fate::Critical, async move {
            let _held = held;
            std::future::pending().await
        });
        let before = tokio::time::Instant::now();
        let failure = group.finish(Duration::from_secs(5)).await.expect_err("stuck");
        assert_eq!(before.elapsed(), Duration::from_secs(5));
        assert_eq!(failure.to_string(), "task was not stopped within 5s and aborted: `stuck`");
        assert!(dropped.await.is_err(), "the task was really ended");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_task_stuck_on_the_cpu_is_named_and_does_not_hold_up_the_end() {
        let group = TaskGroup::new();
        let (release, stuck) = std::sync::mpsc::sync_channel::<()>(1);
        let (started, running) = oneshot::channel::<()>();
        group.spawn("spins", Fate::Critical, async move {
            drop(started);
            Ok(stuck.recv()?)
        });
        assert!(running.await.is_err(), "started");
        let failure = group.finish(Duration::from_millis(1)).await.expect_err("spins");
        assert_eq!(failure.to_string(), "task was not stopped within 1ms and aborted: `spins`");
        drop(release);
    }

    #[tokio::test]
    async fn tasks_started_during_the_drain_are_drained_too() {
        let group = TaskGroup::new();
        let (inner, stop) = (group.clone(), group.stop());
        let (held, dropped) = oneshot::channel::<()>();
        group.spawn("starts another", Fate::Critical, async move {
            stop.stopped().await;
            inner.spawn("late", Fate::Critical, async move {
                tokio::task::yield_now().await;
                drop(held);
                bail!("late, but seen")
            });
            Ok(())
        });
        let failure = group.finish(LONG).await.expect_err("late failed");
        assert_eq!(failure.to_string(), "task `late` failed: late, but seen");
        assert!(dropped.await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_told_rather_than_the_stragglers_it_left_behind() {
        let group = TaskGroup::new();
        group.spawn("stuck", Fate::Critical, std::future::pending());
        group.spawn("broken", Fate::Critical, async { bail!("cause") });
        group.stop().stopped().await;
        let failure = group.finish(Duration::from_secs(1)).await.expect_err("broken");
        assert_eq!(failure.to_string(), "task `broken` failed: cause");
    }

    #[tokio::test]
    async fn dropping_the_group_ends_its_tasks() {
        let group = TaskGroup::new();
        let (held, dropped) = oneshot::channel::<()>();
        group.spawn("orphan", Fate::Critical, async move {
            let _held = held;
            std::future::pending().await
        });
        drop(group);
        assert!(dropped.await.is_err());
    }

    #[tokio::test]
    async fn ended_tasks_are_forgotten_as_new_ones_start() {
        let group = TaskGroup::new();
        for _ in 0..100 {
            group.spawn("short", Fate::Detached, async { Ok(()) });
            tokio::task::yield_now().await;
        }
        assert!(group.shared.tasks().names.len() <= 2);
        group.finish(LONG).await.expect("a clean end");
    }

    #[tokio::test]
    async fn the_class_a_task_gave_its_error_is_kept() {
        let group = TaskGroup::new();
        group.spawn("reader", Fate::Critical, async {
            Err(anyhow::Error::new(TaskError::retry(anyhow!("broker gone"))).context("read"))
        });
        group.stop().stopped().await;
        let failure = group.finish(LONG).await.expect_err("reader failed");
        assert_eq!(failure.class(), ErrorClass::Retry);
        assert_eq!(exit::Code::of(&anyhow::Error::new(failure)), exit::Code::Unavailable);
    }

    #[tokio::test]
    async fn a_child_hears_its_parent_and_can_be_stopped_alone() {
        let parent = Stop::new();
        let (one, other) = (parent.child(), parent.child());
        one.request();
        assert!(one.is_stopping() && !other.is_stopping() && !parent.is_stopping());
        parent.request();
        other.stopped().await;
        other.into_stopped().await;
    }

    #[tokio::test]
    async fn compute_is_a_plain_call_on_one_thread() {
        let thread = std::thread::current().id();
        assert_eq!(compute(|| std::thread::current().id()), thread);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn compute_lets_other_tasks_run_meanwhile() {
        let group = TaskGroup::new();
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        let (result, received) = oneshot::channel();
        let inner = group.clone();
        group.spawn("computes", Fate::Detached, async move {
            inner.spawn("helps", Fate::Detached, async move { Ok(sender.send(7)?) });
            // The only worker waits here for a task that needs a worker.
            let number = compute(|| receiver.recv())?;
            result.send(number).map_err(|_| anyhow!("nobody waits"))
        });
        assert_eq!(received.await, Ok(7));
        group.finish(LONG).await.expect("a clean end");
    }

    #[test]
    fn compute_needs_no_runtime() {
        assert_eq!(compute(|| 7), 7);
    }
}
