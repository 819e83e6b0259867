//! Waiting until nothing is on its way any more.
//!
//! Settled is what the ledger of `status` says: everything read, nothing in flight, every account balanced; and what
//! it cannot say, that the rejected tables have what the writers rejected.

use std::time::Duration;

use analysis::ledger::{Account, Status};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::Instant;

use super::{definitions::Target, scan::numbers};
use crate::{
    client::Client,
    commands::{Failure, status},
};

const POLL_EVERY: Duration = Duration::from_millis(200);

/// Waits at most that long. `None` when settled; else what was still missing.
///
/// # Errors
/// The server did not answer at the end.
pub(crate) async fn wait(client: &Client, target: &Target, within: Duration) -> Result<Option<String>, Failure> {
    let started = Instant::now();
    let bar = spinner();
    let outcome = loop {
        let missing = missing(client, target).await;
        if matches!(missing, Ok(None)) || started.elapsed() >= within {
            break missing;
        }
        bar.set_message(match &missing {
            Ok(missing) => missing.clone().unwrap_or_default(),
            Err(failure) => format!("{:#}", failure.error),
        });
        tokio::time::sleep(POLL_EVERY).await;
    };
    bar.finish_and_clear();
    outcome
}

async fn missing(client: &Client, target: &Target) -> Result<Option<String>, Failure> {
    let Status { accounts, .. } = status::fetch(client).await?;
    let prefix = format!("{}.", target.pipeline);
    let ours: Vec<&Account> = accounts.iter().filter(|account| account.name.starts_with(&prefix)).collect();
    if !ours.iter().any(|account| account.name == target.to_string()) {
        return Ok(Some(format!("there is no source `{target}`; `tailwater verify produce` applies it")));
    }
    for account in ours {
        if let Some(missing) = missing_of(account) {
            return Ok(Some(missing));
        }
        let kept = rejected_rows(client, target, account, &prefix).await?;
        if kept < account.rejected {
            let (name, rejected) = (&account.name, account.rejected);
            return Ok(Some(format!("`{name}` has rejected {rejected} rows, its rejected table has {kept}")));
        }
    }
    Ok(None)
}

fn missing_of(account: &Account) -> Option<String> {
    let Account { name, lag, in_flight, balanced, .. } = account;
    let settled = *balanced && *lag == 0 && *in_flight == 0;
    (!settled).then(|| {
        let balance = if *balanced { "" } else { ", does not balance" };
        format!("`{name}` has {lag} messages to read and {in_flight} rows in flight{balance}")
    })
}

async fn rejected_rows(client: &Client, target: &Target, account: &Account, prefix: &str) -> Result<u64, Failure> {
    if account.rejected == 0 {
        return Ok(0);
    }
    let name = account.name.strip_prefix(prefix).unwrap_or(&account.name);
    let sql = format!("SELECT count(*) FROM {} WHERE part = 0", target.table(&format!("{name}_rejected")));
    let (counted, _) = numbers(client, &sql).await?;
    Ok(counted.first().and_then(|row| row.first()).map_or(0, |&count| count.cast_unsigned()))
}

fn spinner() -> ProgressBar {
    let bar = ProgressBar::no_length();
    bar.set_draw_target(ProgressDrawTarget::stderr());
    let template = "{spinner} {elapsed} waiting: {msg}";
    bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_settled_when_nothing_is_on_its_way() {
        let settled = Account {
            name: "verify.events".into(),
            kind: "source".into(),
            read: 9,
            stored: 9,
            rejected: 0,
            filtered: 0,
            late: 0,
            in_flight: 0,
            lag: 0,
            foreign: 0,
            freshness_seconds: None,
            balanced: true,
            version: Some(3),
        };
        assert_eq!(missing_of(&settled), None);
        for unsettled in [
            Account { lag: 1, ..settled.clone() },
            Account { in_flight: 1, ..settled.clone() },
            Account { balanced: false, ..settled },
        ] {
            assert!(missing_of(&unsettled).is_some_and(|text| text.contains("verify.events")));
        }
    }
}
