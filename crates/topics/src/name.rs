//! Names of topics.
//!
//! Invariant: a [`TopicName`] is a name every log accepts, so no implementation has to check again.
//! Deliberately absent: what names mean; that is decided by those who make them.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Longest name a Kafka broker takes.
const LONGEST: usize = 249;

/// The name of a topic: 1 to 249 of `a-z A-Z 0-9 . _ -`, and neither `.` nor `..`. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TopicName(Arc<str>);

/// A text that cannot name a topic.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "topic name `{name}` is not valid: expected 1 to {LONGEST} of letters, digits, `.`, `_` and `-`, found {found}"
)]
pub struct InvalidTopicName {
    /// The text, cut where it is long.
    pub name: String,
    /// What is wrong with it.
    pub found: String,
}

impl TopicName {
    /// Checks and takes a name.
    pub fn new(name: impl AsRef<str>) -> Result<Self, InvalidTopicName> {
        let name = name.as_ref();
        match fault(name) {
            None => Ok(Self(Arc::from(name))),
            Some(found) => Err(InvalidTopicName { name: name.chars().take(64).collect(), found }),
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn fault(name: &str) -> Option<String> {
    if name.is_empty() {
        return Some("an empty text".to_owned());
    }
    if name == "." || name == ".." {
        return Some("dots alone".to_owned());
    }
    if let Some(stranger) = name.chars().find(|c| !allowed(*c)) {
        return Some(format!("`{}`", stranger.escape_default()));
    }
    (name.len() > LONGEST).then(|| format!("{} characters", name.len()))
}

fn allowed(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')
}

impl fmt::Display for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", self.0)
    }
}

impl TryFrom<String> for TopicName {
    type Error = InvalidTopicName;

    fn try_from(name: String) -> Result<Self, InvalidTopicName> {
        Self::new(name)
    }
}

impl TryFrom<&str> for TopicName {
    type Error = InvalidTopicName;

    fn try_from(name: &str) -> Result<Self, InvalidTopicName> {
        Self::new(name)
    }
}

impl std::str::FromStr for TopicName {
    type Err = InvalidTopicName;

    fn from_str(name: &str) -> Result<Self, InvalidTopicName> {
        Self::new(name)
    }
}

impl From<TopicName> for String {
    fn from(name: TopicName) -> Self {
        name.0.as_ref().to_owned()
    }
}

impl AsRef<str> for TopicName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_brokers_take_are_taken() {
        let longest = "x".repeat(LONGEST);
        for name in ["a", "shop.orders", "Shop_Orders-2", "...", longest.as_str()] {
            assert_eq!(TopicName::new(name).map(String::from), Ok(name.to_owned()));
        }
    }

    #[test]
    fn names_that_brokers_refuse_are_refused_with_the_reason() {
        let too_long = "x".repeat(LONGEST + 1);
        let cases = [
            ("", "an empty text"),
            (".", "dots alone"),
            ("..", "dots alone"),
            ("shop orders", "` `"),
            ("größe", "`\\u{f6}`"),
            (too_long.as_str(), "250 characters"),
        ];
        for (name, reason) in cases {
            let error = TopicName::new(name).expect_err("refused");
            assert_eq!(error.found, reason, "{name}");
        }
    }
}
