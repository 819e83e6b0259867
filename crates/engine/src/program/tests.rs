use arrow::array::{
    BooleanArray, Decimal128Array, Int32Array, Int64Array, ListArray, StringArray, StructArray,
    TimestampMicrosecondArray,
};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::{Fields, Int32Type};
use arrow::util::pretty::pretty_format_batches;
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility};
use delivery::ErrorClass;
use pipeline::{Catalog, Graph, Permissions, SourceText};

use super::*;

const SOURCE: &str = "CREATE SOURCE t (
  id BIGINT NOT NULL, n INT, s VARCHAR, d DECIMAL(10, 2), f DOUBLE, b BOOLEAN, ts TIMESTAMP, l ARRAY<INT>,
  a STRUCT<x INT, y VARCHAR>, j VARCHAR
) WITH (format = 'json');\n";

fn graph(views: &str) -> Graph {
    let file = SourceText { file: "p.sql".to_owned(), text: format!("{SOURCE}{views}") };
    let statements = pipeline::parse(&[file]).unwrap_or_else(|problems| panic!("{problems}"));
    let mut catalog = Catalog::default();
    let plan = pipeline::plan_change(&catalog, "p", statements).unwrap_or_else(|problems| panic!("{problems}"));
    let change = plan.into_change(Permissions::default()).expect("adding is free").expect("something is added");
    catalog.replay(&change.to_bytes()).expect("the change was just made");
    pipeline::compile(&catalog).expect("compiles")
}

/// Programs of all branches of the last view.
fn programs(views: &str) -> Vec<RowProgram> {
    let graph = graph(views);
    let view = graph.views.last().expect("has a view");
    let compile = |branch: &Branch| RowProgram::compile(branch, &view.schema).expect("compiles");
    view.branches.iter().map(compile).collect()
}

/// The program of `CREATE MATERIALIZED VIEW v AS …`.
fn program(query: &str) -> RowProgram {
    programs(&format!("CREATE MATERIALIZED VIEW v AS {query}")).remove(0)
}

/// Rows of `t` with numbers from `ids`; every column follows from the number.
fn rows(ids: impl Iterator<Item = i64>) -> RecordBatch {
    let ids: Vec<i64> = ids.collect();
    let numbers: Vec<Option<i32>> = ids.iter().map(|id| (id % 7 != 3).then_some((id % 5) as i32)).collect();
    let texts: Vec<Option<String>> = ids.iter().map(|id| (id % 6 != 5).then(|| format!("row {id}"))).collect();
    let decimals = Decimal128Array::from_iter_values(ids.iter().map(|id| i128::from(*id) * 101));
    let decimals = decimals.with_precision_and_scale(10, 2).expect("fits");
    let floats = arrow::array::Float64Array::from_iter_values(ids.iter().map(|id| *id as f64 / 2.0));
    let booleans = BooleanArray::from_iter(ids.iter().map(|id| (id % 4 != 3).then_some(id % 2 == 0)));
    let times = TimestampMicrosecondArray::from_iter_values(ids.iter().map(|id| id * 60_000_000)).with_timezone("UTC");
    let lists = ListArray::from_iter_primitive::<Int32Type, _, _>(
        ids.iter().map(|id| (id % 3 != 2).then(|| (0..id % 4).map(|item| Some(item as i32)).collect::<Vec<_>>())),
    );
    let fields = Fields::from(vec![Field::new("x", DataType::Int32, true), Field::new("y", DataType::Utf8, true)]);
    let parts: Vec<ArrayRef> = vec![
        Arc::new(Int32Array::from_iter_values(ids.iter().map(|id| *id as i32 * 10))),
        Arc::new(StringArray::from_iter_values(ids.iter().map(|id| format!("y{id}")))),
    ];
    let structs = StructArray::new(fields, parts, None);
    let documents = StringArray::from_iter_values(ids.iter().map(|id| match id % 4 {
        0 => format!(r#"{{"k": {id}, "name": "n{id}", "deep": {{"list": [1, {id}]}}}}"#),
        1 => format!(r#"{{"k": "{id}"}}"#),
        2 => "not json".to_owned(),
        _ => "{}".to_owned(),
    }));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from(ids)),
        Arc::new(Int32Array::from(numbers)),
        Arc::new(StringArray::from(texts)),
        Arc::new(decimals),
        Arc::new(floats),
        Arc::new(booleans),
        Arc::new(times),
        Arc::new(lists),
        Arc::new(structs),
        Arc::new(documents),
    ];
    RecordBatch::try_new(graph("").sources[0].schema.clone(), columns).expect("matches the declaration")
}

