//! Which Delta protocols this crate reads and writes.
//!
//! A table that uses anything else is refused before a row is read or written: reading past a feature one does not
//! know gives wrong answers, writing past it breaks the table for others.

use arrow::datatypes::Schema;
use serde_json::{Value, json};

use crate::{
    LakeError,
    commit_log::{Metadata, Protocol},
    schema,
};

/// The property that keeps other writers from deleting or overwriting rows.
pub(crate) const APPEND_ONLY: &str = "appendOnly";
/// The property that has stored positions expire.
const POSITIONS_EXPIRE: &str = "delta.setTransactionRetentionDuration";
const LOCAL_TIMESTAMPS: &str = "timestampNtz";

/// Features that change nothing for a reader of ours.
const READ: [&str; 2] = [LOCAL_TIMESTAMPS, "vacuumProtocolCheck"];
/// Features whose duties our commits fulfil. `invariants` only where none is declared.
const WRITTEN: [&str; 4] = [APPEND_ONLY, LOCAL_TIMESTAMPS, "invariants", "vacuumProtocolCheck"];

/// The `protocol` action of a new table: the oldest that can hold the schema.
pub(crate) fn protocol_for(schema: &Schema) -> Value {
    if schema::has_local_timestamps(schema) {
        json!({ "protocol": {
            "minReaderVersion": 3,
            "minWriterVersion": 7,
            "readerFeatures": [LOCAL_TIMESTAMPS],
            "writerFeatures": [LOCAL_TIMESTAMPS, APPEND_ONLY],
        }})
    } else {
        json!({ "protocol": { "minReaderVersion": 1, "minWriterVersion": 2 } })
    }
}

/// Refuses a table that cannot be read rightly.
pub(crate) fn check_readable(table: &str, protocol: &Protocol, metadata: &Metadata) -> Result<(), LakeError> {
    let refuse = |needs: String| {
        let fix = "rewrite it without that feature, or read it with another engine".to_owned();
        Err(LakeError::Unsupported { table: table.to_owned(), needs, verb: "read", fix })
    };
    match protocol.min_reader_version {
        1 | 2 => {}
        3 => {
            let features = protocol.reader_features.as_deref().unwrap_or_default();
            if let Some(unknown) = features.iter().find(|feature| !READ.contains(&feature.as_str())) {
                return refuse(format!("reader feature `{unknown}`"));
            }
        }
        newer => return refuse(format!("reader version {newer}")),
    }
    match property(metadata, "delta.columnMapping.mode") {
        None | Some("none") => check_positions_stay(table, metadata),
        Some(mode) => refuse(format!("column mapping by {mode}")),
    }
}

/// A position that has expired counts as 0, and what is stored would be stored again.
fn check_positions_stay(table: &str, metadata: &Metadata) -> Result<(), LakeError> {
    let Some(after) = property(metadata, POSITIONS_EXPIRE) else { return Ok(()) };
    Err(LakeError::Unsupported {
        table: table.to_owned(),
        needs: format!("positions that expire (`{POSITIONS_EXPIRE}` is `{after}`)"),
        verb: "read",
        fix: format!("unset the table's property `{POSITIONS_EXPIRE}`, or rows would be stored twice"),
    })
}

/// Refuses a table that our commits would break.
pub(crate) fn check_writable(table: &str, protocol: &Protocol, metadata: &Metadata) -> Result<(), LakeError> {
    check_readable(table, protocol, metadata)?;
    let refuse = |needs: String| {
        let fix = "let Tailwater alone define its tables, or use another folder".to_owned();
        Err(LakeError::Unsupported { table: table.to_owned(), needs, verb: "write", fix })
    };
    match protocol.min_writer_version {
        1 | 2 => {}
        7 => {
            let features = protocol.writer_features.as_deref().unwrap_or_default();
            if let Some(unknown) = features.iter().find(|feature| !WRITTEN.contains(&feature.as_str())) {
                return refuse(format!("writer feature `{unknown}`"));
            }
        }
        other => return refuse(format!("writer version {other}")),
    }
    if metadata.schema_string.contains("\"delta.invariants\"") {
        return refuse("column invariants".to_owned());
    }
    Ok(())
}

fn property<'a>(metadata: &'a Metadata, key: &str) -> Option<&'a str> {
    metadata.configuration.get(key)?.as_deref()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn protocol(reader: i32, writer: i32, features: &[&str]) -> Protocol {
        let features: Vec<String> = features.iter().map(|feature| (*feature).to_owned()).collect();
        Protocol {
            min_reader_version: reader,
            min_writer_version: writer,
            reader_features: (reader == 3).then(|| features.clone()),
            writer_features: (writer == 7).then_some(features),
        }
    }

    fn metadata(configuration: &[(&str, &str)]) -> Metadata {
        let pairs = configuration.iter().map(|(key, value)| ((*key).to_owned(), Some((*value).to_owned())));
        Metadata {
            id: "1".to_owned(),
            schema_string: "{}".to_owned(),
            partition_columns: Vec::new(),
            configuration: pairs.collect(),
        }
    }

    #[test]
    fn what_we_create_can_be_read_and_written() {
        for (reader, writer, features) in [(1, 2, vec![]), (3, 7, vec!["timestampNtz"])] {
            check_writable("t", &protocol(reader, writer, &features), &metadata(&[])).unwrap();
        }
        check_readable("t", &protocol(2, 5, &[]), &metadata(&[("delta.columnMapping.mode", "none")])).unwrap();
    }

    #[test]
    fn features_we_do_not_know_are_refused_by_name() {
        let refused = [
            (protocol(3, 7, &["deletionVectors"]), metadata(&[]), "reader feature `deletionVectors`"),
            (protocol(3, 7, &["v2Checkpoint"]), metadata(&[]), "reader feature `v2Checkpoint`"),
            (protocol(2, 5, &[]), metadata(&[("delta.columnMapping.mode", "name")]), "column mapping by name"),
            (protocol(4, 7, &[]), metadata(&[]), "reader version 4"),
            (protocol(1, 4, &[]), metadata(&[]), "writer version 4"),
            (protocol(1, 7, &["rowTracking"]), metadata(&[]), "writer feature `rowTracking`"),
        ];
        for (protocol, metadata, expected) in refused {
            let error = check_writable("t", &protocol, &metadata).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        }
    }

    #[test]
    fn positions_that_expire_are_refused_with_the_fix() {
        let metadata = metadata(&[(POSITIONS_EXPIRE, "interval 7 days")]);
        let expected = "needs positions that expire (`delta.setTransactionRetentionDuration` is `interval 7 days`)";
        for check in [check_readable, check_writable] {
            let error = check("t", &protocol(1, 2, &[]), &metadata).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("unset the table's property"), "{error}");
        }
    }
}
