//! Start-up proof that the store can carry a table's log.
//!
//! Everything rests on create-if-absent having exactly one winner. Some stores check and then write, and lose a few
//! races in a hundred; so many keys are raced for, by many racers at once, and what is stored must be the winner's.
//! A probe shows that a store is weak, never that it is strong. It takes a bounded time and leaves nothing behind but
//! a note of when it was passed: what starts again within [`TRUSTED_MS`] races for a few keys only, since the full race
//! is most of a start, and a start is most of the time a crash costs.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{StreamExt, stream};
use object_store::{
    Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, PutResult, UpdateVersion, path::Path,
};
use tokio::{sync::Barrier, task::JoinSet, time::timeout};

use crate::{Lake, LakeError, retry};

const KEYS: usize = 32;
/// Keys raced for where the store has passed lately.
const KEYS_AGAIN: usize = 2;
/// How long a passed probe counts, in milliseconds: a day.
const TRUSTED_MS: i64 = 24 * 60 * 60 * 1000;
/// Holds the time of the last passed probe, in milliseconds since the epoch, in decimal.
const PASSED: &str = "_tailwater/probe/passed";
const RACERS: usize = 8;
/// How often an undecided race (the store failed some requests) is run again.
const ROUNDS: usize = 4;
const FIRST_CONTACT_TIMEOUT: Duration = Duration::from_secs(15);
const PROBE_TIMEOUT: Duration = Duration::from_secs(60);
const CLEANUP_TIMEOUT: Duration = Duration::from_secs(15);

pub(crate) async fn run(lake: &Lake) -> Result<(), LakeError> {
    let probe = Probe {
        store: lake.store(),
        url: lake.root_url().to_string(),
        prefix: format!("_tailwater/probe/{}", lake.ambient.uuid()),
    };
    let verdict = probe.verdict(lake).await;
    probe.clean_up().await;
    verdict
}

struct Probe {
    store: Arc<dyn ObjectStore>,
    url: String,
    prefix: String,
}

/// What one race, or one pair of updates, showed.
#[derive(Debug, PartialEq, Eq)]
enum Race {
    OneWinner,
    Undecided,
    Broken(String),
}

/// What one racer was told.
enum Answer {
    Won,
    Lost,
    Unknown(Error),
}

impl Probe {
    async fn verdict(&self, lake: &Lake) -> Result<(), LakeError> {
        match timeout(FIRST_CONTACT_TIMEOUT, self.first_contact(lake)).await {
            Ok(contact) => contact?,
            Err(_) => return Err(self.silent(FIRST_CONTACT_TIMEOUT)),
        }
        match timeout(PROBE_TIMEOUT, self.conditions(lake)).await {
            Ok(verdict) => verdict,
            Err(_) => Err(self.silent(PROBE_TIMEOUT)),
        }
    }

    /// Writes, reads and lists one object, so that a wrong address or key is told before anything subtle.
    async fn first_contact(&self, lake: &Lake) -> Result<(), LakeError> {
        let key = self.key("contact");
        let answer = retry::repeat(&lake.ambient, || async {
            self.store.put(&key, PutPayload::from_static(b"tailwater")).await?;
            self.store.get(&key).await?.bytes().await
        });
        match answer.await {
            Ok(bytes) if bytes == Bytes::from_static(b"tailwater") => {}
            Ok(_) => return Err(self.unsafe_store("an object reads back with other contents than were written")),
            Err(error) => return Err(self.explain(error)),
        }
        let mut listing = self.store.list(Some(&Path::from("_tailwater/probe")));
        while let Some(object) = listing.next().await {
            if object.map_err(|error| self.explain(error))?.location == key {
                return Ok(());
            }
        }
        Err(self.unsafe_store("an object does not show in a listing right after it was written"))
    }

    async fn conditions(&self, lake: &Lake) -> Result<(), LakeError> {
        if self.passed_lately(lake).await {
            self.races(lake, KEYS_AGAIN).await?;
            return self.stale_updates(lake).await;
        }
        self.races(lake, KEYS).await?;
        self.stale_updates(lake).await?;
        self.note_passed(lake).await;
        Ok(())
    }

    /// A note that cannot be read, or that is from another time, counts for nothing: the full race is only slower.
    async fn passed_lately(&self, lake: &Lake) -> bool {
        let Ok(note) = self.store.get(&Path::from(PASSED)).await else { return false };
        let Ok(note) = note.bytes().await else { return false };
        let passed_at = std::str::from_utf8(&note).ok().and_then(|text| text.parse::<i64>().ok());
        passed_at.is_some_and(|at| (0..TRUSTED_MS).contains(&lake.ambient.now_ms().saturating_sub(at)))
    }

    async fn note_passed(&self, lake: &Lake) {
        let note = PutPayload::from(lake.ambient.now_ms().to_string());
        if let Err(error) = self.store.put(&Path::from(PASSED), note).await {
            tracing::debug!(url = self.url, %error, "passed probe not noted; the next start makes it again");
        }
    }