fn shown(batch: &RecordBatch) -> String {
    pretty_format_batches(std::slice::from_ref(batch)).expect("can be shown").to_string()
}

/// What the query makes of rows 0 to 3, as a table.
fn of_four_rows(query: &str) -> String {
    shown(&program(query).run(rows(0..4)).unwrap_or_else(|error| panic!("{query}: {error:?}")))
}

#[test]
fn projection_filter_and_arithmetic() {
    assert_eq!(
        of_four_rows("SELECT id, n + 1 AS m, d * 2 AS dd, f / 2 AS g FROM t WHERE id <> 1"),
        "\
+----+---+------+------+
| id | m | dd   | g    |
+----+---+------+------+
| 0  | 1 | 0.00 | 0.0  |
| 2  | 3 | 4.04 | 0.5  |
| 3  |   | 6.06 | 0.75 |
+----+---+------+------+"
    );
}

#[test]
fn case_casts_and_text() {
    assert_eq!(
        of_four_rows(
            "SELECT CASE WHEN b THEN 'yes' WHEN b IS NULL THEN 'unknown' ELSE 'no' END AS answer, CAST(id AS VARCHAR) AS v, \
             upper(s) AS u, s || '!' AS bang, CAST(d AS INT) AS whole, TRY_CAST(s AS INT) AS tried FROM t"
        ),
        "\
+---------+---+-------+--------+-------+-------+
| answer  | v | u     | bang   | whole | tried |
+---------+---+-------+--------+-------+-------+
| yes     | 0 | ROW 0 | row 0! | 0     |       |
| no      | 1 | ROW 1 | row 1! | 1     |       |
| yes     | 2 | ROW 2 | row 2! | 2     |       |
| unknown | 3 | ROW 3 | row 3! | 3     |       |
+---------+---+-------+--------+-------+-------+"
    );
}

#[test]
fn structs_lists_and_json() {
    assert_eq!(
        of_four_rows(
            "SELECT a.x AS x, a['y'] AS y, t.a.x + 1 AS x1, l[1] AS first, cardinality(l) AS len, \
             json_get_int(j, 'k') AS k, j->>'name' AS name, json_get_int(j, 'deep', 'list', 1) AS deep FROM t"
        ),
        "\
+----+----+----+-------+-----+---+------+------+
| x  | y  | x1 | first | len | k | name | deep |
+----+----+----+-------+-----+---+------+------+
| 0  | y0 | 1  |       | 0   | 0 | n0   | 0    |
| 10 | y1 | 11 | 0     | 1   | 1 |      |      |
| 20 | y2 | 21 |       |     |   |      |      |
| 30 | y3 | 31 | 0     | 3   |   |      |      |
+----+----+----+-------+-----+---+------+------+"
    );
}

/// Rows of `t` with these documents.
fn documents(texts: &[&str]) -> RecordBatch {
    let (schema, mut columns, _) = rows((0..).take(texts.len())).into_parts();
    columns[9] = Arc::new(StringArray::from(texts.to_vec()));
    RecordBatch::try_new(schema, columns).expect("matches the declaration")
}

