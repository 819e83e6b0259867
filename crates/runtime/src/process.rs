//! The life of a service's process: telemetry, edges, admin, work, signal, drain.
//!
//! Every `main` is the same but for the service it runs. Live at once, ready when the work is; the first signal
//! drains, the second stops.

use std::{
    fmt::Display,
    future::Future,
    io::{self, ErrorKind, Write as _},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use axum::Router;

use crate::{
    admin::{self, AdminServer, Health, serve_visitors},
    config::{Config, LoadOptions, Override},
    edges::Edges,
    exit::{self, Code},
    fail_points,
    metrics::{BuildInfo, Metrics},
    signal,
    tasks::{Fate, Stop, TaskGroup},
    telemetry,
};

/// How long a drain may take before stragglers are named and left.
pub const DRAIN_WITHIN: Duration = Duration::from_secs(10);

/// Beside two for each processor, threads for what blocks: files, and questions to brokers, some seconds each.
const BLOCKING_THREADS: usize = 4;

/// A service as its process sees it.
pub struct Service<Run> {
    /// Its name, in logs, metrics and client ids.
    pub name: &'static str,
    /// Where it listens.
    pub listen: String,
    /// The config key that says so.
    pub listen_key: &'static str,
    /// Its HTTP interface beside health and metrics.
    pub router: fn(&Config, &Edges) -> Router,
    /// Its work, until asked to stop.
    pub run: Run,
}

/// Runs a service until a signal or a failure.
///
/// # Errors
/// What made it stop, or what could not be reached at the start.
pub async fn serve<Run, Work>(config: Config, service: Service<Run>) -> anyhow::Result<()>
where
    Run: FnOnce(Config, Edges, Stop) -> Work,
    Work: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let _telemetry = telemetry::start(&config.telemetry, service.name)?;
    let metrics = Metrics::install(BuildInfo::of(service.name))?;
    tracing::info!(service = service.name, version = env!("CARGO_PKG_VERSION"), "starting");
    log_config(&config);
    let group = TaskGroup::new();
    signal::listen(group.stop())?;
    let health = Health::with_stop(group.stop());
    let pages = admin::router(health.clone(), metrics);
    // Answers until the very end: a process that drains is alive, and says that it is not ready.
    let (admin, visitors) = AdminServer::start(&service.listen, service.listen_key, pages.clone())?;
    tracing::info!(service = service.name, address = %admin.address(), "listening");
    if let Some(edges) = open_edges(&config, service.name, health, &group).await? {
        let router = (service.router)(&config, &edges).merge(pages);
        let stop = group.stop();
        group.spawn("http", Fate::Critical, async move { Ok(serve_visitors(visitors, router, stop).await?) });
        let work = (service.run)(config, edges, group.stop());
        group.spawn(service.name, Fate::Critical, work);
    }
    group.stop().stopped().await;
    group.finish(DRAIN_WITHIN).await?;
    tracing::info!(service = service.name, "stopped");
    Ok(())
}

/// Opens the edges; `None` where the word to stop comes first: stores and brokers that do not answer are waited for, up
/// to a minute. Nothing has to be drained then. No task runs yet, the log closes as it is dropped, and what a probe
/// that was cut off leaves in the store does no more harm than after a kill.
///
/// # Errors
/// As [`Edges::open`].
pub async fn open_edges(
    config: &Config,
    service: &str,
    health: Health,
    group: &TaskGroup,
) -> anyhow::Result<Option<Edges>> {
    let stop = group.stop();
    tokio::select! {
        biased;
        () = stop.stopped() => Ok(None),
        edges = Box::pin(Edges::open(config, service, health, group)) => edges.map(Some),
    }
}

/// Says what the process runs with, secrets masked, and what in it is worth a second look.
pub fn log_config(config: &Config) {
    tracing::debug!(config = config.to_toml_masked(), "config");
    for warning in config.warnings() {
        tracing::warn!(%warning, "config");
    }
}

/// The flags every service binary takes.
struct Flags {
    file: Option<PathBuf>,
    overrides: Vec<Override>,
    print_config: bool,
}

