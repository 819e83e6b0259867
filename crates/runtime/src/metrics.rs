//! The metrics of the process, rendered for Prometheus.
//!
//! Invariant: one recorder per process, however many services run in it; what nobody scrapes does not grow.
//! Deliberately absent: an HTTP listener (see `admin`), and the metrics of other crates, which name and describe
//! their own: libraries when the recorder is installed, services when they start.

use std::fmt::Write;
use std::io;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use metrics::{counter, describe_counter};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use thiserror::Error;

const TASK_FAILURES: &str = "tailwater_runtime_task_failures_total";

/// Every way a task goes wrong, as `TaskFailure` names it. Shown from the start: an alarm needs to see it rise.
const TASK_OUTCOMES: [&str; 4] = ["failed", "panicked", "ended_early", "aborted"];

/// Histograms of seconds, from a fast message to a slow query.
const SECONDS: [f64; 17] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0];

/// Histograms of bytes, 1 KiB to 1 GiB by fours.
const BYTES: [f64; 11] = [
    1024.0,
    4096.0,
    16384.0,
    65536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
    268_435_456.0,
    1_073_741_824.0,
];

/// Histograms of counts, by powers of ten with a step between.
const COUNTS: [f64; 13] = [1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4, 3e4, 1e5, 1e6, 1e7];

/// How often samples of histograms are folded into buckets. Between two foldings they are kept one by one.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// Clock ticks a second in /proc. Linux reports to programs in hundredths on every architecture we build for.
const TICKS_PER_SECOND: f64 = 100.0;

/// What program this is; the labels of `tailwater_build_info`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BuildInfo {
    pub service: String,
    pub version: String,
    pub revision: String,
}

impl BuildInfo {
    /// The build this library is part of. The revision is known when `TAILWATER_REVISION` was set for the compiler.
    pub fn of(service: impl Into<String>) -> BuildInfo {
        BuildInfo {
            service: service.into(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            revision: option_env!("TAILWATER_REVISION").unwrap_or("unknown").to_owned(),
        }
    }
}

/// Metrics cannot be collected.
#[derive(Debug, Error)]
pub enum MetricsError {
    #[error("metrics cannot be set up")]
    Buckets(#[from] BuildError),
    #[error("another metrics recorder is already installed in this process")]
    AlreadyInstalled,
    #[error("no thread for the upkeep of metrics")]
    NoThread(#[from] io::Error),
}

/// Renders what was measured. Clones show the same.
#[derive(Clone)]
pub struct Metrics {
    handle: PrometheusHandle,
    build: BuildInfo,
}

impl Metrics {
    /// Installs the recorder of the process; the second time it returns what the first installed.
    ///
    /// **Errors**: something else installed a recorder before, or there is no thread for the upkeep.
    pub fn install(build: BuildInfo) -> Result<Metrics, MetricsError> {
        static INSTALLED: OnceLock<Metrics> = OnceLock::new();
        static INSTALLING: Mutex<()> = Mutex::new(());
        let _one_at_a_time = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(installed) = INSTALLED.get() {
            return Ok(installed.clone());
        }
        let (recorder, metrics) = Metrics::detached(build)?;
        metrics::set_global_recorder(recorder).map_err(|_| MetricsError::AlreadyInstalled)?;
        describe();
        topics::describe_metrics();
        lake::metrics::describe();
        metrics.keep_up()?;
        Ok(INSTALLED.get_or_init(|| metrics).clone())
    }

    /// A recorder that is not installed, for `metrics::with_local_recorder` in tests.
    ///
    /// **Errors**: the bucket bounds are not accepted.
    pub fn detached(build: BuildInfo) -> Result<(PrometheusRecorder, Metrics), MetricsError> {
        let recorder = PrometheusBuilder::new()
            .set_buckets(&COUNTS)?
            .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)?
            .set_buckets_for_metric(Matcher::Suffix("_bytes".to_owned()), &BYTES)?
            .build_recorder();
        let handle = recorder.handle();
        Ok((recorder, Metrics { handle, build }))
    }

    /// Everything measured so far, in the text format of Prometheus.
    pub fn render(&self) -> String {
        let mut text = self.handle.render();
        text.push_str(&build_lines(&self.build));
        if let Some(usage) = Usage::of_this_process() {
            text.push_str(&usage.lines());
        }
        text
    }

    /// The recorder lives as long as the process, and so does this thread.
    fn keep_up(&self) -> io::Result<()> {
        let handle = self.handle.clone();
        let upkeep = move || {
            loop {
                thread::sleep(UPKEEP_EVERY);
                handle.run_upkeep();
            }
        };
        thread::Builder::new().name("metrics".to_owned()).spawn(upkeep).map(drop)
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Metrics").field("build", &self.build).finish_non_exhaustive()
    }
}

fn describe() {
    describe_counter!(TASK_FAILURES, "Tasks that went wrong, by how.");
    for outcome in TASK_OUTCOMES {
        counter!(TASK_FAILURES, "outcome" => outcome).absolute(0);
    }
}

/// Counts a task that went wrong. `outcome` is from the closed set of `TaskFailure`.
pub(crate) fn count_task_failure(outcome: &'static str) {
    counter!(TASK_FAILURES, "outcome" => outcome).increment(1);
}

fn build_lines(build: &BuildInfo) -> String {
    format!(
        "# HELP tailwater_build_info What program this is; always 1.\n\
         # TYPE tailwater_build_info gauge\n\
         tailwater_build_info{{service=\"{}\",version=\"{}\",revision=\"{}\"}} 1\n",
        escaped(&build.service),
        escaped(&build.version),
        escaped(&build.revision)
    )
}

fn escaped(label: &str) -> String {
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// What the process takes from the machine. Read when asked, so it is never stale.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Usage {
    resident_bytes: u64,
    cpu_seconds: f64,
}

impl Usage {
    /// None where there is no /proc, that is, outside Linux.
    fn of_this_process() -> Option<Usage> {
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
        Usage::parse(&status, &stat)
    }

