//! Every command in every document is run: here, as a step of CI, or not, for a reason that is written down.
//!
//! A block marked `sh` runs line by line as it stands, and what the document shows of it (`text`, `json`) is compared.
//! A block marked `toml` must load, one marked `sql` must pass `tailwater check`. Whatever else looks like a command
//! fails the test, so no command can hide in a block without a mark.

mod blocks;
mod elsewhere;
mod workspace;

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use runtime::config::{Config, LoadOptions};
use testkit::{process::Program, repository};

use self::{
    blocks::{Block, blocks, commands, inline_code},
    elsewhere::{Elsewhere, PROGRAMS, is_elsewhere},
    workspace::Workspace,
};

/// Folders with documents, each searched without those below it.
const FOLDERS: [&str; 6] = ["", "docs", "benches", "data", "data/shop", "pipelines/shop"];
/// What a fenced block may be.
const LANGUAGES: [&str; 6] = ["sh", "text", "json", "sql", "toml", "yaml"];
/// Our own programs, and what talks to them.
const RUN_HERE: [&str; 3] = ["tailwater", "curl", "cd"];

/// All of our documents.
fn documents() -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for folder in FOLDERS {
        for entry in fs::read_dir(repository(folder))? {
            let path = entry?.path();
            if path.extension() == Some(OsStr::new("md")) {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

#[test]
fn every_command_of_every_document_is_run() -> Result<()> {
    let elsewhere = Elsewhere::read()?;
    let mut run = 0;
    for path in documents()? {
        let name = name_of(&path);
        let text = fs::read_to_string(&path)?;
        run += run_document(&text, &elsewhere).with_context(|| format!("in {name}"))?;
    }
    assert!(run >= 20, "the documents show commands; only {run} were run");
    Ok(())
}

fn name_of(path: &Path) -> String {
    path.strip_prefix(repository("")).unwrap_or(path).display().to_string()
}

/// Runs one document from its begin to its end; how many of its commands ran here.
fn run_document(document: &str, elsewhere: &Elsewhere) -> Result<usize> {
    let blocks = blocks(document);
    let mut workspace = None;
    let mut run = 0;
    for (number, block) in blocks.iter().enumerate() {
        let place = || format!("the block at line {}", block.line);
        ensure!(LANGUAGES.contains(&block.language.as_str()), "{}: `{}` is not a mark", place(), block.language);
        match block.language.as_str() {
            "sh" => {
                let shown = blocks.get(number + 1).filter(|next| ["text", "json"].contains(&next.language.as_str()));
                run += run_block(block, shown, &mut workspace, elsewhere).with_context(place)?;
            }
            "toml" => loads(&block.text).with_context(place)?,
            "sql" => is_pipeline(&block.text).with_context(place)?,
            _ => holds_no_command(block)?,
        }
    }
    for code in inline_code(document) {
        exists(&code, elsewhere)?;
    }
    Ok(run)
}

/// Runs a block's commands; what follows it in the document is what its last command prints.
fn run_block(
    block: &Block,
    shown: Option<&Block>,
    workspace: &mut Option<Workspace>,
    elsewhere: &Elsewhere,
) -> Result<usize> {
    let commands = commands(&block.text);
    let last = commands.len().saturating_sub(1);
    let mut run = 0;
    if let Some(workspace) = workspace {
        workspace.begin_block();
    }
    for (number, command) in commands.iter().enumerate() {
        let Some(here) = runs_as(command) else {
            elsewhere.reason(command).map_err(|problem| anyhow!(problem))?;
            continue;
        };
        let workspace = match workspace {
            Some(workspace) => workspace,
            None => workspace.insert(Workspace::new()?),
        };
        workspace.run(&here, shown.filter(|_| number == last))?;
        run += 1;
    }
    Ok(run)
}

/// What to run here for a command; nothing for one that runs elsewhere.
fn runs_as(command: &str) -> Option<String> {
    // The demo is also a step of CI, in release; here its output is compared with what the document shows.
    if let Some(arguments) = command.strip_prefix("cargo run --release -- demo") {
        return Some(format!("tailwater demo --once{arguments}"));
    }
    (!is_elsewhere(command)).then(|| command.to_owned())
}

fn loads(toml: &str) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("tailwater.toml");
    fs::write(&file, toml)?;
    Config::load(LoadOptions { file: Some(file), ..LoadOptions::default() })?;
    Ok(())
}

fn is_pipeline(sql: &str) -> Result<()> {
    let folder = tempfile::tempdir()?;
    fs::write(folder.path().join("shown.sql"), sql)?;
    let checked = Program::named("tailwater")?.args(["check", "."]).in_folder(folder.path()).run()?;
    ensure!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    Ok(())
}

/// A command in a block without the mark `sh` would be run by nobody.
fn holds_no_command(block: &Block) -> Result<()> {
    for line in block.text.lines() {
        let first = line.trim_start_matches("$ ").split_whitespace().next().unwrap_or_default();
        let is_program = !line.starts_with(' ') && (PROGRAMS.contains(&first) || RUN_HERE.contains(&first));
        ensure!(!is_program, "`{line}` is a command in a block marked `{}`; mark it `sh`", block.language);
    }
    Ok(())
}

/// A command named within a line exists with its flags, or is run elsewhere.
fn exists(code: &str, elsewhere: &Elsewhere) -> Result<()> {
    let is_whole = code.split_whitespace().count() > 1;
    if is_whole && is_elsewhere(code) {
        return elsewhere.reason(code).map(drop).map_err(|problem| anyhow!(problem));
    }
    match code.strip_prefix("tailwater ") {
        Some(words) => has_flags(words).with_context(|| format!("`{code}`")),
        None => Ok(()),
    }
}

fn has_flags(words: &str) -> Result<()> {
    let mut words = words.split_whitespace();
    let name = words.next().unwrap_or_default();
    if name.starts_with("--") {
        return Ok(());
    }
    let help = Program::named("tailwater")?.args([name, "--help"]).run()?;
    ensure!(help.status.success(), "there is no command `{name}`");
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    for flag in words.filter(|word| word.starts_with("--")) {
        let flag = flag.split('=').next().unwrap_or(flag);
        ensure!(help.contains(flag), "there is no flag `{flag}`");
    }
    Ok(())
}

#[test]
fn what_a_document_shows_wrongly_is_found() -> Result<()> {
    let elsewhere = Elsewhere::read()?;
    let run = |document: &str| run_document(document, &elsewhere).map_err(|error| format!("{error:#}"));
    assert_eq!(run("```sh\ntailwater check pipelines/shop   # fine\n```\n```text\nconfig: ok\n…\n```\n"), Ok(1));
    for (document, problem) in [
        ("```\nls\n```\n", "is not a mark"),
        ("```text\ntailwater status\n```\n", "mark it `sh`"),
        ("```sh\ntailwater check nowhere\n```\n", "ended with"),
        ("```sh\ncargo bench\n```\n", "run by nothing"),
        ("```sh\ntailwater check pipelines/shop\n```\n```text\nconfig: odd\n```\n", "but line 4 shows"),
        ("```toml\n[storage]\nflush_agee = \"1s\"\n```\n", "flush_age"),
        ("```sql\nCREATE SOURCE a (id BIGNIT);\n```\n", "BIGINT"),
        ("say `tailwater stats` or `tailwater status`", "no command `stats`"),
        ("say `tailwater status --colour`", "no flag `--colour`"),
        ("say `cargo nextest run`", "run by nothing"),
    ] {
        let found = run(document).expect_err(document);
        assert!(found.contains(problem), "{document}: {found}");
    }
    Ok(())
}

#[test]
fn every_route_is_described_and_every_described_route_is_there() -> Result<()> {
    let mut routes = BTreeSet::new();
    for source in ["services/ingestion/src/http.rs", "services/analysis/src/api.rs", "services/analysis/src/ledger.rs"]
    {
        routes.extend(routes_of(&fs::read_to_string(repository(source))?));
    }
    routes.extend(routes_of(&fs::read_to_string(repository("crates/runtime/src/admin.rs"))?));
    let text = fs::read_to_string(repository("docs/http.md"))?;
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let described: BTreeSet<String> =
        rows.filter(|row| row.starts_with("GET /") || row.starts_with("POST /")).map(str::to_owned).collect();
    assert_eq!(described, routes);
    assert_eq!(routes.len(), 11, "a file with routes is missing in this test, or routes in the files");
    Ok(())
}

/// `GET /path` for every route in a file of source code.
fn routes_of(code: &str) -> BTreeSet<String> {
    let route = |text: &str| {
        let (path, rest) = text.strip_prefix('"')?.split_once('"')?;
        let method = rest.trim_start_matches([',', ' ', '\n']).split('(').next()?;
        Some(format!("{} {path}", method.to_uppercase()))
    };
    code.split(".route(").skip(1).filter_map(route).collect()
}

#[test]
fn every_alarm_is_explained() -> Result<()> {
    let alerts = fs::read_to_string(repository("deploy/alerts.yml"))?;
    let operations = fs::read_to_string(repository("docs/operations.md"))?;
    let names: Vec<&str> = alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(names.len() >= 5, "{names:?}");
    for name in names {
        assert!(
            operations.contains(&format!("| `{name}` |")),
            "docs/operations.md does not say what to do about {name}"
        );
    }
    Ok(())
}
