//! `tailwater status`: the ledger.

use analysis::ledger::{Account, Status};
use reqwest::Method;
use runtime::config::Config;

use crate::{
    arguments::{Format, Global},
    client::{Client, Door},
    commands::Failure,
    output::{self, Listing},
};

const COLUMNS: &[&str] =
    &["name", "kind", "read", "stored", "rejected", "filtered", "late", "in_flight", "lag", "freshness", "balanced"];

pub(crate) async fn run(global: &Global, config: &Config, format: Format) -> Result<(), Failure> {
    let client = Client::new(global.url.as_deref(), config, Door::Analysis);
    let status = fetch(&client).await?;
    print(status, format)
}

/// Asks for the ledger.
pub(crate) async fn fetch(client: &Client) -> Result<Status, Failure> {
    let answer = client.send(client.short_request(Method::GET, "/v1/status")).await?;
    Ok(answer.json().await.map_err(anyhow::Error::from)?)
}

/// Prints the ledger.
pub(crate) fn print(status: Status, format: Format) -> Result<(), Failure> {
    let unbalanced = status.accounts.iter().filter(|account| !account.balanced).count();
    let foreign = status.accounts.iter().filter(|account| account.foreign > 0);
    let foreign: Vec<String> = foreign
        .map(|account| format!("`{}` holds {} rows that another program put there", account.name, account.foreign))
        .collect();
    Listing { columns: COLUMNS, rows: status.accounts }.print(format, cells)?;
    foreign.iter().for_each(output::note);
    match unbalanced {
        0 => output::note("the ledger balances: read = stored + rejected + filtered + late + in flight"),
        count => output::note(format!("{count} accounts do not balance; this is a defect, please report it")),
    }
    Ok(())
}

fn cells(account: &Account) -> Vec<String> {
    let count = |value: u64| value.to_string();
    vec![
        account.name.clone(),
        account.kind.clone(),
        count(account.read),
        count(account.stored),
        count(account.rejected),
        count(account.filtered),
        count(account.late),
        count(account.in_flight),
        count(account.lag),
        account.freshness_seconds.map_or_else(|| "-".to_owned(), age),
        if account.balanced { "yes" } else { "NO" }.to_owned(),
    ]
}

/// Seconds in the largest unit that says enough.
fn age(seconds: f64) -> String {
    match seconds {
        seconds if seconds < 120.0 => format!("{seconds:.1}s"),
        seconds if seconds < 7200.0 => format!("{:.0}m", seconds / 60.0),
        seconds if seconds < 172_800.0 => format!("{:.0}h", seconds / 3600.0),
        seconds => format!("{:.0}d", seconds / 86_400.0),
    }
}
