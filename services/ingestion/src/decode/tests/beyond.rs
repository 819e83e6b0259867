//! Beyond what a column holds, or a process: large numbers, and small messages that stand for very much.

use arrow::{
    array::{
        Array, Date32Array, Decimal128Array, DictionaryArray, Float32Array, Float64Array, Int8Array, LargeStringArray,
        ListArray, RunArray, StructArray, TimestampNanosecondArray, UInt64Array,
    },
    buffer::OffsetBuffer,
    datatypes::{Int8Type, Int32Type},
    ipc::writer::StreamWriter,
};

use super::*;

fn decimals_of(values: Vec<Option<i128>>, precision: u8, scale: i8) -> ArrayRef {
    Arc::new(Decimal128Array::from(values).with_precision_and_scale(precision, scale).unwrap())
}

fn keyed(keys: Vec<i32>, values: &ArrayRef) -> ArrayRef {
    Arc::new(DictionaryArray::<Int32Type>::new(Int32Array::from(keys), Arc::clone(values)))
}

fn runs(ends: Vec<i32>, values: &ArrayRef) -> ArrayRef {
    Arc::new(RunArray::<Int32Type>::try_new(&Int32Array::from(ends), values).unwrap())
}

/// A source of ids and of columns that may be NULL.
fn source_of(format: Format, columns: Vec<(&str, DataType)>) -> SourceStage {
    let columns = columns.into_iter().map(|(name, data_type)| Field::new(name, data_type, true));
    let fields = std::iter::once(Field::new("id", DataType::Int64, false)).chain(columns).collect();
    stage(format, SourceOptions::default(), fields)
}

/// As many rows as `column` has, with ids from 0.
fn numbered(name: &str, column: ArrayRef) -> Message {
    let ids = ints((0..column.len() as i64).map(Some).collect());
    messages(&[arrow_message(vec![("id", ids), (name, column)])]).remove(0)
}

fn kept(decoded: &Decoded) -> Vec<i64> {
    ids(decoded).into_iter().map(|(_, id)| id).collect()
}

/// Every bad row with its fault and column.
fn faults(decoded: &Decoded) -> Vec<(u32, Fault, Option<&str>)> {
    decoded.rejected.iter().map(|row| (row.row, row.fault, row.column.as_deref())).collect()
}

#[test]
fn a_json_message_full_of_open_rows_costs_no_more_than_its_length() {
    for (row, end) in [("{\"a\":[\n", ""), ("{\"a\":[\n", "x\n"), ("{\"a\":\n", "\"open\n"), ("{\"a\":\"b\",\n", "")] {
        let hostile = format!("{}{end}{{\"id\":7}}", row.repeat(100_000));
        let decoded = decode(&json(), &messages(&[hostile.as_str(), "{\"id\":8}"]));
        assert_eq!(ids(&decoded), [(10, 7), (20, 8)], "{row}");
        assert_eq!(decoded.rejected.len(), 100_000, "{row}");
        assert!(decoded.rejected.iter().all(|row| row.fault == Fault::Syntax));
    }
}

#[test]
fn an_arrow_decimal_with_more_digits_than_its_type_rejects_its_row_and_no_other() {
    let over = 10_i128.pow(9);
    let values = vec![Some(1), Some(over), None, Some(-over), Some(over - 1), Some(i128::MAX)];
    let plain = decimals_of(values, 9, 2);
    let columns = [Arc::clone(&plain), keyed((0..6).collect(), &plain), runs((1..7).collect(), &plain)];
    // As it is, wider in digits, and in both; each is wide enough for all that the sent type may hold.
    for (precision, scale) in [(9, 2), (12, 2), (10, 3), (38, 4)] {
        let source = source_of(Format::Arrow, vec![("amount", DataType::Decimal128(precision, scale))]);
        for column in &columns {
            let decoded = decode(&source, &[numbered("amount", Arc::clone(column))]);
            let what = format!("{} into {precision}, {scale}", column.data_type());
            assert_eq!(kept(&decoded), [0, 2, 4], "{what}");
            let value = |row| (row, Fault::Value, Some("amount"));
            assert_eq!(faults(&decoded), [value(1), value(3), value(5)], "{what}");
            assert_eq!(rows(&decoded)[2].1, format!("4|9999999.99{}", "0".repeat(scale as usize - 2)), "{what}");
        }
    }
}

