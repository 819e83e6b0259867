//! Queries only read, and end within their bounds.

use std::{ops::Range, sync::Arc, time::Duration};

use analysis::{ErrorKind, QueryLimits, snapshots::SnapshotCache, table::Layout};
use lake::Lake;
use object_store::{
    memory::InMemory,
    throttle::{ThrottleConfig, ThrottledStore},
};
use tokio::time::Instant;
use url::Url;

use crate::harness::{Shop, limits, orders, orders_stage, request, small_shop, write};

/// Billions of rows: never done, and it never needs memory.
const ENDLESS: &str = "SELECT sum(a.value * b.value) FROM generate_series(1, 100000) a, generate_series(1, 100000) b";
/// Rows without end.
const MANY_ROWS: &str = "SELECT a.value FROM generate_series(1, 100000) a, generate_series(1, 100000) b";

#[tokio::test]
async fn everything_that_writes_is_refused() {
    let shop = small_shop().await;
    for sql in [
        "CREATE TABLE t (a INT)",
        "CREATE TABLE t AS SELECT 1",
        "CREATE VIEW v AS SELECT 1",
        "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '/etc/passwd'",
        "CREATE SCHEMA s",
        "INSERT INTO orders (order_id) VALUES (1)",
        "UPDATE orders SET order_id = 1",
        "DELETE FROM orders",
        "TRUNCATE TABLE orders",
        "COPY orders TO 'out.csv'",
        "COPY (SELECT 1) TO '/tmp/out.csv' STORED AS CSV",
        "DROP TABLE orders",
        "SET datafusion.execution.batch_size = 1",
        "RESET datafusion.execution.batch_size",
        "PREPARE p AS SELECT 1",
        "BEGIN TRANSACTION",
        "EXPLAIN INSERT INTO orders (order_id) VALUES (1)",
        "EXPLAIN ANALYZE COPY orders TO 'out.csv'",
        "SELECT * INTO t FROM orders",
    ] {
        let error = shop.refusal(sql).await;
        assert_eq!(error.kind, ErrorKind::ReadOnly, "{sql}: {error:?}");
        assert!(error.hint.is_some(), "{sql}");
    }
    assert_eq!(shop.ask("SELECT count(*) FROM orders").await, ["40"]);
}

#[tokio::test]
async fn no_file_can_be_reached() {
    let shop = small_shop().await;
    for sql in [
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM 'shop/orders/1'",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM read_parquet('x')",
        "SELECT * FROM parquet_metadata('x')",
    ] {
        assert_eq!(shop.kind_of_refusal(sql).await, ErrorKind::Invalid, "{sql}");
    }
}

#[tokio::test]
async fn a_wrong_statement_is_explained_with_place_and_hint() {
    let shop = small_shop().await;
    let place = |error: &analysis::QueryError| error.place.map(|place| (place.line, place.column));
    let hint = |error: &analysis::QueryError| error.hint.clone().unwrap_or_default();

    let error = shop.refusal("SELECT order_id\nFROM orders WHERE )").await;
    assert_eq!((error.kind, place(&error)), (ErrorKind::Invalid, Some((2, 19))), "{error:?}");

    let error = shop.refusal("SELECT 1,\n  ordr_id FROM orders").await;
    assert_eq!(place(&error), Some((2, 3)), "{error:?}");
    assert_eq!(
        (error.message.as_str(), hint(&error).as_str()),
        ("column `ordr_id` is not there", "did you mean `order_id`?")
    );

    let error = shop.refusal("SELECT *\nFROM ordesr").await;
    assert_eq!(place(&error), Some((2, 6)), "{error:?}");
    assert_eq!(
        (error.message.as_str(), hint(&error).as_str()),
        ("table `ordesr` is not there", "did you mean `orders`?")
    );

    let error = shop.refusal("SELECT * FROM depot.orders").await;
    assert_eq!(
        (error.message.as_str(), hint(&error).as_str()),
        ("table `depot.orders` is not there", "there is `shop.orders`")
    );

    assert!(shop.refusal("SELECT 1; SELECT 2").await.message.contains("several"));
    assert!(shop.refusal("  ").await.message.contains("no statement"));
    assert!(shop.refusal("SELECT summ(order_id) FROM orders").await.message.to_lowercase().contains("summ"));
    for sql in ["SELECT 1/0", "SELECT CAST('x' AS INT)"] {
        let error = shop.refusal(sql).await;
        assert_eq!(error.kind, ErrorKind::Invalid, "{error:?}");
    }
}

