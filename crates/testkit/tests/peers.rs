//! Each peer really starts on this machine, survives what it must survive, and dies with the test.
//!
//! These tests also fill the cache of peers, so that the suites that come later find it warm.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use testkit::{Kafka, Program, VersityGateway, python};

/// Asks for the supported API versions (key 18, version 0): the answer carries our correlation id and error code 0.
fn answers_kafka_requests(brokers: &str) -> bool {
    let request = [0, 0, 0, 10, 0, 18, 0, 0, 0, 0, 0, 7, 0xff, 0xff];
    let Ok(mut stream) = TcpStream::connect(brokers) else {
        return false;
    };
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a time limit can be set");
    let mut head = [0_u8; 10];
    stream.write_all(&request).is_ok() && stream.read_exact(&mut head).is_ok() && head[4..] == [0, 0, 0, 7, 0, 0]
}

#[test]
fn a_broker_serves_again_on_the_same_port_after_a_clean_stop_and_after_a_kill() {
    let Some(mut kafka) = Kafka::start().expect("the broker starts") else {
        return;
    };
    let brokers = kafka.brokers();
    assert!(answers_kafka_requests(&brokers));

    kafka.stop().expect("the broker stops");
    assert!(!kafka.is_running() && !answers_kafka_requests(&brokers));
    kafka.restart().expect("the broker starts again");
    assert!(answers_kafka_requests(&brokers));

    kafka.kill().expect("the broker is killed");
    assert!(!answers_kafka_requests(&brokers));
    kafka.restart().expect("the broker starts after a kill");
    assert_eq!(kafka.brokers(), brokers);
    assert!(answers_kafka_requests(&brokers));
    assert!(kafka.usage().expect("it runs").resident_bytes > 0);
}

#[test]
fn two_brokers_run_side_by_side() {
    let (Some(one), Some(other)) = (Kafka::start().expect("one starts"), Kafka::start().expect("another starts"))
    else {
        return;
    };
    assert_ne!(one.brokers(), other.brokers());
    assert!(answers_kafka_requests(&one.brokers()) && answers_kafka_requests(&other.brokers()));
}

#[test]
fn the_shared_broker_is_one_and_the_same() {
    let (Some(first), Some(second)) = (Kafka::shared().expect("it starts"), Kafka::shared().expect("it is there"))
    else {
        return;
    };
    assert!(std::ptr::eq(first, second));
    assert!(answers_kafka_requests(&first.brokers()));
}

const WRITE_A_TABLE: &str = r#"
import json, sys
import pyarrow as pa
from decimal import Decimal
from deltalake import write_deltalake
address, options = sys.argv[1], json.loads(sys.argv[2])
rows = pa.table({
    "id": pa.array([1, 2, None], pa.int64()),
    "amount": pa.array([Decimal("1.25"), Decimal("2.50"), Decimal("-0.75")], pa.decimal128(12, 2)),
    "name": ["a", "b", None],
})
write_deltalake(address, rows, storage_options=options)
write_deltalake(address, rows, mode="append", storage_options=options)
"#;

/// What both readers must see in the table that the script above writes.
fn assert_table_is_read_back(table: &str, options: &BTreeMap<String, String>) {
    let upper: BTreeMap<String, &String> = options
        .iter()
        .map(|(key, value)| {
            (if key == "aws_endpoint" { "AWS_ENDPOINT_URL".to_owned() } else { key.to_uppercase() }, value)
        })
        .collect();
    let written = python::run(WRITE_A_TABLE, &[table, &serde_json::to_string(&upper).expect("a map of texts")]);
    if written.expect("the table is written").is_none() {
        return;
    }
    let tables =
        BTreeMap::from([("shop.t".to_owned(), table.to_owned()), ("absent".to_owned(), format!("{table}-absent"))]);
    let facts = python::read_delta(&tables, options).expect("both readers agree").expect("python was there just now");
    assert_eq!(facts.keys().collect::<Vec<_>>(), ["shop.t"], "a table that does not exist is left out");
    let seen = &facts["shop.t"];
    assert_eq!((seen.version, seen.rows), (1, 6));
    assert_eq!(seen.sums, BTreeMap::from([("id".to_owned(), "6".to_owned()), ("amount".to_owned(), "6".to_owned())]));

    let only = BTreeMap::from([("shop.t".to_owned(), table.to_owned())]);
    let sql = "SELECT name, count(*) AS n, sum(amount) AS total FROM shop.t GROUP BY name ORDER BY name";
    let answer = python::query_delta(&only, options, sql).expect("the query runs").expect("python was there just now");
    assert_eq!(answer, "name,n,total\na,2,2.50\nb,2,5.00\n,2,-1.50\n");
}

