//! Faults of our own processes: killed, crashed at a step, stopped, started twice, restarted in turn, in a wrong time.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use delivery::CrashPoint;
use testkit::seed::Random;

use super::{RECOVERY_LIMIT, Run, recovered};
use crate::{field::Field, instance::Start, service::Service};

/// Classic group members are given up after 10 s.
const LONGER_THAN_A_SESSION: Duration = Duration::from_secs(14);
const TWINS_FOR: Duration = Duration::from_secs(8);
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
        ensure!(instance.wait_for_end(CRASH_LIMIT)?, "`{name}` has not passed step `{}`", point.name());
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

/// A life whose clock is ten minutes off, ahead or behind; then one with the right time. A store refuses requests that
/// are more than a quarter of an hour off.
pub(super) fn wrong_clock(field: &Field, random: &mut Random) -> Result<Run> {
    let Some(library) = libfaketime() else {
        return Ok(Run::Skipped("libfaketime is not installed (Debian package `faketime`)".to_owned()));
    };
    let service = *random.pick(&Service::HOPS);
    let name = one_of(service, random);
    let shift = if random.chance(50) { "+600" } else { "-600" };
    let shifted =
        Start::default().env("LD_PRELOAD", library).env("FAKETIME", shift).env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    field.instance(&name)?.kill()?;
    let wrong = restarted(field, service, &name, &shifted);
    if wrong.is_ok() {
        std::thread::sleep(Duration::from_secs(4));
    }
    // Whatever came of it: faults after this one are not to meet a process in a wrong time.
    field.instance(&name)?.kill()?;
    let right = restarted(field, service, &name, &Start::default());
    wrong.and(right)
}

fn libfaketime() -> Option<String> {
    let folders = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib"];
    let mut paths = folders.iter().map(|folder| format!("{folder}/faketime/libfaketimeMT.so.1"));
    paths.find(|path| std::path::Path::new(path).is_file())
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
