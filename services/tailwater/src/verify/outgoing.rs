//! Sending rows: to the source's topic, or to the HTTP door.
//!
//! Invariant: a fate is never guessed. *Failed* only where nothing can have reached the topic, *acknowledged* only
//! after the log or the door said so; everything else is unknown.

use std::{sync::Arc, time::Duration};

use anyhow::anyhow;
use bytes::Bytes;
use reqwest::{Method, StatusCode};
use serde::Deserialize;
use tokio::time::{Instant, timeout, timeout_at};
use topics::{Log, NewMessage, TopicError, TopicName};

use super::{
    content::BAD_KEY,
    definitions::Target,
    ledger::{Fate, Place},
};
use crate::client::Client;

/// A request that has not been answered by then has an unknown outcome.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// Between two tries of one request.
const RETRY_EVERY: Duration = Duration::from_millis(200);

/// A row on its way.
#[derive(Clone, Debug)]
pub(crate) struct Parcel {
    pub(crate) key: i64,
    pub(crate) seq: i64,
    pub(crate) text: String,
}

/// Where rows go.
pub(crate) enum Road {
    Topic(TopicRoad),
    Http(HttpRoad),
}

impl Road {
    /// Sends rows in order; the fate of each. `until` bounds how long a log that is down is waited for.
    pub(crate) async fn send(&self, batch: u64, parcels: &[Parcel], until: Option<Instant>) -> Vec<Fate> {
        match self {
            Self::Topic(road) => road.send(parcels, until).await,
            Self::Http(road) => vec![road.send(batch, parcels).await; parcels.len()],
        }
    }

    /// How many good rows of a send appear together.
    pub(crate) fn rows_together(&self, good: usize) -> u32 {
        match self {
            Self::Topic(_) => 1,
            Self::Http(_) => u32::try_from(good).unwrap_or(u32::MAX),
        }
    }
}

/// A message a row, each key always to the same partition.
pub(crate) struct TopicRoad {
    pub(crate) log: Arc<dyn Log>,
    pub(crate) topic: TopicName,
    pub(crate) partitions: u32,
}

impl TopicRoad {
    async fn send(&self, parcels: &[Parcel], until: Option<Instant>) -> Vec<Fate> {
        let appender = self.log.appender();
        let mut receipts = Vec::with_capacity(parcels.len());
        for parcel in parcels {
            let partition = self.partition(parcel);
            let message = NewMessage {
                key: Some(parcel.key.to_string().into()),
                payload: Bytes::copy_from_slice(parcel.text.as_bytes()),
                ..NewMessage::default()
            };
            let append = appender.append(&self.topic, partition, message);
            receipts.push((partition, bounded(until, append).await.unwrap_or(Err(TopicError::Closed))));
        }
        let mut fates = Vec::with_capacity(receipts.len());
        for (partition, receipt) in receipts {
            fates.push(match receipt {
                Err(error) => fate_of(&error),
                Ok(receipt) => match bounded(until, receipt).await {
                    Some(Ok(offset)) => Fate::Acked(Some(Place { partition, offset })),
                    Some(Err(error)) => fate_of(&error),
                    None => Fate::Unknown,
                },
            });
        }
        fates
    }

    fn partition(&self, parcel: &Parcel) -> u32 {
        let number = if parcel.key == BAD_KEY { parcel.seq } else { parcel.key };
        u32::try_from(number.rem_euclid(i64::from(self.partitions.max(1)))).unwrap_or(0)
    }
}

async fn bounded<T>(until: Option<Instant>, work: impl Future<Output = T>) -> Option<T> {
    match until {
        Some(until) => timeout_at(until, work).await.ok(),
        None => Some(work.await),
    }
}

/// Only errors that come before a message is queued say that it is not in the log.
fn fate_of(error: &TopicError) -> Fate {
    match error {
        TopicError::UnknownTopic { .. } | TopicError::UnknownPartition { .. } | TopicError::TooLarge { .. } => {
            Fate::Failed
        }
        _ => Fate::Unknown,
    }
}

/// One request a send, in NDJSON.
pub(crate) struct HttpRoad {
    pub(crate) client: Client,
    pub(crate) target: Target,
    /// What makes a repeated request known: unique to this ledger.
    pub(crate) producer: String,
    /// How long a request without an answer is sent again.
    pub(crate) retry: Option<Duration>,
}

