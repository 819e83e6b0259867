//! `tailwater verify produce`: rows out, and what became of each into the ledger.

use std::{path::PathBuf, time::Duration};

use anyhow::{anyhow, ensure};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use reqwest::Method;
use runtime::{
    catalog,
    clock::{Clock as _, SystemClock},
    config::{Config, LogKind},
    edges, signal,
    tasks::Stop,
};
use tokio::time::Instant;
use topics::{Log, TopicName, TopicSettings};

use super::{
    books::Books,
    content::{self, BAD_KEY, Row, Settings},
    definitions::Target,
    ledger::{Begin, Entry, FORMAT, Fate, Intent, Ledger},
    outgoing::{HttpRoad, Parcel, Road, TopicRoad, cannot_append},
    schedule::Plan,
};
use crate::{
    arguments::Global,
    client::{Client, Door},
    commands::{Failure, apply},
    output,
};

/// How long a new source may take to be known where rows are sent.
const KNOWN_WITHIN: Duration = Duration::from_secs(30);
/// How long another producer that applied the pipeline first may take.
const APPLIED_WITHIN: Duration = Duration::from_secs(3);
/// After the end of the time, how long sends under way are waited for.
const LAST_ANSWERS_WITHIN: Duration = Duration::from_secs(60);
/// After a send of which nothing was taken.
const PAUSE: Duration = Duration::from_millis(200);

/// How rows travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Over {
    /// Straight to the source's topic, a message a row
    Topic,
    /// To the HTTP door, several rows a request
    Http,
}

/// What was asked for.
#[derive(Clone, Debug)]
pub(crate) struct Wish {
    pub(crate) ledger: PathBuf,
    pub(crate) target: Target,
    pub(crate) over: Over,
    pub(crate) rate: f64,
    pub(crate) rows: Option<u64>,
    pub(crate) time: Option<Duration>,
    pub(crate) keys: u64,
    pub(crate) seed: u64,
    pub(crate) producer: Option<String>,
    pub(crate) bad_rate: f64,
    pub(crate) bytes: (u32, u32),
    pub(crate) partitions: u32,
    pub(crate) retry: Option<Duration>,
}

pub(crate) async fn run(global: &Global, config: &Config, wish: Wish) -> Result<(), Failure> {
    let (mut ledger, books) = Ledger::open(&wish.ledger)?;
    let mut begin = begin(&wish, books.as_ref())?;
    let road = open_road(global, config, &wish, &begin).await?;
    if let Road::Topic(road) = &road {
        begin.partitions = road.partitions;
    }
    let books = match books {
        Some(mut books) => books.take(Entry::Begin(begin.clone())).map(|()| books)?,
        None => Books::begin(begin.clone()),
    };
    ledger.write(&Entry::Begin(begin))?;
    let stop = Stop::new();
    signal::listen(stop.clone()).map_err(anyhow::Error::from)?;
    let mut session = Session { ledger, books, road, plan: plan(&wish), tally: Tally::default(), stop };
    let bar = progress_bar(&wish);
    let outcome = session.run(&wish, &bar).await;
    bar.finish_and_clear();
    output::note(session.tally.text(&wish));
    outcome.map_err(Failure::from)
}

fn plan(wish: &Wish) -> Plan {
    let Wish { seed, keys, bad_rate, rate, bytes: (_, max_bytes), .. } = *wish;
    Plan { seed, keys, bad_rate, rate, max_bytes }
}

/// The session this run adds to the ledger. Run and producer stay as they are there.
fn begin(wish: &Wish, books: Option<&Books>) -> anyhow::Result<Begin> {
    let (min_bytes, max_bytes) = wish.bytes;
    let (run, producer, partitions) = match books {
        Some(books) => (books.sender.run.clone(), books.sender.producer.clone(), books.begin.partitions),
        None => (
            format!("{:012x}", rand::random::<u64>() >> 16),
            wish.producer.clone().unwrap_or_else(|| "p1".to_owned()),
            wish.partitions,
        ),
    };
    if let Some(wanted) = &wish.producer {
        let ledger = wish.ledger.display();
        ensure!(*wanted == producer, "ledger `{ledger}` is of producer `{producer}`; give `{wanted}` its own");
    }
    if let Some(before) = books.map(|books| &books.begin.target).filter(|before| **before != wish.target.to_string()) {
        anyhow::bail!("ledger `{}` is of source `{before}`; give `{}` its own", wish.ledger.display(), wish.target);
    }
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "._-".contains(letter);
    ensure!(
        !producer.is_empty() && producer.len() <= 64 && producer.chars().all(plain),
        "producer `{producer}` is not 1 to 64 letters, digits or any of . _ -"
    );
    Ok(Begin {
        format: FORMAT,
        run,
        producer,
        settings: Settings { seed: wish.seed, min_bytes, max_bytes },
        keys: wish.keys,
        partitions,
        over: if wish.over == Over::Topic { "topic" } else { "http" }.to_owned(),
        target: wish.target.to_string(),
    })
}

