//! The documents' commands are the program's commands.

use std::fs;

use anyhow::Result;
use testkit::process::Program;

use crate::deployment::repository;

/// Every `tailwater …` line in a fenced block.
fn commands(document: &str) -> Vec<String> {
    let mut fenced = false;
    let mut commands = Vec::new();
    for line in document.lines() {
        if line.starts_with("```") {
            fenced = !fenced;
        } else if fenced {
            let line = line.trim_start_matches("$ ").trim();
            if line.starts_with("tailwater ") {
                commands.push(line.to_owned());
            }
        }
    }
    commands
}

#[test]
fn every_command_in_the_documents_exists_with_its_flags() -> Result<()> {
    let mut checked = 0;
    for document in ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "pipelines/shop/README.md", "data/README.md"] {
        let text = fs::read_to_string(repository(document))?;
        for command in commands(&text) {
            check(&command, document)?;
            checked += 1;
        }
    }
    assert!(checked >= 5, "the documents show commands; found {checked}");
    Ok(())
}

fn check(command: &str, document: &str) -> Result<()> {
    let command = command.split(" #").next().unwrap_or(command);
    let mut words = command.split_whitespace().skip(1);
    let name = words.next().unwrap_or_default();
    let output = Program::named("tailwater")?.args([name, "--help"]).run()?;
    assert!(output.status.success(), "`{command}` in {document}: there is no command `{name}`");
    let help = String::from_utf8_lossy(&output.stdout).into_owned();
    for flag in words.filter(|word| word.starts_with("--")) {
        let flag = flag.split('=').next().unwrap_or(flag);
        assert!(help.contains(flag), "`{command}` in {document}: `{name}` has no flag `{flag}`");
    }
    Ok(())
}

#[test]
fn every_variable_in_the_compose_file_is_one_the_config_knows() -> Result<()> {
    let text = fs::read_to_string(repository("docker-compose.yml"))?;
    let mut variables = Vec::new();
    for line in text.lines() {
        let Some(start) = line.find("TAILWATER__") else { continue };
        let pair = line[start..].trim().trim_end_matches('"');
        if let Some((name, value)) = pair.split_once([':', '=']) {
            variables.push((name.trim().to_owned(), default_of(value.trim().trim_matches('"')).to_owned()));
        }
    }
    assert!(variables.len() >= 4, "the compose file configures the services");
    let options = runtime::config::LoadOptions { env: variables, ..runtime::config::LoadOptions::default() };
    runtime::config::Config::load(options).map(|_| ()).map_err(anyhow::Error::from)
}

/// What compose makes of `${NAME:-default}` where nothing is set.
fn default_of(value: &str) -> &str {
    let inside = value.strip_prefix("${").and_then(|rest| rest.strip_suffix('}'));
    inside.and_then(|inside| inside.split_once(":-")).map_or(value, |(_, default)| default)
}