#[test]
fn an_arrow_decimal_that_its_column_is_too_narrow_for_rejects_its_row_and_no_other() {
    let source = source_of(Format::Arrow, vec![("amount", DataType::Decimal128(5, 2))]);
    let column = decimals_of(vec![Some(99_999), Some(100_000), Some(10_i128.pow(12))], 12, 2);
    let decoded = decode(&source, &[numbered("amount", column)]);
    assert_eq!(kept(&decoded), [0]);
}

#[test]
fn a_decimal_inside_a_list_or_a_struct_with_more_digits_than_its_type_rejects_its_row_and_no_other() {
    let items = decimals_of(vec![Some(1), Some(99_999), Some(100_000), None, Some(-100_000)], 5, 1);
    let item = Arc::new(Field::new("item", items.data_type().clone(), true));
    let list: ArrayRef =
        Arc::new(ListArray::new(item, OffsetBuffer::new(vec![0, 2, 3, 3, 4, 5].into()), Arc::clone(&items), None));
    let field = Field::new("tax", items.data_type().clone(), true);
    let fields: ArrayRef = Arc::new(StructArray::new(vec![field].into(), vec![items], None));
    for (column, bad) in [(list, [1, 4]), (fields, [2, 4])] {
        let source = source_of(Format::Arrow, vec![("sums", column.data_type().clone())]);
        let decoded = decode(&source, &[numbered("sums", Arc::clone(&column))]);
        assert_eq!(faults(&decoded), bad.map(|row| (row, Fault::Value, Some("sums"))), "{column:?}");
        assert_eq!(kept(&decoded), (0..5_i64).filter(|id| !bad.contains(&(*id as u32))).collect::<Vec<_>>());
        let reason = "column `sums`: a decimal in it has more digits than its type holds";
        assert_eq!(decoded.rejected[0].reason, reason);
    }
}

#[test]
fn a_csv_number_beyond_what_its_column_holds_rejects_its_row_and_no_other() {
    let source = source_of(Format::Csv, vec![("amount", DataType::Float64), ("far", DataType::Float32)]);
    let (good, bad) = (None::<&str>, Some);
    let values = [
        ("1.5,1.5", good),
        ("1e309,", bad("column `amount`: 1e309 is beyond what the column holds")),
        (",1e39", bad("column `far`: 1e39 is beyond what the column holds")),
        ("inf,-Infinity", good),
        ("inf,-1e39", bad("column `far`: -1e39 is beyond what the column holds")),
        (" 1e309 ,", bad("column `amount`:  1e309  is beyond what the column holds")),
        ("1e308,1e38", good),
        ("\"-1e309\",x", bad("column `amount`: -1e309 is beyond what the column holds")),
        ("x,1e39", bad("column `amount`: cannot read `x` as Float64")),
        ("NaN,", good),
    ];
    let lines: Vec<_> = values.iter().enumerate().map(|(id, (value, _))| format!("{id},{value}\n")).collect();
    for run in [messages(&lines), messages(&[lines.concat()]), messages(&[lines.concat().repeat(40)])] {
        let decoded = decode(&source, &run);
        let times = run.iter().map(|message| message.payload.len()).sum::<usize>() / lines.concat().len();
        assert_eq!(kept(&decoded), [0_i64, 3, 6, 9].repeat(times));
        let reasons: Vec<_> = decoded.rejected.iter().map(|row| row.reason.as_str()).collect();
        assert_eq!(reasons, values.iter().filter_map(|(_, reason)| *reason).collect::<Vec<_>>().repeat(times));
    }
    let decoded = decode(&source, &messages(&["0,inf,inf\n"]));
    assert_eq!(rows(&decoded), [(10, "0|inf|inf".to_owned())], "what says so itself is infinite");
}

