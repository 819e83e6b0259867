#![allow(clippy::unwrap_used)]

use std::fs;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::units::{ByteSize, Duration};

/// Every key there is, none at its default.
const EVERY_KEY: &str = r#"
[log]
kind = "kafka"
path = "log"
brokers = "one:9092,two:9092"
properties = { "security.protocol" = "SASL_SSL", "sasl.password" = "hunter2", "linger.ms" = 5, "enable.x" = true }
default_partitions = 3
create_missing_topics = false
channel_retention_age = "2d"
channel_retention_bytes = "10GiB"
max_inflight_bytes = "16MiB"
fetch_bytes_per_partition = "4MiB"

[store]
url = "s3://lake/tables"
options = { aws_access_key_id = "AKIA", aws_secret_access_key = "hunter3", aws_endpoint = "http://127.0.0.1:9000" }

[http]
listen = "0.0.0.0:9080"

[ingestion]
listen = "0.0.0.0:9081"
batch_rows = 4096
batch_bytes = "2MiB"
linger = "5ms"
max_message_bytes = "500kB"
max_body_bytes = "16MiB"
max_decompressed_bytes = "64MiB"
memory = "128MiB"
checkpoint_every = "5s"

[transformation]
listen = "0.0.0.0:9082"
memory = "128MiB"
checkpoint_every = "5s"

[storage]
listen = "0.0.0.0:9083"
flush_bytes = "32MiB"
flush_rows = 1000
flush_age = "10s"
quiet_age = "20s"
memory = "512MiB"
compression_level = 3

[analysis]
listen = "[::1]:9084"
query_memory = "256MiB"
memory = "512MiB"
timeout = "30s"
max_rows = 10
max_concurrent_queries = 4

[telemetry]
logs = "json"
level = "debug,storage=trace"
otlp_endpoint = "http://127.0.0.1:4318"
trace_sample_ratio = 1
"#;

struct Sample {
    folder: TempDir,
    options: LoadOptions,
}

impl Sample {
    /// A working folder with this `tailwater.toml` in it.
    fn with_file(text: &str) -> Sample {
        let sample = Sample::empty();
        fs::write(sample.folder.path().join("tailwater.toml"), text).unwrap();
        sample
    }

    fn empty() -> Sample {
        let folder = tempfile::tempdir().unwrap();
        let options = LoadOptions { folder: folder.path().to_owned(), ..LoadOptions::default() };
        Sample { folder, options }
    }

    fn env(mut self, name: &str, value: &str) -> Sample {
        self.options.env.push((name.to_owned(), value.to_owned()));
        self
    }

    fn set(mut self, text: &str) -> Sample {
        self.options.overrides.push(text.parse().unwrap());
        self
    }

    fn load(&self) -> Config {
        Config::load(self.options.clone()).unwrap_or_else(|faults| panic!("{faults}"))
    }

    /// The report of the faults, with the folder left out.
    fn faults(&self) -> String {
        let faults = Config::load(self.options.clone()).unwrap_err().to_string();
        let folder = format!("{}/", self.folder.path().display());
        faults.replace(&folder, "")
    }
}

#[test]
fn without_a_file_the_defaults_hold_and_paths_start_at_the_working_folder() {
    let sample = Sample::empty();
    let config = sample.load();
    let mut expected = Config::default();
    expected.log.path = sample.folder.path().join(".tailwater/log");
    let tables = sample.folder.path().join(".tailwater/tables");
    expected.store.url = tables.to_str().unwrap().to_owned();
    assert_eq!(config, expected);
    config.validate().unwrap();
    assert!(config.warnings().is_empty());
}

