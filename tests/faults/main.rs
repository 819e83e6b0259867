//! The fault campaign: real processes, a real Kafka, a real S3 server, and everything that may happen to them.
//!
//! Not a test of `cargo test`, since it takes from minutes to hours: `just faults` builds and runs it. Every fault is a
//! row of one table (`inject::table`); rows flow all the while, and after each block of faults every row that was sent
//! is compared with every row that is stored. Results are lines of a file, and `docs/reliability.md` is made from them.
//! The invariant: what is not run is said not to be run.
#![allow(clippy::print_stdout, reason = "a campaign tells how far it is")]

mod block;
mod campaign;
mod controls;
mod field;
mod inject;
mod instance;
mod judge;
mod logs;
mod observer;
mod options;
mod plan;
mod queue;
mod report;
mod results;
mod service;
mod whole;

use std::process::ExitCode;

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    campaign::Campaign,
    inject::catalogue,
    options::{Options, Order},
    results::Results,
};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match Options::read(&arguments).and_then(|options| run(&options)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<bool> {
    let known: Vec<String> = catalogue().into_iter().map(|fault| fault.name).chain(controls::names()).collect();
    if let Some(unknown) = options.unknown(&known) {
        bail!("`{unknown}` is no fault and no control; there are {}", known.join(", "));
    }
    match &options.order {
        Order::List => {
            catalogue().iter().for_each(|fault| println!("{:32} {}", fault.name, fault.what));
            Ok(true)
        }
        Order::Report(path) => {
            ensure!(path.is_file(), "there is no file of results at {}", path.display());
            print!("{}", report::page(&Results::at(path))?);
            Ok(true)
        }
        Order::Negative => controls::run_all(options, &results(options)?),
        Order::Campaign(set) => {
            logs::check_the_check()?;
            Campaign::new(options, *set, results(options)?).run()
        }
    }
}

fn results(options: &Options) -> Result<Results> {
    let path = match &options.results {
        Some(path) => testkit::repository(path),
        None => {
            let file = tempfile::Builder::new().prefix("tailwater-faults-").suffix(".jsonl").tempfile()?;
            file.into_temp_path().keep().context("keep the file of results")?
        }
    };
    println!("seed {}; results go to {}", options.seed, path.display());
    Ok(Results::at(&path))
}
