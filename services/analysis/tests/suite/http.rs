//! The HTTP door, through a real listener and a real client.

use std::{sync::Arc, time::Duration};

use analysis::{AnalysisState, QueryLimits, Tails};
use arrow::{array::RecordBatch, ipc::reader::StreamReader};
use reqwest::{Client, Response, StatusCode};
use runtime::tasks::{Fate, TaskGroup};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use topics::{Log, memory::MemoryLog};

use crate::harness::{Shop, limits, orders, orders_stage, small_shop, write};

pub(crate) struct Door {
    pub(crate) url: String,
    pub(crate) client: Client,
    pub(crate) group: TaskGroup,
}

pub(crate) async fn open(shop: &Shop, log: Arc<dyn Log>) -> Door {
    let (queries, catalog) = (Arc::clone(&shop.queries), shop.catalog.subscribe());
    let state = AnalysisState { queries, log, tails: Tails::default(), catalog };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let group = TaskGroup::new();
    let (stop, router) = (group.stop(), analysis::api::router(state));
    group.spawn("http", Fate::Critical, async move { Ok(runtime::admin::serve(listener, router, stop).await?) });
    Door { url, client: Client::new(), group }
}

async fn door(shop: &Shop) -> Door {
    open(shop, Arc::new(MemoryLog::new())).await
}

impl Door {
    async fn sql(&self, sql: &str) -> Response {
        self.client.post(format!("{}/v1/sql", self.url)).body(sql.to_owned()).send().await.unwrap()
    }

    async fn sql_as(&self, format: &str, sql: &str) -> Response {
        let url = format!("{}/v1/sql?format={format}", self.url);
        self.client.post(url).body(sql.to_owned()).send().await.unwrap()
    }

    async fn ask(&self, question: Value) -> Response {
        self.client.post(format!("{}/v1/sql", self.url)).json(&question).send().await.unwrap()
    }

    pub(crate) async fn get(&self, path: &str) -> Response {
        self.client.get(format!("{}{path}", self.url)).send().await.unwrap()
    }
}

fn header(response: &Response, name: &str) -> String {
    response.headers().get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default()
}

const TWO_ORDERS: &str = "SELECT order_id, amount, country, ordered_at FROM orders WHERE order_id IN (1, 2) ORDER BY 1";

#[tokio::test]
async fn json_is_one_document_with_columns_and_rows() {
    let door = door(&small_shop().await).await;
    let response = door.sql(TWO_ORDERS).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(header(&response, "content-type"), "application/json");
    assert!(header(&response, analysis::SNAPSHOT_HEADER).starts_with("shop.orders@"));
    let expected = concat!(
        r#"{"columns":[{"name":"order_id","type":"Int64"},{"name":"amount","type":"Decimal128(12, 2)"},"#,
        r#"{"name":"country","type":"Utf8"},{"name":"ordered_at","type":"Timestamp(µs, \"UTC\")"}],"rows":["#,
        "\n",
        r#"[1,0.01,"ES","1970-01-01T00:01:00Z"],"#,
        "\n",
        r#"[2,0.02,null,"1970-01-01T00:02:00Z"]],"row_count":2}"#,
        "\n"
    );
    assert_eq!(response.text().await.unwrap(), expected);
}

