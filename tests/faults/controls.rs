//! Negative controls: with one safeguard switched off, the same faults and the same judge must find rows lost or
//! doubled. A campaign that passes here as well could not have seen the bug, and the run fails.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use delivery::Safeguard;
use testkit::{chaos::Direction, seed::Random};

use crate::{
    block,
    field::Field,
    inject::{self, Whole, catalogue},
    judge::{self, Load, Over, Strangers, Verdict},
    observer::{LOOK_EVERY, behind},
    options::Options,
    queue::Queue,
    results::{Record, Results},
    service::Service,
    whole,
};

const FLOW_LIMIT: Duration = Duration::from_secs(90);
/// Somebody may never be ready again here; who can be is by then.
const READY_LIMIT: Duration = Duration::from_secs(15);
/// Until a checkpoint is ahead of what is written: several are due in this time.
const AHEAD_LIMIT: Duration = Duration::from_secs(30);
/// The observer sees what is written so soon.
const SEEN_WITHIN: Duration = Duration::from_secs(1);

/// What is switched off, what is then done, and what must come of it.
struct Control {
    safeguards: &'static [Safeguard],
    what: &'static str,
    act: Attempt,
}

enum Attempt {
    UnderLoad(fn(&Field, &mut Random) -> Result<()>),
    Whole(Whole),
}

const CONTROLS: [Control; 6] = [
    Control {
        safeguards: &[Safeguard::Slicing, Safeguard::Audit],
        what: "kill -9 of ingestion and transformation",
        act: Attempt::UnderLoad(|field, random| {
            run(field, random, &["kill-ingestion", "kill-transformation", "kill-ingestion"])
        }),
    },
    Control {
        safeguards: &[Safeguard::PositionCheck],
        what: "SIGSTOP of storage past the session timeout",
        act: Attempt::UnderLoad(|field, random| run(field, random, &["freeze-storage", "freeze-storage"])),
    },
    Control {
        safeguards: &[Safeguard::Reread],
        what: "lost commit replies with a compaction in between",
        act: Attempt::UnderLoad(|field, random| {
            run(field, random, &["lost-commit-reply-compaction", "lost-commit-reply-compaction"])
        }),
    },
    Control {
        safeguards: &[Safeguard::DurableCheckpoint],
        what: "ingestion killed after a checkpoint that its output has not reached the broker for",
        act: Attempt::UnderLoad(|field, _random| lose_queued_output(field)),
    },
    Control {
        safeguards: &[Safeguard::DurableCheckpoint, Safeguard::GapCheck, Safeguard::Audit],
        what: "the same, and readers that skip the gap",
        act: Attempt::UnderLoad(|field, _random| lose_queued_output(field)),
    },
    Control {
        safeguards: &[Safeguard::Incarnation],
        what: "the topic deleted and created again",
        act: Attempt::Whole(whole::topic_recreated),
    },
];

/// Why some safeguards have no control on real processes.
pub(crate) const ELSEWHERE: [(&str, &str); 2] = [
    (
        "rejected_first",
        "a restart writes dead letters again from the checkpoint, so processes show no difference; the model has a counter-example",
    ),
    (
        "audit",
        "it is there for brokers that lose what they acknowledged, which one broker with its disk does not; the model has two counter-examples",
    ),
];

/// Their names.
pub(crate) fn names() -> impl Iterator<Item = String> {
    CONTROLS.iter().map(Control::name)
}

/// All controls; whether each of them failed as it must.
pub(crate) fn run_all(options: &Options, results: &Results) -> Result<bool> {
    let all_seen = AtomicBool::new(true);
    let wanted = CONTROLS.iter().filter(|control| options.wants(&control.name())).collect();
    Queue::new(wanted).work_off(options.fields, |queue| {
        while let Some(control) = queue.next() {
            let (seen, record) = control.attempt(options);
            let name = &record.fault;
            println!("  without {name}: lost {}, doubled {}, {:?}", record.lost, record.doubled, record.problems);
            if !seen {
                println!("  NOT SEEN: without {name} everything seems well, so the campaign proves nothing about it");
                all_seen.store(false, Ordering::Relaxed);
            }
            results.append(&record)?;
        }
        Ok(())
    })?;
    Ok(all_seen.into_inner())
}

