//! Arrow schema ↔ Delta schema, for the types a channel may carry.
//!
//! The mapping is one to one: what is written comes back as the same Arrow types. Any other type is an error that
//! names the column. Deliberately absent: column mapping, type widening, field metadata, and the types Delta does
//! not have (unsigned, nanoseconds, dictionaries).

use std::{collections::HashSet, sync::Arc};

use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef, TimeUnit};
use serde_json::{Value, json};

use crate::LakeError;

/// The Delta form of a schema, as it stands in `metaData.schemaString`.
///
/// # Errors
/// `Column` for a type a Delta table cannot hold, and for names that differ only in case.
pub fn to_delta_schema(table: &str, schema: &Schema) -> Result<String, LakeError> {
    Ok(json!({ "type": "struct", "fields": fields_to_delta(table, "", schema.fields())? }).to_string())
}

/// The Arrow form of `metaData.schemaString`. Lists name their element `item`, as Arrow does.
///
/// # Errors
/// `Column` for a type this crate does not read, `BrokenLog` where the text is no schema.
pub fn from_delta_schema(table: &str, version: u64, text: &str) -> Result<SchemaRef, LakeError> {
    let parsed: Value =
        serde_json::from_str(text).map_err(|error| LakeError::broken(table, version, format!("schema: {error}")))?;
    let reader = SchemaReader { table, version };
    Ok(Arc::new(Schema::new(reader.fields("", &parsed)?)))
}

/// Whether any column, at any depth, is a timestamp without a zone, which needs a newer protocol.
pub(crate) fn has_local_timestamps(schema: &Schema) -> bool {
    fn inside(data_type: &DataType) -> bool {
        match data_type {
            DataType::Timestamp(_, None) => true,
            DataType::List(element) => inside(element.data_type()),
            DataType::Struct(fields) => fields.iter().any(|field| inside(field.data_type())),
            _ => false,
        }
    }
    schema.fields().iter().any(|field| inside(field.data_type()))
}

/// The first place where two schemas part, in words; `None` when their Delta forms are equal.
pub(crate) fn difference(expected: &Schema, found: &Schema) -> Option<String> {
    for (index, field) in expected.fields().iter().enumerate() {
        let Some(other) = found.fields().get(index) else {
            return Some(format!("lacks column `{}`", field.name()));
        };
        if field.name() != other.name() {
            return Some(format!("has column `{}` where `{}` was expected", other.name(), field.name()));
        }
        if !same_type(field.data_type(), other.data_type()) || field.is_nullable() != other.is_nullable() {
            return Some(format!(
                "has column `{}` of type {}, expected {}",
                field.name(),
                describe(other),
                describe(field)
            ));
        }
    }
    let extra = found.fields().get(expected.fields().len())?;
    Some(format!("has an unexpected column `{}`", extra.name()))
}

/// Equal but for the name of a list's element, which Delta does not keep.
pub(crate) fn same_type(left: &DataType, right: &DataType) -> bool {
    match (left, right) {
        (DataType::List(left), DataType::List(right)) => {
            left.is_nullable() == right.is_nullable() && same_type(left.data_type(), right.data_type())
        }
        (DataType::Struct(left), DataType::Struct(right)) => {
            left.len() == right.len()
                && left.iter().zip(right).all(|(left, right)| {
                    left.name() == right.name()
                        && left.is_nullable() == right.is_nullable()
                        && same_type(left.data_type(), right.data_type())
                })
        }
        _ if is_utc(left) && is_utc(right) => true,
        _ => left == right,
    }
}

fn describe(field: &Field) -> String {
    format!("{}{}", field.data_type(), if field.is_nullable() { "" } else { " not null" })
}

fn is_utc(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Timestamp(TimeUnit::Microsecond, Some(zone))
        if matches!(zone.as_ref(), "UTC" | "+00:00" | "Z" | "Etc/UTC"))
}

