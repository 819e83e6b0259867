//! Round trips over random batches, and hostile bytes.

use arrow::{
    array::{
        Array, BinaryArray, BooleanArray, Date32Array, Decimal128Array, Float64Array, Int64Array, ListArray,
        StringArray, StringViewArray, StructArray, TimestampMicrosecondArray,
    },
    datatypes::{Field, Int32Type, Schema},
};
use delivery::{Origin, Position, Totals, Writer};
use proptest::prelude::*;
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::*;
use crate::{OFFSET_COLUMN, Port, SplitError, decode_envelope, encode_to_fit, encode_to_fit_within, split_to_fit};

fn random_text(rng: &mut StdRng) -> Option<String> {
    rng.random_bool(0.9).then(|| (0..rng.random_range(0..40)).map(|_| rng.random_range('a'..='z')).collect())
}

/// A batch with every wire type, nulls and nesting included.
fn random_batch(rng: &mut StdRng, rows: usize) -> RecordBatch {
    let lists = (0..rows)
        .map(|_| rng.random_bool(0.8).then(|| (0..rng.random_range(0..4)).map(Some).collect::<Vec<Option<i32>>>()));
    let lists = ListArray::from_iter_primitive::<Int32Type, _, _>(lists.collect::<Vec<_>>());
    let inner: ArrayRef =
        Arc::new(Int64Array::from_iter((0..rows).map(|_| rng.random_bool(0.9).then(|| rng.random()))));
    let structs = StructArray::from(vec![(Arc::new(Field::new("inner", DataType::Int64, true)), inner)]);
    let columns: Vec<(&str, ArrayRef, bool)> = vec![
        (
            "flag",
            Arc::new(BooleanArray::from_iter((0..rows).map(|_| rng.random_bool(0.9).then(|| rng.random())))),
            true,
        ),
        ("float", Arc::new(Float64Array::from_iter_values((0..rows).map(|_| rng.random::<f64>()))), false),
        ("text", Arc::new(StringArray::from_iter((0..rows).map(|_| random_text(rng)))), true),
        ("bytes", Arc::new(BinaryArray::from_iter((0..rows).map(|_| random_text(rng)))), true),
        ("day", Arc::new(Date32Array::from_iter_values((0..rows).map(|_| rng.random_range(0..20000)))), false),
        (
            "price",
            Arc::new(
                Decimal128Array::from_iter_values((0..rows).map(|_| rng.random_range(0..1_000_000)))
                    .with_precision_and_scale(12, 2)
                    .unwrap(),
            ),
            false,
        ),
        (
            "time",
            Arc::new(
                TimestampMicrosecondArray::from_iter_values((0..rows).map(|_| rng.random_range(0..1 << 50)))
                    .with_timezone("UTC"),
            ),
            false,
        ),
        ("list", Arc::new(lists), true),
        ("struct", Arc::new(structs), true),
        (OFFSET_COLUMN, Arc::new(Int64Array::from_iter_values(0..rows as i64)), false),
    ];
    let fields =
        columns.iter().map(|(name, column, nullable)| Field::new(*name, column.data_type().clone(), *nullable));
    let schema = Schema::new(fields.collect::<Vec<_>>());
    RecordBatch::try_new(Arc::new(schema), columns.into_iter().map(|(_, column, _)| column).collect()).unwrap()
}

fn envelope_of(batch: &RecordBatch) -> Envelope {
    Envelope {
        fingerprint: fingerprint(&batch.schema()),
        rows: batch.num_rows() as u32,
        event_time: None,
        watermark: None,
        origin: Origin::new(Writer::new("w"), Position::START, Position::at(batch.num_rows() as u64)).unwrap(),
        totals: Totals::default(),
        port: Port::Data,
        traceparent: None,
        bounds: vec![],
    }
}

#[test]
fn an_envelope_that_disagrees_with_its_batch_is_refused() {
    let batch = random_batch(&mut StdRng::seed_from_u64(1), 3);
    let rows = Envelope { rows: 4, ..envelope_of(&batch) };
    assert!(encode(&rows, &batch, Compression::None).is_err());
    let schema = Envelope { fingerprint: 1, ..envelope_of(&batch) };
    assert!(encode(&schema, &batch, Compression::None).is_err());
}

