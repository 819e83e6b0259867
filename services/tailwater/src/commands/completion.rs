//! `tailwater completion`: a completion script on standard output.

use clap::CommandFactory as _;

use crate::{arguments::Arguments, commands::Failure};

pub(crate) fn run(shell: clap_complete::Shell) -> Result<(), Failure> {
    clap_complete::generate(shell, &mut Arguments::command(), "tailwater", &mut std::io::stdout());
    Ok(())
}
