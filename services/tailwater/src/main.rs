//! The `tailwater` program: the command line, and all four services in one process.
//!
//! Parses, loads the config, runs one command, and turns its outcome into an exit code. What each command does is in
//! `commands`; nothing is decided here.

mod arguments;
mod client;
mod commands;
mod output;
mod shop;
mod verify;

use std::process::ExitCode;

use clap::Parser as _;
use runtime::exit::Code;

use crate::arguments::Arguments;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Err(error) = runtime::fail_points::arm_from_process() {
        output::note(format!("error: {error}"));
        return Code::Usage.into();
    }
    match commands::run(arguments) {
        Ok(()) => Code::Ok.into(),
        Err(failure) => {
            output::error(&failure.error);
            failure.code.into()
        }
    }
}
