//! Answers are right, and read no more than they must.

use arrow::{
    array::{ArrayRef, Float32Array, Float64Array, Int64Array, RecordBatch, StringArray},
    datatypes::{DataType, Field},
};
use std::sync::Arc;

use crate::harness::{
    Shop, batches, customers, customers_stage, lines, orders, orders_stage, request, small_shop, stage, write,
};

#[tokio::test]
async fn aggregates_filters_and_joins_are_right() {
    let shop = small_shop().await;
    let sums = shop.ask("SELECT country, sum(amount), count(*) FROM orders GROUP BY country ORDER BY country").await;
    assert_eq!(sums, ["ES 1.90 10", "FR 1.80 10", "US 2.10 10", " 2.00 10"]);
    let joined = "SELECT c.name, max(o.order_id) FROM orders o JOIN customers c ON o.customer_id = c.customer_id \
                  WHERE c.customer_id < 2 GROUP BY c.name ORDER BY 1";
    assert_eq!(shop.ask(joined).await, ["customer 0 30", "customer 1 31"]);
}

#[tokio::test]
async fn windows_subqueries_and_set_operations_are_right() {
    let shop = small_shop().await;
    let ranked = "SELECT order_id FROM (SELECT order_id, row_number() OVER (PARTITION BY country ORDER BY amount DESC) \
                  AS place FROM orders) WHERE place = 1 ORDER BY order_id";
    assert_eq!(shop.ask(ranked).await, ["36", "37", "38", "39"]);
    let binned =
        "SELECT date_bin(INTERVAL '15 minutes', ordered_at) AS start, count(*) FROM orders GROUP BY 1 ORDER BY 1";
    let starts = ["00:00:00Z 15", "00:15:00Z 15", "00:30:00Z 10"];
    assert_eq!(shop.ask(binned).await, starts.map(|start| format!("1970-01-01T{start}")));
    let either = "SELECT order_id FROM orders WHERE order_id < 1 UNION ALL SELECT customer_id FROM customers \
                  WHERE name LIKE '%9' ORDER BY 1";
    assert_eq!(shop.ask(either).await, ["0", "9"]);
}

#[tokio::test]
async fn casts_that_lose_something_stand_wherever_casts_may() {
    let shop = small_shop().await;
    let whole = "SELECT count(*) FROM orders WHERE CAST(amount AS INT) = 0";
    let all = "SELECT count(*) FROM (SELECT CAST(amount AS INT) AS whole FROM orders) WHERE whole = 0";
    assert_eq!(shop.ask(whole).await, shop.ask(all).await);
    let sums = "SELECT CAST(amount AS INT), country, count(*) FROM orders WHERE country = 'FR' \
                GROUP BY ROLLUP(CAST(amount AS INT), country) ORDER BY 3, 2 NULLS FIRST";
    assert_eq!(shop.ask(sums).await.last().map(String::as_str), Some("0 FR 10"));
}

