//! The one thread that writes.
//!
//! Invariant: receipts are settled after the commit that holds their messages, never before, and in
//! the order in which the messages were queued. After a failed commit nothing more is written: the
//! file is at its last commit, and everything since is reported as failed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use redb::{Durability, ReadableTable, WriteTransaction};

use crate::metrics::Commits;
use crate::{Creation, TopicError, TopicName, TopicSettings};

use super::record::{TopicRecord, encode_message, message_bytes, message_key};
use super::retention;
use super::state::{Append, MESSAGES, NEXT_TOPIC, NUMBERS, Op, PARTITIONS, Place, Shared, TOPICS, TopicState, Work};
use super::storage_error;

/// From this size on every commit also saves where free space is: a slower commit, but a crash no
/// longer means reading the whole file before the log opens.
const QUICK_REPAIR_FROM_BYTES: u64 = 1 << 30;

pub(super) struct Writer {
    shared: Arc<Shared>,
    commits: Commits,
    /// When retention may run again; set while something was appended since it last ran.
    trim_at: Option<Instant>,
    trimmed_at: Option<Instant>,
}

type Places = BTreeMap<(u32, u32), Place>;

impl Writer {
    pub(super) fn start(shared: Arc<Shared>) -> std::io::Result<JoinHandle<()>> {
        let writer = Self { shared, commits: Commits::new(), trim_at: None, trimmed_at: None };
        std::thread::Builder::new().name("topics-embedded-writer".to_owned()).spawn(move || writer.run())
    }

    fn run(mut self) {
        // Also when this thread panics: who waits for it must hear of it.
        let _last_words = LastWords(Arc::clone(&self.shared));
        loop {
            match self.shared.queue.take(self.trim_at) {
                Work::Ops(ops) => self.work(ops),
                Work::Due => {}
                Work::Closed => return,
            }
            if self.trim_at.is_some_and(|due| due <= Instant::now()) {
                self.trim();
            }
        }
    }

    fn work(&mut self, ops: Vec<Op>) {
        let mut appends = Vec::with_capacity(ops.len());
        for op in ops {
            match op {
                Op::Append(append) => appends.push(append),
                Op::Create { topic, settings, reply } => drop(reply.send(self.create(topic, settings))),
                Op::Grow { topic, partitions, reply } => drop(reply.send(self.grow(&topic, partitions))),
                Op::Trim { topic, partition, before, reply } => {
                    drop(reply.send(self.trim_to(topic, partition, before)))
                }
            }
        }
        if !appends.is_empty() {
            self.append(appends);
        }
    }

    fn append(&mut self, appends: Vec<Append>) {
        let started = Instant::now();
        self.shared.inflight.set(self.shared.limit.taken_bytes());
        match self.write(&appends) {
            Ok((places, offsets)) => {
                self.commits.count(appends.len(), started.elapsed());
                publish(&appends, &places);
                for (append, offset) in appends.into_iter().zip(offsets) {
                    append.topic.sent.durable(append.message.content_bytes());
                    append.pending.settle(Ok(offset));
                }
                self.schedule_trim();
            }
            Err(error) => self.fail(appends, "writing messages", error),
        }
        self.shared.inflight.set(self.shared.limit.taken_bytes());
    }

    /// Writes everything in one durable transaction.
    fn write(&self, appends: &[Append]) -> Result<(Places, Vec<u64>), redb::Error> {
        let now_ms = self.shared.now_ms();
        let transaction = self.begin()?;
        let mut places = Places::new();
        let mut offsets = Vec::with_capacity(appends.len());
        {
            let mut messages = transaction.open_table(MESSAGES)?;
            for append in appends {
                let topic = &append.topic;
                let place = places
                    .entry((topic.id, append.partition))
                    .or_insert_with(|| topic.partition(append.partition).place());
                let key = message_key(topic.id, append.partition, place.next);
                let bytes = message_bytes(&append.message);
                let mut value = messages.insert_reserve(&key, bytes)?;
                encode_message(&append.message, now_ms, value.as_mut());
                offsets.push(place.next);
                place.next += 1;
                place.bytes += bytes as u64;
            }
        }
        store_places(&transaction, &places)?;
        transaction.commit()?;
        Ok((places, offsets))
    }

    fn begin(&self) -> Result<WriteTransaction, redb::Error> {
        let mut transaction = self.shared.database.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        transaction.set_quick_repair(self.file_bytes() >= QUICK_REPAIR_FROM_BYTES);
        Ok(transaction)
    }

    fn file_bytes(&self) -> u64 {
        std::fs::metadata(self.shared.path.join(super::FILE)).map_or(0, |file| file.len())
    }

    fn create(&self, name: TopicName, settings: TopicSettings) -> Result<Creation, TopicError> {
        if self.shared.topic(&name).is_ok() {
            return Ok(Creation::Existed);
        }
        let record = self
            .store_topic(&name, settings)
            .map_err(|error| storage_error(&self.shared.path, "creating a topic", error))?;
        let places = vec![Place::default(); record.settings.partitions as usize];
        self.shared.set_topic(TopicState::new(name, record, places));
        Ok(Creation::Created)
    }