#[test]
fn an_arrow_text_beyond_what_its_column_of_floats_holds_rejects_its_row_and_no_other() {
    let words = vec![Some("1.5"), Some("1e309"), Some("-Infinity"), None, Some(" -1e309 "), Some("NaN"), Some("x")];
    let plain = texts(words.clone());
    let large: ArrayRef = Arc::new(LargeStringArray::from(words));
    for data_type in [DataType::Float64, DataType::Float32] {
        let source = source_of(Format::Arrow, vec![("amount", data_type)]);
        for column in
            [Arc::clone(&plain), Arc::clone(&large), keyed((0..7).collect(), &plain), runs((1..8).collect(), &plain)]
        {
            let decoded = decode(&source, &[numbered("amount", Arc::clone(&column))]);
            assert_eq!(kept(&decoded), [0, 2, 3, 5], "{column:?}");
            let value = |row| (row, Fault::Value, Some("amount"));
            assert_eq!(faults(&decoded), [value(1), value(4), value(6)], "{column:?}");
            assert_eq!(rows(&decoded)[1].1, "2|-inf");
        }
    }
    let source = source_of(Format::Arrow, vec![("far", DataType::Float32)]);
    let decoded = decode(&source, &[numbered("far", texts(vec![Some("1e38"), Some("1e39")]))]);
    assert_eq!(kept(&decoded), [0]);
}

#[test]
fn an_arrow_float_is_infinite_only_if_it_was_sent_so() {
    let wide: ArrayRef = Arc::new(Float64Array::from(vec![1.5, 1e39, f64::INFINITY]));
    let narrow: ArrayRef = Arc::new(Float32Array::from(vec![1.5, f32::INFINITY]));
    let real = source_of(Format::Arrow, vec![("far", DataType::Float32)]);
    let double = source_of(Format::Arrow, vec![("far", DataType::Float64)]);
    for (source, column) in [(&real, &narrow), (&double, &narrow), (&double, &wide)] {
        let decoded = decode(source, &[numbered("far", Arc::clone(column))]);
        assert_eq!(kept(&decoded).len(), column.len());
    }
    let decoded = decode(&real, &[numbered("far", wide)]);
    assert_eq!(only_reject(&decoded).reason, "column `far`: expected Float32, found Float64");
}

#[test]
fn an_arrow_time_finer_than_a_microsecond_rejects_its_row_and_no_other() {
    let nanos = vec![Some(1_000), Some(1_500), None, Some(-1_000), Some(-1_001), Some(i64::MAX)];
    for (sent, zone) in [(None, Some("UTC")), (Some("UTC"), None), (Some("+02:00"), Some("UTC")), (None, None)] {
        let times = TimestampNanosecondArray::from(nanos.clone()).with_timezone_opt(sent);
        let plain: ArrayRef = Arc::new(times);
        let at = DataType::Timestamp(TimeUnit::Microsecond, zone.map(Into::into));
        let source = source_of(Format::Arrow, vec![("at", at)]);
        for column in [Arc::clone(&plain), keyed((0..6).collect(), &plain), runs((1..7).collect(), &plain)] {
            let decoded = decode(&source, &[numbered("at", column)]);
            assert_eq!(kept(&decoded), [0, 2, 3], "{sent:?} into {zone:?}");
            let value = |row| (row, Fault::Value, Some("at"));
            assert_eq!(faults(&decoded), [value(1), value(4), value(5)], "{sent:?} into {zone:?}");
            let at = decoded.parts[0].batch.column(1).as_primitive::<TimestampMicrosecondType>();
            assert_eq!(at.iter().collect::<Vec<_>>(), [Some(1), None, Some(-1)], "{sent:?} into {zone:?}");
        }
    }
}

