//! Free-form options handed on to a library, keys to text.
//!
//! Invariant: no secret among them is ever printed by `Debug`.
//! Deliberately absent: knowledge of which options exist; the library that takes them knows.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde::{Serialize, Serializer};

/// What is printed in place of a secret.
pub const MASK: &str = "********";

const SECRET_WORDS: [&str; 4] = ["secret", "password", "key", "token"];

/// Whether the value under this name must not be shown.
pub fn is_secret(name: &str) -> bool {
    let name = name.to_lowercase();
    SECRET_WORDS.iter().any(|word| name.contains(word))
}

/// Options by name. In TOML a value may be text, a number or a boolean, and an unquoted dotted key means the same as
/// a quoted one: `security.protocol = "SSL"` is `"security.protocol" = "SSL"`.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Properties(BTreeMap<String, String>);

impl Properties {
    pub fn into_map(self) -> BTreeMap<String, String> {
        self.0
    }

    /// The same names with secrets replaced.
    #[must_use]
    pub fn masked(&self) -> Properties {
        self.0.iter().map(|(name, value)| (name.clone(), shown(name, value).to_owned())).collect()
    }
}

fn shown<'a>(name: &str, value: &'a str) -> &'a str {
    if is_secret(name) { MASK } else { value }
}

impl Deref for Properties {
    type Target = BTreeMap<String, String>;

    fn deref(&self) -> &BTreeMap<String, String> {
        &self.0
    }
}

impl FromIterator<(String, String)> for Properties {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(pairs: I) -> Properties {
        Properties(pairs.into_iter().collect())
    }
}

impl fmt::Debug for Properties {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_map().entries(self.masked().0.iter()).finish()
    }
}

impl Serialize for Properties {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Properties {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Properties, D::Error> {
        deserializer.deserialize_map(PropertiesVisitor)
    }
}

struct PropertiesVisitor;

impl<'de> Visitor<'de> for PropertiesVisitor {
    type Value = Properties;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a table such as { name = \"value\" }")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Properties, A::Error> {
        let mut pairs = BTreeMap::new();
        while let Some(name) = map.next_key::<String>()? {
            match map.next_value::<Entry>()? {
                Entry::Text(value) => drop(pairs.insert(name, value)),
                Entry::Nested(nested) => {
                    pairs.extend(nested.0.into_iter().map(|(rest, value)| (format!("{name}.{rest}"), value)))
                }
            }
        }
        Ok(Properties(pairs))
    }
}

enum Entry {
    Text(String),
    Nested(Properties),
}

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Entry, D::Error> {
        deserializer.deserialize_any(EntryVisitor)
    }
}

struct EntryVisitor;

impl<'de> Visitor<'de> for EntryVisitor {
    type Value = Entry;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("text, a number or true/false")
    }

    fn visit_str<E>(self, value: &str) -> Result<Entry, E> {
        Ok(Entry::Text(value.to_owned()))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Entry, E> {
        Ok(Entry::Text(value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Entry, E> {
        Ok(Entry::Text(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Entry, E> {
        Ok(Entry::Text(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Entry, E> {
        Ok(Entry::Text(value.to_string()))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Entry, A::Error> {
        PropertiesVisitor.visit_map(map).map(Entry::Nested)
    }
}
