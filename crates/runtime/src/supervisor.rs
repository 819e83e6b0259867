//! Keeps one task running for each piece of work this process was assigned.
//!
//! Group membership says which partitions are ours; the catalog says what is to be done with them; their product is a
//! set of keyed tasks. A task that fails with class retry is started again after a back-off, one of class stop is
//! halted and shown as not ready with its reason, and the others go on. The invariant: at most one task per key runs
//! in this process. Two owners of one partition in two processes are harmless by the one rule, so nothing here fences.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use delivery::ErrorClass;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use pipeline::Graph;
use tokio::{task::JoinSet, time::Instant};
use topics::{Log, Membership, TopicName};

use crate::{
    admin::{CheckHandle, Health},
    catalog::CatalogReceiver,
    retry::{Backoff, TaskError},
    tasks::Stop,
};

/// How often positions are reported to the group: only lag tools and autoscalers read them.
const SETTLE_EVERY: Duration = Duration::from_secs(5);

/// Starts one life of a task.
pub type Start = Arc<dyn Fn(Stop) -> BoxFuture<'static, Result<(), TaskError>> + Send + Sync>;

/// A piece of work and how to start it.
#[derive(Clone)]
pub struct TaskPlan {
    /// Names the work; a task runs as long as its key is wanted.
    pub key: String,
    /// Called for each life of the task. It ends when asked to stop, or with an error.
    pub start: Start,
}

/// What a service does with the partitions it is assigned.
pub trait Stage: Send + Sync + 'static {
    /// The stage's name in logs and health checks.
    fn name(&self) -> &str;
    /// The topics whose partitions the stage's members share.
    fn topics(&self, graph: &Graph) -> BTreeSet<TopicName>;
    /// The tasks for the partitions assigned to this member.
    fn tasks(&self, graph: &Arc<Graph>, assigned: &BTreeSet<(TopicName, u32)>) -> Vec<TaskPlan>;
    /// Creates the topics this stage owns, before they are subscribed to.
    fn ensure(&self, graph: Arc<Graph>) -> BoxFuture<'static, Result<(), TaskError>>;
}

/// What supervision needs.
pub struct StageContext {
    /// Where the topics are.
    pub log: Arc<dyn Log>,
    /// The consumer group that shares the work.
    pub group: String,
    /// What is to be done.
    pub catalog: CatalogReceiver,
    /// Where readiness is reported.
    pub health: Health,
    /// Positions to report to the group.
    pub settlements: Settlements,
}

/// Positions tasks have made durable, on their way to the group's offsets. Cheap to clone.
#[derive(Clone, Default)]
pub struct Settlements(Arc<Mutex<BTreeMap<(TopicName, u32), u64>>>);

impl Settlements {
    /// Everything before `offset` is durable downstream.
    pub fn settle(&self, topic: &TopicName, partition: u32, offset: u64) {
        self.0.lock().insert((topic.clone(), partition), offset);
    }

    fn take(&self) -> Vec<(TopicName, u32, u64)> {
        let settled = std::mem::take(&mut *self.0.lock());
        settled.into_iter().map(|((topic, partition), offset)| (topic, partition, offset)).collect()
    }
}

/// Runs a stage until asked to stop, then waits for its tasks to drain.
///
/// # Errors
/// When the group cannot be joined for a reason that waiting does not cure.
pub async fn supervise(stage: Arc<dyn Stage>, context: StageContext, stop: Stop) -> anyhow::Result<()> {
    let membership_check = context.health.check(format!("{} membership", stage.name()));
    membership_check.set_waiting("joining");
    let Some(membership) = join(&context, &membership_check, &stop).await? else { return Ok(()) };
    let mut supervisor = Supervisor {
        tasks: Tasks::new(stage.name(), context.health.clone()),
        graph: Arc::default(),
        assigned: BTreeSet::new(),
        subscribed: BTreeSet::new(),
        ensure_at: None,
        ensure_backoff: Backoff::new(Duration::from_millis(200), Duration::from_secs(10)),
        membership,
        membership_check,
        stage,
        context,
    };
    supervisor.run(&stop).await;
    supervisor.tasks.drain().await;
    supervisor.report_positions().await;
    Ok(())
}

/// Joins without topics; what to subscribe to follows from the catalog.
async fn join(context: &StageContext, check: &CheckHandle, stop: &Stop) -> anyhow::Result<Option<Box<dyn Membership>>> {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
    loop {
        match context.log.join(&context.group, Vec::new()).await {
            Ok(membership) => return Ok(Some(membership)),
            Err(error) if error.class() == ErrorClass::Retry => check.set_waiting(error.to_string()),
            Err(error) => return Err(error.into()),
        }
        tokio::select! {
            () = stop.stopped() => return Ok(None),
            () = tokio::time::sleep(backoff.next()) => {}
        }
    }
}