#[test]
fn a_file_with_every_key_sets_every_key() {
    let config = Sample::with_file(EVERY_KEY).load();
    let written: toml::Table = toml::from_str(EVERY_KEY).unwrap();
    let defaults = toml::Table::try_from(Config::default()).unwrap();
    for section in SECTIONS {
        for key in section.keys {
            let written = written[section.name].get(key.name);
            let default = defaults[section.name].get(key.name);
            assert!(written.is_some(), "{}.{} is missing above", section.name, key.name);
            assert_ne!(written, default, "{}.{} is at its default", section.name, key.name);
        }
    }
    // What was read is what plain serde reads, but for paths and the text of properties.
    let mut expected: Config = toml::from_str(EVERY_KEY).unwrap();
    expected.log.path = config.log.path.clone();
    assert_eq!(config, expected);
    assert_eq!(config.log.properties["linger.ms"], "5");
    assert_eq!(config.log.properties["enable.x"], "true");
    assert_eq!(config.log.channel_retention_bytes, Some(ByteSize::gibibytes(10)));
    assert_eq!(config.analysis.timeout, Duration::secs(30));
}

#[test]
fn the_reference_file_parses_to_the_defaults_and_explains_every_key() {
    let text = Config::reference_toml();
    assert_eq!(toml::from_str::<Config>(&text).unwrap(), Config::default());
    let sample = Sample::with_file(&text);
    let with_reference = sample.load();
    fs::remove_file(sample.folder.path().join("tailwater.toml")).unwrap();
    assert_eq!(with_reference, sample.load());
    for section in SECTIONS {
        assert!(!section.about.is_empty(), "{} has no explanation", section.name);
        for key in section.keys {
            assert!(!key.docs.is_empty(), "{}.{} has no explanation", section.name, key.name);
            let line = format!("{} = ", key.name);
            let shown = text.lines().any(|found| found.trim_start_matches("# ").starts_with(&line));
            assert!(shown, "{}.{} is not in the reference", section.name, key.name);
        }
    }
    // The one key without a default shows an example that works.
    let example = text.replace("# channel_retention_bytes", "channel_retention_bytes");
    let config: Config = toml::from_str(&example).unwrap();
    assert!(config.log.channel_retention_bytes.is_some());
}

#[test]
fn variables_go_over_the_file_and_flags_over_variables() {
    let sample = Sample::with_file("[storage]\nflush_age = \"2s\"\nflush_rows = 2\nmemory = \"2GiB\"\n")
        .env("TAILWATER__STORAGE__FLUSH_AGE", "3s")
        .env("TAILWATER__STORAGE__FLUSH_ROWS", "3")
        .env("PATH", "/bin")
        .env("TAILWATER_HOME", "/")
        .set("storage.flush_age=4s");
    let storage = sample.load().storage;
    assert_eq!(storage.flush_age, Duration::secs(4));
    assert_eq!(storage.flush_rows, 3);
    assert_eq!(storage.memory, ByteSize::gibibytes(2));
    assert_eq!(storage.flush_bytes, StorageConfig::default().flush_bytes);
}

#[test]
fn every_type_can_be_written_in_a_variable() {
    let config = Sample::empty()
        .env("TAILWATER__LOG__KIND", "kafka")
        .env("TAILWATER__LOG__BROKERS", "9092:9092")
        .env("TAILWATER__LOG__CREATE_MISSING_TOPICS", "false")
        .env("TAILWATER__LOG__CHANNEL_RETENTION_BYTES", "1GiB")
        .env("TAILWATER__LOG__PROPERTIES__SECURITY_PROTOCOL", "SSL")
        .env("TAILWATER__STORE__OPTIONS__AWS_ACCESS_KEY_ID", "0123")
        .env("TAILWATER__STORAGE__COMPRESSION_LEVEL", "3")
        .env("TAILWATER__TELEMETRY__TRACE_SAMPLE_RATIO", "1")
        .env("TAILWATER__TELEMETRY__LEVEL", "off")
        .load();
    assert_eq!(config.log.kind, LogKind::Kafka);
    assert_eq!(config.log.brokers, "9092:9092");
    assert!(!config.log.create_missing_topics);
    assert_eq!(config.log.channel_retention_bytes, Some(ByteSize::gibibytes(1)));
    assert_eq!(config.log.properties["security.protocol"], "SSL");
    assert_eq!(config.store.options["aws_access_key_id"], "0123");
    assert_eq!(config.storage.compression_level, 3);
    assert_eq!(config.telemetry.trace_sample_ratio, 1.0);
    assert_eq!(config.telemetry.level, "off");
}

