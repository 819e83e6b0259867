//! Our own programs as real processes: started, awaited, killed, measured.
//!
//! A program is found beside the test's own executable, so it was built by the same `cargo test --workspace`.
//! Invariant: whatever a process prints is in its log file, and the end of that log is in every error.
//! Absent on purpose: building anything. Cargo inside a test would build with other features, and twice.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;
use std::{env, fs};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempPath;

use crate::child::GuardedChild;
use crate::http;

/// The clock ticks in which Linux counts processor time for user programs, on every architecture we build for.
const TICKS_PER_SECOND: f64 = 100.0;

/// What is to be started.
#[derive(Clone, Debug)]
pub struct Program {
    binary: PathBuf,
    name: String,
    arguments: Vec<OsString>,
    variables: BTreeMap<OsString, OsString>,
    folder: Option<PathBuf>,
    log: Option<PathBuf>,
}

impl Program {
    /// One of our programs by its name, for example `tailwater`.
    pub fn named(name: &str) -> Result<Program> {
        Ok(Program::at(binary(name)?))
    }

    /// Any program by its path.
    pub fn at(binary: impl Into<PathBuf>) -> Program {
        let binary = binary.into();
        let name = binary.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        Program { binary, name, arguments: Vec::new(), variables: BTreeMap::new(), folder: None, log: None }
    }

    /// Adds one argument.
    pub fn arg(mut self, argument: impl Into<OsString>) -> Program {
        self.arguments.push(argument.into());
        self
    }

    /// Adds arguments.
    pub fn args(mut self, arguments: impl IntoIterator<Item = impl Into<OsString>>) -> Program {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Sets one environment variable; the rest of the environment is the test's own.
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Program {
        self.variables.insert(name.into(), value.into());
        self
    }

    /// The working folder.
    pub fn in_folder(mut self, folder: impl Into<PathBuf>) -> Program {
        self.folder = Some(folder.into());
        self
    }

    /// The file that both outputs are appended to; by default a temporary one, which stays only where the test fails.
    pub fn log_to(mut self, log: impl Into<PathBuf>) -> Program {
        self.log = Some(log.into());
        self
    }

    /// Starts it. The process dies with the returned value, or with the test.
    pub fn start(&self) -> Result<Process> {
        let passing_log = if self.log.is_none() { Some(new_log(&self.name)?) } else { None };
        let log = self.log.as_deref().or(passing_log.as_deref()).context("a log was chosen or made")?;
        let child = GuardedChild::start(&mut self.command(), log, None)?;
        Ok(Process { name: self.name.clone(), child, passing_log })
    }

    /// Runs it to its end and returns exit status, standard output and standard error.
    pub fn run(&self) -> Result<std::process::Output> {
        let mut command = self.command();
        command.stdin(std::process::Stdio::null());
        command.output().with_context(|| format!("start {}", self.binary.display()))
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(&self.arguments).envs(&self.variables);
        if let Some(folder) = &self.folder {
            command.current_dir(folder);
        }
        command
    }
}

/// A running (or ended) process.
pub struct Process {
    name: String,
    child: GuardedChild,
    passing_log: Option<TempPath>,
}

impl Process {
    /// The id the operating system knows it by.
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Where its output goes.
    pub fn log_path(&self) -> &Path {
        self.child.log_path()
    }

    /// What it has printed so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// Waits until `url` answers 200. An early end of the process is an error at once, not after the limit.
    pub fn wait_until_ready(&mut self, url: &str, limit: Duration) -> Result<()> {
        let mut last = String::from("no answer");
        let what = format!("`{}` at {url}", self.name);
        let waited = self.child.wait_until(&what, limit, || match http::get(url) {
            Ok((200, _)) => true,
            Ok((status, body)) => {
                last = format!("{status} {body}");
                false
            }
            Err(_) => false,
        });
        waited.with_context(|| format!("last answer: {last}"))
    }

    /// Waits until its log holds `text`.
    pub fn wait_for_log(&mut self, text: &str, limit: Duration) -> Result<()> {
        let log = self.log_path().to_owned();
        let what = format!("`{}` logging `{text}`", self.name);
        self.child.wait_until(&what, limit, || fs::read_to_string(&log).is_ok_and(|log| log.contains(text)))
    }

    /// Asks it to stop (SIGTERM); [`Process::wait`] sees the end.
    pub fn terminate(&mut self) -> Result<()> {
        self.child.signal("TERM")
    }

    /// Kills it at once (SIGKILL).
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()
    }

    /// Freezes it (SIGSTOP), as a long pause of a machine would; [`Process::resume`] lets it go on.
    pub fn pause(&mut self) -> Result<()> {
        self.child.signal("STOP")
    }