fn fields_to_delta(table: &str, parent: &str, fields: &Fields) -> Result<Vec<Value>, LakeError> {
    let mut names = HashSet::new();
    fields
        .iter()
        .map(|field| {
            let column = format!("{parent}{}", field.name());
            if !names.insert(field.name().to_lowercase()) {
                return Err(column_error(table, &column, "another column has the same name but for case"));
            }
            Ok(json!({
                "name": field.name(),
                "type": type_to_delta(table, &column, field.data_type())?,
                "nullable": field.is_nullable(),
                "metadata": {},
            }))
        })
        .collect()
}

fn type_to_delta(table: &str, column: &str, data_type: &DataType) -> Result<Value, LakeError> {
    let name = match data_type {
        DataType::Boolean => "boolean",
        DataType::Int8 => "byte",
        DataType::Int16 => "short",
        DataType::Int32 => "integer",
        DataType::Int64 => "long",
        DataType::Float32 => "float",
        DataType::Float64 => "double",
        DataType::Utf8 => "string",
        DataType::Binary => "binary",
        DataType::Date32 => "date",
        DataType::Timestamp(TimeUnit::Microsecond, None) => "timestamp_ntz",
        utc if is_utc(utc) => "timestamp",
        DataType::Decimal128(precision, scale) if *scale >= 0 => {
            return Ok(json!(format!("decimal({precision},{scale})")));
        }
        DataType::List(element) => {
            return Ok(json!({
                "type": "array",
                "elementType": type_to_delta(table, &format!("{column}.{}", element.name()), element.data_type())?,
                "containsNull": element.is_nullable(),
            }));
        }
        DataType::Struct(fields) => {
            return Ok(json!({ "type": "struct", "fields": fields_to_delta(table, &format!("{column}."), fields)? }));
        }
        other => {
            let reason = format!("type {other} cannot be stored in a Delta table; cast it in the pipeline");
            return Err(column_error(table, column, reason));
        }
    };
    Ok(json!(name))
}

fn column_error(table: &str, column: &str, reason: impl Into<String>) -> LakeError {
    LakeError::Column { table: table.to_owned(), column: column.to_owned(), reason: reason.into() }
}

struct SchemaReader<'a> {
    table: &'a str,
    version: u64,
}

impl SchemaReader<'_> {
    fn fields(&self, parent: &str, structure: &Value) -> Result<Fields, LakeError> {
        let fields = structure["fields"].as_array().ok_or_else(|| self.broken(parent, "has no `fields`"))?;
        fields.iter().map(|field| self.field(parent, field)).collect()
    }

    fn field(&self, parent: &str, field: &Value) -> Result<Field, LakeError> {
        let name = field["name"].as_str().ok_or_else(|| self.broken(parent, "has a field without a name"))?;
        let column = format!("{parent}{name}");
        let nullable = field["nullable"].as_bool().unwrap_or(true);
        Ok(Field::new(name, self.data_type(&column, &field["type"])?, nullable))
    }

    fn data_type(&self, column: &str, delta: &Value) -> Result<DataType, LakeError> {
        match delta {
            Value::String(name) => self.primitive(column, name),
            Value::Object(parts) if parts.get("type").is_some_and(|kind| kind == "array") => {
                let element = self.data_type(column, &delta["elementType"])?;
                let contains_null = delta["containsNull"].as_bool().unwrap_or(true);
                Ok(DataType::List(Arc::new(Field::new("item", element, contains_null))))
            }
            Value::Object(parts) if parts.get("type").is_some_and(|kind| kind == "struct") => {
                Ok(DataType::Struct(self.fields(&format!("{column}."), delta)?))
            }
            other => Err(column_error(self.table, column, format!("type {other} is not read by this version"))),
        }
    }

    fn primitive(&self, column: &str, name: &str) -> Result<DataType, LakeError> {
        Ok(match name {
            "boolean" => DataType::Boolean,
            "byte" => DataType::Int8,
            "short" => DataType::Int16,
            "integer" => DataType::Int32,
            "long" => DataType::Int64,
            "float" => DataType::Float32,
            "double" => DataType::Float64,
            "string" => DataType::Utf8,
            "binary" => DataType::Binary,
            "date" => DataType::Date32,
            "timestamp" => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
            "timestamp_ntz" => DataType::Timestamp(TimeUnit::Microsecond, None),
            other => decimal(other)
                .ok_or_else(|| column_error(self.table, column, format!("type {other} is not read by this version")))?,
        })
    }

    fn broken(&self, column: &str, what: &str) -> LakeError {
        LakeError::broken(self.table, self.version, format!("schema at `{column}` {what}"))
    }
}

