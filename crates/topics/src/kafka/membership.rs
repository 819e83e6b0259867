//! Groups kept by Kafka, used for one thing: who reads which partition.
//!
//! Invariant: a member never fetches. Everything assigned is paused at once; the reading is done by
//! readers that are told where to start. Offsets are committed for lag tools only.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use async_trait::async_trait;
use delivery::ErrorClass;
use parking_lot::Mutex;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, RebalanceProtocol};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{ClientContext, Offset, TopicPartitionList};
use tokio::sync::watch;

use crate::throttle::Throttle;
use crate::{Membership, TopicError, TopicName, metrics};

use super::client::{Quiet, failed, needs_a_person};
use super::config::KafkaConfig;

const POLL: Duration = Duration::from_millis(100);

type Owned = BTreeSet<(TopicName, u32)>;

/// Threads of members that are leaving, so that a process does not end before they have left.
pub(super) type Leaving = Arc<Mutex<Vec<JoinHandle<()>>>>;

/// Follows the rebalances of one member.
struct Rebalances {
    quiet: Quiet,
    commits: Throttle,
    topics: Throttle,
    state: watch::Sender<State>,
}

#[derive(Clone, Debug, Default)]
struct State {
    owned: Owned,
    failure: Option<TopicError>,
}

impl Rebalances {
    fn new(state: watch::Sender<State>) -> Self {
        let (commits, topics) = (Throttle::once_a_second(), Throttle::once_a_second());
        Self { quiet: Quiet::new("member"), commits, topics, state }
    }

    fn assigned(
        &self,
        consumer: &BaseConsumer<Self>,
        list: &mut TopicPartitionList,
        step_by_step: bool,
    ) -> KafkaResult<()> {
        // From the end and paused: there is nothing to look up and nothing to fetch.
        list.set_all_offsets(Offset::End)?;
        if step_by_step {
            consumer.incremental_assign(list)?;
        } else {
            consumer.assign(list)?;
        }
        consumer.pause(list)
    }

    fn revoked(&self, consumer: &BaseConsumer<Self>, list: &TopicPartitionList, step_by_step: bool) -> KafkaResult<()> {
        if step_by_step { consumer.incremental_unassign(list) } else { consumer.unassign() }
    }

    fn publish(&self, change: impl FnOnce(&mut State)) {
        self.state.send_modify(change);
    }

    /// Errors that do not pass are told to the member; the others are in the log already.
    fn take_failure(&self, group: &str, error: KafkaError) {
        let fatal = matches!(error, KafkaError::MessageConsumptionFatal(_));
        if !fatal && is_of_one_topic(&error) {
            if let Some(held_back) = self.topics.pass() {
                tracing::warn!(group, %error, held_back, "a topic of the group is out of reach; the others go on");
            }
            return;
        }
        if fatal || error.rdkafka_error_code().is_some_and(needs_a_person) {
            let fix = match error.rdkafka_error_code() {
                Some(RDKafkaErrorCode::FencedInstanceId) => {
                    ": another process came with the same `group.instance.id`; give each its own"
                }
                _ => "",
            };
            let doing = format!("keep a place in group `{group}`{fix}");
            // Whatever it was, this place is lost: the next one needs a new member.
            let failure = TopicError::Kafka { doing, class: ErrorClass::Stop, source: Arc::new(error) };
            self.publish(|state| *state = State { owned: Owned::new(), failure: Some(failure) });
        }
    }
}

impl ClientContext for Rebalances {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.quiet.take_log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.quiet.take_error(&error, reason);
    }

    fn stats_raw(&self, _statistics: &[u8]) {}
}

impl ConsumerContext for Rebalances {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, kind: RDKafkaRespErr, list: &mut TopicPartitionList) {
        let step_by_step = matches!(consumer.rebalance_protocol(), RebalanceProtocol::Cooperative);
        let assigned = kind == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
        let named = places(list);
        let done = if assigned {
            self.assigned(consumer, list, step_by_step)
        } else {
            self.revoked(consumer, list, step_by_step)
        };
        if let Err(error) = done {
            tracing::warn!(%error, assigned, "Kafka did not take a change of assignment");
        }
        metrics::rebalance();
        self.publish(|state| match (assigned, step_by_step) {
            (true, true) => state.owned.extend(named),
            (true, false) => state.owned = named,
            (false, true) => state.owned.retain(|place| !named.contains(place)),
            (false, false) => state.owned.clear(),
        });
    }

    fn commit_callback(&self, result: KafkaResult<()>, _offsets: &TopicPartitionList) {
        if let Err(error) = result
            && let Some(held_back) = self.commits.pass()
        {
            tracing::debug!(%error, held_back, "progress was not published; lag tools may be behind");
        }
    }
}

/// Says nothing about the place in the group: whoever needs the topic finds out about it, and the others have theirs.
fn is_of_one_topic(error: &KafkaError) -> bool {
    let code = error.rdkafka_error_code();
    matches!(code, Some(RDKafkaErrorCode::TopicAuthorizationFailed | RDKafkaErrorCode::InvalidTopic))
}

