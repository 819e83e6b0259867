//! The commands, one file each, and how they end.

pub(crate) mod apply;
mod check;
mod completion;
mod demo;
mod health;
mod ingest;
mod init;
mod serve;
mod sql;
pub(crate) mod status;
mod tail;
mod up;
mod verify;

use runtime::{
    config::{Config, ConfigFaults, LoadOptions},
    exit::Code,
    process,
};

use crate::arguments::{Arguments, Command, Global};

/// A command that did not succeed.
#[derive(Debug)]
pub(crate) struct Failure {
    /// What to tell the user.
    pub(crate) error: anyhow::Error,
    /// What to tell the shell.
    pub(crate) code: Code,
}

impl Failure {
    /// Something needed is not there now; trying again may help.
    pub(crate) fn unavailable(error: anyhow::Error) -> Self {
        Self { error, code: Code::Unavailable }
    }

    /// The config is at fault.
    pub(crate) fn config(error: anyhow::Error) -> Self {
        Self { error, code: Code::BadConfig }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        let code = Code::of(&error);
        Self { error, code }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        anyhow::Error::from(error).into()
    }
}

impl From<ConfigFaults> for Failure {
    fn from(faults: ConfigFaults) -> Self {
        Self::config(faults.into())
    }
}

/// Runs one command to its end.
pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    let global = arguments.global;
    match arguments.command {
        Command::Completion { shell } => completion::run(shell),
        Command::Init { folder } => init::run(&folder),
        Command::Check { folders, print_config } => check::run(&global, &folders, print_config),
        command => process::block_on(run_connected(global, command))?,
    }
}

/// Commands that need a runtime.
async fn run_connected(global: Global, command: Command) -> Result<(), Failure> {
    let config = load(&global)?;
    match command {
        Command::Up { pipelines } => up::run(config, pipelines).await,
        Command::Serve { service } => serve::run(config, service).await,
        Command::Demo { once, folder } => demo::run(config, once, folder).await,
        Command::Apply { folder, pipeline, replace, drop, dry_run } => {
            let wish = apply::Wish { folder, pipeline, replace, drop, dry_run };
            apply::run(&global, &config, wish).await
        }
        Command::Ingest { source, file, format } => ingest::run(&global, &config, &source, &file, format).await,
        Command::Sql { command, file, output } => sql::run(&global, &config, command, file, output).await,
        Command::Status { output } => status::run(&global, &config, output).await,
        Command::Tail { name, from, limit } => tail::run(&global, &config, &name, &from, limit).await,
        Command::Verify { step } => verify::run(&global, &config, step).await,
        Command::Health { wait } => health::run(&global, &config, wait).await,
        Command::Completion { .. } | Command::Init { .. } | Command::Check { .. } => Ok(()),
    }
}

/// The config this command runs under.
fn load(global: &Global) -> Result<Config, ConfigFaults> {
    Config::load(options(global))
}

fn options(global: &Global) -> LoadOptions {
    LoadOptions { file: global.config.clone(), overrides: global.overrides.clone(), ..LoadOptions::from_process() }
}