#[test]
fn a_slice_of_views_encodes_only_its_own_strings() {
    let long = (0..1000).map(|row| format!("a string too long to be inlined, number {row}"));
    let views: ArrayRef = Arc::new(StringViewArray::from_iter_values(long));
    let schema = Schema::new(vec![Field::new("text", DataType::Utf8View, false)]);
    let batch = RecordBatch::try_new(Arc::new(schema), vec![views]).unwrap();
    let one = encode_stream(&batch.slice(500, 1), Compression::None).unwrap();
    assert!(one.len() < 2000, "one row takes {} bytes", one.len());
    assert_eq!(decode_batch(&one, &Limits::default()).unwrap(), batch.slice(500, 1));
}

#[test]
fn a_stream_of_two_batches_is_not_a_channels_message() {
    let batch = random_batch(&mut StdRng::seed_from_u64(2), 2);
    let mut bytes = Vec::new();
    let mut writer = StreamWriter::try_new(&mut bytes, &batch.schema()).unwrap();
    writer.write(&batch).unwrap();
    writer.write(&batch).unwrap();
    writer.finish().unwrap();
    drop(writer);
    let payload = Bytes::from(bytes);
    assert_eq!(decode_stream(&payload, &Limits::default()).unwrap().len(), 2);
    assert!(matches!(decode_batch(&payload, &Limits::default()), Err(CodecError::NotOneBatch { found: 2 })));
    assert!(matches!(decode_batch(&Bytes::new(), &Limits::default()), Err(CodecError::NotOneBatch { found: 0 })));
}

/// A buffer that announces four exabytes must be refused before it is allocated.
#[test]
fn a_compressed_buffer_that_announces_too_much_is_refused() {
    let numbers: ArrayRef = Arc::new(Int64Array::from(vec![7; 10_000]));
    let schema = Schema::new(vec![Field::new("number", DataType::Int64, false)]);
    let batch = RecordBatch::try_new(Arc::new(schema), vec![numbers]).unwrap();
    let mut bytes = encode_stream(&batch, Compression::Lz4).unwrap().to_vec();
    let announced = 80_000i64.to_le_bytes();
    let place = bytes.windows(8).position(|window| window == announced).unwrap();
    bytes[place..place + 8].copy_from_slice(&(1i64 << 62).to_le_bytes());
    let error = decode_batch(&Bytes::from(bytes), &Limits::default()).unwrap_err();
    assert!(error.to_string().contains("unfolds to more than"), "{error}");
}

/// Thirty kilobytes that say of themselves that they are eight bytes, and come to eight megabytes.
#[test]
fn a_compressed_buffer_that_unpacks_to_more_than_it_announces_is_refused_before_it_is_kept() {
    let numbers: ArrayRef = Arc::new(Int64Array::from(vec![7; 1 << 20]));
    let schema = Schema::new(vec![Field::new("number", DataType::Int64, false)]);
    let batch = RecordBatch::try_new(Arc::new(schema), vec![numbers]).unwrap();
    let honest = encode_stream(&batch, Compression::Lz4).unwrap();
    assert!(honest.len() < 1 << 17, "{} bytes", honest.len());
    assert_eq!(decode_stream(&honest, &Limits::default()).unwrap(), [batch]);

    let announced = (8i64 << 20).to_le_bytes();
    let place = honest.windows(8).position(|window| window == announced).unwrap();
    let mut bytes = honest.to_vec();
    bytes[place..place + 8].copy_from_slice(&8i64.to_le_bytes());
    let error = decode_stream(&Bytes::from(bytes), &Limits::default()).unwrap_err();
    assert!(error.to_string().contains("unpacks to more than the 8 bytes it announces"), "{error}");
}

#[test]
fn a_batch_over_the_limits_is_refused() {
    let batch = random_batch(&mut StdRng::seed_from_u64(3), 100);
    let payload = encode_stream(&batch, Compression::Lz4).unwrap();
    let rows = Limits { max_rows: 99, ..Limits::default() };
    assert!(decode_batch(&payload, &rows).unwrap_err().to_string().contains("100 rows"));
    let bytes = Limits { max_bytes: 1000, ..Limits::default() };
    assert!(decode_batch(&payload, &bytes).is_err());
}