fn places(list: &TopicPartitionList) -> Owned {
    let elements = list.elements();
    let places = elements.iter().filter_map(|element| {
        let topic = TopicName::new(element.topic()).ok()?;
        Some((topic, u32::try_from(element.partition()).ok()?))
    });
    places.collect()
}

/// A place in a group; dropping it leaves.
pub(super) struct Member {
    group: String,
    consumer: Option<Arc<BaseConsumer<Rebalances>>>,
    changes: watch::Receiver<State>,
    stop: Arc<AtomicBool>,
    polling: Option<JoinHandle<()>>,
    leaving: Leaving,
}

impl Member {
    pub(super) fn join(
        config: &KafkaConfig,
        group: &str,
        topics: &[TopicName],
        leaving: Leaving,
    ) -> Result<Self, TopicError> {
        let (state, mut changes) = watch::channel(State::default());
        if topics.is_empty() {
            changes.mark_changed();
        }
        let context = Rebalances::new(state);
        let consumer: BaseConsumer<Rebalances> = config
            .member(group)
            .create_with_context(context)
            .map_err(|error| failed(format!("join group `{group}`"), error))?;
        let consumer = Arc::new(consumer);
        subscribe(&consumer, group, topics)?;
        let stop = Arc::new(AtomicBool::new(false));
        let polling = Self::poll(&consumer, group, &stop).map_err(super::no_thread)?;
        Ok(Self { group: group.to_owned(), consumer: Some(consumer), changes, stop, polling: Some(polling), leaving })
    }

    /// Rebalances happen on this thread. It also ends the client, which takes a moment.
    fn poll(
        consumer: &Arc<BaseConsumer<Rebalances>>,
        group: &str,
        stop: &Arc<AtomicBool>,
    ) -> std::io::Result<JoinHandle<()>> {
        let (consumer, stop, group) = (Arc::clone(consumer), Arc::clone(stop), group.to_owned());
        std::thread::Builder::new().name("topics-kafka-member".to_owned()).spawn(move || {
            while !stop.load(Ordering::Acquire) {
                if let Some(Err(error)) = consumer.poll(POLL) {
                    consumer.context().take_failure(&group, error);
                }
            }
        })
    }

    fn consumer(&self) -> Result<&Arc<BaseConsumer<Rebalances>>, TopicError> {
        self.consumer.as_ref().ok_or(TopicError::Closed)
    }
}

fn subscribe(consumer: &BaseConsumer<Rebalances>, group: &str, topics: &[TopicName]) -> Result<(), TopicError> {
    if topics.is_empty() {
        consumer.unsubscribe();
        return Ok(());
    }
    let names: Vec<&str> = topics.iter().map(TopicName::as_str).collect();
    let subscribed = consumer.subscribe(&names);
    subscribed.map_err(|error| failed(format!("subscribe group `{group}`"), error))
}

#[async_trait]
impl Membership for Member {
    async fn changed(&mut self) -> Result<Owned, TopicError> {
        let changed = self.changes.changed().await;
        changed.map_err(|_| TopicError::Closed)?;
        let state = self.changes.borrow_and_update().clone();
        match state.failure {
            Some(failure) => Err(failure),
            None => Ok(state.owned),
        }
    }

    async fn subscribe(&mut self, topics: Vec<TopicName>) -> Result<(), TopicError> {
        subscribe(self.consumer()?, &self.group, &topics)
    }

    async fn settle(&self, positions: Vec<(TopicName, u32, u64)>) -> Result<(), TopicError> {
        let mut list = TopicPartitionList::with_capacity(positions.len());
        let doing = || format!("publish the progress of group `{}`", self.group);
        for (topic, partition, next) in positions {
            let next = Offset::Offset(i64::try_from(next).unwrap_or(i64::MAX));
            list.add_partition_offset(topic.as_str(), partition as i32, next)
                .map_err(|error| failed(doing(), error))?;
        }
        if list.count() == 0 {
            return Ok(());
        }
        let committed = self.consumer()?.commit(&list, CommitMode::Async);
        committed.map_err(|error| failed(doing(), error))
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        // The thread must be the last to hold the client, because closing it blocks.
        drop(self.consumer.take());
        self.stop.store(true, Ordering::Release);
        let mut leaving = self.leaving.lock();
        leaving.retain(|thread| !thread.is_finished());
        leaving.extend(self.polling.take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_that_is_out_of_reach_costs_no_place_in_the_group() {
        let (state, states) = watch::channel(State::default());
        let member = Rebalances::new(state);
        let own = (TopicName::new("shop.orders").expect("valid"), 0);
        member.publish(|state| state.owned.extend([own.clone()]));
        member.take_failure("storage", KafkaError::MessageConsumption(RDKafkaErrorCode::TopicAuthorizationFailed));
        assert_eq!(states.borrow().owned, Owned::from([own]));
        assert!(states.borrow().failure.is_none());
        member.take_failure("storage", KafkaError::MessageConsumption(RDKafkaErrorCode::GroupAuthorizationFailed));
        assert!(states.borrow().failure.is_some());
    }
}