struct Supervisor {
    stage: Arc<dyn Stage>,
    context: StageContext,
    membership: Box<dyn Membership>,
    membership_check: CheckHandle,
    graph: Arc<Graph>,
    assigned: BTreeSet<(TopicName, u32)>,
    subscribed: BTreeSet<TopicName>,
    /// When the stage's topics are to be created and subscribed to (again).
    ensure_at: Option<Instant>,
    ensure_backoff: Backoff,
    tasks: Tasks,
}

enum Event {
    Catalog,
    Ensure,
    Assigned(Result<BTreeSet<(TopicName, u32)>, topics::TopicError>),
    Ended(Ended),
    Restart,
    Settle,
}

impl Supervisor {
    async fn run(&mut self, stop: &Stop) {
        let mut settle = tokio::time::interval(SETTLE_EVERY);
        settle.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        self.context.catalog.mark_changed();
        loop {
            let restart_at = self.tasks.next_restart();
            let event = tokio::select! {
                () = stop.stopped() => return,
                ended = self.tasks.ended() => Event::Ended(ended),
                Ok(()) = self.context.catalog.changed() => Event::Catalog,
                assigned = self.membership.changed() => Event::Assigned(assigned),
                () = sleep_until(self.ensure_at) => Event::Ensure,
                () = sleep_until(restart_at) => Event::Restart,
                _ = settle.tick() => Event::Settle,
            };
            self.handle(event).await;
        }
    }

    async fn handle(&mut self, event: Event) {
        match event {
            Event::Catalog => {
                self.graph = Arc::clone(&self.context.catalog.borrow_and_update().graph);
                self.ensure_backoff.reset();
                self.ensure().await;
                self.reconcile();
            }
            Event::Ensure => self.ensure().await,
            Event::Assigned(Ok(assigned)) => {
                tracing::info!(stage = self.stage.name(), partitions = assigned.len(), "partitions assigned");
                self.membership_check.set_ready(format!("{} partitions", assigned.len()));
                self.assigned = assigned;
                self.reconcile();
            }
            Event::Assigned(Err(error)) => {
                self.membership_check.set_waiting(error.to_string());
                tracing::warn!(stage = self.stage.name(), %error, "group membership failed");
                tokio::time::sleep(self.ensure_backoff.next()).await;
            }
            Event::Ended(ended) => self.tasks.bury(ended),
            Event::Restart => self.tasks.restart_due(),
            Event::Settle => self.report_positions().await,
        }
    }

    /// Creates the stage's topics and subscribes to its inputs; tries again later when the log does not let it.
    async fn ensure(&mut self) {
        self.ensure_at = None;
        if let Err(error) = self.stage.ensure(Arc::clone(&self.graph)).await {
            self.membership_check.set_waiting(error.to_string());
            self.ensure_at = Some(Instant::now() + self.ensure_backoff.next());
        }
        let wanted = self.stage.topics(&self.graph);
        if wanted == self.subscribed {
            return;
        }
        match self.membership.subscribe(wanted.iter().cloned().collect()).await {
            Ok(()) => self.subscribed = wanted,
            Err(error) => {
                self.membership_check.set_waiting(error.to_string());
                self.ensure_at = Some(Instant::now() + self.ensure_backoff.next());
            }
        }
        if self.subscribed.is_empty() {
            self.membership_check.set_ready("nothing to do yet");
        }
    }

    fn reconcile(&mut self) {
        self.tasks.want(self.stage.tasks(&self.graph, &self.assigned));
    }

    async fn report_positions(&self) {
        let positions = self.context.settlements.take();
        let ours = |(topic, partition, _): &(TopicName, u32, u64)| self.assigned.contains(&(topic.clone(), *partition));
        let positions: Vec<_> = positions.into_iter().filter(ours).collect();
        if positions.is_empty() {
            return;
        }
        if let Err(error) = self.membership.settle(positions).await {
            tracing::debug!(stage = self.stage.name(), %error, "group offsets not reported; only lag tools read them");
        }
    }
}

async fn sleep_until(when: Option<Instant>) {
    match when {
        Some(when) => tokio::time::sleep_until(when).await,
        None => std::future::pending().await,
    }
}

/// A task's end.
struct Ended {
    key: String,
    outcome: Result<(), TaskError>,
}

/// The tasks of one stage, by key.
struct Tasks {
    stage: String,
    health: Health,
    running: JoinSet<Ended>,
    wanted: BTreeMap<String, Task>,
    /// Stopping tasks whose key is no longer wanted, or wanted anew once they have ended.
    stopping: BTreeSet<String>,
}

struct Task {
    plan: TaskPlan,
    state: State,
    backoff: Backoff,
    started: Instant,
    check: CheckHandle,
}