#[test]
fn tables_of_options_merge_by_name() {
    let file = "[log.properties]\nsecurity.protocol = \"PLAINTEXT\"\n\"client.rack\" = \"a\"\n";
    let properties = Sample::with_file(file)
        .env("TAILWATER__LOG__PROPERTIES__SECURITY_PROTOCOL", "SSL")
        .set("log.properties.linger.ms=7")
        .load()
        .log
        .properties;
    let pairs: Vec<(&str, &str)> = properties.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(pairs, [("client.rack", "a"), ("linger.ms", "7"), ("security.protocol", "SSL")]);
}

#[test]
fn all_faults_are_told_at_once_sorted_and_with_their_places() {
    let file = "\
flush_age = \"1s\"

[storag]
flush_rows = 1

[storage]
flush_agee = \"1s\"
flush_age = \"0s\"
flush_bytes = \"2GiB\"
compression_level = \"fast\"

[log]
kind = \"kafak\"
url = \"s3://x\"

[analysis]
timeout = 60
";
    let sample = Sample::with_file(file)
        .env("TAILWATER__STORGE__MEMORY", "1GiB")
        .env("TAILWATER__INGESTION__BATCHROWS", "1")
        .env("TAILWATER__LOG", "kafka")
        .set("http.listen=8080")
        .set("telemetry.level=inof");
    assert_eq!(
        sample.faults(),
        "config has 14 faults:
  `analysis.timeout` is 60; expected a time with a unit such as `250ms`, `5s` or `7d` (tailwater.toml, line 17)
  `flush_age` is no section of the config; did you mean `storage.flush_age`? (tailwater.toml, line 1)
  `http.listen` is `8080`; write an address and a port such as `127.0.0.1:8080` (flag --set)
  `ingestion.batchrows` is no key of the config; did you mean `ingestion.batch_rows`? (environment variable TAILWATER__INGESTION__BATCHROWS)
  `log` names no key; write TAILWATER__SECTION__KEY (environment variable TAILWATER__LOG)
  `log.kind` is `kafak`; expected `embedded` or `kafka`; did you mean `kafka`? (tailwater.toml, line 13)
  `log.url` is no key of the config; did you mean `store.url`? (tailwater.toml, line 14)
  `storag` is no section of the config; did you mean `storage`? (tailwater.toml, line 3)
  `storage.compression_level` is \"fast\"; expected a whole number (tailwater.toml, line 10)
  `storage.flush_age` is 0s; use at least 1ms (tailwater.toml, line 8)
  `storage.flush_agee` is no key of the config; did you mean `storage.flush_age`? (tailwater.toml, line 7)
  `storage.flush_bytes` is 2GiB, above `storage.memory` of 1GiB; lower it or raise `storage.memory` (tailwater.toml, line 9)
  `storge.memory` is no section of the config; did you mean `storage`? (environment variable TAILWATER__STORGE__MEMORY)
  `telemetry.level` has the unknown level `inof`; use one of off, error, warn, info, debug, trace; did you mean `info`? (flag --set)"
    );
}

#[test]
fn a_named_file_that_is_missing_is_a_fault_and_the_usual_one_is_not() {
    let mut sample = Sample::empty();
    sample.load();
    sample.options.file = Some(PathBuf::from("other.toml"));
    assert_eq!(
        sample.faults(),
        "config has 1 fault:\n  file `other.toml` does not exist; name an existing one, or write one with `tailwater init`"
    );
}

#[test]
fn a_file_that_is_not_toml_tells_the_line_and_the_other_layers_are_still_checked() {
    let sample = Sample::with_file("[log]\nkind = \"kafka\"\nbrokers = localhost\n")
        .env("TAILWATER__LOG__KIND", "kafka")
        .env("TAILWATER__LOG__PTH", "x");
    let faults = sample.faults();
    assert!(faults.starts_with("config has 2 faults:\n  file `tailwater.toml` is not TOML: "), "{faults}");
    assert!(faults.contains("(tailwater.toml, line 3)"), "{faults}");
    assert!(faults.contains("did you mean `log.path`?"), "{faults}");
}

