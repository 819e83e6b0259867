//! `tailwater completion`: a completion script on standard output.

use clap::CommandFactory as _;

use crate::{arguments::Arguments, commands::Failure, output};

pub(crate) fn run(shell: clap_complete::Shell) -> Result<(), Failure> {
    // Into memory first: what writes for clap panics where it cannot.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "tailwater", &mut script);
    output::raw(&script)?;
    Ok(())
}
