//! The command line by itself: what a newcomer types first, and what it says when something is wrong.

use std::{
    fs,
    net::TcpListener,
    process::{Command, Output, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result};
use testkit::{
    http,
    ports::free_port,
    process::{self, Process, Program},
    repository,
    s3::VersityGateway,
};

use crate::deployment::START_LIMIT;

fn tailwater(folder: &std::path::Path, arguments: &[&str]) -> Result<Output> {
    Program::named("tailwater")?.args(arguments.iter().copied()).in_folder(folder).run()
}

pub(crate) fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn the_demo_answers_and_ends_whatever_the_config_says_and_again_on_the_same_folder() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let elsewhere = "[log]\nkind = \"kafka\"\nbrokers = \"127.0.0.1:1\"\n\n[store]\noptions = { aws_region = \"x\" }\n";
    fs::write(folder.path().join("tailwater.toml"), elsewhere)?;
    for _run in 0..2 {
        let output = tailwater(folder.path(), &["demo", "--once", "--folder", "kept"])?;
        let text = text(&output);
        assert!(output.status.success(), "{text}");
        assert!(text.contains("the ledger balances"), "{text}");
        assert!(text.contains("all 10 answers equal those worked out from the raw files"), "{text}");
    }
    Ok(())
}

/// `up` in a project that `init` made.
pub(crate) struct Up {
    process: Process,
    pub(crate) url: String,
    folder: tempfile::TempDir,
}

impl Up {
    pub(crate) fn start() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let made = tailwater(folder.path(), &["init", "my-shop"])?;
        assert!(made.status.success(), "{}", text(&made));
        let port = free_port()?;
        let mut up = Self { process: Self::process(&folder, port)?, url: format!("http://127.0.0.1:{port}"), folder };
        up.wait_until_ready()?;
        Ok(up)
    }

    fn process(folder: &tempfile::TempDir, port: u16) -> Result<Process> {
        Program::named("tailwater")?
            .args(["up", "--set", "storage.flush_age=100ms", "--set"])
            .arg(format!("http.listen=127.0.0.1:{port}"))
            .in_folder(folder.path().join("my-shop"))
            .log_to(folder.path().join("up.log"))
            .start()
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        self.process.wait_for_log("Tailwater is up", START_LIMIT)?;
        self.process.wait_until_ready(&format!("{}/readyz?verbose", self.url), START_LIMIT)
    }

    pub(crate) fn tailwater(&self, arguments: &[&str]) -> Result<Output> {
        let arguments: Vec<&str> = ["--url", &self.url].into_iter().chain(arguments.iter().copied()).collect();
        tailwater(&self.folder.path().join("my-shop"), &arguments)
    }
}

#[test]
fn a_project_made_by_init_runs_and_survives_kill_and_restart() -> Result<()> {
    let mut up = Up::start()?;
    for (source, file) in [("shop.orders", "data/shop/orders.ndjson"), ("shop.customers", "data/shop/customers.csv")] {
        let sent = up.tailwater(&["ingest", source, file])?;
        assert!(sent.status.success(), "{}", text(&sent));
    }
    up.process.kill()?;
    let port = up.url.rsplit(':').next().unwrap_or_default().parse()?;
    up.process = Up::process(&up.folder, port)?;
    up.wait_until_ready()?;
    let count = |up: &Up, table: &str| -> Result<String> {
        let output = up.tailwater(&["sql", "-o", "csv", "-c", &format!("SELECT count(*) FROM shop.{table}")])?;
        Ok(String::from_utf8_lossy(&output.stdout).lines().nth(1).unwrap_or_default().to_owned())
    };
    let started = std::time::Instant::now();
    while (count(&up, "orders")?, count(&up, "customers")?) != ("330".into(), "126".into()) {
        assert!(started.elapsed() < START_LIMIT, "{}", text(&up.tailwater(&["status"])?));
        std::thread::sleep(Duration::from_millis(100));
    }
    let status = up.tailwater(&["status"])?;
    assert!(text(&status).contains("the ledger balances"), "{}", text(&status));
    let rows = up.tailwater(&["tail", "shop.orders", "--from", "start", "--limit", "3"])?;
    assert_eq!(String::from_utf8_lossy(&rows.stdout).lines().count(), 3, "{}", text(&rows));
    let health = up.tailwater(&["health", "--wait", "60s"])?;
    assert!(health.status.success(), "{}", text(&health));
    up.process.terminate()?;
    let ended = up.process.wait(Duration::from_secs(20))?;
    assert!(ended.success(), "the first signal drains: {ended}\n{}", up.process.log());
    Ok(())
}