#[test]
fn both_readers_read_a_local_table() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    assert_table_is_read_back(&folder.path().join("t").display().to_string(), &BTreeMap::new());
}

#[test]
fn both_readers_read_a_table_on_the_gateway_and_a_kill_loses_no_object() {
    let Some(mut gateway) = VersityGateway::start().expect("the gateway starts") else {
        return;
    };
    let table = format!("{}/t", gateway.url());
    assert_table_is_read_back(&table, &gateway.options());

    gateway.kill().expect("the gateway is killed");
    assert!(TcpStream::connect(gateway.endpoint().trim_start_matches("http://")).is_err());
    gateway.restart().expect("the gateway starts again");
    let tables = BTreeMap::from([("t".to_owned(), table)]);
    if let Some(facts) = python::read_delta(&tables, &gateway.options()).expect("both readers agree") {
        assert_eq!(facts["t"].rows, 6);
    }
}

#[test]
fn readers_that_disagree_with_the_request_say_so() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::fs::create_dir(folder.path().join("_delta_log")).expect("a folder can be made");
    std::fs::write(folder.path().join("_delta_log/00000000000000000000.json"), "not json").expect("a file can be made");
    let tables = BTreeMap::from([("broken".to_owned(), folder.path().display().to_string())]);
    match python::read_delta(&tables, &BTreeMap::new()) {
        Ok(None) => {}
        Ok(Some(facts)) => panic!("a broken log was read: {facts:?}"),
        Err(error) => assert!(format!("{error:#}").contains("python"), "{error:#}"),
    }
}

/// The name of the test below that is run once more, in a process of its own that kills itself.
const DOOMED: &str = "a_process_started_by_a_test_that_is_killed_dies_too";

#[test]
fn a_process_started_by_a_test_that_is_killed_dies_too() {
    if let Ok(note) = std::env::var("TESTKIT_DOOMED") {
        let sleeper = Program::at("sleep").arg("600").start().expect("sleep starts");
        std::fs::write(note, sleeper.pid().to_string()).expect("the note is written");
        // No destructor runs: only the watchdog is left to end the sleeper.
        Command::new("sh").args(["-c", r#"kill -9 "$0""#, &std::process::id().to_string()]).status().ok();
        unreachable!("this process was killed");
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let note = folder.path().join("pid");
    let ended = Command::new(std::env::current_exe().expect("this test has a path"))
        .args(["--exact", DOOMED, "--test-threads=1"])
        .env("TESTKIT_DOOMED", &note)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .expect("this test runs itself");
    assert!(!ended.success());
    let sleeper = std::fs::read_to_string(note).expect("the sleeper was started");
    let deadline = Instant::now() + Duration::from_secs(10);
    while is_alive(&sleeper) {
        assert!(Instant::now() < deadline, "the sleeper {sleeper} outlived its test");
        std::thread::yield_now();
    }
}

/// A process that has ended but was not reaped by whoever inherited it counts as dead.
fn is_alive(pid: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit_once(')').is_some_and(|(_, fields)| !fields.trim_start().starts_with('Z')))
}

#[test]
fn a_program_that_ends_early_is_an_error_at_once_with_its_log() {
    let mut process =
        Program::at("sh").args(["-c", "echo no such flag >&2; exit 64"]).start().expect("the shell starts");
    let started = Instant::now();
    let error = process.wait_until_ready("http://127.0.0.1:1/readyz", Duration::from_secs(60)).expect_err("it ended");
    assert!(started.elapsed() < Duration::from_secs(30));
    assert!(format!("{error:#}").contains("no such flag"), "{error:#}");
    let status = process.wait(Duration::from_secs(1)).expect("it has ended");
    assert_eq!(status.code(), Some(64));
}

#[test]
fn terminate_lets_a_program_choose_its_exit_code_and_kill_does_not() {
    let script = "trap 'exit 7' TERM; echo ready; while :; do sleep 0.01; done";
    let mut polite = Program::at("sh").args(["-c", script]).start().expect("the shell starts");
    polite.wait_for_log("ready", Duration::from_secs(10)).expect("it is up");
    polite.terminate().expect("a signal can be sent");
    assert_eq!(polite.wait(Duration::from_secs(10)).expect("it ends").code(), Some(7));

    let mut killed = Program::at("sh").args(["-c", script]).start().expect("the shell starts");
    killed.wait_for_log("ready", Duration::from_secs(10)).expect("it is up");
    killed.kill().expect("it can be killed");
    assert_eq!(killed.wait(Duration::from_secs(1)).expect("it has ended").code(), None);
}
