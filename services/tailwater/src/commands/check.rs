//! `tailwater check`: the config and pipeline folders, without contacting anything.

use std::path::PathBuf;

use anyhow::anyhow;
use pipeline::{Catalog, SourceText};

use crate::{
    arguments::Global,
    commands::{Failure, apply::read_files, load, up::pipeline_folders},
    output,
};

pub(crate) fn run(global: &Global, folders: &[PathBuf], print_config: bool) -> Result<(), Failure> {
    let config = load(global)?;
    if print_config {
        return Ok(output::line(config.to_toml_masked().trim_end())?);
    }
    output::note("config: ok");
    let folders = if folders.is_empty() { pipeline_folders(None)? } else { folders.to_vec() };
    let mut faulty = 0;
    for folder in &folders {
        match check_pipeline(folder) {
            Ok(definitions) => output::note(format!("pipeline {}: ok, {definitions} definitions", folder.display())),
            Err(failure) => {
                faulty += 1;
                output::error(&failure.error);
            }
        }
    }
    match faulty {
        0 => Ok(()),
        faulty => Err(Failure::config(anyhow!("{faulty} of {} pipeline folders are at fault", folders.len()))),
    }
}

/// Parses and plans a folder against an empty catalog; how many definitions it has.
fn check_pipeline(folder: &std::path::Path) -> Result<usize, Failure> {
    let files = read_files(folder)?;
    let files: Vec<_> = files.into_iter().map(|file| SourceText { file: file.file, text: file.text }).collect();
    let statements = pipeline::parse(&files).map_err(anyhow::Error::new)?;
    let definitions = statements.len();
    pipeline::plan_change(&Catalog::default(), "check", statements).map_err(anyhow::Error::new)?;
    Ok(definitions)
}
