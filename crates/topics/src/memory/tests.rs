#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicBool, Ordering};

use futures::FutureExt;

use crate::contract::{Subject, run_all};

use super::*;

fn subject() -> Subject {
    let log = MemoryLog::new();
    let cut = log.clone();
    let subject = Subject::of(log.clone()).with_cut(move |topic, partition, before| {
        cut.trim(&topic, partition, before).unwrap();
        std::future::ready(())
    });
    subject.with_fail(move |topic, partition| {
        fail_next(&log, topic, partition);
        let log = log.clone();
        move || assert_eq!(log.release(), 5, "the one that fails, and those behind it")
    })
}

/// The next append to a partition fails once it is released.
fn fail_next(log: &MemoryLog, topic: TopicName, partition: u32) {
    let failed = AtomicBool::new(false);
    log.set_faults(move |attempt| {
        let ours = *attempt.topic == topic && attempt.partition == partition;
        if ours && !failed.swap(true, Ordering::SeqCst) { Fault::DelayThenFail } else { Fault::None }
    });
}

#[tokio::test]
async fn the_memory_log_keeps_the_contract() {
    run_all(|| std::future::ready(subject())).await;
}

async fn one_topic(log: &MemoryLog) -> TopicName {
    let topic = TopicName::new("a").unwrap();
    log.create(&topic, &TopicSettings::default()).await.unwrap();
    topic
}

async fn append(log: &MemoryLog, topic: &TopicName, text: &'static str) -> Receipt {
    let message = NewMessage::of(text);
    log.appender().append(topic, 0, message).await.unwrap()
}

async fn texts(log: &MemoryLog, topic: &TopicName) -> Vec<String> {
    let end = log.span(topic, 0).await.unwrap().end;
    if end == 0 {
        return Vec::new();
    }
    let mut reader = log.reader(topic, 0, 0).await.unwrap();
    let batch = reader.read(usize::MAX).await.unwrap();
    let text = |message: Message| String::from_utf8(message.payload.to_vec()).unwrap();
    batch.into_iter().map(text).collect()
}

#[tokio::test]
async fn a_failure_before_the_effect_leaves_nothing_and_one_after_it_leaves_the_message() {
    let log = MemoryLog::new();
    let topic = one_topic(&log).await;
    log.set_faults(|attempt| match attempt.number {
        0 => Fault::FailBefore,
        1 => Fault::FailAfter,
        2 => Fault::Duplicate,
        _ => Fault::None,
    });
    let before = append(&log, &topic, "before").await.await;
    let after = append(&log, &topic, "after").await.await;
    assert!(matches!(before, Err(TopicError::AppendFailed { .. })));
    assert!(matches!(after, Err(TopicError::AppendFailed { .. })));
    assert_eq!(append(&log, &topic, "twice").await.await.unwrap(), 1);
    assert_eq!(append(&log, &topic, "fine").await.await.unwrap(), 3);
    assert_eq!(texts(&log, &topic).await, ["after", "twice", "twice", "fine"]);
    let flushed = log.appender().flush().await;
    assert!(flushed.is_err(), "a flush tells of a failure nobody may have seen");
    assert!(log.appender().flush().await.is_ok());
}

#[tokio::test]
async fn a_delayed_message_holds_back_its_partition_and_no_order_is_lost() {
    let log = MemoryLog::new();
    let topic = one_topic(&log).await;
    log.set_faults(|attempt| match attempt.number {
        1 => Fault::Delay,
        _ => Fault::None,
    });
    append(&log, &topic, "one").await.await.unwrap();
    let mut delayed = append(&log, &topic, "two").await;
    let mut behind = append(&log, &topic, "three").await;
    assert!((&mut delayed).now_or_never().is_none());
    assert!((&mut behind).now_or_never().is_none());
    let appender = log.appender();
    let mut flush = appender.flush();
    assert!(flush.as_mut().now_or_never().is_none());
    assert_eq!(texts(&log, &topic).await, ["one"]);
    assert_eq!(log.release(), 2);
    assert_eq!((delayed.await.unwrap(), behind.await.unwrap()), (1, 2));
    flush.await.unwrap();
    assert_eq!(texts(&log, &topic).await, ["one", "two", "three"]);
}

#[tokio::test]
async fn appends_wait_while_too_many_bytes_are_in_flight() {
    let log = MemoryLog::with_max_inflight_bytes(MESSAGE_OVERHEAD_BYTES + 10);
    let topic = one_topic(&log).await;
    log.set_faults(|_| Fault::Delay);
    let first = append(&log, &topic, "0123456789").await;
    let appender = log.appender();
    let mut second = appender.append(&topic, 0, NewMessage::of("x"));
    assert!(second.as_mut().now_or_never().is_none());
    log.clear_faults();
    log.release();
    first.await.unwrap();
    assert_eq!(second.await.unwrap().await.unwrap(), 1);
}

