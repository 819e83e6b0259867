//! The HTTP door: every status, and that 200 means durable.

use std::{
    io::{Read as _, Write as _},
    pin::pin,
    sync::Arc,
};

use arrow::{array::Int64Array, record_batch::RecordBatch};
use batch::Compression;
use bytes::Bytes;
use ingestion::http::{Door, router};
use reqwest::{Client, RequestBuilder};
use runtime::{
    admin,
    catalog::{self, CatalogView},
    config::Config,
    memory::Memory,
    tasks::{Fate, TaskGroup},
    units::ByteSize,
};
use serde_json::{Value, json};
use tokio::sync::watch;
use topics::{
    Log, Message, TopicSettings,
    memory::{Fault, MemoryLog},
};

use crate::world::{apply_request, topic};

const SQL: &str =
    "CREATE SOURCE orders (id BIGINT NOT NULL, note VARCHAR) WITH (topic = 'shop.orders', format = 'json');
CREATE SOURCE lines (id BIGINT, note VARCHAR) WITH (format = 'csv', header = true);";

/// A door that listens.
pub(crate) struct Site {
    pub(crate) log: Arc<MemoryLog>,
    url: String,
    pub(crate) client: Client,
    group: TaskGroup,
    views: watch::Sender<Arc<CatalogView>>,
}

impl Site {
    async fn open() -> Self {
        let log = Arc::new(MemoryLog::new());
        catalog::apply(log.as_ref(), &apply_request(SQL)).await.unwrap();
        let replayed = catalog::read_all(log.as_ref()).await.unwrap();
        for source in &pipeline::compile(&replayed).unwrap().sources {
            let settings = TopicSettings { partitions: 2, ..TopicSettings::default() };
            log.create(&topic(&source.topic), &settings).await.unwrap();
        }
        Self::over(log).await
    }

    /// One of several doors to the same log.
    pub(crate) async fn over(log: Arc<MemoryLog>) -> Self {
        let replayed = catalog::read_all(log.as_ref()).await.unwrap();
        let graph = Arc::new(pipeline::compile(&replayed).unwrap());
        let (views, catalog) = watch::channel(Arc::new(CatalogView { catalog: replayed, graph, replayed: true }));
        let mut config = Config::default().ingestion;
        config.max_body_bytes = ByteSize::mebibytes(2);
        config.max_decompressed_bytes = ByteSize::mebibytes(4);
        let memory = Memory::new(config.memory.as_usize());
        let door = Door::new(Arc::clone(&log) as Arc<dyn Log>, catalog, &config, memory);
        let listener = admin::bind("127.0.0.1:0", "ingestion.listen").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let group = TaskGroup::new();
        let stop = group.stop();
        group.spawn(
            "http",
            Fate::Critical,
            async move { Ok(admin::serve(listener, router(Arc::new(door)), stop).await?) },
        );
        Self { log, url, client: Client::new(), group, views }
    }

    fn post(&self, path: &str) -> RequestBuilder {
        self.client.post(format!("{}{path}", self.url))
    }

    pub(crate) fn orders(&self, content_type: &str, body: impl Into<reqwest::Body>) -> RequestBuilder {
        self.post("/v1/ingest/shop/orders").header("content-type", content_type).body(body)
    }

    async fn messages(&self, name: &str) -> Vec<Message> {
        let mut messages = Vec::new();
        for partition in 0..2 {
            let span = self.log.span(&topic(name), partition).await.unwrap();
            let mut reader = self.log.reader(&topic(name), partition, span.start).await.unwrap();
            let mut next = span.start;
            while next < span.end {
                let read = reader.read(64 << 20).await.unwrap();
                next = read.last().unwrap().offset + 1;
                messages.extend(read);
            }
        }
        messages
    }

    async fn bodies(&self) -> Vec<Bytes> {
        self.messages("shop.orders").await.into_iter().map(|message| message.payload).collect()
    }

    pub(crate) async fn close(self) {
        drop(self.client);
        self.group.finish(std::time::Duration::from_secs(10)).await.unwrap();
    }
}

