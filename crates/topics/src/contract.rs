//! The suite every log must pass: what the docs of the traits promise, checked one by one.
//!
//! Every check uses topics of its own, so all of them may run against one broker. A check that does
//! not end in time fails by name. What a log cannot do (cut a partition on demand) is said in the
//! [`Subject`], and only that is left out.

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use delivery::ErrorClass;
use futures::FutureExt;

use crate::{
    Creation, Log, Membership, Message, NewMessage, Reader, Receipt, Span, TopicError, TopicName, TopicSettings,
};

const PATIENCE: Duration = Duration::from_secs(60);
const ALL: usize = 16 << 20;

/// Removes messages below an offset.
pub type Cut = Box<dyn Fn(TopicName, u32, u64) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// Makes the next append to a partition fail without effect. What it yields is called once more was queued behind it,
/// and lets the failure happen where it has not happened by itself.
pub type Fail = Box<dyn Fn(TopicName, u32) -> Box<dyn FnOnce() + Send> + Send + Sync>;

/// A log under test.
pub struct Subject {
    /// The log.
    pub log: Arc<dyn Log>,
    /// How to cut it, where that can be done.
    pub cut: Option<Cut>,
    /// How to make an append fail, where that can be done.
    pub fail: Option<Fail>,
}

impl Subject {
    /// A log that cannot be cut on demand.
    pub fn of(log: impl Log + 'static) -> Self {
        Self { log: Arc::new(log), cut: None, fail: None }
    }

    /// A log that can.
    pub fn with_cut<F>(self, cut: impl Fn(TopicName, u32, u64) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let cut: Cut = Box::new(move |topic, partition, before| Box::pin(cut(topic, partition, before)));
        Self { cut: Some(cut), ..self }
    }

