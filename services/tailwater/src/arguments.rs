//! What can be typed. Help texts open with what the command does and end with examples.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use runtime::{
    config::Override,
    units::{ByteSize, Duration},
};

use crate::verify::produce::Over;

/// Turns event streams into fresh, queryable tables.
#[derive(Debug, Parser)]
#[command(
    name = "tailwater",
    version,
    after_help = "Start here:\n  tailwater demo          see it run on real data\n  tailwater init shop     make a project to change\n  tailwater up            run all four services in one process"
)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags every command takes.
#[derive(Clone, Debug, Args)]
pub(crate) struct Global {
    /// Config file [default: ./tailwater.toml if there is one]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Set one config key, for example --set storage.flush_age=5s
    #[arg(long = "set", global = true, value_name = "SECTION.KEY=VALUE")]
    pub(crate) overrides: Vec<Override>,
    /// Address of a running Tailwater [default: from the config]
    #[arg(long, global = true, value_name = "URL", value_parser = base_url)]
    pub(crate) url: Option<String>,
}

/// How listings are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    #[default]
    Table,
    /// One JSON document
    Json,
    /// One JSON object a line
    Ndjson,
    /// Comma-separated, with a header
    Csv,
}

impl Format {
    /// The word the SQL endpoint knows it by.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Table => "table",
            Self::Json => "json",
            Self::Ndjson => "ndjson",
            Self::Csv => "csv",
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a project folder: config, the shop pipeline, its data
    #[command(after_help = "Examples:\n  tailwater init shop && cd shop && tailwater up")]
    Init {
        /// Folder to make
        folder: PathBuf,
    },
    /// Run all four services in one process
    #[command(
        after_help = "Examples:\n  tailwater up\n  tailwater up --pipelines pipelines\n  tailwater up --set http.listen=127.0.0.1:9000"
    )]
    Up {
        /// Apply every pipeline folder in here at start [default: ./pipelines if there is one]
        #[arg(long, value_name = "DIR")]
        pipelines: Option<PathBuf>,
    },
    /// Run one service by itself, on Kafka
    #[command(after_help = "Examples:\n  tailwater serve storage --config tailwater.toml")]
    Serve {
        /// Which
        service: Service,
    },
    /// Ingest the shop data, show the tables and answers, then serve until Ctrl-C
    #[command(
        after_help = "Examples:\n  tailwater demo\n  tailwater demo --once      # for scripts: end when all is shown"
    )]
    Demo {
        /// End when everything is shown
        #[arg(long)]
        once: bool,
        /// Keep log and tables here [default: a fresh temporary folder]
        #[arg(long, value_name = "DIR")]
        folder: Option<PathBuf>,
    },
    /// Publish a pipeline folder: prints the plan, then does it
    #[command(
        after_help = "Examples:\n  tailwater apply pipelines/shop --dry-run\n  tailwater apply pipelines/shop --replace"
    )]
    Apply {
        /// Folder with *.sql in it
        folder: PathBuf,
        /// Name of the pipeline [default: the folder's name]
        #[arg(long)]
        pipeline: Option<String>,
        /// Allow definitions to change: each begins anew in its own channel and table
        #[arg(long)]
        replace: bool,
        /// Allow definitions to go
        #[arg(long)]
        drop: bool,
        /// Stop after the plan
        #[arg(long)]
        dry_run: bool,
    },
    /// Send a file, or standard input, to a source
    #[command(
        after_help = "Examples:\n  tailwater ingest shop.orders data/shop/orders.ndjson\n  zcat events.ndjson.gz | tailwater ingest shop.orders -\n  tailwater ingest shop.customers data/shop/customers.csv"
    )]
    Ingest {
        /// Where to: pipeline.source
        source: String,
        /// A file, or - for standard input
        file: PathBuf,
        /// What it holds [default: from the file's name; ndjson for -]
        #[arg(long)]
        format: Option<IngestFormat>,
    },
    /// Ask SQL: one statement, a file, standard input, or a prompt
    #[command(
        after_help = "Examples:\n  tailwater sql -c 'SELECT count(*) FROM shop.orders'\n  tailwater sql -f query.sql -o csv\n  tailwater sql < query.sql\n  tailwater sql                 # a prompt with history and completion"
    )]
    Sql {
        /// The statement
        #[arg(short, long, conflicts_with = "file")]
        command: Option<String>,
        /// A file with one statement, or - for standard input
        #[arg(short, long)]
        file: Option<PathBuf>,
        /// How to print the answer
        #[arg(short, long, default_value = "table")]
        output: Format,
    },
    /// Show the ledger: every row accounted for, lag and freshness
    #[command(after_help = "Examples:\n  tailwater status\n  tailwater status -o json")]
    Status {
        /// How to print it
        #[arg(short, long, default_value = "table")]
        output: Format,
    },
    /// Follow the rows of a source or view as they come
    #[command(
        after_help = "Examples:\n  tailwater tail shop.orders\n  tailwater tail shop.orders --from start --limit 10"
    )]
    Tail {
        /// What to follow: pipeline.name
        name: String,
        /// Where to begin: start, end, or an offset
        #[arg(long, default_value = "end")]
        from: String,
        /// End after so many rows
        #[arg(long)]
        limit: Option<u64>,
    },
    /// Check the config and pipeline folders without contacting anything
    #[command(after_help = "Examples:\n  tailwater check\n  tailwater check pipelines/shop --config tailwater.toml")]
    Check {
        /// Pipeline folders [default: every folder in ./pipelines]
        folders: Vec<PathBuf>,
        /// Print the config as it takes effect, secrets masked
        #[arg(long)]
        print_config: bool,
    },
    /// Ask a running process whether it is ready; exits 75 if not (for container health checks)
    #[command(
        after_help = "Examples:\n  tailwater health\n  tailwater health --wait 60s      # for scripts: go on once it is ready\n  tailwater --url http://127.0.0.1:8083 health"
    )]
    Health {
        /// Ask again until it is ready, for so long at most [default: ask once]
        #[arg(long, value_name = "TIME")]
        wait: Option<Duration>,
    },
    /// Prove on your own cluster that no row is lost or doubled
    #[command(
        after_help = "Examples:\n  tailwater verify produce --ledger run.ledger --over http --for 60s\n  tailwater verify check --ledger run.ledger\n  tailwater verify watch --for 60s\n\nKill and restart services while it produces; the check accounts for every row."
    )]
    Verify {
        #[command(subcommand)]
        step: Verify,
    },
    /// Print a completion script for a shell
    #[command(after_help = "Examples:\n  tailwater completion bash > /etc/bash_completion.d/tailwater")]
    Completion {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

/// The steps of a proof.
#[derive(Debug, Subcommand)]
pub(crate) enum Verify {
    /// Send keyed, numbered, checksummed rows and write down what became of each
    ///
    /// Applies the pipeline first where it is not there. Ends after --rows or --for, or at Ctrl-C. A killed producer
    /// leaves a ledger that is as good: rows without a fate count as unknown. The same --ledger again goes on.
    #[command(
        after_help = "Examples:\n  tailwater verify produce --ledger a.ledger --for 60s                 # to the topic\n  tailwater verify produce --ledger b.ledger --over http --retry --for 60s\n  tailwater verify produce --ledger c.ledger --rows 1000000 --rate 0 --bytes 0..100"
    )]
    Produce(Produce),
    /// Compare ledgers with the tables, the rejected rows, the views and the Delta logs; exits 1 if anything is wrong
    #[command(
        after_help = "Examples:\n  tailwater verify check --ledger a.ledger --ledger b.ledger\n  tailwater verify check --ledger a.ledger --within 5m -o json\n  tailwater verify check --ledger a.ledger --reader-command 'python3 pipelines/verify/readers/reader.py duckdb'"
    )]
    Check(VerifyCheck),
    /// Ask again and again, while rows come in, whether rows or versions ever go back
    #[command(
        after_help = "Examples:\n  tailwater verify watch --for 60s\n  tailwater verify watch --every 50ms -o json"
    )]
    Watch(Watch),
}

