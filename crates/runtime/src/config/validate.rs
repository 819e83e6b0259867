//! What must hold between the values of a config, beyond each having its type.
//!
//! Invariant: all faults are found in one go, and none is reported about a value that is itself not what was written.
//! Deliberately absent: anything that needs the network or the disk; reaching a broker is not a matter of config.

use std::collections::BTreeSet;
use std::fmt::Display;

use super::faults::Fault;
use super::{Config, LogKind, suggest};
use crate::units::{ByteSize, Duration};

/// What Kafka brokers accept for a record batch unless `message.max.bytes` says otherwise: 1 MiB and its overhead.
const DEFAULT_BROKER_LIMIT: u64 = 1 << 20;

/// librdkafka's largest message.
const LARGEST_MESSAGE: ByteSize = ByteSize::bytes(1_000_000_000);

/// A dead letter takes up to 400 KiB of original bytes in one row, which must fit a message.
const SMALLEST_MESSAGE: ByteSize = ByteSize::kilobytes(500);

/// Row numbers inside a message have this many values (`delivery::MAX_ROWS_PER_UNIT`).
const MOST_BATCH_ROWS: u64 = delivery::MAX_ROWS_PER_UNIT as u64;

const SHORTEST_INTERVAL: Duration = Duration::millis(1);
const SHORTEST_RETENTION: Duration = Duration::secs(60);
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

pub(super) fn faults(config: &Config, unusable: &BTreeSet<String>) -> Vec<Fault> {
    let mut checks = Checks { unusable, faults: Vec::new() };
    checks.log(config);
    checks.store(config);
    checks.listeners(config);
    checks.ingestion(config);
    checks.transformation(config);
    checks.storage(config);
    checks.analysis(config);
    checks.telemetry(config);
    checks.faults
}

/// What works, but is probably not meant.
pub(super) fn warnings(config: &Config) -> Vec<String> {
    let mut warnings = Vec::new();
    let message = config.ingestion.max_message_bytes;
    if config.log.kind == LogKind::Kafka && message.get() > DEFAULT_BROKER_LIMIT {
        warnings.push(format!(
            "`ingestion.max_message_bytes` is {message}, more than the 1MiB a Kafka broker accepts by default; \
             raise `message.max.bytes` of the broker to match"
        ));
    }
    if config.log.kind == LogKind::Embedded && !config.log.brokers.is_empty() {
        warnings
            .push("`log.brokers` is not used, because `log.kind` is `embedded`; set `log.kind` to `kafka`".to_owned());
    }
    warnings
}

struct Checks<'a> {
    unusable: &'a BTreeSet<String>,
    faults: Vec<Fault>,
}