#[test]
fn an_arrow_whole_number_that_its_column_of_floats_does_not_hold_rejects_its_row_and_no_other() {
    let two = |power: u32| 2_i64.pow(power);
    let sent = [1, two(53), two(53) + 1, i64::MAX, -two(53) - 1, two(60), two(24) + 1];
    let plain = ints(sent.iter().copied().map(Some).chain([None]).collect());
    for (data_type, good) in [(DataType::Float64, vec![0, 1, 5, 6, 7]), (DataType::Float32, vec![0, 1, 5, 7])] {
        let source = source_of(Format::Arrow, vec![("far", data_type)]);
        for column in [Arc::clone(&plain), keyed((0..8).collect(), &plain), runs((1..9).collect(), &plain)] {
            let decoded = decode(&source, &[numbered("far", column)]);
            assert_eq!(kept(&decoded), good);
            assert!(decoded.rejected.iter().all(|row| row.column.as_deref() == Some("far")));
        }
        let largest: ArrayRef = Arc::new(UInt64Array::from(vec![u64::MAX, 1 << 63]));
        assert_eq!(kept(&decode(&source, &[numbered("far", largest)])), [1]);
        let narrow: ArrayRef = Arc::new(Int8Array::from(vec![i8::MIN, i8::MAX]));
        assert_eq!(kept(&decode(&source, &[numbered("far", narrow)])), [0, 1]);
    }
}

#[test]
fn a_small_arrow_message_that_unfolds_to_gigabytes_is_rejected_before_it_does() {
    const ROWS: i32 = 1 << 20;
    let long = texts(vec![Some("x".repeat(2_000).as_str())]);
    let keys = Int8Array::from(vec![0; ROWS as usize]);
    let keyed: ArrayRef = Arc::new(DictionaryArray::<Int8Type>::new(keys, Arc::clone(&long)));
    let source = source_of(Format::Arrow, vec![("note", DataType::Utf8), ("other", DataType::Utf8)]);
    for column in [runs(vec![ROWS], &long), keyed] {
        let ids = runs(vec![ROWS], &ints(vec![Some(1)]));
        let message = arrow_message(vec![("id", ids), ("note", column)]);
        assert!(message.len() < 2 << 20, "{}", message.len());
        let run = messages(&[message, arrow_message(vec![("id", ints(vec![Some(7)]))])]);
        let decoded = decode(&source, &run);
        assert_eq!(kept(&decoded), [7]);
        let reject = only_reject(&decoded);
        assert_eq!((reject.fault, &reject.bytes), (Fault::TooLarge, &run[0].payload));
        assert!(reject.reason.contains("send smaller ones"), "{}", reject.reason);
    }
}

#[test]
fn what_columns_unfold_to_is_added_up_over_columns_and_batches() {
    const ROWS: usize = 1 << 19;
    let text = texts(vec![Some("x".repeat(400).as_str())]);
    let source = source_of(Format::Arrow, vec![("note", DataType::Utf8), ("other", DataType::Utf8)]);
    let batch = |names: [&str; 2]| {
        let columns = names.map(|name| (name, runs(vec![ROWS as i32], &text)));
        let ids: ArrayRef = Arc::new(Int64Array::from(vec![1; ROWS]));
        RecordBatch::try_from_iter(std::iter::once(("id", ids)).chain(columns)).unwrap()
    };
    let [one, both] = [["colour", "size"], ["note", "other"]].map(batch);
    let half = batch(["note", "colour"]);
    for (batches, rows) in [(vec![one], ROWS), (vec![both], 0), (vec![half.clone(), half], 0)] {
        let decoded = decode(&source, &messages(&[stream_of(&batches)]));
        assert_eq!(kept(&decoded).len(), rows);
        assert!(decoded.rejected.iter().all(|row| row.fault == Fault::TooLarge));
    }
}

