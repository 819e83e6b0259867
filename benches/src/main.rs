//! Measurements: each stage on one core, and the whole path through real processes.
//!
//! Every figure is printed with what it was made from; `README.md` holds the tables and the commands. Rows per
//! CPU-second counts the processor time of our own processes alone, so it survives a noisy machine.
#![allow(clippy::print_stdout, reason = "a bench prints its figures")]

mod latency;
mod limit;
mod path;
mod stages;
mod stand;
mod stopwatch;
#[cfg(feature = "stores")]
mod stores;

use clap::{Parser, Subcommand};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures Tailwater.
#[derive(Debug, Parser)]
#[command(
    after_help = "Examples:\n  benches stages\n  benches path --rows 4000000 --rows-per-message 100\n  benches latency --rate 50000"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Decode, codec, topics, transform, Parquet, commit: each by itself
    Stages,
    /// The store of the embedded log beside another
    #[cfg(feature = "stores")]
    Stores,
    /// JSON in a topic → committed rows, through separate processes on Kafka, or one on the embedded log
    Path(path::PathArguments),
    /// Produce → visible in SELECT, at a steady rate
    Latency(latency::LatencyArguments),
    /// Processor time and memory of `tailwater up` with nothing to do
    Idle,
}

fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match Arguments::parse().command {
        Command::Stages => stages::run(&runtime),
        #[cfg(feature = "stores")]
        Command::Stores => stores::run(),
        Command::Path(arguments) => path::run(&runtime, &arguments),
        Command::Latency(arguments) => latency::run(&runtime, &arguments),
        Command::Idle => path::idle(),
    }
}
