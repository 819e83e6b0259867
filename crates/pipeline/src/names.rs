//! Every name that is derived from a definition: topics, channels, folders, tables.
//!
//! Invariant: names are made of `[a-z0-9_]` parts joined by `.` (topics) or `/` (folders), so two definitions never
//! share one, and a new incarnation shares none with the old one except its landing topic.
//! Deliberately absent: whether anything of that name exists.

/// The topic that holds every definition ever accepted, in order.
pub const CATALOG_TOPIC: &str = "tailwater.catalog";

/// What user topics must not begin with.
pub(crate) const RESERVED_TOPIC_PREFIX: &str = "tailwater.";

/// What names of columns must not begin with.
pub(crate) const RESERVED_COLUMN_PREFIX: &str = "__";

const MAX_NAME_CHARACTERS: usize = 64;
const MAX_TOPIC_CHARACTERS: usize = 249;

/// The topic a source without a `topic` option reads. It outlives incarnations: what users sent stays sent.
pub fn landing_topic(pipeline: &str, source: &str) -> String {
    format!("tailwater.landing.{pipeline}.{source}")
}

/// The channel with the rows of a source or view.
pub fn channel(pipeline: &str, name: &str, incarnation: u64) -> String {
    format!("tailwater.channel.{pipeline}.{name}.{incarnation}")
}

/// The channel with what a source or view rejected.
pub fn rejected_channel(pipeline: &str, name: &str, incarnation: u64) -> String {
    format!("tailwater.rejected.{pipeline}.{name}.{incarnation}")
}

/// The table with what `name` rejected.
pub fn rejected_table(name: &str) -> String {
    format!("{name}_rejected")
}

/// The table's folder under the root of the store.
pub fn folder(pipeline: &str, table: &str, incarnation: u64) -> String {
    format!("{pipeline}/{table}/{incarnation}")
}

/// What is wrong with the name of a pipeline or definition, as the end of a sentence.
pub(crate) fn fault_of_name(name: &str) -> Option<String> {
    if name.chars().count() > MAX_NAME_CHARACTERS {
        return Some(format!("is longer than {MAX_NAME_CHARACTERS} characters"));
    }
    let starts_well = name.starts_with(|first: char| first.is_ascii_lowercase());
    let is_plain = name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if starts_well && is_plain {
        return None;
    }
    Some("must begin with a letter and have only lower-case letters, digits and `_`".to_owned())
}

/// What is wrong with the name of a column, as the end of a sentence.
pub(crate) fn fault_of_column(name: &str) -> Option<String> {
    if name.is_empty() {
        return Some("is empty".to_owned());
    }
    if name.starts_with(RESERVED_COLUMN_PREFIX) {
        return Some("begins with `__`, which is reserved".to_owned());
    }
    // Delta tables refuse these without column mapping.
    let refused = |c: char| " ,;{}()\n\t=".contains(c) || c.is_control();
    name.chars().find(|c| refused(*c)).map(|c| format!("has {c:?} in it, which tables cannot hold"))
}

/// Whether tables take two names, of columns or of fields of a struct, for one.
pub(crate) fn is_same_name(one: &str, other: &str) -> bool {
    let is_plain = one.is_ascii() && other.is_ascii();
    one.eq_ignore_ascii_case(other) || (!is_plain && one.to_lowercase() == other.to_lowercase())
}

/// What is wrong with the name of a user's topic, as the end of a sentence.
pub(crate) fn fault_of_topic(topic: &str) -> Option<String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if topic.is_empty() || topic.len() > MAX_TOPIC_CHARACTERS || !topic.chars().all(is_plain) {
        return Some(format!("must be 1 to {MAX_TOPIC_CHARACTERS} letters, digits, `.`, `_` and `-`"));
    }
    if topic == "." || topic == ".." {
        return Some("is not a legal topic name".to_owned());
    }
    if topic.starts_with(RESERVED_TOPIC_PREFIX) {
        return Some(format!("begins with `{RESERVED_TOPIC_PREFIX}`, which is reserved"));
    }
    None
}