#[test]
fn numbers_of_json_are_cast_digit_by_digit_and_what_is_none_is_rejected() {
    let batch = documents(&[
        r#"{"x": 12345678901234567.89}"#,
        r#"{"x": 1.5e3}"#,
        r#"{"x": "7.25"}"#,
        r#"{"x": 9007199254740993.0}"#,
        r#"{"x": "many"}"#,
        r#"{"x": null}"#,
        "{}",
    ]);
    let (good, bad, kept) =
        program("SELECT CAST(j->'x' AS DECIMAL(20, 2)) AS d FROM t").run_each(batch.clone()).expect("sifts");
    let numbers: Vec<_> = good.column(0).as_primitive::<arrow::datatypes::Decimal128Type>().iter().collect();
    assert_eq!(
        numbers,
        [Some(1_234_567_890_123_456_789), Some(150_000), Some(725), Some(900_719_925_474_099_300), None, None]
    );
    assert_eq!((bad.len(), kept), (1, vec![0, 1, 2, 3, 5, 6]), "{bad:?}");

    for cast in ["CAST(j->'x' AS BIGINT)", "(j->'x')::BIGINT", "arrow_cast(json_get(j, 'x'), 'Int64')"] {
        let (good, bad, kept) = program(&format!("SELECT {cast} AS n FROM t")).run_each(batch.clone()).expect("sifts");
        let numbers: Vec<_> = good.column(0).as_primitive::<arrow::datatypes::Int64Type>().iter().collect();
        assert_eq!(numbers, [Some(1_500), Some(9_007_199_254_740_993), None, None], "{cast}");
        assert_eq!((bad.len(), kept), (3, vec![1, 3, 5, 6]), "{cast}: {bad:?}");
    }
    let tried = program("SELECT TRY_CAST(j->'x' AS INT) AS n FROM t").run(batch).expect("runs");
    assert_eq!(tried.column(0).null_count(), 6, "{}", shown(&tried));
}

#[test]
fn times_and_made_values() {
    assert_eq!(
        of_four_rows(
            "SELECT date_trunc('hour', ts) AS hour, date_part('minute', ts) AS minute, ts + INTERVAL '1 day' AS later, \
             make_array(n, 7) AS list, named_struct('k', id) AS s, to_timestamp_millis(id) AS ms, \
             date_part('epoch', ts - to_timestamp_micros(0)) AS age, map(['k'], [id])['k'] AS in_map FROM t WHERE id < 2"
        ),
        "\
+----------------------+--------+----------------------+--------+--------+-------------------------+------+--------+
| hour                 | minute | later                | list   | s      | ms                      | age  | in_map |
+----------------------+--------+----------------------+--------+--------+-------------------------+------+--------+
| 1970-01-01T00:00:00Z | 0      | 1970-01-02T00:00:00Z | [0, 7] | {k: 0} | 1970-01-01T00:00:00     | 0.0  | 0      |
| 1970-01-01T00:00:00Z | 1      | 1970-01-02T00:01:00Z | [1, 7] | {k: 1} | 1970-01-01T00:00:00.001 | 60.0 | 1      |
+----------------------+--------+----------------------+--------+--------+-------------------------+------+--------+"
    );
}

#[test]
fn output_has_exactly_the_wire_types_of_the_view() {
    let program = program(
        "SELECT arrow_cast(s, 'Utf8View') AS view, arrow_cast(s, 'Dictionary(Int32, Utf8)') AS dict, \
         arrow_cast(id, 'UInt64') AS big, arrow_cast(n, 'UInt8') AS small, arrow_cast(ts, 'Timestamp(Second, None)') AS sec, \
         arrow_cast(ts, 'Timestamp(Nanosecond, Some(\"+02:00\"))') AS zoned, make_array(arrow_cast(s, 'Utf8View')) AS list, \
         named_struct('v', arrow_cast(s, 'LargeUtf8')) AS s, id, arrow_cast(s, 'LargeBinary') AS bytes FROM t",
    );
    let types: Vec<String> = program
        .output_schema()
        .fields()
        .iter()
        .map(|field| format!("{} {}", field.name(), field.data_type()))
        .collect();
    assert_eq!(
        types,
        [
            "view Utf8",
            "dict Utf8",
            "big Decimal128(20, 0)",
            "small Int16",
            "sec Timestamp(µs)",
            "zoned Timestamp(µs, \"UTC\")",
            "list List(Utf8)",
            "s Struct(\"v\": Utf8)",
            "id Int64",
            "bytes Binary",
        ]
    );
    assert!(!program.output_schema().field_with_name("id").expect("is there").is_nullable());
    for count in [0, 1, 4] {
        let out = program.run(rows(0..count)).expect("runs");
        assert_eq!(out.schema_ref(), program.output_schema());
        assert_eq!(out.num_rows(), usize::try_from(count).expect("is small"));
    }
}