    async fn races(&self, lake: &Lake, keys: usize) -> Result<(), LakeError> {
        let mut undecided: Vec<usize> = (0..keys).collect();
        for round in 0..ROUNDS {
            if round > 0 {
                self.pause(lake, round).await;
            }
            let races = undecided.iter().map(|number| self.race(self.race_key(round, *number)));
            let results: Vec<_> = stream::iter(races).buffered(KEYS).collect().await;
            let mut again = Vec::new();
            for (number, result) in undecided.iter().zip(results) {
                match result? {
                    Race::OneWinner => {}
                    Race::Undecided => again.push(*number),
                    Race::Broken(reason) => return Err(self.unsafe_store(reason)),
                }
            }
            undecided = again;
            if undecided.is_empty() {
                return Ok(());
            }
        }
        Err(self.undecided(&format!("{} of {keys} races", undecided.len())))
    }

    async fn race(&self, key: Path) -> Result<Race, LakeError> {
        let start = Arc::new(Barrier::new(RACERS));
        let mut racers = JoinSet::new();
        for racer in 0..RACERS {
            let (store, key, start) = (Arc::clone(&self.store), key.clone(), Arc::clone(&start));
            racers.spawn(async move {
                start.wait().await;
                let put = store.put_opts(&key, body(racer).into(), PutOptions::from(PutMode::Create)).await;
                (racer, answer(put))
            });
        }
        let mut winners = Vec::new();
        let mut unknown = false;
        while let Some(joined) = racers.join_next().await {
            match joined {
                Ok((racer, Answer::Won)) => winners.push(racer),
                Ok((_, Answer::Lost)) => {}
                Ok((_, Answer::Unknown(error))) if retry::is_weather(&error) => unknown = true,
                Ok((_, Answer::Unknown(error))) => return Err(self.explain(error)),
                Err(_) => unknown = true,
            }
        }
        let stored = self.store.get(&key).await;
        let stored = match stored {
            Ok(object) => object.bytes().await.ok(),
            Err(Error::NotFound { .. }) if winners.is_empty() => None,
            Err(Error::NotFound { .. }) => return Ok(Race::Broken("an acknowledged object is not there".to_owned())),
            Err(_) => return Ok(Race::Undecided),
        };
        Ok(judge(&winners, unknown, stored.as_deref()))
    }

    /// A put under a condition that no longer holds must be refused. Stores without such puts are fine: nothing here
    /// relies on them; a store that takes the condition and ignores it is not to be trusted with any.
    async fn stale_updates(&self, lake: &Lake) -> Result<(), LakeError> {
        let mut round = 0;
        loop {
            let outcome = self.stale_update(&self.update_key(round)).await;
            round += 1;
            match outcome {
                Ok(Race::OneWinner) => return Ok(()),
                Ok(Race::Broken(reason)) => return Err(self.unsafe_store(reason)),
                Ok(Race::Undecided) if round >= ROUNDS => return Err(self.undecided("the conditional puts")),
                Err(error) if round >= ROUNDS || !retry::is_weather(&error) => return Err(self.explain(error)),
                Ok(Race::Undecided) | Err(_) => self.pause(lake, round).await,
            }
        }
    }

