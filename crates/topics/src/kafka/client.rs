//! What all clients of librdkafka have in common: a quiet log, and errors with a class.
//!
//! Invariant: however loud librdkafka is and however many clients a process has, all together log at most once a second
//! of each kind. One of its lines is more than a line:
//! it says that a topic was deleted and created again, which librdkafka knows (by the topic's id) and tells nowhere else.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use delivery::ErrorClass;
use parking_lot::Mutex;
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use crate::TopicError;
use crate::throttle::Throttle;

/// What all clients of this process say.
static LINES: Throttle = Throttle::once_a_second();
/// What troubles them: a broker that is away troubles all.
static TROUBLE: Throttle = Throttle::once_a_second();

/// Takes the log lines and global errors of one client.
#[derive(Debug)]
pub(super) struct Quiet {
    client: &'static str,
    last_error: Mutex<Option<String>>,
    recreations: Mutex<BTreeMap<String, u64>>,
}

impl Quiet {
    pub(super) fn new(client: &'static str) -> Self {
        Self { client, last_error: Mutex::new(None), recreations: Mutex::default() }
    }

    pub(super) fn last_error(&self) -> Option<String> {
        self.last_error.lock().clone()
    }

    /// How often this client has seen the topic's name taken over by another topic.
    pub(super) fn recreations(&self, topic: &str) -> u64 {
        self.recreations.lock().get(topic).copied().unwrap_or(0)
    }

    pub(super) fn take_log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        if let Some(topic) = recreated(message) {
            *self.recreations.lock().entry(topic.to_owned()).or_default() += 1;
        }
        if level as i32 == RDKafkaLogLevel::Debug as i32 {
            tracing::trace!(client = self.client, facility, message, "librdkafka");
        } else if level as i32 > RDKafkaLogLevel::Warning as i32 {
            tracing::debug!(client = self.client, facility, message, "librdkafka");
        } else if let Some(held_back) = LINES.pass() {
            tracing::warn!(client = self.client, facility, message, held_back, "librdkafka");
        }
    }

    pub(super) fn take_error(&self, error: &KafkaError, reason: &str) {
        *self.last_error.lock() = Some(reason.to_owned());
        if let Some(held_back) = TROUBLE.pass() {
            tracing::warn!(client = self.client, %error, reason, held_back, "Kafka client in trouble; it goes on trying");
        }
    }
}

impl ClientContext for Quiet {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.take_log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.take_error(&error, reason);
    }

    // Whoever turns statistics on reads them at the brokers.
    fn stats_raw(&self, _statistics: &[u8]) {}
}

impl ConsumerContext for Quiet {}

/// The topic whose id has changed, where that is what a log line says. A topic seen for the first time had no id.
fn recreated(line: &str) -> Option<&str> {
    let (before, ids) = line.split_once(" changed id from ")?;
    let (old, _new) = ids.split_once(" to ")?;
    let (_, topic) = before.rsplit_once("Topic ")?;
    let had_none = old.bytes().all(|letter| matches!(letter, b'A' | b'='));
    (!had_none).then_some(topic)
}

/// A reason that librdkafka gave in words only.
#[derive(Debug)]
pub(super) struct Reason(pub(super) String);

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Reason {}

/// A request that failed; `doing` goes on after "Kafka could not".
pub(super) fn failed(doing: impl Into<String>, error: KafkaError) -> TopicError {
    TopicError::Kafka { doing: doing.into(), class: class_of(&error), source: Arc::new(error) }
}

/// Everything passes in time, except what only another configuration or a new client mends. A refusal passes, too:
/// logins and access lists are mended at the brokers, and nobody should have to start us again after it.
fn class_of(error: &KafkaError) -> ErrorClass {
    if matches!(
        error,
        KafkaError::ClientConfig(..)
            | KafkaError::ClientCreation(_)
            | KafkaError::MessageConsumptionFatal(_)
            | KafkaError::Nul(_)
    ) {
        return ErrorClass::Stop;
    }
    match code_of(error) {
        Some(code) if needs_a_person(code) && !is_refusal(code) => ErrorClass::Stop,
        _ => ErrorClass::Retry,
    }
}

/// The code of an error; rdkafka does not tell it for administrative requests.
pub(super) fn code_of(error: &KafkaError) -> Option<RDKafkaErrorCode> {
    match error {
        KafkaError::AdminOp(code) => Some(*code),
        error => error.rdkafka_error_code(),
    }
}

/// Waiting alone does not help.
pub(super) fn needs_a_person(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    is_refusal(code)
        || matches!(
            code,
            Code::Fatal
                | Code::GaplessGuarantee
                | Code::UnsupportedSASLMechanism
                | Code::UnsupportedVersion
                | Code::InvalidConfig
                | Code::InvalidTopic
                | Code::PolicyViolation
        )
}

/// The brokers do not let us.
fn is_refusal(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        code,
        Code::Authentication
            | Code::SaslAuthenticationFailed
            | Code::TopicAuthorizationFailed
            | Code::GroupAuthorizationFailed
            | Code::ClusterAuthorizationFailed
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_pass_once_somebody_has_mended_them_and_what_is_set_up_wrong_does_not() {
        use RDKafkaErrorCode as Code;
        let class = |code| class_of(&KafkaError::MessageConsumption(code));
        for code in [Code::TopicAuthorizationFailed, Code::SaslAuthenticationFailed, Code::Authentication] {
            assert!(needs_a_person(code));
            assert_eq!(class(code), ErrorClass::Retry, "{code}");
        }
        assert_eq!(class(Code::UnsupportedSASLMechanism), ErrorClass::Stop);
        assert_eq!(class(Code::BrokerTransportFailure), ErrorClass::Retry);
    }

    #[test]
    fn only_a_topic_that_had_an_id_was_created_again() {
        let line =
            |old: &str| format!("[thrd:main]: Topic shop.orders changed id from {old} to kpkuQTbrTMqCvhLDXu0Slw");
        assert_eq!(recreated(&line("AAAAAAAAAAAAAAAAAAAAAA")), None);
        assert_eq!(recreated(&line("M0dpb2PSSYa2FVGdRVMWpQ")), Some("shop.orders"));
        assert_eq!(recreated("[thrd:main]: Topic shop.orders [0] Leader 1 Epoch 0"), None);
    }
}