    fn store_topic(&self, name: &TopicName, settings: TopicSettings) -> Result<TopicRecord, redb::Error> {
        let transaction = self.begin()?;
        let record = {
            let mut numbers = transaction.open_table(NUMBERS)?;
            let next = numbers.get(NEXT_TOPIC)?.map_or(1, |number| number.value());
            numbers.insert(NEXT_TOPIC, next + 1)?;
            let record = TopicRecord { id: u32::try_from(next).unwrap_or(u32::MAX), settings };
            let mut topics = transaction.open_table(TOPICS)?;
            topics.insert(name.as_str(), record.encode().as_slice())?;
            record
        };
        transaction.commit()?;
        Ok(record)
    }

    fn grow(&self, name: &TopicName, partitions: u32) -> Result<u32, TopicError> {
        let topic = self.shared.topic(name)?;
        if topic.settings.partitions < partitions {
            let settings = TopicSettings { partitions, ..topic.settings.clone() };
            let record = TopicRecord { id: topic.id, settings };
            self.store_record(name, &record)
                .map_err(|error| storage_error(&self.shared.path, "growing a topic", error))?;
            self.shared.set_topic(topic.grown(record));
        }
        Ok(topic.settings.partitions.max(partitions))
    }

    fn store_record(&self, name: &TopicName, record: &TopicRecord) -> Result<(), redb::Error> {
        let transaction = self.begin()?;
        transaction.open_table(TOPICS)?.insert(name.as_str(), record.encode().as_slice())?;
        transaction.commit()?;
        Ok(())
    }

    fn schedule_trim(&mut self) {
        if self.trim_at.is_none() {
            let now = Instant::now();
            let last = self.trimmed_at.unwrap_or(now);
            self.trim_at = Some(now.max(last + self.shared.options.trim_every));
        }
    }

    /// Runs retention once; what it leaves over is taken up after the next pause.
    fn trim(&mut self) {
        self.trim_at = None;
        self.trimmed_at = Some(Instant::now());
        let cuts = retention::due(&self.shared);
        match cuts.and_then(|(cuts, more)| self.cut(&cuts).map(|()| more)) {
            Ok(false) => {}
            Ok(true) => self.schedule_trim(),
            Err(error) => {
                let error = storage_error(&self.shared.path, "removing old messages", error);
                self.stop(error);
            }
        }
    }

    fn trim_to(&self, topic: Arc<TopicState>, partition: u32, before: u64) -> Result<(), TopicError> {
        retention::up_to(&self.shared, topic, partition, before)
            .and_then(|cut| self.cut(&Vec::from_iter(cut)))
            .map_err(|error| storage_error(&self.shared.path, "removing old messages", error))
    }

    fn cut(&self, cuts: &[retention::Cut]) -> Result<(), redb::Error> {
        if cuts.is_empty() {
            return Ok(());
        }
        let transaction = self.begin()?;
        let mut places = Places::new();
        {
            let mut messages = transaction.open_table(MESSAGES)?;
            for cut in cuts {
                let low = message_key(cut.topic.id, cut.partition, cut.before.start);
                let high = message_key(cut.topic.id, cut.partition, cut.after.start);
                messages.retain_in::<&[u8; 16], _>(&low..&high, |_, _| false)?;
                places.insert((cut.topic.id, cut.partition), cut.after);
            }
        }
        store_places(&transaction, &places)?;
        transaction.commit()?;
        for cut in cuts {
            cut.topic.partition(cut.partition).publish(cut.after);
            cut.topic.sent.trimmed(cut.after.start - cut.before.start);
        }
        Ok(())
    }

    fn fail(&self, appends: Vec<Append>, doing: &'static str, error: redb::Error) {
        let error = storage_error(&self.shared.path, doing, error);
        self.stop(error.clone());
        for append in appends {
            append.topic.sent.failed();
            append.pending.settle(Err(error.clone()));
        }
    }

    /// Nothing more can be written until the log is opened again.
    fn stop(&self, error: TopicError) {
        tracing::error!(error = %error, cause = ?std::error::Error::source(&error), "the embedded log stopped");
        for op in self.shared.queue.fail(Some(error.clone())) {
            refuse(op, &error);
        }
        self.shared.broken.set(|| error);
    }
}

fn refuse(op: Op, error: &TopicError) {
    match op {
        Op::Append(append) => append.pending.settle(Err(error.clone())),
        Op::Create { reply, .. } => drop(reply.send(Err(error.clone()))),
        Op::Grow { reply, .. } => drop(reply.send(Err(error.clone()))),
        Op::Trim { reply, .. } => drop(reply.send(Err(error.clone()))),
    }
}

fn store_places(transaction: &WriteTransaction, places: &Places) -> Result<(), redb::Error> {
    let mut partitions = transaction.open_table(PARTITIONS)?;
    for (key, place) in places {
        partitions.insert(key, place.stored())?;
    }
    Ok(())
}

fn publish(appends: &[Append], places: &Places) {
    for append in appends {
        let place = places.get(&(append.topic.id, append.partition));
        if let Some(place) = place {
            append.topic.partition(append.partition).publish(*place);
        }
    }
}

/// Closes the queue when the writer ends, however it ends.
struct LastWords(Arc<Shared>);

impl Drop for LastWords {
    fn drop(&mut self) {
        // Dropping what is left settles it as closed.
        drop(self.0.queue.fail(None));
    }
}
