//! What the process tells its caller when it ends, and how the last error is printed.
//!
//! Invariant: one error prints its chain of causes once, and maps to exactly one code.
//! Deliberately absent: ending the process. `main` returns the code; only a second signal leaves in the middle of things.

use std::error::Error;
use std::process::ExitCode;

use delivery::ErrorClass;

use crate::config::ConfigFaults;
use crate::retry::TaskError;
use crate::tasks::TaskFailure;

/// How a process ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Code {
    /// Everything asked for was done; input read so far is settled.
    Ok = 0,
    /// Something failed that trying again does not mend; the last line on stderr says what.
    Failure = 1,
    /// The command line was wrong (what `clap` exits with).
    Usage = 2,
    /// The config has faults; all of them are on stderr. Restarting does not help.
    BadConfig = 64,
    /// A service this process needs (log or store) was not there. Restarting later may help.
    Unavailable = 75,
    /// A second SIGINT cut the drain short: 128 + 2, as a shell reports it.
    Interrupted = 130,
    /// A second SIGTERM cut the drain short: 128 + 15, as a shell reports it.
    Terminated = 143,
}

impl Code {
    /// The code for an error that reached `main`, whatever contexts were put around it.
    pub fn of(error: &anyhow::Error) -> Code {
        error.chain().find_map(Code::of_link).unwrap_or(Code::Failure)
    }

    fn of_link(link: &(dyn Error + 'static)) -> Option<Code> {
        if link.is::<ConfigFaults>() {
            return Some(Code::BadConfig);
        }
        if let Some(failure) = link.downcast_ref::<TaskFailure>() {
            return failure.cause().map(Code::of);
        }
        let task_error = link.downcast_ref::<TaskError>()?;
        // What is inside knows better: a config fault met inside a task is still one.
        match Code::of(task_error.inner()) {
            Code::Failure if task_error.class() == ErrorClass::Retry => Some(Code::Unavailable),
            code => Some(code),
        }
    }
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> ExitCode {
        ExitCode::from(code as u8)
    }
}

impl From<Code> for i32 {
    fn from(code: Code) -> i32 {
        i32::from(code as u8)
    }
}

/// The error and its causes on one line, outermost first. A cause whose text the link before it already
/// ends with is left out, since some libraries print their source inside their own message.
pub fn report(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut printed = text.clone();
    let mut cause = error.source();
    while let Some(link) = cause {
        let link_text = link.to_string();
        if !printed.ends_with(&link_text) {
            text.push_str(": ");
            text.push_str(&link_text);
            printed = link_text;
        }
        cause = link.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use anyhow::{Context, anyhow};
    use thiserror::Error;

    use super::*;
    use crate::config::Fault;

    #[derive(Debug, Error)]
    #[error("store refused: {source}")]
    struct RepeatsItsSource {
        source: std::io::Error,
    }

    #[test]
    fn a_cause_already_in_the_text_is_not_printed_again() {
        let error = anyhow::Error::new(RepeatsItsSource { source: std::io::Error::other("disk full") })
            .context("commit to table `orders`");
        assert_eq!(report(error.as_ref()), "commit to table `orders`: store refused: disk full");
    }

    #[test]
    fn each_kind_of_error_has_its_code_whatever_is_wrapped_around_it() {
        let faults = ConfigFaults::new(vec![Fault::new("log.kind", "is wrong")]);
        let wrapped = Err::<(), _>(faults).context("start").expect_err("faults");
        assert_eq!(Code::of(&wrapped), Code::BadConfig);
        let inside_a_task = anyhow::Error::new(TaskError::retry(wrapped));
        assert_eq!(Code::of(&inside_a_task), Code::BadConfig);
        let broker = anyhow::Error::new(TaskError::retry(anyhow!("broker gone"))).context("start");
        assert_eq!(Code::of(&broker), Code::Unavailable);
        let gap = anyhow::Error::new(TaskError::stop(anyhow!("gap")));
        assert_eq!(Code::of(&gap), Code::Failure);
        assert_eq!(Code::of(&anyhow!("anything")), Code::Failure);
    }

    #[test]
    fn codes_are_the_documented_numbers() {
        let codes = [
            Code::Ok,
            Code::Failure,
            Code::Usage,
            Code::BadConfig,
            Code::Unavailable,
            Code::Interrupted,
            Code::Terminated,
        ];
        assert_eq!(codes.map(i32::from), [0, 1, 2, 64, 75, 130, 143]);
    }
}
