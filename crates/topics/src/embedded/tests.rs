#![allow(clippy::unwrap_used)]

use std::io::Error;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use futures::FutureExt;
use tempfile::TempDir;

use crate::contract::{self, Subject, run_all};
use crate::{Message, Retention};

use super::*;

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn open(folder: &Path) -> EmbeddedLog {
    EmbeddedLog::open(folder, EmbeddedOptions::default()).unwrap()
}

async fn topic_of(log: &EmbeddedLog, settings: TopicSettings) -> TopicName {
    let topic = TopicName::new("a").unwrap();
    log.create(&topic, &settings).await.unwrap();
    topic
}

async fn append(log: &EmbeddedLog, topic: &TopicName, payload: impl Into<bytes::Bytes>) -> Receipt {
    let message = NewMessage::of(payload);
    log.appender().append(topic, 0, message).await.unwrap()
}

async fn read_all(log: &EmbeddedLog, topic: &TopicName, from: u64) -> Vec<Message> {
    let end = log.span(topic, 0).await.unwrap().end;
    let mut reader = log.reader(topic, 0, from).await.unwrap();
    let mut all: Vec<Message> = Vec::new();
    while all.last().map_or(from, |last| last.offset + 1) < end {
        all.extend(reader.read(1 << 20).await.unwrap());
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_embedded_log_keeps_the_contract() {
    let folders = folder();
    let number = AtomicI64::new(0);
    run_all(|| {
        let path = folders.path().join(number.fetch_add(1, Ordering::Relaxed).to_string());
        let log = open(&path);
        let subject = Subject::of(log.clone()).with_cut(move |topic, partition, before| {
            let log = log.clone();
            async move { log.trim(&topic, partition, before).await.unwrap() }
        });
        std::future::ready(subject)
    })
    .await;
}

#[tokio::test]
async fn what_was_appended_is_there_after_opening_again() {
    let folder = folder();
    let log = open(folder.path());
    let settings = TopicSettings {
        partitions: 2,
        max_message_bytes: 5000,
        retention: Retention { bytes: Some(1 << 30), age: Some(Duration::from_secs(3600)) },
    };
    let topic = topic_of(&log, settings).await;
    for text in ["one", "two", "three"] {
        append(&log, &topic, text).await.await.unwrap();
    }
    log.trim(&topic, 0, 1).await.unwrap();
    let before = log.describe(&topic).await.unwrap();
    drop(log);

    let log = open(folder.path());
    assert_eq!(log.describe(&topic).await.unwrap(), before);
    assert_eq!(log.span(&topic, 0).await.unwrap(), Span { start: 1, end: 3 });
    assert_eq!(log.span(&topic, 1).await.unwrap(), Span { start: 0, end: 0 });
    assert_eq!(append(&log, &topic, "four").await.await.unwrap(), 3);
    let texts: Vec<_> = read_all(&log, &topic, 1).await.into_iter().map(|m| m.payload).collect();
    assert_eq!(texts, ["two", "three", "four"]);
    let too_large = log.appender().append(&topic, 0, NewMessage::of(vec![0; 5001])).await;
    assert!(matches!(too_large, Err(TopicError::TooLarge { limit: 5000, .. })));
}

#[tokio::test]
async fn closing_writes_what_is_queued() {
    let folder = folder();
    let log = open(folder.path());
    let topic = topic_of(&log, TopicSettings::default()).await;
    for number in 0..1000 {
        drop(append(&log, &topic, number.to_string()).await);
    }
    drop(log);
    let log = open(folder.path());
    assert_eq!(log.span(&topic, 0).await.unwrap().end, 1000);
}

#[tokio::test]
async fn a_payload_of_64_mebibytes_passes_a_smaller_limit_alone() {
    let folder = folder();
    let options = EmbeddedOptions { max_inflight_bytes: 1 << 20, ..EmbeddedOptions::default() };
    let log = EmbeddedLog::open(folder.path(), options).unwrap();
    let settings = TopicSettings { max_message_bytes: 80 << 20, ..TopicSettings::default() };
    let topic = topic_of(&log, settings).await;
    let large: bytes::Bytes = (0..64u32 << 20).map(|i| (i % 253) as u8).collect();
    append(&log, &topic, "before").await.await.unwrap();
    assert_eq!(append(&log, &topic, large.clone()).await.await.unwrap(), 1);
    assert_eq!(append(&log, &topic, "after").await.await.unwrap(), 2);
    let all = read_all(&log, &topic, 0).await;
    assert!(all[1].payload == large);
}

#[tokio::test]
async fn a_second_opener_hears_who_has_the_log() {
    let folder = folder();
    let log = open(folder.path());
    let error = EmbeddedLog::open(folder.path(), EmbeddedOptions::default()).unwrap_err();
    match &error {
        TopicError::InUse { pid, .. } => assert_eq!(*pid, std::process::id()),
        other => panic!("expected a log in use, found {other:?}"),
    }
    assert!(error.to_string().ends_with("stop it, or use its HTTP address"), "{error}");
    drop(log);
    open(folder.path());
}

#[test]
fn a_file_in_the_way_is_named_with_what_to_do() {
    let folder = folder();
    let path = folder.path().join("log");
    std::fs::write(&path, "not a folder").unwrap();
    let error = EmbeddedLog::open(&path, EmbeddedOptions::default()).unwrap_err();
    assert!(error.to_string().contains("a file is in its way"), "{error}");
    let below = EmbeddedLog::open(path.join("deeper"), EmbeddedOptions::default()).unwrap_err();
    assert!(below.to_string().contains("deeper"), "{below}");
    assert!(below.to_string().contains("a file is in its way"), "{below}");
}

#[test]
fn a_folder_that_may_not_be_written_is_named_with_what_to_do() {
    // Also holds for the superuser, who may write into every ordinary folder.
    let path = Path::new("/proc/tailwater/log");
    let error = EmbeddedLog::open(path, EmbeddedOptions::default()).unwrap_err();
    assert!(error.to_string().contains("`/proc/tailwater/log`"), "{error}");
    let denied = cannot_open(path, ErrorKind::PermissionDenied.into());
    assert!(denied.to_string().contains("make it writable"), "{denied}");
}

#[test]
fn a_file_that_is_no_log_is_left_alone_and_named() {
    let folder = folder();
    std::fs::write(folder.path().join(FILE), "something else entirely".repeat(1000)).unwrap();
    let error = EmbeddedLog::open(folder.path(), EmbeddedOptions::default()).unwrap_err();
    assert!(error.to_string().contains("move the file away"), "{error}");
}

#[tokio::test]
async fn retention_by_bytes_keeps_at_least_the_bytes_it_promises() {
    let folder = folder();
    let options = EmbeddedOptions { trim_every: Duration::ZERO, ..EmbeddedOptions::default() };
    let log = EmbeddedLog::open(folder.path(), options).unwrap();
    let retention = Retention { bytes: Some(10_000), age: None };
    let topic = topic_of(&log, TopicSettings { retention, ..TopicSettings::default() }).await;
    for _ in 0..50 {
        append(&log, &topic, vec![0; 1000]).await.await.unwrap();
    }
    // Retention runs on the thread that answers this call, after what came before it.
    log.trim(&topic, 0, 0).await.unwrap();
    append(&log, &topic, "last").await.await.unwrap();
    log.trim(&topic, 0, 0).await.unwrap();
    let Span { start, end } = log.span(&topic, 0).await.unwrap();
    assert_eq!(end, 51);
    let kept: usize = read_all(&log, &topic, start).await.iter().map(|m| m.payload.len()).sum();
    assert!((9_500..12_000).contains(&kept), "kept {kept} bytes from {start}");
}

#[tokio::test]
async fn retention_by_age_looks_at_when_a_message_was_appended() {
    let folder = folder();
    let now = Arc::new(AtomicI64::new(1_000_000));
    let clock = Arc::clone(&now);
    let options = EmbeddedOptions {
        trim_every: Duration::ZERO,
        clock: Arc::new(move || clock.load(Ordering::SeqCst)),
        ..EmbeddedOptions::default()
    };
    let log = EmbeddedLog::open(folder.path(), options).unwrap();
    let retention = Retention { bytes: None, age: Some(Duration::from_secs(10)) };
    let topic = topic_of(&log, TopicSettings { retention, ..TopicSettings::default() }).await;
    let old_event = NewMessage { timestamp_ms: Some(0), ..NewMessage::of("an old event, appended now") };
    log.appender().append(&topic, 0, old_event).await.unwrap().await.unwrap();
    log.trim(&topic, 0, 0).await.unwrap();
    assert_eq!(log.span(&topic, 0).await.unwrap().start, 0);
    now.store(1_010_000, Ordering::SeqCst);
    append(&log, &topic, "exactly ten seconds later").await.await.unwrap();
    log.trim(&topic, 0, 0).await.unwrap();
    assert_eq!(log.span(&topic, 0).await.unwrap().start, 0);
    now.store(1_010_001, Ordering::SeqCst);
    append(&log, &topic, "later still").await.await.unwrap();
    log.trim(&topic, 0, 0).await.unwrap();
    assert_eq!(log.span(&topic, 0).await.unwrap(), Span { start: 1, end: 3 });
}

#[tokio::test]
async fn a_topic_without_limits_is_never_trimmed() {
    let folder = folder();
    let now = Arc::new(AtomicI64::new(0));
    let clock = Arc::clone(&now);
    let options = EmbeddedOptions {
        trim_every: Duration::ZERO,
        clock: Arc::new(move || clock.fetch_add(1 << 40, Ordering::SeqCst)),
        ..EmbeddedOptions::default()
    };
    let log = EmbeddedLog::open(folder.path(), options).unwrap();
    let topic = topic_of(&log, TopicSettings::default()).await;
    for _ in 0..20 {
        append(&log, &topic, "x").await.await.unwrap();
    }
    log.trim(&topic, 0, 0).await.unwrap();
    assert_eq!(log.span(&topic, 0).await.unwrap(), Span { start: 0, end: 20 });
}

#[tokio::test]
async fn a_reader_that_retention_overtook_hears_of_it() {
    let folder = folder();
    let log = open(folder.path());
    let topic = topic_of(&log, TopicSettings::default()).await;
    let mut reader = log.reader(&topic, 0, 0).await.unwrap();
    for text in ["one", "two", "three"] {
        append(&log, &topic, text).await.await.unwrap();
    }
    log.trim(&topic, 0, 2).await.unwrap();
    let read = reader.read(1).await;
    assert!(matches!(read, Err(TopicError::OffsetGone { requested: 0, start: 2, .. })), "{read:?}");
}

/// A disk that can be full, or broken.
#[derive(Debug)]
struct Disk {
    file: FileBackend,
    full: Arc<AtomicBool>,
    broken: Arc<AtomicBool>,
}

impl StorageBackend for Disk {
    fn len(&self) -> Result<u64, Error> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), Error> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> Result<(), Error> {
        self.check()?;
        self.file.set_len(len)
    }

    fn sync_data(&self) -> Result<(), Error> {
        if self.broken.load(Ordering::SeqCst) {
            return Err(Error::other("the disk is broken"));
        }
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), Error> {
        self.check()?;
        self.file.write(offset, data)
    }
}

impl Disk {
    fn check(&self) -> Result<(), Error> {
        match self.full.load(Ordering::SeqCst) {
            true => Err(ErrorKind::StorageFull.into()),
            false => Ok(()),
        }
    }
}

struct Switches {
    full: Arc<AtomicBool>,
    broken: Arc<AtomicBool>,
}

fn open_on_disk(folder: &Path) -> (EmbeddedLog, Switches) {
    let switches = Switches { full: Arc::default(), broken: Arc::default() };
    let (full, broken) = (Arc::clone(&switches.full), Arc::clone(&switches.broken));
    let log = EmbeddedLog::open_on(folder, EmbeddedOptions::default(), |file| Disk { file, full, broken });
    (log.unwrap(), switches)
}

#[tokio::test]
async fn a_full_disk_makes_appends_wait_and_loses_nothing() {
    let folder = folder();
    let (log, disk) = open_on_disk(folder.path());
    let topic = topic_of(&log, TopicSettings::default()).await;
    append(&log, &topic, "before").await.await.unwrap();
    disk.full.store(true, Ordering::SeqCst);
    let mut waiting = append(&log, &topic, "while full").await;
    let waited = tokio::time::timeout(Duration::from_millis(300), &mut waiting).await;
    assert!(waited.is_err(), "acknowledged although the disk is full");
    assert_eq!(read_all(&log, &topic, 0).await.len(), 1, "reading goes on");
    disk.full.store(false, Ordering::SeqCst);
    assert_eq!(waiting.await.unwrap(), 1);
    assert_eq!(append(&log, &topic, "after").await.await.unwrap(), 2);
    drop(log);
    assert_eq!(read_all(&open(folder.path()), &topic, 0).await.len(), 3);
}

#[tokio::test]
async fn a_log_on_a_full_disk_can_be_closed_and_keeps_what_it_acknowledged() {
    let folder = folder();
    let (log, disk) = open_on_disk(folder.path());
    let topic = topic_of(&log, TopicSettings::default()).await;
    append(&log, &topic, "before").await.await.unwrap();
    disk.full.store(true, Ordering::SeqCst);
    let never = append(&log, &topic, "never").await;
    drop(log);
    let error = never.await.unwrap_err();
    assert!(matches!(error, TopicError::Storage { .. }), "{error:?}");
    let log = open(folder.path());
    assert_eq!(read_all(&log, &topic, 0).await.len(), 1);
    assert_eq!(append(&log, &topic, "after").await.await.unwrap(), 1);
}

#[tokio::test]
async fn a_failed_append_takes_along_everything_behind_it() {
    let folder = folder();
    let (log, disk) = open_on_disk(folder.path());
    let broken = disk.broken;
    let subject = Subject::of(log).with_fail(move |_, _| {
        broken.store(true, Ordering::SeqCst);
        || ()
    });
    contract::a_failed_append_takes_along_everything_behind_it(&subject).await;
}

#[tokio::test]
async fn a_broken_disk_stops_the_log_and_says_so_to_everyone() {
    let folder = folder();
    let (log, disk) = open_on_disk(folder.path());
    let topic = topic_of(&log, TopicSettings::default()).await;
    append(&log, &topic, "before").await.await.unwrap();
    disk.broken.store(true, Ordering::SeqCst);
    let lost = append(&log, &topic, "lost").await.await.unwrap_err();
    assert!(matches!(lost, TopicError::Storage { .. }), "{lost:?}");
    assert!(log.appender().flush().await.is_err());
    let refused = log.appender().append(&topic, 0, NewMessage::of("refused")).await;
    assert!(matches!(refused, Err(TopicError::Storage { .. })), "{refused:?}");
    assert!(matches!(log.broken().await, TopicError::Storage { .. }));
    disk.broken.store(false, Ordering::SeqCst);
    drop(log);
    let log = open(folder.path());
    let found = log.span(&topic, 0).await.unwrap().end;
    assert!((1..=2).contains(&found), "what was not acknowledged may be there or not");
}

#[tokio::test]
async fn appends_wait_at_the_limit_in_bytes() {
    let folder = folder();
    let (log, disk) = open_on_disk(folder.path());
    let topic = topic_of(&log, TopicSettings { max_message_bytes: 64 << 20, ..TopicSettings::default() }).await;
    disk.full.store(true, Ordering::SeqCst);
    let first = append(&log, &topic, vec![0; 40 << 20]).await;
    let appender = log.appender();
    let mut second = appender.append(&topic, 0, NewMessage::of(vec![0; 40 << 20]));
    assert!(second.as_mut().now_or_never().is_none());
    disk.full.store(false, Ordering::SeqCst);
    first.await.unwrap();
    assert_eq!(second.await.unwrap().await.unwrap(), 1);
}

/// Not a test of its own: the part of the next one that needs a process to itself.
#[tokio::test]
async fn child_that_measures_an_idle_log() {
    let Some(folder) = std::env::var_os(CHILD) else {
        return;
    };
    let log = open(Path::new(&folder));
    let topic = topic_of(&log, TopicSettings::default()).await;
    append(&log, &topic, "busy for a moment").await.await.unwrap();
    let mut reader = log.reader(&topic, 0, 1).await.unwrap();
    let before = writer_wake_ups();
    let idle = tokio::time::timeout(Duration::from_secs(2), reader.read(1)).await;
    assert!(idle.is_err());
    assert!(writer_wake_ups() - before <= 2, "the writer woke while idle");
}

/// How often the writer thread of this process has waited for something.
fn writer_wake_ups() -> u64 {
    let mut total = 0;
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let task = task.unwrap().path();
        let name = std::fs::read_to_string(task.join("comm")).unwrap();
        if name.starts_with("topics-embedded") {
            let status = std::fs::read_to_string(task.join("status")).unwrap();
            let line = status.lines().find(|line| line.starts_with("voluntary")).unwrap();
            total += line.split_whitespace().last().unwrap().parse::<u64>().unwrap();
        }
    }
    total
}

