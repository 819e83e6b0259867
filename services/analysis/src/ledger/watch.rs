//! The ledger as metrics, so that a row that is lost raises an alarm without anybody looking.
//!
//! Worked out again and again in the background, not at each scrape: it asks the log and the store. A ledger that
//! cannot be worked out is counted, the first of a row is logged, and the last one that could stays. Every instance of
//! analysis shows the same ledger.

use std::{collections::BTreeSet, time::Duration};

use runtime::{edges::Edges, tasks::Stop};

use super::{Account, status};
use crate::metrics;

/// How old the ledger in the metrics may be. What follows from it changes slowly.
const EVERY: Duration = Duration::from_secs(15);

/// Keeps the metrics of the ledger new until asked to stop.
pub(crate) async fn watch(edges: Edges, stop: Stop) {
    let mut shown = BTreeSet::new();
    let mut known = true;
    loop {
        tokio::select! {
            () = stop.stopped() => return,
            status = status(&edges) => match status {
                Ok(status) => {
                    show(&mut shown, &status.accounts);
                    if !std::mem::replace(&mut known, true) {
                        tracing::info!("the ledger can be worked out again");
                    }
                }
                Err(error) => {
                    metrics::ledger_failed();
                    if std::mem::replace(&mut known, false) {
                        tracing::warn!(error = format!("{error:#}"), "the ledger cannot be worked out, and is tried again");
                    }
                }
            },
        }
        tokio::select! {
            () = stop.stopped() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
    }
}

fn show(shown: &mut BTreeSet<String>, accounts: &[Account]) {
    let names: BTreeSet<String> = accounts.iter().map(|account| account.name.clone()).collect();
    for gone in shown.difference(&names) {
        metrics::account_closed(gone);
    }
    for account in accounts {
        metrics::account(account);
    }
    *shown = names;
}