/// The program of one view of several.
fn program_of(graph: &Graph, name: &str) -> RowProgram {
    let view = graph.views.iter().find(|view| view.name == name).expect("is there");
    RowProgram::compile(&view.branches[0], &view.schema).expect("compiles")
}

/// Casts that lose something, each with a condition on what comes out.
const LOSSY: &[(&str, &str)] = &[
    ("CAST(d AS INT)", "= 5"),
    ("CAST(d AS INT)", "> 5"),
    ("CAST(d AS INT)", "IN (1, 5, 7, 9, 11)"),
    ("arrow_cast(d, 'Int32')", "= 5"),
    ("CAST(d AS DECIMAL(10, 0))", "= 5"),
    ("CAST(d AS DECIMAL(10, 1))", "= CAST('5.1' AS DECIMAL(10, 1))"),
    ("TRY_CAST(id * 100 AS TINYINT)", "<> 0"),
    (
        "arrow_cast(ts, 'Timestamp(Microsecond, None)') AT TIME ZONE '+02:00'",
        "= arrow_cast('1970-01-01T00:03:00', 'Timestamp(Nanosecond, Some(\"+02:00\"))')",
    ),
];

#[test]
fn a_filter_over_a_cast_keeps_the_rows_that_a_filter_over_its_column_keeps() {
    for (cast, condition) in LOSSY {
        let graph = graph(&format!(
            "CREATE MATERIALIZED VIEW a AS SELECT id, {cast} AS c FROM t;
             CREATE MATERIALIZED VIEW b AS SELECT id FROM a WHERE c {condition};
             CREATE MATERIALIZED VIEW direct AS SELECT id FROM t WHERE {cast} {condition};
             CREATE MATERIALIZED VIEW nested AS SELECT id FROM (SELECT id, {cast} AS c FROM t) AS q WHERE c {condition};"
        ));
        let column = program_of(&graph, "a").run(rows(0..12)).expect("runs");
        let expected = program_of(&graph, "b").run(column).expect("runs");
        assert!((1..12).contains(&expected.num_rows()), "{cast} {condition}:\n{}", shown(&expected));
        for name in ["direct", "nested"] {
            let found = program_of(&graph, name).run(rows(0..12)).expect("runs");
            assert_eq!(shown(&found), shown(&expected), "{name}: {cast} {condition}");
        }
    }
}

#[test]
fn a_row_whose_cast_fails_in_a_filter_is_rejected() {
    let (good, bad, kept) =
        program("SELECT id FROM t WHERE CAST(id * 1000000000 AS INT) > 5").run_each(rows(0..4)).expect("sifts");
    assert_eq!((good.num_rows(), kept), (2, vec![1, 2]));
    assert_eq!(bad, [(3, "can't cast value 3000000000 to type Int32".to_owned())]);
}

#[test]
fn views_on_views_take_each_others_output() {
    let graph = graph(
        "CREATE MATERIALIZED VIEW a AS SELECT id, arrow_cast(s, 'Utf8View') AS s, arrow_cast(id, 'UInt32') AS u FROM t WHERE id > 1;
         CREATE MATERIALIZED VIEW b AS SELECT s || '?' AS q, u + 1 AS w FROM a WHERE u < 9;",
    );
    let between = program_of(&graph, "a").run(rows(0..4)).expect("runs");
    let out = program_of(&graph, "b").run(between).expect("runs");
    assert_eq!(
        shown(&out),
        "\
+--------+---+
| q      | w |
+--------+---+
| row 2? | 3 |
| row 3? | 4 |
+--------+---+"
    );
}

