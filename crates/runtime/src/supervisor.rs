//! Keeps one task running for each piece of work this process was assigned.
//!
//! Group membership says which partitions are ours; the catalog says what is to be done with them; their product is a
//! set of keyed tasks. A task that fails with class retry is started again after a back-off, one of class stop is
//! halted and shown as not ready with its reason, and the others go on. The invariant: at most one task per key runs
//! in this process. Two owners of one partition in two processes are harmless by the one rule, so nothing here fences.
//! A partition that is taken away is drained, or dropped after [`DRAIN_WITHIN`]; a task that stands still though it has
//! input is shown as not ready and begun anew ([`STALLED_AFTER`]).

mod progress;
mod tasks;
mod watchdog;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use delivery::ErrorClass;
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use pipeline::Graph;
use tokio::time::{Instant, MissedTickBehavior};
use topics::{Log, Membership, TopicError, TopicName};

use crate::{
    admin::{CheckHandle, Health},
    catalog::CatalogReceiver,
    retry::{Backoff, TaskError},
    tasks::Stop,
};

pub use progress::{Progress, Settlements};
pub use tasks::DRAIN_WITHIN;
pub use watchdog::STALLED_AFTER;

use tasks::{Answered, Ended, Tasks, ask};
use watchdog::LOOK_EVERY;

/// How often positions are reported to the group: only lag tools and autoscalers read them.
const SETTLE_EVERY: Duration = Duration::from_secs(5);
/// A place in the group that is lost for good is asked for anew, later and later: where two processes have one name,
/// each takes the place of the other.
const REJOIN_AFTER: Duration = Duration::from_secs(2);
const REJOIN_AFTER_AT_MOST: Duration = Duration::from_secs(60);
/// Who kept a place for so long has no rival.
const PLACE_IS_SAFE_AFTER: Duration = Duration::from_secs(300);
/// How often a stage looks after its topics while the catalog does not change.
const TEND_EVERY: Duration = Duration::from_secs(30);

/// Starts one life of a task.
pub type Start = Arc<dyn Fn(Stop, Progress) -> BoxFuture<'static, Result<(), TaskError>> + Send + Sync>;

/// A piece of work and how to start it.
#[derive(Clone)]
pub struct TaskPlan {
    /// Names the work; a task runs as long as its key is wanted.
    pub key: String,
    /// Called for each life of the task. It says how far it is, and ends when asked to stop, or with an error. It may
    /// be dropped at any await.
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
    /// Looks after the stage's topics now and then: an error says what a person should know. Creates nothing, because
    /// whoever deletes a topic may be about to create it anew.
    fn tend(&self, _graph: Arc<Graph>) -> BoxFuture<'static, Result<(), TaskError>> {
        async { Ok(()) }.boxed()
    }
    /// How long a task may stand still before its life is given up. It is shown as not ready after [`STALLED_AFTER`].
    fn patience(&self) -> Duration {
        STALLED_AFTER
    }
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