#[tokio::test]
async fn json_functions_reach_into_text() {
    let shop = small_shop().await;
    let sql = "SELECT note->>'channel', json_get_int(note, 'visits'), note->'tags'->0, json_length(note, 'tags') \
               FROM orders WHERE json_get_int(note, 'visits') = 7";
    assert_eq!(shop.ask(sql).await, [r#"web 7 "t7" 1"#], "an arrow gives JSON, a double one gives text");
}

#[tokio::test]
async fn unquoted_names_are_case_insensitive_and_names_may_be_qualified() {
    let shop = small_shop().await;
    for sql in [
        "select COUNT(*) from Orders",
        "SELECT count(*) FROM shop.orders",
        "SELECT count(*) FROM tailwater.shop.orders",
    ] {
        assert_eq!(shop.ask(sql).await, ["40"], "{sql}");
    }
}

#[tokio::test]
async fn with_several_pipelines_a_bare_name_must_be_of_one_only() {
    let elsewhere = stage("depot", "stock", vec![Field::new("units", DataType::Int64, true)], &[]);
    let mut twin = orders_stage();
    twin.pipeline = "depot".to_owned();
    twin.folder = "depot/orders/1".to_owned();
    let shop = Shop::new(vec![orders_stage(), customers_stage(), elsewhere, twin]);
    write(&shop.lake, &customers_stage(), &[customers(0..3)]).await;
    assert_eq!(shop.ask("SELECT count(*) FROM customers").await, ["3"]);
    assert_eq!(shop.ask("SELECT count(*) FROM stock").await, ["0"]);
    let error = shop.refusal("SELECT * FROM orders").await;
    assert!(error.message.contains("`depot.orders` or `shop.orders`"), "{error:?}");
}

#[tokio::test]
async fn hidden_columns_show_only_where_they_are_asked_for() {
    let shop = small_shop().await;
    let columns = |sql: &'static str| {
        let shop = &shop;
        async move {
            let answer = shop.try_ask(sql).await.unwrap();
            answer.schema.fields().iter().map(|field| field.name().clone()).collect::<Vec<_>>()
        }
    };
    let declared = ["order_id", "customer_id", "amount", "country", "note", "ordered_at"];
    assert_eq!(columns("SELECT * FROM orders").await, declared);
    assert_eq!(columns("SELECT * FROM orders$positions").await[6..], ["__partition", "__offset"]);
    let sql = "SELECT order_id, __partition, __offset FROM shop.orders$positions WHERE __offset >= 38 ORDER BY 1";
    assert_eq!(shop.ask(sql).await, ["38 0 38", "39 0 39"]);
    assert!(shop.refusal("SELECT __offset FROM orders").await.message.contains("__offset"));
}

/// The physical plan without its borders.
async fn plan_of(shop: &Shop, sql: &str) -> String {
    shop.text(&format!("EXPLAIN FORMAT INDENT {sql}")).await
}

async fn files_read(shop: &Shop, sql: &str) -> usize {
    plan_of(shop, sql).await.matches(".parquet").count()
}

#[tokio::test]
async fn files_that_cannot_match_are_not_read() {
    let shop = small_shop().await;
    assert_eq!(files_read(&shop, "SELECT note FROM orders").await, 4);
    assert_eq!(files_read(&shop, "SELECT note FROM orders WHERE order_id = 25").await, 1);
    assert_eq!(files_read(&shop, "SELECT note FROM orders WHERE order_id BETWEEN 8 AND 12").await, 2);
    assert_eq!(files_read(&shop, "SELECT note FROM orders WHERE amount > 0.35").await, 1);
    let since = "SELECT note FROM orders WHERE ordered_at >= '1970-01-01T00:20:00Z'";
    assert_eq!(files_read(&shop, since).await, 2);
    assert_eq!(files_read(&shop, "SELECT note FROM orders WHERE country = 'XX'").await, 0);
    assert_eq!(files_read(&shop, "SELECT order_id FROM orders$positions WHERE __offset < 10").await, 1);
    assert_eq!(shop.ask("SELECT order_id FROM orders WHERE order_id = 25").await, ["25"]);
}

#[tokio::test]
async fn filters_inside_the_scan_leave_the_same_rows() {
    let shop = small_shop().await;
    let sql = "SELECT * FROM orders WHERE order_id % 13 = 0 AND ordered_at > '1970-01-01T00:01:00Z' ORDER BY order_id";
    let ids: Vec<String> = shop.ask(sql).await.iter().map(|line| line.split(' ').next().unwrap().to_owned()).collect();
    assert_eq!(ids, ["13", "26", "39"]);
    assert!(!plan_of(&shop, sql).await.contains("FilterExec"), "a wide projection filters while it decodes");
    assert!(plan_of(&shop, "SELECT amount FROM orders WHERE order_id % 13 = 0").await.contains("FilterExec"));
}

#[tokio::test]
async fn counts_come_from_the_log_alone() {
    let shop = small_shop().await;
    assert_eq!(files_read(&shop, "SELECT count(*) FROM orders").await, 0);
    assert_eq!(shop.ask("SELECT count(*), min(order_id), max(order_id) FROM orders").await, ["40 0 39"]);
    assert_eq!(files_read(&shop, "SELECT min(order_id), max(order_id) FROM orders").await, 0);
    // Bounds of text may be cut, so they are no answer.
    assert_eq!(files_read(&shop, "SELECT max(note) FROM orders").await, 4);
}

#[tokio::test]
async fn a_limit_opens_no_more_files_than_it_needs() {
    let shop = small_shop().await;
    assert_eq!(files_read(&shop, "SELECT note FROM orders LIMIT 5").await, 1);
    assert_eq!(shop.ask("SELECT note FROM orders LIMIT 15").await.len(), 15);
}

#[tokio::test]
async fn partition_values_are_columns_and_rule_out_files() {
    let columns = vec![
        Field::new("country", DataType::Utf8, true),
        Field::new("units", DataType::Int64, true),
        Field::new("year", DataType::Int64, true),
    ];
    let stock = stage("shop", "stock", columns, &["country", "year"]);
    let shop = Shop::new(vec![stock.clone()]);
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from(vec![Some("FR"), Some("a/b=c %"), None, Some("FR")])),
        Arc::new(Int64Array::from(vec![1, 2, 3, 4])),
        Arc::new(Int64Array::from(vec![2024, 2024, 2025, 2025])),
    ];
    write(&shop.lake, &stock, &[RecordBatch::try_new(Arc::clone(&stock.schema), columns).unwrap()]).await;
    let all = shop.ask("SELECT country, units, year FROM stock ORDER BY units").await;
    assert_eq!(all, ["FR 1 2024", "a/b=c % 2 2024", " 3 2025", "FR 4 2025"]);
    assert_eq!(shop.ask("SELECT units FROM stock WHERE country = 'a/b=c %'").await, ["2"]);
    assert_eq!(shop.ask("SELECT units FROM stock WHERE country IS NULL").await, ["3"]);
    assert_eq!(files_read(&shop, "SELECT units FROM stock WHERE country = 'FR'").await, 2);
    assert_eq!(files_read(&shop, "SELECT units FROM stock WHERE year = 2024 AND country <> 'FR'").await, 1);
    assert_eq!(shop.ask("SELECT year, sum(units) FROM stock GROUP BY year ORDER BY year").await, ["2024 3", "2025 7"]);
    assert_eq!(shop.ask("SELECT count(*) FROM stock").await, ["4"]);
}

