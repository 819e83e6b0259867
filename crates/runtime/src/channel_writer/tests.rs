#![allow(clippy::unwrap_used)]

use arrow::{
    array::{ArrayRef, Int64Array},
    datatypes::{DataType, Field, Schema},
};
use batch::decode_envelope;
use delivery::Ends;
use topics::{
    Log as _, TopicSettings,
    memory::{Fault, MemoryLog},
};

use super::*;
use crate::dead_letters::{DeadLetter, DeadLetters};

fn topic(name: &str) -> TopicName {
    TopicName::new(name).unwrap()
}

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("id", DataType::Int64, false)]))
}

fn writer(log: &MemoryLog, from: &Checkpoint) -> ChannelWriter {
    let target = |name: &str, schema| PortTarget { topic: topic(name), partition: 0, schema };
    let options = ChannelWriterOptions {
        writer: Writer::new("w/0"),
        data: target("data", schema()),
        rejected: target("rejected", pipeline::rejected_schema()),
        compression: Compression::None,
        max_message_bytes: 900_000,
        bounds: Vec::new(),
        event_time: None,
    };
    ChannelWriter::new(log.appender(), options, from)
}

async fn log() -> MemoryLog {
    let log = MemoryLog::new();
    for name in ["data", "rejected"] {
        log.create(&topic(name), &TopicSettings::default()).await.unwrap();
    }
    log
}

fn rows(ids: std::ops::Range<u64>) -> Rows {
    let ids: Vec<i64> = ids.map(|id| id as i64).collect();
    let column: ArrayRef = Arc::new(Int64Array::from(ids.clone()));
    Rows { batch: RecordBatch::try_new(schema(), vec![column]).unwrap(), offsets: Int64Array::from(ids) }
}

/// Unit `n` yields the one row `n`.
fn stretch(ids: std::ops::Range<u64>) -> Stretch {
    Stretch {
        to: Position::at(ids.end),
        totals: Totals { read: ids.end, emitted: ids.end, ..Totals::default() },
        data: rows(ids),
        rejected: None,
        watermark: None,
        traceparent: None,
    }
}

/// How far a reader of the data channel gets by the one rule.
async fn end(log: &MemoryLog) -> Position {
    let mut ends = Ends::default();
    let span = log.span(&topic("data"), 0).await.unwrap();
    if span.end > 0 {
        let mut reader = log.reader(&topic("data"), 0, 0).await.unwrap();
        for message in reader.read(usize::MAX).await.unwrap() {
            ends.accept(&decode_envelope(&message.headers).unwrap().origin).expect("no gap");
        }
    }
    ends.get(&Writer::new("w/0"))
}

#[tokio::test]
async fn a_failure_the_writer_has_not_seen_leaves_no_gap() {
    let log = log().await;
    log.set_faults(|attempt| match attempt.number {
        1 => Fault::DelayThenFail,
        _ => Fault::None,
    });
    let mut first = writer(&log, &Checkpoint::start());
    first.write(&stretch(0..3)).await.unwrap();
    first.write(&stretch(3..5)).await.unwrap();
    first.write(&stretch(5..6)).await.unwrap();
    // It fails between two writes: the writer looks only after it has queued the next message.
    assert_eq!(log.release(), 2);
    assert!(first.write(&stretch(6..9)).await.is_err());
    drop(first);
    assert_eq!(end(&log).await, Position::at(3));
    let mut second = writer(&log, &Checkpoint::start());
    second.write(&stretch(0..9)).await.unwrap();
    second.settle().await.unwrap();
    assert_eq!(end(&log).await, Position::at(9));
}

#[tokio::test]
async fn what_a_former_life_has_on_its_way_leaves_no_gap_in_the_next() {
    let log = log().await;
    log.set_faults(|attempt| match attempt.number {
        0 => Fault::DelayThenFail,
        _ => Fault::None,
    });
    let mut first = writer(&log, &Checkpoint::start());
    first.write(&stretch(0..3)).await.unwrap();
    drop(first);
    let mut second = writer(&log, &Checkpoint::start());
    second.write(&stretch(0..2)).await.unwrap();
    assert_eq!(log.release(), 2);
    assert!(second.write(&stretch(2..5)).await.is_err(), "its first message went with the one before it");
    drop(second);
    let mut third = writer(&log, &Checkpoint::start());
    third.write(&stretch(0..5)).await.unwrap();
    third.settle().await.unwrap();
    assert_eq!(end(&log).await, Position::at(5));
}

#[tokio::test]
async fn totals_of_rejected_rows_count_letters_and_never_go_back_where_a_stretch_is_cut() {
    let log = log().await;
    let letter = |offset| DeadLetter {
        topic: "orders".to_owned(),
        partition: 0,
        offset,
        line: None,
        column: None,
        reason: "too long to be one row".to_owned(),
        bytes: vec![b'x'; 1_200_000].into(),
        produced_at_ms: 0,
    };
    let letters: Vec<DeadLetter> = (0..4).map(letter).collect();
    let totals = Totals { read: 4, rejected: 4, ..Totals::default() };
    let rejected = DeadLetters::rows(&letters).unwrap();
    assert!(rejected.as_ref().is_some_and(|rows| rows.batch.num_rows() > 4), "a letter takes several rows");
    let mut writer = writer(&log, &Checkpoint::start());
    writer.write(&Stretch { to: Position::at(4), data: rows(0..0), rejected, totals, ..stretch(0..0) }).await.unwrap();
    let mut reader = log.reader(&topic("rejected"), 0, 0).await.unwrap();
    let messages = reader.read(usize::MAX).await.unwrap();
    let said: Vec<Totals> = messages.iter().map(|m| decode_envelope(&m.headers).unwrap().totals).collect();
    assert!(said.len() > 2 && said.is_sorted_by_key(|totals| totals.rejected), "{said:?}");
    assert!(said.iter().all(Totals::balanced) && said.last() == Some(&totals), "{said:?}");
}