/// The whole of a service binary's `main`.
pub fn main<Work>(name: &'static str, serve: impl FnOnce(Config) -> Work) -> ExitCode
where
    Work: Future<Output = anyhow::Result<()>>,
{
    let flags = match parse_flags(std::env::args().skip(1)) {
        Ok(flags) => flags,
        Err(text) => {
            say(format!("{text}\n\n{}", usage(name)));
            return ExitCode::from(Code::Usage);
        }
    };
    let Some(flags) = flags else {
        say(usage(name));
        return ExitCode::from(Code::Ok);
    };
    let options = LoadOptions { file: flags.file, overrides: flags.overrides, ..LoadOptions::from_process() };
    let config = match Config::load(options) {
        Ok(config) => config,
        Err(faults) => {
            say(faults);
            return ExitCode::from(Code::BadConfig);
        }
    };
    if flags.print_config {
        return print(config.to_toml_masked().trim_end());
    }
    if let Err(error) = fail_points::arm_from_process() {
        say(format!("error: {error}"));
        return ExitCode::from(Code::Usage);
    }
    run_to_end(serve(config))
}

/// Does the work of a process to its end. What is still stuck on a processor then does not keep the process from ending.
///
/// # Errors
/// When the system has no thread to give.
pub fn block_on<T>(work: impl Future<Output = T>) -> io::Result<T> {
    let runtime = threads()?;
    let outcome = runtime.block_on(work);
    runtime.shutdown_timeout(Duration::from_secs(1));
    Ok(outcome)
}

/// The threads of a process: one worker for each processor, and a few for what blocks.
///
/// Work moves between them all, and each keeps memory of its own: with the hundred threads that a runtime would start
/// by itself a backlog cost ingestion three times the memory, and time (`benches/README.md`).
fn threads() -> io::Result<tokio::runtime::Runtime> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(2 * processors + BLOCKING_THREADS)
        .build()
}

fn run_to_end(work: impl Future<Output = anyhow::Result<()>>) -> ExitCode {
    match block_on(work).unwrap_or_else(|error| Err(error.into())) {
        Ok(()) => ExitCode::from(Code::Ok),
        Err(error) => {
            say(format!("error: {}", exit::report(error.as_ref())));
            ExitCode::from(Code::of(&error))
        }
    }
}

/// To standard error. Where nobody reads it, the code that the process ends with still tells.
fn say(text: impl Display) {
    let _unread = writeln!(io::stderr().lock(), "{text}");
}

/// To standard output, where data goes. A reader that went away (`| head`) is no failure.
fn print(text: &str) -> ExitCode {
    match writeln!(io::stdout().lock(), "{text}") {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            say(format!("error: standard output: {error}"));
            ExitCode::from(Code::Failure)
        }
        _ => ExitCode::from(Code::Ok),
    }
}

fn usage(name: &str) -> String {
    format!(
        "The {name} service of Tailwater.\n\nUsage: {name} [--config FILE] [--set SECTION.KEY=VALUE]... [--print-config]\n\n\
         Examples:\n  {name} --config tailwater.toml\n  {name} --set log.kind=kafka --set log.brokers=localhost:9092"
    )
}

/// `None` when help was asked for. What stands behind a `=` is never repeated: it may be a secret.
fn parse_flags(mut arguments: impl Iterator<Item = String>) -> Result<Option<Flags>, String> {
    let mut flags = Flags { file: None, overrides: Vec::new(), print_config: false };
    while let Some(argument) = arguments.next() {
        let (name, mut given) = match argument.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (argument.as_str(), None),
        };
        let mut value = || given.take().or_else(|| arguments.next()).ok_or_else(|| format!("`{name}` needs a value"));
        match name {
            "--help" | "-h" => return Ok(None),
            "--config" => flags.file = Some(value()?.into()),
            "--set" => flags.overrides.push(value()?.parse().map_err(|error| format!("--set: {error}"))?),
            "--print-config" => flags.print_config = true,
            other => return Err(format!("unknown flag `{other}`")),
        }
        if given.is_some() {
            return Err(format!("`{name}` takes no value"));
        }
    }
    Ok(Some(flags))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(arguments: &[&str]) -> Result<Option<Flags>, String> {
        parse_flags(arguments.iter().map(|&argument| argument.to_owned()))
    }

    #[test]
    fn a_value_follows_its_flag_or_stands_behind_an_equals_sign() {
        let apart = parsed(&["--config", "a.toml", "--set", "storage.flush_age=5s", "--print-config"]);
        let joined = parsed(&["--config=a.toml", "--set=storage.flush_age=5s", "--print-config"]);
        for flags in [apart, joined] {
            let flags = flags.expect("right").expect("no help");
            assert_eq!(flags.file, Some(PathBuf::from("a.toml")));
            assert_eq!(flags.overrides, [Override::new("--set", "storage.flush_age", "5s")]);
            assert!(flags.print_config);
        }
    }

    #[test]
    fn wrong_flags_are_named_without_what_may_be_a_secret() {
        for (wrong, said) in [
            ("--sett=store.options.aws_secret_access_key=hush", "unknown flag `--sett`"),
            ("--print-config=hush", "`--print-config` takes no value"),
            ("--set", "`--set` needs a value"),
        ] {
            assert_eq!(parsed(&[wrong]).err().as_deref(), Some(said));
        }
    }
}
