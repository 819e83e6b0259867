//! What befalls the processes of a run, and when: drawn from the seed before it begins.

use std::{collections::BTreeMap, time::Duration};

use futures::TryStreamExt as _;
use lake::{Snapshot, app_id};
use object_store::{ObjectStore as _, ObjectStoreExt as _, PutMode, PutOptions, path::Path};
use testkit::Random;
use topics::TopicName;

use crate::world::{Service, World, topic};

/// Where checkpoints are.
const CHECKPOINTS: &str = "_tailwater/checkpoints";

/// One thing that happens.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// A process dies at the so-manieth request from then on.
    Die { service: Service, after: u64 },
    /// A process is asked to stop, and another takes its place later.
    Stop { service: Service },
    /// One more process joins.
    Join { service: Service },
    /// One that believes to own everything.
    Zombie { service: Service },
    /// A process loses its place in the group and does not know.
    Expire { service: Service },
    /// Checkpoints are lost: all that may be, or the newest of each task.
    LoseCheckpoints { all: bool },
    /// Somebody else commits to a table.
    Foreign { table: usize },
    /// Channels are trimmed behind the oldest kept checkpoint of their readers.
    Trim,
    /// A process takes the place of one that is gone.
    Replace { service: Service },
    /// The user's topic is deleted and created again.
    Recreate,
    /// The session of a process that died runs out.
    SessionEnds { number: u64 },
}

/// What is still to happen.
pub(crate) struct Schedule {
    /// By time and number.
    events: BTreeMap<(Duration, u64), Event>,
    numbered: u64,
    random: Random,
    /// Channel partitions that no longer begin at 0.
    trimmed: BTreeMap<(TopicName, u32), u64>,
}

impl Schedule {
    /// Events of `length` of simulated time.
    pub(crate) fn draw(mut random: Random, length: Duration) -> Self {
        let mut schedule =
            Self { events: BTreeMap::new(), numbered: 0, random: random.fork(), trimmed: BTreeMap::new() };
        for _ in 0..4 + random.below(12) {
            let at = Duration::from_millis(random.below(length.as_millis() as u64));
            let service = *random.pick(&Service::ALL);
            let soon = *random.pick(&[10, 100, 400]);
            let event = match random.below(100) {
                0..45 => Event::Die { service, after: random.below(soon) },
                45..55 => Event::Stop { service },
                55..63 => Event::Join { service },
                63..70 => Event::Zombie { service },
                70..78 => Event::Expire { service },
                78..88 => Event::LoseCheckpoints { all: random.chance(50) },
                88..94 => Event::Foreign { table: random.below(8) as usize },
                _ => Event::Trim,
            };
            schedule.add(at, event);
        }
        schedule
    }

    pub(crate) fn add(&mut self, at: Duration, event: Event) {
        self.numbered += 1;
        self.events.insert((at, self.numbered), event);
    }

    /// When the next event is due.
    pub(crate) fn next_at(&self) -> Option<Duration> {
        self.events.first_key_value().map(|((at, _), _)| *at)
    }

    /// Lets the next event happen.
    pub(crate) async fn step(&mut self, world: &mut World) -> anyhow::Result<()> {
        let Some(((now, _), event)) = self.events.pop_first() else { return Ok(()) };
        match event {
            Event::Die { service, after } => {
                if let Some(number) = self.one_of(world, service) {
                    let process = &world.instances[&number].process;
                    process.note(&format!("is to die at its request {after} from now"));
                    process.die_after(after);
                }
            }
            Event::Stop { service } => {
                if let Some(number) = self.one_of(world, service) {
                    world.ask_to_stop(number);
                    self.add_within(now, 5_000, Event::Replace { service });
                }
            }
            Event::Join { service } | Event::Replace { service } => {
                if world.instances.len() < 10 {
                    world.start(service, false);
                }
            }
            Event::Zombie { service } => {
                if world.instances.len() < 10 {
                    world.start(service, true);
                }
            }
            Event::Expire { service } => {
                if let Some(number) = self.one_of(world, service) {
                    world.instances[&number].process.expire();
                }
            }
            Event::LoseCheckpoints { all } => self.lose_checkpoints(world, all).await?,
            Event::Foreign { table } => foreign_commit(world, table).await?,
            Event::Trim => self.trim(world).await?,
            Event::Recreate => world.recreate_topic().await?,
            Event::SessionEnds { number } => {
                if let Some(process) = world.dying.remove(&number) {
                    process.note("is missed: its session runs out");
                    process.forget_sessions();
                }
            }
        }
        Ok(())
    }

    /// A process died: its session runs out later, and another takes its place, earlier or later than that.
    pub(crate) fn mourn(&mut self, world: &mut World, number: u64, now: Duration) {
        let Some((service, zombie, process)) = world.bury(number) else { return };
        world.dying.insert(number, process);
        self.add_within(now, 10_000, Event::SessionEnds { number });
        if !zombie {
            self.add_within(now, 8_000, Event::Replace { service });
        }
    }