#[tokio::test]
async fn an_empty_string_in_a_partition_column_is_not_null() {
    let columns = vec![
        Field::new("country", DataType::Utf8, true),
        Field::new("city", DataType::Utf8, false),
        Field::new("units", DataType::Int64, true),
    ];
    let stock = stage("shop", "stock", columns, &["country", "city"]);
    let shop = Shop::new(vec![stock.clone()]);
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from(vec![Some(""), None, Some("FR"), Some("")])),
        Arc::new(StringArray::from(vec!["", "Linz", "Linz", "Linz"])),
        Arc::new(Int64Array::from(vec![1, 2, 3, 4])),
    ];
    write(&shop.lake, &stock, &[RecordBatch::try_new(Arc::clone(&stock.schema), columns).unwrap()]).await;
    let all = "SELECT units, country = '', country IS NULL, city = '' FROM stock ORDER BY units";
    let expected = ["1 true false true", "2  true false", "3 false false false", "4 true false false"];
    assert_eq!(shop.ask(all).await, expected);
    assert_eq!(shop.ask("SELECT units FROM stock WHERE country = '' ORDER BY units").await, ["1", "4"]);
    assert_eq!(shop.ask("SELECT units FROM stock WHERE country IS NULL").await, ["2"]);
    assert_eq!(shop.ask("SELECT units FROM stock WHERE city < 'L' AND country IS NOT NULL").await, ["1"]);
    assert_eq!(shop.ask("SELECT count(country), count(city), count(*) FROM stock").await, ["3 4 4"]);
    assert_eq!(files_read(&shop, "SELECT units FROM stock WHERE country = ''").await, 2);
    assert_eq!(files_read(&shop, "SELECT units FROM stock WHERE country IS NULL").await, 1);
    assert_eq!(files_read(&shop, "SELECT units FROM stock WHERE city = ''").await, 1);
}

#[tokio::test]
async fn a_declared_table_without_rows_is_empty() {
    let shop = Shop::new(vec![orders_stage()]);
    assert_eq!(shop.ask("SELECT count(*), sum(amount) FROM orders").await, ["0 "]);
    let answer = shop.try_ask("SELECT * FROM orders WHERE order_id = 1").await.unwrap();
    assert_eq!(answer.versions, [("shop.orders".to_owned(), None)]);
    assert_eq!(answer.schema.fields().len(), 6);
    write(&shop.lake, &orders_stage(), &[orders(0..3)]).await;
    assert_eq!(shop.ask("SELECT count(*) FROM orders").await, ["3"]);
}

