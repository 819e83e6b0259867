//! `tailwater verify` as a user runs it: over the topic and over HTTP, killed half-way, and with an independent reader.

use std::{
    fs,
    path::Path,
    process::Output,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use testkit::{
    ports::free_port,
    process::{Process, Program},
    python, repository,
};

use crate::deployment::{Deployment, START_LIMIT};

const ROWS: u64 = 3000;

/// A folder with a config, and perhaps `up` running in it.
struct Project {
    folder: tempfile::TempDir,
    port: u16,
}

impl Project {
    fn new() -> Result<Self> {
        let project = Self { folder: tempfile::tempdir()?, port: free_port()? };
        let config = format!(
            "[http]\nlisten = \"127.0.0.1:{}\"\n\n[storage]\nflush_age = \"200ms\"\nquiet_age = \"2s\"\n\n[ingestion]\ncheckpoint_every = \"1s\"\n",
            project.port
        );
        fs::write(project.folder.path().join("tailwater.toml"), config)?;
        Ok(project)
    }

    fn up(&self) -> Result<Process> {
        let log = self.folder.path().join("up.log");
        let mut process = Program::named("tailwater")?.arg("up").in_folder(self.folder.path()).log_to(log).start()?;
        process.wait_until_ready(&format!("http://127.0.0.1:{}/readyz?verbose", self.port), START_LIMIT)?;
        Ok(process)
    }

    fn verify(&self, arguments: &[&str]) -> Result<Output> {
        Program::named("tailwater")?.arg("verify").args(arguments).in_folder(self.folder.path()).run()
    }

    fn check(&self, arguments: &[&str]) -> Result<(bool, Value)> {
        let output = self.verify(&[&["check", "-o", "json"], arguments].concat())?;
        let report = serde_json::from_slice(&output.stdout).with_context(|| text(&output))?;
        Ok((output.status.success(), report))
    }
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn finding<'a>(report: &'a Value, id: &str) -> &'a Value {
    let found = report["invariants"].as_array().and_then(|all| all.iter().find(|finding| finding["id"] == id));
    found.unwrap_or(&Value::Null)
}

fn reader_commands() -> Result<Option<[String; 2]>> {
    let Some(python) = python::interpreter()? else { return Ok(None) };
    let script = repository("pipelines/verify/readers/reader.py");
    Ok(Some(["deltalake", "duckdb"].map(|engine| format!("{} {} {engine}", python.display(), script.display()))))
}

#[test]
fn rows_sent_over_the_topic_and_over_http_are_all_accounted_for() -> Result<()> {
    let Some([deltalake, duckdb]) = reader_commands()? else { return Ok(()) };
    let project = Project::new()?;
    let rows = ROWS.to_string();
    let to_topic = ["produce", "--ledger", "topic.ledger", "--rate", "0", "--bad-rate", "0.05", "--rows", &rows];
    let sent = project.verify(&to_topic)?;
    ensure!(sent.status.success(), "nobody has the embedded log open yet: {}", text(&sent));

    let mut up = project.up()?;
    let refused = project.verify(&to_topic)?;
    assert!(!refused.status.success() && text(&refused).contains("--over http"), "{}", text(&refused));
    let over_http = ["produce", "--ledger", "http.ledger", "--over", "http", "--rate", "0", "--bad-rate", "0.05"];
    let sent = project.verify(&[&over_http[..], &["--rows", &rows, "--producer", "h", "--seed", "8"]].concat())?;
    ensure!(sent.status.success(), "{}", text(&sent));

    let ledgers = ["--ledger", "topic.ledger", "--ledger", "http.ledger"];
    let (ok, report) = project.check(&[&ledgers[..], &["--reader-command", &deltalake]].concat())?;
    assert!(ok && report["ok"] == true, "{report:#}\n{}", up.log());
    assert_eq!((&report["lost"], &report["doubled"]), (&0.into(), &0.into()));
    assert_eq!((&report["sent"], &report["acknowledged"]), (&(2 * ROWS).into(), &(2 * ROWS).into()));
    let bad = finding(&report, "Q")["checked"].as_u64().unwrap_or(0);
    assert!((200..400).contains(&bad), "{bad} bad rows");
    assert_eq!(finding(&report, "L")["checked"], 2 * ROWS - bad);
    assert_eq!(finding(&report, "I")["checked"], 2 * ROWS - bad);
    assert!(finding(&report, "A")["checked"].as_u64().unwrap_or(0) > 2 * ROWS);
    assert!(finding(&report, "T")["checked"].as_u64().unwrap_or(0) > 20);
    let (ok, report) = project.check(&[&ledgers[..], &["--reader-command", &duckdb]].concat())?;
    assert!(ok, "{report:#}");

    let (ok, report) = project.check(&["--ledger", "topic.ledger"])?;
    assert!(!ok && finding(&report, "P")["violations"].as_u64() > Some(2500), "the other's rows are strangers");
    let (ok, report) = project.check(&["--ledger", "topic.ledger", "--other-runs"])?;
    assert!(ok, "{report:#}");
    claims_that_are_not_true_are_found(&project)?;
    up.terminate()?;
    up.wait(Duration::from_secs(20))?;
    Ok(())
}

