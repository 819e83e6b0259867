//! Why a batch was not computed, and what to do about it.
//!
//! Invariant: `Row` means that some row of the batch is at fault and its neighbours may be fine; everything else
//! would go wrong with any batch.
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
    /// may be.
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
        if depends_on_values(error.find_root()) {
            return EngineError::Row { reason: reason_of(error.find_root()) };
        }
        EngineError::Run { input: input.to_owned(), source: Box::new(error) }
    }
}

fn depends_on_values(error: &DataFusionError) -> bool {
    match error {
        DataFusionError::ArrowError(error, _) => arrow_depends_on_values(error),
        // Functions report values they cannot work with in these two ways.
        DataFusionError::Execution(_) | DataFusionError::External(_) => true,
        _ => false,
    }
}

fn arrow_depends_on_values(error: &ArrowError) -> bool {
    matches!(
        error,
        ArrowError::CastError(_)
            | ArrowError::ParseError(_)
            | ArrowError::ComputeError(_)
            | ArrowError::DivideByZero
            | ArrowError::ArithmeticOverflow(_)
            | ArrowError::InvalidArgumentError(_)
            | ArrowError::JsonError(_)
            | ArrowError::OffsetOverflowError(_)
            | ArrowError::ExternalError(_)
    )
}

/// The library's own words, without its prefixes, on one line.
fn reason_of(error: &DataFusionError) -> String {
    let text = match error {
        DataFusionError::ArrowError(error, _) => error.to_string(),
        other => other.strip_backtrace(),
    };
    let line = text.lines().next().unwrap_or_default();
    let prefixes =
        ["Execution error: ", "External error: ", "Arrow error: ", "Cast error: ", "Parser error: ", "Compute error: "];
    let prefixes = prefixes.iter().chain(&["Arithmetic overflow: ", "Invalid argument error: "]);
    let plain = prefixes.fold(line, |text, prefix| text.trim_start_matches(prefix));
    let mut characters = plain.trim_end_matches('.').chars();
    match characters.next() {
        Some(first) => first.to_lowercase().chain(characters).collect(),
        None => "the row has no result".to_owned(),
    }
}
