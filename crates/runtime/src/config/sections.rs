//! Every key of `tailwater.toml`, with its default and the reason for it.
//!
//! Invariant: this file is the reference users read; `Config::reference_toml` prints these very words.
//! Deliberately absent: what a pipeline is. That is SQL and lives in the catalog.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::properties::Properties;
use super::settings::settings;
use crate::units::{ByteSize, Duration};

/// Which log holds the topics.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogKind {
    /// A durable log inside this process, for one machine.
    Embedded,
    /// Apache Kafka, or anything that speaks its protocol.
    Kafka,
}

/// How log lines look.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Human,
    Json,
}

settings! {
    /// The log that holds all topics: what users send, the channels between services, and the catalog.
    pub struct LogConfig["log"] {
        /// "embedded" keeps topics in this process and needs nothing else installed, so it is the default.
        /// "kafka" is for more than one process.
        pub kind: LogKind = LogKind::Embedded,
        /// Folder of the embedded log. Beside the config file, so that a project folder holds all of its state.
        pub path: PathBuf = PathBuf::from(".tailwater/log"),
        /// Kafka brokers to start from, "host:port,host:port". Empty, because only you know them.
        pub brokers: String = String::new(),
        /// Further librdkafka properties, for instance { "security.protocol" = "SASL_SSL" }.
        /// Empty, because the defaults suit an open broker. From the environment, underscores stand for dots:
        /// TAILWATER__LOG__PROPERTIES__SECURITY_PROTOCOL.
        pub properties: Properties = Properties::default(),
        /// Partitions of a topic that Tailwater creates where its definition names none.
        /// 1, because one partition keeps all rows in order and carries tens of thousands of rows a second.
        pub default_partitions: u32 = 1,
        /// Whether a source's topic is created when it is missing. true, so that a first pipeline just runs;
        /// set false where topics are managed elsewhere and a missing one is a mistake.
        pub create_missing_topics: bool = true,
        /// How long channels, and topics of sources that Tailwater creates, keep their messages. "7d", so that a service
        /// may be down for a week and still catch up. Topics that are there already keep what they were made with.
        pub channel_retention_age: Duration = Duration::days(7),
        /// How many bytes a partition of a channel keeps. No default: age alone decides, as bytes would lose
        /// messages of a service that is down at busy times.
        pub channel_retention_bytes: Option<ByteSize> = None; example "\"10GiB\"",
        /// Bytes sent to the log and not yet durable, for the whole process. Over it, senders wait.
        /// A partition may take a quarter of it, so that one that is out of reach does not stop the others.
        /// "32MiB" keeps a broker 10 ms away busy at 3 GB/s.
        pub max_inflight_bytes: ByteSize = ByteSize::mebibytes(32),
        /// Bytes read ahead per partition. "2MiB" is about two full messages: enough to hide a fetch, small enough
        /// that a process may own a hundred partitions. More helps where brokers are far away.
        pub fetch_bytes_per_partition: ByteSize = ByteSize::mebibytes(2),
    }
}

settings! {
    /// The object store that holds the tables.
    pub struct StoreConfig["store"] {
        /// A folder, "file:///…" or "s3://bucket/prefix". A folder beside the config file needs nothing else installed.
        pub url: String = String::from(".tailwater/tables"),
        /// Options of the store, for instance { aws_endpoint = "http://127.0.0.1:9000", aws_access_key_id = "…" }.
        /// Empty, because a folder needs none. From the environment: TAILWATER__STORE__OPTIONS__AWS_ENDPOINT.
        pub options: Properties = Properties::default(),
    }
}

settings! {
    /// The one door of `tailwater up`: ingest, SQL, health and metrics.
    pub struct HttpConfig["http"] {
        /// "127.0.0.1:8080": this machine only, because there is no login yet. Port 0 takes any free port.
        pub listen: String = String::from("127.0.0.1:8080"),
    }
}

settings! {
    /// Ingestion: turns what users send into typed batches.
    pub struct IngestionConfig["ingestion"] {
        /// Where events may be posted, and health and metrics. This machine only, because there is no login yet.
        pub listen: String = String::from("127.0.0.1:8081"),
        /// Rows of one batch at most. 8192: the schema in each message then costs 0.07 % of its size, and the engine
        /// works at full speed.
        pub batch_rows: usize = 8192,
        /// Bytes of one batch in memory at most, so that wide rows do not make large batches. "4MiB" compresses
        /// below `max_message_bytes` for most data.
        pub batch_bytes: ByteSize = ByteSize::mebibytes(4),
        /// How long a row may wait for others before its batch is sent. "20ms" is not felt by a person, and gives
        /// whole batches from a few hundred thousand rows a second on. "0s" sends what is at hand.
        pub linger: Duration = Duration::millis(20),
        /// Bytes of one message at most; larger batches are split. "900kB" with its headers stays below the 1 MiB
        /// that brokers accept unless told otherwise.
        pub max_message_bytes: ByteSize = ByteSize::kilobytes(900),
        /// Bytes of one HTTP body as sent. "64MiB" is a large file in one request; longer ones are refused with 413.
        pub max_body_bytes: ByteSize = ByteSize::mebibytes(64),
        /// Bytes of one HTTP body after decompression. Four times the body: ordinary events compress that well,
        /// and a bomb far better.
        pub max_decompressed_bytes: ByteSize = ByteSize::mebibytes(256),
        /// Bytes of the process: rows and bodies held, rows in flight to the log, and 96 MiB for the program itself and
        /// what it reads ahead of a dozen partitions. Over it, input waits. "512MiB" fits a small container. Of many
        /// partitions, `log.fetch_bytes_per_partition` for each more comes on top.
        pub memory: ByteSize = ByteSize::mebibytes(512),
        /// How often a task writes down how far it is. "10s" is at most that much work done again after a crash.
        pub checkpoint_every: Duration = Duration::secs(10),
    }
}

