//! `docs/reliability.md`, made from results: what was run, how often, and what came of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    time::Duration,
};

use anyhow::Result;
use serde_json::Value;

use crate::{
    controls::ELSEWHERE,
    inject::{Fault, catalogue},
    results::{Record, Results},
};

const HEAD: &str = "# Reliability: what was measured

<!-- Made by `just faults report docs/reliability.jsonl`. Do not edit: run the campaign and make it anew. -->

Real processes on a real Apache Kafka and a real S3 server (the Versity gateway): two instances of each service, rows sent all the while by `tailwater verify produce`, faults done to processes, network, broker and store.
After each block of faults the load stops and `tailwater verify check` compares every row that was sent with every row in the tables, the rejected tables and the views, reads the tables a second time with an independent reader, and audits the Delta logs.

* **lost**: rows that were acknowledged and are in no table. **doubled**: rows that are there more than once. Every other violation stands under *What went wrong*.
* **bound**: without a failure in N runs, the chance that one run fails is below 3/N (at 95 % confidence). It is a bound, not a promise.
* **recovery**: from the moment the fault ends (the process is started again, the link is whole) until everything that was waiting at that moment is covered by the service that was hit (by storage for faults of the store) or, where a broker was killed, is in the tables. 50, 95 and 100 of a hundred. Kills of our processes meet no other fault; of the others, one of a process, one of Kafka and one of the store are done at the same moment, so that one may have to wait for the end of another.

How to run it: `just faults short`, `just faults-optimised long --resume docs/reliability.jsonl` (goes on where it stopped), `just faults long --only kill-storage --seed 7`.
";

/// Runs of one fault, added up.
#[derive(Default)]
struct Sum {
    runs: u32,
    rows: u64,
    lost: u64,
    doubled: u64,
    recovery: Vec<Duration>,
    problems: BTreeSet<String>,
    skipped: Option<String>,
    seeds: BTreeSet<u64>,
    date: String,
    commits: BTreeSet<String>,
    command: String,
}

/// The whole page.
pub(crate) fn page(results: &Results) -> Result<String> {
    let records = results.read()?;
    let campaign = sums(&records, "campaign");
    let controls = sums(&records, "control");
    let mut page = HEAD.to_owned();
    write!(page, "\n{}{}", overview(&records, &campaign), machine(&records))?;
    page += "\n## Faults\n\n";
    page += "| fault | what is done | runs | lost | doubled | bound 3/N | recovery p50 / p95 / max | wanted p95 | date | command |\n";
    page += "|---|---|---:|---:|---:|---:|---|---|---|---|\n";
    let table = catalogue();
    for fault in &table {
        if let Some(sum) = campaign.get(&fault.name).filter(|sum| sum.runs > 0) {
            writeln!(page, "{}", row(fault, sum))?;
        }
    }
    page += "\n## Not run\n\n";
    for fault in &table {
        match campaign.get(&fault.name) {
            Some(sum) if sum.runs > 0 => {}
            Some(Sum { skipped: Some(reason), .. }) => writeln!(page, "* `{}` ({}): {reason}", fault.name, fault.what)?,
            _ => writeln!(page, "* `{}` ({})", fault.name, fault.what)?,
        }
    }
    page +=
        "* a full disk that queries spill to: queries do not spill, a query over its memory limit ends with an error\n";
    page += "* power loss: a killed process keeps the page cache of the machine\n";
    page += "\n## What went wrong\n\n";
    let wrong: Vec<String> =
        table.iter().filter_map(|fault| Some(problems(&fault.name, campaign.get(&fault.name)?))).collect();
    let wrong = wrong.concat();
    page += if wrong.is_empty() { "Nothing.\n" } else { &wrong };
    page += &controls_table(&controls)?;
    page += &memory_table(&records)?;
    Ok(page)
}

fn overview(records: &[(Record, Value)], campaign: &BTreeMap<String, Sum>) -> String {
    let faults: u64 = campaign.values().map(|sum| u64::from(sum.runs)).sum();
    let mut commits: BTreeSet<&String> = campaign.values().flat_map(|sum| &sum.commits).collect();
    commits.retain(|commit| !commit.is_empty());
    let commits: Vec<String> = commits.into_iter().map(|commit| format!("`{commit}`")).collect();
    let kills: u64 =
        campaign.iter().filter(|(name, _)| name.starts_with("kill-")).map(|(_, sum)| u64::from(sum.runs)).sum();
    // Faults of one block have its rows in common.
    let blocks: BTreeMap<(u64, u64), &Record> = records
        .iter()
        .filter(|(record, _)| record.kind == "campaign")
        .map(|(record, _)| ((record.seed, record.rows), record))
        .collect();
    let of_blocks = |count: fn(&Record) -> u64| blocks.values().map(|record| count(record)).sum::<u64>();
    format!(
        "**{faults} faults, {kills} of them kills; of {} rows sent, {} lost and {} doubled.** Built from {}.\n",
        of_blocks(|record| record.rows),
        of_blocks(|record| record.lost),
        of_blocks(|record| record.doubled),
        commits.join(", ")
    )
}