pub(crate) async fn answer(request: RequestBuilder) -> (u16, Value) {
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    let body = response.bytes().await.unwrap();
    (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test]
async fn what_is_posted_is_in_the_topic_when_the_answer_comes() {
    let site = Site::open().await;
    let (status, body) = answer(site.orders("application/json", "{\"id\":1}{\"id\":2}")).await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(body["bytes"], 16);
    assert_eq!(body["parts"], json!([{"topic": "shop.orders", "partition": 0, "offset": 0}]));
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let request = site.orders("application/json", "[{\"id\":3},{\"id\":4}]").header("traceparent", trace);
    let (status, body) = answer(request).await;
    assert_eq!((status, &body["parts"][0]["partition"]), (200, &json!(1)), "partitions take turns");
    let messages = site.messages("shop.orders").await;
    assert_eq!(messages[0].payload, "{\"id\":1}{\"id\":2}");
    assert_eq!(messages[1].payload, "{\"id\":3}\n{\"id\":4}\n");
    let header = |name: &str| messages[1].headers.iter().find(|(of, _)| of == name).unwrap().1.clone();
    assert_eq!((header("content-type"), header("traceparent")), ("application/json".into(), trace.into()));
    site.close().await;
}

#[tokio::test]
async fn a_process_that_has_just_started_waits_for_the_catalog_before_it_calls_a_source_unknown() {
    let site = Site::open().await;
    let replayed = site.views.send_replace(Arc::default());
    let waiting_before = site.views.receiver_count();
    let mut sent = pin!(answer(site.orders("application/json", "{\"id\":1}")));
    while site.views.receiver_count() == waiting_before {
        tokio::select! {
            early = &mut sent => panic!("answered {early:?} before the catalog was there"),
            () = tokio::task::yield_now() => {}
        }
    }
    site.views.send_replace(replayed);
    let (status, body) = sent.await;
    assert_eq!(status, 200, "{body}");
    site.close().await;
}

#[tokio::test]
async fn every_format_and_packing_is_taken() {
    let site = Site::open().await;
    let numbers = RecordBatch::try_from_iter([("id", Arc::new(Int64Array::from(vec![1, 2])) as _)]).unwrap();
    let stream = batch::encode_stream(&numbers, Compression::None).unwrap();
    let lines = "{\"id\":1}\n{\"id\":2}\n";
    let packed = zstd::encode_all(lines.as_bytes(), 3).unwrap();
    for (request, stored) in [
        (site.orders("application/x-ndjson", lines), Some(lines)),
        (site.orders("text/csv; header=present", "id\n1\n"), Some("id\n1\n")),
        (site.orders("application/vnd.apache.arrow.stream", stream), None),
        (site.orders("application/x-ndjson", gzip(lines.as_bytes())).header("content-encoding", "gzip"), Some(lines)),
        (site.orders("application/x-ndjson", packed).header("content-encoding", "zstd"), Some(lines)),
        (site.post("/v1/ingest/shop/orders").body("{\"id\":9}"), Some("{\"id\":9}")),
    ] {
        let before = site.bodies().await.len();
        let (status, body) = answer(request).await;
        assert_eq!(status, 200, "{body}");
        let bodies = site.bodies().await;
        assert_eq!(bodies.len(), before + 1);
        assert!(stored.is_none_or(|stored| bodies.iter().any(|body| body == stored)));
    }
    let (status, _) = answer(site.post("/v1/ingest/shop/lines").body("id,note\n1,a\n")).await;
    assert_eq!(status, 200);
    let landed = site.messages("tailwater.landing.shop.lines").await;
    assert_eq!(landed[0].headers[0].1, "text/csv; header=present", "the source's own format");
    site.close().await;
}

#[tokio::test]
async fn a_large_body_is_spread_in_parts_and_nothing_is_lost() {
    let site = Site::open().await;
    let lines: String = (0..60_000).map(|id| format!("{{\"id\":{id},\"note\":\"a note\"}}\n")).collect();
    let (status, body) =
        answer(site.orders("application/x-ndjson", gzip(lines.as_bytes())).header("content-encoding", "gzip")).await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(body["bytes"], lines.len());
    assert!(body["parts"].as_array().unwrap().len() > 2);
    let bodies = site.bodies().await;
    assert_eq!(bodies.iter().map(Bytes::len).sum::<usize>(), lines.len());
    let rows: usize = bodies.iter().map(|body| body.iter().filter(|&&byte| byte == b'\n').count()).sum();
    assert_eq!(rows, 60_000);
    site.close().await;
}

#[tokio::test]
async fn what_cannot_be_taken_is_refused_with_a_reason_and_leaves_nothing() {
    let site = Site::open().await;
    let bomb = gzip(&vec![b' '; 64 << 20]);
    let zstd_bomb = zstd::encode_all(std::io::repeat(b' ').take(64 << 20), 3).unwrap();
    let torn = gzip(b"{\"id\":1}");
    let torn = torn[..torn.len() - 9].to_vec();
    let whole = zstd::encode_all(&b"{\"id\":1}"[..], 3).unwrap();
    let torn_zstd = whole[..whole.len() - 2].to_vec();
    let json = "application/json";
    for (request, status, says) in [
        (site.post("/v1/ingest/shopp/orders").body("{}"), 404, "did you mean `shop`?"),
        (site.post("/v1/ingest/shop/order").body("{}"), 404, "did you mean `orders`?"),
        (site.post("/v1/ingest/shop/zzzzzz").body("{}"), 404, "there is: lines, orders"),
        (site.orders(json, ""), 400, "empty"),
        (site.orders(json, " \n "), 400, "empty"),
        (site.orders("application/pdf", "x"), 400, "application/pdf"),
        (site.orders("application/x-www-form-urlencoded", "{}"), 400, "application/json"),
        (site.orders(json, "{}").header("content-encoding", "br"), 400, "`br`"),
        (site.orders(json, "not gzip").header("content-encoding", "gzip"), 400, "Gzip"),
        (site.orders(json, torn).header("content-encoding", "gzip"), 400, "Gzip"),
        (site.orders(json, "not zstd").header("content-encoding", "zstd"), 400, "Zstd"),
        (site.orders(json, torn_zstd).header("content-encoding", "zstd"), 400, "Zstd"),
        (site.orders(json, "[{\"id\":1},"), 400, "JSON array"),
        (site.orders("application/vnd.apache.arrow.stream", "no"), 400, "Arrow"),
        (site.orders(json, vec![b' '; 3 << 20]), 413, "max_body_bytes"),
        (site.orders(json, bomb).header("content-encoding", "gzip"), 413, "max_decompressed_bytes"),
        (site.orders(json, zstd_bomb).header("content-encoding", "zstd"), 413, "max_decompressed_bytes"),
        (site.orders(json, format!("{{\"note\":\"{}\"}}", "x".repeat(1_100_000))), 413, "larger than"),
    ] {
        let (found, body) = answer(request).await;
        assert_eq!(found, status, "{says}: {body}");
        assert!(body.to_string().contains(says), "{says}: {body}");
        assert!(body["error"].is_string() && body["hint"].is_string());
        assert_eq!((&body["retry"], &body["stored"]), (&json!(false), &json!("nothing")));
    }
    assert_eq!(site.bodies().await.len(), 0);
    site.close().await;
}

#[tokio::test]
async fn a_body_of_unknown_length_is_stopped_while_it_arrives() {
    let site = Site::open().await;
    let endless = futures::stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from(vec![b' '; 64 << 10])));
    let request = site.orders("application/json", reqwest::Body::wrap_stream(endless)).send();
    // The server may close before the client has noticed the answer; it must not read on for ever.
    if let Ok(response) = request.await {
        assert_eq!(response.status(), 413);
    }
    site.close().await;
}

