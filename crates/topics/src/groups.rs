//! Groups within one process, for the logs that have no broker to keep them.
//!
//! Invariant: at any moment every partition of every known topic that a group subscribes to has
//! exactly one owner among its members.
//! Deliberately absent: heartbeats and stickiness. A member is gone when its handle is dropped.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::{Membership, TopicError, TopicName};

type Owned = BTreeSet<(TopicName, u32)>;

/// All groups of one log.
#[derive(Clone, Debug, Default)]
pub(crate) struct Groups(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    topics: BTreeMap<TopicName, u32>,
    groups: BTreeMap<String, BTreeMap<u64, Member>>,
    next_member: u64,
}

#[derive(Debug)]
struct Member {
    topics: BTreeSet<TopicName>,
    owned: watch::Sender<Owned>,
}

impl Groups {
    /// Tells all groups how many partitions a topic has; 0 where it is gone.
    pub(crate) fn topic(&self, topic: &TopicName, partitions: u32) {
        let mut state = self.0.lock();
        state.topics.insert(topic.clone(), partitions);
        let names: Vec<String> = state.groups.keys().cloned().collect();
        for group in names {
            state.divide(&group, None);
        }
    }

    /// Adds a member.
    pub(crate) fn join(&self, group: &str, topics: Vec<TopicName>) -> GroupMember {
        let mut state = self.0.lock();
        let id = state.next_member;
        state.next_member += 1;
        let (owned, mut changes) = watch::channel(Owned::new());
        changes.mark_changed();
        let member = Member { topics: topics.into_iter().collect(), owned };
        let members = state.groups.entry(group.to_owned()).or_default();
        members.insert(id, member);
        state.divide(group, None);
        GroupMember { groups: self.clone(), group: group.to_owned(), id, changes }
    }

    /// Everybody in a group loses the place for good, as a member does whose name another one took.
    pub(crate) fn evict(&self, group: &str) {
        self.0.lock().groups.remove(group);
    }

    fn subscribe(&self, group: &str, id: u64, topics: Vec<TopicName>) {
        let mut state = self.0.lock();
        let member = state.groups.get_mut(group).and_then(|g| g.get_mut(&id));
        if let Some(member) = member {
            member.topics = topics.into_iter().collect();
            state.divide(group, Some(id));
        }
    }

    fn leave(&self, group: &str, id: u64) {
        let mut state = self.0.lock();
        let members = state.groups.entry(group.to_owned()).or_default();
        members.remove(&id);
        if members.is_empty() {
            state.groups.remove(group);
        } else {
            state.divide(group, None);
        }
    }
}

impl State {
    /// Divides anew, and tells the members whose share changed; `asked` is told in any case.
    fn divide(&mut self, group: &str, asked: Option<u64>) {
        let Some(members) = self.groups.get(group) else {
            return;
        };
        let mut shares = share(&self.topics, members);
        for (id, member) in members {
            let share = shares.remove(id).unwrap_or_default();
            member.owned.send_if_modified(|owned| {
                let changed = *owned != share || asked == Some(*id);
                *owned = share;
                changed
            });
        }
    }
}

/// Partition `i` of a topic goes to its subscriber `i mod n`.
fn share(topics: &BTreeMap<TopicName, u32>, members: &BTreeMap<u64, Member>) -> BTreeMap<u64, Owned> {
    let mut shares: BTreeMap<u64, Owned> = BTreeMap::new();
    for (topic, partitions) in topics {
        let subscribers = members.iter().filter(|(_, m)| m.topics.contains(topic));
        let subscribers: Vec<u64> = subscribers.map(|(id, _)| *id).collect();
        for (partition, id) in (0..*partitions).zip(subscribers.iter().cycle()) {
            shares.entry(*id).or_default().insert((topic.clone(), partition));
        }
    }
    shares
}

/// A place in a group; dropping it leaves.
#[derive(Debug)]
pub(crate) struct GroupMember {
    groups: Groups,
    group: String,
    id: u64,
    changes: watch::Receiver<Owned>,
}

#[async_trait]
impl Membership for GroupMember {
    async fn changed(&mut self) -> Result<Owned, TopicError> {
        self.changes.changed().await.map_err(|_| TopicError::Closed)?;
        Ok(self.changes.borrow_and_update().clone())
    }

    async fn subscribe(&mut self, topics: Vec<TopicName>) -> Result<(), TopicError> {
        self.groups.subscribe(&self.group, self.id, topics);
        Ok(())
    }

    async fn settle(&self, _positions: Vec<(TopicName, u32, u64)>) -> Result<(), TopicError> {
        Ok(())
    }
}

impl Drop for GroupMember {
    fn drop(&mut self) {
        self.groups.leave(&self.group, self.id);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn name(text: &str) -> TopicName {
        TopicName::new(text).unwrap()
    }

    #[tokio::test]
    async fn every_partition_has_one_owner_whoever_comes_and_goes() {
        let groups = Groups::default();
        groups.topic(&name("a"), 5);
        let mut one = groups.join("g", vec![name("a")]);
        assert_eq!(one.changed().await.unwrap().len(), 5);
        let mut two = groups.join("g", vec![name("a")]);
        let (first, second) = (one.changed().await.unwrap(), two.changed().await.unwrap());
        assert!(first.is_disjoint(&second));
        assert_eq!(first.len() + second.len(), 5);
        drop(one);
        assert_eq!(two.changed().await.unwrap().len(), 5);
    }

    #[tokio::test]
    async fn members_share_only_what_they_subscribe_to() {
        let groups = Groups::default();
        groups.topic(&name("a"), 1);
        groups.topic(&name("b"), 1);
        let mut one = groups.join("g", vec![name("a")]);
        let mut two = groups.join("g", vec![name("b")]);
        assert_eq!(one.changed().await.unwrap(), Owned::from([(name("a"), 0)]));
        assert_eq!(two.changed().await.unwrap(), Owned::from([(name("b"), 0)]));
    }

    #[tokio::test]
    async fn a_member_hears_of_its_first_share_even_when_it_is_empty() {
        let mut member = Groups::default().join("g", vec![name("later")]);
        assert!(member.changed().now_or_never().is_some());
        assert!(member.changed().now_or_never().is_none());
    }
}
