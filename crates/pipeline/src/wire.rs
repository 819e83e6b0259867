//! Wire types: what a column may be in a channel and in a table.
//!
//! Invariant: a type that `normalise` returns is one of those Arrow readers of any language and Delta tables hold
//! alike, and normalising it again changes nothing.
//! Deliberately absent: the casts themselves; a branch's plan ends in them.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Fields, TimeUnit};

use crate::names::{fault_of_column, is_same_name};

/// Microseconds since the epoch, in UTC.
pub(crate) fn utc() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

/// The wire type that holds every value of `data_type`, or what to write instead.
///
/// Errors: the help text for a type that tables cannot hold.
pub(crate) fn normalise(data_type: &DataType) -> Result<DataType, String> {
    match data_type {
        DataType::Boolean
        | DataType::Int8
        | DataType::Int16
        | DataType::Int32
        | DataType::Int64
        | DataType::Float32
        | DataType::Float64
        | DataType::Utf8
        | DataType::Binary
        | DataType::Date32 => Ok(data_type.clone()),
        DataType::Utf8View | DataType::LargeUtf8 => Ok(DataType::Utf8),
        DataType::BinaryView | DataType::LargeBinary | DataType::FixedSizeBinary(_) => Ok(DataType::Binary),
        DataType::UInt8 => Ok(DataType::Int16),
        DataType::UInt16 => Ok(DataType::Int32),
        DataType::UInt32 => Ok(DataType::Int64),
        DataType::UInt64 => Ok(DataType::Decimal128(20, 0)),
        DataType::Float16 => Ok(DataType::Float32),
        DataType::Date64 => Ok(DataType::Timestamp(TimeUnit::Microsecond, None)),
        DataType::Timestamp(_, None) => Ok(DataType::Timestamp(TimeUnit::Microsecond, None)),
        DataType::Timestamp(_, Some(_)) => Ok(utc()),
        DataType::Decimal32(precision, scale)
        | DataType::Decimal64(precision, scale)
        | DataType::Decimal128(precision, scale)
        | DataType::Decimal256(precision, scale) => normalise_decimal(*precision, *scale),
        DataType::Dictionary(_, values) => normalise(values),
        DataType::RunEndEncoded(_, values) => normalise(values.data_type()),
        DataType::List(item)
        | DataType::LargeList(item)
        | DataType::ListView(item)
        | DataType::LargeListView(item)
        | DataType::FixedSizeList(item, _) => normalise_list(item),
        DataType::Struct(fields) => normalise_struct(fields),
        DataType::Null => Err("cast NULL to a type, for example CAST(NULL AS VARCHAR)".to_owned()),
        DataType::Time32(_) | DataType::Time64(_) => Err("cast it to VARCHAR".to_owned()),
        DataType::Interval(_) | DataType::Duration(_) => {
            Err("tables have no intervals; make it a number, for example with date_part('epoch', …)".to_owned())
        }
        DataType::Map(_, _) => Err("take single values out of it, for example m['key']".to_owned()),
        DataType::Union(_, _) => {
            Err("say which type you expect: json_get_str, json_get_int, json_get_float, json_get_bool, or `->>`"
                .to_owned())
        }
    }
}

fn normalise_decimal(precision: u8, scale: i8) -> Result<DataType, String> {
    let fits = precision <= 38 && scale >= 0 && i16::from(scale) <= i16::from(precision);
    if fits {
        return Ok(DataType::Decimal128(precision, scale));
    }
    Err("cast it to a decimal of at most 38 digits, for example CAST(… AS DECIMAL(38, 10))".to_owned())
}

fn normalise_list(item: &Field) -> Result<DataType, String> {
    let item = normalise(item.data_type())?;
    Ok(DataType::List(Arc::new(Field::new_list_field(item, true))))
}

fn normalise_struct(fields: &Fields) -> Result<DataType, String> {
    if fields.is_empty() {
        return Err("tables cannot hold a struct without fields".to_owned());
    }
    let normalised = fields.iter().map(normalise_field).collect::<Result<Vec<_>, _>>()?;
    Ok(DataType::Struct(Fields::from(normalised)))
}

fn normalise_field(field: &Arc<Field>) -> Result<Field, String> {
    if let Some(fault) = fault_of_column(field.name()) {
        return Err(format!("name the fields of the struct with named_struct(…): `{}` {fault}", field.name()));
    }
    Ok(Field::new(field.name(), normalise(field.data_type())?, true))
}

/// The field of a struct whose name tables take for that of one before it, at any depth of a wire type.
pub(crate) fn repeated_field(data_type: &DataType) -> Option<&str> {
    match data_type {
        DataType::List(item) => repeated_field(item.data_type()),
        DataType::Struct(fields) => {
            let is_repeated = |(index, field): &(usize, &Arc<Field>)| {
                fields.iter().take(*index).any(|known| is_same_name(known.name(), field.name()))
            };
            let repeated = fields.iter().enumerate().find(is_repeated).map(|(_, field)| field.name().as_str());
            repeated.or_else(|| fields.iter().find_map(|field| repeated_field(field.data_type())))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normalising_twice_is_normalising_once() {
        let text = Arc::new(Field::new("item", DataType::Utf8View, false));
        let types = [
            DataType::Utf8View,
            DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::LargeUtf8)),
            DataType::UInt64,
            DataType::Timestamp(TimeUnit::Nanosecond, Some("Europe/Berlin".into())),
            DataType::Timestamp(TimeUnit::Second, None),
            DataType::LargeList(text.clone()),
            DataType::Struct(Fields::from(vec![Field::new("a", DataType::List(text), false)])),
            DataType::Decimal256(30, 2),
        ];
        for data_type in types {
            let once = normalise(&data_type).expect("has a wire type");
            assert_eq!(normalise(&once).as_ref(), Ok(&once), "{data_type}");
        }
    }

    #[test]
    fn fields_that_tables_take_for_one_are_found_at_any_depth() {
        let number = |name: &str| Field::new(name, DataType::Int32, true);
        let of = |fields: Vec<Field>| DataType::Struct(Fields::from(fields));
        let nested = of(vec![number("a"), Field::new("b", of(vec![number("x"), number("X")]), true)]);
        let list = DataType::List(Arc::new(Field::new_list_field(of(vec![number("ä"), number("Ä")]), true)));
        assert_eq!(repeated_field(&nested), Some("X"));
        assert_eq!(repeated_field(&list), Some("Ä"));
        assert_eq!(repeated_field(&of(vec![number("a"), number("b"), Field::new("c", list, true)])), Some("Ä"));
        assert_eq!(repeated_field(&of(vec![number("ss"), number("ß")])), None);
    }

    #[test]
    fn types_that_tables_cannot_hold_come_with_a_way_out() {
        let types = [
            DataType::Null,
            DataType::Time64(TimeUnit::Microsecond),
            DataType::Duration(TimeUnit::Second),
            DataType::Decimal256(76, 2),
            DataType::Decimal128(10, -2),
            DataType::Struct(Fields::empty()),
        ];
        for data_type in types {
            let help = normalise(&data_type).expect_err("has no wire type");
            assert!(help.len() > 10, "{data_type}: {help}");
        }
    }
}
