//! Talking to a running Tailwater over HTTP.
//!
//! Every failure names the address and what to do: start it, or give another `--url`.

use std::time::Duration;

use anyhow::anyhow;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use runtime::config::{Config, LogKind};
use serde::Deserialize;

use crate::commands::Failure;

/// Which service answers a question.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Door {
    /// `/v1/ingest`, `/v1/catalog`
    Ingestion,
    /// `/v1/sql`, `/v1/status`, `/v1/tail`
    Analysis,
}

/// A client of one address.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    base: String,
}

/// What every error looks like, as an answer or at the end of one.
#[derive(Debug, Deserialize)]
pub(crate) struct ErrorBody {
    error: String,
    #[serde(default)]
    hint: Option<String>,
}

impl ErrorBody {
    /// The server's words.
    pub(crate) fn text(self) -> String {
        match self.hint {
            Some(hint) => format!("{}\nhint: {hint}", self.error),
            None => self.error,
        }
    }
}

impl Client {
    /// A client of the address given, or of the one the config tells.
    pub(crate) fn new(url: Option<&str>, config: &Config, door: Door) -> Self {
        let base = match url {
            Some(url) => url.trim_end_matches('/').to_owned(),
            None => format!("http://{}", listen_address(config, door)),
        };
        // No overall timeout: answers stream, and ingestion waits for durability.
        let http = reqwest::Client::builder().connect_timeout(Duration::from_secs(5)).build().unwrap_or_default();
        Self { http, base }
    }

    pub(crate) fn base(&self) -> &str {
        &self.base
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.base))
    }

    /// Sends a request; an answer that is not a success becomes an error with the server's words.
    pub(crate) async fn send(&self, request: RequestBuilder) -> Result<Response, Failure> {
        let response = request.send().await.map_err(|error| self.unreachable(error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(refusal(response).await)
    }

    fn unreachable(&self, error: reqwest::Error) -> Failure {
        Failure::unavailable(anyhow!(error).context(format!(
            "no Tailwater answers at {}; start one with `tailwater up`, or say where it is with --url",
            self.base
        )))
    }
}

fn listen_address(config: &Config, door: Door) -> &str {
    match (config.log.kind, door) {
        (LogKind::Embedded, _) => &config.http.listen,
        (LogKind::Kafka, Door::Ingestion) => &config.ingestion.listen,
        (LogKind::Kafka, Door::Analysis) => &config.analysis.listen,
    }
}

async fn refusal(response: Response) -> Failure {
    let status = response.status();
    let body = response.text().await.unwrap_or_default();
    let text = match serde_json::from_str::<ErrorBody>(&body) {
        Ok(error) => error.text(),
        Err(_) if body.is_empty() => format!("the server answered {status}"),
        Err(_) => body,
    };
    match status {
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => Failure::unavailable(anyhow!(text)),
        _ => Failure::from(anyhow!(text)),
    }
}
