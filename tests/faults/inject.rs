//! How faults are done, and when the field has recovered from one.

mod clock;
mod network;
pub(crate) mod processes;
mod store;
mod table;

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use testkit::http;

pub(crate) use table::{Act, Fault, Ground, Part, Whole, catalogue};

use crate::{
    field::Field,
    judge::{PIPELINE, SOURCE},
    observer::LOOK_EVERY,
    service::Service,
};

/// What takes longer has not recovered. Far above every bound, so that a slow recovery is told from none.
pub(crate) const RECOVERY_LIMIT: Duration = Duration::from_secs(120);

/// How one run of a fault ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Run {
    /// All that was waiting when the fault ended was covered so long after it.
    Recovered(Duration),
    /// This machine cannot do it, and why.
    Skipped(String),
}

/// Waits until a service has covered what waits for it now.
pub(crate) fn recovered(field: &Field, service: Service, since: Instant) -> Result<Run> {
    if service == Service::Analysis {
        return answering(field, since);
    }
    let marks = field.observer.ends(service)?;
    field.observer.wait(service, &marks, since, RECOVERY_LIMIT).map(Run::Recovered)
}

/// Waits until what stands in the topic now has gone all the way into the tables.
pub(crate) fn recovered_all(field: &Field, since: Instant) -> Result<Run> {
    let mut took = Duration::ZERO;
    for service in Service::HOPS {
        let marks = field.observer.ends(service)?;
        took = field.observer.wait(service, &marks, since, RECOVERY_LIMIT)?;
    }
    Ok(Run::Recovered(took))
}

/// Waits until every instance of analysis answers a question about the table of the load.
fn answering(field: &Field, since: Instant) -> Result<Run> {
    for name in Service::Analysis.instances() {
        let url = format!("{}/v1/tables/{PIPELINE}/{SOURCE}", field.instance(&name)?.url());
        while !http::get(&url).is_ok_and(|(status, _)| status == 200) {
            ensure!(since.elapsed() < RECOVERY_LIMIT, "`{name}` does not answer after {RECOVERY_LIMIT:?}");
            std::thread::sleep(LOOK_EVERY);
        }
    }
    Ok(Run::Recovered(since.elapsed()))
}