fn stream_of(batches: &[RecordBatch]) -> Bytes {
    let mut writer = StreamWriter::try_new(Vec::<u8>::new(), &batches[0].schema()).unwrap();
    batches.iter().for_each(|batch| writer.write(batch).unwrap());
    Bytes::from(writer.into_inner().unwrap())
}

#[test]
fn a_dictionary_that_unfolds_a_hundredfold_is_taken() {
    let words: Vec<_> = (0..100).map(|word| format!("{word:0100}")).collect();
    let words = texts(words.iter().map(|word| Some(word.as_str())).collect());
    let keys: Vec<_> = (0..300_000).map(|row| (row % 100) as i8).collect();
    let column: ArrayRef = Arc::new(DictionaryArray::<Int8Type>::new(Int8Array::from(keys), words));
    let source = source_of(Format::Arrow, vec![("note", DataType::Utf8)]);
    let decoded = decode(&source, &[numbered("note", column)]);
    assert_eq!(kept(&decoded).len(), 300_000);
    assert!(decoded.rejected.is_empty());
}

#[test]
fn rows_rejected_one_by_one_do_not_each_keep_a_large_dictionary() {
    let large = texts(vec![Some("x".repeat(8 << 20).as_str())]);
    let source = orders(Format::Arrow, SourceOptions::default());
    for (rows, rejected) in [(3, 3), (40, 1)] {
        let ids = texts(vec![Some("x"); rows]);
        let run = messages(&[arrow_message(vec![("id", ids), ("colour", keyed(vec![0; rows], &large))])]);
        let decoded = decode(&source, &run);
        assert_eq!(decoded.rejected.len(), rejected);
        let whole = decoded.rejected[0].bytes == run[0].payload;
        assert_eq!((decoded.rejected[0].fault == Fault::TooLarge, whole), (rejected == 1, rejected == 1));
    }
}

#[test]
fn a_message_whose_rows_would_take_gigabytes_in_all_their_columns_is_rejected() {
    let fields = (0..1_000).map(|column| Field::new(format!("a{column}"), DataType::Decimal128(38, 0), true));
    let fields: Vec<_> = fields.collect();
    let message = |format: Format, rows: usize| match format {
        Format::Json => Bytes::from("{}".repeat(rows)),
        Format::Csv => Bytes::from(format!("a0\n{}", "1\n".repeat(rows))),
        Format::Arrow => arrow_message(vec![("a0", ints(vec![Some(1); rows]))]),
    };
    for format in [Format::Json, Format::Csv, Format::Arrow] {
        let options = SourceOptions { csv_header: true, ..SourceOptions::default() };
        let source = stage(format, options, fields.clone());
        // The last is more than a decoder takes at once.
        for rows in [2, 16_778, 100_000] {
            let run = messages(&[message(format, rows)]);
            let decoded = decode(&source, &run);
            let kept: usize = decoded.parts.iter().map(|part| part.offsets.len()).sum();
            assert_eq!(kept, if rows == 2 { 2 } else { 0 }, "{format:?}");
            for reject in &decoded.rejected {
                assert_eq!((reject.fault, reject.row, &reject.bytes), (Fault::TooLarge, 0, &run[0].payload));
                let reason = format!("the message holds {rows} rows, at most 16777 are taken; send smaller messages");
                assert_eq!(reject.reason, reason, "{format:?}");
            }
            assert_eq!(decoded.rejected.len(), usize::from(rows > 2), "{format:?}");
        }
    }
}

/// A source of ids whose table is divided by a day.
fn by_day(format: Format) -> SourceStage {
    let mut source = source_of(format, vec![("day", DataType::Date32)]);
    source.spec.options.partition_by = vec!["day".to_owned()];
    source
}

/// A day that no partition can be named after.
const NO_DAY: i32 = 20_240_229;

