//! What is encoded reads back as it was written, and the statistics hold for it.

use arrow::{
    array::{
        Array, ArrayRef, AsArray, BinaryArray, Date32Array, Decimal128Array, Int32Array, Int64Array, StringArray,
        TimestampMicrosecondArray,
    },
    compute::concat_batches,
    datatypes::{Field, Int64Type, Schema, TimeUnit},
};
use object_store::memory::InMemory;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use serde_json::Value;

use super::*;

fn spec(partition_by: &[&str]) -> TableSpec {
    let utc = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    let schema = Schema::new(vec![
        Field::new("id", DataType::Int64, true),
        Field::new("city", DataType::Utf8, true),
        Field::new("amount", DataType::Decimal128(20, 2), true),
        Field::new("at", utc, true),
        Field::new("day", DataType::Date32, true),
        Field::new("raw", DataType::Binary, true),
        Field::new("__partition", DataType::Int32, false),
        Field::new("__offset", DataType::Int64, false),
    ]);
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    TableSpec {
        folder: "shop/orders/1".to_owned(),
        name: "orders".to_owned(),
        schema: Arc::new(schema),
        partition_by: owned(partition_by),
        statistics: owned(&["id", "city", "amount", "at", "raw"]),
    }
}

fn batch(spec: &TableSpec, first: i64, cities: &[Option<&str>]) -> RecordBatch {
    let ids: Vec<i64> = (first..).take(cities.len()).collect();
    let amounts: Vec<i128> = ids.iter().map(|id| i128::from(*id) * 105).collect();
    let times: Vec<i64> = ids.iter().map(|id| id * 1_000_001).collect();
    let raw: Vec<Option<&[u8]>> = ids.iter().map(|_| Some(b"\x00\xff".as_slice())).collect();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from(ids.clone())),
        Arc::new(StringArray::from(cities.to_vec())),
        Arc::new(Decimal128Array::from(amounts).with_precision_and_scale(20, 2).unwrap()),
        Arc::new(TimestampMicrosecondArray::from(times).with_timezone("UTC")),
        Arc::new(Date32Array::from(vec![19_782; cities.len()])),
        Arc::new(BinaryArray::from(raw)),
        Arc::new(Int32Array::from(vec![3; cities.len()])),
        Arc::new(Int64Array::from(ids)),
    ];
    RecordBatch::try_new(Arc::clone(&spec.schema), columns).unwrap()
}

fn read(file: &EncodedFile) -> RecordBatch {
    let builder = ParquetRecordBatchReaderBuilder::try_new(file.bytes.clone()).unwrap();
    let schema = Arc::clone(builder.schema());
    concat_batches(&schema, &builder.build().unwrap().collect::<Result<Vec<_>, _>>().unwrap()).unwrap()
}

fn encode(spec: &TableSpec, options: WriterOptions, batches: &[RecordBatch]) -> Vec<EncodedFile> {
    let mut writer = FileWriter::new(&Lake::memory(), spec, options).unwrap();
    for batch in batches {
        writer.write(batch).unwrap();
    }
    let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
    assert_eq!(writer.rows(), rows as u64);
    writer.close().unwrap()
}

