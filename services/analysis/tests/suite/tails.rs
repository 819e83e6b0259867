//! Live rows of a channel.

use std::{sync::Arc, time::Duration};

use arrow::array::{Int64Array, RecordBatch, StringArray};
use batch::{Compression, Envelope, Port, encode, fingerprint, with_offsets};
use delivery::{Origin, Position, Totals, Writer};
use reqwest::Response;
use serde_json::{Value, json};
use topics::{Log, NewMessage, TopicName, TopicSettings, memory::MemoryLog};

use crate::{
    harness::{Shop, customers_stage},
    http::{Door, open},
};

struct Channel {
    shop: Shop,
    log: Arc<MemoryLog>,
    topic: TopicName,
    door: Door,
}

async fn channel(partitions: u32) -> Channel {
    let log = Arc::new(MemoryLog::new());
    let topic = TopicName::try_from(customers_stage().channel).unwrap();
    log.create(&topic, &TopicSettings { partitions, ..TopicSettings::default() }).await.unwrap();
    let shop = Shop::new(vec![customers_stage()]);
    let door = open(&shop, Arc::clone(&log) as Arc<dyn Log>).await;
    Channel { shop, log, topic, door }
}

impl Channel {
    /// One row per input offset, the offset as its id.
    async fn append(&self, partition: u32, writer: &str, from: u64, to: u64) {
        let ids: Vec<i64> = (from..to).map(|id| id as i64).collect();
        let names = ids.iter().map(|id| Some(format!("n{id}"))).collect::<StringArray>();
        let user = RecordBatch::try_new(
            customers_stage().schema,
            vec![Arc::new(Int64Array::from(ids.clone())), Arc::new(names)],
        )
        .unwrap();
        let relative = Int64Array::from_iter_values(ids.iter().map(|id| id - from as i64));
        let batch = with_offsets(&user, relative).unwrap();
        let envelope = Envelope {
            fingerprint: fingerprint(&batch.schema()),
            rows: batch.num_rows() as u32,
            event_time: None,
            watermark: None,
            origin: Origin::new(Writer::new(writer), Position::at(from), Position::at(to)).unwrap(),
            totals: Totals::default(),
            port: Port::Data,
            traceparent: None,
            bounds: Vec::new(),
        };
        let (headers, payload) = encode(&envelope, &batch, Compression::None).unwrap();
        self.append_raw(partition, NewMessage { payload, headers, ..NewMessage::default() }).await;
    }

    async fn append_raw(&self, partition: u32, message: NewMessage) {
        self.log.appender().append(&self.topic, partition, message).await.unwrap().await.unwrap();
    }

    async fn tail(&self, options: &str) -> Response {
        self.door.get(&format!("/v1/tail/shop/customers{options}")).await
    }
}

struct Lines {
    response: Response,
    bytes: Vec<u8>,
}

impl Lines {
    /// The next line; `None` at a proper end, an error when the transfer broke.
    async fn next(&mut self) -> Result<Option<Value>, reqwest::Error> {
        loop {
            if let Some(end) = self.bytes.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.bytes.drain(..=end).collect();
                return Ok(Some(serde_json::from_slice(&line).unwrap()));
            }
            let chunk = tokio::time::timeout(Duration::from_secs(10), self.response.chunk()).await;
            match chunk.expect("a line within ten seconds")? {
                Some(chunk) => self.bytes.extend_from_slice(&chunk),
                None => return Ok(None),
            }
        }
    }

    async fn ids(&mut self, count: usize) -> Vec<i64> {
        let mut ids = Vec::new();
        for _ in 0..count {
            ids.push(self.next().await.unwrap().unwrap()["customer_id"].as_i64().unwrap());
        }
        ids
    }
}

fn lines(response: Response) -> Lines {
    Lines { response, bytes: Vec::new() }
}

#[tokio::test]
async fn rows_appear_as_they_are_written() {
    let channel = channel(2).await;
    channel.append(0, "a", 0, 2).await;
    let mut tail = lines(channel.tail("").await);
    channel.append(1, "a", 2, 3).await;
    assert_eq!(tail.next().await.unwrap(), Some(json!({"customer_id": 2, "name": "n2"})));
    channel.append(0, "a", 2, 4).await;
    assert_eq!(tail.ids(2).await, [2, 3], "what was there before the tail began is left out");
}

