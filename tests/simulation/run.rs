//! One run, from its seed to its verdict.

use std::{cell::RefCell, sync::Once, time::Duration};

use bytes::Bytes;
use runtime::tasks::{Fate, TaskGroup};
use testkit::Random;
use tokio::time::Instant;
use topics::{Log as _, NewMessage};

use crate::{
    check::{Checker, Tally},
    input::{Messages, TOPIC},
    monitor::{LetterWatch, Questioner, TableWatch},
    schedule::{Event, Schedule},
    world::{ID, Service, World, cuts, topic},
};

/// Simulated time after the last fault within which everything must have arrived. Far above what it takes.
const SETTLES_WITHIN: Duration = Duration::from_secs(600);

/// How a run is to be.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Options {
    /// Acknowledged messages the log loses, which it must not: readers have to halt then.
    pub(crate) lost_messages: u64,
    /// Whether the users' topic is deleted and created again: readers of the old one have to halt then.
    pub(crate) recreated: bool,
}

impl Options {
    /// Whether whatever is stored is a prefix, and no more can be said.
    fn halts(self) -> bool {
        self.lost_messages > 0 || self.recreated
    }
}

/// What came of a run.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) seed: u64,
    pub(crate) tally: Tally,
    pub(crate) problems: Vec<String>,
    pub(crate) schedule: Vec<String>,
    /// Of everything in the log and the store at the end.
    pub(crate) fingerprint: u64,
    /// Messages that hold a part of what one message gave.
    pub(crate) cuts: usize,
}

impl Outcome {
    pub(crate) fn is_clean(&self) -> bool {
        self.problems.is_empty()
    }

    /// The story of a failure.
    pub(crate) fn report(&self) -> String {
        format!(
            "seed {} failed; the same run again: TAILWATER_SEED={} cargo test --workspace --test simulation\n{}\nit went like this:\n{}\n",
            self.seed,
            self.seed,
            self.problems.iter().map(|problem| format!("  * {problem}")).collect::<Vec<_>>().join("\n"),
            self.schedule.join("\n")
        )
    }
}

/// Runs one seed on a runtime of its own, in simulated time.
pub(crate) fn run(seed: u64, options: Options) -> Outcome {
    let built = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let tokio = built.expect("a runtime without I/O can always be built");
    panics::forget();
    runtime::retry::seed_this_thread(seed);
    let outcome = tokio.block_on(simulate(seed, options));
    let mut outcome = outcome.expect("the harness itself has no faults");
    outcome.problems.extend(panics::seen());
    outcome
}

async fn simulate(seed: u64, options: Options) -> anyhow::Result<Outcome> {
    let mut random = Random::new(seed);
    let oversized = random.chance(8);
    let mut world = World::new(seed, &mut random, oversized).await?;
    let length = Duration::from_millis(10_000 + random.below(40_000));
    let mut schedule = Schedule::draw(random.fork(), length);
    if options.recreated {
        schedule.add(length / 4 + Duration::from_millis(random.below(length.as_millis() as u64 / 2)), Event::Recreate);
    }
    world.faults.lose(options.lost_messages);
    let onlookers = TaskGroup::new();
    onlookers.spawn("tables", Fate::Critical, TableWatch::new(&world).run());
    onlookers.spawn("questions", Fate::Critical, Questioner::new(&world).run());
    // A log that loses what it acknowledged may lose dead letters, and those of a new topic may have old places.
    for watch in LetterWatch::all(&world).into_iter().filter(|_| !options.halts()) {
        onlookers.spawn("letters", Fate::Critical, watch.run());
    }
    onlookers.spawn("releases", Fate::Critical, release_now_and_then(world.log.clone(), world.faults.clone()));
    let users = send_messages(&world, &mut random, length, oversized);
    onlookers.spawn("users", Fate::Detached, users);
    for service in Service::ALL {
        for _ in 0..1 + random.below(2) {
            world.start(service, false);
        }
    }
    befall(&mut world, schedule, length).await?;
    end_faults(&mut world, &mut random);
    let tally = settle(&mut world, options).await?;
    let messages = world.messages().await?;
    let (fingerprint, cuts) = (world.fingerprint(&messages).await?, cuts(&messages));
    if let Err(failure) = onlookers.finish(Duration::from_millis(1)).await {
        let failure = failure.to_string();
        // They go on for ever, and are aborted.
        if !failure.contains("aborted") {
            world.problems.add(format!("an onlooker failed: {failure}"));
        }
    }
    Ok(Outcome { seed, tally, problems: world.problems.list(), schedule: world.trace.events(), fingerprint, cuts })
}