#[test]
fn rows_read_back_as_they_were_written_and_the_statistics_hold() {
    let spec = spec(&[]);
    let batches = [batch(&spec, 5, &[Some("b"), None]), batch(&spec, -2, &[Some("a"), Some("ü")])];
    let files = encode(&spec, WriterOptions::default(), &batches);
    let [file] = &files[..] else { panic!("one file, not {}", files.len()) };
    let rows = read(file);
    assert_eq!(rows, concat_batches(&spec.schema, &batches).unwrap());

    let stats: Value = serde_json::from_str(&file.stats).unwrap();
    assert_eq!(stats["numRecords"], rows.num_rows());
    let ids = rows["id"].as_primitive::<Int64Type>();
    for column in ["id", "__offset"] {
        assert_eq!(stats["minValues"][column], arrow::compute::min(ids).unwrap());
        assert_eq!(stats["maxValues"][column], arrow::compute::max(ids).unwrap());
    }
    assert_eq!(stats["nullCount"]["city"], rows["city"].null_count());
    assert_eq!(stats["minValues"]["city"], "a");
    assert_eq!(stats["maxValues"]["at"], "1970-01-01T00:00:06.000006Z");
    assert!(file.stats.contains(r#""amount":-2.10"#) && file.stats.contains(r#""amount":6.30"#), "{}", file.stats);
    assert_eq!(stats["maxValues"]["__partition"], 3);
    assert_eq!(stats["minValues"].get("day"), None, "only declared columns have statistics");
    assert_eq!(stats["nullCount"].get("raw"), None, "binary has no bounds");
}

#[test]
fn files_carry_a_page_index_and_page_statistics() {
    let spec = spec(&[]);
    let files = encode(&spec, WriterOptions::default(), &[batch(&spec, 0, &[Some("a")])]);
    let options = ArrowReaderOptions::new().with_page_index_policy(parquet::file::metadata::PageIndexPolicy::Required);
    let metadata = ArrowReaderMetadata::load(&files[0].bytes, options).unwrap();
    let group = metadata.metadata().row_group(0);
    assert!(group.column(0).statistics().is_some() && group.column(0).column_index_offset().is_some());
    assert!(group.column(5).statistics().is_none(), "binary has none");
    assert!(matches!(group.column(0).compression(), Compression::ZSTD(_)));
}

#[test]
fn our_files_are_told_from_those_of_others_by_their_names() {
    for by in [&[][..], &["city"]] {
        let spec = spec(by);
        let files = encode(&spec, WriterOptions::default(), &[batch(&spec, 0, &[Some("Paris")])]);
        assert!(files.iter().all(|file| is_ours(&file.path)));
    }
    for other in [
        "part-00001-5f0cd9a5-1c4f-4b4e-9d3b-3c1d8a3f9f10-c000.snappy.parquet",
        "part-00000-5f0cd9a5-1c4f-4b4e-9d3b-3c1d8a3f9f10-c000.zstd.parquet",
        "part-.zstd.parquet",
        "events.parquet",
    ] {
        assert!(!is_ours(other), "{other}");
    }
}

#[test]
fn each_partition_has_its_own_files_without_the_partition_columns() {
    let spec = spec(&["city", "day"]);
    let cities = [Some("a/b c"), None, Some("ü%"), Some("a/b c"), Some("")];
    let files = encode(&spec, WriterOptions::default(), &[batch(&spec, 0, &cities)]);
    let mut folders: Vec<_> = files.iter().map(|file| file.path.rsplit_once('/').unwrap().0).collect();
    folders.sort_unstable();
    let expected = ["city=%C3%BC%25", "city=", "city=__HIVE_DEFAULT_PARTITION__", "city=a%2Fb%20c"];
    assert_eq!(folders, expected.map(|folder| format!("{folder}/day=2024-02-29")));
    let odd = files.iter().find(|file| file.path.contains("a%2Fb")).unwrap();
    assert_eq!(odd.partition_values["city"].as_deref(), Some("a/b c"));
    assert_eq!(odd.partition_values["day"].as_deref(), Some("2024-02-29"));
    let rows = read(odd);
    assert_eq!(rows["id"].as_primitive::<Int64Type>().values(), &[0, 3]);
    assert!(rows.column_by_name("city").is_none());
    let nulls = files.iter().find(|file| file.partition_values["city"].is_none()).unwrap();
    assert_eq!(nulls.rows, 1);
    let stats: Value = serde_json::from_str(&odd.stats).unwrap();
    assert_eq!(stats["minValues"].get("city"), None, "partition columns have values, not bounds");
}

fn ids(file: &EncodedFile) -> Vec<i64> {
    read(file)["id"].as_primitive::<Int64Type>().values().to_vec()
}

/// The same rows, with a long value each.
fn with_raw(rows: &RecordBatch, bytes: usize) -> RecordBatch {
    let value = vec![7_u8; bytes];
    let mut columns = rows.columns().to_vec();
    columns[5] = Arc::new(BinaryArray::from(vec![Some(value.as_slice()); rows.num_rows()]));
    RecordBatch::try_new(rows.schema(), columns).unwrap()
}

#[test]
fn few_rows_of_many_partitions_wait_and_make_one_file_each() {
    let spec = spec(&["city"]);
    let names: Vec<String> = (0..200).map(|number| format!("c{number}")).collect();
    let cities: Vec<_> = names.iter().map(|name| Some(name.as_str())).collect();
    let mut writer = FileWriter::new(&Lake::memory(), &spec, WriterOptions::default()).unwrap();
    for turn in 0..20 {
        writer.write(&batch(&spec, turn * 200, &cities)).unwrap();
        assert_eq!(writer.encoding().count(), 0);
        assert!(writer.open.values().all(|file| file.waiting.len() < 2 * BATCHES_APART));
    }
    assert!(writer.buffered_bytes() > 20 * 200 * 50, "{}", writer.buffered_bytes());
    let files = writer.close().unwrap();
    assert_eq!(files.len(), 200);
    for file in &files {
        let number: i64 = file.partition_values["city"].as_deref().unwrap()[1..].parse().unwrap();
        assert_eq!(ids(file), (0..20).map(|turn| turn * 200 + number).collect::<Vec<_>>(), "in order");
        let stats: Value = serde_json::from_str(&file.stats).unwrap();
        assert_eq!((file.rows, stats["numRecords"].as_u64()), (20, Some(20)));
        assert_eq!(stats["minValues"]["id"], number);
    }
}

#[test]
fn many_rows_of_many_partitions_are_encoded_a_few_partitions_at_a_time() {
    let spec = spec(&["city"]);
    let names: Vec<String> = (0..8).map(|number| format!("c{number}")).collect();
    let cities: Vec<_> = names.iter().map(|name| Some(name.as_str())).collect();
    let options = WriterOptions { max_open_partitions: 3, ..WriterOptions::default() };
    let mut writer = FileWriter::new(&Lake::memory(), &spec, options).unwrap();
    // The third time each has enough to be encoded, so five of them are closed.
    for (first, encoded) in [(0, 0), (8, 0), (16, 3), (24, 3)] {
        writer.write(&with_raw(&batch(&spec, first, &cities), 400 << 10)).unwrap();
        assert_eq!(writer.encoding().count(), encoded);
    }
    let files = writer.close().unwrap();
    assert_eq!(files.len(), 8 + 5);
    let mut all: Vec<i64> = files.iter().flat_map(ids).collect();
    all.sort_unstable();
    assert_eq!(all, (0..32).collect::<Vec<_>>());
    for file in &files {
        let number: i64 = file.partition_values["city"].as_deref().unwrap()[1..].parse().unwrap();
        assert!(ids(file).iter().all(|id| id % 8 == number), "file of c{number} holds rows of others");
    }
}

#[test]
fn rows_that_wait_count_for_themselves_and_not_for_what_they_were_cut_from() {
    let spec = spec(&["city"]);
    let whole = batch(&spec, 0, &[Some("somewhere"); 5_000]);
    let mut writer = FileWriter::new(&Lake::memory(), &spec, WriterOptions::default()).unwrap();
    writer.write(&whole.slice(10, 3)).unwrap();
    let few = writer.buffered_bytes();
    writer.write(&whole.slice(100, 3_000)).unwrap();
    let many = writer.buffered_bytes();
    assert!((3 * 50..10_000).contains(&few) && (3_000 * 50..3_000 * 100).contains(&many), "{few}, {many}");
    assert_eq!(ids(&writer.close().unwrap()[0]), (10..13).chain(100..3_100).collect::<Vec<_>>());
}

#[test]
fn a_batch_that_does_not_fit_is_refused_and_changes_nothing() {
    let spec = spec(&[]);
    let mut writer = FileWriter::new(&Lake::memory(), &spec, WriterOptions::default()).unwrap();
    let good = batch(&spec, 0, &[Some("a")]);
    let short = good.project(&[0, 1]).unwrap();
    assert!(writer.write(&short).unwrap_err().to_string().contains("2 columns, expected 8"));
    let mut swapped: Vec<usize> = (0..8).collect();
    swapped.swap(0, 1);
    let error = writer.write(&good.project(&swapped).unwrap()).unwrap_err();
    assert!(error.to_string().contains("column `city` of type Utf8 where `id`"), "{error}");
    assert_eq!((writer.rows(), writer.close().unwrap().len()), (0, 0));
}

#[test]
fn buffered_bytes_count_what_is_held() {
    let spec = spec(&[]);
    let mut writer = FileWriter::new(&Lake::memory(), &spec, WriterOptions::default()).unwrap();
    assert_eq!(writer.buffered_bytes(), 0);
    let cities: Vec<_> = (0..5_000).map(|_| Some("somewhere")).collect();
    writer.write(&batch(&spec, 0, &cities)).unwrap();
    assert_eq!(writer.encoding().count(), 1, "without partitions nothing waits");
    assert!(writer.buffered_bytes() > 5_000, "{}", writer.buffered_bytes());
}

#[tokio::test]
async fn an_upload_never_overwrites() {
    let lake = Lake::memory();
    let spec = spec(&[]);
    let file = encode(&spec, WriterOptions::default(), &[batch(&spec, 0, &[Some("a")])]).remove(0);
    let uploaded = file.upload(&lake).await.unwrap();
    assert_eq!((uploaded.rows, uploaded.size), (1, file.bytes.len() as u64));
    assert_eq!(file.upload(&lake).await.unwrap().path, uploaded.path, "the same bytes under the same name are ours");

    let taken = EncodedFile { bytes: Bytes::from_static(b"other"), ..file };
    let error = taken.upload(&lake).await.unwrap_err();
    assert!(matches!(error, LakeError::Overwrite { .. }), "{error}");
    assert_eq!(error.class(), delivery::ErrorClass::Stop);
}

#[tokio::test]
async fn a_large_file_goes_up_in_parts_and_arrives_whole() {
    let store = Arc::new(InMemory::new());
    let lake = Lake::with_store(store, url::Url::parse("memory:///some/prefix/").unwrap());
    let spec = spec(&[]);
    let small = encode(&spec, WriterOptions::default(), &[batch(&spec, 0, &[Some("a")])]).remove(0);
    let bytes: Bytes = (0..LARGEST_SINGLE_PUT + PART_BYTES + 17).map(|at| (at % 251) as u8).collect::<Vec<_>>().into();
    let large = EncodedFile { bytes: bytes.clone(), ..small };
    large.upload(&lake).await.unwrap();
    let location = Path::parse(format!("some/prefix/shop/orders/1/{}", large.path)).unwrap();
    assert_eq!(lake.bucket().get(&location).await.unwrap().bytes().await.unwrap(), bytes);
    let other = EncodedFile { bytes: bytes.slice(1..), ..large };
    assert!(matches!(other.upload(&lake).await, Err(LakeError::Overwrite { .. })));
}
