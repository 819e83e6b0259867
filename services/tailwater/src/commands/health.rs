//! `tailwater health`: whether a running process is ready, as an exit code.

use reqwest::Method;
use runtime::config::Config;

use crate::{
    arguments::Global,
    client::{Client, Door},
    commands::Failure,
    output,
};

pub(crate) async fn run(global: &Global, config: &Config) -> Result<(), Failure> {
    let client = Client::new(global.url.as_deref(), config, Door::Analysis);
    let answer = client
        .send(client.request(Method::GET, "/readyz?verbose"))
        .await
        .map_err(|failure| Failure::unavailable(failure.error))?;
    let text = answer.text().await.map_err(anyhow::Error::from)?;
    output::line(text.trim_end());
    Ok(())
}
