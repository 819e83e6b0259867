//! What can be typed. Help texts open with what the command does and end with examples.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use runtime::config::Override;

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
    #[arg(long, global = true, value_name = "URL")]
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
    /// Ask SQL: one statement, a file, or a prompt
    #[command(
        after_help = "Examples:\n  tailwater sql -c 'SELECT count(*) FROM shop.orders'\n  tailwater sql -f query.sql -o csv\n  tailwater sql                 # a prompt with history and completion"
    )]
    Sql {
        /// The statement
        #[arg(short, long, conflicts_with = "file")]
        command: Option<String>,
        /// A file with one statement
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
    #[command(after_help = "Examples:\n  tailwater health\n  tailwater --url http://127.0.0.1:8083 health")]
    Health,
    /// Print a completion script for a shell
    #[command(after_help = "Examples:\n  tailwater completion bash > /etc/bash_completion.d/tailwater")]
    Completion {
        /// Which shell
        shell: clap_complete::Shell,
    },
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
        for command in command.get_subcommands() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Examples:"), "`{}` has no examples", command.get_name());
        }
    }
}
