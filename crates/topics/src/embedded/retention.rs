//! Which messages retention may remove.
//!
//! Invariant: never more than the settings allow. At least `bytes` of the newest messages stay, and
//! a message stays at least `age` after it was appended; a topic without limits is never touched.
//! One pass is bounded, so that appends do not wait for a long clean-up.

use std::sync::Arc;

use redb::ReadableDatabase;

use super::record::{appended_ms, message_key, offset_of};
use super::state::{MESSAGES, Place, Shared, TopicState};

/// Most messages and bytes one pass removes.
const PASS_MESSAGES: u64 = 10_000;
const PASS_BYTES: u64 = 64 << 20;

/// A partition and what it becomes.
pub(super) struct Cut {
    pub(super) topic: Arc<TopicState>,
    pub(super) partition: u32,
    pub(super) before: Place,
    pub(super) after: Place,
}

/// What one pass may still remove.
struct Budget {
    messages: u64,
    bytes: u64,
}

impl Budget {
    fn pass() -> Self {
        Self { messages: PASS_MESSAGES, bytes: PASS_BYTES }
    }

    fn spent(&self) -> bool {
        self.messages == 0 || self.bytes == 0
    }

    fn spend(&mut self, bytes: u64) {
        self.messages = self.messages.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

/// Everything one pass removes, and whether there is more.
pub(super) fn due(shared: &Shared) -> Result<(Vec<Cut>, bool), redb::Error> {
    let now_ms = shared.now_ms();
    let mut budget = Budget::pass();
    let mut cuts = Vec::new();
    for topic in shared.topics() {
        let retention = topic.settings.retention;
        if retention.bytes.is_none() && retention.age.is_none() {
            continue;
        }
        let oldest_ms = retention.age.map(|age| {
            let age_ms = i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
            now_ms.saturating_sub(age_ms)
        });
        for (partition, state) in topic.partitions() {
            let cut =
                cut(shared, &topic, partition, state.place(), &mut budget, |place, stored_bytes, appended_ms| {
                    let too_many = retention.bytes.is_some_and(|keep| place.bytes - stored_bytes >= keep);
                    let too_old = oldest_ms.is_some_and(|oldest| appended_ms < oldest);
                    too_many || too_old
                })?;
            cuts.extend(cut);
        }
    }
    Ok((cuts, budget.spent()))
}

/// Removes everything below an offset, in one go.
pub(super) fn up_to(
    shared: &Shared,
    topic: Arc<TopicState>,
    partition: u32,
    offset: u64,
) -> Result<Option<Cut>, redb::Error> {
    let mut budget = Budget { messages: u64::MAX, bytes: u64::MAX };
    let place = topic.partition(partition).place();
    cut(shared, &topic, partition, place, &mut budget, |place, _, _| place.start < offset)
}

/// Moves the start of a partition on while `goes(place, bytes, appended_ms)` of its first message.
fn cut(
    shared: &Shared,
    topic: &Arc<TopicState>,
    partition: u32,
    before: Place,
    budget: &mut Budget,
    goes: impl Fn(Place, u64, i64) -> bool,
) -> Result<Option<Cut>, redb::Error> {
    let mut after = before;
    if before.start < before.next && !budget.spent() {
        let transaction = shared.database.begin_read()?;
        let messages = transaction.open_table(MESSAGES)?;
        let low = message_key(topic.id, partition, before.start);
        let high = message_key(topic.id, partition, before.next);
        for entry in messages.range::<&[u8; 16]>(&low..&high)? {
            let (key, stored) = entry?;
            let stored = stored.value();
            let bytes = stored.len() as u64;
            // A message that cannot be read has no age: only the limit in bytes removes it.
            let appended_ms = appended_ms(stored).unwrap_or(i64::MAX);
            if budget.spent() || !goes(after, bytes, appended_ms) {
                break;
            }
            budget.spend(bytes);
            after.start = offset_of(key.value()) + 1;
            after.bytes = after.bytes.saturating_sub(bytes);
        }
    }
    Ok((after != before).then(|| Cut { topic: Arc::clone(topic), partition, before, after }))
}
