//! Why a batch was not computed, and what to do about it.
//!
//! Invariant: `Row` means that some row of the batch is at fault and its neighbours may be fine; everything else
//! would go wrong with any batch. A plan that was made and does not compute counts as a fault of rows whatever the
//! library calls it, unless the machine is what fails: its functions meet values they were not written for, and a
//! partition that stops for one row, or repeats it for ever, keeps all others waiting.
//! Deliberately absent: retrying. Nothing here gets better by itself.

use arrow::error::ArrowError;
use datafusion::common::DataFusionError;
use delivery::ErrorClass;
use thiserror::Error;

/// An error of a program.
#[derive(Debug, Error)]
pub enum EngineError {
    /// The branch cannot be made into a program.
    #[error("branch {branch} of a view, reading `{input}`, cannot be planned")]
    Plan {
        branch: usize,
        input: String,
        #[source]
        source: Box<DataFusionError>,
    },
    /// The branch does not yield what the view declares.
    #[error("branch {branch} of a view, reading `{input}`: {reason}")]
    Shape { branch: usize, input: String, reason: String },
    /// The batch is not one of the branch's input.
    #[error("batch for `{input}`: {reason}")]
    Input { input: String, reason: String },
    /// The values of at least one row have no result: division by zero, a cast that does not fit, a null where none
    /// may be, a value that the library cannot cope with.
    #[error("{reason}")]
    Row { reason: String },
    /// The execution failed for a reason other than the values.
    #[error("the plan over `{input}` failed")]
    Run {
        input: String,
        #[source]
        source: Box<DataFusionError>,
    },
    /// The plan waits for something, although all of its input was at hand.
    #[error("the plan over `{input}` waits for something, which a row-wise plan never does")]
    Waits { input: String },
}

impl EngineError {
    /// `Reject` for rows that have no result, `Stop` for the rest.
    pub fn class(&self) -> ErrorClass {
        match self {
            EngineError::Row { .. } => ErrorClass::Reject,
            EngineError::Plan { .. }
            | EngineError::Shape { .. }
            | EngineError::Input { .. }
            | EngineError::Run { .. }
            | EngineError::Waits { .. } => ErrorClass::Stop,
        }
    }

    /// Sorts an error of an execution over `input`.
    pub(crate) fn of_run(input: &str, error: DataFusionError) -> EngineError {
        let root = error.find_root();
        if !depends_on_values(root) {
            return EngineError::Run { input: input.to_owned(), source: Box::new(error) };
        }
        let reason = match is_verdict(root) {
            true => reason_of(root),
            false => format!("{GAVE_UP}: {}", reason_of(root)),
        };
        EngineError::Row { reason }
    }

    /// What an execution that panicked is taken for.
    pub(crate) fn of_panic() -> EngineError {
        EngineError::Row { reason: GAVE_UP.to_owned() }
    }
}

/// How rows are called that the library was not written for, so that nobody looks for a fault in the values alone.
const GAVE_UP: &str = "the library gave up on it";

fn depends_on_values(error: &DataFusionError) -> bool {
    match error {
        DataFusionError::ArrowError(error, _) => {
            !matches!(error.as_ref(), ArrowError::IoError(_, _) | ArrowError::CDataInterface(_))
        }
        DataFusionError::ResourcesExhausted(_) | DataFusionError::IoError(_) => false,
        _ => true,
    }
}

/// Whether this is how functions report values they cannot work with.
fn is_verdict(error: &DataFusionError) -> bool {
    match error {
        DataFusionError::ArrowError(error, _) => {
            !matches!(error.as_ref(), ArrowError::NotYetImplemented(_) | ArrowError::SchemaError(_))
        }
        DataFusionError::Execution(_) | DataFusionError::External(_) => true,
        _ => false,
    }
}

const PREFIXES: [&str; 13] = [
    "Internal error: ",
    "Error during planning: ",
    "This feature is not implemented: ",
    "Execution error: ",
    "External error: ",
    "Arrow error: ",
    "Not yet implemented: ",
    "Schema error: ",
    "Cast error: ",
    "Parser error: ",
    "Compute error: ",
    "Arithmetic overflow: ",
    "Invalid argument error: ",
];

/// The library's own words, without its prefixes, on one line.
fn reason_of(error: &DataFusionError) -> String {
    let text = match error {
        DataFusionError::ArrowError(error, _) => error.to_string(),
        other => other.strip_backtrace(),
    };
    let line = text.lines().next().unwrap_or_default();
    let plain = PREFIXES.iter().fold(line, |text, prefix| text.trim_start_matches(prefix));
    let mut characters = plain.trim_end_matches('.').chars();
    match characters.next() {
        Some(first) => first.to_lowercase().chain(characters).collect(),
        None => "the row has no result".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    fn sorted(error: DataFusionError) -> (ErrorClass, String) {
        let error = EngineError::of_run("t", error.context("somewhere"));
        (error.class(), error.to_string())
    }

    #[test]
    fn what_is_not_the_machines_fault_is_a_fault_of_rows_with_a_reason() {
        let arrow = |error: ArrowError| DataFusionError::ArrowError(Box::new(error), None);
        let table = [
            (DataFusionError::Execution("Too long.".to_owned()), "too long"),
            (arrow(ArrowError::DictionaryKeyOverflowError), "dictionary key bigger than the key type"),
            (arrow(ArrowError::CastError("Too big".to_owned())), "too big"),
            (DataFusionError::Internal("expected one row".to_owned()), "the library gave up on it: expected one row"),
            (DataFusionError::Plan("no such zone".to_owned()), "the library gave up on it: no such zone"),
            (arrow(ArrowError::NotYetImplemented("that".to_owned())), "the library gave up on it: that"),
        ];
        for (error, reason) in table {
            assert_eq!(sorted(error), (ErrorClass::Reject, reason.to_owned()));
        }
        let failed = || io::Error::other("the disk is gone");
        let machine = [
            DataFusionError::IoError(failed()),
            DataFusionError::ResourcesExhausted("no memory".to_owned()),
            arrow(ArrowError::IoError(String::new(), failed())),
        ];
        for error in machine {
            assert_eq!(sorted(error), (ErrorClass::Stop, "the plan over `t` failed".to_owned()));
        }
    }
}