#[test]
fn every_branch_of_a_union_yields_the_columns_of_the_view() {
    let programs = programs(
        "CREATE MATERIALIZED VIEW v AS
           SELECT n AS k, 'a' AS origin, NULL AS extra FROM t WHERE id = 1
           UNION ALL (SELECT id, 'b', d FROM t WHERE id = 2
                      UNION ALL SELECT f, s, 9 FROM (SELECT * FROM t WHERE id > 2))",
    );
    let shown: Vec<String> = programs.iter().map(|program| shown(&program.run(rows(0..4)).expect("runs"))).collect();
    assert_eq!(
        shown,
        [
            "\
+-----+--------+-------+
| k   | origin | extra |
+-----+--------+-------+
| 1.0 | a      |       |
+-----+--------+-------+",
            "\
+-----+--------+-------+
| k   | origin | extra |
+-----+--------+-------+
| 2.0 | b      | 2.02  |
+-----+--------+-------+",
            "\
+-----+--------+-------+
| k   | origin | extra |
+-----+--------+-------+
| 1.5 | row 3  | 9.00  |
+-----+--------+-------+",
        ]
    );
}

#[test]
fn a_plan_that_needs_no_columns_still_counts_rows() {
    assert_eq!(program("SELECT 1 AS one FROM t").run(rows(0..3)).expect("runs").num_rows(), 3);
    assert_eq!(program("SELECT 1 AS one FROM t WHERE false").run(rows(0..3)).expect("runs").num_rows(), 0);
    let (good, bad, kept) = program("SELECT 1 AS one FROM t WHERE id > 1").run_each(rows(0..3)).expect("runs");
    assert_eq!((good.num_rows(), bad.len(), kept), (1, 0, vec![2]));
}

#[test]
fn large_batches_come_out_whole_and_in_order() {
    let out = program("SELECT id FROM t WHERE id % 3 <> 1").run(rows(0..50_000)).expect("runs");
    let expected: Vec<i64> = (0..50_000).filter(|id| id % 3 != 1).collect();
    assert_eq!(out.column(0).as_primitive::<arrow::datatypes::Int64Type>().values().to_vec(), expected);
}

/// Queries whose rows fail now and then, each in its own way.
const FALLIBLE: &[&str] = &[
    "SELECT id, 100 / n AS q FROM t",
    "SELECT id, CAST(s AS INT) AS c FROM t WHERE id % 6 = 5 OR id % 2 = 0",
    "SELECT id, CAST(id * 1000000000000000 AS INT) AS c FROM t",
    "SELECT id, id * 4000000000000000000 AS c FROM t",
    "SELECT id, CAST(d * d * 1000000 AS DECIMAL(10, 2)) AS c FROM t",
    "SELECT id FROM t WHERE n <> 0 AND 10 / n > 3",
    "SELECT id, CASE WHEN n = 0 THEN 0 ELSE 10 / n END AS c FROM t",
    "SELECT id, CAST(json_get_str(j, 'k') AS BIGINT) AS c, coalesce(n, 1 / (id - 9)) AS e FROM t",
    "SELECT id, CAST(substr(s, 5) AS INT) AS c FROM t WHERE 7 / (id - 12) >= 0 OR b",
    "SELECT id, to_timestamp(s) AS c FROM t WHERE id % 10 = 4 OR s IS NULL",
    "SELECT id, arrow_cast(l, 'List(Decimal128(1, 1))') AS c FROM t",
];

/// What becomes of each row alone: its output if any, or the reason.
fn one_by_one(program: &RowProgram, batch: &RecordBatch) -> Vec<Result<Option<String>, String>> {
    let alone = |row: usize| match program.run(batch.slice(row, 1)) {
        Ok(out) => Ok((out.num_rows() > 0).then(|| shown(&out))),
        Err(EngineError::Row { reason }) => Err(reason),
        Err(error) => panic!("{error:?}"),
    };
    (0..batch.num_rows()).map(alone).collect()
}