fn decimal(name: &str) -> Option<DataType> {
    let (precision, scale) = name.strip_prefix("decimal(")?.strip_suffix(')')?.split_once(',')?;
    let (precision, scale): (u8, i8) = (precision.trim().parse().ok()?, scale.trim().parse().ok()?);
    (precision <= 38 && scale >= 0).then_some(DataType::Decimal128(precision, scale))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn every_wire_type() -> Schema {
        let utc = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
        let list = |element| DataType::List(Arc::new(Field::new("item", element, true)));
        let nested = DataType::Struct(Fields::from(vec![
            Field::new("at", utc.clone(), false),
            Field::new("names", list(DataType::Utf8), true),
        ]));
        let types = [
            DataType::Boolean,
            DataType::Int8,
            DataType::Int16,
            DataType::Int32,
            DataType::Int64,
            DataType::Float32,
            DataType::Float64,
            DataType::Decimal128(20, 4),
            DataType::Utf8,
            DataType::Binary,
            DataType::Date32,
            utc,
            DataType::Timestamp(TimeUnit::Microsecond, None),
            list(nested.clone()),
            nested,
        ];
        let fields = types.into_iter().enumerate();
        Schema::new(
            fields.map(|(index, kind)| Field::new(format!("c{index}"), kind, index % 2 == 0)).collect::<Fields>(),
        )
    }

    #[test]
    fn every_wire_type_survives_the_round_trip() {
        let schema = every_wire_type();
        let text = to_delta_schema("t", &schema).unwrap();
        assert_eq!(*from_delta_schema("t", 0, &text).unwrap(), schema);
        assert_eq!(difference(&schema, &schema), None);
    }

    #[test]
    fn the_library_reads_the_schema_as_we_meant_it() {
        let text = to_delta_schema("t", &every_wire_type()).unwrap();
        let parsed: deltalake_core::StructType = serde_json::from_str(&text).unwrap();
        assert_eq!(serde_json::to_value(parsed).unwrap(), serde_json::from_str::<Value>(&text).unwrap());
    }

    #[test]
    fn a_type_delta_lacks_is_an_error_that_names_the_column() {
        let inner = DataType::Struct(Fields::from(vec![Field::new("count", DataType::UInt64, true)]));
        let list = DataType::List(Arc::new(Field::new("item", inner, true)));
        let error = to_delta_schema("t", &Schema::new(vec![Field::new("visits", list, true)])).unwrap_err();
        assert!(error.to_string().contains("`visits.item.count` of table `t`"), "{error}");

        let nanos = DataType::Timestamp(TimeUnit::Nanosecond, None);
        assert!(to_delta_schema("t", &Schema::new(vec![Field::new("at", nanos, true)])).is_err());
    }

    #[test]
    fn names_that_differ_only_in_case_are_refused() {
        let schema =
            Schema::new(vec![Field::new("id", DataType::Int64, true), Field::new("ID", DataType::Int64, true)]);
        assert!(to_delta_schema("t", &schema).unwrap_err().to_string().contains("`ID`"));
    }

    #[test]
    fn a_difference_names_the_first_column_that_parts() {
        let expected = Schema::new(vec![Field::new("a", DataType::Int64, true), Field::new("b", DataType::Utf8, true)]);
        let other = Schema::new(vec![Field::new("a", DataType::Int64, true), Field::new("b", DataType::Date32, true)]);
        assert_eq!(difference(&expected, &other).unwrap(), "has column `b` of type Date32, expected Utf8");
        let short = Schema::new(vec![Field::new("a", DataType::Int64, true)]);
        assert_eq!(difference(&expected, &short).unwrap(), "lacks column `b`");
        assert_eq!(difference(&short, &expected).unwrap(), "has an unexpected column `b`");
    }
}
