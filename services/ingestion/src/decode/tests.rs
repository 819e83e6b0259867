mod beyond;

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, AsArray, Int32Array, Int64Array, StringArray},
    datatypes::{DataType, Field, Int64Type, Schema, TimeUnit, TimestampMicrosecondType},
    record_batch::RecordBatch,
    util::display::array_value_to_string,
};
use batch::{Compression, encode_stream};
use bytes::Bytes;
use pipeline::{Format, SourceOptions, SourceSpec, SourceStage, UnknownColumns};
use rand::{Rng, SeedableRng, rngs::StdRng};
use topics::Message;

use super::*;

const LIMIT: usize = 900_000;

/// A source of orders: id NOT NULL, amount a decimal, note a text, at a timestamp, items a list.
fn orders(format: Format, options: SourceOptions) -> SourceStage {
    let items = DataType::List(Arc::new(Field::new("item", DataType::Int64, true)));
    let mut fields = vec![
        Field::new("id", DataType::Int64, false),
        Field::new("amount", DataType::Decimal128(12, 2), true),
        Field::new("note", DataType::Utf8, true),
        Field::new("at", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), true),
    ];
    if format == Format::Json {
        fields.push(Field::new("items", items, true));
    }
    stage(format, options, fields)
}

fn stage(format: Format, options: SourceOptions, fields: Vec<Field>) -> SourceStage {
    SourceStage {
        pipeline: "shop".into(),
        name: "orders".into(),
        incarnation: 1,
        spec: SourceSpec {
            name: "orders".into(),
            columns: Vec::new(),
            watermark: None,
            topic: Some("shop.orders".into()),
            format,
            options,
        },
        schema: Arc::new(Schema::new(fields)),
        topic: "shop.orders".into(),
        landing: false,
        channel: "channel".into(),
        rejected: "rejected".into(),
    }
}

fn json() -> SourceStage {
    orders(Format::Json, SourceOptions::default())
}

fn csv(header: bool) -> SourceStage {
    orders(Format::Csv, SourceOptions { csv_header: header, ..SourceOptions::default() })
}

fn strict(format: Format) -> SourceStage {
    let options =
        SourceOptions { unknown_columns: UnknownColumns::Reject, csv_header: true, ..SourceOptions::default() };
    orders(format, options)
}

/// Messages at offsets 10, 20, 30, …: holes are normal.
fn messages<P: AsRef<[u8]>>(payloads: &[P]) -> Vec<Message> {
    let message = |(index, payload): (usize, &P)| Message {
        offset: 10 * (index as u64 + 1),
        timestamp_ms: 1_000 + index as i64,
        key: None,
        payload: Bytes::copy_from_slice(payload.as_ref()),
        headers: Vec::new(),
    };
    payloads.iter().enumerate().map(message).collect()
}

fn with_content_type(mut messages: Vec<Message>, content_type: &'static str) -> Vec<Message> {
    for message in &mut messages {
        message.headers.push(("content-type".into(), Bytes::from_static(content_type.as_bytes())));
    }
    messages
}

fn decode(source: &SourceStage, run: &[Message]) -> Decoded {
    Decoder::new(source, LIMIT).decode(run)
}

/// Every good row as (offset, its values as text).
fn rows(decoded: &Decoded) -> Vec<(i64, String)> {
    let mut rows = Vec::new();
    for part in &decoded.parts {
        assert_eq!(part.batch.num_rows(), part.offsets.len());
        assert!(part.batch.num_rows() > 0, "no empty parts");
        for (row, &offset) in part.offsets.iter().enumerate() {
            let values = part.batch.columns().iter().map(|column| array_value_to_string(column, row).unwrap());
            rows.push((offset, values.collect::<Vec<_>>().join("|")));
        }
    }
    rows
}

fn ids(decoded: &Decoded) -> Vec<(i64, i64)> {
    let mut ids = Vec::new();
    for part in &decoded.parts {
        let column = part.batch.column_by_name("id").unwrap().as_primitive::<Int64Type>();
        ids.extend(part.offsets.iter().copied().zip(column.values().iter().copied()));
    }
    ids
}

/// Every bad row as (offset, row, bytes).
fn rejects(decoded: &Decoded) -> Vec<(u64, u32, String)> {
    let text = |row: &RejectedRow| String::from_utf8_lossy(&row.bytes).into_owned();
    decoded.rejected.iter().map(|row| (row.offset, row.row, text(row))).collect()
}

fn only_reject(decoded: &Decoded) -> &RejectedRow {
    assert_eq!(decoded.rejected.len(), 1, "{:?}", decoded.rejected);
    &decoded.rejected[0]
}

#[test]
fn a_message_may_be_one_object_or_lines_or_concatenated_or_pretty_printed() {
    let run = messages(&[
        r#"{"id":1,"amount":1.5,"note":"a","at":"2026-01-02T03:04:05Z"}"#,
        "{\"id\":2}\n{\"id\":3}\r\n\n{\"id\":4}",
        r#"{"id":5}{"id":6} {"id":7}"#,
        "{\n  \"id\": 8,\n  \"items\": [\n    1,\n    2\n  ]\n}\n{\n\"id\": 9\n}",
    ]);
    let decoded = decode(&json(), &run);
    assert_eq!(rejects(&decoded), []);
    assert_eq!(ids(&decoded), [(10, 1), (20, 2), (20, 3), (20, 4), (30, 5), (30, 6), (30, 7), (40, 8), (40, 9)]);
    assert_eq!(decoded.parts.len(), 1, "a clean run is one batch");
    assert_eq!(rows(&decoded)[0].1, "1|1.50|a|2026-01-02T03:04:05Z|");
    assert_eq!(rows(&decoded)[7].1, "8||||[1, 2]");
}

