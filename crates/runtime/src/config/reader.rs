//! Takes typed values out of the merged layers, collecting faults instead of stopping at the first.
//!
//! Invariant: a value that does not fit is a fault with its key and place, and its default stands in so that the rest
//! can be read.

use std::collections::BTreeSet;

use figment::Figment;
use figment::error::{Actual, Kind};
use figment::value::Value;
use serde::de::DeserializeOwned;

use super::faults::Fault;
use super::layers::{self, Layers};
use super::suggest;

pub(super) struct Reader<'a> {
    layers: &'a Layers,
    merged: Figment,
    faults: Vec<Fault>,
}

impl Reader<'_> {
    pub(super) fn new(layers: &Layers) -> Reader<'_> {
        Reader { layers, merged: layers.merged(), faults: Vec::new() }
    }

    pub(super) fn value<T: DeserializeOwned>(&mut self, section: &str, key: &str, default: T) -> T {
        let full = format!("{section}.{key}");
        let Ok(found) = self.merged.find_value(&full) else {
            return default;
        };
        match fit(&found) {
            Ok(value) => value,
            Err(kind) => {
                let place = self.layers.place_of(&full);
                let message = if layers::is_table(section, key) {
                    // What was found may hold secrets, so it is not shown.
                    "does not fit; expected a table such as { name = \"value\" }".to_owned()
                } else {
                    does_not_fit(&kind)
                };
                self.faults.push(Fault::new(full, message).at(place));
                default
            }
        }
    }

    pub(super) fn into_faults(self) -> Vec<Fault> {
        self.faults
    }
}

/// Keys whose value is not what was written, so that nothing is concluded from them.
pub(super) fn keys_of(faults: &[Fault]) -> BTreeSet<String> {
    faults.iter().map(|fault| fault.key().to_owned()).collect()
}

/// Reads a value as it is, and text from a variable or a flag also as the number, boolean or table it spells.
fn fit<T: DeserializeOwned>(found: &Value) -> Result<T, Kind> {
    let as_written = found.deserialize::<T>().map_err(|error| error.kind);
    let Some(text) = found.as_str() else {
        return as_written;
    };
    as_written.or_else(|kind| {
        let spelt = text.parse::<Value>().unwrap_or_else(|never| match never {});
        spelt.deserialize::<T>().map_err(|_| kind)
    })
}

fn does_not_fit(kind: &Kind) -> String {
    match kind {
        Kind::InvalidType(found, expected) | Kind::InvalidValue(found, expected) => {
            format!("is {}; expected {}", as_written(found), in_words(expected))
        }
        Kind::UnknownVariant(found, known) => unknown_variant(found, known),
        Kind::Message(message) => format!("does not fit: {message}"),
        other => format!("does not fit: {other}"),
    }
}

fn as_written(found: &Actual) -> String {
    match found {
        Actual::Str(text) => format!("\"{text}\""),
        Actual::Signed(number) => number.to_string(),
        Actual::Unsigned(number) => number.to_string(),
        Actual::Float(number) => number.to_string(),
        Actual::Bool(value) => value.to_string(),
        Actual::Map => "a table".to_owned(),
        Actual::Seq => "a list".to_owned(),
        other => other.to_string(),
    }
}

fn unknown_variant(found: &str, known: &[&str]) -> String {
    let expected: Vec<String> = known.iter().map(|name| format!("`{name}`")).collect();
    let hint = suggest::nearest(found, known.iter().copied())
        .map_or_else(String::new, |name| format!("; did you mean `{name}`?"));
    format!("is `{found}`; expected {}{hint}", expected.join(" or "))
}

fn in_words(expected: &str) -> &str {
    match expected {
        "u32" | "u64" | "usize" => "a whole number of 0 or more",
        "i32" | "i64" => "a whole number",
        "f32" | "f64" => "a number",
        "a boolean" => "true or false",
        other => other,
    }
}
