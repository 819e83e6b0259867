//! Commands that the tests of documents do not run themselves: what CI runs as a step of its own, and what nothing runs.
//!
//! Invariant: a command is matched as a whole. One that nothing runs stands here with its reason, and with no other.

use std::fs;

use anyhow::Result;
use testkit::repository;

/// How such commands begin.
pub(crate) const PROGRAMS: [&str; 8] = ["cargo", "just", "docker", "mvn", "python3", "go", "pip", "helm"];

/// What nothing runs. The first text is a whole command, or ends with `*` for any arguments.
const NOT_RUN: &[(&str, &str)] = &[
    ("cargo install --path services/tailwater", "changes the user's home; the step `demo` builds the same program"),
    ("cargo build --workspace", "`cargo test --workspace` builds the same"),
    (
        "cargo test --workspace --test faults -- *",
        "CI runs the short set in two parts, and the negative controls; the long set takes hours",
    ),
    ("cargo build --release --workspace --bins --features delivery/failpoints", "for the long set, which takes hours"),
    ("TAILWATER_PROGRAMS=*", "starts the long set"),
    (
        "cargo build --release -p tailwater -p benches",
        "the step `demo` builds the same profile; the rest is for measuring",
    ),
    ("docker compose *", "needs a container engine; the file is checked against its schema and our config loader"),
    ("mvn dependency:copy *", "downloads what `data/shop` was made from; the files are checked by `expected.py`"),
    ("python3 data/shop/convert.py *", "needs that download"),
    ("python3 pipelines/shop/expected.py --write", "writes what the step without `--write` compares"),
];

/// Text of a step in `.ci/run` for what people have under another name.
const NAMES_IN_CI: [(&str, &str); 2] = [("\"$python/python\"", "python3"), ("\"$tools/bin/cargo-deny\"", "cargo deny")];

/// Commands that end by themselves only with this flag, which CI adds.
const ENDS_WITH: [(&str, &str); 1] = [("cargo run --release -- demo", "--once")];

/// Whether the first word of a command says that it is not one to run here.
pub(crate) fn is_elsewhere(command: &str) -> bool {
    command.split_whitespace().next().is_some_and(|program| PROGRAMS.contains(&program))
}

/// What CI runs, and what the justfile makes of a recipe.
pub(crate) struct Elsewhere {
    steps: Vec<String>,
    justfile: String,
}

impl Elsewhere {
    pub(crate) fn read() -> Result<Self> {
        let script = fs::read_to_string(repository(".ci/run"))?;
        Ok(Self { steps: steps(&script), justfile: fs::read_to_string(repository("justfile"))? })
    }

    /// Why a command need not be run here; the error says what to do about one that nothing runs.
    pub(crate) fn reason(&self, command: &str) -> Result<String, String> {
        if let Some(recipe) = command.strip_prefix("just ") {
            return self.recipe(recipe);
        }
        if self.steps.iter().any(|step| step == command || is_step_that_ends(step, command)) {
            return Ok("a step of CI".to_owned());
        }
        let known = NOT_RUN.iter().find(|(known, _)| is_named(known, command)).map(|(_, reason)| (*reason).to_owned());
        known
            .ok_or_else(|| format!("`{command}` is run by nothing: make it a step of .ci/run, or name the reason here"))
    }

    /// A recipe is run where all its lines are.
    fn recipe(&self, call: &str) -> Result<String, String> {
        let (name, arguments) = call.split_once(' ').unwrap_or((call, ""));
        let mut lines = self.justfile.lines().skip_while(|line| line.split([' ', ':']).next() != Some(name)).skip(1);
        let mut reason = Err(format!("the justfile has no recipe `{name}`"));
        while let Some(line) = lines.next().filter(|line| line.starts_with(' ')) {
            reason = Ok(self.reason(line.trim().replace("{{arguments}}", arguments).trim())?);
        }
        reason
    }
}

/// The commands of the steps, in the order they run.
fn steps(script: &str) -> Vec<String> {
    let script = script.replace("\\\n", " ");
    let commands = script.lines().filter_map(|line| {
        let (_name, command) = line.strip_prefix("step \"")?.split_once("\" ")?;
        let words: Vec<&str> = command.split_whitespace().collect();
        Some(NAMES_IN_CI.iter().fold(words.join(" "), |command, (theirs, ours)| command.replace(theirs, ours)))
    });
    commands.collect()
}

fn is_step_that_ends(step: &str, command: &str) -> bool {
    ENDS_WITH.iter().any(|(endless, flag)| command == *endless && step == format!("{command} {flag}"))
}

fn is_named(known: &str, command: &str) -> bool {
    match known.strip_suffix('*') {
        Some(begin) => command.starts_with(begin),
        None => known == command,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_nothing_runs_is_found() -> Result<()> {
        let elsewhere = Elsewhere::read()?;
        for command in ["cargo test --workspace", "cargo run --release -- demo", "just lint", "just demo", "just bench"]
        {
            let reason = elsewhere.reason(command);
            assert!(reason.is_ok() || command == "just bench", "{command}: {reason:?}");
        }
        assert_eq!(elsewhere.reason("python3 pipelines/shop/expected.py").as_deref(), Ok("a step of CI"));
        for command in ["cargo test", "cargo run --release -- demos", "just nothing", "python3 other.py", "helm list"] {
            assert!(elsewhere.reason(command).is_err(), "{command}");
        }
        Ok(())
    }

    #[test]
    fn every_reason_is_still_needed() -> Result<()> {
        let mut documents = fs::read_to_string(repository("justfile"))?;
        for document in super::super::documents()? {
            documents += &fs::read_to_string(document)?;
        }
        for (known, _) in NOT_RUN {
            assert!(documents.contains(known.trim_end_matches('*').trim_end()), "no document says `{known}` any more");
        }
        Ok(())
    }
}
