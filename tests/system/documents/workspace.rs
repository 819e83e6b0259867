//! A folder in which a document's commands run as they stand, against a Tailwater that they start themselves.
//!
//! Invariant: the text of a command is not changed but for the usual address, which other tests use at the same time.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use testkit::{
    ports::free_port,
    process::{self, Process, Program},
    repository,
};

use super::blocks::{Block, shows};
use crate::deployment::START_LIMIT;

/// The address that documents say and that programs use where nothing else is configured.
const USUAL_ADDRESS: &str = "127.0.0.1:8080";
/// Far longer than it takes until rows are in their tables.
const SHOWN_WITHIN: Duration = Duration::from_secs(60);
/// What may be asked again until the answer is the one shown: rows need a moment to get where they are looked for.
const QUESTIONS: [&str; 6] = ["tailwater sql", "tailwater status", "/v1/sql", "/v1/status", "/v1/tables", "/readyz"];

/// See the module.
pub(crate) struct Workspace {
    up: Option<Process>,
    address: String,
    path: OsString,
    here: PathBuf,
    folder: tempfile::TempDir,
}

impl Workspace {
    /// A folder with the shop and the data of the repository: `up` applies whatever pipelines lie there.
    pub(crate) fn new() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("tailwater-document-").tempdir()?;
        fs::create_dir(folder.path().join("pipelines"))?;
        for part in ["pipelines/shop", "data"] {
            copy(&repository(part), &folder.path().join(part))?;
        }
        // A progress bar is nothing a document shows.
        fs::write(folder.path().join(".curlrc"), "silent\nshow-error\n")?;
        let programs = process::binary("tailwater")?;
        let programs = programs.parent().context("programs lie in a folder")?;
        let mut path = programs.as_os_str().to_owned();
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        let address = format!("127.0.0.1:{}", free_port()?);
        Ok(Self { up: None, address, path, here: folder.path().to_owned(), folder })
    }

    /// Every block begins where the document does: in the top folder.
    pub(crate) fn begin_block(&mut self) {
        self.here = self.folder.path().to_owned();
    }

    /// Runs one command; what it printed. `shown` is what the document shows of it.
    pub(crate) fn run(&mut self, command: &str, shown: Option<&Block>) -> Result<()> {
        if let Some(folder) = command.strip_prefix("cd ") {
            self.here = self.here.join(folder.trim());
            ensure!(self.here.is_dir(), "`{command}`: there is no such folder");
            return Ok(());
        }
        let up = command.trim_end_matches('&').trim_end();
        if up == "tailwater up" || up.starts_with("tailwater up ") {
            return self.start(up);
        }
        let printed = self.print(command)?;
        match shown {
            Some(shown) => self.wait_for(command, printed, shown),
            None => Ok(()),
        }
    }

    fn start(&mut self, command: &str) -> Result<()> {
        ensure!(self.up.is_none(), "`{command}`: the document starts a second one");
        let program = self.program("tailwater", command.split_whitespace().skip(1).map(OsString::from))?;
        let mut up = program.log_to(self.folder.path().join("up.log")).start()?;
        up.wait_for_log("Tailwater is up", START_LIMIT)?;
        up.wait_until_ready(&format!("http://{}/readyz?verbose", self.address), START_LIMIT)?;
        self.up = Some(up);
        Ok(())
    }

    /// Both outputs, in the order they came.
    fn print(&self, command: &str) -> Result<String> {
        let script = format!("exec 2>&1\n{}", command.replace(USUAL_ADDRESS, &self.address));
        let arguments = [OsString::from("-c"), OsString::from(script)];
        let output = self.of(Program::at(PathBuf::from("/bin/sh"))).args(arguments).run()?;
        let text = String::from_utf8_lossy(&output.stdout).replace(&self.address, USUAL_ADDRESS);
        ensure!(output.status.success(), "`{command}` ended with {}:\n{text}", output.status);
        Ok(text)
    }

    fn wait_for(&self, command: &str, mut printed: String, shown: &Block) -> Result<()> {
        let may_ask_again = QUESTIONS.iter().any(|question| command.contains(question));
        let started = Instant::now();
        while !shows(shown, &printed) {
            let is_over = !may_ask_again || started.elapsed() > SHOWN_WITHIN;
            ensure!(!is_over, "`{command}` printed\n{printed}\nbut line {} shows\n{}", shown.line, shown.text);
            // It is asked over a process boundary: there is no event to await.
            std::thread::sleep(Duration::from_millis(200));
            printed = self.print(command)?;
        }
        Ok(())
    }

    fn program(&self, name: &str, arguments: impl Iterator<Item = OsString>) -> Result<Program> {
        Ok(self.of(Program::named(name)?).args(arguments))
    }

    fn of(&self, program: Program) -> Program {
        program
            .env("PATH", self.path.clone())
            .env("CURL_HOME", self.folder.path())
            .env("TAILWATER__HTTP__LISTEN", &self.address)
            .in_folder(&self.here)
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
