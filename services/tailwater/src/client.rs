//! Talking to a running Tailwater over HTTP.
//!
//! Every failure names the address and what to do: start it, or give another `--url`.

use std::{fmt, time::Duration};

use anyhow::anyhow;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use runtime::config::{Config, LogKind};
use serde::Deserialize;

use crate::commands::Failure;

/// How long a short answer is waited for: longer than any of them waits for the log, the store or the catalog.
const SHORT_ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// A thread of their own answers for metrics, however busy the rest of a process is.
const METRICS_WITHIN: Duration = Duration::from_secs(5);

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
    #[serde(default)]
    retry: Option<bool>,
    #[serde(default)]
    stored: Option<String>,
}

impl ErrorBody {
    /// The server's words.
    pub(crate) fn text(&self) -> String {
        match &self.hint {
            Some(hint) => format!("{}\nhint: {hint}", self.error),
            None => self.error.clone(),
        }
    }
}

/// An answer that is not a success, in the server's words.
#[derive(Debug)]
pub(crate) struct Refused {
    status: StatusCode,
    text: String,
    /// What a Tailwater says of the same request later; a proxy says nothing.
    retry: Option<bool>,
    /// What a Tailwater says of the rows.
    stored: Option<String>,
}

impl Refused {
    async fn of(response: Response) -> Self {
        let status = response.status();
        let body = response.text().await.unwrap_or_default();
        match serde_json::from_str::<ErrorBody>(&body) {
            Ok(error) => Self { status, text: error.text(), retry: error.retry, stored: error.stored },
            Err(_) => {
                let text = if body.is_empty() { format!("the server answered {status}") } else { body };
                Self { status, text, retry: None, stored: None }
            }
        }
    }

    /// Whether the same request may succeed later.
    pub(crate) fn may_succeed_later(&self) -> bool {
        self.retry.unwrap_or(matches!(self.status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504))
    }

    /// Whether rows of the request may be stored all the same.
    pub(crate) fn may_be_stored(&self) -> bool {
        match (&self.stored, self.retry) {
            (Some(stored), _) => stored != "nothing",
            // A process that is stopping leaves it out.
            (None, Some(_)) => false,
            (None, None) => self.status.is_server_error() || self.status == StatusCode::REQUEST_TIMEOUT,
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

impl std::error::Error for Refused {}

impl Client {
    /// A client of the address given, or of the one the config tells.
    pub(crate) fn new(url: Option<&str>, config: &Config, door: Door) -> Self {
        let base = match url {
            Some(url) => url.trim_end_matches('/').to_owned(),
            None => format!("http://{}", listen_address(config, door)),
        };
        // No overall timeout: answers stream.
        let http = reqwest::Client::builder().connect_timeout(Duration::from_secs(5)).build().unwrap_or_default();
        Self { http, base }
    }

    pub(crate) fn base(&self) -> &str {
        &self.base
    }

    /// A request that takes as long as it takes, unless it is given a time.
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.base))
    }

    /// A request with a short answer. A server that is frozen is not waited for.
    pub(crate) fn short_request(&self, method: Method, path: &str) -> RequestBuilder {
        self.request(method, path).timeout(SHORT_ANSWER_WITHIN)
    }

    /// Whether a Tailwater answers here, ready or not, and not something else on the same port.
    pub(crate) async fn is_tailwater(&self) -> bool {
        let request = self.request(Method::GET, "/metrics").timeout(METRICS_WITHIN);
        let Ok(answer) = self.send(request).await else { return false };
        answer.text().await.is_ok_and(|metrics| metrics.contains("tailwater_build_info"))
    }

    /// Sends a request; an answer that is not a success becomes an error with the server's words.
    pub(crate) async fn send(&self, request: RequestBuilder) -> Result<Response, Failure> {
        let request = request.build().map_err(|error| self.unanswered(error, None))?;
        let within = request.timeout().copied();
        let response = self.http.execute(request).await.map_err(|error| self.unanswered(error, within))?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(Refused::of(response).await.into())
    }

    fn unanswered(&self, error: reqwest::Error, within: Option<Duration>) -> Failure {
        let base = &self.base;
        let is_late = error.is_timeout() && !error.is_connect();
        let what = match within.filter(|_| is_late) {
            Some(within) => format!("{base} has not answered within {within:?}: it is frozen, or far too busy"),
            None => {
                format!("no Tailwater answers at {base}; start one with `tailwater up`, or say where it is with --url")
            }
        };
        Failure::unavailable(anyhow!(error).context(what))
    }
}

fn listen_address(config: &Config, door: Door) -> &str {
    match (config.log.kind, door) {
        (LogKind::Embedded, _) => &config.http.listen,
        (LogKind::Kafka, Door::Ingestion) => &config.ingestion.listen,
        (LogKind::Kafka, Door::Analysis) => &config.analysis.listen,
    }
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        match refused.status {
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => Self::unavailable(refused.into()),
            StatusCode::REQUEST_TIMEOUT if refused.retry == Some(true) => Self::unavailable(refused.into()),
            _ => anyhow::Error::from(refused).into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use runtime::exit::Code;

    use super::*;

    #[tokio::test]
    async fn a_server_that_is_frozen_is_not_waited_for() {
        // It takes connections, and nobody is behind them.
        let frozen = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}", frozen.local_addr().expect("an address"));
        let client = Client::new(Some(&url), &Config::default(), Door::Analysis);
        let request = client.short_request(Method::GET, "/v1/status").timeout(Duration::from_millis(20));
        let failure = client.send(request).await.expect_err("nobody answers");
        assert_eq!(failure.code, Code::Unavailable);
        assert!(failure.error.to_string().contains("has not answered within 20ms"), "{failure:?}");
    }
}