#[tokio::test]
async fn a_statement_that_nests_too_deeply_is_refused() {
    let shop = small_shop().await;
    let sql = format!("SELECT {}1{}", "(".repeat(2000), ")".repeat(2000));
    assert_eq!(shop.kind_of_refusal(&sql).await, ErrorKind::Invalid);
}

fn numbered(numbers: Range<usize>, between: &str, text: fn(usize) -> String) -> String {
    numbers.map(text).collect::<Vec<_>>().join(between)
}

/// Statements whose trees or plans are the deeper, the longer they are.
fn deep(length: usize) -> Vec<String> {
    let tables = numbered(1..length, ", ", |number| format!("(SELECT 1) t{number}"));
    let joins = numbered(1..length, " ", |number| format!("CROSS JOIN (SELECT 1) t{number}"));
    let queries = numbered(1..length, ", ", |number| format!("t{number} AS (SELECT * FROM t{})", number - 1));
    vec![
        format!("SELECT * FROM orders WHERE order_id = 1{}", " OR order_id = 1".repeat(length)),
        format!("SELECT * FROM orders WHERE order_id IN (1, 2){}", " AND order_id IN (1, 2)".repeat(length)),
        format!("SELECT order_id{} FROM orders", " + order_id".repeat(length)),
        format!("SELECT order_id{} FROM orders", " + coalesce(order_id, 1)".repeat(length)),
        format!("SELECT country{} FROM orders", " || country".repeat(length)),
        format!("SELECT order_id{} FROM orders", "::bigint".repeat(length)),
        format!("SELECT order_id{} FROM orders", " IS NULL".repeat(length)),
        format!("SELECT note{} FROM orders", "->'a'".repeat(length)),
        format!("SELECT note{} FROM orders", "[1]".repeat(length)),
        format!("SELECT {}order_id{} FROM orders", "abs(".repeat(length), ")".repeat(length)),
        format!("SELECT CAST(NULL AS {}INT{})", "ARRAY<".repeat(length), ">".repeat(length)),
        format!("SELECT CAST(NULL AS {}INT{})", "STRUCT<a INT, b ".repeat(length), ">".repeat(length)),
        format!("SELECT CAST(NULL AS INT{})", "[]".repeat(length)),
        format!("SELECT {}'1 day'", "INTERVAL ".repeat(length)),
        format!("{}SELECT 1", "EXPLAIN ".repeat(length)),
        format!("SELECT 1, 2{}", " UNION ALL SELECT 1, 2".repeat(length)),
        format!("SELECT * FROM (SELECT 1) t0, {tables}"),
        format!("SELECT * FROM (SELECT 1) t0 {joins}"),
        format!("WITH t0 AS (SELECT 1), {queries} SELECT 1"),
    ]
}

#[tokio::test]
async fn a_statement_too_deep_for_the_stack_is_refused() {
    let shop = small_shop().await;
    for sql in [deep(1_200), deep(25_000)].concat() {
        let error = shop.refusal(&sql).await;
        assert_eq!(error.kind, ErrorKind::Invalid, "{}…: {error:?}", &sql[..100]);
        assert!(error.hint.is_some(), "{}…: {error:?}", &sql[..100]);
    }
    assert_eq!(shop.ask("SELECT count(*) FROM orders").await, ["40"]);
}

#[tokio::test]
async fn queries_that_read_each_other_are_not_deeper_together() {
    let shop = small_shop().await;
    let chain = |last: usize| {
        let queries = numbered(1..last + 1, ", ", |number| {
            format!("t{number} AS (SELECT a{} AS a FROM t{})", " + 1".repeat(100), number - 1)
        });
        format!("WITH t0 AS (SELECT order_id AS a FROM orders), {queries} SELECT max(a) FROM t{last}")
    };
    assert_eq!(shop.ask(&chain(2)).await, ["239"]);
    assert_eq!(shop.kind_of_refusal(&chain(100)).await, ErrorKind::Invalid);
}