impl Control {
    fn name(&self) -> String {
        let names: Vec<&str> = self.safeguards.iter().map(|safeguard| safeguard.name()).collect();
        names.join("+")
    }

    /// Whether the fault was seen, which what cannot be tried here cannot be blamed for; and what was seen.
    fn attempt(&self, options: &Options) -> (bool, Record) {
        let name = self.name();
        println!("without {name}: {}", self.what);
        let judged = match self.act {
            Attempt::UnderLoad(act) => under_load(options, act, &name),
            Attempt::Whole(act) => by_itself(options, act, &name),
        };
        let (seen, record) = match judged {
            Ok(record) => (record.skipped.is_some() || !record.passed(), record),
            // That the judge could not judge is no sign of anything.
            Err(error) => (false, Record { problems: vec![format!("{error:#}")], ..Record::default() }),
        };
        let command = options.command.clone();
        (seen, Record { kind: "control".to_owned(), fault: name, runs: 1, seed: options.seed, command, ..record })
    }
}

fn judged(verdict: &Verdict) -> Record {
    let mut record = Record::default();
    block::take(&mut record, verdict);
    record
}

/// One control in a field of its own.
fn under_load(options: &Options, act: fn(&Field, &mut Random) -> Result<()>, without: &str) -> Result<Record> {
    let seed = options.seed;
    let start = options.start().env("TAILWATER_WITHOUT", without.replace('+', ","));
    let Some(field) = Field::set_up(1, seed, &start)? else {
        return Ok(Record { skipped: Some("peers are missing".to_owned()), ..Record::default() });
    };
    let mut load = Load::start(&field, &without.replace('+', "-"), Over::Topic, options.rate, seed)?;
    load.wait_until_it_flows(&field, FLOW_LIMIT)?;
    // A fault may not recover here: that is a way to fail too, and the judge says what of.
    if let Err(error) = act(&field, &mut Random::new(seed)) {
        println!("  {error:#}");
    }
    field.heal()?;
    field.start_missing(READY_LIMIT).or_else(|error| {
        println!("  {error:#}");
        Ok::<_, anyhow::Error>(())
    })?;
    load.stop()?;
    judge::check(&field, Duration::from_secs(20), Strangers::Wrong).map(|verdict| judged(&verdict))
}

/// One control that sets up and judges for itself.
fn by_itself(options: &Options, act: Whole, without: &str) -> Result<Record> {
    let outcome = act(&whole::Task { options, seed: options.seed, without: Some(without) })?;
    ensure!(outcome.skipped.is_some() || outcome.verdict.rows > 0, "nothing was judged");
    let mut record = judged(&outcome.verdict);
    record.problems.extend(outcome.problems);
    Ok(Record { skipped: outcome.skipped, ..record })
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

/// What ingestion has queued stays on its side of the network until a checkpoint says that it is written; then it dies.
fn lose_queued_output(field: &Field) -> Result<()> {
    // The observer has then read the channels to their ends, and sees what comes from here on.
    inject::recovered(field, Service::Ingestion, Instant::now())?;
    through_silence(field, || {
        let started = Instant::now();
        while !checkpoints_are_ahead(field)? {
            ensure!(started.elapsed() < AHEAD_LIMIT, "no checkpoint of ingestion is ahead of what it has written");
            std::thread::sleep(LOOK_EVERY);
        }
        Service::Ingestion.instances().iter().try_for_each(|name| field.instance(name)?.kill())
    })
}

/// Does something while ingestion is not heard by Kafka; what it says meanwhile is lost.
fn through_silence(field: &Field, act: impl FnOnce() -> Result<()>) -> Result<()> {
    field.kafka().door(Service::Ingestion.name())?.silence(Direction::ToServer);
    let acted = act();
    let kafka = field.kafka();
    let door = kafka.door(Service::Ingestion.name())?;
    door.cut();
    door.heal();
    acted
}

/// Whether a checkpoint covers what is not in the channel, and that for longer than the observer needs to see it there.
fn checkpoints_are_ahead(field: &Field) -> Result<bool> {
    let checkpointed = field.observer.checkpointed()?;
    let is_ahead =
        || Ok::<_, anyhow::Error>(!behind(&checkpointed, &field.observer.covered(Service::Ingestion)?).is_empty());
    if !is_ahead()? {
        return Ok(false);
    }
    std::thread::sleep(SEEN_WITHIN);
    is_ahead()
}
