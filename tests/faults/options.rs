//! What is asked for on the command line.

use std::{fmt, path::PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use testkit::process::PROGRAMS;

use crate::instance::Start;

/// Which runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Set {
    /// Every fault at least once, and thirty kills: for CI.
    Short,
    /// Two hundred kills of each service and thirty of every other fault.
    Long,
}

/// What to do.
#[derive(Clone, Debug)]
pub(crate) enum Order {
    Campaign(Set),
    /// With one safeguard off each, the campaign must fail.
    Negative,
    /// Prints `docs/reliability.md` made from results.
    Report(PathBuf),
    /// Names all faults.
    List,
}

/// Everything asked for.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) order: Order,
    /// Only these faults; all where empty.
    pub(crate) only: Vec<Pattern>,
    /// None of these.
    pub(crate) except: Vec<Pattern>,
    /// Instead of the runs of the set.
    pub(crate) runs: Option<u32>,
    pub(crate) seed: u64,
    /// `classic` or `consumer` (KIP-848): how Kafka is asked to share out partitions.
    pub(crate) protocol: String,
    /// Rows a second.
    pub(crate) rate: u32,
    /// Fields side by side: most of the time of a fault is waiting.
    pub(crate) fields: usize,
    /// Where results are read from and appended to.
    pub(crate) results: Option<PathBuf>,
    /// How to run this again.
    pub(crate) command: String,
}

pub(crate) const USAGE: &str = "usage: just faults [short|long|negative|list|report FILE] [--only NAME[,NAME]] [--except NAME[,NAME]] [--runs N] [--seed N] [--rate ROWS] [--fields N] [--protocol classic|consumer] [--resume FILE]";

/// On two processors.
const FIELDS_AT_ONCE: usize = 2;

/// What starts a campaign on the programs that are being tested.
fn recipe() -> &'static str {
    if std::env::var_os(PROGRAMS).is_some() { "just faults-optimised" } else { "just faults" }
}

impl Options {
    /// Reads the arguments after the program's name.
    pub(crate) fn read(arguments: &[String]) -> Result<Self> {
        let mut words = arguments.iter();
        let order = match words.next().map(String::as_str) {
            None | Some("short") => Order::Campaign(Set::Short),
            Some("long") => Order::Campaign(Set::Long),
            Some("negative") => Order::Negative,
            Some("list") => Order::List,
            Some("report") => Order::Report(words.next().context(USAGE)?.into()),
            Some(other) => bail!("`{other}` is nothing that can be asked for; {USAGE}"),
        };
        let (mut only, mut except) = (Vec::new(), Vec::new());
        let (mut runs, mut seed, mut rate, mut results) = (None, None, 300, None);
        let mut protocol = "classic".to_owned();
        let mut fields = FIELDS_AT_ONCE;
        while let Some(flag) = words.next() {
            let value = words.next().with_context(|| format!("`{flag}` needs a value; {USAGE}"))?;
            match flag.as_str() {
                "--only" => only = patterns(value),
                "--except" => except = patterns(value),
                "--runs" => runs = Some(value.parse().context("--runs is a number")?),
                "--seed" => seed = Some(value.parse().context("--seed is a number")?),
                "--rate" => rate = value.parse().context("--rate is a number of rows a second")?,
                "--fields" => fields = value.parse().context("--fields is a number of fields side by side")?,
                "--protocol" => value.clone_into(&mut protocol),
                "--resume" => results = Some(value.into()),
                _ => bail!("`{flag}` is no flag; {USAGE}"),
            }
        }
        ensure!(fields > 0, "--fields is at least 1");
        let command = format!("{} {}", recipe(), arguments.join(" ")).trim().to_owned();
        let seed = seed.unwrap_or_else(|| testkit::seed::Seed::of("faults").value() >> 16);
        Ok(Self { order, only, except, runs, seed, protocol, rate, fields, results, command })
    }

    /// What every instance is started with.
    pub(crate) fn start(&self) -> Start {
        Start::default().set(format!("log.properties.group.protocol={}", self.protocol))
    }

    pub(crate) fn wants(&self, fault: &str) -> bool {
        let named = |patterns: &[Pattern]| patterns.iter().any(|pattern| pattern.fits(fault));
        (self.only.is_empty() || named(&self.only)) && !named(&self.except)
    }

    /// The first name asked for that none of `known` has.
    pub(crate) fn unknown(&self, known: &[String]) -> Option<&Pattern> {
        let is_unknown = |pattern: &&Pattern| !known.iter().any(|name| pattern.fits(name));
        self.only.iter().chain(&self.except).find(is_unknown)
    }
}

/// The name of a fault or control, or, with a `*` at its end, the beginning of several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pattern(String);

impl Pattern {
    fn fits(&self, name: &str) -> bool {
        self.0.strip_suffix('*').map_or(self.0 == name, |beginning| name.starts_with(beginning))
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn patterns(value: &str) -> Vec<Pattern> {
    value.split(',').map(|name| Pattern(name.to_owned())).collect()
}