#[tokio::test]
async fn a_statement_that_is_long_without_being_deep_is_answered() {
    let shop = small_shop().await;
    let numbers = numbered(0..5_000, ", ", |number| number.to_string());
    assert_eq!(shop.ask(&format!("SELECT count(*) FROM orders WHERE order_id IN ({numbers})")).await, ["40"]);
    let texts = numbered(0..5_000, ", ", |number| format!("'customer {number}'"));
    assert_eq!(shop.ask(&format!("SELECT count(*) FROM customers WHERE name IN ({texts})")).await, ["10"]);
    let rows = numbered(0..5_000, ", ", |number| format!("({number}, 'a')"));
    assert_eq!(shop.ask(&format!("SELECT count(*) FROM (VALUES {rows}) AS t(a, b)")).await, ["5000"]);
    let either = " OR order_id = 7".repeat(190);
    assert_eq!(shop.ask(&format!("SELECT order_id FROM orders WHERE order_id = 7{either}")).await, ["7"]);
    let sum = " + order_id".repeat(190);
    assert_eq!(shop.ask(&format!("SELECT order_id{sum} FROM orders WHERE order_id = 1")).await, ["191"]);
    let branches = numbered(0..300, " ", |number| format!("WHEN order_id = {number} THEN {number}"));
    assert_eq!(shop.ask(&format!("SELECT sum(CASE {branches} END) FROM orders")).await, ["780"]);
    let union = " UNION ALL SELECT 1 AS a, 2 AS b".repeat(60);
    assert_eq!(shop.ask(&format!("SELECT count(*) FROM (SELECT 1 AS a, 2 AS b{union})")).await, ["61"]);
    let tables = numbered(0..60, ", ", |number| format!("(SELECT 1 AS a) t{number}"));
    assert_eq!(shop.ask(&format!("SELECT count(*) FROM {tables}")).await, ["1"]);
}

#[tokio::test]
async fn a_statement_that_is_too_long_is_refused() {
    let shop = small_shop().await;
    let sql = format!("SELECT '{}'", "x".repeat(1 << 20));
    assert_eq!(shop.kind_of_refusal(&sql).await, ErrorKind::TooLarge);
}

#[tokio::test]
async fn a_query_over_its_memory_names_the_setting() {
    let shop = Shop::with_limits(vec![orders_stage()], QueryLimits { query_memory: 1 << 20, ..limits() });
    for sql in [
        "SELECT value % 1000000, count(*) FROM generate_series(1, 2000000) GROUP BY 1",
        "SELECT value FROM generate_series(1, 2000000) ORDER BY value % 7, value",
        "SELECT count(*) FROM generate_series(1, 500000) a JOIN generate_series(1, 500000) b ON a.value = b.value",
        "SELECT value, count(*) OVER () FROM generate_series(1, 2000000)",
    ] {
        let error = shop.refusal(sql).await;
        assert_eq!(error.kind, ErrorKind::TooLarge, "{error:?}");
        assert!(error.message.contains("1024.0 KB") || error.message.contains("1.0 MB"), "{error:?}");
        assert!(error.hint.as_ref().is_some_and(|hint| hint.contains("`analysis.query_memory`")), "{error:?}");
    }
    assert_eq!(shop.queries.running(), 0);
}

#[tokio::test]
async fn a_window_function_holds_what_it_keeps_until_the_query_ends() {
    let shop = Shop::with_limits(vec![], QueryLimits { query_memory: 1 << 20, ..limits() });
    let mut answer = shop.try_ask("SELECT value, count(*) OVER () FROM generate_series(1, 10000)").await.unwrap();
    answer.next().await.unwrap().unwrap();
    // The rows, the one batch they became and the results.
    assert!(shop.queries.reserved_bytes() >= 10_000 * 8 * 4, "{}", shop.queries.reserved_bytes());
    drop(answer);
    memory_is_given_back(&shop).await;
    let counted = "SELECT max(number) FROM (SELECT count(*) OVER () AS number FROM generate_series(1, 10000))";
    assert_eq!(shop.ask(counted).await, ["10000"]);
    memory_is_given_back(&shop).await;
}

