//! Negative controls: with one safeguard switched off, the same faults and the same judge must find rows lost or
//! doubled. A campaign that passes here as well could not have seen the bug, and the run fails.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use delivery::Safeguard;
use testkit::{chaos::Direction, seed::Random};

use crate::{
    block,
    field::Field,
    inject::{self, catalogue},
    instance::Start,
    judge::{self, Load, Over, Strangers, Verdict},
    options::Options,
    results::Record,
    service::Service,
    whole,
};

const FLOW_LIMIT: Duration = Duration::from_secs(90);
/// Somebody may never be ready again here; who can be is by then.
const READY_LIMIT: Duration = Duration::from_secs(15);

/// What is switched off, what is then done, and what must come of it.
struct Control {
    safeguards: &'static [Safeguard],
    what: &'static str,
    act: fn(&Field, &mut Random) -> Result<()>,
}

const CONTROLS: [Control; 5] = [
    Control {
        safeguards: &[Safeguard::Slicing],
        what: "kill -9 of ingestion and transformation",
        act: |field, random| run(field, random, &["kill-ingestion", "kill-transformation", "kill-ingestion"]),
    },
    Control {
        safeguards: &[Safeguard::PositionCheck],
        what: "SIGSTOP of storage past the session timeout",
        act: |field, random| run(field, random, &["freeze-storage", "freeze-storage"]),
    },
    Control {
        safeguards: &[Safeguard::Reread],
        what: "lost commit replies with a compaction in between",
        act: |field, random| run(field, random, &["lost-commit-reply-compaction", "lost-commit-reply-compaction"]),
    },
    Control {
        safeguards: &[Safeguard::DurableCheckpoint],
        what: "ingestion killed after a checkpoint that its output has not reached the broker for",
        act: |field, _random| lose_queued_output(field),
    },
    Control {
        safeguards: &[Safeguard::DurableCheckpoint, Safeguard::GapCheck],
        what: "the same, and readers that skip the gap",
        act: |field, _random| lose_queued_output(field),
    },
];

/// Why some safeguards have no control on real processes.
pub(crate) const ELSEWHERE: [(&str, &str); 1] = [(
    "rejected_first",
    "a restart writes dead letters again from the checkpoint, so processes show no difference; the model has a counter-example",
)];

/// All controls; whether each of them failed as it must.
pub(crate) fn run_all(options: &Options, mut done: impl FnMut(Record) -> Result<()>) -> Result<bool> {
    let mut all_failed = true;
    for (number, control) in CONTROLS.iter().enumerate() {
        let name: Vec<&str> = control.safeguards.iter().map(|safeguard| safeguard.name()).collect();
        let name = name.join("+");
        if !options.wants(&name) {
            continue;
        }
        println!("without {name}: {}", control.what);
        let seed = options.seed + number as u64;
        // That the judge could not judge is no sign of anything.
        let (seen, record) = match attempt(options, control, &name, seed) {
            Ok(Some(verdict)) => (!verdict.ok, judged(&verdict)),
            Ok(None) => (false, Record { skipped: Some("peers are missing".to_owned()), ..Record::default() }),
            Err(error) => (false, Record { problems: vec![format!("{error:#}")], ..Record::default() }),
        };
        let record = Record {
            kind: "control".to_owned(),
            fault: name.clone(),
            runs: 1,
            seed,
            command: options.command.clone(),
            ..record
        };
        println!("  lost {}, doubled {}, {:?}", record.lost, record.doubled, record.problems);
        if !seen && record.skipped.is_none() {
            println!("  NOT SEEN: without {name} everything seems well, so the campaign proves nothing about it");
            all_failed = false;
        }
        done(record)?;
    }
    let incarnation = Safeguard::Incarnation.name();
    if options.wants(incarnation) {
        println!("without {incarnation}: the topic deleted and created again");
        let record = without_incarnation(options)?;
        println!("  {:?}", record.problems);
        all_failed &= record.skipped.is_some() || !record.passed();
        done(record)?;
    }
    Ok(all_failed)
}

fn judged(verdict: &Verdict) -> Record {
    let mut record = Record::default();
    block::take(&mut record, verdict);
    record
}

/// One control in a field of its own.
fn attempt(options: &Options, control: &Control, name: &str, seed: u64) -> Result<Option<Verdict>> {
    let without: Vec<&str> = control.safeguards.iter().map(|safeguard| safeguard.name()).collect();
    let start = options.start().env("TAILWATER_WITHOUT", without.join(","));
    let Some(field) = Field::set_up(1, seed, &start)? else { return Ok(None) };
    let mut load = Load::start(&field, &name.replace('+', "-"), Over::Topic, options.rate, seed)?;
    load.wait_until_it_flows(&field, FLOW_LIMIT)?;
    let mut random = Random::new(seed);
    // A fault may not recover here: that is a way to fail too, and the judge says what of.
    if let Err(error) = (control.act)(&field, &mut random) {
        println!("  {error:#}");
    }
    field.heal()?;
    field.start_missing(READY_LIMIT).or_else(|error| {
        println!("  {error:#}");
        Ok::<_, anyhow::Error>(())
    })?;
    load.stop()?;
    judge::check(&field, Duration::from_secs(20), Strangers::Wrong).map(Some)
}

/// Faults of the table, one after the other.
fn run(field: &Field, random: &mut Random, names: &[&str]) -> Result<()> {
    let table = catalogue();
    for name in names {
        let fault = table.iter().find(|fault| fault.name == *name);
        if let Some(inject::Act::UnderLoad(act)) = fault.map(|fault| &fault.act) {
            act(field, random)?;
        }
    }
    Ok(())
}

/// What ingestion has queued stays on its side of the network while its checkpoint reaches the store; then it dies.
fn lose_queued_output(field: &Field) -> Result<()> {
    for name in Service::Ingestion.instances() {
        field.kafka().door(Service::Ingestion.name())?.silence(Direction::ToServer);
        // Two checkpoints are due in this time.
        std::thread::sleep(Duration::from_millis(4500));
        field.instance(&name)?.kill()?;
        {
            let kafka = field.kafka();
            let door = kafka.door(Service::Ingestion.name())?;
            door.cut();
            door.heal();
        }
        let started = Instant::now();
        field.instance(&name)?.start(&Start::default())?;
        while started.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    Ok(())
}

fn without_incarnation(options: &Options) -> Result<Record> {
    let name = Safeguard::Incarnation.name();
    let task = whole::Task { options, seed: options.seed, without: Some(name) };
    let outcome = whole::topic_recreated(&task)?;
    ensure!(outcome.skipped.is_some() || outcome.verdict.rows > 0, "nothing was judged");
    let mut record = judged(&outcome.verdict);
    record.problems.extend(outcome.problems);
    Ok(Record {
        kind: "control".to_owned(),
        fault: name.to_owned(),
        runs: 1,
        seed: options.seed,
        command: options.command.clone(),
        skipped: outcome.skipped,
        ..record
    })
}
