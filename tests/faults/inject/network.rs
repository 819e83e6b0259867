//! Faults of the network between services and Kafka, and of Kafka itself.

use std::time::{Duration, Instant};

use anyhow::Result;
use testkit::{chaos::Direction, seed::Random};

use super::{Run, recovered, recovered_all};
use crate::{
    field::Field,
    judge::{PIPELINE, SOURCE},
    service::Service,
};

const CUT_FOR: Duration = Duration::from_secs(6);
/// Longer than a session, so that another member takes over meanwhile.
const SILENT_FOR: Duration = Duration::from_secs(13);
const SLOW_FOR: Duration = Duration::from_secs(10);
const BROKER_AWAY_FOR: Duration = Duration::from_secs(2);

/// All connections of a service reset, and no new ones for a while.
pub(super) fn cut(field: &Field, random: &mut Random) -> Result<Run> {
    let service = *random.pick(&Service::HOPS);
    through_door(field, service, |door| {
        door.refuse();
        door.cut();
    })?;
    std::thread::sleep(CUT_FOR);
    healed(field, service)
}

/// A service that is heard and hears nothing, or the other way round, or neither.
pub(super) fn silence(field: &Field, random: &mut Random, direction: Direction) -> Result<Run> {
    let service = *random.pick(&Service::HOPS);
    through_door(field, service, |door| door.silence(direction))?;
    std::thread::sleep(SILENT_FOR);
    healed(field, service)
}

/// A slow and narrow link.
pub(super) fn slow(field: &Field, random: &mut Random) -> Result<Run> {
    let service = *random.pick(&Service::HOPS);
    through_door(field, service, |door| {
        door.slow(Duration::from_millis(150), Duration::from_millis(150));
        door.narrow(1_000_000);
    })?;
    std::thread::sleep(SLOW_FOR);
    healed(field, service)
}

/// Answers to a service held back, and then its connections reset: what it sent has happened, nobody told it.
pub(super) fn lose_replies(field: &Field, random: &mut Random) -> Result<Run> {
    let service = *random.pick(&Service::HOPS);
    through_door(field, service, |door| door.silence(Direction::ToClient))?;
    std::thread::sleep(Duration::from_millis(500 + random.below(1500)));
    through_door(field, service, |door| {
        door.cut();
        door.heal();
    })?;
    recovered(field, service, Instant::now())
}

/// The one broker killed and started again.
pub(super) fn kill_broker(field: &Field, random: &mut Random) -> Result<Run> {
    let mut kafka = field.kafka();
    kafka.kill()?;
    std::thread::sleep(BROKER_AWAY_FOR + Duration::from_millis(random.below(1000)));
    kafka.restart()?;
    drop(kafka);
    recovered_all(field, Instant::now())
}

/// The leader of a partition killed; the others go on without it, and later it comes back.
pub(super) fn fail_over(field: &Field, random: &mut Random) -> Result<Run> {
    let graph = field.observer.graph();
    let source = graph.sources.iter().find(|source| source.pipeline == PIPELINE && source.name == SOURCE);
    let topic = source.map_or(String::new(), |source| source.topic.clone());
    let leader = field.kafka().leader(&topic, 0)?;
    let killed = Instant::now();
    field.kafka().kill_broker(leader)?;
    std::thread::sleep(Duration::from_millis(random.below(1000)));
    let run = recovered_all(field, killed);
    field.kafka().start_broker(leader)?;
    run
}

fn through_door(field: &Field, service: Service, act: impl FnOnce(&testkit::kafka::Door)) -> Result<()> {
    act(field.kafka().door(service.name())?);
    Ok(())
}

fn healed(field: &Field, service: Service) -> Result<Run> {
    through_door(field, service, testkit::kafka::Door::heal)?;
    recovered(field, service, Instant::now())
}
