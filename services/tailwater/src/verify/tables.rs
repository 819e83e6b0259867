//! The tables of the pipeline, shown to the judge row by row.
//!
//! Deliberately absent: any verdict.

use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use arrow::{
    array::{Array as _, ArrayRef, AsArray as _, BinaryArray, Int64Array, RecordBatch, StringArray},
    compute::cast,
    datatypes::{DataType, TimeUnit},
};

use super::{
    content::Row,
    definitions::Target,
    judge::{Derived, Judge, Letter, Stored},
    ledger::Place,
    scan::{Scan, Scanned},
};
use crate::{client::Client, commands::Failure};

const COLUMNS: &str = "run_id, producer, \"key\", seq, batch, batch_rows, sent_at, crc, payload, __partition, __offset";

/// Columns of one batch, by name, in the types asked for. Nulls read as zero or empty, which no row may say.
struct Columns<'a>(&'a RecordBatch);

impl Columns<'_> {
    fn numbers(&self, name: &str) -> anyhow::Result<Int64Array> {
        let column = self.column(name)?;
        let column = match column.data_type() {
            DataType::Timestamp(_, zone) => cast(&column, &DataType::Timestamp(TimeUnit::Microsecond, zone.clone()))?,
            _ => column,
        };
        Ok(cast(&column, &DataType::Int64)?.as_primitive().clone())
    }

    fn texts(&self, name: &str) -> anyhow::Result<StringArray> {
        Ok(cast(&self.column(name)?, &DataType::Utf8)?.as_string().clone())
    }

    fn bytes(&self, name: &str) -> anyhow::Result<BinaryArray> {
        Ok(cast(&self.column(name)?, &DataType::Binary)?.as_binary().clone())
    }

    fn column(&self, name: &str) -> anyhow::Result<ArrayRef> {
        self.0.column_by_name(name).map(Arc::clone).ok_or_else(|| anyhow!("the answer has no column `{name}`"))
    }
}

fn place(partition: i64, offset: i64) -> Place {
    Place { partition: u32::try_from(partition).unwrap_or(u32::MAX), offset: u64::try_from(offset).unwrap_or(u64::MAX) }
}

/// Shows every row of the source's table.
pub(crate) async fn show_stored(client: &Client, target: &Target, judge: &mut Judge) -> Result<Scanned, Failure> {
    let scan = Scan { client, target, table: &target.source, columns: COLUMNS, only: "" };
    scan.run(|batch| runtime::tasks::compute(|| show_stored_batch(batch, judge))).await
}

fn show_stored_batch(batch: &RecordBatch, judge: &mut Judge) -> anyhow::Result<()> {
    let columns = Columns(batch);
    let (run, producer, payload) = (columns.texts("run_id")?, columns.texts("producer")?, columns.texts("payload")?);
    let (key, seq, sent_at) = (columns.numbers("key")?, columns.numbers("seq")?, columns.numbers("sent_at")?);
    let (number, together, crc) = (columns.numbers("batch")?, columns.numbers("batch_rows")?, columns.numbers("crc")?);
    let (partition, offset) = (columns.numbers("__partition")?, columns.numbers("__offset")?);
    for at in 0..batch.num_rows() {
        let row = Row {
            run: run.value(at),
            producer: producer.value(at),
            key: key.value(at),
            seq: seq.value(at),
            batch: number.value(at),
            batch_rows: together.value(at),
            sent_at: sent_at.value(at),
            payload: payload.value(at),
        };
        judge.stored(&Stored { row, crc: crc.value(at), place: place(partition.value(at), offset.value(at)) });
    }
    Ok(())
}

/// Shows every row of the source's rejected table.
pub(crate) async fn show_rejected(client: &Client, target: &Target, judge: &mut Judge) -> Result<Scanned, Failure> {
    let table = format!("{}_rejected", target.source);
    let columns = "\"partition\" AS input_partition, \"offset\" AS input_offset, reason, \"bytes\" AS content";
    let scan = Scan { client, target, table: &table, columns, only: "part = 0" };
    scan.run(|batch| {
        let columns = Columns(batch);
        let (partition, offset) = (columns.numbers("input_partition")?, columns.numbers("input_offset")?);
        let (reason, bytes) = (columns.texts("reason")?, columns.bytes("content")?);
        for at in 0..batch.num_rows() {
            let place = place(partition.value(at), offset.value(at));
            judge.rejected(&Letter { place, reason: reason.value(at), bytes: bytes.value(at) });
        }
        Ok(())
    })
    .await
}

/// Shows every row of a view; the source's table must have been shown before.
pub(crate) async fn show_view(
    client: &Client,
    target: &Target,
    view: &str,
    judge: &mut Judge,
) -> Result<Scanned, Failure> {
    let computed = if view == "flows" { "amount AS computed, way" } else { "mixed AS computed, '' AS way" };
    let columns = format!("run_id, producer, \"key\", seq, {computed}");
    let scan = Scan { client, target, table: view, columns: &columns, only: "" };
    scan.run(|batch| {
        let columns = Columns(batch);
        let (run, producer, way) = (columns.texts("run_id")?, columns.texts("producer")?, columns.texts("way")?);
        let (key, seq, computed) = (columns.numbers("key")?, columns.numbers("seq")?, columns.numbers("computed")?);
        for at in 0..batch.num_rows() {
            let derived = match (view, way.value(at)) {
                ("even_events", _) => Derived::Even,
                ("fifth_events", _) => Derived::Fifth,
                (_, "in") => Derived::In,
                _ => Derived::Out,
            };
            judge.derived(
                derived,
                (run.value(at), producer.value(at)),
                key.value(at),
                seq.value(at),
                computed.value(at),
            );
        }
        Ok(())
    })
    .await
}

/// Shows rows as they follow each other in a data file.
pub(crate) fn show_file(batch: &RecordBatch, judge: &mut Judge) -> anyhow::Result<()> {
    let columns = Columns(batch);
    let (run, producer) = (columns.texts("run_id")?, columns.texts("producer")?);
    let (key, seq) = (columns.numbers("key")?, columns.numbers("seq")?);
    let (partition, offset) = (columns.numbers("__partition")?, columns.numbers("__offset").context("a data file")?);
    for at in 0..batch.num_rows() {
        let place = place(partition.value(at), offset.value(at));
        judge.in_file((run.value(at), producer.value(at)), key.value(at), seq.value(at), place);
    }
    Ok(())
}
