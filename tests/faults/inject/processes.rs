//! Faults of our own processes: killed, crashed at a step, stopped, started twice, restarted in turn, their clock set.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use delivery::CrashPoint;
use testkit::seed::Random;

use super::{RECOVERY_LIMIT, Run, clock::Clock, recovered};
use crate::{field::Field, instance::Start, service::Service};

/// Classic group members are given up after 10 s.
const LONGER_THAN_A_SESSION: Duration = Duration::from_secs(14);
const TWINS_FOR: Duration = Duration::from_secs(8);
/// Time for what a wrong clock may do.
const CLOCK_IS_OFF_FOR: Duration = Duration::from_secs(4);
/// Until an armed process passes the step.
const CRASH_LIMIT: Duration = Duration::from_secs(90);

/// `kill -9`, and at once a new life.
pub(super) fn kill(field: &Field, random: &mut Random, service: Service) -> Result<Run> {
    let name = one_of(service, random);
    field.instance(&name)?.kill()?;
    restarted(field, service, &name, &Start::default())
}

/// A life that ends itself at a step of the protocol, and then a new one.
pub(super) fn crash(field: &Field, random: &mut Random, service: Service, point: CrashPoint) -> Result<Run> {
    // Requests go to the first instance.
    let asked = point == CrashPoint::RequestDurable;
    let name = if asked { format!("{}-1", service.name()) } else { one_of(service, random) };
    // A checkpoint of the log comes once in many commits.
    let passes = if point == CrashPoint::LogCheckpoint { 1 } else { 1 + random.below(3) };
    let armed = Start::default().env("TAILWATER_CRASH_AT", format!("{}:{passes}", point.name()));
    {
        let mut instance = field.instance(&name)?;
        instance.kill()?;
        instance.start(&armed)?;
        instance.wait_for_crash(CRASH_LIMIT).with_context(|| format!("step `{}`", point.name()))?;
    }
    restarted(field, service, &name, &Start::default())
}

/// Frozen until another instance has taken over, then thawed with all it held.
pub(super) fn freeze(field: &Field, random: &mut Random, service: Service) -> Result<Run> {
    let name = one_of(service, random);
    field.instance(&name)?.pause()?;
    std::thread::sleep(LONGER_THAN_A_SESSION + Duration::from_millis(random.below(3000)));
    let thawed = Instant::now();
    field.instance(&name)?.resume()?;
    recovered(field, service, thawed)
}

/// Every instance stopped in good order and started again, one after the other.
pub(super) fn rolling_restart(field: &Field, _random: &mut Random) -> Result<Run> {
    let mut slowest = Duration::ZERO;
    for service in Service::ALL {
        for name in service.instances() {
            field.instance(&name)?.stop()?;
            if let Run::Recovered(took) = restarted(field, service, &name, &Start::default())? {
                slowest = slowest.max(took);
            }
        }
    }
    Ok(Run::Recovered(slowest))
}

/// A second process that says it is the first.
pub(super) fn twin(field: &Field, random: &mut Random) -> Result<Run> {
    let service = *random.pick(&Service::HOPS);
    let name = one_of(service, random);
    field.start_extra(&name)?;
    std::thread::sleep(TWINS_FOR);
    let alone = Instant::now();
    field.kill_extras()?;
    recovered(field, service, alone)
}

/// Members that come and go every three seconds.
pub(super) fn rebalance_storm(field: &Field, random: &mut Random) -> Result<Run> {
    let service = *random.pick(&Service::HOPS);
    for guest in 0..3 {
        field.start_extra(&format!("{}-guest{guest}", service.name()))?;
        std::thread::sleep(Duration::from_secs(3));
        field.kill_extras()?;
    }
    recovered(field, service, Instant::now())
}

/// A clock that is set ten minutes ahead or behind while the process runs, and back after a while. A store refuses
/// requests that are more than a quarter of an hour off.
pub(super) fn set_clock(field: &Field, random: &mut Random) -> Result<Run> {
    let service = *random.pick(&Service::HOPS);
    let name = one_of(service, random);
    let Some(clock) = Clock::new(field.path(), &name)? else {
        return Ok(Run::Skipped("a process gets a clock of its own on Linux only".to_owned()));
    };
    let seconds_more = if random.chance(50) { 600 } else { -600 };
    field.instance(&name)?.kill()?;
    let slowest = with_clock(field, service, &name, &clock, seconds_more);
    // Whatever came of it: faults after this one are not to meet a process with a clock of its own.
    field.instance(&name)?.kill()?;
    restarted(field, service, &name, &Start::default())?;
    slowest.map(Run::Recovered)
}

/// A life with this clock, which is set and put right; the slower of both recoveries.
fn with_clock(field: &Field, service: Service, name: &str, clock: &Clock, seconds_more: i64) -> Result<Duration> {
    restarted(field, service, name, &clock.start())?;
    // A library that cannot be preloaded is left out with a word in the log.
    ensure!(field.instance(name)?.has_mapped(&clock.library)?, "`{name}` has no clock of its own");
    let mut slowest = Duration::ZERO;
    for seconds_more in [seconds_more, 0] {
        clock.show(seconds_more)?;
        std::thread::sleep(CLOCK_IS_OFF_FOR);
        let looked = Instant::now();
        field.instance(name)?.wait_until_ready(RECOVERY_LIMIT)?;
        if let Run::Recovered(took) = recovered(field, service, looked)? {
            slowest = slowest.max(took);
        }
    }
    Ok(slowest)
}

fn one_of(service: Service, random: &mut Random) -> String {
    random.pick(&service.instances()).clone()
}

/// Starts an instance again and waits until its service has caught up and it is ready.
pub(crate) fn restarted(field: &Field, service: Service, name: &str, start: &Start) -> Result<Run> {
    let started = Instant::now();
    field.instance(name)?.start(start)?;
    let run = recovered(field, service, started)?;
    field.instance(name)?.wait_until_ready(RECOVERY_LIMIT)?;
    Ok(run)
}