impl Checks<'_> {
    fn log(&mut self, config: &Config) {
        let log = &config.log;
        let without = |what: &str| format!("is empty; `log.kind` is `{what}` and needs it");
        if log.kind == LogKind::Kafka && log.brokers.trim().is_empty() {
            self.fault(&["log.brokers", "log.kind"], without("kafka") + ", for instance \"127.0.0.1:9092\"");
        }
        if log.kind == LogKind::Embedded && log.path.as_os_str().is_empty() {
            self.fault(&["log.path", "log.kind"], without("embedded"));
        }
        self.at_least("log.default_partitions", log.default_partitions, 1);
        self.at_least("log.channel_retention_age", log.channel_retention_age, SHORTEST_RETENTION);
        let message = ("ingestion.max_message_bytes", config.ingestion.max_message_bytes);
        self.not_above(message, ("log.max_inflight_bytes", log.max_inflight_bytes));
        self.not_above(message, ("log.fetch_bytes_per_partition", log.fetch_bytes_per_partition));
        if let Some(kept) = log.channel_retention_bytes {
            self.not_above(message, ("log.channel_retention_bytes", kept));
        }
    }

    fn store(&mut self, config: &Config) {
        let url = config.store.url.trim();
        if url.is_empty() {
            self.fault(&["store.url"], "is empty; give a folder or `s3://bucket/prefix`".to_owned());
        }
        if let Some((scheme, _)) = url.split_once("://")
            && !["file", "s3"].contains(&scheme)
        {
            self.fault(
                &["store.url"],
                format!("has the scheme `{scheme}`; use a folder, `file:///…` or `s3://bucket/prefix`"),
            );
        }
    }

    fn listeners(&mut self, config: &Config) {
        let listeners = [
            ("http.listen", &config.http.listen),
            ("ingestion.listen", &config.ingestion.listen),
            ("transformation.listen", &config.transformation.listen),
            ("storage.listen", &config.storage.listen),
            ("analysis.listen", &config.analysis.listen),
        ];
        for (key, listen) in listeners {
            if !is_host_and_port(listen) {
                self.fault(&[key], format!("is `{listen}`; write an address and a port such as `127.0.0.1:8080`"));
            }
        }
    }

    fn ingestion(&mut self, config: &Config) {
        let own = &config.ingestion;
        let message = ("ingestion.max_message_bytes", own.max_message_bytes);
        let memory = ("ingestion.memory", own.memory);
        let decompressed = ("ingestion.max_decompressed_bytes", own.max_decompressed_bytes);
        let batch = ("ingestion.batch_bytes", own.batch_bytes);
        self.at_least("ingestion.batch_rows", own.batch_rows as u64, 1);
        self.at_most("ingestion.batch_rows", own.batch_rows as u64, MOST_BATCH_ROWS);
        self.at_least(batch.0, batch.1, ByteSize::bytes(1));
        self.at_least(message.0, message.1, SMALLEST_MESSAGE);
        self.at_most(message.0, message.1, LARGEST_MESSAGE);
        self.at_least("ingestion.max_body_bytes", own.max_body_bytes, ByteSize::bytes(1));
        self.not_above(("ingestion.max_body_bytes", own.max_body_bytes), decompressed);
        self.not_above(decompressed, memory);
        self.not_above(batch, memory);
        self.not_above(message, memory);
        let checkpoint = ("ingestion.checkpoint_every", own.checkpoint_every);
        self.at_least(checkpoint.0, checkpoint.1, SHORTEST_INTERVAL);
        self.not_above(("ingestion.linger", own.linger), checkpoint);
        self.not_above(checkpoint, ("log.channel_retention_age", config.log.channel_retention_age));
    }

    fn transformation(&mut self, config: &Config) {
        let own = &config.transformation;
        let message = ("ingestion.max_message_bytes", config.ingestion.max_message_bytes);
        let checkpoint = ("transformation.checkpoint_every", own.checkpoint_every);
        self.not_above(message, ("transformation.memory", own.memory));
        self.at_least(checkpoint.0, checkpoint.1, SHORTEST_INTERVAL);
        self.not_above(checkpoint, ("log.channel_retention_age", config.log.channel_retention_age));
    }

    fn storage(&mut self, config: &Config) {
        let own = &config.storage;
        let flush = ("storage.flush_bytes", own.flush_bytes);
        self.at_least(flush.0, flush.1, ByteSize::bytes(1));
        self.not_above(flush, ("storage.memory", own.memory));
        self.at_least("storage.flush_rows", own.flush_rows, 1);
        self.at_least("storage.flush_age", own.flush_age, SHORTEST_INTERVAL);
        self.at_least("storage.quiet_age", own.quiet_age, SHORTEST_INTERVAL);
        self.at_least("storage.compression_level", own.compression_level, 1);
        self.at_most("storage.compression_level", own.compression_level, 22);
    }

    fn analysis(&mut self, config: &Config) {
        let own = &config.analysis;
        let query = ("analysis.query_memory", own.query_memory);
        self.at_least(query.0, query.1, ByteSize::mebibytes(1));
        self.not_above(query, ("analysis.memory", own.memory));
        self.at_least("analysis.timeout", own.timeout, SHORTEST_INTERVAL);
        self.at_least("analysis.max_rows", own.max_rows, 1);
        self.at_least("analysis.max_concurrent_queries", own.max_concurrent_queries, 1);
    }

    fn telemetry(&mut self, config: &Config) {
        let own = &config.telemetry;
        if let Err(message) = check_level(&own.level) {
            self.fault(&["telemetry.level"], message);
        }
        let endpoint = own.otlp_endpoint.as_str();
        let rest = endpoint.strip_prefix("http://").or_else(|| endpoint.strip_prefix("https://"));
        if !endpoint.is_empty() && rest.is_none_or(|host| host.is_empty() || host.starts_with('/')) {
            self.fault(
                &["telemetry.otlp_endpoint"],
                format!("is `{endpoint}`; write a URL such as `http://127.0.0.1:4318`"),
            );
        }
        if !(0.0..=1.0).contains(&own.trace_sample_ratio) {
            self.fault(
                &["telemetry.trace_sample_ratio"],
                format!("is {}; use a share between 0 and 1", own.trace_sample_ratio),
            );
        }
    }

    /// Reports about the first key, unless one of those it was concluded from is not what was written.
    fn fault(&mut self, keys: &[&str], message: String) {
        if !keys.iter().any(|key| self.unusable.contains(*key)) {
            self.faults.push(Fault::new(keys[0], message));
        }
    }

    fn at_least<T: PartialOrd + Display>(&mut self, key: &str, value: T, least: T) {
        if value < least {
            self.fault(&[key], format!("is {value}; use at least {least}"));
        }
    }

    fn at_most<T: PartialOrd + Display>(&mut self, key: &str, value: T, most: T) {
        if value > most {
            self.fault(&[key], format!("is {value}; use at most {most}"));
        }
    }

    fn not_above<T: PartialOrd + Display>(&mut self, (key, value): (&str, T), (bound, limit): (&str, T)) {
        if value > limit {
            self.fault(&[key, bound], format!("is {value}, above `{bound}` of {limit}; lower it or raise `{bound}`"));
        }
    }
}

fn is_host_and_port(listen: &str) -> bool {
    listen.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}

/// A misspelt level would be taken for the name of a module and silence everything, so plain words are checked first.
fn check_level(level: &str) -> Result<(), String> {
    let plain_words = level.split(',').map(str::trim).filter(|part| !part.contains(['=', '[']));
    for word in plain_words {
        let lower = word.to_lowercase();
        if !LEVELS.contains(&lower.as_str()) {
            let hint =
                suggest::nearest(word, LEVELS).map_or_else(String::new, |near| format!("; did you mean `{near}`?"));
            return Err(format!("has the unknown level `{word}`; use one of {}{hint}", LEVELS.join(", ")));
        }
    }
    tracing_subscriber::EnvFilter::try_new(level)
        .map(drop)
        .map_err(|error| format!("is `{level}`; write it like `info,storage=debug`: {error}"))
}