    async fn stale_update(&self, key: &Path) -> Result<Race, Error> {
        let condition = UpdateVersion::from(self.store.put(key, PutPayload::from_static(b"first")).await?);
        let update = |body: &'static [u8]| {
            let options = PutOptions::from(PutMode::Update(condition.clone()));
            self.store.put_opts(key, PutPayload::from_static(body), options)
        };
        match update(b"second").await {
            Err(Error::NotImplemented { .. } | Error::NotSupported { .. }) => return Ok(Race::OneWinner),
            // A repeated request is refused for its own first effect: only what is stored tells.
            Ok(_) | Err(Error::Precondition { .. } | Error::AlreadyExists { .. }) => {}
            Err(error) => return Err(error),
        }
        if self.store.get(key).await?.bytes().await? != Bytes::from_static(b"second") {
            return Ok(Race::Undecided);
        }
        match update(b"third").await {
            Err(Error::Precondition { .. }) => Ok(Race::OneWinner),
            Ok(_) => Ok(Race::Broken("a put with a stale `If-Match` was not refused".to_owned())),
            Err(error) => Err(error),
        }
    }

    async fn clean_up(&self) {
        let races = (0..ROUNDS).flat_map(|round| (0..KEYS).map(move |number| self.race_key(round, number)));
        let updates = (0..ROUNDS).map(|round| self.update_key(round));
        let keys: Vec<_> = races.chain(updates).chain([self.key("contact")]).collect();
        // Only what is there: most rounds never ran, and a delete of nothing is not free.
        let listed = self.store.list(Some(&Path::from("_tailwater/probe")));
        let ours = listed.filter_map(|object| async { object.ok().map(|object| object.location) });
        let ours = ours.filter(|location| futures::future::ready(keys.contains(location)));
        let delete = ours.for_each_concurrent(16, |location| async move {
            if let Err(error) = self.store.delete(&location).await {
                tracing::debug!(%location, %error, "object of the probe not removed");
            }
        });
        if timeout(CLEANUP_TIMEOUT, delete).await.is_err() {
            tracing::warn!(url = self.url, prefix = self.prefix, "objects of the probe may be left behind");
        }
    }

    fn key(&self, name: &str) -> Path {
        Path::from(format!("{}-{name}", self.prefix))
    }

    fn race_key(&self, round: usize, number: usize) -> Path {
        self.key(&format!("{round}-{number:02}"))
    }

    fn update_key(&self, round: usize) -> Path {
        self.key(&format!("update-{round}"))
    }

    async fn pause(&self, lake: &Lake, round: usize) {
        retry::back_off(&lake.ambient, u32::try_from(round).unwrap_or(u32::MAX)).await;
    }

    fn undecided(&self, what: &str) -> LakeError {
        let reason = format!("{what} stayed undecided in {ROUNDS} rounds, since requests failed; try again later");
        LakeError::StoreUnreachable { url: self.url.clone(), reason, source: None }
    }

    fn unsafe_store(&self, reason: impl Into<String>) -> LakeError {
        LakeError::UnsafeStore { url: self.url.clone(), reason: reason.into() }
    }

    fn silent(&self, after: Duration) -> LakeError {
        LakeError::StoreUnreachable {
            url: self.url.clone(),
            reason: format!(
                "it did not answer within {} s; check the endpoint, the network, and that credentials are set",
                after.as_secs()
            ),
            source: None,
        }
    }

    fn explain(&self, error: Error) -> LakeError {
        let (url, bucket) = (self.url.clone(), bucket_of(&self.url));
        let refused = |reason: String, error: Error| LakeError::StoreRefused {
            url: url.clone(),
            reason,
            source: Some(error.into()),
        };
        match error {
            error @ Error::NotFound { .. } if error.to_string().contains("NoSuchBucket") => {
                refused(format!("{bucket} does not exist; create it"), error)
            }
            // Some servers answer "not found" to a key they do not know.
            error @ Error::NotFound { .. } => {
                refused(format!("it does not know {bucket} or the access key; check both"), error)
            }
            error if error.to_string().contains("RequestTimeTooSkewed") => refused(
                "the clock of this machine is too far from the store's; set it, and keep it set (NTP)".to_owned(),
                error,
            ),
            error @ Error::PermissionDenied { .. } => refused(
                format!("the credentials may not list, read, write and delete in {bucket}; check keys and policy"),
                error,
            ),
            error @ Error::Unauthenticated { .. } => refused(
                "the credentials are not valid; check the access key, the secret and the clock".to_owned(),
                error,
            ),
            error @ (Error::NotImplemented { .. } | Error::NotSupported { .. }) => {
                refused("it has no conditional puts; use a store that honours `If-None-Match`".to_owned(), error)
            }
            error => LakeError::StoreUnreachable {
                url,
                reason: "check the endpoint and the network".to_owned(),
                source: Some(error.into()),
            },
        }
    }
}

fn bucket_of(url: &str) -> String {
    match url::Url::parse(url).ok().as_ref().and_then(url::Url::host_str) {
        Some(bucket) => format!("bucket `{bucket}`"),
        None => "the folder".to_owned(),
    }
}

fn body(racer: usize) -> String {
    format!("racer {racer}")
}

fn answer(put: Result<PutResult, Error>) -> Answer {
    match put {
        Ok(_) => Answer::Won,
        Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Answer::Lost,
        Err(error) => Answer::Unknown(error),
    }
}

fn judge(winners: &[usize], unknown: bool, stored: Option<&[u8]>) -> Race {
    match (winners, stored) {
        ([], _) => Race::Undecided,
        ([_, _, ..], _) => Race::Broken(format!("{} of {RACERS} racing creators of one object won", winners.len())),
        ([winner], Some(stored)) if stored == body(*winner).as_bytes() => Race::OneWinner,
        ([_], Some(_)) => {
            let who = if unknown { "a request that failed" } else { "a creator that lost" };
            Race::Broken(format!("the winner's object was overwritten by {who}"))
        }
        ([_], None) => Race::Undecided,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_for_the_clock_names_the_clock() {
        let (store, url) = (Arc::new(object_store::memory::InMemory::new()), "s3://lake/".to_owned());
        let probe = Probe { store, url, prefix: String::new() };
        let refusal = |code: &str| {
            let source = format!("<Error><Code>{code}</Code></Error>").into();
            probe.explain(Error::PermissionDenied { path: "probe".to_owned(), source }).to_string()
        };
        assert!(refusal("RequestTimeTooSkewed").contains("the clock of this machine"));
        assert!(refusal("AccessDenied").contains("may not list, read, write and delete"));
    }

    #[test]
    fn a_race_is_won_by_exactly_one_whose_object_stays() {
        assert_eq!(judge(&[3], false, Some(b"racer 3")), Race::OneWinner);
        assert_eq!(judge(&[], true, Some(b"racer 3")), Race::Undecided);
        assert!(matches!(judge(&[1, 3], false, Some(b"racer 3")), Race::Broken(_)));
        assert!(matches!(judge(&[1], false, Some(b"racer 3")), Race::Broken(_)));
        assert!(matches!(judge(&[1], true, Some(b"racer 3")), Race::Broken(_)));
    }
}