#[test]
fn a_row_that_cannot_be_stored_is_kept_as_it_came_with_its_line() {
    let unstorable = format!("{{ \"id\":2, \"day\":{NO_DAY} }}");
    let lines = format!("{{\"id\":1,\"day\":1}}\n{{\"id\":\"x\"}}\n\n{unstorable}\nbad\n{{\"id\":3}}{unstorable}\n");
    let run = messages(&["{\"id\":0}", lines.as_str(), unstorable.as_str(), "{\"id\":4}"]);
    let mut decoder = Decoder::new(&by_day(Format::Json), LIMIT);
    let expected = [
        (20, 1, Some(2), "{\"id\":\"x\"}"),
        (20, 2, Some(4), unstorable.as_str()),
        (20, 3, Some(5), "bad"),
        (20, 5, Some(6), unstorable.as_str()),
        (30, 0, Some(1), unstorable.as_str()),
    ];
    for size in [1, run.len()] {
        let (mut good, mut bad) = (Vec::new(), Vec::new());
        for some in run.chunks(size) {
            let decoded = decoder.decode(some);
            good.extend(ids(&decoded));
            bad.extend(decoded.rejected);
        }
        assert_eq!(good, [(10, 0), (20, 1), (20, 3), (40, 4)]);
        let bad = bad.iter().map(|row| (row.offset, row.row, row.line, std::str::from_utf8(&row.bytes).unwrap()));
        assert_eq!(bad.collect::<Vec<_>>(), expected);
    }
}

#[test]
fn a_csv_row_that_cannot_be_stored_is_kept_as_it_came_with_its_line() {
    let long = format!("2,,{},\n", "x".repeat(5_000));
    let text = format!("\u{feff}id,amount,note,at\n1,,\"a\nb\",\nx,,,\n{long}3,,,\n");
    let decoded = Decoder::new(&csv(true), 8_000).decode(&messages(&[text]));
    assert_eq!(ids(&decoded), [(10, 1), (10, 3)]);
    let bad = decoded.rejected.iter().map(|row| (row.row, row.line, std::str::from_utf8(&row.bytes).unwrap()));
    assert_eq!(bad.collect::<Vec<_>>(), [(1, Some(4), "x,,,\n"), (2, Some(5), long.as_str())]);
}

#[test]
fn arrow_rows_that_cannot_be_stored_are_kept_one_by_one_or_with_their_message() {
    let source = by_day(Format::Arrow);
    let days = |days: Vec<i32>| -> ArrayRef { Arc::new(Date32Array::from(days)) };
    let batch = |rows: Vec<i32>| {
        let ids = ints((0..rows.len() as i64).map(Some).collect());
        RecordBatch::try_from_iter([("id", ids), ("day", days(rows))]).unwrap()
    };
    let few = stream_of(&[batch(vec![1, NO_DAY]), batch(vec![NO_DAY, 2])]);
    let many = stream_of(&[batch(vec![1; 10]), batch(vec![NO_DAY; 20_000]), batch(vec![1; 10])]);
    let one = stream_of(&[batch(vec![NO_DAY])]);
    let run = messages(&[few, many, one, stream_of(&[batch(vec![3])])]);
    for size in [1, run.len()] {
        let mut decoder = Decoder::new(&source, LIMIT);
        let (mut good, mut bad) = (Vec::new(), Vec::new());
        for some in run.chunks(size) {
            let decoded = decoder.decode(some);
            good.extend(ids(&decoded));
            bad.extend(decoded.rejected);
        }
        assert_eq!(good, [(10, 0), (10, 1), (40, 0)]);
        let places: Vec<_> = bad.iter().map(|row| (row.offset, row.row, row.line, row.fault)).collect();
        let value = Fault::Value;
        let whole = (20, 0, None, Fault::TooLarge);
        assert_eq!(places, [(10, 1, Some(2), value), (10, 2, Some(3), value), whole, (30, 0, Some(1), value)]);
        let alone = decode_stream_of(&bad[1].bytes);
        assert_eq!((alone.num_rows(), bad[1].column.as_deref()), (1, Some("day")));
        assert_eq!((&bad[2].bytes, &bad[3].bytes), (&run[1].payload, &run[2].payload), "as they came");
    }
}