#[test]
fn a_log_in_use_names_the_process_that_has_it() -> Result<()> {
    let up = Up::start()?;
    let second = Program::named("tailwater")?
        .args(["up", "--set", "http.listen=127.0.0.1:0"])
        .in_folder(up.folder.path().join("my-shop"))
        .run()?;
    assert!(!second.status.success());
    assert!(text(&second).contains(&format!("in use by process {}", up.process.pid())), "{}", text(&second));
    Ok(())
}

#[test]
fn sql_takes_a_statement_from_standard_input_and_fails_where_it_does() -> Result<()> {
    let up = Up::start()?;
    let program = process::binary("tailwater")?;
    let sh = |script: &str| {
        let sh = Program::at("/bin/sh").args(["-c", script]).env("PROGRAM", &program).env("URL", &up.url);
        sh.in_folder(up.folder.path()).run()
    };
    for flags in ["", "-f -"] {
        let answer = sh(&format!("echo 'SELECT 1 AS one;' | \"$PROGRAM\" --url \"$URL\" sql -o csv {flags}"))?;
        assert!(answer.status.success(), "{}", text(&answer));
        assert_eq!(String::from_utf8_lossy(&answer.stdout).trim_end(), "one\n1");
    }
    let wrong = sh("echo 'SELECT nothing' | \"$PROGRAM\" --url \"$URL\" sql")?;
    assert_eq!(wrong.status.code(), Some(1), "{}", text(&wrong));
    Ok(())
}

#[test]
fn metrics_and_health_are_served() -> Result<()> {
    let up = Up::start()?;
    let (status, body) = http::get(&format!("{}/metrics", up.url))?;
    assert_eq!(status, 200);
    assert!(body.contains("tailwater_build_info"), "{body}");
    assert_eq!(http::get(&format!("{}/livez", up.url))?.0, 200);
    Ok(())
}

#[test]
fn a_faulty_config_names_every_fault_and_the_near_key() -> Result<()> {
    let folder = tempfile::tempdir()?;
    fs::write(folder.path().join("tailwater.toml"), "[storage]\nflush_agee = \"1s\"\nflush_rows = \"many\"\n")?;
    for program in ["tailwater", "ingestion", "transformation", "storage", "analysis"] {
        let arguments: &[&str] = if program == "tailwater" { &["up"] } else { &["--config", "tailwater.toml"] };
        let output = Program::named(program)?.args(arguments.iter().copied()).in_folder(folder.path()).run()?;
        assert_eq!(output.status.code(), Some(64), "{program}: {}", text(&output));
        assert!(text(&output).contains("flush_age`") && text(&output).contains("flush_rows"), "{}", text(&output));
    }
    Ok(())
}

#[test]
fn every_program_prints_its_config_to_standard_output() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for (program, arguments) in [("tailwater", &["check"][..]), ("storage", &[])] {
        let output = Program::named(program)?
            .args(arguments.iter().copied())
            .args(["--print-config", "--set=storage.flush_age=7s"])
            .in_folder(folder.path())
            .run()?;
        let printed = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && printed.contains("flush_age = \"7s\""), "{program}: {}", text(&output));
    }
    Ok(())
}

#[test]
fn a_broker_that_is_down_at_start_is_named_and_worth_trying_again() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let address = format!("127.0.0.1:{}", free_port()?);
    let output = Program::named("storage")?
        .args(["--set", "log.kind=kafka", "--set", &format!("log.brokers={address}")])
        .args(["--set", "storage.listen=127.0.0.1:0"])
        .in_folder(folder.path())
        .run()?;
    assert_eq!(output.status.code(), Some(75), "{}", text(&output));
    assert!(text(&output).contains(&address), "{}", text(&output));
    Ok(())
}

#[test]
fn the_first_signal_ends_a_process_that_waits_for_its_store() -> Result<()> {
    // It takes connections, and nobody is behind them.
    let silent = TcpListener::bind("127.0.0.1:0")?;
    let endpoint = format!("store.options.aws_endpoint=http://{}", silent.local_addr()?);
    let keys = ["store.options.aws_access_key_id=a", "--set", "store.options.aws_secret_access_key=b"];
    for (name, command, listen) in [("storage", None, "storage.listen"), ("tailwater", Some("up"), "http.listen")] {
        let (folder, port) = (tempfile::tempdir()?, free_port()?);
        let mut process = Program::named(name)?
            .args(command)
            .args(["--set", "store.url=s3://silent/lake", "--set", &endpoint, "--set"])
            .args(keys)
            .args(["--set", &format!("{listen}=127.0.0.1:{port}")])
            .in_folder(folder.path())
            .start()?;
        process.wait_until_ready(&format!("http://127.0.0.1:{port}/livez"), START_LIMIT)?;
        process.terminate()?;
        // The store would be given up after 15 s.
        let ended = process.wait(Duration::from_secs(10))?;
        assert!(ended.success(), "{name}: {ended}\n{}", process.log());
    }
    Ok(())
}

