//! Column types: SQL words to wire types and back.
//!
//! Invariant: `print(read(text))` reads back as the same type, and every type read here has a place in Delta tables.
//! Deliberately absent: type parameters that would be a promise nobody keeps, such as the length of a `VARCHAR`.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Fields, TimeUnit};
use datafusion::sql::sqlparser::tokenizer::{Span, Token};

use crate::lex::{Cursor, describe};
use crate::names::fault_of_column;
use crate::near::did_you_mean;
use crate::problem::Problem;
use crate::wire::utc;

/// How deep arrays and structs may be nested. Readers of every kind recurse over types.
const MAX_TYPE_DEPTH: usize = 16;
const MAX_STRUCT_FIELDS: usize = 1_000;

const KNOWN: &[&str] = &[
    "BOOLEAN",
    "TINYINT",
    "SMALLINT",
    "INT",
    "INTEGER",
    "BIGINT",
    "REAL",
    "FLOAT",
    "DOUBLE",
    "DECIMAL",
    "NUMERIC",
    "VARCHAR",
    "TEXT",
    "STRING",
    "CHAR",
    "BYTEA",
    "BINARY",
    "VARBINARY",
    "BLOB",
    "DATE",
    "TIMESTAMP",
    "TIMESTAMPTZ",
    "ARRAY",
    "STRUCT",
    "ROW",
];

/// Words of other systems that have no type here, and what to write instead.
const REFUSED: &[(&str, &str)] = &[
    ("time", "tables have no time of day; use VARCHAR, or BIGINT for microseconds"),
    ("interval", "tables have no intervals; use BIGINT for microseconds"),
    ("json", "use VARCHAR and the JSON functions, such as json_get_str(column, 'key')"),
    ("jsonb", "use VARCHAR and the JSON functions, such as json_get_str(column, 'key')"),
    ("uuid", "use VARCHAR"),
    ("map", "use ARRAY<STRUCT<key VARCHAR, value VARCHAR>>, or VARCHAR and the JSON functions"),
    ("serial", "use BIGINT"),
    ("hugeint", "use DECIMAL(38, 0)"),
    ("unsigned", "use the next larger signed type"),
    ("timestamp_ltz", "use TIMESTAMP"),
];

/// Reads one type.
pub(super) fn read(cursor: &mut Cursor<'_>) -> Result<DataType, Problem> {
    read_nested(cursor, 0)
}

fn read_nested(cursor: &mut Cursor<'_>, depth: usize) -> Result<DataType, Problem> {
    if depth > MAX_TYPE_DEPTH {
        let message = format!("the type is nested deeper than {MAX_TYPE_DEPTH}");
        return Err(cursor.problem(cursor.span(), message));
    }
    let mut data_type = read_named(cursor, depth)?;
    let mut array_depth = depth;
    while cursor.take(&Token::LBracket) {
        cursor.expect(&Token::RBracket)?;
        array_depth += 1;
        if array_depth > MAX_TYPE_DEPTH {
            let message = format!("the type is nested deeper than {MAX_TYPE_DEPTH}");
            return Err(cursor.problem(cursor.previous_span(), message));
        }
        data_type = list_of(data_type);
    }
    Ok(data_type)
}

fn read_named(cursor: &mut Cursor<'_>, depth: usize) -> Result<DataType, Problem> {
    let span = cursor.span();
    let Some(word) = cursor.peek_word().filter(|word| word.quote_style.is_none()) else {
        let message = format!("expected a column type, found {}", describe(cursor.peek()));
        return Err(cursor.problem(span, message));
    };
    let name = word.value.as_str();
    cursor.next();
    match name {
        "boolean" | "bool" => Ok(DataType::Boolean),
        "tinyint" => Ok(DataType::Int8),
        "smallint" => Ok(DataType::Int16),
        "int" | "integer" => Ok(DataType::Int32),
        "bigint" => Ok(DataType::Int64),
        "real" | "float" => Ok(DataType::Float32),
        "double" => {
            cursor.take_keyword("PRECISION");
            Ok(DataType::Float64)
        }
        "decimal" | "numeric" | "dec" => read_decimal(cursor, span),
        "varchar" | "text" | "string" | "char" => without_length(cursor, name, DataType::Utf8),
        "bytea" | "binary" | "varbinary" | "blob" | "bytes" => without_length(cursor, name, DataType::Binary),
        "date" => Ok(DataType::Date32),
        "timestamp" => read_timestamp(cursor),
        "timestamptz" => Ok(utc()),
        "array" => read_array(cursor, depth),
        "struct" | "row" => read_struct(cursor, depth),
        _ => Err(unknown_type(cursor, span, name)),
    }
}

