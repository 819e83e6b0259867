//! `tailwater verify`: from what was typed to what is wished for.

use anyhow::anyhow;
use runtime::config::Config;

use crate::{
    arguments::{Global, Produce, Verify, VerifyCheck, VerifyTarget, Watch},
    commands::Failure,
    verify::{check, definitions::Target, produce, watch},
};

pub(crate) async fn run(global: &Global, config: &Config, step: Verify) -> Result<(), Failure> {
    match step {
        Verify::Produce(arguments) => Box::pin(produce::run(global, config, to_produce(arguments)?)).await,
        Verify::Check(arguments) => Box::pin(check::run(global, config, to_check(arguments))).await,
        Verify::Watch(arguments) => Box::pin(watch::run(global, config, to_watch(arguments))).await,
    }
}

fn to_produce(arguments: Produce) -> Result<produce::Wish, Failure> {
    let refuse = |what: String| Err(Failure::from(anyhow!(what)));
    let Produce { rate, bad_rate, keys, partitions, .. } = arguments;
    if !rate.is_finite() || rate < 0.0 {
        return refuse(format!("--rate {rate} is not a number of rows a second"));
    }
    if !(0.0..=1.0).contains(&bad_rate) {
        return refuse(format!("--bad-rate {bad_rate} is not a share between 0 and 1"));
    }
    if keys == 0 || partitions == 0 {
        return refuse("--keys and --partitions are at least 1".to_owned());
    }
    Ok(produce::Wish {
        target: target(arguments.target),
        ledger: arguments.ledger,
        over: arguments.over,
        rate,
        rows: arguments.rows,
        time: arguments.time.map(Into::into),
        keys,
        seed: arguments.seed,
        producer: arguments.producer,
        bad_rate,
        bytes: arguments.bytes,
        partitions,
        retry: arguments.retry.map(Into::into),
    })
}

fn to_check(arguments: VerifyCheck) -> check::Wish {
    let VerifyCheck { ledgers, within, reader_command, other_runs, output } = arguments;
    check::Wish { ledgers, within: within.into(), reader_command, other_runs, output }
}

fn to_watch(arguments: Watch) -> watch::Wish {
    let Watch { target: named, time, every, output } = arguments;
    watch::Wish { target: target(named), time: time.map(Into::into), every: every.into(), output }
}

fn target(named: VerifyTarget) -> Target {
    Target { pipeline: named.pipeline, source: named.source }
}
