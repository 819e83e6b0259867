//! Wall and processor time of a piece of work, and how they are printed.

use std::time::{Duration, Instant};

use anyhow::Result;
use testkit::process::Usage;

/// How long each stage is repeated: long against the clock tick processor time is counted in.
const REPEAT_FOR: Duration = Duration::from_secs(3);

/// What one stage costs.
pub(crate) struct Figure {
    pub(crate) name: String,
    pub(crate) rows: u64,
    pub(crate) bytes: u64,
    pub(crate) wall: Duration,
    pub(crate) cpu: Duration,
}

impl Figure {
    /// One line of a Markdown table. `limit` is what one core can do with the libraries as they are, in M rows/s.
    pub(crate) fn print(&self, limit: Option<f64>) {
        let per_cpu = self.rows as f64 / self.cpu.as_secs_f64() / 1e6;
        let per_wall = self.rows as f64 / self.wall.as_secs_f64() / 1e6;
        let megabytes = self.bytes as f64 / self.wall.as_secs_f64() / 1e6;
        let share =
            limit.map_or_else(|| "".to_owned(), |limit| format!("{limit:.1} | {:.0} %", per_cpu / limit * 100.0));
        let share = if share.is_empty() { " | ".to_owned() } else { share };
        println!("| {} | {per_wall:.2} | {megabytes:.0} | {per_cpu:.2} | {share} |", self.name);
    }
}

/// The head of the table that [`Figure::print`] fills.
pub(crate) fn print_head() {
    println!("| stage | M rows/s | MB/s | M rows per CPU-s | limit | share |");
    println!("|---|---|---|---|---|---|");
}

/// Repeats a piece of work, after one run that does not count, and sums it up.
pub(crate) fn repeat(name: &str, rows: u64, bytes: u64, mut work: impl FnMut() -> Result<()>) -> Result<Figure> {
    work()?;
    let before = Usage::of(std::process::id())?;
    let started = Instant::now();
    let mut runs = 0;
    while started.elapsed() < REPEAT_FOR {
        work()?;
        runs += 1;
    }
    let wall = started.elapsed();
    let cpu = Usage::of(std::process::id())?.cpu - before.cpu;
    Ok(Figure { name: name.to_owned(), rows: rows * runs, bytes: bytes * runs, wall, cpu })
}