#[tokio::test]
async fn queries_over_their_common_memory_are_told_to_try_again() {
    let shop = Shop::with_limits(vec![], QueryLimits { memory: 1 << 20, ..limits() });
    let error = shop.refusal("SELECT value % 1000000, count(*) FROM generate_series(1, 2000000) GROUP BY 1").await;
    assert_eq!(error.kind, ErrorKind::Unavailable, "{error:?}");
    assert!(error.hint.is_some_and(|hint| hint.contains("`analysis.memory`")));
}

#[tokio::test]
async fn a_query_over_its_time_ends() {
    let shop = Shop::new(vec![]);
    let mut question = request(ENDLESS);
    question.timeout = Some(Duration::from_millis(50));
    let error = shop.queries.run(question).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Timeout);
    assert!(error.message.contains("50 ms") && error.hint.is_some_and(|hint| hint.contains("`timeout_ms`")));
    assert_eq!(shop.queries.running(), 0);
    memory_is_given_back(&shop).await;
}

/// Joins that go on for minutes: two find nothing, one finds billions of rows.
const LONG_JOINS: [&str; 3] = [
    "SELECT count(*) FROM generate_series(1, 200000) a JOIN generate_series(1, 200000) b ON a.value + b.value < 0",
    "SELECT count(*) FROM generate_series(1, 200000) a JOIN generate_series(1, 200000) b \
     ON a.value % 2 = b.value % 2 AND a.value + b.value < 0",
    "SELECT count(*) FROM generate_series(1, 200000) a JOIN generate_series(1, 200000) b ON a.value % 2 = b.value % 2",
];

#[tokio::test]
async fn a_join_over_its_time_ends_though_its_rows_are_one_batch() {
    let shop = Shop::new(vec![]);
    for sql in LONG_JOINS {
        let mut question = request(sql);
        question.timeout = Some(Duration::from_secs(1));
        let started = Instant::now();
        let error = shop.queries.run(question).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Timeout, "{sql}: {error:?}");
        assert!(started.elapsed() < Duration::from_secs(20), "{sql}: {:?}", started.elapsed());
    }
    memory_is_given_back(&shop).await;
}

#[tokio::test]
async fn joins_that_ask_whether_they_are_wanted_are_right() {
    let shop = small_shop().await;
    let nested = "SELECT count(*) FROM orders o JOIN customers c ON o.order_id + c.customer_id = 5";
    assert_eq!(shop.ask(nested).await, ["6"]);
    let hashed = "SELECT count(*) FROM orders o LEFT JOIN customers c \
                  ON o.customer_id = c.customer_id AND o.order_id > c.customer_id + 25";
    assert_eq!(shop.ask(hashed).await, ["40"]);
    let both = "SELECT sum(c.customer_id) FROM orders o JOIN customers c \
                ON o.customer_id = c.customer_id AND o.order_id > c.customer_id + 25";
    assert_eq!(shop.ask(both).await, ["45"]);
    let plan = shop.text(&format!("EXPLAIN FORMAT INDENT {both}")).await;
    let (join, _) = plan.split_once("HashJoinExec").unwrap();
    assert!(join.trim_end().ends_with("CooperativeExec"), "{plan}");
}

#[tokio::test]
async fn a_request_cannot_ask_for_more_time_than_configured() {
    let shop = Shop::with_limits(vec![], QueryLimits { timeout: Duration::from_millis(30), ..limits() });
    let mut question = request(ENDLESS);
    question.timeout = Some(Duration::from_secs(3600));
    assert!(shop.queries.run(question).await.unwrap_err().message.contains("30 ms"));
}