/// What one try came to.
enum Tried {
    Done(Option<Place>),
    /// Certainly not taken, and never will be.
    Refused,
    /// Certainly not taken this time.
    NotReached,
    Open,
}

#[derive(Deserialize)]
struct Ingested {
    parts: Vec<Part>,
}

#[derive(Deserialize)]
struct Part {
    partition: u32,
    offset: u64,
}

impl HttpRoad {
    async fn send(&self, batch: u64, parcels: &[Parcel]) -> Fate {
        let body: Bytes = parcels.iter().flat_map(|parcel| [parcel.text.as_str(), "\n"]).collect::<String>().into();
        let started = Instant::now();
        let (mut tries, mut open) = (0, false);
        loop {
            tries += 1;
            match self.try_once(batch, body.clone()).await {
                // Of a request sent twice, the copy that was answered need not be the one that counts.
                Tried::Done(place) => return Fate::Acked(place.filter(|_| tries == 1)),
                Tried::Refused if !open => return Fate::Failed,
                Tried::Refused => return Fate::Unknown,
                Tried::NotReached => {}
                Tried::Open => open = true,
            }
            if self.retry.is_none_or(|retry| started.elapsed() >= retry) {
                return if open { Fate::Unknown } else { Fate::Failed };
            }
            tokio::time::sleep(RETRY_EVERY).await;
        }
    }

    async fn try_once(&self, batch: u64, body: Bytes) -> Tried {
        let path = format!("/v1/ingest/{}/{}", self.target.pipeline, self.target.source);
        let request = self
            .client
            .request(Method::POST, &path)
            .header("content-type", "application/x-ndjson")
            .header("idempotency-key", format!("\"{}:{batch}\"", self.producer))
            .body(body);
        let answered = async {
            let response = request.send().await?;
            let status = response.status();
            Ok::<_, reqwest::Error>((status, response.bytes().await))
        };
        match timeout(ANSWER_WITHIN, answered).await {
            Err(_) => Tried::Open,
            Ok(Err(error)) if error.is_connect() => Tried::NotReached,
            Ok(Err(_)) => Tried::Open,
            Ok(Ok((status, body))) => judge_answer(status, body.ok()),
        }
    }
}

fn judge_answer(status: StatusCode, body: Option<Bytes>) -> Tried {
    match status {
        status if status.is_success() => {
            // The answer is sent when everything is durable, whether its text arrives or not.
            let ingested = body.and_then(|body| serde_json::from_slice::<Ingested>(&body).ok());
            Tried::Done(ingested.and_then(|ingested| match ingested.parts.as_slice() {
                [Part { partition, offset }] => Some(Place { partition: *partition, offset: *offset }),
                _ => None,
            }))
        }
        StatusCode::REQUEST_TIMEOUT | StatusCode::CONFLICT | StatusCode::TOO_MANY_REQUESTS => Tried::Open,
        status if status.is_client_error() => Tried::Refused,
        _ => Tried::Open,
    }
}

/// The embedded log belongs to the process that has it open.
pub(crate) fn cannot_append(error: TopicError) -> anyhow::Error {
    let in_use = matches!(error, TopicError::InUse { .. });
    let error = anyhow!(error);
    if in_use {
        error.context("a running Tailwater has the embedded log; send through it with --over http")
    } else {
        error
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_certainly_was_not_taken_counts_as_failed() {
        let topic = TopicName::try_from("t".to_owned()).expect("a valid name");
        assert_eq!(fate_of(&TopicError::UnknownTopic { topic: topic.clone() }), Fate::Failed);
        assert_eq!(fate_of(&TopicError::AppendFailed { topic, partition: 0 }), Fate::Unknown);
        assert_eq!(fate_of(&TopicError::Closed), Fate::Unknown);
        let tried = |status: u16| judge_answer(StatusCode::from_u16(status).expect("a status"), None);
        assert!(matches!(tried(200), Tried::Done(None)));
        assert!(matches!(tried(413), Tried::Refused));
        for open in [503, 500, 502, 409, 408, 429] {
            assert!(matches!(tried(open), Tried::Open), "{open}");
        }
    }
}