async fn open_road(global: &Global, config: &Config, wish: &Wish, begin: &Begin) -> Result<Road, Failure> {
    match wish.over {
        Over::Topic => open_topic(config, wish, begin).await.map(Road::Topic),
        Over::Http => open_http(global, config, wish, begin).await.map(Road::Http),
    }
}

async fn open_topic(config: &Config, wish: &Wish, begin: &Begin) -> Result<TopicRoad, Failure> {
    let log = edges::open_log(config, "verify").await;
    let log = log.map_err(|error| Failure::unavailable(cannot_append(error)))?;
    let topic = source_topic(log.as_ref(), wish).await?;
    let settings = TopicSettings { partitions: begin.partitions.max(1), ..TopicSettings::default() };
    log.create(&topic, &settings).await.map_err(|error| Failure::unavailable(error.into()))?;
    let there = log.describe(&topic).await.map_err(|error| Failure::unavailable(error.into()))?;
    let there = there.map_or(1, |description| description.partitions);
    // A topic may have fewer than wanted, and may have grown since the ledger began: keys must not move.
    let partitions = begin.partitions.clamp(1, there.max(1));
    Ok(TopicRoad { log, topic, partitions })
}

/// The topic of the source, which is applied where it is not there.
async fn source_topic(log: &dyn Log, wish: &Wish) -> Result<TopicName, Failure> {
    let find = async || -> Result<Option<String>, Failure> {
        let known = catalog::read_all(log).await.map_err(anyhow::Error::from)?;
        let graph = pipeline::compile(&known).map_err(anyhow::Error::from)?;
        let is = |pipeline: &str, name: &str| pipeline == wish.target.pipeline && name == wish.target.source;
        Ok(graph.sources.iter().find(|source| is(&source.pipeline, &source.name)).map(|source| source.topic.clone()))
    };
    let mut topic = find().await?;
    if topic.is_none() {
        let applied = catalog::apply(log, &wish.target.definitions(wish.partitions)).await;
        // Several producers may start at once; one of them applies.
        topic = find().await?;
        match applied {
            Ok(answer) => output::note(answer.plan.trim_end()),
            Err(_) if topic.is_some() => {}
            Err(error) => return Err(anyhow::Error::from(error).into()),
        }
    }
    let topic = topic.ok_or_else(|| anyhow!("source `{}` is not in the catalog after it was applied", wish.target))?;
    Ok(TopicName::try_from(topic).map_err(anyhow::Error::from)?)
}

async fn open_http(global: &Global, config: &Config, wish: &Wish, begin: &Begin) -> Result<HttpRoad, Failure> {
    let client = Client::new(global.url.as_deref(), config, Door::Ingestion);
    if !knows(&client, &wish.target).await? {
        let request = wish.target.definitions(wish.partitions);
        let applied = match (config.log.kind, &global.url) {
            (LogKind::Kafka, None) => apply::apply_to_log(config, &request).await,
            _ => apply::apply_over_http(global, config, &request).await,
        };
        match applied {
            Ok(answer) => output::note(answer.plan.trim_end()),
            // Several producers may start at once; one of them applies.
            Err(failure) => wait_until_known(&client, wish, APPLIED_WITHIN).await.map_err(|_| failure)?,
        }
        wait_until_known(&client, wish, KNOWN_WITHIN).await?;
    }
    let producer = format!("{}.{}", begin.run, begin.producer);
    Ok(HttpRoad { client, target: wish.target.clone(), producer, retry: wish.retry })
}