/// What to send.
#[derive(Debug, Args)]
pub(crate) struct Produce {
    /// Where to write down what became of each row
    #[arg(long, value_name = "FILE")]
    pub(crate) ledger: PathBuf,
    #[command(flatten)]
    pub(crate) target: VerifyTarget,
    /// How rows travel
    #[arg(long, default_value = "topic")]
    pub(crate) over: Over,
    /// Rows a second; 0 for as fast as they go
    #[arg(long, default_value_t = 5000.0, value_name = "ROWS")]
    pub(crate) rate: f64,
    /// End after so many rows
    #[arg(long)]
    pub(crate) rows: Option<u64>,
    /// End after this time
    #[arg(long = "for", value_name = "TIME")]
    pub(crate) time: Option<Duration>,
    /// How many keys there are; half of the rows go to a sixteenth of them
    #[arg(long, default_value_t = 200)]
    pub(crate) keys: u64,
    /// What the content of rows is drawn from
    #[arg(long, default_value_t = 7)]
    pub(crate) seed: u64,
    /// Name of the producer [default: p1, or the ledger's]
    #[arg(long, value_name = "NAME")]
    pub(crate) producer: Option<String>,
    /// Share of rows that are bad on purpose and must be rejected
    #[arg(long, default_value_t = 0.01, value_name = "SHARE")]
    pub(crate) bad_rate: f64,
    /// Sizes of payloads, from and to, for example 0..900 or 1kB..900kB
    #[arg(long, default_value = "0..900", value_name = "FROM..TO", value_parser = byte_range)]
    pub(crate) bytes: (u32, u32),
    /// Partitions of the source's topic, where it is made
    #[arg(long, default_value_t = 4)]
    pub(crate) partitions: u32,
    /// Over HTTP: send a request without an answer again, for at most this long
    #[arg(long, num_args = 0..=1, default_missing_value = "60s", value_name = "TIME")]
    pub(crate) retry: Option<Duration>,
}

