//! "Did you mean": the known name nearest to a misspelt one.
//!
//! Invariant: a suggestion is always a name that exists; none is better than a silly one.

use super::SECTIONS;

/// Below this likeness two names have nothing to do with each other.
const LIKE_ENOUGH: f64 = 0.7;

/// The known name most like `found`.
pub(super) fn nearest<'a>(found: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let found = found.to_lowercase();
    known
        .into_iter()
        .map(|name| (strsim::normalized_damerau_levenshtein(&found, name), name))
        .filter(|(likeness, _)| *likeness >= LIKE_ENOUGH)
        .max_by(|(left, _), (right, _)| left.total_cmp(right))
        .map(|(_, name)| name)
}

/// `section.key` for a key nobody knows: in the same section if it looks like one there, else where it does exist.
pub(super) fn nearest_key(section: &str, key: &str) -> Option<String> {
    let same_section = SECTIONS.iter().find(|info| info.name == section);
    // A name too many in a variable, `STORE__OPTION__X`, should not hide what was meant.
    let key = key.split('.').next().unwrap_or(key);
    let near = same_section
        .and_then(|info| nearest(key, info.keys.iter().map(|known| known.name)))
        .map(|name| format!("{section}.{name}"));
    near.or_else(|| elsewhere(key))
}

/// `section.key` of the one section that has exactly this key.
pub(super) fn elsewhere(key: &str) -> Option<String> {
    let mut owners = SECTIONS.iter().filter(|info| info.has_key(key));
    let owner = owners.next()?;
    owners.next().is_none().then(|| format!("{}.{key}", owner.name))
}

pub(super) fn nearest_section(section: &str) -> Option<String> {
    nearest(section, SECTIONS.iter().map(|info| info.name)).map(str::to_owned)
}

/// "is no key of the config; did you mean `…`?" as a fault continues.
pub(super) fn unknown(what: &str, suggestion: Option<String>) -> String {
    match suggestion {
        Some(name) => format!("is no {what}; did you mean `{name}`?"),
        None => format!("is no {what}"),
    }
}
