//! Arms the marks of the protocol from the environment: for tests of our own, and in their builds alone.
//!
//! `TAILWATER_CRASH_AT=commit_put:3` ends the process as a kill would when it passes that step the third time;
//! `TAILWATER_WITHOUT=slicing,reread` switches safeguards off. The invariant: in a build without fail points a process
//! that is asked for either refuses to start, so a test cannot believe in a fault that never happens.

use std::sync::atomic::{AtomicU64, Ordering};

use delivery::{CrashPoint, Safeguard};
use thiserror::Error;

const CRASH_AT: &str = "TAILWATER_CRASH_AT";
const WITHOUT: &str = "TAILWATER_WITHOUT";

/// A wish of a test that this process cannot fulfil.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum FailPointError {
    /// Fail points are not compiled in.
    #[error("`{CRASH_AT}` and `{WITHOUT}` are for test builds; this one has no fail points")]
    NotCompiledIn,
    /// No such step.
    #[error("`{CRASH_AT}`: expected `step:count`, found `{found}`; the steps are {}", names(CrashPoint::ALL.map(CrashPoint::name)))]
    UnknownStep {
        /// What was asked for.
        found: String,
    },
    /// No such safeguard.
    #[error("`{WITHOUT}`: no safeguard `{found}`; there are {}", names(Safeguard::ALL.map(Safeguard::name)))]
    UnknownSafeguard {
        /// What was asked for.
        found: String,
    },
}

fn names<const N: usize>(names: [&str; N]) -> String {
    names.map(|name| format!("`{name}`")).join(", ")
}

/// Arms what the environment of this process asks for; mostly nothing.
///
/// # Errors
/// See [`FailPointError`]: do not start.
pub fn arm_from_process() -> Result<(), FailPointError> {
    arm(std::env::var(CRASH_AT).ok().as_deref(), std::env::var(WITHOUT).ok().as_deref())
}

/// As [`arm_from_process`], from the two values. A crash counts the passes of this process.
///
/// # Errors
/// See [`FailPointError`].
pub fn arm(crash_at: Option<&str>, without: Option<&str>) -> Result<(), FailPointError> {
    let steps: Vec<_> = crash_at.into_iter().flat_map(|text| text.split(',')).map(step).collect::<Result<_, _>>()?;
    let switched_off: Vec<_> =
        without.into_iter().flat_map(|text| text.split(',')).map(safeguard).collect::<Result<_, _>>()?;
    if steps.is_empty() && switched_off.is_empty() {
        return Ok(());
    }
    if !fail::has_failpoints() {
        return Err(FailPointError::NotCompiledIn);
    }
    for (point, count) in steps {
        let passes = AtomicU64::new(0);
        let crash = move || {
            if passes.fetch_add(1, Ordering::Relaxed) + 1 == count {
                std::process::abort();
            }
        };
        fail::cfg_callback(point.name(), crash).map_err(|found| FailPointError::UnknownStep { found })?;
    }
    for safeguard in switched_off {
        tracing::warn!(safeguard = safeguard.name(), "a safeguard is switched off: rows will be lost or doubled");
        fail::cfg(safeguard.name(), "return").map_err(|found| FailPointError::UnknownSafeguard { found })?;
    }
    Ok(())
}

fn step(text: &str) -> Result<(CrashPoint, u64), FailPointError> {
    let unknown = || FailPointError::UnknownStep { found: text.to_owned() };
    let (name, count) = text.split_once(':').ok_or_else(unknown)?;
    let point = CrashPoint::ALL.into_iter().find(|point| point.name() == name).ok_or_else(unknown)?;
    let count = count.parse().ok().filter(|count| *count > 0).ok_or_else(unknown)?;
    Ok((point, count))
}

fn safeguard(text: &str) -> Result<Safeguard, FailPointError> {
    let unknown = || FailPointError::UnknownSafeguard { found: text.to_owned() };
    Safeguard::ALL.into_iter().find(|safeguard| safeguard.name() == text).ok_or_else(unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_wish_is_refused_with_what_there_is() {
        for (text, hint) in [("commit_putt:1", "`commit_put`"), ("commit_put", "step:count"), ("commit_put:0", "step")]
        {
            let error = arm(Some(text), None).expect_err("refused").to_string();
            assert!(error.contains(hint), "{error}");
        }
        let error = arm(None, Some("slicing,gaps")).expect_err("refused").to_string();
        assert!(error.contains("`gaps`") && error.contains("`gap_check`"), "{error}");
    }

    #[test]
    fn nothing_asked_for_arms_nothing() {
        assert_eq!(arm(None, None), Ok(()));
    }

    #[test]
    fn names_are_told_apart() {
        let mut names: Vec<&str> = CrashPoint::ALL.map(CrashPoint::name).to_vec();
        names.extend(Safeguard::ALL.map(Safeguard::name));
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}
