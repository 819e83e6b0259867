//! What one core can do with the libraries as they are, on this machine and at this time: JSON → Arrow, Arrow → IPC
//! with LZ4 and back, Arrow → Parquet, with nothing of ours in between.
//!
//! Measured in the same run as what is held against it, since machines differ by half and the same one by an hour.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use arrow::{
    array::RecordBatch,
    datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit},
    ipc::{
        CompressionType,
        reader::StreamReader,
        writer::{IpcWriteOptions, StreamWriter},
    },
    json::ReaderBuilder,
};
use parquet::{
    arrow::ArrowWriter,
    basic::{Compression, ZstdLevel},
    file::properties::WriterProperties,
};
use testkit::{
    process::Usage,
    rows::{Bids, TimeStyle},
};

const ROWS: usize = 8192;
const BATCHES: usize = 32;
const LOOK_FOR: Duration = Duration::from_millis(1200);

/// M rows per CPU-second of each library.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limit {
    pub(crate) json: f64,
    pub(crate) ipc_out: f64,
    pub(crate) ipc_in: f64,
    pub(crate) parquet: f64,
}

impl Limit {
    /// Measures all four, about five seconds.
    pub(crate) fn measure() -> Result<Self> {
        let mut bids = Bids::with_time(7, TimeStyle::EpochMicros);
        let lines: Vec<Vec<u8>> = (0..BATCHES).map(|_| bids.lines(ROWS)).collect();
        let batches = lines.iter().map(|lines| parsed(lines)).collect::<Result<Vec<_>>>()?;
        let messages = batches.iter().map(to_ipc).collect::<Result<Vec<_>>>()?;
        Ok(Self {
            json: rate(|number| parsed(&lines[number]).map(drop))?,
            ipc_out: rate(|number| to_ipc(&batches[number]).map(drop))?,
            ipc_in: rate(|number| from_ipc(&messages[number]).map(drop))?,
            parquet: rate_of_all(|| to_parquet(&batches))?,
        })
    }

    /// M rows per CPU-second of all four, one after the other.
    pub(crate) fn whole_path(&self) -> f64 {
        1.0 / [self.json, self.ipc_out, self.ipc_in, self.parquet].map(|rate| 1.0 / rate).iter().sum::<f64>()
    }

    /// Between two measurements.
    pub(crate) fn mean(self, other: Self) -> Self {
        let mean = |one: f64, other: f64| f64::midpoint(one, other);
        Self {
            json: mean(self.json, other.json),
            ipc_out: mean(self.ipc_out, other.ipc_out),
            ipc_in: mean(self.ipc_in, other.ipc_in),
            parquet: mean(self.parquet, other.parquet),
        }
    }
}

fn schema() -> SchemaRef {
    let field = |name: &str, data_type: DataType| Field::new(name, data_type, true);
    Arc::new(Schema::new(vec![
        field("auction", DataType::Int64),
        field("bidder", DataType::Int64),
        field("price", DataType::Int64),
        field("channel", DataType::Utf8),
        field("url", DataType::Utf8),
        field("date_time", DataType::Timestamp(TimeUnit::Microsecond, None)),
        field("extra", DataType::Utf8),
    ]))
}

fn parsed(lines: &[u8]) -> Result<RecordBatch> {
    let mut decoder = ReaderBuilder::new(schema()).with_batch_size(ROWS).build_decoder()?;
    decoder.decode(lines)?;
    decoder.flush()?.context("there are rows")
}

fn to_ipc(batch: &RecordBatch) -> Result<Vec<u8>> {
    let options = IpcWriteOptions::default().try_with_compression(Some(CompressionType::LZ4_FRAME))?;
    let mut writer = StreamWriter::try_new_with_options(Vec::new(), &batch.schema(), options)?;
    writer.write(batch)?;
    Ok(writer.into_inner()?)
}

fn from_ipc(message: &[u8]) -> Result<RecordBatch> {
    StreamReader::try_new(message, None)?.next().context("there is a batch")?.map_err(Into::into)
}

fn to_parquet(batches: &[RecordBatch]) -> Result<()> {
    let properties = WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::try_new(1)?)).build();
    let mut writer = ArrowWriter::try_new(Vec::new(), batches[0].schema(), Some(properties))?;
    batches.iter().try_for_each(|batch| writer.write(batch))?;
    writer.into_inner()?;
    Ok(())
}

/// One batch after the other.
fn rate(mut work: impl FnMut(usize) -> Result<()>) -> Result<f64> {
    rate_of_all(|| (0..BATCHES).try_for_each(&mut work))
}

fn rate_of_all(mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    work()?;
    let before = Usage::of(std::process::id())?.cpu;
    let started = Instant::now();
    let mut rows = 0;
    while started.elapsed() < LOOK_FOR {
        work()?;
        rows += ROWS * BATCHES;
    }
    let took = Usage::of(std::process::id())?.cpu - before;
    Ok(rows as f64 / took.as_secs_f64() / 1e6)
}
