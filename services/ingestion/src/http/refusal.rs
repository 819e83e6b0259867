//! What a client is told when a request was not done: what is wrong, what to do, and whether rows may be stored.
//!
//! The invariant: an outcome that is not known is never told as success or as failure, but as 503 with `retry` and
//! `"stored": "unknown"`. Deliberately absent: deciding; the errors of the parts come in, words and a status go out.

use std::time::Duration;

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use delivery::ErrorClass;
use runtime::catalog::{ApplyError, NotReplayed};
use serde::Serialize;
use topics::TopicError;

use super::{body::BodyError, parts::PartError};

/// An error as a client sees it.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    error: String,
    hint: String,
    plan: Option<String>,
    /// Something of the request may be stored.
    stored: bool,
}

#[derive(Serialize)]
struct RefusalBody<'a> {
    error: &'a str,
    hint: &'a str,
    /// Whether the same request may succeed later.
    retry: bool,
    /// "nothing", or "unknown" where rows of the request may be stored all the same.
    stored: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    plan: Option<&'a str>,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, error: impl ToString, hint: impl Into<String>) -> Self {
        Self { status, error: error.to_string(), hint: hint.into(), plan: None, stored: false }
    }

    pub(super) fn not_found(error: String, hint: String) -> Self {
        Self::new(StatusCode::NOT_FOUND, error, hint)
    }

    pub(super) fn bad(error: impl ToString, hint: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error, hint)
    }

    /// Whether the same request may succeed later.
    fn may_succeed_later(&self) -> bool {
        let passing = [StatusCode::REQUEST_TIMEOUT, StatusCode::CONFLICT, StatusCode::SERVICE_UNAVAILABLE];
        passing.contains(&self.status) && self.plan.is_none()
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let retry = self.may_succeed_later();
        let stored = if self.stored { "unknown" } else { "nothing" };
        let body = RefusalBody { error: &self.error, hint: &self.hint, retry, stored, plan: self.plan.as_deref() };
        (self.status, Json(body)).into_response()
    }
}

/// An append that failed. Other parts of the body may be stored; unless it was refused, so may this one.
pub(super) fn undone(error: TopicError, others: bool, keyed: bool) -> Refusal {
    let refused = error.class() == ErrorClass::Reject
        || matches!(error, TopicError::UnknownTopic { .. } | TopicError::UnknownPartition { .. });
    let stored = others || !refused;
    let refusal = Refusal::from(error);
    if !stored {
        return refusal;
    }
    let hint = match refusal.status {
        StatusCode::SERVICE_UNAVAILABLE => unknown_hint(keyed),
        _ => "one row is too large; the others may be stored, so send again only what the table does not have",
    };
    Refusal { hint: hint.to_owned(), stored, ..refusal }
}

/// The log is silent: rows may be in it or on their way.
pub(super) fn unanswered(keyed: bool, within: Duration) -> Refusal {
    let error = format!(
        "the log has not confirmed the rows within {} s: it is out of reach, or its disk is full; the messages of this \
         process say which",
        within.as_secs()
    );
    let refusal = Refusal::new(StatusCode::SERVICE_UNAVAILABLE, error, unknown_hint(keyed));
    Refusal { stored: true, ..refusal }
}

fn unknown_hint(keyed: bool) -> &'static str {
    match keyed {
        true => {
            "whether the rows are stored is not known; send the same body with the same Idempotency-Key again: what is \
             stored is not stored twice"
        }
        false => {
            "whether the rows are stored is not known; sending them again may double them, unless every try carries the \
             same Idempotency-Key"
        }
    }
}

impl From<BodyError> for Refusal {
    fn from(error: BodyError) -> Self {
        let (status, hint) = match &error {
            BodyError::TooLarge { .. } => {
                (StatusCode::PAYLOAD_TOO_LARGE, "send several smaller bodies, or raise ingestion.max_body_bytes")
            }
            BodyError::UnpacksTooLarge { .. } => (
                StatusCode::PAYLOAD_TOO_LARGE,
                "send several smaller bodies, or raise ingestion.max_decompressed_bytes",
            ),
            BodyError::NeverFits { .. } => {
                (StatusCode::PAYLOAD_TOO_LARGE, "send several smaller bodies, or raise ingestion.memory")
            }
            BodyError::BadPacking { .. } => (StatusCode::BAD_REQUEST, "check the content-encoding header"),
            BodyError::Silent => (StatusCode::REQUEST_TIMEOUT, "nothing was stored; send it again"),
            BodyError::Broken { .. } => (StatusCode::BAD_REQUEST, "nothing was stored; send it again"),
            BodyError::Busy => {
                (StatusCode::SERVICE_UNAVAILABLE, "nothing was stored; send it again later, or raise ingestion.memory")
            }
        };
        Self::new(status, error, hint)
    }
}

impl From<PartError> for Refusal {
    fn from(error: PartError) -> Self {
        match error {
            PartError::Empty => Self::bad(error, "send at least one row"),
            PartError::Malformed { .. } => Self::bad(error, "nothing was stored; fix the body and send it again"),
            PartError::RowTooLarge { .. } => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, error, "nothing was stored; keep large things elsewhere")
            }
            PartError::Repeats { .. } | PartError::TooManyParts { .. } => {
                let hint = "nothing was stored; send columns as plain values instead of dictionaries, in few batches";
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, error, hint)
            }
        }
    }
}

impl From<TopicError> for Refusal {
    fn from(error: TopicError) -> Self {
        match error.class() {
            _ if matches!(error, TopicError::KeyMissing { .. }) => Self::bad(error, "nothing was stored"),
            ErrorClass::Reject => Self::new(StatusCode::PAYLOAD_TOO_LARGE, error, "send smaller rows"),
            ErrorClass::Retry | ErrorClass::Stop => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, error, "nothing was stored; send it again later")
            }
        }
    }
}

impl From<NotReplayed> for Refusal {
    fn from(error: NotReplayed) -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            error,
            "nothing was stored; send it again, /readyz?verbose says more",
        )
    }
}

impl From<ApplyError> for Refusal {
    fn from(error: ApplyError) -> Self {
        match error {
            ApplyError::Problems(problems) => Self::bad(problems, "nothing was changed; fix the SQL and apply again"),
            ApplyError::Refused { reason, plan } => {
                let hint = "nothing was changed; apply again with the permission named";
                Self { plan: Some(plan), ..Self::new(StatusCode::CONFLICT, reason, hint) }
            }
            ApplyError::Unusable(cause) => {
                Self::bad(format!("{cause:#}"), "nothing was changed; fix the SQL and apply again")
            }
            ApplyError::Raced => Self::new(StatusCode::CONFLICT, error, "apply again"),
            ApplyError::Unreadable(cause) => {
                let hint = "run the version of Tailwater that wrote the catalog, or a newer one";
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, format!("the catalog cannot be read: {cause:#}"), hint)
            }
            ApplyError::Log(cause) => {
                let hint = "apply again: what is in already is left alone";
                Self::new(StatusCode::SERVICE_UNAVAILABLE, format!("the log failed: {cause}"), hint)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_to_be_sent_again_as_it_is_says_so() {
        assert!(Refusal::from(BodyError::Silent).may_succeed_later());
        assert!(Refusal::from(BodyError::Busy).may_succeed_later());
        assert!(Refusal::from(ApplyError::Raced).may_succeed_later());
        let needs_permission = ApplyError::Refused { reason: "--drop".to_owned(), plan: "- a".to_owned() };
        assert!(!Refusal::from(needs_permission).may_succeed_later());
        assert!(!Refusal::from(PartError::Empty).may_succeed_later());
    }
}
