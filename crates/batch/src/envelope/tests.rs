//! Round trips, golden bytes, and hostile headers.

use proptest::prelude::*;

use super::*;
use crate::Scalar;

fn sample() -> Envelope {
    Envelope {
        fingerprint: 0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10,
        rows: 3,
        event_time: Some((-5, 7)),
        watermark: Some(2),
        origin: Origin::new(Writer::new("shop.orders/1"), Position::at(4), Position::inside(9, 2)).unwrap(),
        totals: Totals { read: 10, emitted: 6, rejected: 3, filtered: 1, late: 0 },
        port: Port::Data,
        traceparent: Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".into()),
        bounds: vec![ColumnBounds {
            column: "country".into(),
            min: Scalar::Text("AT".into()),
            max: Scalar::Text("ZA".into()),
        }],
    }
}

#[test]
fn an_envelope_survives_its_headers() {
    let full = sample();
    assert_eq!(decode_envelope(&encode_envelope(&full)).unwrap(), full);
    let bare =
        Envelope { event_time: None, watermark: None, traceparent: None, bounds: vec![], port: Port::Rejected, ..full };
    let headers = encode_envelope(&bare);
    assert_eq!(headers.len(), 6, "headers that do not apply are absent");
    assert_eq!(decode_envelope(&headers).unwrap(), bare);
}

/// The bytes of version 1, as `docs/envelope.md` spells them out: a change here breaks readers in the field.
#[test]
fn version_one_keeps_its_bytes() {
    let headers = encode_envelope(&sample());
    let hex =
        |wanted: &str| -> String { find(&headers, wanted).unwrap().iter().map(|byte| format!("{byte:02x}")).collect() };
    assert_eq!(hex("v"), "01");
    assert_eq!(hex("schema"), "100f0e0d0c0b0a090807060504030201");
    assert_eq!(hex("rows"), "03000000");
    assert_eq!(hex("event-time"), "fbffffffffffffff0700000000000000");
    assert_eq!(hex("watermark"), "0200000000000000");
    assert_eq!(
        hex("origin"),
        "040000000000000000000000090000000000000002000000".to_owned() + "73686f702e6f72646572732f31"
    );
    assert_eq!(
        hex("totals"),
        "0a00000000000000060000000000000003000000000000000100000000000000".to_owned() + "0000000000000000"
    );
    assert_eq!(hex("port"), "00");
    assert_eq!(hex("bounds"), "0700636f756e74727903020041540302005a41");
}

#[test]
fn an_unknown_version_is_refused() {
    let mut headers = encode_envelope(&sample());
    headers[0].1 = Bytes::from_static(&[2]);
    let error = decode_envelope(&headers).unwrap_err();
    assert_eq!(error.to_string(), "envelope has version 2, this build reads 1; upgrade the reader");
    assert_eq!(error.class(), ErrorClass::Stop);
}

#[test]
fn a_missing_header_is_named() {
    let mut headers = encode_envelope(&sample());
    headers.retain(|(name, _)| name != "origin");
    assert!(decode_envelope(&headers).unwrap_err().to_string().contains("`origin` is missing"));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn hostile_header_bytes_never_panic(index in 0usize..10, bytes in prop::collection::vec(any::<u8>(), 0..80)) {
        let mut headers = encode_envelope(&sample());
        headers[index].1 = Bytes::from(bytes);
        let _verdict = decode_envelope(&headers);
    }

    #[test]
    fn numbers_survive(from in any::<(u64, u32)>(), further in any::<(u64, u32)>(), counts in any::<[u64; 5]>(),
                       float in any::<f64>().prop_filter("comparable", |value| !value.is_nan()), decimal in any::<i128>()) {
        let (first, second) = (Position::inside(from.0, from.1), Position::inside(further.0, further.1));
        let envelope = Envelope {
            origin: Origin::new(Writer::new("w"), first.min(second), first.max(second)).unwrap(),
            totals: Totals { read: counts[0], emitted: counts[1], rejected: counts[2], filtered: counts[3], late: counts[4] },
            bounds: vec![
                ColumnBounds { column: "a".into(), min: Scalar::Float(float), max: Scalar::Float(float) },
                ColumnBounds { column: "é".into(), min: Scalar::Decimal(decimal), max: Scalar::Integer(from.0 as i64) },
            ],
            ..sample()
        };
        prop_assert_eq!(decode_envelope(&encode_envelope(&envelope)).unwrap(), envelope);
    }
}