#[tokio::test]
async fn rows_beyond_the_limit_are_an_error_after_the_limit() {
    let shop = Shop::with_limits(vec![orders_stage()], QueryLimits { max_rows: 25, ..limits() });
    write(&shop.lake, &orders_stage(), &[orders(0..10), orders(10..20), orders(20..30)]).await;
    let rows_and_end = |max_rows: Option<u64>, sql: &'static str| {
        let queries = &shop.queries;
        async move {
            let mut question = request(sql);
            question.max_rows = max_rows;
            let mut answer = queries.run(question).await.unwrap();
            let mut rows = 0;
            loop {
                match answer.next().await {
                    Some(Ok(batch)) => rows += batch.num_rows(),
                    Some(Err(error)) => {
                        assert!(answer.next().await.is_none(), "nothing follows an error");
                        return (rows, Some(error));
                    }
                    None => return (rows, None),
                }
            }
        }
    };
    let (rows, error) = rows_and_end(Some(7), "SELECT * FROM orders").await;
    let error = error.unwrap();
    assert_eq!((rows, error.kind), (7, ErrorKind::TooLarge));
    assert!(error.message.contains("more than 7 rows") && error.hint.unwrap().contains("`analysis.max_rows`"));
    let (rows, error) = rows_and_end(Some(7), "SELECT * FROM orders WHERE order_id < 10").await;
    assert_eq!((rows, error.is_some()), (7, true), "also where the one batch is cut and no other follows");
    assert_eq!(rows_and_end(Some(1000), "SELECT * FROM orders").await.0, 25, "a request cannot raise the limit");
    assert_eq!(rows_and_end(Some(10), "SELECT * FROM orders LIMIT 10").await, (10, None), "exactly as many are fine");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_answer_stops_its_work_and_frees_its_slot() {
    let shop = Shop::with_limits(vec![], QueryLimits { max_concurrent_queries: 1, ..limits() });
    let mut answer = shop.try_ask(MANY_ROWS).await.unwrap();
    answer.next().await.unwrap().unwrap();
    assert_eq!(shop.queries.running(), 1);
    drop(answer);
    assert_eq!(shop.ask("SELECT 1").await, ["1"], "the one slot is free again");
    memory_is_given_back(&shop).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_query_that_has_no_rows_yet_stops_too() {
    let shop = Shop::with_limits(vec![], QueryLimits { max_concurrent_queries: 1, ..limits() });
    let asked = tokio::time::timeout(Duration::from_millis(50), shop.try_ask(ENDLESS)).await;
    assert!(asked.is_err(), "it is still running");
    assert_eq!(shop.ask("SELECT 1").await, ["1"]);
    memory_is_given_back(&shop).await;
}

/// Aborted tasks give their memory back when they are next polled.
async fn memory_is_given_back(shop: &Shop) {
    let given_back = async {
        while shop.queries.reserved_bytes() > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), given_back).await.unwrap();
}

/// A probe that gives up after less time than the table takes to be read must not have it read from the beginning again
/// for ever.
#[tokio::test(start_paused = true)]
async fn callers_who_give_up_early_get_their_answer_in_the_end() {
    let store = Arc::new(InMemory::new());
    let root = Url::parse("memory:///").unwrap();
    let lake = Lake::with_store(Arc::clone(&store) as _, root.clone());
    let stage = orders_stage();
    for first in 0..10 {
        write(&lake, &stage, &[orders(first..first + 1)]).await;
    }
    let second = Duration::from_secs(1);
    let slow = ThrottleConfig { wait_get_per_call: second, wait_list_per_call: second, ..ThrottleConfig::default() };
    let slow = Lake::with_store(Arc::new(ThrottledStore::new(store, slow)), root);
    let (cache, layout) = (SnapshotCache::new(slow), Layout::new(&stage));
    let mut gave_up = 0;
    let version = loop {
        match tokio::time::timeout(second * 3 / 2, cache.newest(&stage.folder)).await {
            Ok(snapshot) => break snapshot.unwrap().unwrap().version,
            Err(_) => gave_up += 1,
        }
        assert!(gave_up < 10, "nobody ever gets an answer");
    };
    assert!(gave_up > 2, "the table is read too fast for this test");
    // What the ledger has read, a query needs not read again.
    let files =
        tokio::time::timeout(second * 5 / 2, cache.pin(&stage.folder, &layout)).await.unwrap().unwrap().unwrap();
    assert_eq!((version, files.version(), files.rows()), (10, 10, Some(10)));
    // And the next one sees what was committed meanwhile.
    write(&lake, &stage, &[orders(10..11)]).await;
    let files = cache.pin(&stage.folder, &layout).await.unwrap().unwrap();
    assert_eq!(files.rows(), Some(11));
}
