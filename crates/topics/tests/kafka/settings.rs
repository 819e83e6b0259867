//! What is checked before anything is sent.

use delivery::ErrorClass;
use topics::kafka::KafkaLog;
use topics::{Log, NewMessage, TopicError, TopicName, TopicSettings};

use crate::{shared, with};

#[tokio::test]
async fn an_unknown_property_is_named_before_any_connection() {
    let config = with("127.0.0.1:1", &[("security.protocl", "ssl")]);
    let error = KafkaLog::connect(config).await.expect_err("refused");
    assert_eq!(error.class(), ErrorClass::Stop);
    assert!(error.to_string().contains("`security.protocl`"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_a_topic_would_refuse_is_refused_before_it_can_leave_a_gap() {
    let Some(brokers) = shared().await else {
        return;
    };
    let config = with(&brokers, &[("batch.size", "4000000")]);
    let log = KafkaLog::connect(config).await.expect("connected");
    let topic = TopicName::new("narrow").expect("valid");
    log.create(&topic, &TopicSettings::default()).await.expect("created");
    let error = log.appender().append(&topic, 0, NewMessage::of("x")).await.err();
    match error {
        Some(TopicError::Settings { reason, .. }) => assert!(reason.contains("batch.size"), "{reason}"),
        other => panic!("expected settings that do not fit, found {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_the_broker_refuses_come_back_with_its_reason() {
    let Some(brokers) = shared().await else {
        return;
    };
    let log = crate::connect(&brokers).await;
    let topic = TopicName::new("impossible").expect("valid");
    let settings = TopicSettings { partitions: 0, ..TopicSettings::default() };
    let error = log.create(&topic, &settings).await.expect_err("refused");
    assert!(matches!(error, TopicError::Settings { .. }), "{error:?}");
}
