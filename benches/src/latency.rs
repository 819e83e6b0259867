//! Produce → visible in `SELECT`, row by row, at a steady rate.
//!
//! Every row carries the moment it was handed to the producer (`auction`) and its partition (`bidder`). Asked over and over, analysis says up to which of them
//! each partition can be seen; a row's latency is the moment of the first answer that has it, less its own. The pause
//! between two questions and the time of the answer are part of the figure.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::Result;
use clap::Args;
use tokio::runtime::Runtime;
use topics::{Appender, Log as _, NewMessage, TopicName, TopicSettings};

use crate::{stages::PIPELINE, stand::Stand};

const PARTITIONS: u32 = 2;
/// Start-up and the first commits are not measured.
const WARM_UP: Duration = Duration::from_secs(10);
/// Rows still on their way when producing ends are waited for that long.
const TAIL: Duration = Duration::from_secs(5);

/// How fast, for how long.
#[derive(Debug, Args)]
pub(crate) struct LatencyArguments {
    /// Rows a second
    #[arg(long, default_value_t = 75_000)]
    rate: u64,
    /// Seconds measured, after ten of warm-up
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Pause between two questions, in milliseconds
    #[arg(long, default_value_t = 10)]
    pause: u64,
}

/// When the rows of each partition were produced, in order, in microseconds.
type Produced = BTreeMap<u32, Vec<i64>>;

pub(crate) fn run(runtime: &Runtime, arguments: &LatencyArguments) -> Result<()> {
    let mut stand = Stand::new(false, "[storage]\nflush_age = \"200ms\"\n")?;
    let log = stand.connect(runtime)?;
    let topic = TopicName::try_from("bids".to_owned())?;
    runtime.block_on(log.create(&topic, &TopicSettings { partitions: PARTITIONS, ..TopicSettings::default() }))?;
    stand.apply(PIPELINE)?;
    stand.start()?;
    let measured_from = micros() + WARM_UP.as_micros() as i64;
    let until = Instant::now() + WARM_UP + Duration::from_secs(arguments.seconds);
    let producing = runtime.spawn(produce(log.appender(), topic, arguments.rate, until));
    let pause = Duration::from_millis(arguments.pause);
    let seen = runtime.block_on(watch(&stand.url("analysis"), pause, until + TAIL))?;
    let produced = runtime.block_on(producing)??;
    print(&latencies(&produced, &seen, measured_from), seen.len());
    Ok(())
}

async fn produce(appender: Arc<dyn Appender>, topic: TopicName, rate: u64, until: Instant) -> Result<Produced> {
    let mut tick = tokio::time::interval(Duration::from_millis(5));
    let begun = Instant::now();
    let (mut sent, mut produced) = (0u64, Produced::new());
    while Instant::now() < until {
        tick.tick().await;
        let due = begun.elapsed().as_micros() as u64 * rate / 1_000_000;
        while sent < due {
            let now = micros();
            let partition = (sent % u64::from(PARTITIONS)) as u32;
            let line = format!(
                "{{\"auction\":{now},\"bidder\":{partition},\"price\":2,\"channel\":\"c\",\"url\":\"https://www.nexmark.com/x/y/z\",\"date_time\":{now},\"extra\":\"{sent:0100}\"}}"
            );
            produced.entry(partition).or_default().push(now);
            // The flush at the end says whether they are durable.
            let _queued = appender.append(&topic, partition, NewMessage::of(line)).await?;
            sent += 1;
        }
    }
    appender.flush().await?;
    Ok(produced)
}

/// One answer: when it came, and the newest row of each partition in it.
struct Seen {
    at: i64,
    newest: BTreeMap<u32, i64>,
}

async fn watch(url: &str, pause: Duration, until: Instant) -> Result<Vec<Seen>> {
    let client = reqwest::Client::new();
    let question = "SELECT bidder, max(auction) FROM bench.bids GROUP BY bidder";
    let mut seen = Vec::new();
    while Instant::now() < until {
        tokio::time::sleep(pause).await;
        let request = client.post(format!("{url}/v1/sql?format=csv")).body(question);
        let answer = request.send().await?;
        // Until the first commit there is no table to ask.
        if !answer.status().is_success() {
            continue;
        }
        let answer = answer.text().await?;
        let newest: BTreeMap<u32, i64> = answer.lines().skip(1).filter_map(partition_and_newest).collect();
        if !newest.is_empty() {
            seen.push(Seen { at: micros(), newest });
        }
    }
    anyhow::ensure!(!seen.is_empty(), "no row was ever seen, or no question was ever answered");
    Ok(seen)
}

fn partition_and_newest(line: &str) -> Option<(u32, i64)> {
    let (partition, newest) = line.split_once(',')?;
    Some((partition.parse().ok()?, newest.parse().ok()?))
}

/// Of each row produced from `from` on and seen at all, how long it took, in microseconds, sorted.
fn latencies(produced: &Produced, seen: &[Seen], from: i64) -> Vec<i64> {
    let mut all = Vec::new();
    for (partition, rows) in produced {
        let mut rows = rows.iter().copied().peekable();
        for answer in seen {
            let Some(&newest) = answer.newest.get(partition) else { continue };
            while let Some(row) = rows.next_if(|row| *row <= newest) {
                if row >= from {
                    all.push(answer.at - row);
                }
            }
        }
    }
    all.sort_unstable();
    all
}

fn print(latencies: &[i64], answers: usize) {
    let at = |share: f64| latencies.get(((latencies.len() as f64 - 1.0) * share) as usize).copied().unwrap_or(0) / 1000;
    println!(
        "{} rows measured over {answers} answers: p50 {} ms, p90 {} ms, p99 {} ms, max {} ms",
        latencies.len(),
        at(0.5),
        at(0.9),
        at(0.99),
        at(1.0)
    );
}

fn micros() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_micros() as i64
}
