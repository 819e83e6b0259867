//! What is wrong with a config, and where.
//!
//! Invariant: a fault names its key and its place, and never shows a secret.
//! Deliberately absent: warnings. Those do not stop a start; see `Config::warnings`.

use std::fmt;

use delivery::ErrorClass;

/// One thing to mend.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Fault {
    key: String,
    message: String,
    place: Option<String>,
}

impl Fault {
    /// `message` continues the sentence that begins with the quoted key: "is 0s; use at least 1ms".
    pub fn new(key: impl Into<String>, message: impl Into<String>) -> Fault {
        Fault { key: key.into(), message: message.into(), place: None }
    }

    /// A fault of the config as a whole, such as a missing file.
    pub(super) fn of_whole(message: impl Into<String>) -> Fault {
        Fault::new("", message)
    }

    pub(super) fn at(mut self, place: Option<String>) -> Fault {
        self.place = place;
        self
    }

    /// `section.key`; empty for a fault of the config as a whole.
    pub fn key(&self) -> &str {
        &self.key
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.key.is_empty() {
            write!(out, "`{}` ", self.key)?;
        }
        out.write_str(&self.message)?;
        match &self.place {
            Some(place) => write!(out, " ({place})"),
            None => Ok(()),
        }
    }
}

/// All faults of a config, sorted by key. Never empty.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigFaults(Vec<Fault>);

impl ConfigFaults {
    /// # Panics
    /// Without any fault: there would be nothing to report.
    pub fn new(mut faults: Vec<Fault>) -> ConfigFaults {
        assert!(!faults.is_empty(), "a faulty config has a fault");
        faults.sort();
        faults.dedup();
        ConfigFaults(faults)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Fault> {
        self.0.iter()
    }

    /// A config does not mend itself.
    pub fn class(&self) -> ErrorClass {
        ErrorClass::Stop
    }
}

impl fmt::Display for ConfigFaults {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.0.len() == 1 { "" } else { "s" };
        write!(out, "config has {} fault{plural}:", self.0.len())?;
        self.0.iter().try_for_each(|fault| write!(out, "\n  {fault}"))
    }
}

impl std::error::Error for ConfigFaults {}