/// A ledger that says more was acknowledged than is there.
fn claims_that_are_not_true_are_found(project: &Project) -> Result<()> {
    let path = project.folder.path().join("http.ledger");
    let ledger = fs::read_to_string(&path)?;
    let batches = ledger.lines().filter(|line| line.starts_with("{\"f\":")).count();
    let claim = format!("{{\"i\":{batches},\"at\":1,\"n\":1,\"r\":[1000,0]}}\n{{\"f\":{batches},\"x\":\"a\"}}\n");
    fs::write(project.folder.path().join("claim.ledger"), ledger + &claim)?;
    let (ok, report) = project.check(&["--ledger", "topic.ledger", "--ledger", "claim.ledger"])?;
    assert!(!ok && report["ok"] == false && report["lost"] == 1, "{report:#}");
    let example = &finding(&report, "L")["examples"][0];
    assert_eq!((&example["key"], &example["seq"], &example["producer"]), (&1000.into(), &0.into(), &"h".into()));
    Ok(())
}

#[test]
fn producers_and_services_that_are_killed_lose_and_double_nothing() -> Result<()> {
    let project = Project::new()?;
    let mut up = project.up()?;
    let producing = |seconds: &str| -> Result<Process> {
        Program::named("tailwater")?
            .args(["verify", "produce", "--ledger", "run.ledger", "--over", "http", "--rate", "3000", "--for", seconds])
            .in_folder(project.folder.path())
            .log_to(project.folder.path().join("produce.log"))
            .start()
    };
    let mut first = producing("60s")?;
    wait_for_batches(&project.folder.path().join("run.ledger"), 20)?;
    first.kill()?;

    let mut second = producing("6s")?;
    let before = batches(&project.folder.path().join("run.ledger"));
    wait_for_batches(&project.folder.path().join("run.ledger"), before + 20)?;
    up.kill()?;
    up = project.up()?;
    let ended = second.wait(Duration::from_secs(60))?;
    assert!(ended.success(), "{}", second.log());

    let (ok, report) = project.check(&["--ledger", "run.ledger"])?;
    assert!(ok, "{report:#}\n{}", up.log());
    assert_eq!((&report["lost"], &report["doubled"]), (&0.into(), &0.into()));
    assert!(report["acknowledged"].as_u64() > Some(1000), "{report:#}");
    Ok(())
}

#[test]
fn several_producers_may_start_at_once_where_the_pipeline_is_not_there_yet() -> Result<()> {
    let project = Project::new()?;
    let up = project.up()?;
    let names = ["a", "b", "c", "d"];
    let start = |name: &&str| {
        let ledger = format!("{name}.ledger");
        Program::named("tailwater")?
            .args(["verify", "produce", "--over", "http", "--rate", "0", "--rows", "300", "--producer", name])
            .args(["--ledger", &ledger])
            .in_folder(project.folder.path())
            .log_to(project.folder.path().join(format!("{name}.log")))
            .start()
    };
    let producers = names.iter().map(start).collect::<Result<Vec<_>>>()?;
    for mut producer in producers {
        let ended = producer.wait(START_LIMIT)?;
        assert!(ended.success(), "{}", producer.log());
    }
    let ledgers = names.map(|name| format!("{name}.ledger"));
    let ledgers: Vec<&str> = ledgers.iter().flat_map(|ledger| ["--ledger", ledger.as_str()]).collect();
    let (ok, report) = project.check(&ledgers)?;
    assert!(ok && report["acknowledged"] == 1200, "{report:#}\n{}", up.log());
    Ok(())
}

fn batches(ledger: &Path) -> usize {
    fs::read_to_string(ledger).unwrap_or_default().lines().filter(|line| line.starts_with("{\"f\":")).count()
}

fn wait_for_batches(ledger: &Path, wanted: usize) -> Result<()> {
    let started = Instant::now();
    while batches(ledger) < wanted {
        ensure!(started.elapsed() < START_LIMIT, "{} of {wanted} batches after {START_LIMIT:?}", batches(ledger));
        // The producer is another process: there is no event to await.
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

#[test]
fn rows_on_kafka_and_s3_are_accounted_for_while_a_watch_sees_nothing_go_back() -> Result<()> {
    let Some(mut deployment) = Deployment::prepare()? else { return Ok(()) };
    let Some([deltalake, _]) = reader_commands()? else { return Ok(()) };
    deployment.start_all()?;
    deployment.tailwater("", &["verify", "produce", "--ledger", "a.ledger", "--rows", "1"])?;
    deployment.wait_until_ready()?;
    let mut watch = Program::named("tailwater")?
        .args(["--config", "tailwater.toml", "--url", &deployment.url("analysis"), "verify", "watch", "--for", "8s"])
        .args(["-o", "json"])
        .in_folder(deployment.folder.path())
        .log_to(deployment.folder.path().join("watch.log"))
        .start()?;
    deployment.tailwater("", &["verify", "produce", "--ledger", "a.ledger", "--for", "5s", "--rate", "2000"])?;
    let over_http =
        ["verify", "produce", "--ledger", "b.ledger", "--over", "http", "--retry", "--for", "3s", "--rate", "2000"];
    deployment.tailwater("ingestion", &over_http)?;
    let check = ["verify", "check", "--ledger", "a.ledger", "--ledger", "b.ledger", "-o", "json"];
    let printed = deployment
        .tailwater("analysis", &[&check[..], &["--reader-command", &deltalake]].concat())
        .with_context(|| deployment.logs())?;
    let report: Value = serde_json::from_str(&printed)?;
    assert!(report["acknowledged"].as_u64() > Some(500), "{report:#}");
    assert_eq!((&report["lost"], &report["doubled"], &report["phantoms"]), (&0.into(), &0.into(), &0.into()));
    let ended = watch.wait(Duration::from_secs(30))?;
    assert!(ended.success(), "{}", watch.log());
    Ok(())
}