#[test]
fn one_bad_row_never_loses_its_neighbours() {
    let program = program("SELECT id, 100 / n AS q FROM t");
    // Row 4 has n = 4; rows 0 and 5 have n = 0; row 3 has no n.
    assert_eq!(program.run(rows(0..7)).expect_err("divides by zero").class(), ErrorClass::Reject);
    let (good, bad, kept) = program.run_each(rows(0..7)).expect("sifts");
    assert_eq!(bad, [(0, "divide by zero error".to_owned()), (5, "divide by zero error".to_owned())]);
    assert_eq!(kept, [1, 2, 3, 4, 6]);
    assert_eq!(
        shown(&good),
        "\
+----+-----+
| id | q   |
+----+-----+
| 1  | 100 |
| 2  | 50  |
| 3  |     |
| 4  | 25  |
| 6  | 100 |
+----+-----+"
    );
}

#[test]
fn an_item_of_a_list_is_at_fault_in_its_own_row_alone() {
    let program = program("SELECT id, arrow_cast(l, 'List(Decimal128(1, 1))') AS c FROM t");
    // Lists of `t` have the items 0 to `id % 4 - 1`, and a one has too many digits; row 2 has no list.
    let (good, bad, kept) = program.run_each(rows(0..4)).expect("sifts");
    assert_eq!((good.num_rows(), kept), (3, vec![0, 1, 2]));
    assert_eq!(bad.len(), 1, "{bad:?}");
    assert_eq!(program.run(rows(0..4).slice(0, 2)).expect("runs").num_rows(), 2);

    let item = Arc::new(Field::new_list_field(DataType::Int32, true));
    let nulls = NullBuffer::from(vec![false, true]);
    let hidden =
        ListArray::new(item, OffsetBuffer::from_lengths([1, 1]), Arc::new(Int32Array::from(vec![7, 0])), Some(nulls));
    let (schema, mut columns, _) = rows(0..2).into_parts();
    columns[7] = Arc::new(hidden);
    let batch = RecordBatch::try_new(schema, columns).expect("is a batch");
    assert_eq!(program.run(batch).expect("runs").num_rows(), 2);
}

#[test]
fn a_batch_gives_what_its_rows_give_one_by_one() {
    let batch = rows(0..40);
    for query in FALLIBLE {
        let program = program(query);
        let expected = one_by_one(&program, &batch);
        let failed: Vec<(usize, String)> = expected
            .iter()
            .enumerate()
            .filter_map(|(row, outcome)| outcome.clone().err().map(|reason| (row, reason)))
            .collect();
        let kept: Vec<usize> = expected
            .iter()
            .enumerate()
            .filter(|(_, outcome)| matches!(outcome, Ok(Some(_))))
            .map(|(row, _)| row)
            .collect();
        let sifted = program.run_each(batch.clone()).unwrap_or_else(|error| panic!("{query}: {error:?}"));
        assert_eq!(sifted.1, failed, "{query}");
        assert_eq!(sifted.2, kept, "{query}");
        for (row, place) in kept.iter().enumerate() {
            assert_eq!(Ok(Some(shown(&sifted.0.slice(row, 1)))), expected[*place], "{query}, row {place}");
        }
    }
    let failing = FALLIBLE.iter().filter(|query| !program(query).run_each(batch.clone()).expect("sifts").1.is_empty());
    assert!(failing.count() >= 7, "the queries above are there because rows fail");
}

#[test]
fn output_does_not_depend_on_how_rows_come_in_batches() {
    let total = 300;
    let batch = rows(0..total);
    for seed in seeds() {
        let mut dice = seed;
        for query in
            FALLIBLE.iter().chain(&["SELECT * FROM t WHERE b", "SELECT upper(s) AS u, l, a FROM t WHERE n > 1"])
        {
            let program = program(query);
            let whole = program.run_each(batch.clone()).expect("sifts");
            let mut good = Vec::new();
            let (mut bad, mut kept) = (Vec::new(), Vec::new());
            let mut start = 0;
            while start < batch.num_rows() {
                dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let length = (usize::try_from(dice >> 33).expect("fits") % 60).min(batch.num_rows() - start);
                let part = program.run_each(batch.slice(start, length)).expect("sifts");
                good.push(part.0);
                bad.extend(part.1.into_iter().map(|(row, reason)| (row + start, reason)));
                kept.extend(part.2.into_iter().map(|row| row + start));
                start += length;
            }
            let good = concat_batches(program.output_schema(), &good).expect("same schema");
            assert_eq!((good, bad, kept), whole, "seed {seed}: {query}");
        }
    }
}