#[test]
fn relations_are_not_judged_by_values_that_are_themselves_wrong() {
    let faults = Sample::with_file("[storage]\nmemory = \"a lot\"\nflush_bytes = \"4GiB\"\n").faults();
    assert_eq!(faults.lines().count(), 2, "{faults}");
    assert!(faults.contains("`storage.memory` does not fit: expected a size"), "{faults}");
}

#[test]
fn broken_relations_are_faults() {
    for (settings, key) in [
        (vec!["log.kind=kafka"], "log.brokers"),
        (vec!["log.path="], "log.path"),
        (vec!["log.default_partitions=0"], "log.default_partitions"),
        (vec!["log.channel_retention_age=1s"], "ingestion.checkpoint_every"),
        (vec!["log.channel_retention_age=1s"], "log.channel_retention_age"),
        (vec!["log.fetch_bytes_per_partition=100kB"], "ingestion.max_message_bytes"),
        (vec!["log.max_inflight_bytes=100kB"], "ingestion.max_message_bytes"),
        (vec!["log.channel_retention_bytes=100kB"], "ingestion.max_message_bytes"),
        (vec!["store.url="], "store.url"),
        (vec!["store.url=gs://bucket"], "store.url"),
        (vec!["analysis.listen=localhost"], "analysis.listen"),
        (vec!["storage.listen=:8080"], "storage.listen"),
        (vec!["ingestion.batch_rows=0"], "ingestion.batch_rows"),
        (vec!["ingestion.batch_rows=1048577"], "ingestion.batch_rows"),
        (vec!["ingestion.max_body_bytes=1GiB"], "ingestion.max_body_bytes"),
        (vec!["ingestion.max_decompressed_bytes=1GiB"], "ingestion.max_decompressed_bytes"),
        (vec!["ingestion.memory=100MiB"], "ingestion.max_decompressed_bytes"),
        (vec!["ingestion.max_message_bytes=1kB"], "ingestion.max_message_bytes"),
        (vec!["ingestion.linger=11s"], "ingestion.linger"),
        (vec!["transformation.checkpoint_every=0s"], "transformation.checkpoint_every"),
        (vec!["transformation.memory=100kB"], "ingestion.max_message_bytes"),
        (vec!["storage.flush_rows=0"], "storage.flush_rows"),
        (vec!["storage.compression_level=23"], "storage.compression_level"),
        (vec!["storage.quiet_age=0s"], "storage.quiet_age"),
        (vec!["analysis.query_memory=2GiB"], "analysis.query_memory"),
        (vec!["analysis.max_concurrent_queries=0"], "analysis.max_concurrent_queries"),
        (vec!["telemetry.level=storage=loud"], "telemetry.level"),
        (vec!["telemetry.otlp_endpoint=127.0.0.1:4318"], "telemetry.otlp_endpoint"),
        (vec!["telemetry.otlp_endpoint=http:///v1"], "telemetry.otlp_endpoint"),
        (vec!["telemetry.trace_sample_ratio=1.1"], "telemetry.trace_sample_ratio"),
        (vec!["telemetry.trace_sample_ratio=nan"], "telemetry.trace_sample_ratio"),
    ] {
        let sample = settings.iter().fold(Sample::empty(), |sample, text| sample.set(text));
        let faults = Config::load(sample.options).expect_err(key);
        assert!(faults.iter().any(|fault| fault.key() == key), "{settings:?} gave {faults}");
    }
}

#[test]
fn what_is_probably_not_meant_is_a_warning() {
    let config = Sample::empty().set("log.brokers=one:9092").load();
    assert!(config.warnings()[0].contains("`log.brokers` is not used"), "{:?}", config.warnings());
    let config = Sample::empty()
        .set("log.kind=kafka")
        .set("log.brokers=one:9092")
        .set("ingestion.max_message_bytes=2MiB")
        .load();
    assert_eq!(config.warnings().len(), 1);
    assert!(config.warnings()[0].contains("`message.max.bytes`"), "{:?}", config.warnings());
}

