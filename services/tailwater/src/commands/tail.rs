//! `tailwater tail`: rows of a channel as they come.

use anyhow::anyhow;
use futures::StreamExt as _;
use reqwest::Method;
use runtime::config::Config;

use crate::{
    arguments::Global,
    client::{Client, Door},
    commands::Failure,
    output::{self, Reader},
};

pub(crate) async fn run(
    global: &Global,
    config: &Config,
    name: &str,
    from: &str,
    limit: Option<u64>,
) -> Result<(), Failure> {
    let (pipeline, name) = name.split_once('.').ok_or_else(|| anyhow!("expected pipeline.name, found `{name}`"))?;
    let client = Client::new(global.url.as_deref(), config, Door::Analysis);
    let mut request = client.request(Method::GET, &format!("/v1/tail/{pipeline}/{name}")).query(&[("from", from)]);
    if let Some(limit) = limit {
        request = request.query(&[("limit", limit)]);
    }
    let mut rows = client.send(request).await?.bytes_stream();
    while let Some(chunk) = rows.next().await {
        let chunk = chunk.map_err(|error| anyhow!(error).context("the stream of rows broke off"))?;
        if output::raw(&chunk)? == Reader::Gone {
            return Ok(());
        }
    }
    Ok(())
}