fn seeds() -> Vec<u64> {
    match std::env::var("TAILWATER_SEED") {
        Ok(seed) => vec![seed.parse().expect("TAILWATER_SEED is a number")],
        Err(_) => vec![1, 2, 3],
    }
}

#[test]
fn rows_at_fault_say_why() {
    let table = [
        ("SELECT CAST(s AS INT) AS c FROM t", "cannot cast string 'row 1' to value of Int32 type"),
        ("SELECT CAST(id * 1000000000000 AS INT) AS c FROM t", "can't cast value 1000000000000 to type Int32"),
        ("SELECT 1 / (n - 1) AS c FROM t", "divide by zero error"),
        ("SELECT id * 9223372036854775807 * 2 AS c FROM t", "overflow happened on: 9223372036854775807 * 2"),
        ("SELECT s FROM t WHERE CAST(id AS TINYINT) + CAST(127 AS TINYINT) > 0", "overflow happened on: 1 + 127"),
        (
            "SELECT CASE WHEN b THEN 0 ELSE -9223372036854775808 - id END AS c FROM t",
            "overflow happened on: -9223372036854775808 - 1",
        ),
    ];
    for (query, reason) in table {
        let (_, bad, _) = program(query).run_each(rows(1..2)).expect("sifts");
        assert_eq!(bad, [(0, reason.to_owned())], "{query}");
    }
}

/// A function of a library that did not think of some numbers.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Fragile(Signature);

impl ScalarUDFImpl for Fragile {
    fn name(&self) -> &str {
        "fragile"
    }

    fn signature(&self) -> &Signature {
        &self.0
    }