#[test]
fn relative_paths_start_where_they_were_written() {
    let mut sample = Sample::empty();
    let project = sample.folder.path().join("project");
    fs::create_dir(&project).unwrap();
    fs::write(project.join("tailwater.toml"), "[log]\npath = \"./state/log\"\n").unwrap();
    sample.options.file = Some(PathBuf::from("project/tailwater.toml"));
    let config = sample.load();
    assert_eq!(config.log.path, project.join("state/log"));
    assert_eq!(Path::new(&config.store.url), project.join(".tailwater/tables"));
    let config = sample.set("store.url=here").env("TAILWATER__LOG__PATH", "/abs/log");
    let (folder, config) = (config.folder.path().to_owned(), config.load());
    assert_eq!(Path::new(&config.store.url), folder.join("here"));
    assert_eq!(config.log.path, Path::new("/abs/log"));
}

#[test]
fn a_url_is_no_path() {
    for url in ["s3://lake/tables", "file:///srv/tables"] {
        assert_eq!(Sample::empty().set(&format!("store.url={url}")).load().store.url, url);
    }
}

#[test]
fn secrets_are_never_shown() {
    let sample = Sample::with_file(EVERY_KEY)
        .env("TAILWATER__STORE__OPTIONS__AWS_SESSION_TOKEN", "hunter4")
        .set("log.properties.ssl.key.password=hunter5");
    let config = sample.load();
    let shown = [
        format!("{config:?}"),
        format!("{:#?}", config.log.properties),
        format!("{:?}", sample.options),
        config.to_toml_masked(),
    ];
    for text in shown {
        assert!(!text.contains("hunter"), "{text}");
    }
    let masked: Config = toml::from_str(&config.to_toml_masked()).unwrap();
    assert_eq!(masked.store.options["aws_secret_access_key"], MASK);
    assert_eq!(masked.store.options["aws_endpoint"], "http://127.0.0.1:9000");
    assert_eq!(masked.storage, config.storage);
    assert_eq!(config.store.options["aws_secret_access_key"], "hunter3");
}

#[test]
fn faults_do_not_show_secrets_either() {
    let faults = Sample::empty()
        .env("TAILWATER__STORE__OPTIONS", "hunter2")
        .env("TAILWATER__STORE__OPTION__AWS_SECRET_ACCESS_KEY", "hunter3")
        .faults();
    assert!(!faults.contains("hunter"), "{faults}");
    assert!(faults.contains("did you mean `store.options`?"), "{faults}");
}

#[test]
fn plain_serde_refuses_unknown_keys_too() {
    toml::from_str::<Config>("[log]\nkint = \"kafka\"\n").unwrap_err();
    toml::from_str::<Config>("[lag]\n").unwrap_err();
}

#[test]
fn a_set_flag_needs_an_equals_sign_and_a_key() {
    assert_eq!("storage.flush_age".parse::<Override>(), Err(NoEqualsSign));
    let faults = Sample::empty().set("flush_age=1s").faults();
    assert!(faults.contains("`flush_age` names no key; write section.key=value (flag --set)"), "{faults}");
}

#[test]
fn the_process_gives_its_own_variables_only() {
    let options = LoadOptions::from_process();
    assert!(options.folder.is_absolute());
    assert!(options.env.iter().all(|(name, _)| name.starts_with("TAILWATER__")));
}

proptest! {
    #[test]
    fn no_file_however_broken_makes_loading_panic(text in "[\\[\\]a-z_.=\"{}0-9 \n#,-]{0,200}") {
        let sample = Sample::with_file(&text);
        drop(Config::load(sample.options));
    }

    #[test]
    fn no_variable_however_odd_makes_loading_panic(name in "[A-Z_]{0,40}", value in ".{0,40}") {
        let sample = Sample::empty().env(&format!("TAILWATER__{name}"), &value);
        drop(Config::load(sample.options));
    }
}
