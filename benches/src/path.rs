//! The whole path: JSON in a topic → committed rows, through real processes.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::Result;
use clap::Args;
use testkit::rows::{Bids, TimeStyle};
use tokio::runtime::Runtime;
use topics::{Log as _, NewMessage, TopicName, TopicSettings};

use crate::{
    limit::Limit,
    stages::{PIPELINE, VIEW},
    stand::Stand,
};

/// What is sent, and through what.
#[derive(Debug, Args)]
pub(crate) struct PathArguments {
    /// Rows to send
    #[arg(long, default_value_t = 4_000_000)]
    rows: u64,
    /// JSON objects in one Kafka message
    #[arg(long, default_value_t = 1)]
    rows_per_message: usize,
    /// Partitions of the topic
    #[arg(long, default_value_t = 2)]
    partitions: u32,
    /// One process on the embedded log, fed over HTTP, instead of four on Kafka
    #[arg(long)]
    embedded: bool,
    /// With a view over the rows, stored as well
    #[arg(long)]
    view: bool,
}

pub(crate) fn run(runtime: &Runtime, arguments: &PathArguments) -> Result<()> {
    let mut stand = Stand::new(arguments.embedded, "")?;
    let sql = if arguments.view { format!("{PIPELINE}{VIEW}") } else { PIPELINE.to_owned() };
    if arguments.embedded {
        return run_embedded(&mut stand, &sql, arguments);
    }
    produce(runtime, &stand, arguments)?;
    stand.apply(&sql)?;
    let before = Limit::measure()?;
    let started = Instant::now();
    stand.start()?;
    stand.settle(arguments.rows)?;
    let took = started.elapsed();
    stand.report(arguments.rows, took, before.mean(Limit::measure()?))
}

/// The processes are there first; the rows come over HTTP in bodies of 4 MB.
fn run_embedded(stand: &mut Stand, sql: &str, arguments: &PathArguments) -> Result<()> {
    stand.start()?;
    stand.apply(sql)?;
    let mut bids = Bids::with_time(1, TimeStyle::EpochMicros);
    let file = stand.folder.path().join("bids.ndjson");
    let mut text = Vec::new();
    for _ in 0..arguments.rows {
        bids.write_next(&mut text);
    }
    fs::write(&file, text)?;
    let before = Limit::measure()?;
    let started = Instant::now();
    stand.tailwater("ingestion", &["ingest", "bench.bids", &file.display().to_string()])?;
    stand.settle(arguments.rows)?;
    let took = started.elapsed();
    stand.report(arguments.rows, took, before.mean(Limit::measure()?))
}

/// Everything is in the topic before the clock starts.
fn produce(runtime: &Runtime, stand: &Stand, arguments: &PathArguments) -> Result<()> {
    let log = stand.connect(runtime)?;
    let topic = TopicName::try_from("bids".to_owned())?;
    let settings = TopicSettings { partitions: arguments.partitions, ..TopicSettings::default() };
    runtime.block_on(log.create(&topic, &settings))?;
    let appender = log.appender();
    let mut bids = Bids::with_time(1, TimeStyle::EpochMicros);
    let mut sent = 0;
    let mut message = 0u32;
    while sent < arguments.rows {
        let rows = (arguments.rows - sent).min(arguments.rows_per_message as u64);
        let payload = bids.lines(rows as usize);
        let partition = message % arguments.partitions;
        // The flush at the end says whether they are durable.
        let _queued = runtime.block_on(appender.append(&topic, partition, NewMessage::of(payload)))?;
        sent += rows;
        message += 1;
    }
    Ok(runtime.block_on(appender.flush())?)
}

/// `up` on the embedded log with nothing to do, for half a minute.
pub(crate) fn idle() -> Result<()> {
    let mut stand = Stand::new(true, "")?;
    stand.start()?;
    stand.apply(&format!("{PIPELINE}{VIEW}"))?;
    std::thread::sleep(Duration::from_secs(10));
    let before = stand.processes[0].1.usage()?;
    let started = Instant::now();
    std::thread::sleep(Duration::from_secs(30));
    let after = stand.processes[0].1.usage()?;
    let share = (after.cpu - before.cpu).as_secs_f64() / started.elapsed().as_secs_f64() * 100.0;
    println!("idle: {share:.2} % of a core, {} MB", after.resident_bytes >> 20);
    Ok(())
}