/// Lets everything happen that is to happen within `length`.
async fn befall(world: &mut World, mut schedule: Schedule, length: Duration) -> anyhow::Result<()> {
    let began = Instant::now();
    loop {
        let next = schedule.next_at().unwrap_or(length).min(length);
        let deaths = std::sync::Arc::clone(&world.deaths);
        tokio::select! {
            biased;
            number = deaths.next() => schedule.mourn(world, number, began.elapsed()),
            () = tokio::time::sleep_until(began + next) => {
                if began.elapsed() >= length {
                    return Ok(());
                }
                schedule.step(world).await?;
            }
        }
    }
}

/// From now on nothing goes wrong. Zombies may stay; who died is missed; each service runs at least once.
fn end_faults(world: &mut World, random: &mut Random) {
    world.trace.note("the faults end");
    world.faults.stop();
    world.log.clear_faults();
    world.log.release();
    for process in std::mem::take(&mut world.dying).into_values() {
        process.forget_sessions();
    }
    let numbers: Vec<u64> = world.instances.keys().copied().collect();
    for number in numbers {
        let instance = &world.instances[&number];
        if instance.process.is_dead() {
            if let Some((_, _, process)) = world.bury(number) {
                process.forget_sessions();
            }
        } else {
            instance.process.live_on();
            if instance.zombie && random.chance(50) {
                world.ask_to_stop(number);
            }
        }
    }
    for service in Service::ALL {
        let runs = world.instances.values().any(|instance| instance.service == service && !instance.zombie);
        if !runs {
            world.start(service, false);
        }
    }
}

async fn settle(world: &mut World, options: Options) -> anyhow::Result<Tally> {
    let began = Instant::now();
    let mut checker = Checker::new(world).await?;
    let mut pause = Duration::from_secs(1);
    while options.recreated || !checker.has_settled().await {
        if options.halts() && began.elapsed() > Duration::from_secs(90) {
            return checker.check_prefixes().await;
        }
        if began.elapsed() > SETTLES_WITHIN {
            world.problems.add(format!("it did not settle within {} s", SETTLES_WITHIN.as_secs()));
            for complaint in world.complaints() {
                world.problems.add(complaint);
            }
            break;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(20));
    }
    world.trace.note("it has settled");
    drop(checker);
    world.stop_all().await;
    Checker::new(world).await?.check_all().await
}

/// Lets what is delayed land, some of it, now and then.
async fn release_now_and_then(log: topics::memory::MemoryLog, faults: crate::faults::Faults) -> anyhow::Result<()> {
    loop {
        tokio::time::sleep(faults.milliseconds(3_000)).await;
        if faults.are_on() {
            log.release_where(|_, _| faults.below(2) == 0);
        }
    }
}

/// Users send messages for most of the run. Who is told of a failure does not send again: that would be another row.
fn send_messages(
    world: &World,
    random: &mut Random,
    length: Duration,
    oversized: bool,
) -> impl Future<Output = anyhow::Result<()>> + Send + use<> {
    let max_bytes = world.config.ingestion.max_message_bytes.as_usize();
    // Many rows of such notes do not fit a message, each of them does.
    let longest_note = (max_bytes / 4).min(4_000) as u64;
    let mut messages = Messages::new(random.fork(), longest_note, oversized.then_some(max_bytes + 100_000));
    let (log, sent, partitions) = (world.log.reconnected(), world.sent.clone(), u64::from(world.partitions));
    let mut random = random.fork();
    let count = 20 + random.below(80);
    let gap = length.as_millis() as u64 * 8 / 10 / count;
    async move {
        let mut receipts = Vec::new();
        for id in 0..count {
            let (payload, rows) = messages.next();
            sent.lock().insert(id, rows);
            let headers = vec![(ID.to_owned(), Bytes::from(id.to_string()))];
            let message = NewMessage { payload: payload.into(), headers, ..NewMessage::default() };
            let partition = random.below(partitions) as u32;
            if let Ok(receipt) = log.appender().append(&topic(TOPIC), partition, message).await {
                receipts.push(receipt);
            }
            // Some wait for the answer, some do not.
            if random.chance(30) {
                receipts.clear();
            }
            let burst = random.chance(40);
            tokio::time::sleep(Duration::from_millis(if burst { 0 } else { random.below(gap * 3 + 1) })).await;
        }
        Ok(())
    }
}

/// Panics inside a run are caught by its tasks; here they are remembered.
mod panics {
    use super::{Once, RefCell};

    thread_local! {
        static SEEN: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    }

    pub(super) fn forget() {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let usual = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                SEEN.with_borrow_mut(|seen| seen.push(format!("panic: {panic}")));
                usual(panic);
            }));
        });
        SEEN.with_borrow_mut(Vec::clear);
    }

    pub(super) fn seen() -> Vec<String> {
        SEEN.with_borrow_mut(std::mem::take)
    }
}