#[tokio::test]
async fn a_tail_can_begin_at_the_start_or_at_an_offset_and_end_after_some_rows() {
    let channel = channel(1).await;
    for id in 0..5 {
        channel.append(0, "a", id, id + 1).await;
    }
    let mut all = lines(channel.tail("?from=start&limit=4").await);
    assert_eq!(all.ids(4).await, [0, 1, 2, 3]);
    assert_eq!(all.next().await.unwrap(), None, "it ends at its limit");
    let mut some = lines(channel.tail("?from=3&limit=2&positions=true").await);
    let expected = json!({"customer_id": 3, "name": "n3", "__partition": 0, "__offset": 3});
    assert_eq!(some.next().await.unwrap(), Some(expected));
}

#[tokio::test]
async fn what_a_writer_repeats_is_shown_once() {
    let channel = channel(1).await;
    channel.append(0, "a", 0, 3).await;
    channel.append(0, "a", 1, 5).await;
    channel.append(0, "a", 0, 5).await;
    channel.append(0, "b", 100, 101).await;
    let mut tail = lines(channel.tail("?from=start&limit=6").await);
    assert_eq!(tail.ids(6).await, [0, 1, 2, 3, 4, 100]);
}

#[tokio::test]
async fn a_gap_ends_the_tail_loudly() {
    let channel = channel(1).await;
    channel.append(0, "a", 0, 1).await;
    channel.append(0, "a", 5, 6).await;
    let mut tail = lines(channel.tail("?from=start").await);
    assert_eq!(tail.ids(1).await, [0]);
    let error = tail.next().await.unwrap().unwrap()["error"].as_str().unwrap().to_owned();
    assert!(error.contains("gap") && error.contains("expected position 1, found 5"), "{error}");
    tail.next().await.unwrap_err();
}

#[tokio::test]
async fn a_foreign_message_ends_the_tail_loudly() {
    let channel = channel(1).await;
    channel.append_raw(0, NewMessage { payload: "not ours".into(), ..NewMessage::default() }).await;
    let mut tail = lines(channel.tail("?from=start").await);
    let error = tail.next().await.unwrap().unwrap()["error"].as_str().unwrap().to_owned();
    assert!(error.contains("@0") && error.contains("missing"), "{error}");
}

#[tokio::test]
async fn a_stopping_service_ends_its_tails() {
    let channel = channel(1).await;
    let mut tail = lines(channel.tail("").await);
    drop(channel.shop);
    assert_eq!(tail.next().await.unwrap(), None);
    channel.door.group.stop().request();
    channel.door.group.finish(Duration::from_secs(10)).await.unwrap();
}

#[tokio::test]
async fn what_cannot_be_tailed_is_explained() {
    let channel = channel(1).await;
    assert_eq!(channel.tail("?from=yesterday").await.status(), 400);
    assert_eq!(channel.tail("?from=99").await.status(), 400);
    assert_eq!(channel.door.get("/v1/tail/shop/custmers").await.status(), 404);
    let elsewhere = open(&channel.shop, Arc::new(MemoryLog::new())).await;
    let missing = elsewhere.get("/v1/tail/shop/customers").await;
    assert_eq!((missing.status().as_u16(), missing.headers()["retry-after"].to_str().unwrap()), (503, "1"));
}

#[tokio::test]
async fn beyond_so_many_tails_the_next_is_turned_away() {
    let channel = channel(1).await;
    let mut tails = Vec::new();
    for _ in 0..64 {
        let tail = channel.tail("").await;
        assert_eq!(tail.status(), 200);
        tails.push(tail);
    }
    let refused = channel.tail("").await;
    assert_eq!((refused.status().as_u16(), refused.headers()["retry-after"].to_str().unwrap()), (429, "1"));
    drop(tails.pop());
    let place_is_free = async {
        while channel.tail("").await.status() != 200 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), place_is_free).await.unwrap();
}