    /// **Source**: proc(5). The program's name in `stat` is in brackets and may itself hold any character.
    fn parse(status: &str, stat: &str) -> Option<Usage> {
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        let kibibytes: u64 = resident.trim().strip_suffix("kB")?.trim().parse().ok()?;
        let (_, after_name) = stat.rsplit_once(')')?;
        // After the name come 11 fields that do not matter here, then user and system time.
        let mut times = after_name.split_whitespace().skip(11);
        let user: u64 = times.next()?.parse().ok()?;
        let system: u64 = times.next()?.parse().ok()?;
        Some(Usage { resident_bytes: kibibytes * 1024, cpu_seconds: (user + system) as f64 / TICKS_PER_SECOND })
    }

    fn lines(&self) -> String {
        let mut text = String::new();
        write!(
            text,
            "# HELP tailwater_process_resident_bytes Memory of the process that is in RAM.\n\
             # TYPE tailwater_process_resident_bytes gauge\n\
             tailwater_process_resident_bytes {}\n\
             # HELP tailwater_process_cpu_seconds_total CPU time used, user and system.\n\
             # TYPE tailwater_process_cpu_seconds_total counter\n\
             tailwater_process_cpu_seconds_total {}\n",
            self.resident_bytes, self.cpu_seconds
        )
        .expect("text grows");
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build() -> BuildInfo {
        BuildInfo { service: "storage".to_owned(), version: "1.2.3".to_owned(), revision: "say \"hi\"".to_owned() }
    }

    #[test]
    fn measurements_and_process_metrics_are_rendered_together() {
        let (recorder, metrics) = Metrics::detached(build()).expect("buckets");
        metrics::with_local_recorder(&recorder, || {
            describe();
            count_task_failure("panicked");
            metrics::histogram!("tailwater_lake_commit_duration_seconds").record(0.3);
            metrics::histogram!("tailwater_lake_file_bytes").record(2000.0);
        });
        let text = metrics.render();
        for line in [
            "# HELP tailwater_runtime_task_failures_total Tasks that went wrong, by how.",
            "tailwater_runtime_task_failures_total{outcome=\"panicked\"} 1",
            "tailwater_lake_commit_duration_seconds_bucket{le=\"0.25\"} 0",
            "tailwater_lake_commit_duration_seconds_bucket{le=\"0.5\"} 1",
            "tailwater_lake_file_bytes_bucket{le=\"4096\"} 1",
            "tailwater_build_info{service=\"storage\",version=\"1.2.3\",revision=\"say \\\"hi\\\"\"} 1",
            "# TYPE tailwater_process_resident_bytes gauge",
            "# TYPE tailwater_process_cpu_seconds_total counter",
        ] {
            assert!(text.lines().any(|found| found == line), "no `{line}` in:\n{text}");
        }
    }

    #[test]
    fn installing_twice_gives_the_same_recorder() {
        let first = Metrics::install(build()).expect("installed");
        let second = Metrics::install(BuildInfo::of("other")).expect("installed");
        metrics::counter!("tailwater_runtime_test_total").increment(3);
        assert!(first.render().contains("tailwater_runtime_test_total 3"));
        assert!(second.render().contains("tailwater_runtime_test_total 3"));
        assert_eq!(second.build.service, "storage");
    }

    #[test]
    fn usage_is_read_past_a_program_name_full_of_brackets() {
        let status = "Name:\tx\nVmRSS:\t    2048 kB\nThreads:\t1\n";
        let stat = "42 (a) b) c) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20 0 1";
        let usage = Usage::parse(status, stat).expect("parsed");
        assert_eq!(usage.resident_bytes, 2048 * 1024);
        assert_eq!(usage.cpu_seconds, 2.0);
        assert_eq!(Usage::parse("", stat), None);
        assert_eq!(Usage::parse(status, "42 (a) S 1 2"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_uses_memory() {
        let usage = Usage::of_this_process().expect("Linux has /proc");
        assert!(usage.resident_bytes > 1 << 20, "{usage:?}");
    }
}
