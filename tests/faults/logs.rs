//! Reads the logs of processes for what must not be in them: the same line over and over.
//!
//! A service may say the same thing about once a second. What is counted is a kind of line: its level, its place in the
//! code and its text without numbers.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::Value;

/// Lines of one kind that a window may hold: two a second, so that a burst at the edge of two windows passes.
const WINDOW_SECONDS: u64 = 10;
const LINES_PER_WINDOW: usize = 20;

/// A kind of line that came too often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Flood {
    pub(crate) kind: String,
    pub(crate) lines: usize,
}

/// The floods in a log of JSON lines.
pub(crate) fn floods(log: &Path) -> Vec<Flood> {
    floods_in(&fs::read_to_string(log).unwrap_or_default())
}

fn floods_in(text: &str) -> Vec<Flood> {
    let mut counts: BTreeMap<(String, u64), usize> = BTreeMap::new();
    for line in text.lines() {
        let Ok(line) = serde_json::from_str::<Value>(line) else { continue };
        let Some(second) = line["timestamp"].as_str().and_then(second_of_day) else { continue };
        *counts.entry((kind(&line), second / WINDOW_SECONDS)).or_default() += 1;
    }
    let mut worst: BTreeMap<String, usize> = BTreeMap::new();
    for ((kind, _), lines) in counts {
        let most = worst.entry(kind).or_default();
        *most = lines.max(*most);
    }
    let many = worst.into_iter().filter(|(_, lines)| *lines > LINES_PER_WINDOW);
    many.map(|(kind, lines)| Flood { kind, lines }).collect()
}

/// Of what is merely told, one line about each of many things is no flood; of trouble it is.
fn kind(line: &Value) -> String {
    let text = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
    let mut told = text("message");
    if text("level") == "INFO" {
        let fields = line.as_object().into_iter().flatten().filter(|(name, _)| *name != "timestamp");
        told = fields.map(|(name, value)| format!("{name}={value} ")).collect();
    }
    let told: String = told.chars().filter(|letter| !letter.is_ascii_digit()).take(300).collect();
    format!("{} {}: {told}", text("level"), text("target"))
}

/// Of `2026-11-25T18:40:03.123Z`.
fn second_of_day(timestamp: &str) -> Option<u64> {
    let time = timestamp.split('T').nth(1)?;
    let mut parts = time.split([':', '.', 'Z']).map(str::parse::<u64>);
    let (hours, minutes, seconds) = (parts.next()?.ok()?, parts.next()?.ok()?, parts.next()?.ok()?);
    Some((hours * 60 + minutes) * 60 + seconds)
}

/// Fails the run where the check itself cannot see a flood, or sees one in a calm log.
pub(crate) fn check_the_check() -> anyhow::Result<()> {
    let line = |second: usize, text: &str| {
        let timestamp = format!("2026-01-01T00:00:{second:02}.5Z");
        serde_json::json!({ "timestamp": timestamp, "level": "WARN", "target": "t", "message": text }).to_string()
    };
    let calm: Vec<String> = (0..60).map(|second| line(second, &format!("try {second}"))).collect();
    let flood: Vec<String> = (0..60).map(|number| line(3, &format!("try {number}"))).collect();
    anyhow::ensure!(floods_in(&calm.join("\n")).is_empty(), "a calm log counts as a flood");
    anyhow::ensure!(floods_in(&flood.join("\n")).len() == 1, "a flood of log lines is not seen");
    Ok(())
}
