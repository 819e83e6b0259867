//! What happens when the broker goes away, comes back, or forgets.

use std::time::Duration;

use delivery::ErrorClass;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use topics::kafka::KafkaLog;
use topics::{Log, NewMessage, Receipt, TopicError, TopicName, TopicSettings};

use crate::{broker, config, connect, shared};

fn name(text: &str) -> TopicName {
    TopicName::new(text).expect("valid")
}

async fn append(log: &dyn Log, topic: &TopicName, text: String) -> Receipt {
    let message = NewMessage::of(text);
    log.appender().append(topic, 0, message).await.expect("queued")
}

#[tokio::test]
async fn no_broker_is_a_clear_error_that_may_pass() {
    let error = KafkaLog::connect(config("127.0.0.1:1")).await.expect_err("nobody there");
    assert_eq!(error.class(), ErrorClass::Retry);
    assert!(matches!(error, TopicError::Unreachable { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("127.0.0.1:1") && text.contains("`brokers`"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_killed_is_waited_for_without_gap_repeat_or_disorder() {
    let Some(mut kafka) = broker().await else {
        return;
    };
    let mut small = config(&kafka.brokers());
    small.max_inflight_bytes = 1 << 20;
    let log = KafkaLog::connect(small).await.expect("connected");
    let (topic, bulk) = (name("outage"), name("bulk"));
    for topic in [&topic, &bulk] {
        log.create(topic, &TopicSettings::default()).await.expect("created");
    }
    append(&log, &bulk, "known to the appender".to_owned()).await.await.expect("durable");
    let mut reader = log.reader(&topic, 0, 0).await.expect("reader");
    for number in 0..100 {
        append(&log, &topic, format!("{number}")).await.await.expect("durable");
    }
    // Queued while the broker dies: some arrive before, some after, none is acknowledged twice.
    let mut receipts = Vec::new();
    for number in 100..300 {
        receipts.push(append(&log, &topic, format!("{number}")).await);
        if number == 200 {
            kafka = tokio::task::spawn_blocking(move || {
                kafka.kill().expect("killed");
                kafka
            })
            .await
            .expect("killed");
        }
    }
    let silent = tokio::time::timeout(Duration::from_secs(2), log.appender().flush()).await;
    assert!(silent.is_err(), "flushed without a broker");
    let half = append(&log, &bulk, "x".repeat(600_000)).await;
    let too_much = append(&log, &bulk, "x".repeat(600_000));
    let waited = tokio::time::timeout(Duration::from_millis(500), too_much).await;
    assert!(waited.is_err(), "queued beyond the limit in bytes");
    let kafka = tokio::task::spawn_blocking(move || {
        kafka.restart().expect("restarted");
        kafka
    })
    .await
    .expect("restarted");
    for receipt in receipts {
        receipt.await.expect("durable after the outage");
    }
    half.await.expect("durable after the outage");
    let mut texts = Vec::new();
    while texts.len() < 300 {
        match reader.read(1 << 20).await {
            Ok(batch) => texts.extend(batch.into_iter().map(|message| message.payload)),
            Err(error) => assert_eq!(error.class(), ErrorClass::Retry, "{error:?}"),
        }
    }
    let expected: Vec<String> = (0..300).map(|number| number.to_string()).collect();
    assert_eq!(texts, expected);
    drop(kafka);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_retention_overtook_hears_of_it() {
    let Some(brokers) = shared().await else {
        return;
    };
    // So little is fetched ahead that the reader has to ask the broker again.
    let mut small = config(&brokers);
    small.fetch_bytes_per_partition = 1;
    let log = KafkaLog::connect(small).await.expect("connected");
    let topic = name("overtaken");
    log.create(&topic, &TopicSettings::default()).await.expect("created");
    for _ in 0..400 {
        append(&log, &topic, "x".repeat(10_000)).await.await.expect("durable");
    }
    let mut reader = log.reader(&topic, 0, 0).await.expect("reader");
    let first = reader.read(1).await.expect("read");
    assert_eq!(first[0].offset, 0);
    log.trim(&topic, 0, 400).await.expect("trimmed");
    let error = loop {
        match reader.read(1 << 20).await {
            Ok(batch) => assert!(batch[0].offset < 400),
            Err(error) => break error,
        }
    };
    match error {
        TopicError::OffsetGone { start, .. } => assert_eq!(start, 400),
        other => panic!("expected an offset that is gone, found {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_of_a_topic_that_is_deleted_hears_of_it() {
    let Some(brokers) = shared().await else {
        return;
    };
    let log = connect(&brokers).await;
    let topic = name("deleted");
    log.create(&topic, &TopicSettings::default()).await.expect("created");
    append(&log, &topic, "one".to_owned()).await.await.expect("durable");
    let mut reader = log.reader(&topic, 0, 0).await.expect("reader");
    assert_eq!(reader.read(1).await.expect("read")[0].offset, 0);
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", &brokers).create().expect("client");
    admin.delete_topics(&["deleted"], &AdminOptions::new()).await.expect("deleted");
    let error = loop {
        let read = tokio::time::timeout(Duration::from_secs(60), reader.read(1)).await;
        let error = read.expect("a word within a minute").expect_err("nothing to read");
        if error.class() != ErrorClass::Retry {
            break error;
        }
    };
    assert!(matches!(error, TopicError::UnknownTopic { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_hears_that_its_topic_was_created_again_and_gets_nothing_of_the_new_one() {
    let Some(brokers) = shared().await else {
        return;
    };
    let log = connect(&brokers).await;
    // Where the reader looks before the new topic has grown, it finds it too short; the other case is the bad one.
    for round in 0..8 {
        let topic = name(&format!("recreated-{round}"));
        log.create(&topic, &TopicSettings::default()).await.expect("created");
        for number in 0..3 {
            append(&log, &topic, format!("old {number}")).await.await.expect("durable");
        }
        let mut reader = log.reader(&topic, 0, 0).await.expect("reader");
        let mut seen = 0;
        while seen < 3 {
            seen += reader.read(1 << 20).await.expect("read").len();
        }
        recreate(&brokers, &topic).await;
        let error = loop {
            let read = tokio::time::timeout(Duration::from_secs(60), reader.read(1 << 20)).await;
            let error = read.expect("a word within a minute").expect_err("nothing of the new topic is read");
            if error.class() != ErrorClass::Retry || matches!(error, TopicError::Recreated { .. }) {
                break error;
            }
        };
        match error {
            TopicError::Recreated { topic: found } => return assert_eq!(found, topic),
            TopicError::OffsetAhead { .. } | TopicError::UnknownTopic { .. } => {}
            other => panic!("expected a recreated topic, found {other:?}"),
        }
    }
    panic!("the reader always looked too early");
}

/// Deletes a topic and makes another of the same name, with more in it.
async fn recreate(brokers: &str, topic: &TopicName) {
    let other = connect(brokers).await;
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", brokers).create().expect("client");
    admin.delete_topics(&[topic.as_str()], &AdminOptions::new()).await.expect("deleted");
    while other.create(topic, &TopicSettings::default()).await.expect("asked") != topics::Creation::Created {
        tokio::task::yield_now().await;
    }
    let mut receipts = Vec::new();
    for number in 0..10 {
        receipts.push(append(&other, topic, format!("new {number}")).await);
    }
    for receipt in receipts {
        receipt.await.expect("durable");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_is_committed_is_read_and_counted() {
    let Some(brokers) = shared().await else {
        return;
    };
    let log = connect(&brokers).await;
    let topic = name("transactions");
    log.create(&topic, &TopicSettings::default()).await.expect("created");
    let mut reader = log.reader(&topic, 0, 0).await.expect("reader");
    let user = tokio::task::spawn_blocking(move || a_commit_an_abort_and_a_commit(&brokers)).await.expect("written");
    let mut found = Vec::new();
    while found.len() < 4 {
        let batch = reader.read(1 << 20).await.expect("read");
        found.extend(batch.into_iter().map(|message| (message.offset, message.payload)));
    }
    let texts: Vec<_> = found.iter().map(|(_, text)| text.clone()).collect();
    assert_eq!(texts, ["first", "first", "second", "second"]);
    assert!(found[2].0 > found[1].0 + 1, "the aborted ones leave a hole: {found:?}");
    let span = log.span(&topic, 0).await.expect("span");
    assert!(span.end > found[3].0);
    // Something that is not committed yet is beyond the end.
    user.begin_transaction().expect("begun");
    user.send(BaseRecord::<(), str>::to("transactions").payload("open")).expect("queued");
    let user = tokio::task::spawn_blocking(move || {
        user.flush(Duration::from_secs(10)).expect("written");
        user
    });
    let user = user.await.expect("written");
    assert_eq!(log.span(&topic, 0).await.expect("span"), span);
    let read = tokio::time::timeout(Duration::from_millis(500), reader.read(1)).await;
    assert!(read.is_err(), "read what is not committed");
    drop(user);
}

fn a_commit_an_abort_and_a_commit(brokers: &str) -> BaseProducer {
    let wait = Duration::from_secs(30);
    let user: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("transactional.id", "a-user")
        .create()
        .expect("client");
    user.init_transactions(wait).expect("initialised");
    for (text, keep) in [("first", true), ("aborted", false), ("second", true)] {
        user.begin_transaction().expect("begun");
        for _ in 0..2 {
            user.send(BaseRecord::<(), str>::to("transactions").payload(text)).expect("queued");
        }
        user.flush(wait).expect("written");
        match keep {
            true => user.commit_transaction(wait).expect("committed"),
            false => user.abort_transaction(wait).expect("aborted"),
        }
    }
    user
}