fn unknown_type(cursor: &Cursor<'_>, span: Span, name: &str) -> Problem {
    if let Some((_, instead)) = REFUSED.iter().find(|(refused, _)| *refused == name) {
        return cursor.problem(span, format!("type `{}` is not supported", name.to_uppercase())).with_help(*instead);
    }
    let help = did_you_mean(name, KNOWN.iter().copied());
    let help = help.unwrap_or_else(|| format!("known are: {}", KNOWN.join(", ")));
    cursor.problem(span, format!("unknown type `{name}`")).with_help(help)
}

fn read_decimal(cursor: &mut Cursor<'_>, span: Span) -> Result<DataType, Problem> {
    if !cursor.take(&Token::LParen) {
        let problem = cursor.problem(span, "a decimal needs its precision and scale");
        return Err(problem.with_help("write DECIMAL(38, 10), or as many digits as you need"));
    }
    let precision = read_integer(cursor)?;
    let scale = if cursor.take(&Token::Comma) { read_integer(cursor)? } else { 0 };
    cursor.expect(&Token::RParen)?;
    let checked = (u8::try_from(precision).ok(), i8::try_from(scale).ok());
    match checked {
        (Some(precision @ 1..=38), Some(scale)) if i64::from(scale) <= i64::from(precision) => {
            Ok(DataType::Decimal128(precision, scale))
        }
        _ => {
            let problem = cursor.problem(span, format!("DECIMAL({precision}, {scale}) is out of range"));
            Err(problem.with_help("the precision is 1 to 38 and the scale 0 to the precision"))
        }
    }
}

fn read_integer(cursor: &mut Cursor<'_>) -> Result<u64, Problem> {
    let number = match cursor.peek().map(|token| &token.token) {
        Some(Token::Number(digits, false)) => digits.parse().ok(),
        _ => None,
    };
    match number {
        Some(number) => {
            cursor.next();
            Ok(number)
        }
        None => Err(cursor.expected("a whole number", &[])),
    }
}

fn without_length(cursor: &mut Cursor<'_>, name: &str, data_type: DataType) -> Result<DataType, Problem> {
    if !cursor.peek_is(&Token::LParen) {
        return Ok(data_type);
    }
    let name = name.to_uppercase();
    let problem = cursor.problem(cursor.span(), format!("not supported yet: a length for {name}"));
    Err(problem.with_help(format!("lengths are not enforced; write {name}")))
}

fn read_timestamp(cursor: &mut Cursor<'_>) -> Result<DataType, Problem> {
    if cursor.peek_is(&Token::LParen) {
        let span = cursor.span();
        cursor.next();
        let precision = read_integer(cursor)?;
        cursor.expect(&Token::RParen)?;
        if precision > 6 {
            let problem = cursor.problem(span, format!("TIMESTAMP({precision}) is finer than tables can hold"));
            return Err(problem.with_help("timestamps count microseconds; write TIMESTAMP"));
        }
    }
    let is_local = cursor.peek_is_keyword("WITHOUT") && cursor.second_is_keyword("TIME");
    let is_zoned = cursor.peek_is_keyword("WITH") && cursor.second_is_keyword("TIME");
    if is_local || is_zoned {
        cursor.next();
        cursor.expect_keyword("TIME")?;
        cursor.expect_keyword("ZONE")?;
    }
    Ok(if is_local { DataType::Timestamp(TimeUnit::Microsecond, None) } else { utc() })
}