enum State {
    Running(Stop),
    /// Waits for the former life of the same key to end.
    Queued,
    /// Failed; starts again then.
    Waiting(Instant),
    /// Failed for good.
    Halted,
}

/// A life this long makes the next failure a first one.
const HEALTHY_AFTER: Duration = Duration::from_secs(60);

impl Tasks {
    fn new(stage: &str, health: Health) -> Self {
        Self {
            stage: stage.to_owned(),
            health,
            running: JoinSet::new(),
            wanted: BTreeMap::new(),
            stopping: BTreeSet::new(),
        }
    }

    /// Makes exactly these tasks run: starts the new ones, asks the others to stop.
    fn want(&mut self, plans: Vec<TaskPlan>) {
        let mut plans: BTreeMap<String, TaskPlan> = plans.into_iter().map(|plan| (plan.key.clone(), plan)).collect();
        let unwanted: Vec<String> = self.wanted.keys().filter(|key| !plans.contains_key(*key)).cloned().collect();
        for key in unwanted {
            self.retire(&key);
        }
        plans.retain(|key, _| !self.wanted.contains_key(key));
        for (key, plan) in plans {
            let check = self.health.check(format!("{} {key}", self.stage));
            let backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(15));
            let task = Task { plan, state: State::Queued, backoff, started: Instant::now(), check };
            self.wanted.insert(key.clone(), task);
            self.start(&key);
        }
    }

    fn retire(&mut self, key: &str) {
        let Some(task) = self.wanted.remove(key) else { return };
        task.check.remove();
        if let State::Running(stop) = task.state {
            stop.request();
            self.stopping.insert(key.to_owned());
        }
    }

    fn start(&mut self, key: &str) {
        let Some(task) = self.wanted.get_mut(key) else { return };
        if self.stopping.contains(key) {
            task.state = State::Queued;
            return;
        }
        let stop = Stop::new();
        let life = (task.plan.start)(stop.clone());
        let key = key.to_owned();
        task.state = State::Running(stop);
        task.started = Instant::now();
        task.check.set_ready("running");
        // A panic is caught here so that the task's key is not lost with it.
        self.running.spawn(async move {
            let outcome = futures::FutureExt::catch_unwind(std::panic::AssertUnwindSafe(life)).await;
            let outcome = outcome.unwrap_or_else(|_| Err(TaskError::retry(anyhow::anyhow!("task panicked"))));
            Ended { key, outcome }
        });
    }

    /// Waits for a task to end. Cancel safe; never resolves while none runs.
    async fn ended(&mut self) -> Ended {
        loop {
            match self.running.join_next().await {
                Some(Ok(ended)) => return ended,
                Some(Err(error)) => tracing::error!(stage = self.stage, %error, "task ended without a word"),
                None => std::future::pending().await,
            }
        }
    }

    fn bury(&mut self, ended: Ended) {
        let Ended { key, outcome } = ended;
        if self.stopping.remove(&key) {
            self.start(&key);
            return;
        }
        let Some(task) = self.wanted.get_mut(&key) else { return };
        if task.started.elapsed() >= HEALTHY_AFTER {
            task.backoff.reset();
        }
        let error = outcome.err().unwrap_or_else(|| TaskError::retry(anyhow::anyhow!("task ended by itself")));
        metrics::counter!("tailwater_runtime_task_failures_total", "stage" => self.stage.clone(),
            "class" => error.class().as_str())
        .increment(1);
        task.check.set_waiting(error.to_string());
        if error.class() == ErrorClass::Stop {
            tracing::error!(stage = self.stage, task = key, %error, "task halted; it needs a person");
            task.state = State::Halted;
        } else {
            let pause = task.backoff.next();
            tracing::warn!(stage = self.stage, task = key, %error, pause_ms = pause.as_millis() as u64, "task failed");
            task.state = State::Waiting(Instant::now() + pause);
        }
    }

    fn next_restart(&self) -> Option<Instant> {
        self.wanted
            .values()
            .filter_map(|task| if let State::Waiting(when) = task.state { Some(when) } else { None })
            .min()
    }

    fn restart_due(&mut self) {
        let now = Instant::now();
        let due = |task: &Task| matches!(task.state, State::Waiting(when) if when <= now);
        let keys: Vec<String> = self.wanted.iter().filter(|(_, task)| due(task)).map(|(key, _)| key.clone()).collect();
        for key in keys {
            self.start(&key);
        }
    }

    /// Asks all tasks to stop and waits until they have.
    async fn drain(&mut self) {
        let keys: Vec<String> = self.wanted.keys().cloned().collect();
        for key in keys {
            self.retire(&key);
        }
        while let Some(ended) = self.running.join_next().await {
            if let Ok(Ended { key, outcome: Err(error) }) = ended {
                tracing::warn!(stage = self.stage, task = key, %error, "task failed while draining; it will be done again");
            }
        }
    }
}