    fn add_within(&mut self, now: Duration, most_ms: u64, event: Event) {
        let wait = Duration::from_millis(self.random.below(most_ms));
        self.add(now + wait, event);
    }

    fn one_of(&mut self, world: &World, service: Service) -> Option<u64> {
        let running = world.instances.iter().filter(|(_, instance)| instance.service == service);
        let running: Vec<u64> = running.map(|(number, _)| *number).collect();
        (!running.is_empty()).then(|| *self.random.pick(&running))
    }

    async fn lose_checkpoints(&mut self, world: &World, all: bool) -> anyhow::Result<()> {
        let mut lost = 0;
        for ((stage, partition), mut kept) in checkpoints(world).await? {
            let start = self.start_of_input(world, &stage, partition);
            if self.random.chance(40) {
                continue;
            }
            // Without any, a task starts at the beginning of its input, which must then be there.
            let spared = if start > 0 || !all { 1 } else { 0 };
            let newest_first: Vec<_> = kept.drain(..).rev().collect();
            let may_go = newest_first.len().saturating_sub(spared);
            let go = if all { may_go } else { may_go.min(1) };
            for (_, location) in newest_first.into_iter().take(go) {
                world.store.delete(&location).await?;
                lost += 1;
            }
        }
        world.trace.note(format!("{lost} checkpoints are lost"));
        Ok(())
    }

    fn start_of_input(&self, world: &World, stage: &str, partition: u32) -> u64 {
        let branches = world.graph.views.iter().flat_map(|view| view.branches.iter().map(move |branch| (view, branch)));
        let reads = branches.filter(|(view, branch)| {
            stage == format!("{}.{}.{}.{}", view.pipeline, view.name, view.incarnation, branch.index)
        });
        let channels = reads.map(|(_, branch)| (topic(&branch.input_channel), partition));
        channels.filter_map(|place| self.trimmed.get(&place)).copied().max().unwrap_or(0)
    }

    /// Removes what no reader of a channel can need again: behind its table, and behind the oldest checkpoint of each
    /// view over it.
    async fn trim(&mut self, world: &World) -> anyhow::Result<()> {
        let kept = checkpoints(world).await?;
        let lake = world.plain_lake();
        for table in &world.graph.tables {
            let channel = topic(&table.channel);
            // A log that cannot be read is for the last check to find.
            let Ok(Some(snapshot)) = Snapshot::load(&lake, &table.folder).await else { continue };
            for partition in 0..world.partitions {
                let stored = snapshot.txns.get(&app_id::next_offset(&table.channel, partition)).copied().unwrap_or(0);
                let mut floor = u64::try_from(stored)?;
                for view in &world.graph.views {
                    for branch in view.branches.iter().filter(|branch| branch.input_channel == table.channel) {
                        let stage = format!("{}.{}.{}.{}", view.pipeline, view.name, view.incarnation, branch.index);
                        let oldest = kept.get(&(stage, partition)).and_then(|kept| kept.first());
                        floor = floor.min(oldest.map_or(0, |(offset, _)| *offset));
                    }
                }
                if floor > 0 {
                    world.log.trim(&channel, partition, floor)?;
                    world.trace.note(format!("{channel}/{partition} is trimmed to {floor}"));
                    self.trimmed.insert((channel.clone(), partition), floor);
                }
            }
        }
        Ok(())
    }
}

/// Kept checkpoints, by stage and partition: offset and place, oldest first.
async fn checkpoints(world: &World) -> anyhow::Result<BTreeMap<(String, u32), Vec<(u64, Path)>>> {
    let objects: Vec<_> = world.store.list(Some(&Path::from(CHECKPOINTS))).try_collect().await?;
    let mut found: BTreeMap<(String, u32), Vec<(u64, Path)>> = BTreeMap::new();
    for object in objects {
        let parts: Vec<String> = object.location.parts().map(|part| part.as_ref().to_owned()).collect();
        if let [_, _, stage, partition, name] = parts.as_slice() {
            let offset = name.split('-').next().unwrap_or_default().parse()?;
            found.entry((stage.clone(), partition.parse()?)).or_default().push((offset, object.location));
        }
    }
    found.values_mut().for_each(|kept| kept.sort());
    Ok(found)
}

/// A commit of somebody else, without rows, at the next version.
async fn foreign_commit(world: &World, table: usize) -> anyhow::Result<()> {
    let folder = &world.graph.tables[table % world.graph.tables.len()].folder;
    let Ok(Some(snapshot)) = Snapshot::load(&world.plain_lake(), folder).await else { return Ok(()) };
    let version = snapshot.version + 1;
    let location = Path::parse(format!("{folder}/_delta_log/{version:020}.json"))?;
    let body = format!(
        "{{\"commitInfo\":{{\"operation\":\"foreign\"}}}}\n{{\"txn\":{{\"appId\":\"foreign\",\"version\":{version}}}}}"
    );
    world.store.put_opts(&location, body.into(), PutOptions::from(PutMode::Create)).await?;
    world.trace.note(format!("a foreign commit is version {version} of {folder}"));
    Ok(())
}