settings! {
    /// Transformation: runs the SQL of views over channels.
    pub struct TransformationConfig["transformation"] {
        /// Where health and metrics are. This machine only, because there is no login yet.
        pub listen: String = String::from("127.0.0.1:8082"),
        /// Bytes of the process: rows held from read to written, rows in flight to the log, and 96 MiB for the program
        /// itself and what it reads ahead of a dozen partitions. Over it, tasks wait. "256MiB" fits a small container. Of
        /// many partitions, `log.fetch_bytes_per_partition` for each more comes on top.
        pub memory: ByteSize = ByteSize::mebibytes(256),
        /// How often a task writes down how far it is. "10s" is at most that much work done again after a crash.
        pub checkpoint_every: Duration = Duration::secs(10),
    }
}

settings! {
    /// Storage: commits channels to Delta tables.
    pub struct StorageConfig["storage"] {
        /// Where health and metrics are. This machine only, because there is no login yet.
        pub listen: String = String::from("127.0.0.1:8083"),
        /// A table is committed when this many bytes are buffered. "64MiB" makes files that scan well.
        pub flush_bytes: ByteSize = ByteSize::mebibytes(64),
        /// … or this many rows. 5000000 bounds a file of very narrow rows.
        pub flush_rows: u64 = 5_000_000,
        /// … or when the oldest buffered row is this old. "1s" makes tables fresh for every reader; longer means
        /// fewer, larger files.
        pub flush_age: Duration = Duration::secs(1),
        /// Progress without rows (all of them filtered out, or rejected) is committed when nothing has come for so long,
        /// and the ledger then shows nothing on its way. "15s" is longer than the pause between two checkpoints, which
        /// would each be a commit otherwise.
        pub quiet_age: Duration = Duration::secs(15),
        /// Bytes of the process. Half may be rows for files, buffered or on their way to the store, over all tables; over
        /// that, each table is committed early, and input waits. "1GiB" has room for eight full files.
        pub memory: ByteSize = ByteSize::gibibytes(1),
        /// ZSTD level of Parquet files, 1 to 22. 1, because level 3 costs 1.6 times the CPU for 1 % of the bytes.
        pub compression_level: i32 = 1,
    }
}

settings! {
    /// Analysis: answers SQL over tables, and follows the rows of channels.
    pub struct AnalysisConfig["analysis"] {
        /// Where SQL may be posted, and health and metrics. This machine only, because there is no login yet.
        pub listen: String = String::from("127.0.0.1:8084"),
        /// Bytes one query may use. "512MiB", so that one query cannot take all of `memory`.
        pub query_memory: ByteSize = ByteSize::mebibytes(512),
        /// Bytes all queries may use together. "1GiB" fits a small machine. The program, and an eighth of this for the
        /// footers of files, come on top.
        pub memory: ByteSize = ByteSize::gibibytes(1),
        /// How long a query may run. "60s" bounds what nobody waits for any more.
        pub timeout: Duration = Duration::secs(60),
        /// Rows of one answer at most. 1000000 is more than anybody reads; take a LIMIT, or the tables themselves,
        /// for more.
        pub max_rows: u64 = 1_000_000,
        /// Queries running at once; four times as many wait, for 10 s at most. 16 keeps a few cores busy without each query
        /// crawling.
        pub max_concurrent_queries: usize = 16,
    }
}

settings! {
    /// Logs and traces of the process itself. Metrics are always served at /metrics.
    pub struct TelemetryConfig["telemetry"] {
        /// "human" for a terminal, "json" for a log collector. People start with a terminal.
        pub logs: LogFormat = LogFormat::Human,
        /// error, warn, info, debug or trace, also per module: "info,storage=debug". "info" tells of start, stop
        /// and trouble, never of single batches.
        pub level: String = String::from("info"),
        /// Where traces go by OTLP over HTTP, for instance "http://127.0.0.1:4318". Empty sends none: nothing leaves
        /// the machine unless asked for.
        pub otlp_endpoint: String = String::new(),
        /// Share of new traces that are recorded, 0 to 1. 0.01 shows where time goes and costs nothing to speak of.
        /// A trace that came with a message keeps the decision of its sender.
        pub trace_sample_ratio: f64 = 0.01,
    }
}