#[tokio::test]
async fn a_commit_is_seen_by_the_next_query_and_not_by_a_running_one() {
    let shop = small_shop().await;
    let running = shop.try_ask("SELECT order_id FROM orders").await.unwrap();
    let (table, pinned) = running.versions[0].clone();
    let newer = write(&shop.lake, &orders_stage(), &[orders(40..50)]).await;
    assert_eq!((table.as_str(), pinned), ("shop.orders", Some(newer - 1)));
    assert_eq!(lines(running).await.len(), 40);
    let next = shop.try_ask("SELECT order_id FROM orders").await.unwrap();
    assert_eq!(next.versions, [("shop.orders".to_owned(), Some(newer))]);
    assert_eq!(lines(next).await.len(), 50);
}

#[tokio::test]
async fn a_table_named_twice_is_one_version() {
    let shop = small_shop().await;
    let sql = "SELECT count(*) FROM orders a JOIN orders$positions b ON a.order_id = b.order_id";
    let answer = shop.try_ask(sql).await.unwrap();
    assert_eq!(answer.versions.len(), 1);
    assert_eq!(lines(answer).await, ["40"]);
}

#[tokio::test]
async fn a_new_incarnation_takes_the_name_over() {
    let shop = small_shop().await;
    let mut newer = orders_stage();
    newer.incarnation = 7;
    newer.folder = "shop/orders/7".to_owned();
    shop.apply(vec![newer.clone(), orders_stage()]);
    assert_eq!(shop.ask("SELECT count(*) FROM orders").await, ["0"]);
    write(&shop.lake, &newer, &[orders(0..2)]).await;
    assert_eq!(shop.ask("SELECT count(*) FROM orders").await, ["2"]);
}

#[tokio::test]
async fn parameters_take_every_json_scalar() {
    let shop = small_shop().await;
    let mut question = request(
        "SELECT order_id, $5 IS NULL FROM orders WHERE order_id > $1 AND country = $2 AND amount < $3 AND $4 \
         AND ordered_at < $6 ORDER BY 1 LIMIT $7",
    );
    question.params =
        serde_json::json!([3, "FR", 0.3, true, null, "1970-01-01T01:00:00Z", 2]).as_array().unwrap().clone();
    let answer = shop.queries.run(question).await.unwrap();
    assert_eq!(lines(answer).await, ["4 true", "8 true"]);
}

#[tokio::test]
async fn parameters_that_do_not_fit_are_refused() {
    let shop = small_shop().await;
    for (sql, params) in [
        ("SELECT * FROM orders WHERE order_id = $2", serde_json::json!([1])),
        ("SELECT * FROM orders WHERE order_id = $1", serde_json::json!([1, 2])),
        ("SELECT * FROM orders WHERE order_id = $1", serde_json::json!([[1]])),
        ("SELECT * FROM orders WHERE order_id = $id", serde_json::json!([1])),
    ] {
        let mut question = request(sql);
        question.params = params.as_array().unwrap().clone();
        let error = shop.queries.run(question).await.unwrap_err();
        assert!(error.message.contains("parameter"), "{sql}: {error:?}");
    }
}

#[tokio::test]
async fn the_catalog_can_be_asked_about_itself() {
    let shop = small_shop().await;
    let tables =
        "SELECT table_schema, table_name FROM information_schema.tables WHERE table_schema = 'shop' ORDER BY 2";
    assert_eq!(shop.ask(tables).await, ["shop customers", "shop orders"]);
    let columns =
        "SELECT column_name, data_type FROM information_schema.columns WHERE table_name = 'customers' ORDER BY 1";
    assert_eq!(shop.ask(columns).await, ["customer_id Int64", "name Utf8View"]);
    assert!(shop.text("SHOW TABLES").await.contains("tailwater shop orders"));
    assert!(shop.text("DESCRIBE orders").await.contains("amount Decimal128(12, 2) YES"));
    assert!(shop.text("SHOW COLUMNS FROM orders").await.contains("ordered_at"));
    assert!(shop.text("EXPLAIN SELECT 1").await.contains("PlaceholderRowExec"));
    assert!(shop.text("EXPLAIN ANALYZE SELECT * FROM orders WHERE order_id = 3").await.contains("output_rows"));
}