    fn return_type(&self, _: &[DataType]) -> PlanResult<DataType> {
        Ok(DataType::Int64)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> PlanResult<ColumnarValue> {
        let ids = args.args[0].to_array(args.number_rows)?;
        let has = |id: i64| ids.as_primitive::<arrow::datatypes::Int64Type>().values().contains(&id);
        assert!(!has(5), "nobody thought of five");
        match (has(7), has(9)) {
            (true, _) => internal_err!("expected anything but seven"),
            (_, true) => Err(ArrowError::DictionaryKeyOverflowError.into()),
            _ => Ok(ColumnarValue::Array(ids)),
        }
    }
}

#[test]
fn a_value_that_the_library_cannot_cope_with_is_a_fault_of_its_row() {
    let graph = graph("CREATE MATERIALIZED VIEW v AS SELECT id FROM t");
    let mut branch = graph.views[0].branches[0].clone();
    let id = Expr::Column(branch.plan.schema().columns().remove(0));
    let fragile = ScalarUDF::new_from_impl(Fragile(Signature::any(1, Volatility::Immutable)));
    let plan = LogicalPlanBuilder::from(branch.plan).project([fragile.call(vec![id]).alias("id")]);
    branch.plan = plan.and_then(LogicalPlanBuilder::build).expect("is a plan");
    let output = Arc::new(Schema::new(vec![Field::new("id", DataType::Int64, true)]));
    let program = RowProgram::compile(&branch, &output).expect("compiles");
    let (good, bad, kept) = program.run_each(rows(0..12)).expect("sifts");
    assert_eq!((good.num_rows(), kept), (9, vec![0, 1, 2, 3, 4, 6, 8, 10, 11]));
    let reasons = [
        (5, "the library gave up on it"),
        (7, "the library gave up on it: expected anything but seven"),
        (9, "dictionary key bigger than the key type"),
    ];
    assert_eq!(bad, reasons.map(|(row, reason)| (row, reason.to_owned())));
}

#[test]
fn a_null_where_none_may_be_is_a_fault_of_its_row() {
    let graph = graph("CREATE MATERIALIZED VIEW v AS SELECT n FROM t");
    let strict = Arc::new(Schema::new(vec![Field::new("n", DataType::Int32, false)]));
    let program = RowProgram::compile(&graph.views[0].branches[0], &strict).expect("compiles");
    let (good, bad, kept) = program.run_each(rows(2..5)).expect("sifts");
    assert_eq!((good.num_rows(), kept), (2, vec![0, 2]));
    assert_eq!(bad, [(1, "column `n` is NOT NULL, found a null".to_owned())]);
}

#[test]
fn a_batch_of_another_shape_stops() {
    let program = program("SELECT id FROM t");
    let schema = Arc::new(Schema::new(vec![Field::new("id", DataType::Int64, false)]));
    let batch = RecordBatch::try_new(schema, vec![Arc::new(Int64Array::from(vec![1]))]).expect("is a batch");
    let error = program.run(batch).expect_err("has another shape");
    assert_eq!(error.class(), ErrorClass::Stop);
    assert_eq!(error.to_string(), "batch for `t`: expected 10 columns, found 1");
}

#[test]
fn metadata_of_a_message_does_not_matter() {
    let batch = rows(0..3);
    let metadata = [("writer".to_owned(), "x".to_owned())].into();
    let schema = Arc::new(batch.schema().as_ref().clone().with_metadata(metadata));
    let marked = RecordBatch::try_new(schema, batch.columns().to_vec()).expect("same columns");
    let program = program("SELECT * FROM t");
    assert_eq!(program.run(marked).expect("runs"), program.run(batch).expect("runs"));
}

#[test]
fn an_output_that_the_branch_does_not_yield_is_refused() {
    let graph = graph("CREATE MATERIALIZED VIEW v AS SELECT n FROM t");
    let other = Arc::new(Schema::new(vec![Field::new("n", DataType::Utf8, true)]));
    let error = RowProgram::compile(&graph.views[0].branches[0], &other).expect_err("has another type");
    assert_eq!(error.class(), ErrorClass::Stop);
    let text = "branch 0 of a view, reading `t`: expected column `n` of type Utf8, found `n` of type Int32";
    assert_eq!(error.to_string(), text);
}

/// Metrics that all nodes of a plan hold.
fn metrics_of(plan: &Arc<dyn ExecutionPlan>) -> usize {
    let own = plan.metrics().map_or(0, |metrics| metrics.iter().count());
    own + plan.children().into_iter().map(metrics_of).sum::<usize>()
}

#[test]
fn ten_thousand_runs_leave_no_metrics_behind() {
    let program = program("SELECT id + 1 AS m, upper(s) AS u FROM t WHERE n > 1");
    let batch = rows(0..8);
    for _ in 0..10_000 {
        program.run(batch.clone()).expect("runs");
    }
    program.run_each(batch.clone()).expect("sifts");
    assert_eq!(metrics_of(&program.plain) + metrics_of(&program.numbered), 0);
    // The counter does count: a copy that was executed has metrics.
    let executed = fresh(&program.plain, batch).expect("is ready");
    let stream = executed.execute(0, Arc::clone(&program.context)).expect("starts");
    collect(stream).expect("runs").expect("does not wait");
    assert!(metrics_of(&executed) > 0);
}

#[test]
fn programs_run_inside_a_task_that_never_pauses() {
    // Async runtimes make well-behaved leaves pause after a number of polls; a synchronous run would wait for ever.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().expect("starts");
    runtime.block_on(async {
        let program = program("SELECT id FROM t WHERE n > 1");
        let batch = rows(0..8);
        for _ in 0..5_000 {
            program.run(batch.clone()).expect("runs without a pause");
        }
    });
}

#[test]
fn one_program_serves_many_threads() {
    let program = program("SELECT id, s FROM t WHERE id % 2 = 0");
    let check = |start: i64| {
        for _ in 0..200 {
            let out = program.run(rows(start..start + 10)).expect("runs");
            assert_eq!(out.column(0).as_primitive::<arrow::datatypes::Int64Type>().values()[0], start);
        }
    };
    std::thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || check(thread * 100));
        }
    });
}
