//! Back-off between attempts: exponential, with full jitter, bounded in number by the caller.

use std::time::Duration;

use delivery::ErrorClass;

use crate::{
    ambient::Ambient,
    error::{is_refusal, store_class},
};

/// How often a plain request to the store is made before its error is handed on.
pub(crate) const REQUEST_ATTEMPTS: u32 = 6;

const FIRST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(5);

/// Waits before attempt `attempt + 1`; attempts count from 1.
pub(crate) async fn back_off(ambient: &Ambient, attempt: u32) {
    tokio::time::sleep(pause(attempt, ambient.fraction())).await;
}

fn pause(attempt: u32, fraction: f64) -> Duration {
    let doublings = attempt.saturating_sub(1).min(16);
    FIRST.saturating_mul(1 << doublings).min(LONGEST).mul_f64(0.1 + 0.9 * fraction)
}

/// Repeats a request that may be repeated (a read, a delete, or a put whose repetition is harmless).
///
/// `NotFound`, `AlreadyExists` and `Precondition` are answers, not failures, and come back at once.
pub(crate) async fn repeat<T, F>(ambient: &Ambient, mut request: impl FnMut() -> F) -> Result<T, object_store::Error>
where
    F: Future<Output = Result<T, object_store::Error>>,
{
    let mut attempt = 1;
    loop {
        match request().await {
            Err(error) if attempt < REQUEST_ATTEMPTS && is_weather(&error) => back_off(ambient, attempt).await,
            outcome => return outcome,
        }
        attempt += 1;
    }
}

/// Whether the same request may succeed in a moment.
pub(crate) fn is_weather(error: &object_store::Error) -> bool {
    use object_store::Error;
    let is_answer = matches!(
        error,
        Error::NotFound { .. } | Error::AlreadyExists { .. } | Error::Precondition { .. } | Error::NotModified { .. }
    );
    !is_answer && !is_refusal(error) && store_class(error) == ErrorClass::Retry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_may_be_mended_and_is_not_repeated_at_once() {
        use object_store::Error;
        let (path, source) = ("part.parquet".to_owned(), || "ExpiredToken".into());
        let refusals = [
            Error::PermissionDenied { path: path.clone(), source: source() },
            Error::Unauthenticated { path, source: source() },
        ];
        for refusal in refusals {
            assert_eq!((store_class(&refusal), is_weather(&refusal)), (ErrorClass::Retry, false), "{refusal}");
        }
    }

    #[test]
    fn pauses_grow_stay_bounded_and_are_never_zero() {
        assert_eq!(pause(1, 0.0), Duration::from_millis(5));
        assert!(pause(3, 0.5) > pause(2, 0.5));
        for attempt in [7, 20, u32::MAX] {
            assert!(pause(attempt, 0.999) <= LONGEST, "attempt {attempt}");
        }
    }
}