/// What else the machine had to do.
fn machine(records: &[(Record, Value)]) -> String {
    let loads: Vec<f64> = records.iter().filter_map(|(_, value)| value["load"].as_f64()).collect();
    let (Some(least), Some(most)) = (loads.iter().copied().reduce(f64::min), loads.iter().copied().reduce(f64::max))
    else {
        return String::new();
    };
    let cores = records.iter().filter_map(|(_, value)| value["cores"].as_u64()).max().unwrap_or(0);
    format!(
        "The machine had {cores} cores and a load average of {least:.0} to {most:.0}. Programs of the recipe \
         *faults* are built for tests, those of *faults-optimised* for release. Recovery on a machine of its own is shorter.\n"
    )
}

fn sums(records: &[(Record, Value)], kind: &str) -> BTreeMap<String, Sum> {
    let mut sums: BTreeMap<String, Sum> = BTreeMap::new();
    for (record, value) in records.iter().filter(|(record, _)| record.kind == kind) {
        let sum = sums.entry(record.fault.clone()).or_default();
        sum.runs += record.runs;
        sum.rows += record.rows;
        sum.lost += record.lost;
        sum.doubled += record.doubled;
        sum.recovery.extend(&record.recovery);
        sum.problems.extend(record.problems.iter().cloned());
        sum.skipped = record.skipped.clone().or(sum.skipped.take());
        sum.seeds.insert(record.seed);
        sum.date = value["date"].as_str().unwrap_or_default().chars().take(10).collect();
        sum.commits.insert(value["commit"].as_str().unwrap_or_default().to_owned());
        // A campaign gives its first block the seed after its own.
        let recipe: Vec<&str> = record.command.split(' ').take(2).collect();
        let (recipe, fault, seed) = (recipe.join(" "), &record.fault, record.seed.saturating_sub(1));
        sum.command = format!("{recipe} long --only {fault} --seed {seed}");
    }
    sums
}

fn row(fault: &Fault, sum: &Sum) -> String {
    let failed = sum.lost + sum.doubled > 0;
    let bound = match sum.runs {
        _ if failed => "–".to_owned(),
        0..=3 => "none".to_owned(),
        runs => format!("{:.1} %", 300.0 / f64::from(runs)),
    };
    format!(
        "| `{}` | {} | {} | {} | {} | {bound} | {} | {} s | {} | `{}` |",
        fault.name,
        fault.what,
        sum.runs,
        sum.lost,
        sum.doubled,
        recoveries(&sum.recovery),
        fault.bound.as_secs(),
        sum.date,
        sum.command,
    )
}

fn recoveries(recovery: &[Duration]) -> String {
    if recovery.is_empty() {
        return "–".to_owned();
    }
    let seconds = |percent| format!("{:.1}", percentile(recovery, percent).as_secs_f64());
    format!("{} / {} / {} s", seconds(50), seconds(95), seconds(100))
}

/// The smallest value that so many of a hundred do not exceed.
pub(crate) fn percentile(values: &[Duration], percent: usize) -> Duration {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}

/// What was found, without the examples where the judge gave them.
fn in_words(problem: &str) -> String {
    let judged = serde_json::from_str::<Value>(problem).unwrap_or_default();
    match (judged["meaning"].as_str(), judged["violations"].as_u64()) {
        (Some(meaning), Some(violations)) => format!("{violations} times not held: {meaning}"),
        _ => problem.to_owned(),
    }
}

fn problems(fault: &str, sum: &Sum) -> String {
    let lines = sum.problems.iter().map(|problem| {
        let line: String = in_words(problem).split_whitespace().collect::<Vec<_>>().join(" ");
        let short: String = line.chars().take(400).collect();
        format!("* `{fault}`: {short}\n")
    });
    lines.collect()
}

fn controls_table(controls: &BTreeMap<String, Sum>) -> Result<String> {
    let mut text = "\n## Negative controls\n\nThe same harness with a safeguard of the protocol switched off (`just faults negative`). It must find rows lost or doubled, an invariant broken, or a halt.\n\n".to_owned();
    text += "| without | lost | doubled | what else was seen | date |\n|---|---:|---:|---|---|\n";
    for (name, sum) in controls {
        let seen: Vec<String> =
            sum.problems.iter().map(|problem| in_words(problem).chars().take(160).collect()).collect();
        let seen = seen.join("; ").replace('|', "/").replace('\n', " ");
        writeln!(text, "| `{name}` | {} | {} | {seen} | {} |", sum.lost, sum.doubled, sum.date)?;
    }
    for (name, why) in ELSEWHERE {
        writeln!(text, "\n`{name}` has no control on processes: {why}.")?;
    }
    Ok(text)
}

fn memory_table(records: &[(Record, Value)]) -> Result<String> {
    let mut peaks: BTreeMap<&str, u64> = BTreeMap::new();
    for (record, _) in records {
        for (service, bytes) in &record.peak_rss {
            let peak = peaks.entry(service).or_default();
            *peak = (*bytes).max(*peak);
        }
    }
    let mut text = "\n## Memory\n\nThe most resident memory one instance ever took over all blocks.\n\n| service | peak |\n|---|---:|\n".to_owned();
    for (service, bytes) in peaks {
        writeln!(text, "| {service} | {} MiB |", bytes >> 20)?;
    }
    Ok(text)
}