#[test]
fn a_missing_bucket_is_named_before_anything_is_lost() -> Result<()> {
    let Some(store) = VersityGateway::start()? else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let mut program = Program::named("storage")?.args(["--set", "store.url=s3://nowhere/lake"]);
    for (key, value) in store.options() {
        program = program.args(["--set".to_owned(), format!("store.options.{key}={value}")]);
    }
    let output = program.args(["--set", "storage.listen=127.0.0.1:0"]).in_folder(folder.path()).run()?;
    assert!(!output.status.success());
    assert!(text(&output).contains("nowhere") && text(&output).contains("bucket"), "{}", text(&output));
    Ok(())
}

#[test]
fn check_finds_the_fault_in_a_pipeline_without_contacting_anything() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let shop = repository("pipelines/shop").display().to_string();
    let good = tailwater(folder.path(), &["check", &shop])?;
    assert!(good.status.success(), "{}", text(&good));
    let bad = folder.path().join("bad");
    fs::create_dir(&bad)?;
    fs::write(bad.join("a.sql"), "CREATE SOURCE a (id BIGINT) WITH (formt = 'json');\n")?;
    let output = tailwater(folder.path(), &["check", "bad"])?;
    assert_eq!(output.status.code(), Some(64));
    assert!(text(&output).contains("did you mean `format`") && text(&output).contains("a.sql:1:"), "{}", text(&output));
    Ok(())
}

/// A folder with a pipeline that nobody has applied yet.
fn lab() -> Result<tempfile::TempDir> {
    let folder = tempfile::tempdir()?;
    fs::create_dir(folder.path().join("lab"))?;
    fs::write(folder.path().join("lab/lab.sql"), "CREATE SOURCE events (id BIGINT);\n")?;
    Ok(folder)
}

#[test]
fn apply_finds_the_tailwater_that_runs_in_another_folder() -> Result<()> {
    let (up, lab) = (Up::start()?, lab()?);
    let listen = up.url.replace("http://", "http.listen=");
    let applied = tailwater(lab.path(), &["apply", "lab", "--set", &listen])?;
    assert!(applied.status.success() && text(&applied).contains(&up.url), "{}", text(&applied));
    let again = up.tailwater(&["apply", &lab.path().join("lab").display().to_string()])?;
    assert!(text(&again).contains("nothing to change"), "{}", text(&again));
    assert!(!lab.path().join(".tailwater").exists());
    Ok(())
}

#[test]
fn apply_with_nothing_running_says_where_it_published_and_a_dry_run_leaves_nothing() -> Result<()> {
    let lab = lab()?;
    let listen = format!("http.listen=127.0.0.1:{}", free_port()?);
    let planned = tailwater(lab.path(), &["apply", "lab", "--dry-run", "--set", &listen])?;
    assert!(planned.status.success() && text(&planned).contains("events"), "{}", text(&planned));
    assert!(!lab.path().join(".tailwater").exists());
    let applied = tailwater(lab.path(), &["apply", "lab", "--set", &listen])?;
    assert!(applied.status.success() && text(&applied).contains("no Tailwater runs"), "{}", text(&applied));
    assert!(lab.path().join(".tailwater/log").exists());
    Ok(())
}

#[test]
fn completion_scripts_name_the_commands() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let output = tailwater(folder.path(), &["completion", "bash"])?;
    let script = String::from_utf8(output.stdout).context("a script is text")?;
    assert!(script.contains("ingest") && script.contains("status"));
    Ok(())
}

#[test]
fn whoever_stops_reading_makes_no_failure_and_a_full_disk_does() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let run = |arguments: &[&str], out: Stdio, errors: Stdio| -> Result<Output> {
        let mut command = Command::new(process::binary("tailwater")?);
        command.args(arguments).current_dir(&folder).stdin(Stdio::null()).stdout(out).stderr(errors);
        Ok(command.spawn()?.wait_with_output()?)
    };
    let (script, notes) = (["completion", "bash"], ["check"]);
    let cut_off = run(&script, nobody()?, Stdio::piped())?;
    assert!(cut_off.status.success() && cut_off.stderr.is_empty(), "{}", text(&cut_off));
    let unheard = run(&notes, Stdio::piped(), nobody()?)?;
    assert!(unheard.status.success(), "{}", unheard.status);
    let full = run(&script, fs::File::create("/dev/full")?.into(), Stdio::piped())?;
    assert_eq!(full.status.code(), Some(1));
    assert!(text(&full).contains("standard output"), "{}", text(&full));
    Ok(())
}

/// A pipe whose other end is closed.
fn nobody() -> Result<Stdio> {
    let (reader, writer) = std::io::pipe()?;
    drop(reader);
    Ok(writer.into())
}