#[tokio::test]
async fn a_topic_made_again_has_another_incarnation_and_ends_old_readers() {
    let log = MemoryLog::new();
    let topic = one_topic(&log).await;
    let first = log.describe(&topic).await.unwrap().unwrap();
    let mut reader = log.reader(&topic, 0, 0).await.unwrap();
    assert!(log.delete(&topic));
    one_topic(&log).await;
    let second = log.describe(&topic).await.unwrap().unwrap();
    assert_ne!(first.incarnation, second.incarnation);
    let read = reader.read(1).await;
    assert!(matches!(read, Err(TopicError::UnknownTopic { .. })));
}

#[tokio::test]
async fn a_reader_that_retention_overtook_hears_of_it() {
    let log = MemoryLog::new();
    let topic = one_topic(&log).await;
    let mut reader = log.reader(&topic, 0, 0).await.unwrap();
    for text in ["one", "two", "three"] {
        append(&log, &topic, text).await.await.unwrap();
    }
    log.trim(&topic, 0, 2).unwrap();
    let read = reader.read(1).await;
    assert!(matches!(read, Err(TopicError::OffsetGone { requested: 0, start: 2, .. })));
}

#[tokio::test]
async fn the_same_calls_give_the_same_log() {
    let run = || async {
        let log = MemoryLog::with_clock(|| 42);
        let topic = one_topic(&log).await;
        log.set_faults(|attempt| match attempt.number % 3 {
            1 => Fault::Duplicate,
            2 => Fault::FailAfter,
            _ => Fault::None,
        });
        for text in ["a", "b", "c", "d", "e"] {
            drop(append(&log, &topic, text).await.await);
        }
        let mut reader = log.reader(&topic, 0, 0).await.unwrap();
        reader.read(usize::MAX).await.unwrap()
    };
    let (first, second) = (run().await, run().await);
    assert_eq!(first, second);
    assert!(first.iter().all(|message| message.timestamp_ms == 42));
}

#[tokio::test]
async fn a_failure_breaks_its_partition_until_it_was_seen_and_no_other() {
    let log = MemoryLog::new();
    let (topic, other) = (one_topic(&log).await, TopicName::new("b").unwrap());
    log.create(&other, &TopicSettings::default()).await.unwrap();
    log.set_faults(|attempt| if attempt.number == 1 { Fault::FailBefore } else { Fault::None });
    append(&log, &topic, "one").await.await.unwrap();
    let failed = append(&log, &topic, "two").await;
    let refused = async || log.appender().append(&topic, 0, NewMessage::of("three")).await.is_err();
    assert!(refused().await && refused().await, "nobody has seen the failure");
    append(&log, &other, "elsewhere").await.await.unwrap();
    let process = log.reconnected();
    append(&process, &topic, "of another process").await.await.unwrap();
    assert!(failed.await.is_err());
    append(&log, &topic, "four").await.await.unwrap();
    assert_eq!(texts(&log, &topic).await, ["one", "of another process", "four"]);
}

#[tokio::test]
async fn a_receipt_that_is_dropped_counts_as_seen() {
    let log = MemoryLog::new();
    let topic = one_topic(&log).await;
    log.set_faults(|attempt| if attempt.number == 0 { Fault::FailAfter } else { Fault::None });
    drop(append(&log, &topic, "one").await);
    append(&log, &topic, "two").await.await.unwrap();
    assert_eq!(texts(&log, &topic).await, ["one", "two"]);
}

#[tokio::test]
async fn another_process_overtakes_what_is_delayed() {
    let log = MemoryLog::new();
    let topic = one_topic(&log).await;
    log.set_faults(|attempt| if attempt.number == 0 { Fault::Delay } else { Fault::None });
    let delayed = append(&log, &topic, "late").await;
    append(&log.reconnected(), &topic, "early").await.await.unwrap();
    assert_eq!(log.release_where(|_, _| false), 0);
    assert_eq!(log.release_where(|name, partition| *name == topic && partition == 0), 1);
    assert_eq!(delayed.await.unwrap(), 1);
    assert_eq!(texts(&log, &topic).await, ["early", "late"]);
}

#[tokio::test]
async fn a_lost_message_is_acknowledged_and_nowhere() {
    let log = MemoryLog::new();
    let topic = one_topic(&log).await;
    log.set_faults(|attempt| if attempt.number == 0 { Fault::Lose } else { Fault::None });
    append(&log, &topic, "lost").await.await.unwrap();
    append(&log, &topic, "kept").await.await.unwrap();
    assert_eq!(texts(&log, &topic).await, ["kept"]);
}