/// What to compare.
#[derive(Debug, Args)]
pub(crate) struct VerifyCheck {
    /// The ledger of a producer; give all of them
    #[arg(long = "ledger", value_name = "FILE", required = true)]
    pub(crate) ledgers: Vec<PathBuf>,
    /// How long to wait until nothing is on its way
    #[arg(long, default_value = "60s", value_name = "TIME")]
    pub(crate) within: Duration,
    /// A program that reads the table too; see pipelines/verify/README.md
    #[arg(long, value_name = "COMMAND")]
    pub(crate) reader_command: Option<String>,
    /// Rows of runs whose ledger is not given, and of other programs, are none of our business
    #[arg(long)]
    pub(crate) other_runs: bool,
    /// How to print the findings
    #[arg(short, long, default_value = "table")]
    pub(crate) output: Format,
}

/// What to look at.
#[derive(Debug, Args)]
pub(crate) struct Watch {
    #[command(flatten)]
    pub(crate) target: VerifyTarget,
    /// End after this time
    #[arg(long = "for", value_name = "TIME")]
    pub(crate) time: Option<Duration>,
    /// How often to ask
    #[arg(long, default_value = "200ms", value_name = "TIME")]
    pub(crate) every: Duration,
    /// How to print the findings
    #[arg(short, long, default_value = "table")]
    pub(crate) output: Format,
}

/// Which pipeline.
#[derive(Debug, Args)]
pub(crate) struct VerifyTarget {
    /// The pipeline
    #[arg(long, default_value = "verify", value_name = "NAME")]
    pub(crate) pipeline: String,
    /// Its source
    #[arg(long, default_value = "events", value_name = "NAME")]
    pub(crate) source: String,
}

/// Where a Tailwater answers. Without a scheme, `localhost:8080` would be a URL of the scheme `localhost`.
fn base_url(text: &str) -> Result<String, String> {
    let is_base = |text: &str| {
        let url = reqwest::Url::parse(text);
        url.is_ok_and(|url| ["http", "https"].contains(&url.scheme()) && url.has_host())
    };
    if is_base(text) {
        return Ok(text.to_owned());
    }
    let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
    let meant = Some(format!("http://{rest}")).filter(|meant| is_base(meant));
    let example = meant.as_deref().unwrap_or("http://127.0.0.1:8080");
    Err(format!("expected http:// or https:// and a host, for example {example}"))
}

fn byte_range(text: &str) -> Result<(u32, u32), String> {
    /// With the other columns a row must fit a message.
    const MOST: u64 = 900_000;
    let (from, to) = text.split_once("..").ok_or("expected FROM..TO, for example 0..900")?;
    let bytes = |text: &str| text.parse::<ByteSize>().map_err(|error| error.to_string());
    let (from, to) = (bytes(from)?.as_usize() as u64, bytes(to)?.as_usize() as u64);
    if from > to || to > MOST {
        return Err(format!("expected FROM <= TO <= 900kB, found {text}"));
    }
    Ok((from as u32, to as u32))
}

/// The four services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Service {
    /// Users' topics and HTTP into channels
    Ingestion,
    /// SQL over channels
    Transformation,
    /// Channels into tables
    Storage,
    /// SQL over tables
    Analysis,
}

/// What a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum IngestFormat {
    /// One object a line
    Ndjson,
    /// One object, or an array of them
    Json,
    /// Comma-separated with a header line
    Csv,
    /// An Arrow IPC stream
    Arrow,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn every_command_says_how_to_use_it() {
        let command = super::Arguments::command();
        command.clone().debug_assert();
        let all =
            command.get_subcommands().flat_map(|command| std::iter::once(command).chain(command.get_subcommands()));
        for command in all {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Examples:"), "`{}` has no examples", command.get_name());
        }
    }

    #[test]
    fn an_address_has_a_scheme_and_a_host() {
        for right in ["http://localhost:8080", "https://lake.example/tailwater/", "http://[::1]:8080"] {
            assert_eq!(super::base_url(right).as_deref(), Ok(right));
        }
        for (wrong, example) in [
            ("localhost:8080", "http://localhost:8080"),
            ("127.0.0.1:8080", "http://127.0.0.1:8080"),
            ("ftp://lake.example", "http://lake.example"),
            ("http://", "http://127.0.0.1:8080"),
            ("localhost:808080", "http://127.0.0.1:8080"),
        ] {
            let error = super::base_url(wrong).err().unwrap_or_default();
            assert!(error.ends_with(&format!("for example {example}")), "{wrong}: {error}");
        }
    }

    #[test]
    fn payload_sizes_are_ranges_with_or_without_units() {
        assert_eq!(super::byte_range("0..900"), Ok((0, 900)));
        assert_eq!(super::byte_range("1kB..900kB"), Ok((1000, 900_000)));
        for wrong in ["900", "9..1", "0..2MB", "a..b"] {
            assert!(super::byte_range(wrong).is_err(), "{wrong}");
        }
    }
}