#[tokio::test]
async fn text_leaves_as_plain_strings() {
    let shop = small_shop().await;
    let answer = shop.try_ask("SELECT country, array_agg(country) FROM orders GROUP BY country").await.unwrap();
    let types: Vec<&DataType> = answer.schema.fields().iter().map(|field| field.data_type()).collect();
    assert_eq!(types[0], &DataType::Utf8);
    assert!(matches!(types[1], DataType::List(item) if item.data_type() == &DataType::Utf8));
    assert_eq!(lines(answer).await.len(), 4);
}

#[tokio::test]
async fn a_batch_of_any_size_is_handed_out_in_pieces() {
    let shop = small_shop().await;
    let pieces = |sql: &'static str| {
        let shop = &shop;
        async move {
            let batches = batches(shop.try_ask(sql).await.unwrap()).await;
            batches.iter().map(RecordBatch::num_rows).collect::<Vec<_>>()
        }
    };
    // A window function over all rows makes one batch of them.
    let long = pieces("SELECT value, count(*) OVER () FROM generate_series(1, 100000)").await;
    assert_eq!((long.iter().sum::<usize>(), long.iter().max()), (100_000, Some(&8192)));
    let wide = pieces("SELECT repeat('x', 100000), value FROM generate_series(1, 100)").await;
    assert_eq!((wide.iter().sum::<usize>(), wide.iter().max()), (100, Some(&10)));
}

/// Text that does not pack well.
fn noise(bytes: usize, seed: u64) -> String {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut state = seed;
    let letter = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(LETTERS[usize::try_from(state >> 58).unwrap()])
    };
    (0..bytes).map(letter).collect()
}

#[tokio::test]
async fn wide_rows_are_decoded_a_few_at_a_time() {
    let pages = stage("shop", "pages", vec![Field::new("body", DataType::Utf8, true)], &[]);
    let shop = Shop::new(vec![pages.clone(), orders_stage()]);
    let texts: Vec<String> = (1..=40).map(|seed| noise(400 << 10, seed)).collect();
    let column: ArrayRef = Arc::new(StringArray::from(texts));
    write(&shop.lake, &pages, &[RecordBatch::try_new(Arc::clone(&pages.schema), vec![column]).unwrap()]).await;
    write(&shop.lake, &orders_stage(), &[orders(0..10)]).await;
    let rows_at_once = |table: &'static str| {
        let shop = &shop;
        async move {
            let setting = "SELECT value FROM information_schema.df_settings \
                           WHERE name = 'datafusion.execution.batch_size'";
            let value = shop.text(&format!("{setting} AND (SELECT count(*) FROM {table}) > 0")).await;
            value.parse::<usize>().unwrap()
        }
    };
    assert!((16..40).contains(&rows_at_once("pages").await));
    assert_eq!(rows_at_once("orders").await, 8192);
    assert_eq!(shop.ask("SELECT count(*), min(length(body)) FROM pages WHERE body <> ''").await, ["40 409600"]);
}

#[tokio::test]
async fn not_a_number_is_found_above_every_number() {
    let columns = vec![Field::new("exact", DataType::Float64, true), Field::new("rough", DataType::Float32, true)];
    let readings = stage("shop", "readings", columns, &[]);
    let shop = Shop::new(vec![readings.clone()]);
    let exact: ArrayRef = Arc::new(Float64Array::from(vec![1.0, f64::NAN]));
    let rough: ArrayRef = Arc::new(Float32Array::from(vec![1.0, f32::NAN]));
    let rows = RecordBatch::try_new(Arc::clone(&readings.schema), vec![exact, rough]).unwrap();
    write(&shop.lake, &readings, &[rows]).await;
    for column in ["exact", "rough"] {
        let above = format!("SELECT count(*) FROM readings WHERE {column} > 100");
        assert_eq!(shop.ask(&above).await, ["1"], "{column}");
    }
}