#[tokio::test]
async fn a_failing_log_is_a_503_that_may_be_tried_again() {
    let site = Site::open().await;
    for fault in [Fault::FailBefore, Fault::FailAfter] {
        site.log.set_faults(move |_| fault);
        let (status, body) = answer(site.orders("application/json", "{\"id\":1}")).await;
        assert_eq!((status, &body["retry"], &body["stored"]), (503, &json!(true), &json!("unknown")), "{body}");
    }
    site.log.clear_faults();
    site.log.delete(&topic("tailwater.landing.shop.lines"));
    let (status, body) = answer(site.post("/v1/ingest/shop/lines").body("id\n1\n")).await;
    assert_eq!((status, &body["retry"]), (503, &json!(true)), "{body}");
    site.close().await;
}

#[tokio::test]
async fn sources_are_listed() {
    let site = Site::open().await;
    let (status, body) = answer(site.client.get(format!("{}/v1/sources", site.url))).await;
    assert_eq!(status, 200);
    let orders = body.as_array().unwrap().iter().find(|source| source["name"] == "orders").unwrap();
    assert_eq!(orders["topic"], "shop.orders");
    assert_eq!(orders["ingest"], "/v1/ingest/shop/orders");
    assert_eq!(orders["columns"][0], json!({"name": "id", "type": "Int64", "nullable": false}));
    site.close().await;
}

#[tokio::test]
async fn the_catalog_is_changed_over_http() {
    let site = Site::open().await;
    let apply = |pipeline: &str, sql: &str, dry_run: bool| {
        let files = json!([{"file": "a.sql", "text": sql}]);
        site.post("/v1/catalog").json(&json!({"pipeline": pipeline, "files": files, "dry_run": dry_run}))
    };
    let sql = "CREATE SOURCE events (id BIGINT);";
    let (status, body) = answer(apply("other", sql, true)).await;
    assert_eq!((status, &body["changed"]), (200, &json!(false)), "{body}");
    let (status, body) = answer(apply("other", sql, false)).await;
    assert_eq!((status, &body["changed"], &body["version"]), (200, &json!(true), &json!(2)), "{body}");
    let (status, body) = answer(apply("other", "CREATE SOURCE events (id BIGNIT);", false)).await;
    assert_eq!(status, 400, "{body}");
    let (status, body) = answer(apply("shop", sql, false)).await;
    assert_eq!(status, 409, "dropping needs a permission: {body}");
    assert!(body["plan"].is_string());
    let (status, body) = answer(site.post("/v1/catalog").json(&json!({"pipelin": "x"}))).await;
    assert_eq!(status, 422, "{body}");
    assert!(body["hint"].as_str().unwrap().contains("pipeline"));
    site.close().await;
}