fn read_array(cursor: &mut Cursor<'_>, depth: usize) -> Result<DataType, Problem> {
    cursor.expect(&Token::Lt)?;
    let item = read_nested(cursor, depth + 1)?;
    cursor.expect_closing_angle()?;
    Ok(list_of(item))
}

fn read_struct(cursor: &mut Cursor<'_>, depth: usize) -> Result<DataType, Problem> {
    let span = cursor.previous_span();
    let is_angled = cursor.take(&Token::Lt);
    if !is_angled {
        cursor.expect(&Token::LParen)?;
    }
    let mut fields: Vec<Field> = Vec::new();
    loop {
        let field_span = cursor.span();
        let field = read_struct_field(cursor, depth)?;
        if fields.iter().any(|known| cursor.source.is_same_name(known.name(), field.name())) {
            return Err(cursor.problem(field_span, format!("field `{}` is there twice", field.name())));
        }
        fields.push(field);
        if fields.len() > MAX_STRUCT_FIELDS {
            return Err(cursor.problem(span, format!("the struct has more than {MAX_STRUCT_FIELDS} fields")));
        }
        if !cursor.take(&Token::Comma) {
            break;
        }
    }
    if is_angled {
        cursor.expect_closing_angle()?;
    } else {
        cursor.expect(&Token::RParen)?;
    }
    Ok(DataType::Struct(Fields::from(fields)))
}

fn read_struct_field(cursor: &mut Cursor<'_>, depth: usize) -> Result<Field, Problem> {
    let span = cursor.span();
    let Some(word) = cursor.peek_word() else {
        return Err(cursor.expected("the name of a field", &[]));
    };
    cursor.next();
    if let Some(fault) = fault_of_column(&word.value) {
        return Err(cursor.problem(span, format!("field name `{}` {fault}", word.value)));
    }
    cursor.take(&Token::Colon);
    let data_type = read_nested(cursor, depth + 1)?;
    Ok(Field::new(&word.value, data_type, true))
}

fn list_of(item: DataType) -> DataType {
    DataType::List(Arc::new(Field::new_list_field(item, true)))
}

/// The SQL text of a wire type.
pub(super) fn print(data_type: &DataType) -> String {
    match data_type {
        DataType::Boolean => "BOOLEAN".to_owned(),
        DataType::Int8 => "TINYINT".to_owned(),
        DataType::Int16 => "SMALLINT".to_owned(),
        DataType::Int32 => "INT".to_owned(),
        DataType::Int64 => "BIGINT".to_owned(),
        DataType::Float32 => "REAL".to_owned(),
        DataType::Float64 => "DOUBLE".to_owned(),
        DataType::Decimal128(precision, scale) => format!("DECIMAL({precision}, {scale})"),
        DataType::Utf8 => "VARCHAR".to_owned(),
        DataType::Binary => "BYTEA".to_owned(),
        DataType::Date32 => "DATE".to_owned(),
        DataType::Timestamp(_, None) => "TIMESTAMP WITHOUT TIME ZONE".to_owned(),
        DataType::Timestamp(_, Some(_)) => "TIMESTAMP".to_owned(),
        DataType::List(item) => format!("ARRAY<{}>", print(item.data_type())),
        DataType::Struct(fields) => format!("STRUCT<{}>", print_fields(fields)),
        // `read` makes no other type; the text would be refused when read back.
        other => other.to_string(),
    }
}

fn print_fields(fields: &Fields) -> String {
    let print_field = |field: &Arc<Field>| format!("{} {}", quote(field.name()), print(field.data_type()));
    fields.iter().map(print_field).collect::<Vec<_>>().join(", ")
}

/// A name as it must be written, with quotes unless it is plain.
pub(super) fn quote(name: &str) -> String {
    let starts_plain = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_');
    if starts_plain && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_') {
        return name.to_owned();
    }
    format!("\"{}\"", name.replace('"', "\"\""))
}