async fn wait_until_known(client: &Client, wish: &Wish, within: Duration) -> Result<(), Failure> {
    let started = Instant::now();
    while !knows(client, &wish.target).await? {
        if started.elapsed() > within {
            let (door, waited) = (client.base(), within.as_secs());
            return Err(Failure::unavailable(anyhow!(
                "{door} does not know source `{}` after {waited} s",
                wish.target
            )));
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

async fn knows(client: &Client, target: &Target) -> Result<bool, Failure> {
    let answer = client.send(client.short_request(Method::GET, "/v1/sources")).await?;
    let sources: Vec<serde_json::Value> = answer.json().await.map_err(anyhow::Error::from)?;
    Ok(sources.iter().any(|source| source["pipeline"] == *target.pipeline && source["name"] == *target.source))
}

/// One run of the producer.
struct Session {
    ledger: Ledger,
    books: Books,
    road: Road,
    plan: Plan,
    tally: Tally,
    stop: Stop,
}

#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    sent: u64,
    acked: u64,
    unknown: u64,
    failed: u64,
    bad: u64,
}

impl Session {
    async fn run(&mut self, wish: &Wish, bar: &ProgressBar) -> anyhow::Result<()> {
        let started = Instant::now();
        let end = wish.time.map(|time| started + time);
        let last_answers = end.map(|end| end + LAST_ANSWERS_WITHIN);
        while !self.is_done(wish, end) {
            let behind = self.plan.behind(started.elapsed(), self.tally.sent);
            let left = wish.rows.map_or(u64::MAX, |rows| rows - self.tally.sent);
            let rows = self.plan.next(&self.books, self.plan.batch_rows(behind).min(left));
            let fates = self.send(rows, last_answers).await?;
            bar.set_position(self.tally.sent);
            bar.set_message(self.tally.short());
            if fates.iter().all(|fate| !matches!(fate, Fate::Acked(_))) {
                self.rest(Instant::now() + PAUSE, end).await;
            }
            self.rest(started + self.plan.due(self.tally.sent), end).await;
        }
        self.ledger.sync()
    }

    fn is_done(&self, wish: &Wish, end: Option<Instant>) -> bool {
        self.stop.is_stopping()
            || wish.rows.is_some_and(|rows| self.tally.sent >= rows)
            || end.is_some_and(|end| Instant::now() >= end)
    }

    async fn rest(&self, until: Instant, end: Option<Instant>) {
        let until = end.map_or(until, |end| until.min(end));
        tokio::select! {
            () = tokio::time::sleep_until(until) => {}
            () = self.stop.stopped() => {}
        }
    }

    /// Intent on disk, then the rows out, then their fates into the ledger.
    async fn send(&mut self, rows: Vec<(i64, i64)>, until: Option<Instant>) -> anyhow::Result<Vec<Fate>> {
        let batch = self.books.next_batch();
        let good = rows.iter().filter(|(key, _)| *key != BAD_KEY).count();
        let batch_rows = self.road.rows_together(good);
        let intent = Entry::Intent(Intent { batch, at_ms: SystemClock.now_ms(), batch_rows, rows: rows.clone() });
        self.ledger.write(&intent)?;
        runtime::tasks::compute(|| self.ledger.sync())?;
        self.books.take(intent)?;
        let parcels: Vec<Parcel> = rows.iter().map(|&(key, seq)| self.parcel(key, seq, batch)).collect();
        let fates = self.road.send(batch, &parcels, until).await;
        // On disk with the next intent, or at the end: until then these rows count as of unknown fate.
        let entry = Entry::Fates { batch, fates: fates.clone() };
        self.ledger.write(&entry)?;
        self.books.take(entry)?;
        self.tally.add(&rows, &fates);
        Ok(fates)
    }

    fn parcel(&self, key: i64, seq: i64, batch: u64) -> Parcel {
        let text = match key {
            BAD_KEY => content::bad_row(&self.books.sender, seq),
            key => {
                self.books.with_row(key, seq, u32::try_from(batch).unwrap_or(u32::MAX), |row: &Row<'_>| row.to_json())
            }
        };
        Parcel { key, seq, text }
    }
}

impl Tally {
    fn add(&mut self, rows: &[(i64, i64)], fates: &[Fate]) {
        self.sent += rows.len() as u64;
        self.bad += rows.iter().filter(|(key, _)| *key == BAD_KEY).count() as u64;
        for fate in fates {
            match fate {
                Fate::Acked(_) => self.acked += 1,
                Fate::Unknown => self.unknown += 1,
                Fate::Failed => self.failed += 1,
            }
        }
    }

    fn short(&self) -> String {
        format!("{} unknown, {} failed", self.unknown, self.failed)
    }

    fn text(&self, wish: &Wish) -> String {
        let Self { sent, acked, unknown, failed, bad } = self;
        format!(
            "{sent} rows sent to `{}` ({bad} of them bad on purpose): {acked} acknowledged, {unknown} of unknown fate, \
             {failed} failed; check them with\n  tailwater verify check --ledger {}",
            wish.target,
            wish.ledger.display()
        )
    }
}

/// A bar on a terminal, nothing elsewhere.
fn progress_bar(wish: &Wish) -> ProgressBar {
    let by_time = wish.time.filter(|_| wish.rate > 0.0).map(|time| (time.as_secs_f64() * wish.rate) as u64);
    let bar = wish.rows.or(by_time).map_or_else(ProgressBar::no_length, ProgressBar::new);
    bar.set_draw_target(ProgressDrawTarget::stderr());
    let template = "{prefix:16} [{bar:30}] {pos}/{len} rows {per_sec} {msg}";
    bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_prefix(wish.target.to_string());
    bar
}