    /// A log whose appends can be made to fail.
    pub fn with_fail<H>(self, fail: impl Fn(TopicName, u32) -> H + Send + Sync + 'static) -> Self
    where
        H: FnOnce() + Send + 'static,
    {
        Self { fail: Some(Box::new(move |topic, partition| Box::new(fail(topic, partition)))), ..self }
    }
}

/// Runs the whole suite. Panics, naming the check, at the first promise that is not kept.
pub async fn run_all<F, S>(make: F)
where
    F: Fn() -> S,
    S: Future<Output = Subject>,
{
    macro_rules! run {
        ($($check:ident),+ $(,)?) => {$(
            let subject = make().await;
            tracing::info!(check = stringify!($check), "checking");
            let check = Box::pin($check(&subject));
            if tokio::time::timeout(PATIENCE, check).await.is_err() {
                panic!("{} did not end within {PATIENCE:?}", stringify!($check));
            }
        )+};
    }
    run!(
        receipts_name_offsets_in_the_order_of_the_calls,
        appends_that_run_at_once_keep_the_order_of_their_calls,
        a_reader_starts_where_it_is_told,
        a_read_waits_and_wakes,
        a_read_that_is_dropped_consumes_nothing,
        readers_are_independent,
        a_dropped_reader_loses_nothing_for_the_next,
        a_reader_opened_while_another_is_dropped_still_wakes,
        a_read_keeps_to_about_its_bytes,
        a_flush_covers_everything_before_it,
        a_failed_append_takes_along_everything_behind_it,
        a_span_grows_with_appends,
        creating_twice_keeps_the_first,
        missing_topics_and_partitions_are_named,
        positions_beyond_the_end_are_refused,
        positions_before_the_start_are_refused,
        large_messages_pass,
        a_message_over_the_limit_is_rejected_and_leaves_nothing,
        ten_thousand_messages_keep_their_order_per_partition,
        bytes_come_back_as_they_went,
        a_group_of_one_owns_everything,
        two_members_share_and_the_one_who_stays_takes_over,
        a_member_follows_its_subscription,
        a_topic_made_later_is_taken_up,
        a_topic_that_grows_keeps_what_it_has,
        growing_to_fewer_partitions_changes_nothing,
        members_share_the_partitions_a_topic_gains,
    );
}

async fn receipts_name_offsets_in_the_order_of_the_calls(subject: &Subject) {
    let topic = topic(subject, 1).await;
    let mut receipts = Vec::new();
    for number in 0..100 {
        receipts.push(append(subject, &topic, 0, &text(number)).await);
    }
    for (expected, receipt) in (0..).zip(receipts) {
        assert_eq!(receipt.await.expect("durable"), expected);
    }
    let all = read_from(subject, &topic, 0, 0, 100).await;
    let texts: Vec<Bytes> = all.into_iter().map(|message| message.payload).collect();
    assert_eq!(texts, (0..100).map(text).collect::<Vec<_>>());
}

async fn appends_that_run_at_once_keep_the_order_of_their_calls(subject: &Subject) {
    let topic = topic(subject, 1).await;
    let appender = subject.log.appender();
    // Polled in this order, each once, before any of them is polled again.
    let calls = (0..200).map(|number| appender.append(&topic, 0, NewMessage::of(text(number))));
    let receipts = futures::future::join_all(calls).await;
    for (expected, receipt) in (0..).zip(receipts) {
        assert_eq!(receipt.expect("queued").await.expect("durable"), expected);
    }
}

async fn a_reader_starts_where_it_is_told(subject: &Subject) {
    let topic = filled(subject, 10).await;
    for from in [0, 1, 9] {
        let rest = read_from(subject, &topic, 0, from, 10 - from as usize).await;
        let offsets: Vec<u64> = rest.iter().map(|message| message.offset).collect();
        assert_eq!(offsets, (from..10).collect::<Vec<_>>());
    }
}

async fn a_read_waits_and_wakes(subject: &Subject) {
    let topic = topic(subject, 2).await;
    let mut reader = open(subject, &topic, 0, 0).await;
    let mut read = reader.read(ALL);
    assert!(read.as_mut().now_or_never().is_none(), "nothing there yet");
    durable(subject, &topic, 1, b"elsewhere").await;
    assert!(read.as_mut().now_or_never().is_none(), "nothing there yet");
    durable(subject, &topic, 0, b"here").await;
    let batch = read.await.expect("read");
    assert_eq!(batch[0].payload, b"here".as_slice());
}

async fn a_read_that_is_dropped_consumes_nothing(subject: &Subject) {
    let topic = topic(subject, 1).await;
    let mut reader = open(subject, &topic, 0, 0).await;
    for number in 0..20 {
        // Dropped while it waits, and again while there may be something to take.
        assert!(reader.read(ALL).now_or_never().is_none());
        let queued = append(subject, &topic, 0, &text(number)).await;
        if let Some(batch) = reader.read(ALL).now_or_never() {
            assert_eq!(batch.expect("read")[0].offset, number);
            queued.await.expect("durable");
            continue;
        }
        queued.await.expect("durable");
        let batch = reader.read(ALL).await.expect("read");
        assert_eq!(batch[0].offset, number);
    }
}

async fn readers_are_independent(subject: &Subject) {
    let topic = filled(subject, 30).await;
    let mut first = open(subject, &topic, 0, 0).await;
    let mut second = open(subject, &topic, 0, 0).await;
    let mut third = open(subject, &topic, 0, 20).await;
    for reader in [&mut first, &mut second] {
        let all = collect(reader, 30).await;
        assert_eq!(all.last().map(|message| message.offset), Some(29));
    }
    drop(first);
    durable(subject, &topic, 0, b"new").await;
    assert_eq!(collect(&mut second, 1).await[0].offset, 30);
    let rest = collect(&mut third, 11).await;
    assert_eq!((rest[0].offset, rest[10].offset), (20, 30));
}

async fn a_dropped_reader_loses_nothing_for_the_next(subject: &Subject) {
    let topic = filled(subject, 200).await;
    let mut next = 0;
    while next < 200 {
        let mut reader = open(subject, &topic, 0, next).await;
        let batch = reader.read(100).await.expect("read");
        assert_eq!(batch[0].offset, next);
        next = batch.last().expect("never empty").offset + 50;
    }
}

async fn a_reader_opened_while_another_is_dropped_still_wakes(subject: &Subject) {
    let topic = topic(subject, 1).await;
    let mut reader = open(subject, &topic, 0, 0).await;
    for number in 0..20 {
        let dropping = tokio::task::spawn_blocking(move || drop(reader));
        reader = open(subject, &topic, 0, number).await;
        dropping.await.expect("dropped");
        assert!(reader.read(ALL).now_or_never().is_none(), "nothing there yet");
        durable(subject, &topic, 0, &text(number)).await;
        assert_eq!(collect(&mut reader, 1).await[0].offset, number);
    }
}

async fn a_read_keeps_to_about_its_bytes(subject: &Subject) {
    let topic = topic(subject, 1).await;
    for _ in 0..100 {
        append(subject, &topic, 0, &[7; 1000]).await.await.expect("durable");
    }
    let mut reader = open(subject, &topic, 0, 0).await;
    let mut seen = 0;
    while seen < 100 {
        let batch = reader.read(10_000).await.expect("read");
        assert!((1..=11).contains(&batch.len()), "found {}", batch.len());
        seen += batch.len();
    }
    let mut reader = open(subject, &topic, 0, 0).await;
    assert_eq!(reader.read(1).await.expect("read").len(), 1);
    assert_eq!(reader.read(0).await.expect("read")[0].offset, 1);
}

async fn a_flush_covers_everything_before_it(subject: &Subject) {
    let topic = topic(subject, 3).await;
    for number in 0..300u32 {
        drop(append(subject, &topic, number % 3, &text(u64::from(number))).await);
    }
    subject.log.appender().flush().await.expect("flushed");
    for partition in 0..3 {
        let span = subject.log.span(&topic, partition).await.expect("span");
        assert_eq!(span.end, 100);
    }
}

/// The law without which a reader would halt for ever at a gap that no writer fills.
pub async fn a_failed_append_takes_along_everything_behind_it(subject: &Subject) {
    let Some(fail) = &subject.fail else {
        return;
    };
    let topic = topic(subject, 2).await;
    durable(subject, &topic, 0, b"before").await;
    let appender = subject.log.appender();
    let happen = fail(topic.clone(), 0);
    let mut fates = Vec::new();
    for number in 0..5 {
        fates.push(appender.append(&topic, 0, NewMessage::of(text(number))).await);
    }
    happen();
    for number in 5..10 {
        // The failure has happened, and nobody has looked: the moment at which a gap could arise.
        fates.push(appender.append(&topic, 0, NewMessage::of(text(number))).await);
    }
    for (number, fate) in fates.into_iter().enumerate() {
        let failed = match fate {
            Ok(receipt) => receipt.await.is_err(),
            Err(_) => true,
        };
        assert!(failed, "message {number} passed one that failed");
    }
    let span = subject.log.span(&topic, 0).await.expect("span");
    assert_eq!(span, Span { start: 0, end: 1 }, "something landed behind a failure");
    // Everybody has seen it now. The log goes on, or refuses for good.
    if let Ok(receipt) = appender.append(&topic, 0, NewMessage::of("after")).await
        && let Ok(offset) = receipt.await
    {
        assert_eq!(offset, 1);
        let texts: Vec<Bytes> = read_from(subject, &topic, 0, 0, 2).await.into_iter().map(|m| m.payload).collect();
        assert_eq!(texts, ["before", "after"]);
    }
}

async fn a_span_grows_with_appends(subject: &Subject) {
    let topic = topic(subject, 2).await;
    let span = async || subject.log.span(&topic, 1).await.expect("span");
    assert_eq!(span().await, Span { start: 0, end: 0 });
    durable(subject, &topic, 0, b"elsewhere").await;
    assert_eq!(span().await, Span { start: 0, end: 0 });
    durable(subject, &topic, 1, b"here").await;
    assert_eq!(span().await, Span { start: 0, end: 1 });
}

async fn creating_twice_keeps_the_first(subject: &Subject) {
    let name = fresh_name();
    let create = async |partitions| {
        let settings = TopicSettings { partitions, ..TopicSettings::default() };
        subject.log.create(&name, &settings).await.expect("create")
    };
    assert_eq!(create(3).await, Creation::Created);
    let first = subject.log.describe(&name).await.expect("describe");
    assert_eq!(create(5).await, Creation::Existed);
    let second = subject.log.describe(&name).await.expect("describe");
    assert_eq!(first.as_ref().map(|d| d.partitions), Some(3));
    assert_eq!(first, second);
}

async fn missing_topics_and_partitions_are_named(subject: &Subject) {
    let name = fresh_name();
    let log = &subject.log;
    assert_eq!(log.describe(&name).await.expect("describe"), None);
    let unknown = |error: Option<TopicError>| match error {
        Some(TopicError::UnknownTopic { topic }) => assert_eq!(topic, name),
        other => panic!("expected an unknown topic, found {other:?}"),
    };
    unknown(log.span(&name, 0).await.err());
    unknown(log.reader(&name, 0, 0).await.err());
    let appender = log.appender();
    unknown(appender.append(&name, 0, NewMessage::of("x")).await.err());

    let topic = topic(subject, 2).await;
    let beyond = |error: Option<TopicError>| match error {
        Some(TopicError::UnknownPartition { partition, partitions, .. }) => {
            assert_eq!((partition, partitions), (2, 2));
        }
        other => panic!("expected an unknown partition, found {other:?}"),
    };
    beyond(log.span(&topic, 2).await.err());
    beyond(log.reader(&topic, 2, 0).await.err());
    beyond(appender.append(&topic, 2, NewMessage::of("x")).await.err());
    appender.flush().await.expect("nothing was queued");
}

async fn positions_beyond_the_end_are_refused(subject: &Subject) {
    let topic = filled(subject, 3).await;
    let mut waiting = open(subject, &topic, 0, 3).await;
    match subject.log.reader(&topic, 0, 4).await.err() {
        Some(TopicError::OffsetAhead { requested, end, .. }) => assert_eq!((requested, end), (4, 3)),
        other => panic!("expected an offset ahead, found {other:?}"),
    }
    durable(subject, &topic, 0, b"new").await;
    assert_eq!(collect(&mut waiting, 1).await[0].offset, 3);
}

async fn positions_before_the_start_are_refused(subject: &Subject) {
    let Some(cut) = &subject.cut else {
        return;
    };
    let topic = filled(subject, 10).await;
    cut(topic.clone(), 0, 6).await;
    let span = subject.log.span(&topic, 0).await.expect("span");
    assert_eq!(span, Span { start: 6, end: 10 });
    match subject.log.reader(&topic, 0, 5).await.err() {
        Some(TopicError::OffsetGone { requested, start, .. }) => assert_eq!((requested, start), (5, 6)),
        other => panic!("expected an offset that is gone, found {other:?}"),
    }
    let rest = read_from(subject, &topic, 0, 6, 4).await;
    assert_eq!(rest[0].offset, 6);
    cut(topic.clone(), 0, 10).await;
    let span = subject.log.span(&topic, 0).await.expect("span");
    assert_eq!(span, Span { start: 10, end: 10 });
    durable(subject, &topic, 0, b"new").await;
    assert_eq!(read_from(subject, &topic, 0, 10, 1).await[0].offset, 10);
}

async fn large_messages_pass(subject: &Subject) {
    let topic = topic_of(subject, 1, 16 << 20).await;
    let large: Vec<u8> = (0..12u32 << 20).map(|i| (i % 251) as u8).collect();
    durable(subject, &topic, 0, b"before").await;
    durable(subject, &topic, 0, &large).await;
    durable(subject, &topic, 0, b"after").await;
    let all = read_from(subject, &topic, 0, 0, 3).await;
    assert_eq!(all[0].payload, b"before".as_slice());
    assert!(all[1].payload == large, "the large message changed");
    assert_eq!(all[2].payload, b"after".as_slice());
}

async fn a_message_over_the_limit_is_rejected_and_leaves_nothing(subject: &Subject) {
    let topic = topic_of(subject, 1, 2 << 20).await;
    let appender = subject.log.appender();
    let too_large = NewMessage::of(vec![0; 3 << 20]);
    let error = appender.append(&topic, 0, too_large).await.err();
    match &error {
        Some(TopicError::TooLarge { bytes, .. }) => assert_eq!(*bytes, 3 << 20),
        other => panic!("expected a message that is too large, found {other:?}"),
    }
    assert_eq!(error.map(|error| error.class()), Some(ErrorClass::Reject));
    appender.flush().await.expect("nothing was queued");
    durable(subject, &topic, 0, &vec![1; 2 << 20]).await;
    assert_eq!(read_from(subject, &topic, 0, 0, 1).await[0].payload.len(), 2 << 20);
}

async fn ten_thousand_messages_keep_their_order_per_partition(subject: &Subject) {
    let topic = topic(subject, 4).await;
    for number in 0..10_000 {
        let partition = (number * 7 % 4) as u32;
        drop(append(subject, &topic, partition, &text(number)).await);
    }
    subject.log.appender().flush().await.expect("flushed");
    for partition in 0..4 {
        let found = read_from(subject, &topic, partition, 0, 2_500).await;
        let expected = (0..10_000).filter(|number| number * 7 % 4 == u64::from(partition));
        assert!(
            found.iter().map(|message| &message.payload).eq(expected.map(text).collect::<Vec<_>>().iter()),
            "partition {partition} is not in order"
        );
    }
}

async fn bytes_come_back_as_they_went(subject: &Subject) {
    let topic = topic(subject, 1).await;
    let header = |name: &str, value: &[u8]| (name.to_owned(), Bytes::copy_from_slice(value));
    let messages = [
        NewMessage::default(),
        NewMessage { key: Some(Bytes::new()), timestamp_ms: Some(1_700_000_000_123), ..NewMessage::default() },
        NewMessage {
            key: Some(Bytes::from_static(&[0, 255, 10, 0])),
            payload: Bytes::from_static(&[0, 1, 2, 0, 255]),
            headers: vec![
                header("content", b"\x00\xff"),
                header("twice", b"first"),
                header("twice", b""),
                header("größe", b"unicode name"),
            ],
            timestamp_ms: Some(1),
        },
    ];
    for message in &messages {
        let appender = subject.log.appender();
        let receipt = appender.append(&topic, 0, message.clone()).await;
        receipt.expect("queued").await.expect("durable");
    }
    let found = read_from(subject, &topic, 0, 0, messages.len()).await;
    for (sent, found) in messages.into_iter().zip(found) {
        assert_eq!(found.key, sent.key);
        assert_eq!(found.payload, sent.payload);
        assert_eq!(found.headers, sent.headers);
        match sent.timestamp_ms {
            Some(timestamp_ms) => assert_eq!(found.timestamp_ms, timestamp_ms),
            None => assert!(found.timestamp_ms > 1_600_000_000_000, "{}", found.timestamp_ms),
        }
    }
}

async fn a_group_of_one_owns_everything(subject: &Subject) {
    let (first, second) = (topic(subject, 3).await, topic(subject, 2).await);
    let group = fresh_name().to_string();
    let mut member = join(subject, &group, &[&first, &second]).await;
    let expected = all_of(&[(&first, 3), (&second, 2)]);
    owns(&mut member, &expected).await;
    member.settle(vec![(first, 0, 7)]).await.expect("settling is never a failure here");
}

async fn two_members_share_and_the_one_who_stays_takes_over(subject: &Subject) {
    let topic = topic(subject, 4).await;
    let group = fresh_name().to_string();
    let everything = all_of(&[(&topic, 4)]);
    let mut first = join(subject, &group, &[&topic]).await;
    owns(&mut first, &everything).await;
    let mut second = join(subject, &group, &[&topic]).await;
    let (mut of_first, mut of_second) = (everything.clone(), BTreeSet::new());
    while !(of_first.len() == 2 && of_second.len() == 2) {
        tokio::select! {
            owned = first.changed() => of_first = owned.expect("changed"),
            owned = second.changed() => of_second = owned.expect("changed"),
        }
    }
    assert!(of_first.is_disjoint(&of_second));
    assert_eq!(&of_first | &of_second, everything);
    drop(first);
    owns(&mut second, &everything).await;
}

async fn a_member_follows_its_subscription(subject: &Subject) {
    let (first, second) = (topic(subject, 2).await, topic(subject, 1).await);
    let group = fresh_name().to_string();
    let mut member = join(subject, &group, &[&first]).await;
    owns(&mut member, &all_of(&[(&first, 2)])).await;
    let both = vec![first.clone(), second.clone()];
    member.subscribe(both).await.expect("subscribe");
    owns(&mut member, &all_of(&[(&first, 2), (&second, 1)])).await;
    member.subscribe(vec![second.clone()]).await.expect("subscribe");
    owns(&mut member, &all_of(&[(&second, 1)])).await;
}

async fn a_topic_made_later_is_taken_up(subject: &Subject) {
    let (there, later) = (topic(subject, 1).await, fresh_name());
    let group = fresh_name().to_string();
    let mut member = join(subject, &group, &[&there, &later]).await;
    owns(&mut member, &all_of(&[(&there, 1)])).await;
    let settings = TopicSettings { partitions: 2, ..TopicSettings::default() };
    subject.log.create(&later, &settings).await.expect("create");
    owns(&mut member, &all_of(&[(&there, 1), (&later, 2)])).await;
}

async fn a_topic_that_grows_keeps_what_it_has(subject: &Subject) {
    let topic = filled(subject, 3).await;
    let mut reader = open(subject, &topic, 0, 1).await;
    assert_eq!(collect(&mut reader, 2).await[0].offset, 1);
    let before = subject.log.describe(&topic).await.expect("describe").expect("there");
    assert_eq!(subject.log.grow(&topic, 3).await.expect("grown"), 3);
    let after = subject.log.describe(&topic).await.expect("describe").expect("there");
    assert_eq!((after.partitions, after.incarnation), (3, before.incarnation));
    // An open reader, its partition and the new ones all work on.
    assert_eq!(durable(subject, &topic, 0, b"more").await, 3);
    assert_eq!(collect(&mut reader, 1).await[0].offset, 3);
    for partition in [1, 2] {
        let span = subject.log.span(&topic, partition).await.expect("span");
        assert_eq!(span, Span { start: 0, end: 0 });
        assert_eq!(durable(subject, &topic, partition, b"new").await, 0);
        assert_eq!(read_from(subject, &topic, partition, 0, 1).await[0].payload, b"new".as_slice());
    }
}

async fn growing_to_fewer_partitions_changes_nothing(subject: &Subject) {
    let topic = topic(subject, 3).await;
    for partitions in [0, 2, 3] {
        assert_eq!(subject.log.grow(&topic, partitions).await.expect("asked"), 3);
    }
    match subject.log.grow(&fresh_name(), 3).await {
        Err(TopicError::UnknownTopic { .. }) => {}
        other => panic!("expected an unknown topic, found {other:?}"),
    }
    // Several may want the same growth at once.
    let wishes = (0..4).map(|_| subject.log.grow(&topic, 5));
    for grown in futures::future::join_all(wishes).await {
        assert_eq!(grown.expect("grown"), 5);
    }
}

async fn members_share_the_partitions_a_topic_gains(subject: &Subject) {
    let topic = topic(subject, 1).await;
    let mut member = join(subject, fresh_name().as_str(), &[&topic]).await;
    owns(&mut member, &all_of(&[(&topic, 1)])).await;
    subject.log.grow(&topic, 3).await.expect("grown");
    owns(&mut member, &all_of(&[(&topic, 3)])).await;
}

fn fresh_name() -> TopicName {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let nanos = since.map_or(0, |since| since.as_nanos());
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    TopicName::new(format!("contract.{nanos}.{number}")).expect("valid")
}

fn text(number: u64) -> Bytes {
    Bytes::from(format!("message {number}"))
}

async fn topic(subject: &Subject, partitions: u32) -> TopicName {
    topic_of(subject, partitions, 1 << 20).await
}

async fn topic_of(subject: &Subject, partitions: u32, max_message_bytes: usize) -> TopicName {
    let name = fresh_name();
    let settings = TopicSettings { partitions, max_message_bytes, ..TopicSettings::default() };
    let creation = subject.log.create(&name, &settings).await.expect("create");
    assert_eq!(creation, Creation::Created);
    name
}

/// A topic with one partition and so many messages.
async fn filled(subject: &Subject, messages: u64) -> TopicName {
    let topic = topic(subject, 1).await;
    for number in 0..messages {
        drop(append(subject, &topic, 0, &text(number)).await);
    }
    subject.log.appender().flush().await.expect("flushed");
    topic
}

async fn append(subject: &Subject, topic: &TopicName, partition: u32, payload: &[u8]) -> Receipt {
    let message = NewMessage::of(Bytes::copy_from_slice(payload));
    let appender = subject.log.appender();
    appender.append(topic, partition, message).await.expect("queued")
}

async fn durable(subject: &Subject, topic: &TopicName, partition: u32, payload: &[u8]) -> u64 {
    let receipt = append(subject, topic, partition, payload).await;
    receipt.await.expect("durable")
}

async fn open(subject: &Subject, topic: &TopicName, partition: u32, from: u64) -> Box<dyn Reader> {
    let reader = subject.log.reader(topic, partition, from).await;
    reader.expect("reader")
}

async fn read_from(subject: &Subject, topic: &TopicName, partition: u32, from: u64, messages: usize) -> Vec<Message> {
    let mut reader = open(subject, topic, partition, from).await;
    collect(&mut reader, messages).await
}

/// Reads exactly so many messages, and checks that offsets rise.
async fn collect(reader: &mut Box<dyn Reader>, messages: usize) -> Vec<Message> {
    let mut all: Vec<Message> = Vec::new();
    while all.len() < messages {
        let batch = reader.read(ALL).await.expect("read");
        assert!(!batch.is_empty(), "a read yields at least one message");
        all.extend(batch);
    }
    assert_eq!(all.len(), messages);
    assert!(all.is_sorted_by(|a, b| a.offset < b.offset), "offsets rise");
    all
}

async fn join(subject: &Subject, group: &str, topics: &[&TopicName]) -> Box<dyn Membership> {
    let topics = topics.iter().map(|topic| (*topic).clone()).collect();
    subject.log.join(group, topics).await.expect("joined")
}

/// Waits until this member owns exactly that.
async fn owns(member: &mut Box<dyn Membership>, expected: &BTreeSet<(TopicName, u32)>) {
    loop {
        let owned = member.changed().await.expect("changed");
        if owned == *expected {
            return;
        }
    }
}

fn all_of(topics: &[(&TopicName, u32)]) -> BTreeSet<(TopicName, u32)> {
    let all = topics.iter().flat_map(|(topic, partitions)| (0..*partitions).map(|p| ((*topic).clone(), p)));
    all.collect()
}