const CHILD: &str = "TAILWATER_TOPICS_TEST_CHILD";

fn child(test: &str, folder: &Path) -> Child {
    let this = std::env::current_exe().unwrap();
    Command::new(this)
        .args(["--exact", &format!("embedded::tests::{test}"), "--nocapture", "--test-threads=1"])
        .env(CHILD, folder)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn an_idle_log_uses_no_processor_time() {
    let folder = folder();
    let status = child("child_that_measures_an_idle_log", folder.path()).wait().unwrap();
    assert!(status.success());
}

/// Not a test of its own: what the child does that the next test kills.
#[tokio::test]
async fn child_that_appends_until_it_is_killed() {
    let Some(folder) = std::env::var_os(CHILD) else {
        return;
    };
    use std::io::Write;
    let log = open(Path::new(&folder));
    let topic = topic_of(&log, TopicSettings::default()).await;
    let mut number = log.span(&topic, 0).await.unwrap().end;
    loop {
        let mut receipts = Vec::new();
        for _ in 0..50 {
            let payload = format!("{number} {}", "x".repeat(number as usize % 3000));
            receipts.push((number, append(&log, &topic, payload).await));
            number += 1;
        }
        for (number, receipt) in receipts {
            assert_eq!(receipt.await.unwrap(), number);
            let mut out = std::io::stdout().lock();
            writeln!(out, "acknowledged {number}").unwrap();
            out.flush().unwrap();
        }
    }
}

#[tokio::test]
async fn every_acknowledged_message_survives_kill_9() {
    use std::io::{BufRead, BufReader};
    let folder = folder();
    let mut acknowledged = 0;
    for round in 1..=5u64 {
        let mut child = child("child_that_appends_until_it_is_killed", folder.path());
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let enough = acknowledged + 100 + round * 37;
        // Lines printed before the kill count too: they were acknowledged before it.
        for line in lines.map_while(Result::ok) {
            if let Some(number) = line.strip_prefix("acknowledged ") {
                acknowledged = number.parse::<u64>().unwrap() + 1;
            }
            if acknowledged == enough {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();

        let log = open(folder.path());
        let topic = TopicName::new("a").unwrap();
        let found = read_all(&log, &topic, 0).await;
        assert!(acknowledged >= enough, "the child did not get far: {acknowledged} of {enough}");
        assert!(found.len() as u64 >= acknowledged, "{} of {acknowledged}", found.len());
        for (number, message) in (0u64..).zip(&found) {
            let expected = format!("{number} {}", "x".repeat(number as usize % 3000));
            assert_eq!(message.offset, number);
            assert_eq!(message.payload, expected);
        }
    }
}
