//! Names of OpenTelemetry attributes, in one place because they still move.
//!
//! **Source**: OpenTelemetry semantic conventions as of 2026-08-20. `messaging.*` has the status *Development* there;
//! older versions say `messaging.kafka.consumer.group` and `messaging.kafka.message.offset`. `service.*`, `error.type`
//! and `db.*` are stable.

pub const SERVICE_NAME: &str = "service.name";
pub const SERVICE_VERSION: &str = "service.version";
pub const ERROR_TYPE: &str = "error.type";

pub const MESSAGING_SYSTEM: &str = "messaging.system";
pub const MESSAGING_OPERATION_NAME: &str = "messaging.operation.name";
/// One of [`SEND`], [`RECEIVE`], [`PROCESS`], [`SETTLE`].
pub const MESSAGING_OPERATION_TYPE: &str = "messaging.operation.type";
pub const MESSAGING_DESTINATION_NAME: &str = "messaging.destination.name";
pub const MESSAGING_DESTINATION_PARTITION_ID: &str = "messaging.destination.partition.id";
pub const MESSAGING_CONSUMER_GROUP_NAME: &str = "messaging.consumer.group.name";
pub const MESSAGING_BATCH_MESSAGE_COUNT: &str = "messaging.batch.message_count";
pub const MESSAGING_KAFKA_OFFSET: &str = "messaging.kafka.offset";

/// The value of [`MESSAGING_SYSTEM`] for Kafka.
pub const KAFKA: &str = "kafka";
pub const SEND: &str = "send";
pub const RECEIVE: &str = "receive";
pub const PROCESS: &str = "process";
pub const SETTLE: &str = "settle";

pub const DB_SYSTEM_NAME: &str = "db.system.name";
pub const DB_QUERY_SUMMARY: &str = "db.query.summary";

/// The header that carries a trace. **Source**: W3C Trace Context, level 1.
pub const TRACEPARENT: &str = "traceparent";
