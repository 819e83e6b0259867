//! `tailwater health`: whether a running process is ready, as an exit code.

use std::time::{Duration, Instant};

use reqwest::Method;
use runtime::{config::Config, units};

use crate::{
    arguments::Global,
    client::{Client, Door},
    commands::Failure,
    output,
};

/// Between two questions while it is waited for.
const ASK_EVERY: Duration = Duration::from_millis(250);
/// A process that takes longer is frozen, or far too busy to be called ready.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);

pub(crate) async fn run(global: &Global, config: &Config, wait: Option<units::Duration>) -> Result<(), Failure> {
    let client = Client::new(global.url.as_deref(), config, Door::Analysis);
    let deadline = wait.map(|wait| Instant::now() + wait.get());
    loop {
        match ask(&client).await {
            Err(_) if deadline.is_some_and(|deadline| Instant::now() < deadline) => {
                tokio::time::sleep(ASK_EVERY).await;
            }
            Err(failure) => return Err(Failure::unavailable(failure.error)),
            Ok(checks) => return Ok(output::line(checks.trim_end())?),
        }
    }
}

/// Every check of a process that is ready.
async fn ask(client: &Client) -> Result<String, Failure> {
    let answer = client.send(client.request(Method::GET, "/readyz?verbose").timeout(ANSWERS_WITHIN)).await?;
    Ok(answer.text().await.map_err(anyhow::Error::from)?)
}