#[test]
fn timestamps_without_an_offset_are_utc_and_integers_are_microseconds() {
    let run = messages(&[
        r#"{"id":1,"at":"2026-01-02 03:04:05.250"}"#,
        r#"{"id":2,"at":"2026-01-02T03:04:05+02:00"}"#,
        r#"{"id":3,"at":1700000000000000}"#,
    ]);
    let decoded = decode(&json(), &run);
    let at = decoded.parts[0].batch.column_by_name("at").unwrap().as_primitive::<TimestampMicrosecondType>();
    assert_eq!(at.values().as_ref(), [1_767_323_045_250_000, 1_767_315_845_000_000, 1_700_000_000_000_000]);
}

#[test]
fn a_truncated_message_never_takes_bytes_of_the_next() {
    for truncated in [r#"{"id":1,"note":"#, r#"{"id":1,"note":"x"#, r#"{"id":1"#, "{", r#"{"id":"#, "12", "tru"] {
        let run = messages(&[r#"{"id":7}"#, truncated, "}", r#"{"id":9}"#, r#","note":"z"}"#]);
        let decoded = decode(&json(), &run);
        assert_eq!(ids(&decoded), [(10, 7), (40, 9)], "{truncated}");
        let expected = [(20, 0, truncated.into()), (30, 0, "}".into()), (50, 0, r#","note":"z"}"#.into())];
        assert_eq!(rejects(&decoded), expected, "{truncated}");
    }
}

#[test]
fn pieces_that_would_make_a_row_together_make_none_apart() {
    for (first, second) in [
        (r#"{"id":1,"note":"#, r#""x"}"#),
        (r#"{"id":1,"note":"a"#, r#"b"}"#),
        (r#"{"id":1"#, "2}"),
        (r#"{"id":1"#, r#","note":"x"}"#),
        ("{", r#""id":1}"#),
    ] {
        let decoded = decode(&json(), &messages(&[r#"{"id":7}"#, first, second, r#"{"id":9}"#]));
        assert_eq!(ids(&decoded), [(10, 7), (40, 9)], "{first} and {second}");
        let lines = messages(&[format!("{{\"id\":7}}\n{first}\n{second}\n{{\"id\":9}}")]);
        let decoded = decode(&json(), &with_content_type(lines, "application/x-ndjson"));
        assert_eq!(ids(&decoded), [(10, 7), (10, 9)], "{first} and {second}, as lines");
        assert!(decoded.rejected.len() >= 2);
    }
}

#[test]
fn a_bad_row_is_alone_in_its_fate() {
    let bad = [
        r#"{"id":"x"}"#,
        r#"{"id":null}"#,
        r#"{"note":"no id"}"#,
        r#"{"id":1,"amount":"much"}"#,
        r#"{"id":1,"at":"yesterday"}"#,
        r#"{"id":1,"items":{}}"#,
        r#"{"id":1,,"note":}"#,
        r#"{"id":1"#,
        r#"{"id":1,"note":"open"#,
        r#"{"id":1]"#,
        "nonsense",
        "17",
        "null",
        r#"[{"id":1}]"#,
        r#""text""#,
        r#"{"id":1,"note":"\ud800"}"#,
    ];
    for bad in bad {
        let together = messages(&[format!("{{\"id\":1}}\n{bad}\n{{\"id\":2}}\n")]);
        let decoded = decode(&json(), &together);
        assert_eq!(ids(&decoded), [(10, 1), (10, 2)], "{bad}");
        assert_eq!(rejects(&decoded), [(10, 1, bad.to_owned())]);
        assert_eq!(only_reject(&decoded).line, Some(2), "{bad}");

        let apart = messages(&["{\"id\":1}", bad, "{\"id\":2}"]);
        let decoded = decode(&json(), &apart);
        assert_eq!(ids(&decoded), [(10, 1), (30, 2)], "{bad}");
        assert_eq!(rejects(&decoded), [(20, 0, bad.to_owned())]);
        assert_eq!(only_reject(&decoded).produced_at_ms, 1_001);
    }
}

#[test]
fn the_column_at_fault_is_named() {
    for (row, column, fault) in [
        (r#"{"id":"x"}"#, "id", Fault::Value),
        (r#"{"id":null}"#, "id", Fault::Null),
        (r#"{"note":"no id"}"#, "id", Fault::Null),
        (r#"{"id":1,"amount":"much"}"#, "amount", Fault::Value),
        (r#"{"id":1,"amount":12345678901.5}"#, "amount", Fault::Value),
        (r#"{"id":1,"note":5}"#, "note", Fault::Value),
        (r#"{"id":1,"at":"yesterday"}"#, "at", Fault::Value),
        (r#"{"id":1,"items":["x"]}"#, "items", Fault::Value),
    ] {
        let decoded = decode(&json(), &messages(&[row]));
        let reject = only_reject(&decoded);
        assert_eq!((reject.column.as_deref(), reject.fault), (Some(column), fault), "{row}: {}", reject.reason);
        assert!(reject.reason.contains(&format!("`{column}`")), "{}", reject.reason);
    }
}

#[test]
fn unknown_columns_are_ignored_or_rejected_by_name() {
    let run = messages(&[r#"{"id":1,"colour":"red"}"#, r#"{"id":2}"#]);
    assert_eq!(ids(&decode(&json(), &run)), [(10, 1), (20, 2)]);
    let decoded = decode(&strict(Format::Json), &run);
    assert_eq!(ids(&decoded), [(20, 2)]);
    assert_eq!(only_reject(&decoded).column.as_deref(), Some("colour"));
    assert_eq!(only_reject(&decoded).fault, Fault::Columns);
}

#[test]
fn an_unknown_column_of_any_length_is_named_in_short() {
    let name = "é".repeat(300_000);
    let json_row = format!(r#"{{"id":1,"{name}":2}}"#);
    let csv_rows = format!("id,{name}\n1,2\n");
    let column: ArrayRef = Arc::new(Int64Array::from(vec![2]));
    let stream = arrow_message(vec![("id", ints(vec![Some(1)])), (name.as_str(), column)]);
    for (format, message) in
        [(Format::Json, Bytes::from(json_row)), (Format::Csv, Bytes::from(csv_rows)), (Format::Arrow, stream)]
    {
        let decoded = decode(&strict(format), &messages(&[&message[..]]));
        let reject = only_reject(&decoded);
        let column = reject.column.as_deref().unwrap();
        assert!(column.starts_with('é') && column.ends_with('…'), "{format:?}");
        assert!(column.len() < 500 && reject.reason.len() < 500, "{format:?}");
        assert_eq!(reject.bytes, message);
    }
}

#[test]
fn deep_nesting_is_a_rejected_row_not_a_dead_process() {
    let deep = |depth: usize| format!(r#"{{"id":{}{}}}"#, "[".repeat(depth), "]".repeat(depth));
    for depth in [64, 127, 200, 200_000] {
        let lines = format!("{{\"id\":1}}\n{}\n{{\"id\":2}} {{\"id\":3}}", deep(depth));
        let decoded = decode(&json(), &messages(&[lines.as_str(), &deep(depth), &"[".repeat(depth), r#"{"id":4}"#]));
        assert_eq!(ids(&decoded), [(10, 1), (10, 2), (10, 3), (40, 4)], "{depth}");
        assert_eq!(decoded.rejected.len(), 3);
        assert_eq!(decoded.rejected[0].fault, Fault::TooLarge);
    }
    let quoted = format!(r#"{{"id":1,"note":"{}"}}"#, "[".repeat(500));
    assert_eq!(ids(&decode(&json(), &messages(&[quoted]))), [(10, 1)], "brackets in a text are not nesting");
    let unknown = format!(r#"{{"id":1,"x":{}1{}}}"#, "[".repeat(60), "]".repeat(60));
    assert_eq!(ids(&decode(&json(), &messages(&[unknown]))), [(10, 1)], "shallow enough");
}

#[test]
fn an_empty_message_is_seen() {
    for source in [json(), csv(true), csv(false), orders(Format::Arrow, SourceOptions::default())] {
        let decoded = decode(&source, &messages(&["", " \n"]));
        assert_eq!(decoded.rejected.len(), 2, "{:?}", source.spec.format);
        assert!(decoded.rejected.iter().all(|row| row.fault == Fault::Unreadable));
        assert!(decoded.parts.is_empty());
    }
}

#[test]
fn bytes_that_are_not_text_are_kept_as_they_came() {
    let bad: &[u8] = b"{\"id\":1,\"note\":\"\xff\xfe\"}";
    let split: [&[u8]; 2] = [b"{\"id\":1,\"note\":\"\xc3\"}", b"{\"id\":2,\"note\":\"\xa9\"}"];
    let run = messages(&[b"{\"id\":7}".as_slice(), bad, split[0], split[1]]);
    let decoded = decode(&json(), &run);
    assert_eq!(ids(&decoded), [(10, 7)]);
    let kept: Vec<&[u8]> = decoded.rejected.iter().map(|row| row.bytes.as_ref()).collect();
    assert_eq!(kept, [bad, split[0], split[1]]);
    assert!(decoded.rejected.iter().all(|row| row.fault == Fault::Unreadable));
}

#[test]
fn the_inside_of_a_broken_pretty_printed_object_is_not_taken_for_rows() {
    let broken = "{\n  \"id\": 1,\n  \"items\": [\n    {\"id\": 666},\n    {\"id\": 667}\n  ], \"oops\n}";
    let text = format!("{{\"id\":1}}\n{broken}\n{{\"id\":2}}\n{{\n\"id\":3}}");
    let decoded = decode(&json(), &messages(&[text]));
    assert_eq!(ids(&decoded), [(10, 1), (10, 2), (10, 3)]);
    assert_eq!(rejects(&decoded), [(10, 1, broken.to_owned())]);
}

#[test]
fn where_each_line_stands_alone_no_object_spans_lines() {
    let text = "{\"id\":1,\"note\":\n{\"id\":2}\n}\n{\"id\":3}";
    let run = messages(&[text]);
    assert_eq!(ids(&decode(&json(), &run)), [(10, 3)], "as JSON: one object with a bad note");
    let lines = with_content_type(run, "application/x-ndjson");
    let decoded = decode(&json(), &lines);
    assert_eq!(ids(&decoded), [(10, 2), (10, 3)]);
    assert_eq!(rejects(&decoded), [(10, 0, "{\"id\":1,\"note\":".into()), (10, 2, "}".into())]);
}

#[test]
fn a_content_type_overrides_the_source_and_a_foreign_one_does_not() {
    let mut run = messages(&["id,note\n1,a\n", "2,,b,\n", r#"{"id":3}"#, r#"{"id":4}"#]);
    for (index, content_type) in
        ["text/csv; header=present", "text/csv;header=absent", "application/cloudevents"].into_iter().enumerate()
    {
        run[index].headers.push(("Content-Type".into(), content_type.into()));
    }
    let source = stage(
        Format::Json,
        SourceOptions::default(),
        orders(Format::Csv, SourceOptions::default())
            .schema
            .fields()
            .iter()
            .map(|field| field.as_ref().clone())
            .collect(),
    );
    let decoded = decode(&source, &run);
    assert_eq!(rejects(&decoded), []);
    assert_eq!(ids(&decoded), [(10, 1), (20, 2), (30, 3), (40, 4)]);
}

#[test]
fn csv_columns_are_found_by_name_where_there_is_a_header() {
    let run = messages(&[
        "\u{feff}note,id,colour\r\n\"two\nlines, and \"\"quotes\"\"\",1,red\r\n,2,\r\n",
        "note,id,colour\nc,3,",
        "id\n4\n\n5\n",
        "id\n",
    ]);
    let decoded = decode(&csv(true), &run);
    assert_eq!(rejects(&decoded), []);
    let rows = rows(&decoded);
    assert_eq!(rows[0], (10, "1||two\nlines, and \"quotes\"|".to_owned()));
    assert_eq!(ids(&decoded), [(10, 1), (10, 2), (20, 3), (30, 4), (30, 5)]);
}

#[test]
fn a_header_at_fault_rejects_its_message_and_no_other() {
    let run = messages(&["id,note\n1,a\n", "id,colour\n2,red\n", "note\nx\n", "id,id\n3,3\n", "id,note\n4,b\n"]);
    let decoded = decode(&strict(Format::Csv), &run);
    assert_eq!(ids(&decoded), [(10, 1), (50, 4)]);
    let columns: Vec<_> = decoded.rejected.iter().map(|row| row.column.clone().unwrap()).collect();
    assert_eq!(columns, ["colour", "id", "id"]);
    assert!(decoded.rejected.iter().all(|row| row.fault == Fault::Columns));
    assert_eq!(rejects(&decoded)[0], (20, 0, "id,colour\n2,red\n".into()), "the header is kept with the rows");
}

#[test]
fn a_csv_header_of_thousands_of_names_is_taken_and_one_of_too_many_rejects_its_message() {
    let table = |names: usize, rows: usize| {
        let unknown: String = (1..names).map(|name| format!("c{name},")).collect();
        let rows: String = (1..=rows).map(|id| format!("{}{id}\n", ",".repeat(names - 1))).collect();
        format!("{unknown}id\n{rows}")
    };
    // More rows than are parsed together where they are that wide.
    let wide = table(9_000, 130);
    let bad_row = format!("{wide}{}x\n", ",".repeat(8_999));
    let run = messages(&[wide.as_str(), &table(10_001, 2), "id\n3\n", &bad_row]);
    let decoded = decode(&csv(true), &run);
    let all = |offset: i64| (1..=130).map(move |id| (offset, id));
    assert_eq!(ids(&decoded), all(10).chain([(30, 3)]).chain(all(40)).collect::<Vec<_>>());
    let [header, row] = &decoded.rejected[..] else { panic!("{} rejected", decoded.rejected.len()) };
    assert_eq!((header.offset, header.fault, &header.bytes), (20, Fault::Columns, &run[1].payload));
    assert_eq!(header.reason, "the header has 10001 fields, at most 10000 are taken");
    assert_eq!((row.offset, row.row, row.line, row.column.as_deref()), (40, 130, Some(132), Some("id")));
}

#[test]
fn a_csv_row_of_very_many_fields_is_alone_in_its_fate() {
    let row = format!("{}\"a,b\"", ",".repeat(1_000_000));
    let decoded = decode(&csv(true), &messages(&[format!("id\n1\n{row}\n2\n")]));
    assert_eq!(ids(&decoded), [(10, 1), (10, 2)]);
    assert_eq!(only_reject(&decoded).reason, "expected 1 fields, found 1000001");
}

#[test]
fn a_bad_csv_row_is_alone_in_its_fate() {
    for (bad, column, fault) in [
        ("x,1.5,a,", Some("id"), Fault::Value),
        (",1.5,a,", Some("id"), Fault::Null),
        ("1,much,a,", Some("amount"), Fault::Value),
        ("1,1.5,a,yesterday", Some("at"), Fault::Value),
        ("1,1.5", None, Fault::Columns),
        ("1,1.5,a,,more", None, Fault::Columns),
        ("1,1.5,\"open,", None, Fault::Syntax),
    ] {
        // A later quote would close an open one.
        let later = if fault == Fault::Syntax { "3,2.5,a b," } else { "3,2.5,\"a\nb\"," };
        let text = format!("1,,,\n{bad}\n2,,,\n{later}2026-01-01\n");
        let decoded = decode(&csv(false), &messages(&[text.as_str(), "4,,,"]));
        assert_eq!(ids(&decoded), [(10, 1), (10, 2), (10, 3), (20, 4)], "{bad}");
        let reject = &decoded.rejected[0];
        assert_eq!((reject.row, reject.line), (1, Some(2)), "{bad}");
        assert_eq!((reject.column.as_deref(), reject.fault), (column, fault), "{bad}: {}", reject.reason);
        assert_eq!(String::from_utf8_lossy(&reject.bytes).trim_end(), bad);
    }
}

#[test]
fn an_open_quote_at_the_end_of_a_csv_message_does_not_take_the_next() {
    for open in ["1,,\"", "1,,\"open\n", "1,,a\"b,\"\n"] {
        let decoded = decode(&csv(false), &messages(&["7,,,", open, "\",,\n", "9,,x,"]));
        assert_eq!(ids(&decoded), [(10, 7), (40, 9)], "{open:?}");
        assert_eq!(decoded.rejected.len(), 2, "{open:?}");
    }
}

#[test]
fn csv_fields_that_are_texts_only_when_joined_are_rejected() {
    let fields = vec![Field::new("a", DataType::Utf8, true), Field::new("b", DataType::Utf8, true)];
    let source = stage(Format::Csv, SourceOptions::default(), fields);
    let run = messages(&[b"x,\xc3\n".as_slice(), b"\xa9,x\nok,ok\n", b"\xc3,\xa9\n"]);
    let decoded = decode(&source, &run);
    assert_eq!(rows(&decoded), [(20, "ok|ok".to_owned())]);
    assert!(decoded.rejected.iter().all(|row| row.fault == Fault::Unreadable), "{:?}", decoded.rejected);
    assert_eq!(decoded.rejected.len(), 3);
}

#[test]
fn a_csv_message_full_of_open_quotes_costs_no_more_than_its_length() {
    let hostile = "a\"b,\"\n".repeat(100_000);
    let decoded = decode(&csv(false), &messages(&[hostile.as_str()]));
    assert_eq!(decoded.rejected.len(), 100_000);
}

fn arrow_message(columns: Vec<(&str, ArrayRef)>) -> Bytes {
    encode_stream(&RecordBatch::try_from_iter(columns).unwrap(), Compression::None).unwrap()
}

fn ints(values: Vec<Option<i64>>) -> ArrayRef {
    Arc::new(Int64Array::from(values))
}

fn texts(values: Vec<Option<&str>>) -> ArrayRef {
    Arc::new(StringArray::from(values))
}

#[test]
fn arrow_columns_are_matched_by_name_and_cast() {
    let run = messages(&[
        arrow_message(vec![
            ("note", texts(vec![Some("a"), None])),
            ("colour", texts(vec![None, None])),
            ("id", Arc::new(Int32Array::from(vec![1, 2]))),
            ("amount", ints(vec![Some(3), None])),
        ]),
        arrow_message(vec![("id", texts(vec![Some("3")])), ("at", texts(vec![Some("2026-01-02")]))]),
    ]);
    let decoded = decode(&orders(Format::Arrow, SourceOptions::default()), &run);
    assert_eq!(rejects(&decoded), []);
    let rows: Vec<_> = rows(&decoded).into_iter().map(|(_, row)| row).collect();
    assert_eq!(rows, ["1|3.00|a|", "2|||", "3|||2026-01-02T00:00:00Z"]);
    let strict = decode(&strict(Format::Arrow), &run);
    assert_eq!(only_reject(&strict).column.as_deref(), Some("colour"));
    assert_eq!(ids(&strict), [(20, 3)]);
}

#[test]
fn an_arrow_column_that_can_never_fit_rejects_the_message() {
    let run = messages(&[
        arrow_message(vec![("id", Arc::new(arrow::array::BooleanArray::from(vec![true])))]),
        arrow_message(vec![("id", Arc::new(arrow::array::Float64Array::from(vec![1.5])))]),
        arrow_message(vec![("note", texts(vec![Some("no id")]))]),
        Bytes::from_static(b"not arrow at all"),
        arrow_message(vec![("id", ints(vec![Some(5)]))]),
    ]);
    let decoded = decode(&orders(Format::Arrow, SourceOptions::default()), &run);
    assert_eq!(ids(&decoded), [(50, 5)]);
    let faults: Vec<_> = decoded.rejected.iter().map(|row| (row.offset, row.fault, row.column.as_deref())).collect();
    let id = Some("id");
    assert_eq!(
        faults,
        [(10, Fault::Columns, id), (20, Fault::Columns, id), (30, Fault::Columns, id), (40, Fault::Unreadable, None)]
    );
    assert_eq!(decoded.rejected[0].reason, "column `id`: expected Int64, found Boolean");
    assert_eq!(decoded.rejected[0].bytes, run[0].payload);
}

#[test]
fn an_arrow_value_that_does_not_fit_rejects_its_row_and_can_be_sent_again() {
    let run = messages(&[arrow_message(vec![
        ("id", texts(vec![Some("1"), Some("x"), None, Some("4")])),
        ("note", texts(vec![None, Some("bad"), None, None])),
    ])]);
    let source = orders(Format::Arrow, SourceOptions::default());
    let decoded = decode(&source, &run);
    assert_eq!(ids(&decoded), [(10, 1), (10, 4)]);
    let faults: Vec<_> = decoded.rejected.iter().map(|row| (row.row, row.fault)).collect();
    assert_eq!(faults, [(1, Fault::Value), (2, Fault::Null)]);
    let again = decode_stream_of(&decoded.rejected[0].bytes);
    assert_eq!(again.num_rows(), 1);
    assert_eq!(again.column_by_name("note").unwrap().as_string::<i32>().value(0), "bad");
}

fn decode_stream_of(bytes: &Bytes) -> RecordBatch {
    batch::decode_stream(bytes, &batch::Limits::default()).unwrap().remove(0)
}

#[test]
fn a_row_too_large_for_a_message_is_rejected_not_dropped() {
    let note = "x".repeat(5_000);
    let large = format!(r#"{{"id":2,"note":"{note}"}}"#);
    let lines = format!("{{\"id\":3}}\n{large}\n{{\"id\":4}}");
    let run = messages(&[r#"{"id":1}"#, large.as_str(), lines.as_str()]);
    let decoded = Decoder::new(&json(), 8_000).decode(&run);
    assert_eq!(ids(&decoded), [(10, 1), (30, 3), (30, 4)]);
    assert_eq!(decoded.rejected.len(), 2);
    assert!(decoded.rejected.iter().all(|row| row.fault == Fault::TooLarge));
    assert_eq!(decoded.rejected[0].bytes, large.as_bytes());
    let second = &decoded.rejected[1];
    assert_eq!((second.row, second.line, &second.bytes[..]), (1, Some(2), large.as_bytes()), "as it came");
    assert_eq!(ids(&Decoder::new(&json(), 20_000).decode(&run)).len(), 5, "it fits a larger message");
}

#[test]
fn a_message_with_more_rows_than_a_unit_may_yield_is_rejected_whole() {
    let rows = delivery::MAX_ROWS_PER_UNIT as usize;
    let source = stage(Format::Json, SourceOptions::default(), vec![Field::new("a", DataType::Boolean, true)]);
    let over = messages(&["{}\n".repeat(rows + 1).as_str(), "{}"]);
    let decoded = decode(&source, &over);
    assert_eq!(only_reject(&decoded).fault, Fault::TooLarge);
    assert_eq!(decoded.parts.iter().map(|part| part.batch.num_rows()).sum::<usize>(), 1);
    let exactly = decode(&source, &messages(&["{}\n".repeat(rows).as_str()]));
    assert_eq!(exactly.parts.iter().map(|part| part.batch.num_rows()).sum::<usize>(), rows);
}

/// A line of JSON: mostly good, often bad in some way, sometimes two objects.
fn random_line(random: &mut StdRng) -> String {
    let id: u32 = random.random_range(0..1000);
    match random.random_range(0..40) {
        0 => format!(r#"{{"id":"x{id}"}}"#),
        1 => format!(r#"{{"note":"{id}"}}"#),
        2 => format!(r#"{{"id":{id},"note":"tr"#),
        3 => format!(r#"{{"id":{id},,"amount":1.5,}}"#),
        4 => format!(r#"{{"id":{id}]"#),
        5 => "garbage".to_owned(),
        6 => format!("{id}"),
        7 => format!(r#"{{"id":{id}}} {{"id":{id}}}"#),
        8 => format!(r#"{{"id":{id},"items":[[1]]}}"#),
        9 => format!(r#"{{"id":{id},"at":"{id}"}}"#),
        10 => format!(r#"{{"id":{id}}} junk"#),
        11 => format!(r#"{{"id":{id},"x":{}}}"#, "[".repeat(70) + &"]".repeat(70)),
        12 => format!(r#"{{"id":{id},"note":"\ud800"}}"#),
        _ => format!(r#"{{"id":{id},"amount":"{id}.25","note":"n{id} \"\\","at":"2026-01-01","items":[1,2]}}"#),
    }
}

fn seeds() -> Range<u64> {
    match std::env::var("TAILWATER_SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => seed..seed + 1,
        None => 0..60,
    }
}

/// The verdict on a line on its own: values of good rows and bytes of bad ones, in order.
type Verdicts = (Vec<String>, Vec<String>);

fn verdicts(source: &SourceStage, run: &[Message], split: &mut impl FnMut(usize) -> usize) -> Verdicts {
    let mut decoder = Decoder::new(source, LIMIT);
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    let mut rest = run;
    while !rest.is_empty() {
        let (now, later) = rest.split_at(split(rest.len()).clamp(1, rest.len()));
        let decoded = decoder.decode(now);
        good.extend(rows(&decoded).into_iter().map(|(_, row)| row));
        // An unfinished row is kept together with the lines after it that cannot begin a row.
        let lines = decoded.rejected.iter().flat_map(|row| row.bytes.split(|&byte| byte == b'\n'));
        bad.extend(
            lines.map(|line| String::from_utf8_lossy(line.trim_ascii()).into_owned()).filter(|line| !line.is_empty()),
        );
        rest = later;
    }
    (good, bad)
}

/// Shows the first difference only: the lists are long.
fn assert_same(found: &Verdicts, expected: &Verdicts, what: &str) {
    for (found, expected) in [(&found.0, &expected.0), (&found.1, &expected.1)] {
        let differs = found.iter().zip(expected).position(|(found, expected)| found != expected);
        assert_eq!(differs.map(|place| (&found[place], &expected[place])), None, "{what}");
        assert_eq!(found.len(), expected.len(), "{what}");
    }
}

#[test]
fn the_verdict_on_a_row_never_depends_on_its_neighbours() {
    for seed in seeds() {
        let mut random = StdRng::seed_from_u64(seed);
        let count = random.random_range(1..400);
        let lines: Vec<String> = (0..count).map(|_| random_line(&mut random)).collect();
        let source = if seed % 2 == 0 { json() } else { strict(Format::Json) };
        let alone = verdicts(&source, &messages(&lines), &mut |_| 1);
        assert!(seed != 0 || (!alone.0.is_empty() && !alone.1.is_empty()), "the generator makes both");

        let together = verdicts(&source, &messages(&lines), &mut |left| left);
        assert_same(&together, &alone, &format!("seed {seed}: one message a line, all at once"));

        let mut grouped: Vec<String> = Vec::new();
        for line in &lines {
            match grouped.last_mut().filter(|_| random.random_bool(0.9)) {
                Some(last) => *last += &format!("\n{line}"),
                None => grouped.push(line.clone()),
            }
        }
        for content_type in [None, Some("application/x-ndjson")] {
            let run = messages(&grouped);
            let run = content_type.map_or(run.clone(), |content_type| with_content_type(run, content_type));
            let mut random = StdRng::seed_from_u64(seed);
            let batched = verdicts(&source, &run, &mut |left| random.random_range(1..=left));
            assert_same(&batched, &alone, &format!("seed {seed}: several lines a message, {content_type:?}"));
        }
    }
}

fn random_csv_line(random: &mut StdRng) -> String {
    let id: u32 = random.random_range(0..1000);
    match random.random_range(0..20) {
        0 => format!("x{id},,,"),
        1 => format!("{id},,"),
        2 => format!("{id},,,,"),
        3 => format!(",{id},,"),
        4 => format!("{id},,a\"b,"),
        5 => format!("{id},,\"two\nlines\",2026-01-01"),
        6 => format!("{id},x,,"),
        7 => format!("{id},,\"a \"\"quoted\"\" word\"x,"),
        _ => format!("{id},{id}.5,note {id},2026-01-01T00:00:00Z"),
    }
}

#[test]
fn the_verdict_on_a_csv_row_never_depends_on_its_neighbours() {
    for seed in seeds() {
        let mut random = StdRng::seed_from_u64(seed);
        let count = random.random_range(1..300);
        let lines: Vec<String> = (0..count).map(|_| random_csv_line(&mut random)).collect();
        let alone = verdicts(&csv(false), &messages(&lines), &mut |_| 1);
        let mut grouped: Vec<String> = Vec::new();
        for line in &lines {
            match grouped.last_mut().filter(|_| random.random_bool(0.9)) {
                Some(last) => *last += &format!("\n{line}"),
                None => grouped.push(line.clone()),
            }
        }
        let batched = verdicts(&csv(false), &messages(&grouped), &mut |left| random.random_range(1..=left));
        assert_same(&batched, &alone, &format!("seed {seed}"));
        let headed: Vec<String> = grouped.iter().map(|text| format!("id,amount,note,at\r\n{text}")).collect();
        let headed = verdicts(&csv(true), &messages(&headed), &mut |left| left);
        assert_same(&headed, &alone, &format!("seed {seed}: with a header"));
    }
}

#[test]
fn whatever_the_bytes_are_every_message_is_accounted_for() {
    let good = r#"{"id":1,"amount":"2.25","note":"n \u00e9 \"\\","at":"2026-01-01","items":[1,2]}"#;
    let table = "id,note\n1,\"a\nb\"\n2,c\n";
    let stream = arrow_message(vec![("id", ints(vec![Some(1)])), ("note", texts(vec![Some("a")]))]);
    for seed in 0..400 {
        let mut random = StdRng::seed_from_u64(seed);
        for (source, seedling) in [
            (json(), good.as_bytes()),
            (csv(true), table.as_bytes()),
            (csv(false), table.as_bytes()),
            (orders(Format::Arrow, SourceOptions::default()), stream.as_ref()),
        ] {
            let mut bytes = seedling.repeat(random.random_range(1..4));
            for _ in 0..random.random_range(1..6) {
                let place = random.random_range(0..bytes.len());
                match random.random_range(0..4) {
                    0 => bytes[place] = random.random(),
                    1 => bytes.truncate(place.max(1)),
                    2 => bytes.insert(place, *b"\"{}[],\n\\".get(random.random_range(0..8)).unwrap()),
                    _ => drop(bytes.remove(place)),
                }
                if bytes.is_empty() {
                    bytes.push(b'{');
                }
            }
            let clean = seedling.to_vec();
            let decoded = decode(&source, &messages(&[clean.clone(), bytes.clone(), clean]));
            let good_of = |offset: i64| rows(&decoded).iter().filter(|(of, _)| *of == offset).count();
            assert_eq!(good_of(10), good_of(30), "seed {seed}: neighbours are left alone");
            let lost = good_of(20) == 0 && !decoded.rejected.iter().any(|row| row.offset == 20);
            let header_only = matches!(source.spec.format, Format::Csv | Format::Arrow);
            assert!(!lost || header_only, "seed {seed}: {:?}", String::from_utf8_lossy(&bytes));
        }
    }
}

#[test]
fn an_arrow_stream_cut_anywhere_or_with_any_byte_changed_harms_no_neighbour() {
    let ids: ArrayRef = Arc::new(Int64Array::from(vec![1, 2, 3]));
    let notes: ArrayRef = Arc::new(StringArray::from(vec![Some("a"), None, Some("b")]));
    let batch = RecordBatch::try_from_iter([("id", ids), ("note", notes)]).unwrap();
    let whole = encode_stream(&batch, Compression::Lz4).unwrap();
    let source = orders(Format::Arrow, SourceOptions::default());
    let mut decoder = Decoder::new(&source, LIMIT);
    let mut hostile: Vec<Vec<u8>> = (0..whole.len()).map(|length| whole[..length].to_vec()).collect();
    for place in 0..whole.len() {
        for value in [0, 0x7f, 0xff, whole[place] ^ 1, whole[place] ^ 0x80] {
            let mut changed = whole.to_vec();
            changed[place] = value;
            hostile.push(changed);
        }
    }
    for bytes in hostile {
        let run = messages(&[&whole[..], &bytes[..], &whole[..]]);
        let decoded = decoder.decode(&run);
        let found = rows(&decoded);
        assert_eq!(found.iter().filter(|(offset, _)| *offset != 20).count(), 6, "the neighbours are whole");
        assert!(decoded.rejected.iter().all(|row| row.offset == 20));
    }
}

#[test]
fn a_message_too_large_to_decode_is_rejected_with_its_beginning() {
    let huge = format!("{{\"id\":1,\"note\":\"{}\"}}", "x".repeat(MAX_MESSAGE_BYTES));
    let run = messages(&["{\"id\":1}", &huge, "{\"id\":3}"]);
    let decoded = decode(&json(), &run);
    assert_eq!(rows(&decoded).iter().map(|(offset, _)| *offset).collect::<Vec<_>>(), [10, 30]);
    let [rejected] = &decoded.rejected[..] else { panic!("{} rejected", decoded.rejected.len()) };
    assert_eq!((rejected.offset, rejected.fault, rejected.bytes.len()), (20, Fault::TooLarge, KEPT_BYTES));
    assert!(rejected.reason.contains(&huge.len().to_string()), "{}", rejected.reason);
}

#[test]
fn a_fraction_in_a_whole_number_column_rejects_its_row_and_no_other() {
    let decoded = decode(&json(), &messages(&["{\"id\":1}\n{\"id\":2.5}\n{\"id\":3.0,\"amount\":1.25}", "{\"id\":4}"]));
    let ids: Vec<_> = rows(&decoded).into_iter().map(|(_, row)| row.split('|').next().unwrap().to_owned()).collect();
    assert_eq!(ids, ["1", "3", "4"]);
    let [rejected] = &decoded.rejected[..] else { panic!("{} rejected", decoded.rejected.len()) };
    assert_eq!(
        (rejected.line, rejected.column.as_deref(), &rejected.bytes[..10]),
        (Some(2), Some("id"), &b"{\"id\":2.5}"[..])
    );
    assert!(rejected.reason.contains("2.5 is not a whole number"), "{}", rejected.reason);
}

#[test]
fn a_number_beyond_what_its_column_holds_rejects_its_row_and_no_other() {
    let place = DataType::Struct(vec![Field::new("far", DataType::Float32, true)].into());
    let at = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    let source = stage(
        Format::Json,
        SourceOptions::default(),
        vec![
            Field::new("id", DataType::Int64, false),
            Field::new("at", at.clone(), true),
            Field::new("ats", DataType::List(Arc::new(Field::new("item", at, true))), true),
            Field::new("amount", DataType::Float64, true),
            Field::new("place", place, true),
        ],
    );
    let (good, bad) = (None::<&str>, Some);
    let values = [
        (r#""at":1"#, good),
        (r#""at":18446744073709551615"#, bad("column `at`: 18446744073709551615 is beyond what the column holds")),
        (r#""at":-9223372036854775809"#, bad("column `at`: -9223372036854775809 is beyond what the column holds")),
        (r#""at":9223372036854775807"#, good),
        (r#""at":1e300"#, bad("column `at`: 1e300 is not a whole number")),
        (r#""ats":[1,9223372036854775808]"#, bad("column `ats`: 9223372036854775808 is beyond what the column holds")),
        (r#""amount":1e308"#, good),
        (r#""amount":1e309"#, bad("column `amount`: 1e309 is beyond what the column holds")),
        (r#""place":{"far":1e39}"#, bad("column `place`: 1e39 is beyond what the column holds")),
    ];
    let lines: Vec<_> = values.iter().enumerate().map(|(id, (value, _))| format!("{{\"id\":{id},{value}}}")).collect();
    for run in [messages(&lines), messages(&[lines.join("\n")])] {
        let decoded = decode(&source, &run);
        let kept: Vec<_> = ids(&decoded).into_iter().map(|(_, id)| id).collect();
        assert_eq!(kept, [0, 3, 6]);
        let reasons: Vec<_> = decoded.rejected.iter().map(|row| row.reason.as_str()).collect();
        assert_eq!(reasons, values.iter().filter_map(|(_, reason)| *reason).collect::<Vec<_>>());
    }
}

#[test]
fn a_number_with_more_decimals_than_its_column_holds_rejects_its_row_and_no_other() {
    let amounts = ["1.25", "1.255", "0.001", "1.250", "-12e-1"];
    let json_lines: Vec<_> =
        amounts.iter().enumerate().map(|(id, a)| format!("{{\"id\":{id},\"amount\":{a}}}")).collect();
    let quoted: Vec<_> =
        amounts.iter().enumerate().map(|(id, a)| format!("{{\"id\":{id},\"amount\":\"{a}\"}}")).collect();
    let csv_lines: Vec<_> = amounts.iter().enumerate().map(|(id, amount)| format!("{id},{amount},,")).collect();
    let arrow =
        arrow_message(vec![("id", ints((0..5).map(Some).collect())), ("amount", texts(amounts.map(Some).into()))]);
    for (source, message) in [
        (json(), Bytes::from(json_lines.join("\n"))),
        (json(), Bytes::from(quoted.join("\n"))),
        (csv(false), Bytes::from(csv_lines.join("\n"))),
        (orders(Format::Arrow, SourceOptions::default()), arrow),
    ] {
        let decoded = decode(&source, &messages(&[message]));
        let kept: Vec<_> =
            rows(&decoded).into_iter().map(|(_, row)| row.split('|').take(2).collect::<Vec<_>>().join("|")).collect();
        assert_eq!(kept, ["0|1.25", "3|1.25", "4|-1.20"], "{:?}", source.spec.format);
        let rejected: Vec<_> = decoded.rejected.iter().map(|row| (row.row, row.fault, row.column.as_deref())).collect();
        let amount = Some("amount");
        assert_eq!(rejected, [(1, Fault::Value, amount), (2, Fault::Value, amount)], "{:?}", source.spec.format);
    }
}

#[test]
fn a_number_is_stored_as_the_number_it_is_however_it_is_written() {
    let digits = |count: usize| "1".repeat(count);
    let (many, quoted) = (digits(257), format!("\"{}\"", digits(220)));
    let amounts = [
        ("1.5e2", Some("150.00")),
        ("\"1E+3\"", Some("1000.00")),
        ("1250e-2", Some("12.50")),
        ("\"12.2\\u0035\"", Some("12.25")),
        ("\"-.5\"", Some("-0.50")),
        ("1e65536", None),
        ("1.0e65536", None),
        (many.as_str(), None),
        (quoted.as_str(), None),
        ("\"e5\"", None),
        ("\"1e5-3\"", None),
        ("\"-.\"", None),
        ("\"+.\"", None),
        ("\"12.25\\u0035\"", None),
    ];
    let lines = amounts.iter().enumerate().map(|(id, (amount, _))| format!("{{\"id\":{id},\"amount\":{amount}}}"));
    let lines: Vec<_> = lines.collect();
    let kept = amounts.iter().enumerate().filter_map(|(id, (_, kept))| Some(format!("{id}|{}|||", (*kept)?)));
    let kept: Vec<_> = kept.collect();
    for run in [messages(&lines), messages(&[lines.join("\n")])] {
        let decoded = decode(&json(), &run);
        assert_eq!(rows(&decoded).into_iter().map(|(_, row)| row).collect::<Vec<_>>(), kept);
        assert_eq!(decoded.rejected.len(), lines.len() - kept.len());
        assert!(decoded.rejected.iter().all(|row| row.column.as_deref() == Some("amount")), "{:?}", decoded.rejected);
    }
    let whole = messages(&["{\"id\":1e3}\n{\"id\":9007199254740993e0}\n{\"id\":9007199254740992e0}"]);
    let decoded = decode(&json(), &whole);
    assert_eq!(ids(&decoded), [(10, 1_000), (10, 9_007_199_254_740_992)]);
    let reason = "column `id`: 9007199254740993e0 has too many digits for a point or an exponent";
    assert_eq!(only_reject(&decoded).reason, reason);
}

#[test]
fn a_header_that_names_no_column_is_told_from_rows_of_nulls() {
    let fields = vec![Field::new("a", DataType::Int64, true), Field::new("b", DataType::Utf8, true)];
    let source = stage(Format::Csv, SourceOptions { csv_header: true, ..SourceOptions::default() }, fields);
    let decoded = decode(&source, &messages(&["1,one\n2,two\n", "b,c\nthree,3\n"]));
    assert_eq!(rows(&decoded), [(20, "|three".to_owned())]);
    let rejected = only_reject(&decoded);
    assert_eq!((rejected.fault, &rejected.bytes[..]), (Fault::Columns, &b"1,one\n2,two\n"[..]));
    assert!(rejected.reason.ends_with("is it a row: `1,one`?"), "{}", rejected.reason);
}
