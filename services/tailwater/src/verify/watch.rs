//! `tailwater verify watch`: asks again and again while rows come in, and sees whether anything ever goes back.

use std::time::Duration;

use anyhow::anyhow;
use runtime::{config::Config, signal, tasks::Stop};
use tokio::time::Instant;

use super::{
    definitions::{Target, VIEW_NAMES},
    finding::{Example, Finding, Id},
    judge::Counts,
    report::Report,
    scan::{numbers, query, version_of},
};
use crate::{
    arguments::{Format, Global},
    client::{Client, Door},
    commands::Failure,
    output,
};

/// What was asked for.
#[derive(Clone, Debug)]
pub(crate) struct Wish {
    pub(crate) target: Target,
    pub(crate) time: Option<Duration>,
    pub(crate) every: Duration,
    pub(crate) output: Format,
}

pub(crate) async fn run(global: &Global, config: &Config, wish: Wish) -> Result<(), Failure> {
    let client = Client::new(global.url.as_deref(), config, Door::Analysis);
    let stop = Stop::new();
    signal::listen(stop.clone()).map_err(anyhow::Error::from)?;
    let end = wish.time.map(|time| Instant::now() + time);
    let mut watch = Watch::new(&wish.target);
    let (mut answered, mut unanswered, mut last) = (0_u64, 0_u64, None);
    while !stop.is_stopping() && end.is_none_or(|end| Instant::now() < end) {
        match watch.look(&client, &wish.target).await {
            Ok(()) => answered += 1,
            // A service that is down for a while takes nothing back.
            Err(failure) => {
                unanswered += 1;
                last = Some(failure);
            }
        }
        tokio::select! {
            () = tokio::time::sleep(wish.every) => {}
            () = stop.stopped() => {}
        }
    }
    output::note(format!("{answered} looks, {unanswered} without an answer"));
    match (answered, last) {
        (0, Some(failure)) => Err(failure),
        _ => Report::new(vec![watch.finding], Counts::default(), None).print(wish.output),
    }
}

/// What was seen last of each table.
struct Watch {
    seen: Vec<(String, Seen)>,
    finding: Finding,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Seen {
    rows: i64,
    version: Option<u64>,
}

impl Watch {
    fn new(target: &Target) -> Self {
        let tables = std::iter::once(target.source.as_str()).chain(VIEW_NAMES);
        Self { seen: tables.map(|name| (name.to_owned(), Seen::default())).collect(), finding: Finding::of(Id::M) }
    }

    async fn look(&mut self, client: &Client, target: &Target) -> Result<(), Failure> {
        for index in 0..self.seen.len() {
            let name = self.seen[index].0.clone();
            let (counted, snapshot) = numbers(client, &format!("SELECT count(*) FROM {}", target.table(&name))).await?;
            let rows = counted.first().and_then(|row| row.first()).copied();
            let rows = rows.ok_or_else(|| anyhow!("`count(*)` of table `{name}` has no answer"))?;
            let version = version_of(&snapshot, &format!("{}.{name}", target.pipeline));
            self.note(index, Seen { rows, version });
        }
        self.look_for_halves(client, target).await
    }

    fn note(&mut self, index: usize, now: Seen) {
        let (name, before) = &mut self.seen[index];
        self.finding.checked += 1;
        let (table, earlier) = (name.clone(), std::mem::replace(before, now));
        if now.rows < earlier.rows {
            let what = format!("table `{table}` went from {} rows back to {}", earlier.rows, now.rows);
            self.finding.violate(|| Example::plain(what));
        }
        if now.version < earlier.version {
            let what = format!("table `{table}` went from version {:?} back to {:?}", earlier.version, now.version);
            self.finding.violate(|| Example::plain(what));
        }
    }

    /// A request of several rows shows with all of its rows or with none.
    async fn look_for_halves(&mut self, client: &Client, target: &Target) -> Result<(), Failure> {
        let sql = format!(
            "SELECT producer, batch, count(*) AS found, max(batch_rows) AS expected FROM {} WHERE batch_rows > 1 \
             GROUP BY run_id, producer, batch HAVING count(*) <> max(batch_rows) LIMIT 5",
            target.table(&target.source)
        );
        let mut halves = Vec::new();
        query(client, &sql, |batch| {
            halves.push(arrow::util::pretty::pretty_format_batches(std::slice::from_ref(batch))?.to_string());
            Ok(())
        })
        .await?;
        self.finding.checked += 1;
        for half in halves {
            self.finding.violate(|| Example::plain(format!("requests that show in part:\n{half}")));
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn rows_or_versions_that_go_back_are_found() {
        let mut watch = Watch::new(&Target::from_name("verify.events").unwrap());
        let seen = |rows, version| Seen { rows, version: Some(version) };
        for now in [seen(0, 0), seen(5, 1), seen(5, 2), seen(9, 3)] {
            watch.note(0, now);
        }
        assert_eq!((watch.finding.checked, watch.finding.violations), (4, 0));
        watch.note(0, seen(8, 4));
        assert_eq!(watch.finding.violations, 1);
        watch.note(0, seen(9, 3));
        assert_eq!(watch.finding.violations, 2);
        watch.note(0, Seen { rows: 9, version: None });
        assert_eq!(watch.finding.violations, 3, "a table that is gone");
    }
}