    /// Lets a frozen process go on.
    pub fn resume(&mut self) -> Result<()> {
        self.child.signal("CONT")
    }

    /// Waits for its end.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        self.child.wait(limit).with_context(|| format!("wait for the end of `{}`", self.name))
    }

    /// Its exit status if it has ended.
    pub fn exit(&mut self) -> Result<Option<ExitStatus>> {
        self.child.exit()
    }

    /// Memory and processor time it has used so far. Only while it runs.
    pub fn usage(&self) -> Result<Usage> {
        Usage::of(self.pid())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        if let Some(Ok(log)) = self.passing_log.take().map(TempPath::keep) {
            eprintln!("the log of `{}` is in {}", self.name, log.display());
        }
    }
}

/// What a process costs, as Linux counts it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Usage {
    /// Bytes of memory in use.
    pub resident_bytes: u64,
    /// The most bytes of memory ever in use.
    pub peak_resident_bytes: u64,
    /// Processor time, user and system, of all threads.
    pub cpu: Duration,
}

impl Usage {
    /// The usage of the running process `pid`.
    pub fn of(pid: u32) -> Result<Usage> {
        let read = |name: &str| {
            let path = format!("/proc/{pid}/{name}");
            fs::read_to_string(&path).with_context(|| format!("read {path}"))
        };
        let status = read("status")?;
        Ok(Usage {
            resident_bytes: status_bytes(&status, "VmRSS:")?,
            peak_resident_bytes: status_bytes(&status, "VmHWM:")?,
            cpu: cpu_time(&read("stat")?)?,
        })
    }
}

/// The value of a `Name:   1234 kB` line.
fn status_bytes(status: &str, name: &str) -> Result<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let kibibytes = line.and_then(|rest| rest.split_whitespace().next()).and_then(|number| number.parse::<u64>().ok());
    Ok(kibibytes.with_context(|| format!("no {name} line in the process status"))? * 1024)
}

/// User and system ticks are fields 14 and 15; the name in field 2 may hold anything but ends at the last parenthesis.
fn cpu_time(stat: &str) -> Result<Duration> {
    let (_, fields) = stat.rsplit_once(')').context("no `)` in the process statistics")?;
    let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<u32>);
    let total: f64 = ticks.sum::<Result<u32, _>>()?.into();
    Ok(Duration::from_secs_f64(total / TICKS_PER_SECOND))
}

/// Names the folder of the programs to test, where that is not the one the test was built into.
pub const PROGRAMS: &str = "TAILWATER_PROGRAMS";

/// The program `name` in the folder of build results that the running test was built into, or in that which
/// [`PROGRAMS`] names.
pub fn binary(name: &str) -> Result<PathBuf> {
    let file = format!("{name}{}", env::consts::EXE_SUFFIX);
    if let Some(folder) = env::var_os(PROGRAMS) {
        let path = PathBuf::from(folder).join(file);
        ensure!(path.is_file(), "there is no `{}`, where {PROGRAMS} says that `{name}` is", path.display());
        return Ok(path);
    }
    let test = env::current_exe().context("find the running test")?;
    let mut candidates = test.ancestors().skip(1).take(2).map(|folder| folder.join(&file));
    let Some(found) = candidates.find(|path| path.is_file()) else {
        bail!(
            "`{name}` is not built beside {}: run `cargo build --workspace`, or test the whole workspace",
            test.display()
        );
    };
    Ok(found)
}

fn new_log(name: &str) -> Result<TempPath> {
    let file = tempfile::Builder::new().prefix(&format!("tailwater-{name}-")).suffix(".log").tempfile()?;
    Ok(file.into_temp_path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_read_past_a_name_with_parentheses() {
        let stat = "7 (a (b) c) S 1 7 7 0 -1 4194304 1 0 0 0 250 50 0 0 20 0 1 0 5 0 0";
        assert_eq!(cpu_time(stat).expect("fields are there"), Duration::from_secs(3));
    }

    #[test]
    fn usage_of_this_very_process_grows_with_work() {
        let before = Usage::of(std::process::id()).expect("this process is running");
        let mut sum = 0_u64;
        while Usage::of(std::process::id()).expect("still running").cpu <= before.cpu {
            sum = sum.wrapping_add((0..100_000_u64).sum::<u64>());
        }
        assert!(before.resident_bytes > 0 && before.peak_resident_bytes >= before.resident_bytes, "{sum}");
    }

    #[test]
    fn a_program_that_is_not_built_is_named_with_the_command_that_builds_it() {
        let error = binary("no-such-program").expect_err("there is none").to_string();
        assert!(error.contains("no-such-program") && error.contains("cargo build --workspace"), "{error}");
    }
}