#[tokio::test(start_paused = true)]
async fn a_process_that_has_not_read_the_catalog_yet_does_not_call_a_table_unknown() {
    let shop = small_shop().await;
    let door = door(&shop).await;
    let replayed = shop.catalog.send_replace(Arc::default());
    for response in [door.sql(TWO_ORDERS).await, door.get("/v1/tables/shop/orders").await] {
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(header(&response, "retry-after"), "1");
    }
    shop.catalog.send_replace(replayed);
    assert_eq!(door.sql(TWO_ORDERS).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn ndjson_is_an_object_a_line() {
    let door = door(&small_shop().await).await;
    let response = door.sql_as("ndjson", TWO_ORDERS).await;
    assert_eq!(header(&response, "content-type"), "application/x-ndjson");
    let expected = concat!(
        r#"{"order_id":1,"amount":0.01,"country":"ES","ordered_at":"1970-01-01T00:01:00Z"}"#,
        "\n",
        r#"{"order_id":2,"amount":0.02,"country":null,"ordered_at":"1970-01-01T00:02:00Z"}"#,
        "\n"
    );
    assert_eq!(response.text().await.unwrap(), expected);
}

#[tokio::test]
async fn csv_has_a_header_and_empty_nulls() {
    let door = door(&small_shop().await).await;
    let expected = "order_id,amount,country,ordered_at\n1,0.01,ES,1970-01-01T00:01:00Z\n2,0.02,,1970-01-01T00:02:00Z\n";
    assert_eq!(door.sql_as("csv", TWO_ORDERS).await.text().await.unwrap(), expected);
    let none = door.sql_as("csv", "SELECT order_id FROM orders WHERE order_id < 0").await;
    assert_eq!(none.text().await.unwrap(), "order_id\n");
}

#[tokio::test]
async fn a_table_is_for_people() {
    let door = door(&small_shop().await).await;
    let expected = concat!(
        " order_id | amount | country | ordered_at\n",
        "----------+--------+---------+----------------------\n",
        " 1        | 0.01   | ES      | 1970-01-01T00:01:00Z\n",
        " 2        | 0.02   |         | 1970-01-01T00:02:00Z\n",
        "(2 rows)\n"
    );
    assert_eq!(door.sql_as("table", TWO_ORDERS).await.text().await.unwrap(), expected);
    let none = door.sql_as("table", "SELECT order_id FROM orders WHERE order_id < 0").await;
    assert_eq!(none.text().await.unwrap(), " order_id\n----------\n(0 rows)\n");
}

#[tokio::test]
async fn arrow_is_an_ipc_stream_of_plain_types() {
    let door = door(&small_shop().await).await;
    let bytes = door.sql_as("arrow", "SELECT * FROM orders ORDER BY order_id").await.bytes().await.unwrap();
    let reader = StreamReader::try_new(bytes.as_ref(), None).unwrap();
    assert_eq!(reader.schema(), orders_stage().schema);
    let batches: Vec<RecordBatch> = reader.map(Result::unwrap).collect();
    assert_eq!(arrow::compute::concat_batches(&orders_stage().schema, &batches).unwrap(), orders(0..40));
    let none = door.sql_as("arrow", "SELECT * FROM orders WHERE false").await.bytes().await.unwrap();
    let mut none = StreamReader::try_new(none.as_ref(), None).unwrap();
    assert_eq!((none.schema(), none.next().is_none()), (orders_stage().schema, true));
}

#[tokio::test]
async fn the_format_may_stand_in_the_accept_header_or_the_question() {
    let door = door(&small_shop().await).await;
    let accepted = |accept: &'static str| {
        let request = door.client.post(format!("{}/v1/sql", door.url)).header("accept", accept).body("SELECT 1 AS one");
        async move { request.send().await.unwrap().text().await.unwrap() }
    };
    assert_eq!(accepted("text/csv").await, "one\n1\n");
    assert_eq!(accepted("application/x-ndjson; q=0.9, */*").await, "{\"one\":1}\n");
    assert!(accepted("*/*").await.starts_with("{\"columns\""));
    let asked = door.ask(json!({"sql": "SELECT $1 AS one", "params": ["x"], "format": "csv"})).await;
    assert_eq!(asked.text().await.unwrap(), "one\nx\n");
}

async fn error_of(response: Response) -> (u16, Value) {
    (response.status().as_u16(), response.json().await.unwrap())
}

#[tokio::test]
async fn errors_before_the_first_row_have_a_status_and_a_body() {
    let shop = Shop::with_limits(vec![orders_stage()], QueryLimits { query_memory: 1 << 20, ..limits() });
    let door = door(&shop).await;
    let (status, error) = error_of(door.sql("SELECT 1,\n ordr_id FROM orders").await).await;
    let expected =
        json!({"error": "column `ordr_id` is not there", "hint": "did you mean `order_id`?", "line": 2, "column": 2});
    assert_eq!((status, error), (400, expected));
    assert_eq!(error_of(door.sql("DROP TABLE orders").await).await.0, 400);
    assert_eq!(error_of(door.sql_as("xml", "SELECT 1").await).await.0, 400);
    let nested = "SELECT 1 AS one, array_agg(order_id) AS ids FROM orders";
    let (status, error) = error_of(door.sql_as("csv", nested).await).await;
    assert_eq!((status, error["hint"].as_str().is_some_and(|hint| hint.contains("cast"))), (400, true), "{error}");
    assert_eq!(door.sql_as("json", nested).await.status(), StatusCode::OK);
    assert_eq!(error_of(door.ask(json!({"sql": "SELECT 1", "limit": 3})).await).await.0, 400);
    assert_eq!(error_of(door.get("/v1/tables/shop/ordres").await).await.0, 404);
    let memory = "SELECT value, count(*) FROM generate_series(1, 2000000) GROUP BY 1";
    assert_eq!(error_of(door.sql(memory).await).await.0, 413);
    assert_eq!(error_of(door.sql(&"x".repeat(3 << 20)).await).await.0, 413);
    let slow = json!({"sql": "SELECT count(a.value + b.value) FROM generate_series(1, 100000) a, \
                      generate_series(1, 100000) b", "timeout_ms": 50});
    let roomy = self::door(&small_shop().await).await;
    assert_eq!(error_of(roomy.ask(slow).await).await.0, 408);
    let get = door.client.get(format!("{}/v1/sql", door.url)).send().await.unwrap();
    assert_eq!(get.status(), StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test]
async fn errors_after_the_first_row_can_be_told_from_the_end_in_every_format() {
    let door = door(&small_shop().await).await;
    let cut = |format: &'static str| {
        let question = json!({"sql": "SELECT order_id FROM orders", "max_rows": 1, "format": format});
        let door = &door;
        async move { whole(door.ask(question).await).await }
    };
    let (text, broken) = cut("json").await;
    let document: Value = serde_json::from_slice(&text).unwrap();
    assert_eq!((document["row_count"].as_u64(), broken), (Some(1), false));
    assert_eq!(document["error"]["error"], "the answer has more than 1 rows");

    let (text, broken) = cut("ndjson").await;
    let lines: Vec<Value> = text
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect();
    assert_eq!((lines.len(), broken), (2, true));
    assert_eq!(lines[1]["error"], "the answer has more than 1 rows");

    let (text, broken) = cut("table").await;
    assert!(broken && String::from_utf8(text).unwrap().ends_with("error: the answer has more than 1 rows\n"));
    assert!(cut("csv").await.1 && cut("arrow").await.1, "formats without a place for an error break off");
}

/// Asks as a proxy does that speaks HTTP/1.0.
async fn over_http_1_0(door: &Door, format: &str) -> String {
    let mut connection = TcpStream::connect(door.url.trim_start_matches("http://")).await.unwrap();
    let request = format!("POST /v1/sql?format={format} HTTP/1.0\r\ncontent-length: 8\r\n\r\nSELECT 1");
    connection.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn formats_that_only_break_off_are_refused_where_that_does_not_show() {
    let door = door(&Shop::new(vec![])).await;
    for format in ["csv", "arrow"] {
        let answer = over_http_1_0(&door, format).await;
        assert!(answer.contains(" 400 ") && answer.contains("proxy_http_version"), "{answer}");
    }
    for format in ["json", "ndjson", "table"] {
        let answer = over_http_1_0(&door, format).await;
        assert!(answer.contains(" 200 "), "{answer}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_falls_silent_in_the_middle_of_a_question_is_told_so() {
    let door = door(&Shop::new(vec![])).await;
    let mut connection = TcpStream::connect(door.url.trim_start_matches("http://")).await.unwrap();
    let begun = b"POST /v1/sql HTTP/1.1\r\nhost: analysis\r\ncontent-length: 100\r\n\r\nSELECT";
    connection.write_all(begun).await.unwrap();
    let mut answer = [0; 12];
    connection.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 408");
}

/// The body as far as it came, and whether the transfer broke.
async fn whole(mut response: Response) -> (Vec<u8>, bool) {
    let mut bytes = Vec::new();
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) => bytes.extend_from_slice(&chunk),
            Ok(None) => return (bytes, false),
            Err(_) => return (bytes, true),
        }
    }
}

#[tokio::test]
async fn snapshots_are_named_in_a_header() {
    let shop = small_shop().await;
    let door = door(&shop).await;
    let newer = write(&shop.lake, &orders_stage(), &[orders(40..41)]).await;
    let both = door.sql("SELECT * FROM orders JOIN customers USING (customer_id) LIMIT 1").await;
    let snapshot = header(&both, analysis::SNAPSHOT_HEADER);
    assert!(
        snapshot.starts_with("shop.customers@") && snapshot.ends_with(&format!(", shop.orders@{newer}")),
        "{snapshot}"
    );
    assert_eq!(header(&door.sql("SELECT 1").await, analysis::SNAPSHOT_HEADER), "");
}

#[tokio::test]
async fn tables_are_listed_and_described() {
    let shop = small_shop().await;
    let door = door(&shop).await;
    let list: Value = door.get("/v1/tables").await.json().await.unwrap();
    let names: Vec<&str> =
        list["tables"].as_array().unwrap().iter().map(|table| table["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["customers", "orders"]);
    assert_eq!((&list["tables"][1]["rows"], &list["tables"][1]["files"]), (&json!(40), &json!(4)));
    let orders: Value = door.get("/v1/tables/shop/orders").await.json().await.unwrap();
    assert!(orders["version"].as_u64().is_some() && orders["bytes"].as_u64() > Some(1000));
    assert_eq!(orders["columns"][2], json!({"name": "amount", "type": "Decimal128(12, 2)", "nullable": true}));
    assert_eq!(orders["columns"].as_array().unwrap().len(), 6);
}

const ENDLESS_ROWS: &str = "SELECT a.value FROM generate_series(1, 100000) a, generate_series(1, 100000) b";

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_frees_the_slot() {
    let one = QueryLimits { max_concurrent_queries: 1, max_rows: u64::MAX, ..limits() };
    let shop = Shop::with_limits(vec![], one);
    let door = door(&shop).await;
    let mut response = door.sql_as("csv", ENDLESS_ROWS).await;
    response.chunk().await.unwrap().unwrap();
    assert_eq!(shop.queries.running(), 1);
    drop(response);
    let next = tokio::time::timeout(Duration::from_secs(10), door.sql_as("csv", "SELECT 1 AS one")).await.unwrap();
    assert_eq!(next.text().await.unwrap(), "one\n1\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_holds_the_query_back_instead_of_filling_memory() {
    let shop = Shop::with_limits(vec![], QueryLimits { max_rows: u64::MAX, ..limits() });
    let door = door(&shop).await;
    let mut response = door.sql_as("csv", ENDLESS_ROWS).await;
    for _ in 0..20 {
        assert!(!response.chunk().await.unwrap().unwrap().is_empty());
    }
    assert!(shop.queries.reserved_bytes() < 64 << 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_stops_reading_loses_its_query_at_the_deadline() {
    let one = QueryLimits { max_concurrent_queries: 1, max_rows: u64::MAX, ..limits() };
    let shop = Shop::with_limits(vec![], one);
    let door = door(&shop).await;
    for format in ["csv", "json"] {
        let question = json!({"sql": ENDLESS_ROWS, "format": format, "timeout_ms": 2500});
        let silent = door.ask(question).await;
        assert_eq!((silent.status(), shop.queries.running()), (StatusCode::OK, 1));
        // Waits for the only slot, longer than that query may take.
        assert_eq!(door.sql_as("csv", "SELECT 1 AS one").await.text().await.unwrap(), "one\n1\n");
        let given_back = async {
            while shop.queries.reserved_bytes() > 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), given_back).await.unwrap();
        let (text, broken) = whole(silent).await;
        if format == "csv" {
            assert!(broken, "what is missing can be told from the end");
            continue;
        }
        let document: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(document["error"]["error"], "query took longer than 2500 ms");
        let rows = document["rows"].as_array().unwrap().len() as u64;
        assert_eq!((Some(rows), broken), (document["row_count"].as_u64(), false), "no row that was counted is lost");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn when_too_many_wait_the_next_is_turned_away() {
    let one = QueryLimits { max_concurrent_queries: 1, max_rows: u64::MAX, ..limits() };
    let shop = Shop::with_limits(vec![], one);
    let door = Arc::new(door(&shop).await);
    let mut running = door.sql_as("csv", ENDLESS_ROWS).await;
    running.chunk().await.unwrap().unwrap();
    // Four may wait; of five more, one is turned away at once and the others when the timeout of each is over.
    let ask = || door.ask(json!({"sql": "SELECT 1", "timeout_ms": 500}));
    let answers = futures::future::join_all((0..5).map(|_| ask())).await;
    let statuses: Vec<u16> = answers.iter().map(|answer| answer.status().as_u16()).collect();
    assert_eq!(statuses.iter().filter(|status| **status == 429).count(), 1, "{statuses:?}");
    assert_eq!(statuses.iter().filter(|status| **status == 503).count(), 4, "{statuses:?}");
    assert!(answers.iter().all(|answer| header(answer, "retry-after") == "1"));
}