/// Runs a stage until asked to stop, then waits for its tasks to drain.
///
/// # Errors
/// When the group cannot be joined for a reason that waiting does not cure.
pub async fn supervise(stage: Arc<dyn Stage>, context: StageContext, stop: Stop) -> anyhow::Result<()> {
    let membership_check = context.health.check(format!("{} membership", stage.name()));
    let topics_check = context.health.check(format!("{} topics", stage.name()));
    membership_check.set_waiting("joining");
    let Some(membership) = join(&context, &membership_check, &stop).await? else { return Ok(()) };
    let mut supervisor = Supervisor {
        tasks: Tasks::new(stage.name(), context.health.clone(), stage.patience()),
        graph: Arc::default(),
        assigned: BTreeSet::new(),
        subscribed: BTreeSet::new(),
        ensure_at: None,
        membership_after: None,
        rejoin_at: None,
        rejoin_backoff: Backoff::new(REJOIN_AFTER, REJOIN_AFTER_AT_MOST),
        joined_at: Instant::now(),
        errands: FuturesUnordered::new(),
        asking: false,
        tending: false,
        topics_check,
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
            biased;
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
    topics_check: CheckHandle,
    graph: Arc<Graph>,
    assigned: BTreeSet<(TopicName, u32)>,
    subscribed: BTreeSet<TopicName>,
    /// When the stage's topics are to be created and subscribed to (again).
    ensure_at: Option<Instant>,
    ensure_backoff: Backoff,
    /// When a membership that failed is to be asked again.
    membership_after: Option<Instant>,
    /// When a place that was lost for good is to be asked for anew.
    rejoin_at: Option<Instant>,
    rejoin_backoff: Backoff,
    joined_at: Instant,
    /// Questions to the log that are under way, so that a log that does not answer holds up nothing else.
    errands: FuturesUnordered<BoxFuture<'static, Event>>,
    asking: bool,
    tending: bool,
    tasks: Tasks,
}

enum Event {
    Catalog,
    Ensure,
    Assigned(Result<BTreeSet<(TopicName, u32)>, TopicError>),
    AskMembership,
    Rejoin,
    Ended(Ended),
    Restart,
    Abandon,
    Settle,
    Look,
    Answers(Vec<Answered>),
    Tend,
    Tended(Result<(), TaskError>),
}

impl Supervisor {
    async fn run(&mut self, stop: &Stop) {
        let (mut settle, mut look, mut tend) = (every(SETTLE_EVERY), every(LOOK_EVERY), every(TEND_EVERY));
        self.context.catalog.mark_changed();
        loop {
            let (restart_at, abandon_at) = (self.tasks.next_restart(), self.tasks.next_abandon());
            let event = tokio::select! {
                biased;
                () = stop.stopped() => return,
                ended = self.tasks.ended() => Event::Ended(ended),
                Ok(()) = self.context.catalog.changed() => Event::Catalog,
                assigned = self.membership.changed(), if self.has_place() => Event::Assigned(assigned),
                Some(event) = self.errands.next() => event,
                () = sleep_until(self.membership_after) => Event::AskMembership,
                () = sleep_until(self.rejoin_at) => Event::Rejoin,
                () = sleep_until(self.ensure_at) => Event::Ensure,
                () = sleep_until(restart_at) => Event::Restart,
                () = sleep_until(abandon_at) => Event::Abandon,
                _ = settle.tick() => Event::Settle,
                _ = look.tick() => Event::Look,
                _ = tend.tick() => Event::Tend,
            };
            // What waits for the log is cut off, too: whoever stops must not wait for a broker.
            tokio::select! {
                biased;
                () = self.handle(event) => {}
                () = stop.stopped() => return,
            }
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
            Event::Assigned(Err(error)) => self.membership_failed(&error),
            Event::AskMembership => self.membership_after = None,
            Event::Rejoin => self.rejoin().await,
            Event::Ended(ended) => self.tasks.bury(ended),
            Event::Restart => self.tasks.restart_due(),
            Event::Abandon => self.tasks.abandon_late(),
            Event::Settle => self.report_positions().await,
            Event::Look => self.look(),
            Event::Answers(answers) => {
                self.asking = false;
                self.tasks.hear(answers);
            }
            Event::Tend => self.tend(),
            Event::Tended(outcome) => self.tended(outcome),
        }
    }

    /// Whether the membership is worth asking now.
    fn has_place(&self) -> bool {
        self.membership_after.is_none() && self.rejoin_at.is_none()
    }

    /// A place in the group that is lost for good belongs to somebody else now, and so does the work.
    fn membership_failed(&mut self, error: &TopicError) {
        tracing::warn!(stage = self.stage.name(), %error, "group membership failed");
        if error.class() == ErrorClass::Stop {
            self.assigned.clear();
            self.reconcile();
            if self.joined_at.elapsed() > PLACE_IS_SAFE_AFTER {
                self.rejoin_backoff.reset();
            }
            self.rejoin_later(error);
        } else {
            self.membership_check.set_waiting(error.to_string());
            self.membership_after = Some(Instant::now() + self.ensure_backoff.next());
        }
    }

    fn rejoin_later(&mut self, error: &TopicError) {
        let wait = self.rejoin_backoff.next();
        self.membership_check.set_waiting(format!("{error}; joins anew in {} s", wait.as_secs() + 1));
        self.rejoin_at = Some(Instant::now() + wait);
    }

    async fn rejoin(&mut self) {
        self.rejoin_at = None;
        let topics = self.subscribed.iter().cloned().collect();
        match self.context.log.join(&self.context.group, topics).await {
            Ok(membership) => {
                self.membership_check.set_waiting("joining anew");
                (self.membership, self.joined_at) = (membership, Instant::now());
            }
            Err(error) => self.rejoin_later(&error),
        }
    }

    fn look(&mut self) {
        let questions = self.tasks.look();
        if questions.is_empty() || self.asking {
            return;
        }
        self.asking = true;
        let log = Arc::clone(&self.context.log);
        self.errands.push(ask(log, questions).map(Event::Answers).boxed());
    }

    fn tend(&mut self) {
        // While topics are still being created there is nothing to look after.
        if self.tending || self.ensure_at.is_some() {
            return;
        }
        self.tending = true;
        self.errands.push(self.stage.tend(Arc::clone(&self.graph)).map(Event::Tended).boxed());
    }

    fn tended(&mut self, outcome: Result<(), TaskError>) {
        self.tending = false;
        match outcome {
            Ok(()) if self.ensure_at.is_none() => self.topics_check.set_ready(""),
            Ok(()) => {}
            Err(error) => self.topics_check.set_waiting(error.to_string()),
        }
    }

    /// Creates the stage's topics and subscribes to its inputs; tries again later when the log does not let it.
    async fn ensure(&mut self) {
        self.ensure_at = None;
        match self.stage.ensure(Arc::clone(&self.graph)).await {
            Ok(()) => self.topics_check.set_ready(""),
            Err(error) => {
                self.topics_check.set_waiting(error.to_string());
                self.ensure_at = Some(Instant::now() + self.ensure_backoff.next());
            }
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

    async fn report_positions(&mut self) {
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

fn every(period: Duration) -> tokio::time::Interval {
    let mut interval = tokio::time::interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

async fn sleep_until(when: Option<Instant>) {
    match when {
        Some(when) => tokio::time::sleep_until(when).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