fn seed_or(generated: u64) -> u64 {
    std::env::var("TAILWATER_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(generated)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: cases(), ..ProptestConfig::default() })]

    #[test]
    fn what_was_encoded_is_what_is_decoded(seed in any::<u64>(), rows in 0usize..200, lz4 in any::<bool>()) {
        let seed = seed_or(seed);
        let batch = random_batch(&mut StdRng::seed_from_u64(seed), rows);
        let compression = if lz4 { Compression::Lz4 } else { Compression::None };
        let (headers, payload) = encode(&envelope_of(&batch), &batch, compression).unwrap();
        prop_assert_eq!(decode_envelope(&headers).unwrap(), envelope_of(&batch), "seed {}", seed);
        prop_assert_eq!(&decode_batch(&payload, &Limits::default()).unwrap(), &batch, "seed {}", seed);
        // A payload at an odd address, as a broker hands it out.
        let mut shifted = vec![0u8];
        shifted.extend_from_slice(&payload);
        let shifted = Bytes::from(shifted).slice(1..);
        prop_assert_eq!(decode_batch(&shifted, &Limits::default()).unwrap(), batch, "seed {}", seed);
    }

    #[test]
    fn damaged_bytes_give_an_error_or_a_batch_and_never_a_panic(
        seed in any::<u64>(), rows in 0usize..60, lz4 in any::<bool>(), damages in 1usize..6,
    ) {
        let seed = seed_or(seed);
        let mut rng = StdRng::seed_from_u64(seed);
        let batch = random_batch(&mut rng, rows);
        let compression = if lz4 { Compression::Lz4 } else { Compression::None };
        let mut bytes = encode_stream(&batch, compression).unwrap().to_vec();
        for _ in 0..damages {
            match rng.random_range(0..3) {
                0 => bytes.truncate(rng.random_range(0..=bytes.len())),
                1 => {
                    let place = rng.random_range(0..=bytes.len());
                    bytes.insert(place, rng.random());
                }
                _ if !bytes.is_empty() => {
                    let place = rng.random_range(0..bytes.len());
                    bytes[place] = [0, 1, 0x7f, 0x80, 0xff, rng.random()][rng.random_range(0..6)];
                }
                _ => {}
            }
        }
        let _verdict = decode_stream(&Bytes::from(bytes), &Limits { max_rows: 1 << 20, max_bytes: 1 << 24 });
    }

    #[test]
    fn parts_fit_and_join_to_the_whole(seed in any::<u64>(), rows in 1usize..300, max in 4000usize..20_000) {
        let seed = seed_or(seed);
        let batch = random_batch(&mut StdRng::seed_from_u64(seed), rows);
        let parts = split_to_fit(&batch, max, Compression::Lz4).unwrap();
        for part in &parts {
            prop_assert!(part.num_rows() > 0);
            prop_assert!(encode_stream(part, Compression::Lz4).unwrap().len() <= max, "seed {}", seed);
        }
        let joined = arrow::compute::concat_batches(&batch.schema(), &parts).unwrap();
        prop_assert_eq!(joined, batch, "seed {}", seed);
    }
}

#[test]
fn a_row_larger_than_a_message_is_named() {
    let batch = random_batch(&mut StdRng::seed_from_u64(4), 8);
    let error = split_to_fit(&batch, 100, Compression::None).unwrap_err();
    assert!(matches!(error, SplitError::RowTooLarge { row: 0, max_encoded_bytes: 100, .. }), "{error}");
}

#[test]
fn parts_that_take_too_much_together_are_not_made() {
    let batch = random_batch(&mut StdRng::seed_from_u64(5), 100);
    let parts = encode_to_fit(&batch, 6_000, Compression::None).unwrap();
    let total: usize = parts.iter().map(|part| part.payload.len()).sum();
    let within = |bytes: usize| encode_to_fit_within(&batch, 6_000, bytes, Compression::None).unwrap();
    assert_eq!(within(total).map(|parts| parts.len()), Some(parts.len()));
    assert!(within(total - 1).is_none());
}

/// Enough for every build; `TAILWATER_CASES` asks for more.
fn cases() -> u32 {
    std::env::var("TAILWATER_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(200)
}
